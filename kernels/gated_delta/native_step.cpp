// One token of the gated delta rule for each of N sequences.

#include "../native/step.h"

namespace hybridlm {
namespace {

template <class T, class In>
struct StepArguments {
    Call call;
    const In *q, *k, *v;    // [N, H, K], [N, H, K], [N, HV, V]
    const T *decay, *beta;  // [N, HV]
    T* state;               // [N, HV, K, V]
    In* o;                  // [N, HV, V]
};

template <class T, class In>
void step(const StepArguments<T, In>& a) {
    const Layout& x = a.call.layout;
    for_each_token<T>(a.call, [&](Token<T>& token, int64_t n, int64_t head) {
        int64_t at = n * x.value_heads() + head;
        T decay = a.decay[at], beta = a.beta[at], *state = a.state + at * x.K * x.V;
        token.load(x, n, head, T(a.call.scale), a.q, a.k, a.v);
        for (int64_t m = 0; m < x.K; m++) add_row(-decay * token.k[m], state + m * x.V, token.v.data(), x.V);
        for (T& error : token.v) error *= beta;
        for (int64_t m = 0; m < x.K; m++)
            update_row(decay, token.k[m], token.q[m], token.v.data(), state + m * x.V, token.o.data(), x.V);
        for (int64_t m = 0; m < x.V; m++) narrow(token.o[m], a.o[at * x.V + m]);
    });
}

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_gated_delta_step(const Call* call) {
    typed<StepArguments>(call, [](const auto& a) { step(a); });
}
