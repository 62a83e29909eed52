// One token for each of N sequences, for decoding: the recurrences themselves, on the caller's state. They are bound by
// the memory of the state, which the gated delta rule passes over twice and gated linear attention once.

#pragma once

#include <vector>

#include "call.h"

namespace hybridlm {

// The vectors of one (sequence, value head), widened.
template <class T>
struct Token {
    std::vector<T> q, k, v, o;

    explicit Token(const Layout& x) : q(x.K), k(x.K), v(x.V), o(x.V) {}

    template <class In>
    void load(const Layout& x, int64_t n, int64_t head, T scale, const In* all_q, const In* all_k, const In* all_v) {
        int64_t key = (n * x.heads + head / x.group) * x.K, value = (n * x.value_heads() + head) * x.V;
        for (int64_t m = 0; m < x.K; m++) q[m] = scale * widen(all_q[key + m]), k[m] = widen(all_k[key + m]);
        for (int64_t m = 0; m < x.V; m++) v[m] = widen(all_v[value + m]), o[m] = 0;
    }
};

template <class T>
void add_row(T factor, const T* __restrict row, T* __restrict sum, int64_t size) {
    for (int64_t m = 0; m < size; m++) sum[m] += factor * row[m];
}

// row = decay row + k v, and o += q row
template <class T>
void update_row(T decay, T k, T q, const T* __restrict v, T* __restrict row, T* __restrict o, int64_t size) {
    for (int64_t m = 0; m < size; m++) {
        row[m] = decay * row[m] + k * v[m];
        o[m] += q * row[m];
    }
}

// run(token, sequence, head) for every value head; each thread has its token.
template <class T, class Run>
void for_each_token(const Call& call, Run run) {
    int64_t heads = call.layout.value_heads();
    parallel(
        call.threads, call.layout.n_sequences * heads, [&] { return std::make_unique<Token<T>>(call.layout); },
        [&](Token<T>& token, int64_t i) { run(token, i / heads, i % heads); });
}

}  // namespace hybridlm
