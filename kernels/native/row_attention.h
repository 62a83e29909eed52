// Softmax attention of listed query rows over keys in one order, forward and backward. A unit is one list of keys with
// the rows that see them; a Plan says which these are, and makes an operator of it:
//
//     units()          how many
//     rows(u), keys(u) numbers of its query rows and of its keys
//     row(u, i)        query row i and key j, as (token, head)
//     key(u, j)
//     seen(u, i)       the two ranges of keys that row i sees, one key at least; see Seen
//
// With scores in base 2, s = q k scale log2(e) and P = 2^(s - lse):
//
//     o = gate sum_j P_j v_j;   delta = <do, o>;   dgate = delta / gate
//     dS_j = P_j (gate <do, v_j> - delta);   dq = scale dS K;   dK = scale dS^T q;   dV = gate P^T do
//
// Forward has tiles of rows outside and blocks of keys inside, backward the reverse. A block of scores stays in cache
// between the products. What is masked is not multiplied: a NaN stays with the rows that see it.

#pragma once

#include "row_scores.h"

namespace hybridlm {

template <class T, class In>
struct RowProblem {
    int64_t threads, D, heads;
    T scale;
    Vectors<const In> q, k, v, dout;
    Vectors<In> o, dq, dk, dv;  // o is read by backward
    const T* gate;              // [tokens, heads]; null is 1
    T* lse;                     // [tokens, heads], log2 of the sum of the exponentials
    T* dgate;
    int64_t* pairs;  // where the number of scores that forward computes is added, or null

    int64_t number(Row row) const { return row.token * heads + row.head; }
    T gate_of(Row row) const { return gate ? gate[number(row)] : T(1); }
    int64_t width() const { return (D + PANEL<T> - 1) / PANEL<T> * PANEL<T>; }
    T exponent() const { return scale * T(1.4426950408889634); }
};

struct NoWorker {};
inline std::unique_ptr<NoWorker> no_worker() { return nullptr; }

inline int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

// Rows of a tile, the last one repeated up to TILE, and what they see.
template <class Plan>
int tile_rows(const Plan& plan, int64_t u, int64_t tile, Row* row, Seen* seen) {
    int64_t n = std::min<int64_t>(TILE, plan.rows(u) - tile * TILE);
    for (int64_t i = 0; i < TILE; i++) {
        int64_t at = tile * TILE + std::min(i, n - 1);
        row[i] = plan.row(u, at), seen[i] = plan.seen(u, at);
    }
    return int(n);
}

// The keys of all units as forward reads them: k in panels [D, PANEL], v in rows; zero behind a unit's last.
template <class T>
class PackedKeys {
    static constexpr int64_t STEP = 8;  // panels per task
    std::vector<int64_t> first;         // panel of each unit
    Scratch<T> k, v;
    std::vector<char> finite_v;  // by panel

    template <class Plan>
    static std::vector<int64_t> offsets(const Plan& plan) {
        std::vector<int64_t> first(plan.units() + 1);
        for (int64_t u = 0; u < plan.units(); u++)
            first[u + 1] = first[u] + (plan.rows(u) ? (plan.keys(u) + PANEL<T> - 1) / PANEL<T> : 0);
        return first;
    }

   public:
    template <class In, class Plan>
    PackedKeys(const RowProblem<T, In>& x, const Plan& plan)
        : first(offsets(plan)), k(first.back() * PANEL<T> * x.width()), v(first.back() * PANEL<T> * x.width()),
          finite_v(first.back()) {
        std::vector<int64_t> unit(first.back());
        for (int64_t u = 0; u < plan.units(); u++) std::fill(&unit[0] + first[u], &unit[0] + first[u + 1], u);
        int64_t size = PANEL<T> * x.width();
        parallel(
            x.threads, (first.back() + STEP - 1) / STEP, [&] { return std::make_unique<Scratch<T>>(size); },
            [&](Scratch<T>& spare, int64_t task) {
                for (int64_t p = task * STEP; p < std::min(first.back(), task * STEP + STEP); p++) {
                    int64_t j0 = (p - first[unit[p]]) * PANEL<T>;
                    load(x, x.k, plan, unit[p], j0, spare.get());
                    transpose<T>(PANEL<T>, x.width(), spare.get(), x.width(), k.get() + p * size, PANEL<T>);
                    load(x, x.v, plan, unit[p], j0, v.get() + p * size);
                    finite_v[p] = all_finite(v.get() + p * size, size);
                }
            });
    }

    // Keys j0, .. of unit u, a panel of them.
    template <class In, class Plan>
    static void load(const RowProblem<T, In>& x, const Vectors<const In>& from, const Plan& plan, int64_t u, int64_t j0,
                     T* to) {
        for (int64_t j = 0; j < PANEL<T>; j++, to += x.width())
            if (j0 + j < plan.keys(u))
                load_row<T>(from.at(plan.key(u, j0 + j)), x.D, 1, to, x.width());
            else
                std::memset(to, 0, x.width() * sizeof(T));
    }

    const T* k_panels(int64_t u, int64_t j, int64_t width) const { return k.get() + (first[u] * PANEL<T> + j) * width; }
    const T* v_rows(int64_t u, int64_t j, int64_t width) const { return v.get() + (first[u] * PANEL<T> + j) * width; }
    bool finite(int64_t u, int64_t j, int64_t end) const {
        for (int64_t p = first[u] + j / PANEL<T>; p < first[u + 1] && (p - first[u]) * PANEL<T> < end; p++)
            if (!finite_v[p]) return false;
        return true;
    }
};

template <class T, class In, class Plan>
class RowForward {
    static constexpr T LOW = std::numeric_limits<T>::lowest() / 4;  // below every score, and finite
    const RowProblem<T, In>& x;
    const Plan& plan;
    const PackedKeys<T>& packed;
    Arena arena;
    ForwardTile<T> tile = {};
    Row row[TILE];
    Seen seen[TILE];

    void take() {
        tile.width = x.width();
        tile.q = arena.take<T>(TILE * tile.width);
        tile.o = arena.take<T>(TILE * tile.width);
        tile.sum = arena.take<T>(TILE * LANES<T>);
        tile.top = arena.take<T>(TILE);
        tile.keep = arena.take<T>(TILE);
        tile.scores = arena.take<T>(TILE * FORWARD_KEYS);
    }

   public:
    RowForward(const RowProblem<T, In>& x, const Plan& plan, const PackedKeys<T>& packed)
        : x(x), plan(plan), packed(packed) {
        take();
        arena.allocate();
        take();
    }
    ~RowForward() {
        if (x.pairs) __atomic_fetch_add(x.pairs, tile.pairs, __ATOMIC_RELAXED);
    }

    void run(int64_t u, int64_t number) {
        int64_t width = tile.width;
        int n = tile_rows(plan, u, number, row, seen);
        for (int i = 0; i < TILE; i++) load_row<T>(x.q.at(row[i]), x.D, x.exponent(), tile.q + i * width, width);
        std::memset(tile.o, 0, TILE * width * sizeof(T));
        std::memset(tile.sum, 0, TILE * LANES<T> * sizeof(T));
        std::fill(tile.top, tile.top + TILE, LOW);
        for (int range = 0; range < 2; range++) {
            Block block(seen, n, range);
            for (int j0 = block.begin() / PANEL<T> * PANEL<T>; j0 < block.end(); j0 += FORWARD_KEYS) {
                block.at(j0, FORWARD_KEYS, PANEL<T>);
                bool careful = block.edge && !packed.finite(u, j0, j0 + FORWARD_KEYS);
                attend(tile, block, packed.k_panels(u, j0, width), packed.v_rows(u, j0, width), careful);
            }
        }
        for (int i = 0; i < n; i++) {
            T all = sum_of<T>(vec(tile.sum + i * LANES<T>));
            store_row<T>(tile.o + i * width, x.D, x.gate_of(row[i]) / all, x.o.at(row[i]));
            x.lse[x.number(row[i])] = tile.top[i] + std::log2(all);
        }
    }
};

template <class T, class In, class Plan>
void row_attention_forward(const RowProblem<T, In>& x, const Plan& plan) {
    PackedKeys<T> packed(x, plan);
    std::vector<std::pair<int64_t, int64_t>> tasks;  // unit, tile
    for (int64_t u = 0; u < plan.units(); u++)
        for (int64_t t = 0; t < tiles_of(plan.rows(u)); t++) tasks.emplace_back(u, t);
    using Worker = RowForward<T, In, Plan>;
    parallel(
        x.threads, int64_t(tasks.size()), [&] { return std::make_unique<Worker>(x, plan, packed); },
        [&](Worker& worker, int64_t i) { worker.run(tasks[i].first, tasks[i].second); });
}

}  // namespace hybridlm
