// The gated scan, h_t = a_t h_{t-1} + x_t with a_t = exp(g_t), for one (sequence, block of channels) per task. It is
// bound by memory: the state of a block stays in L1, and the backward pass rebuilds h from a state per segment.

#include <memory>

#include "call.h"

namespace hybridlm {
namespace {

constexpr int64_t BLOCK = 256;  // channels per task

template <class T, class In>
struct Problem {
    Layout layout;           // layout.K channels, one head
    const In* x;             // [tokens, channels]
    const T* decay;          // [tokens, channels]
    const T* initial_state;  // [N, channels] or null
    T* states;               // [segments, channels] at each segment's start, or null

    int64_t blocks() const { return (layout.K + BLOCK - 1) / BLOCK; }
};

template <class T>
struct Grads {
    const T* final_state;  // [N, channels]
    T *g, *initial_state;
};

template <class T, class In>
void advance(const In* __restrict x, const T* __restrict decay, T* __restrict state, int64_t width) {
    for (int64_t d = 0; d < width; d++) state[d] = decay[d] * state[d] + widen(x[d]);
}

template <class T, class In>
void forward_block(const Problem<T, In>& p, int64_t n, int64_t first, In* h, T* final_state) {
    const Layout& x = p.layout;
    int64_t width = std::min(BLOCK, x.K - first), segment = x.first_segment(n);
    alignas(64) T state[BLOCK] = {};
    if (p.initial_state) std::copy_n(p.initial_state + n * x.K + first, width, state);
    for (int64_t t = 0; t < x.length(n); t++) {
        int64_t at = (x.begin[n] + t) * x.K + first;
        if (p.states && t % SEGMENT == 0) std::copy_n(state, width, p.states + segment++ * x.K + first);
        advance(p.x + at, p.decay + at, state, width);
        In* __restrict out = h + at;
        for (int64_t d = 0; d < width; d++) narrow(state[d], out[d]);
    }
    std::copy_n(state, width, final_state + n * x.K + first);
}

// `carry` is the gradient of h_t: what comes from dh_t, and a_{t+1} times that of h_{t+1}.
template <class T, class In>
void backward_block(const Problem<T, In>& p, const Grads<T>& grads, int64_t n, int64_t first, const In* dh, In* dx) {
    const Layout& x = p.layout;
    int64_t width = std::min(BLOCK, x.K - first), length = x.length(n), segments = (length + SEGMENT - 1) / SEGMENT;
    alignas(64) T before[SEGMENT + 1][BLOCK];  // before[t]: the state that token t of the segment finds
    alignas(64) T carry[BLOCK];
    std::copy_n(grads.final_state + n * x.K + first, width, carry);
    for (int64_t s = segments - 1; s >= 0; s--) {
        int64_t start = x.begin[n] + s * SEGMENT, count = std::min<int64_t>(SEGMENT, length - s * SEGMENT);
        std::copy_n(p.states + (x.first_segment(n) + s) * x.K + first, width, before[0]);
        for (int64_t t = 0; t < count; t++) {
            int64_t at = (start + t) * x.K + first;
            std::copy_n(before[t], width, before[t + 1]);
            advance(p.x + at, p.decay + at, before[t + 1], width);
        }
        for (int64_t t = count - 1; t >= 0; t--) {
            int64_t at = (start + t) * x.K + first;
            const In* __restrict dh_t = dh + at;
            const T *__restrict decay = p.decay + at, *__restrict state = before[t];
            In* __restrict dx_t = dx + at;
            T* __restrict dg = grads.g + at;
            for (int64_t d = 0; d < width; d++) {
                T dstate = carry[d] + widen(dh_t[d]);
                narrow(dstate, dx_t[d]);
                carry[d] = decay[d] * dstate;
                dg[d] = state[d] * carry[d];
            }
        }
    }
    std::copy_n(carry, width, grads.initial_state + n * x.K + first);
}

struct NoWorker {};

template <class Work>
void for_each_block(const Call& call, int64_t blocks, Work work) {
    parallel(
        call.threads, call.layout.n_sequences * blocks, [] { return std::make_unique<NoWorker>(); },
        [&](NoWorker&, int64_t i) { work(i / blocks, i % blocks * BLOCK); });
}

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_gated_scan_forward(const Call* call) {
    by_dtype(call->dtype, [&](auto t, auto in) {
        using T = decltype(t);
        using In = decltype(in);
        Pointers x(*call);
        Problem<T, In> p{call->layout, x, x, x, x};
        In* h = x;
        T* final_state = x;
        for_each_block(*call, p.blocks(),
                       [&](int64_t n, int64_t first) { forward_block(p, n, first, h, final_state); });
    });
}

extern "C" void hybridlm_gated_scan_backward(const Call* call) {
    by_dtype(call->dtype, [&](auto t, auto in) {
        using T = decltype(t);
        using In = decltype(in);
        Pointers x(*call);
        Problem<T, In> p{call->layout, x, x, nullptr, x};
        const In* dh = x;
        Grads<T> grads{x, nullptr, nullptr};
        In* dx = x;
        grads.g = x;
        grads.initial_state = x;
        for_each_block(*call, p.blocks(), [&](int64_t n, int64_t first) { backward_block(p, grads, n, first, dh, dx); });
    });
}
