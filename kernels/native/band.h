// Attention of the query heads of each token over the keys of its sequence: what the operators that are made of
// row_attention.h have in common. A unit is one key head of one sequence; a row sees the last `window` keys up to its
// own token's and the first `sink` ones. Which rows a unit has is the operator's.

#pragma once

#include "row_attention_backward.h"

namespace hybridlm {

template <class T, class In>
struct BandProblem {
    Call call;  // a head is a key head, `group` query heads of D = K numbers read it
    const In *q, *k, *v;
    const int64_t* strides;  // of q, k, v: from token to token and from head to head
    const int64_t* windows;  // [H_kv], the last tokens that are seen; null is all
    const int64_t* sinks;    // [H_kv], the first ones that are seen besides
    T* lse;                  // [tokens, H]
    In* o;                   // [tokens, H, D]

    RowProblem<T, In> rows() const {
        const Layout& layout = call.layout;
        RowProblem<T, In> y = {};
        y.threads = call.threads, y.D = layout.K, y.heads = layout.value_heads(), y.scale = T(call.scale);
        y.q = {q, strides[0], strides[1]};
        y.k = {k, strides[2], strides[3]};
        y.v = {v, strides[4], strides[5]};
        y.o = {o, y.heads * y.D, y.D};
        y.lse = lse;
        return y;
    }
};

template <class T, class In>
struct BandGradients {
    const In* dout;  // [tokens, H, D], as is dq
    In *dq, *dk, *dv;

    void add_to(RowProblem<T, In>& y, int64_t kv_heads) const {
        y.dout = {dout, y.heads * y.D, y.D};
        y.dq = {dq, y.heads * y.D, y.D};
        y.dk = {dk, kv_heads * y.D, y.D};
        y.dv = {dv, kv_heads * y.D, y.D};
    }
};

// A Plan of row_attention.h but for its rows.
class Band {
    const Layout& layout;
    const int64_t *windows, *sinks;

   public:
    template <class T, class In>
    explicit Band(const BandProblem<T, In>& x) : layout(x.call.layout), windows(x.windows), sinks(x.sinks) {}

    int64_t units() const { return layout.n_sequences * layout.heads; }
    int64_t keys(int64_t u) const { return layout.length(u / layout.heads); }
    Row key(int64_t u, int64_t j) const { return {int32_t(first_token(u) + j), int32_t(u % layout.heads)}; }

   protected:
    int64_t group() const { return layout.group; }
    int64_t first_token(int64_t u) const { return layout.begin[u / layout.heads]; }
    int64_t first_head(int64_t u) const { return u % layout.heads * layout.group; }

    Seen seen_from(int64_t u, int64_t token) const {
        int64_t head = u % layout.heads, end = token - first_token(u) + 1;
        int64_t begin = windows ? end - windows[head] : 0, sink = windows ? sinks[head] : 0;
        if (begin <= sink) return {{0, 0}, {0, int32_t(end)}};
        return {{0, int32_t(begin)}, {int32_t(sink), int32_t(end)}};
    }
};

}  // namespace hybridlm
