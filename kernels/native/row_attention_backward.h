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

// Parts of a unit cost the writing and adding of their sums, so few units are cut: large shares of all work, and those
// that are left over when eight threads, four or two have taken equal units. Parts of many tiles are nearly free.
inline int64_t parts_of(double share, int64_t tiles, int64_t left_over) {
    constexpr double WANTED = 8, NEARLY_FREE = 16;
    auto tasks = [&](double count) { return int64_t(std::ceil(count * share - 1e-6)); };
    int64_t wanted = std::max(tasks(WANTED), left_over ? (int64_t(WANTED) + left_over - 1) / left_over : 1);
    return std::max<int64_t>({1, std::min(wanted, tiles / 12), std::min(tasks(NEARLY_FREE), tiles / 48)});
}

// Largest first.
template <class Plan>
std::vector<RowTask> row_tasks(const Plan& plan, int64_t* sums) {
    std::vector<double> work(plan.units());
    double all = 0;
    for (int64_t u = 0; u < plan.units(); u++) all += work[u] = double(plan.rows(u)) * double(plan.keys(u));
    std::vector<RowTask> tasks;
    *sums = 0;
    for (int64_t u = 0; u < plan.units(); u++) {
        int64_t tiles = tiles_of(plan.rows(u)), left_over = plan.units() % 8;
        if (!tiles) continue;
        int64_t parts = parts_of(work[u] / all, tiles, u >= plan.units() - left_over ? left_over : 0);
        bool straight = parts == 1 && tiles <= MOST_TILES;
        for (int64_t part = 0; part < parts; part++) {
            tasks.push_back({u, part, parts, straight ? -1 : *sums, work[u] / double(parts)});
            *sums += straight ? 0 : plan.keys(u);
        }
    }
    std::stable_sort(tasks.begin(), tasks.end(), [](const RowTask& a, const RowTask& b) { return a.work > b.work; });
    return tasks;
}

template <class T, class In, class Plan>
class RowBackward {
    static constexpr int KEYS = BACKWARD_KEYS;
    const RowProblem<T, In>& x;
    const Plan& plan;
    T *all_dk, *all_dv;  // sums of tasks that do not go straight to the results
    const int64_t width, most_tiles;
    Arena arena;
    T *q, *dout, *dq, *lse, *delta;                     // of the rows held
    T *p, *ds, *k, *k_panels, *v_panels, *v, *dk, *dv;  // as in BackwardTile
    Row* row;
    Seen* seen;
    int* count;  // rows of each tile
    bool* finite;
    bool finite_keys;

    void take() {
        int64_t rows = most_tiles * TILE;
        for (T** held : {&q, &dout, &dq}) *held = arena.take<T>(rows * width);
        for (T** number : {&lse, &delta}) *number = arena.take<T>(rows);
        for (T** scores : {&p, &ds}) *scores = arena.take<T>(TILE * KEYS);
        for (T** keys : {&k, &k_panels, &v_panels, &v, &dk, &dv}) *keys = arena.take<T>(KEYS * width);
        row = arena.take<Row>(rows);
        seen = arena.take<Seen>(rows);
        count = arena.take<int>(most_tiles);
        finite = arena.take<bool>(most_tiles);
    }

   public:
    RowBackward(const RowProblem<T, In>& x, const Plan& plan, int64_t most_tiles, T* all_dk, T* all_dv)
        : x(x), plan(plan), all_dk(all_dk), all_dv(all_dv), width(x.width()), most_tiles(most_tiles) {
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
        std::memset(dq + r0 * width, 0, TILE * width * sizeof(T));
        for (int64_t i = r0; i < r0 + TILE; i++) {
            if (i >= r0 + count[held]) {  // no row: exponentials and gradients of 0
                std::memset(q + i * width, 0, width * sizeof(T));
                std::memset(dout + i * width, 0, width * sizeof(T));
                lse[i] = std::numeric_limits<T>::max() / 4, delta[i] = 0;
                continue;
            }
            T gate = x.gate_of(row[i]);
            load_row<T>(x.q.at(row[i]), x.D, x.exponent(), q + i * width, width);
            load_row<T>(x.o.at(row[i]), x.D, 1, dv, width);  // dv is free here
            load_row<T>(x.dout.at(row[i]), x.D, 1, dout + i * width, width);
            Vec<T> sum = {};
            for (int64_t d = 0; d < width; d += LANES<T>) {
                sum += vec(dv + d) * vec(dout + i * width + d);
                vec(dout + i * width + d) *= gate;
            }
            delta[i] = sum_of<T>(sum);
            lse[i] = x.lse[x.number(row[i])];
            if (x.dgate) x.dgate[x.number(row[i])] = delta[i] / gate;
        }
        finite[held] = all_finite(q + r0 * width, TILE * width) && all_finite(dout + r0 * width, TILE * width);
    }

    void scatter(int64_t held) {
        for (int64_t t = 0; t < held; t++)
            for (int64_t i = t * TILE; i < t * TILE + count[t]; i++)
                store_row<T>(dq + i * width, x.D, x.scale, x.dq.at(row[i]));
    }

    void keys(const RowTask& task, int64_t held, int j0, bool first) {
        bool any = false;
        for (int64_t t = 0; t < held; t++)
            for (int range = 0; range < 2; range++) {
                Block block(seen + t * TILE, count[t], range);
                if (j0 + KEYS <= block.begin() || j0 >= block.end()) continue;
                block.at(j0, KEYS, PANEL<T>);
                if (!std::exchange(any, true)) load_keys(task.unit, j0);
                add_gradients(tile(t), block, !finite[t] || !finite_keys);
            }
        store_keys(task, j0, any, first);
    }

    BackwardTile<T> tile(int64_t t) const {
        int64_t first = t * TILE, at = first * width;
        return {width, q + at, dout + at, lse + first, delta + first, dq + at, p, ds, k, k_panels, v_panels, dk, dv};
    }

    void load_keys(int64_t u, int64_t j0) {
        for (int c = 0; c < KEYS; c += PANEL<T>) {
            PackedKeys<T>::load(x, x.k, plan, u, j0 + c, k + c * width);
            PackedKeys<T>::load(x, x.v, plan, u, j0 + c, v + c * width);
            transpose<T>(PANEL<T>, width, k + c * width, width, k_panels + c * width, PANEL<T>);
            transpose<T>(PANEL<T>, width, v + c * width, width, v_panels + c * width, PANEL<T>);
        }
        finite_keys = all_finite(k, KEYS * width);
        std::memset(dk, 0, KEYS * width * sizeof(T));
        std::memset(dv, 0, KEYS * width * sizeof(T));
    }

    void store_keys(const RowTask& task, int64_t j0, bool any, bool first) {
        int64_t n = std::min<int64_t>(KEYS, plan.keys(task.unit) - j0);
        if (!any && !first && task.sums >= 0) return;
        if (!any) std::memset(dk, 0, n * width * sizeof(T)), std::memset(dv, 0, n * width * sizeof(T));
        if (task.sums < 0) {
            store(task.unit, j0, n, dk, dv);
            return;
        }
        T *to_dk = all_dk + (task.sums + j0) * width, *to_dv = all_dv + (task.sums + j0) * width;
        if (first) {
            std::memcpy(to_dk, dk, n * width * sizeof(T)), std::memcpy(to_dv, dv, n * width * sizeof(T));
        } else {
            for (int64_t i = 0; i < n * width; i += LANES<T>)
                vec(to_dk + i) += vec(dk + i), vec(to_dv + i) += vec(dv + i);
        }
    }

    void store(int64_t u, int64_t j0, int64_t n, const T* from_dk, const T* from_dv) {
        for (int64_t j = 0; j < n; j++) {
            Row key = plan.key(u, j0 + j);
            store_row<T>(from_dk + j * width, x.D, T(0.6931471805599453), x.dk.at(key));  // q is log2(e) too large
            store_row<T>(from_dv + j * width, x.D, 1, x.dv.at(key));
        }
    }

   public:
    // dk and dv of a unit whose parts are done: their sums, in order.
    void finish(const RowTask& task, int64_t j0) {
        int64_t keys = plan.keys(task.unit), n = std::min<int64_t>(KEYS, keys - j0);
        T *sum_dk = all_dk + (task.sums + j0) * width, *sum_dv = all_dv + (task.sums + j0) * width;
        for (int64_t part = 1; part < task.parts; part++)
            for (int64_t i = 0, from = part * keys * width; i < n * width; i += LANES<T>)
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

template <class T, class In, class Plan>
void row_attention_backward(const RowProblem<T, In>& x, const Plan& plan) {
    int64_t sums;
    std::vector<RowTask> tasks = row_tasks(plan, &sums);
    Scratch<T> dk(sums * x.width()), dv(sums * x.width());
    int64_t most_tiles = 1;
    for (const RowTask& task : tasks)
        most_tiles = std::max(most_tiles, std::min(MOST_TILES, tiles_of(plan.rows(task.unit)) / task.parts + 1));
    using Worker = RowBackward<T, In, Plan>;
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

}  // namespace hybridlm
