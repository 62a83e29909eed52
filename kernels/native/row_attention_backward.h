// The backward pass of row_attention.h: keys outside, rows inside. What a block of keys gets stays in cache; the rows
// of a task lie gathered. Tasks are parts of units, made by their work alone: sums have one order on any machine.

#pragma once

#include "row_attention.h"

namespace hybridlm {

// A part of a unit: tiles t with t % (2 parts) = part or 2 parts - 1 - part, so that all parts see about as many keys.
struct RowTask {
    int64_t unit, part, parts;
    int64_t sums;  // where its sums of key gradients lie, counted in keys; -1: they go straight to dk and dv
    double work;

    bool has(int64_t tile) const { return std::min(tile % (2 * parts), 2 * parts - 1 - tile % (2 * parts)) == part; }
};

constexpr int64_t MOST_TILES = 64;  // that a task holds at once
constexpr int64_t LEAST_TASKS = 16;

// Largest first. A unit that is a large share of the work is cut.
template <class Plan>
std::vector<RowTask> row_tasks(const Plan& plan, int64_t* sums) {
    std::vector<double> work(plan.units());
    double all = 0;
    for (int64_t u = 0; u < plan.units(); u++) all += work[u] = double(plan.rows(u)) * double(plan.keys(u));
    std::vector<RowTask> tasks;
    *sums = 0;
    for (int64_t u = 0; u < plan.units(); u++) {
        int64_t tiles = tiles_of(plan.rows(u));
        if (!tiles) continue;
        int64_t parts = std::clamp<int64_t>(int64_t(std::ceil(LEAST_TASKS * work[u] / all - 1e-6)), 1, tiles);
        bool straight = parts == 1 && tiles <= MOST_TILES;
        for (int64_t part = 0; part < parts; part++) {
            tasks.push_back({u, part, parts, straight ? -1 : *sums, work[u] / double(parts)});
            *sums += straight ? 0 : plan.keys(u);
        }
    }
    std::stable_sort(tasks.begin(), tasks.end(), [](const RowTask& a, const RowTask& b) { return a.work > b.work; });
    return tasks;
}

template <class T, class In, int FIXED, class Plan>
class RowBackward {
    static constexpr int KEYS = 64, L = LANES<T>;
    const RowProblem<T, In>& x;
    const Plan& plan;
    T *all_dk, *all_dv;  // sums of tasks that do not go straight to the results
    Width<T, FIXED> width;
    Arena arena;
    int64_t most_tiles;
    T *q, *dout, *dq, *lse, *delta;   // of the rows held: [rows, width] three times, [rows] twice
    T *p, *ds;                        // [TILE, KEYS]
    T *k, *k_panels, *v_panels, *v;   // [KEYS, width]; panels [width, PANEL]
    T *dk, *dv;                       // [KEYS, width]
    Row* row;
    Seen* seen;
    int* count;  // rows of each tile
    bool* finite;
    bool finite_keys;

    void take() {
        int64_t rows = most_tiles * TILE;
        for (T** held : {&q, &dout, &dq}) *held = arena.take<T>(rows * width());
        for (T** number : {&lse, &delta}) *number = arena.take<T>(rows);
        for (T** scores : {&p, &ds}) *scores = arena.take<T>(TILE * KEYS);
        for (T** keys : {&k, &k_panels, &v_panels, &v, &dk, &dv}) *keys = arena.take<T>(KEYS * width());
        row = arena.take<Row>(rows);
        seen = arena.take<Seen>(rows);
        count = arena.take<int>(most_tiles);
        finite = arena.take<bool>(most_tiles);
    }

   public:
    RowBackward(const RowProblem<T, In>& x, const Plan& plan, int64_t most_tiles, T* all_dk, T* all_dv)
        : x(x), plan(plan), all_dk(all_dk), all_dv(all_dv), width{x.width()}, most_tiles(most_tiles) {
        take();
        arena.allocate();
        take();
    }

    void run(const RowTask& task) {
        int64_t tiles = tiles_of(plan.rows(task.unit)), held = 0;
        bool first = true;
        for (int64_t t = 0; t < tiles; t++) {
            if (task.has(t)) gather(task.unit, t, held++);
            if (held == most_tiles || (held && t == tiles - 1)) {
                for (int64_t j0 = 0; j0 < plan.keys(task.unit); j0 += KEYS) keys(task, held, int(j0), first);
                scatter(held);
                held = 0, first = false;
            }
        }
    }

   private:
    void gather(int64_t u, int64_t tile, int64_t held) {
        int64_t r0 = held * TILE;
        count[held] = tile_rows(plan, u, tile, row + r0, seen + r0);
        std::memset(dq + r0 * width(), 0, TILE * width() * sizeof(T));
        for (int64_t i = r0; i < r0 + TILE; i++) {
            if (i >= r0 + count[held]) {  // no row: exponentials and gradients of 0
                std::memset(q + i * width(), 0, width() * sizeof(T));
                std::memset(dout + i * width(), 0, width() * sizeof(T));
                lse[i] = std::numeric_limits<T>::max() / 4, delta[i] = 0;
                continue;
            }
            T gate = x.gate_of(row[i]);
            load_row<T>(x.q.at(row[i]), x.D, x.exponent(), q + i * width(), width());
            load_row<T>(x.o.at(row[i]), x.D, 1, dv, width());  // dv is free here
            load_row<T>(x.dout.at(row[i]), x.D, 1, dout + i * width(), width());
            Vec<T> sum = {};
            for (int64_t d = 0; d < width(); d += L) {
                sum += vec(dv + d) * vec(dout + i * width() + d);
                vec(dout + i * width() + d) *= gate;
            }
            delta[i] = sum_of<T>(sum);
            lse[i] = x.lse[x.number(row[i])];
            if (x.dgate) x.dgate[x.number(row[i])] = delta[i] / gate;
        }
        finite[held] = all_finite(q + r0 * width(), TILE * width()) && all_finite(dout + r0 * width(), TILE * width());
    }

    void scatter(int64_t held) {
        for (int64_t t = 0; t < held; t++)
            for (int64_t i = t * TILE; i < t * TILE + count[t]; i++)
                store_row<T>(dq + i * width(), x.D, x.scale, x.dq.at(row[i]));
    }

    void keys(const RowTask& task, int64_t held, int j0, bool first) {
        bool any = false;
        for (int64_t t = 0; t < held; t++)
            for (int range = 0; range < 2; range++) {
                Block block(seen + t * TILE, count[t], range);
                if (j0 + KEYS <= block.begin() || j0 >= block.end()) continue;
                block.at(j0, KEYS, PANEL<T>);
                if (!std::exchange(any, true)) load_keys(task.unit, j0);
                if (!block.edge)
                    tile<false, false>(block, t);
                else if (finite[t] && finite_keys)
                    tile<true, false>(block, t);
                else
                    tile<true, true>(block, t);
            }
        store_keys(task, j0, any, first);
    }

    void load_keys(int64_t u, int64_t j0) {
        for (int c = 0; c < KEYS; c += PANEL<T>) {
            PackedKeys<T>::load(x, x.k, plan, u, j0 + c, k + c * width());
            PackedKeys<T>::load(x, x.v, plan, u, j0 + c, v + c * width());
            transpose<T>(PANEL<T>, width(), k + c * width(), width(), k_panels + c * width(), PANEL<T>);
            transpose<T>(PANEL<T>, width(), v + c * width(), width(), v_panels + c * width(), PANEL<T>);
        }
        finite_keys = all_finite(k, KEYS * width());
        std::memset(dk, 0, KEYS * width() * sizeof(T));
        std::memset(dv, 0, KEYS * width() * sizeof(T));
    }

    void store_keys(const RowTask& task, int64_t j0, bool any, bool first) {
        int64_t n = std::min<int64_t>(KEYS, plan.keys(task.unit) - j0);
        if (!any && !first && task.sums >= 0) return;
        if (!any) std::memset(dk, 0, n * width() * sizeof(T)), std::memset(dv, 0, n * width() * sizeof(T));
        if (task.sums < 0) {
            store(task.unit, j0, n, dk, dv);
            return;
        }
        T *to_dk = all_dk + (task.sums + j0) * width(), *to_dv = all_dv + (task.sums + j0) * width();
        if (first) {
            std::memcpy(to_dk, dk, n * width() * sizeof(T)), std::memcpy(to_dv, dv, n * width() * sizeof(T));
        } else {
            for (int64_t i = 0; i < n * width(); i += L) vec(to_dk + i) += vec(dk + i), vec(to_dv + i) += vec(dv + i);
        }
    }

    void store(int64_t u, int64_t j0, int64_t n, const T* from_dk, const T* from_dv) {
        for (int64_t j = 0; j < n; j++) {
            Row key = plan.key(u, j0 + j);
            store_row<T>(from_dk + j * width(), x.D, T(0.6931471805599453), x.dk.at(key));  // q is log2(e) too large
            store_row<T>(from_dv + j * width(), x.D, 1, x.dv.at(key));
        }
    }

    template <bool EDGE, bool CAREFUL>
    void tile(const Block& block, int64_t t) {
        const int64_t r0 = t * TILE;
        const T *tile_q = q + r0 * width(), *tile_do = dout + r0 * width(), *tile_lse = lse + r0, *tile_delta = delta + r0;
        auto none = [](int, int) { return Vec<T>{}; };
        for (int c = 0; c < KEYS; c += PANEL<T>) {
            int m0 = 0, m1 = block.groups * GROUP;  // the rows that see this panel
            while (m0 < m1 && block.last[m0 / GROUP] <= c) m0 += GROUP;
            while (m1 > m0 && block.first[m1 / GROUP - 1] > c) m1 -= GROUP;
            for (int m = m0; m < m1; m += GROUP)  // exponential and softmax gradient happen on the registers
                multiply_registers(int(width()), tile_q + m * width(), width(), 1, k_panels + c * width(), PANEL<T>,
                                   none, [&](int i, int n, Vec<T> s) {
                                       Vec<T> y = exp2<T>(s - tile_lse[m + i]);
                                       if (EDGE) y = block.masked<T>(m + i, c + n * L, y, 0);
                                       vec(p + (m + i) * KEYS + c + n * L) = y;
                                   });
            for (int m = m0; m < m1; m += GROUP)
                multiply_registers(int(width()), tile_do + m * width(), width(), 1, v_panels + c * width(), PANEL<T>,
                                   none, [&](int i, int n, Vec<T> dp) {
                                       int64_t at = (m + i) * KEYS + c + n * L;
                                       Vec<T> y = vec(p + at) * (dp - tile_delta[m + i]);
                                       if (EDGE) y = block.masked<T>(m + i, c + n * L, y, 0);
                                       vec(ds + at) = y;
                                   });
            auto sees = [&](int j, int m) { return block.sees(m0 + m, c + j); };
            add<CAREFUL>(PANEL<T>, m1 - m0, p + m0 * KEYS + c, 1, KEYS, tile_do + m0 * width(), dv + c * width(), sees);
            add<CAREFUL>(PANEL<T>, m1 - m0, ds + m0 * KEYS + c, 1, KEYS, tile_q + m0 * width(), dk + c * width(), sees);
        }
        for (int g = 0; g < block.groups; g++) {
            int first = block.first[g], last = block.last[g], m0 = g * GROUP;
            if (first < last)
                add<CAREFUL>(GROUP, last - first, ds + m0 * KEYS + first, KEYS, 1, k + first * width(),
                             dq + (r0 + m0) * width(), [&](int m, int j) { return block.sees(m0 + m, first + j); });
        }
    }

    template <bool CAREFUL, class Sees>
    [[gnu::always_inline]] void add(int rows, int depth, const T* a, int64_t row, int64_t col, const T* b, T* c,
                                    Sees sees) {
        if constexpr (CAREFUL)
            accumulate_seen<false>(rows, width(), depth, a, row, col, b, c, width(), sees);
        else
            accumulate<false>(rows, width(), depth, a, row, col, b, c, width());
    }

   public:
    // dk and dv of a unit whose parts are done: their sums, in order.
    void finish(const RowTask& task, int64_t j0) {
        int64_t keys = plan.keys(task.unit), n = std::min<int64_t>(KEYS, keys - j0);
        T *sum_dk = all_dk + (task.sums + j0) * width(), *sum_dv = all_dv + (task.sums + j0) * width();
        for (int64_t part = 1; part < task.parts; part++)
            for (int64_t i = 0, from = part * keys * width(); i < n * width(); i += L)
                vec(sum_dk + i) += vec(sum_dk + from + i), vec(sum_dv + i) += vec(sum_dv + from + i);
        store(task.unit, j0, n, sum_dk, sum_dv);
    }
    static constexpr int64_t STEP = KEYS;
};

// The keys of a unit that no row sees get a gradient of 0 here.
template <class T, class In, class Plan>
void zero_keys(const RowProblem<T, In>& x, const Plan& plan) {
    for (int64_t u = 0; u < plan.units(); u++)
        for (int64_t j = 0; !plan.rows(u) && j < plan.keys(u); j++) {
            std::memset(x.dk.at(plan.key(u, j)), 0, x.D * sizeof(In));
            std::memset(x.dv.at(plan.key(u, j)), 0, x.D * sizeof(In));
        }
}

template <int FIXED, class T, class In, class Plan>
void backward_rows(const RowProblem<T, In>& x, const Plan& plan) {
    int64_t sums;
    std::vector<RowTask> tasks = row_tasks(plan, &sums);
    Scratch<T> dk(sums * x.width()), dv(sums * x.width());
    int64_t most_tiles = 1;
    for (const RowTask& task : tasks)
        most_tiles = std::max(most_tiles, std::min(MOST_TILES, tiles_of(plan.rows(task.unit)) / task.parts + 1));
    using Worker = RowBackward<T, In, FIXED, Plan>;
    auto worker = [&](int64_t tiles) { return std::make_unique<Worker>(x, plan, tiles, dk.get(), dv.get()); };
    parallel(
        x.threads, int64_t(tasks.size()), [&] { return worker(most_tiles); },
        [&](Worker& worker, int64_t i) { worker.run(tasks[i]); });
    std::vector<std::pair<RowTask, int64_t>> finish;  // of cut units, by blocks of keys
    for (const RowTask& task : tasks)
        for (int64_t j0 = 0; task.sums >= 0 && task.part == 0 && j0 < plan.keys(task.unit); j0 += Worker::STEP)
            finish.emplace_back(task, j0);
    parallel(
        x.threads, int64_t(finish.size()), [&] { return worker(1); },
        [&](Worker& worker, int64_t i) { worker.finish(finish[i].first, finish[i].second); });
    zero_keys(x, plan);
}

template <class T, class In, class Plan>
void row_attention_backward(const RowProblem<T, In>& x, const Plan& plan) {
    by_width<T>(x.width(), [&](auto width) { backward_rows<width()>(x, plan); });
}

}  // namespace hybridlm
