// One token of banded attention: every query is active.

#include "../native/attention_step.h"

using namespace hybridlm;

extern "C" void hybridlm_banded_attention_step(const Call* call) {
    typed<StepArguments>(call, [](const auto& x) { attention_step(x); });
}
