// One token of attention for each of N sequences, for decoding. It is bound by the memory of the keys: a key head's are
// read once for all its active queries, and not at all where there is none. Long caches are cut, whatever the number of
// threads, so that a single sequence keeps all of them busy.

#pragma once

#include "row_tiles.h"

namespace hybridlm {

template <class T, class In>
struct StepArguments {
    Call call;               // N sequences of S slots; a head is a key head
    const In* q;             // [N, H, D]
    const In *k, *v;         // [N, S, H_kv, D]
    const T* gate;           // [N, H], 0 where inactive; or null, which is 1
    const uint8_t* seen;     // [N, S, H_kv], or null, which is all
    const int64_t* strides;  // of k, v and seen: from sequence to sequence, slot to slot, head to head
    In* o;                   // [N, H, D]

    T gate_of(int64_t query) const { return gate ? gate[query] : T(1); }
};

// What a part of the keys gives every query head: weights 2^(score - top), their sum, and the sum of weighted values.
template <class T>
struct StepParts {
    int64_t count, width;  // per query head; D padded
    Scratch<T> top, sum, values;

    StepParts(int64_t heads, int64_t count, int64_t width)
        : count(count), width(width), top(heads * count), sum(heads * count), values(heads * count * width) {}
};

template <class T, class In>
class AttentionStep {
    static constexpr int L = LANES<T>, KEYS = 64;  // KEYS are loaded together
    const StepArguments<T, In>& a;
    const Layout& x;
    StepParts<T>& parts;
    const int64_t width, vectors;  // D padded to what the parts hold, and to whole vectors
    Arena arena;
    T *q, *rows, *weights;  // [group, width]; [KEYS + 1, width], the last one zeros; [group, KEYS]
    const T* row[KEYS];     // each key, or value, where it lies
    std::vector<int64_t> active;  // query heads of the group, counted over all sequences

    void take() {
        q = arena.take<T>(x.group * width);
        rows = arena.take<T>((KEYS + 1) * width);
        weights = arena.take<T>(x.group * KEYS);
    }

   public:
    static constexpr int64_t PART = 8 * KEYS;  // keys per task

    AttentionStep(const StepArguments<T, In>& a, StepParts<T>& parts)
        : a(a), x(a.call.layout), parts(parts), width(parts.width), vectors((x.K + L - 1) / L * L) {
        take();
        arena.allocate();
        take();
    }

    // Keys [part PART, ..) of sequence n, for the group of a key head.
    void run(int64_t n, int64_t head, int64_t part) {
        active.clear();
        for (int64_t i = 0; i < x.group; i++) {
            int64_t query = (n * x.heads + head) * x.group + i;
            if (a.gate_of(query) == 0) continue;
            load_row<T>(a.q + query * x.K, x.K, T(a.call.scale * 1.4426950408889634), q + active.size() * width, width);
            parts.top.get()[query * parts.count + part] = -INFINITY;
            parts.sum.get()[query * parts.count + part] = 0;
            std::memset(values(query, part), 0, width * sizeof(T));
            active.push_back(query);
        }
        int64_t end = std::min(x.length(n), (part + 1) * PART);
        for (int64_t j = part * PART; j < end && !active.empty(); j += KEYS)
            block(n, head, part, j, int(std::min<int64_t>(KEYS, end - j)));
    }

   private:
    T* values(int64_t query, int64_t part) { return parts.values.get() + (query * parts.count + part) * width; }
    bool sees(int64_t n, int64_t head, int64_t j) const {
        const int64_t* stride = a.strides + 6;
        return !a.seen || a.seen[n * stride[0] + j * stride[1] + head * stride[2]];
    }

    // The keys that are seen, read in place if they are whole vectors; zeros for the others, which may be anything.
    void load(const In* x0, const int64_t* stride, int64_t n, int64_t head, int64_t j, int count) {
        const In* from = x0 + n * stride[0] + j * stride[1] + head * stride[2];
        for (int i = 0; i < KEYS; i++, from += stride[1]) {
            row[i] = rows + KEYS * width;
            if (i >= count || !sees(n, head, j + i)) continue;
            if (j + i + KEYS < x.length(n)) prefetch<false>(from + KEYS * stride[1], x.K);
            if constexpr (std::is_same_v<T, In>)
                if (x.K % L == 0) {
                    row[i] = from;
                    continue;
                }
            load_row<T>(from, x.K, 1, rows + i * width, width);
            row[i] = rows + i * width;
        }
    }

    static Vec<T> unaligned(const T* from) {
        Vec<T> y;
        std::memcpy(&y, from, sizeof(y));
        return y;
    }

    void block(int64_t n, int64_t head, int64_t part, int64_t j, int count) {
        load(a.k, a.strides, n, head, j, count);
        for (size_t i = 0; i < active.size(); i++)
            for (int c = 0; c < KEYS; c += L) {
                Vec<T> scores[L];
#pragma GCC unroll 16
                for (int l = 0; l < L; l++) {
                    scores[l] = unaligned(row[c + l]) * vec(q + i * width);
                    for (int64_t d = L; d < vectors; d += L)
                        scores[l] += unaligned(row[c + l] + d) * vec(q + i * width + d);
                }
                transpose_stage<T, 1>(scores);
#pragma GCC unroll 16
                for (int l = 1; l < L; l++) scores[0] += scores[l];
                vec(weights + i * KEYS + c) = scores[0];
            }
        for (int i = 0; i < KEYS; i++)
            for (size_t m = 0; (i >= count || !sees(n, head, j + i)) && m < active.size(); m++)
                weights[m * KEYS + i] = -INFINITY;
        load(a.v, a.strides + 3, n, head, j, count);
        for (size_t i = 0; i < active.size(); i++) add(active[i], part, weights + i * KEYS, count);
    }

    void add(int64_t query, int64_t part, T* weight, int count) {
        T &top = parts.top.get()[query * parts.count + part], &sum = parts.sum.get()[query * parts.count + part];
        Vec<T> most = Vec<T>{} + top, total = {};
        for (int c = 0; c < KEYS; c += L) most = larger<T>(most, vec(weight + c));
        T now = largest_of<T>(most);
        if (now == -INFINITY) return;  // nothing seen yet
        for (int c = 0; c < KEYS; c += L) total += vec(weight + c) = exp2<T>(vec(weight + c) - now);
        T keep = exp2<T>(Vec<T>{} + (top - now))[0], *to = values(query, part);
        sum = keep * sum + sum_of<T>(total);
        top = now;
        int64_t d = 0;
        for (; d + 4 * L <= vectors; d += 4 * L) weigh<4>(weight, count, keep, d, to);
        for (; d < vectors; d += L) weigh<1>(weight, count, keep, d, to);
    }

    template <int VECTORS>  // at once
    void weigh(const T* weight, int count, T keep, int64_t d, T* to) {
        Vec<T> y[VECTORS];
#pragma GCC unroll 4
        for (int m = 0; m < VECTORS; m++) y[m] = keep * vec(to + d + m * L);
        for (int j = 0; j < count; j++)
#pragma GCC unroll 4
            for (int m = 0; m < VECTORS; m++) y[m] += weight[j] * unaligned(row[j] + d + m * L);
#pragma GCC unroll 4
        for (int m = 0; m < VECTORS; m++) vec(to + d + m * L) = y[m];
    }

   public:
    // o of a query head: its parts added.
    void finish(int64_t query) {
        if (a.gate_of(query) == 0) {
            std::memset(a.o + query * x.K, 0, x.K * sizeof(In));
            return;
        }
        const T *top = parts.top.get() + query * parts.count, *sums = parts.sum.get() + query * parts.count;
        Vec<T> most = Vec<T>{} + T(-INFINITY);
        for (int64_t part = 0; part < parts.count; part++) most = larger<T>(most, Vec<T>{} + top[part]);
        T sum = 0;
        std::memset(rows, 0, width * sizeof(T));
        for (int64_t part = 0; part < parts.count; part++) {
            T keep = exp2<T>(Vec<T>{} + top[part] - most)[0];
            if (top[part] == -INFINITY) continue;
            sum += keep * sums[part];
            for (int64_t d = 0; d < width; d += L) vec(rows + d) += keep * vec(values(query, part) + d);
        }
        store_row<T>(rows, x.K, a.gate_of(query) / sum, a.o + query * x.K);
    }
};

template <class T, class In>
void attention_step(const StepArguments<T, In>& a) {
    using Worker = AttentionStep<T, In>;
    const Layout& x = a.call.layout;
    int64_t heads = x.n_sequences * x.heads, count = (x.length(0) + Worker::PART - 1) / Worker::PART;
    StepParts<T> parts(heads * x.group, count, (x.K + PANEL<T> - 1) / PANEL<T> * PANEL<T>);
    auto worker = [&] { return std::make_unique<Worker>(a, parts); };
    parallel(a.call.threads, heads * count, worker, [&](Worker& worker, int64_t i) {
        worker.run(i / count / x.heads, i / count % x.heads, i % count);
    });
    parallel(1, heads * x.group, worker, [&](Worker& worker, int64_t query) { worker.finish(query); });
}

}  // namespace hybridlm
