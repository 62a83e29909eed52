// The gated scan, h_t = a_t h_{t-1} + x_t with a_t = exp(g_t), for one (sequence, block of channels) per task. It is
// bound by memory: the state of a block stays in L1, and the backward pass rebuilds h from a state per segment.

#include "../native/call.h"

namespace hybridlm {
namespace {

constexpr int64_t BLOCK = 256;  // channels per task

template <class T, class In>
struct Problem {
    Call call;               // K channels, one head
    const In* x;             // [tokens, channels]
    const T* decay;          // [tokens, channels]
    const T* initial_state;  // [N, channels] or null
    T* states;               // [segments, channels] at each segment's start, or null
};

template <class T, class In>
struct ForwardArguments {
    Problem<T, In> problem;
    In* h;           // [tokens, channels]
    T* final_state;  // [N, channels]
};

template <class T, class In>
struct BackwardArguments {
    Problem<T, In> problem;
    const In* dh;
    const T* dfinal_state;
    In* dx;
    T *dg, *dinitial_state;
};

template <class T, class In>
void advance(const In* __restrict x, const T* __restrict decay, T* __restrict state, int64_t width) {
    for (int64_t d = 0; d < width; d++) state[d] = decay[d] * state[d] + widen(x[d]);
}

template <class T, class In>
void forward_block(const ForwardArguments<T, In>& outputs, int64_t n, int64_t first) {
    const Problem<T, In>& p = outputs.problem;
    const Layout& x = p.call.layout;
    int64_t width = std::min(BLOCK, x.K - first), segment = x.first_segment(n);
    alignas(64) T state[BLOCK] = {};
    if (p.initial_state) std::copy_n(p.initial_state + n * x.K + first, width, state);
    for (int64_t t = 0; t < x.length(n); t++) {
        int64_t at = (x.begin[n] + t) * x.K + first;
        if (p.states && t % SEGMENT == 0) std::copy_n(state, width, p.states + segment++ * x.K + first);
        advance(p.x + at, p.decay + at, state, width);
        In* __restrict out = outputs.h + at;
        for (int64_t d = 0; d < width; d++) narrow(state[d], out[d]);
    }
    std::copy_n(state, width, outputs.final_state + n * x.K + first);
}

// `carry` is the gradient of h_t: what comes from dh_t, and a_{t+1} times that of h_{t+1}.
template <class T, class In>
void backward_block(const BackwardArguments<T, In>& grads, int64_t n, int64_t first) {
    const Problem<T, In>& p = grads.problem;
    const Layout& x = p.call.layout;
    int64_t width = std::min(BLOCK, x.K - first), length = x.length(n), segments = (length + SEGMENT - 1) / SEGMENT;
    alignas(64) T before[SEGMENT + 1][BLOCK];  // before[t]: the state that token t of the segment finds
    alignas(64) T carry[BLOCK];
    std::copy_n(grads.dfinal_state + n * x.K + first, width, carry);
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
            const In* __restrict dh_t = grads.dh + at;
            const T *__restrict decay = p.decay + at, *__restrict state = before[t];
            In* __restrict dx_t = grads.dx + at;
            T* __restrict dg = grads.dg + at;
            for (int64_t d = 0; d < width; d++) {
                T dstate = carry[d] + widen(dh_t[d]);
                narrow(dstate, dx_t[d]);
                carry[d] = decay[d] * dstate;
                dg[d] = state[d] * carry[d];
            }
        }
    }
    std::copy_n(carry, width, grads.dinitial_state + n * x.K + first);
}

struct NoWorker {};

template <class T, class In, class Work>
void for_each_block(const Problem<T, In>& p, Work work) {
    const Layout& x = p.call.layout;
    int64_t blocks = (x.K + BLOCK - 1) / BLOCK;
    parallel(
        p.call.threads, x.n_sequences * blocks, [] { return std::make_unique<NoWorker>(); },
        [&](NoWorker&, int64_t i) { work(i / blocks, i % blocks * BLOCK); });
}

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_gated_scan_forward(const Call* call) {
    typed<ForwardArguments>(call, [](const auto& x) {
        for_each_block(x.problem, [&](int64_t n, int64_t first) { forward_block(x, n, first); });
    });
}

extern "C" void hybridlm_gated_scan_backward(const Call* call) {
    typed<BackwardArguments>(call, [](const auto& x) {
        for_each_block(x.problem, [&](int64_t n, int64_t first) { backward_block(x, n, first); });
    });
}
