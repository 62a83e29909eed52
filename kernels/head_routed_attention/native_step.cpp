// One token of head-routed attention: a query may be inactive.

#include "../native/attention_step.h"

using namespace hybridlm;

extern "C" void hybridlm_head_routed_attention_step(const Call* call) {
    typed<StepArguments>(call, [](const auto& x) { attention_step(x); });
}
