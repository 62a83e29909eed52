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
// between the products; P and dS are read down columns and never transposed. What is masked is not multiplied: a NaN
// stays with the rows that see it.

#pragma once

#include "row_tiles.h"

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

// FIXED is the padded width of a row, where it was compiled for one, else 0.
template <class T, int FIXED>
struct Width {
    int64_t size;
    int64_t operator()() const { return FIXED ? FIXED : size; }
};

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

template <class T, class In, int FIXED, class Plan>
class RowForward {
    static constexpr int KEYS = 128, L = LANES<T>;
    static constexpr T LOW = std::numeric_limits<T>::lowest() / 4;  // below every score, and finite
    const RowProblem<T, In>& x;
    const Plan& plan;
    const PackedKeys<T>& packed;
    Width<T, FIXED> width;
    Arena arena;
    T *q, *o, *s, *sum;  // [TILE, width] twice, [TILE, KEYS], [TILE, LANES]
    alignas(64) T top[TILE], keep[TILE];
    Row row[TILE];
    Seen seen[TILE];

    void take() {
        q = arena.take<T>(TILE * width());
        o = arena.take<T>(TILE * width());
        s = arena.take<T>(TILE * KEYS);
        sum = arena.take<T>(TILE * L);
    }

   public:
    int64_t pairs = 0;

    RowForward(const RowProblem<T, In>& x, const Plan& plan, const PackedKeys<T>& packed)
        : x(x), plan(plan), packed(packed), width{x.width()} {
        take();
        arena.allocate();
        take();
    }
    ~RowForward() {
        if (x.pairs) __atomic_fetch_add(x.pairs, pairs, __ATOMIC_RELAXED);
    }

    void run(int64_t u, int64_t tile) {
        int n = tile_rows(plan, u, tile, row, seen);
        for (int i = 0; i < TILE; i++)
            load_row<T>(x.q.at(row[i]), x.D, x.exponent(), q + i * width(), width());
        std::memset(o, 0, TILE * width() * sizeof(T));
        std::memset(sum, 0, TILE * L * sizeof(T));
        std::fill(top, top + TILE, LOW);
        for (int range = 0; range < 2; range++) {
            Block block(seen, n, range);
            for (int j0 = block.begin() / PANEL<T> * PANEL<T>; j0 < block.end(); j0 += KEYS) {
                block.at(j0, KEYS, PANEL<T>);
                attend(block, u, j0);
            }
        }
        for (int i = 0; i < n; i++) {
            T all = sum_of<T>(vec(sum + i * L));
            store_row<T>(o + i * width(), x.D, x.gate_of(row[i]) / all, x.o.at(row[i]));
            x.lse[x.number(row[i])] = top[i] + std::log2(all);
        }
    }

   private:
    void attend(const Block& block, int64_t u, int j0) {
        const T *k = packed.k_panels(u, j0, width()), *v = packed.v_rows(u, j0, width());
        for (int c = 0; c < KEYS; c += PANEL<T>)  // a panel at a time: it stays in L1
            for (int g = 0; g < block.groups; g++)
                if (block.first[g] <= c && c < block.last[g]) {
                    T* to = s + g * GROUP * KEYS + c;
                    multiply_registers(
                        int(width()), q + g * GROUP * width(), width(), 1, k + c * width(), PANEL<T>,
                        [](int, int) { return Vec<T>{}; },
                        [&](int m, int n, Vec<T> y) { vec(to + m * KEYS + n * L) = y; });
                    pairs += GROUP * PANEL<T>;
                }
        bool careful = block.edge && !packed.finite(u, j0, j0 + KEYS);
        for (int g = 0; g < block.groups; g++) {
            int m0 = g * GROUP, first = block.first[g], last = block.last[g];
            if (first >= last) continue;
            for (int m = m0; m < m0 + GROUP; m++) softmax(block, m, first, last);
            const T *p = s + m0 * KEYS + first, *values = v + first * width();
            if (careful)
                accumulate_seen<true>(GROUP, width(), last - first, p, KEYS, 1, values, o + m0 * width(), width(),
                                      [&](int m, int j) { return block.sees(m0 + m, first + j); }, keep + m0);
            else
                accumulate<true>(GROUP, width(), last - first, p, KEYS, 1, values, o + m0 * width(), width(), keep + m0);
        }
    }

    // The row's scores become exponentials, smaller by the largest so far; keep: by how much the older ones shrink.
    void softmax(const Block& block, int m, int first, int last) {
        T* scores = s + m * KEYS;
        if (block.edge)
            for (int c = first; c < last; c += L) vec(scores + c) = block.masked<T>(m, c, vec(scores + c), -INFINITY);
        Vec<T> most = Vec<T>{} + top[m], part[2] = {};
        for (int c = first; c < last; c += L) most = larger<T>(most, vec(scores + c));
        T now = largest_of<T>(most);
        for (int c = first; c < last; c += L) part[c / L % 2] += vec(scores + c) = exp2<T>(vec(scores + c) - now);
        keep[m] = exp2<T>(Vec<T>{} + (top[m] - now))[0];
        vec(sum + m * L) = keep[m] * vec(sum + m * L) + (part[0] + part[1]);
        top[m] = now;
    }
};

template <int FIXED, class T, class In, class Plan>
void forward_rows(const RowProblem<T, In>& x, const Plan& plan) {
    PackedKeys<T> packed(x, plan);
    std::vector<std::pair<int64_t, int64_t>> tasks;  // unit, tile
    for (int64_t u = 0; u < plan.units(); u++)
        for (int64_t t = 0; t < tiles_of(plan.rows(u)); t++) tasks.emplace_back(u, t);
    using Worker = RowForward<T, In, FIXED, Plan>;
    parallel(
        x.threads, int64_t(tasks.size()), [&] { return std::make_unique<Worker>(x, plan, packed); },
        [&](Worker& worker, int64_t i) { worker.run(tasks[i].first, tasks[i].second); });
}

// run(width) with the padded width of a row as a constant where that is a common one, else 0.
template <class T, class Run>
void by_width(int64_t width, Run run) {
    if (sizeof(T) == 4 && width == 32)
        run(std::integral_constant<int, sizeof(T) == 4 ? 32 : 0>());
    else if (sizeof(T) == 4 && width == 64)
        run(std::integral_constant<int, sizeof(T) == 4 ? 64 : 0>());
    else if (sizeof(T) == 4 && width == 96)
        run(std::integral_constant<int, sizeof(T) == 4 ? 96 : 0>());
    else if (sizeof(T) == 4 && width == 128)
        run(std::integral_constant<int, sizeof(T) == 4 ? 128 : 0>());
    else
        run(std::integral_constant<int, 0>());
}

template <class T, class In, class Plan>
void row_attention_forward(const RowProblem<T, In>& x, const Plan& plan) {
    by_width<T>(x.width(), [&](auto width) { forward_rows<width()>(x, plan); });
}

}  // namespace hybridlm
