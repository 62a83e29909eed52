// One token of gated linear attention for each of N sequences.

#include "../native/step.h"

namespace hybridlm {
namespace {

template <class T, class In>
struct StepArguments {
    Call call;
    const In *q, *k, *v;  // [N, H, K], [N, H, K], [N, H, V]
    const T* decay;       // [N, H, K]
    T* state;             // [N, H, K, V]
    In* o;                // [N, H, V]
};

template <class T, class In>
void step(const StepArguments<T, In>& a) {
    const Layout& x = a.call.layout;
    for_each_token<T>(a.call, [&](Token<T>& token, int64_t n, int64_t head) {
        int64_t at = n * x.heads + head;
        token.load(x, n, head, T(a.call.scale), a.q, a.k, a.v);
        for (int64_t m = 0; m < x.K; m++) {
            T* row = a.state + (at * x.K + m) * x.V;
            update_row(a.decay[at * x.K + m], token.k[m], token.q[m], token.v.data(), row, token.o.data(), x.V);
        }
        for (int64_t m = 0; m < x.V; m++) narrow(token.o[m], a.o[at * x.V + m]);
    });
}

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_gla_step(const Call* call) {
    typed<StepArguments>(call, [](const auto& a) { step(a); });
}
