// Banded attention, forward and backward: the rows of a unit are all query heads of the group, token by token.

#include "../native/band.h"

namespace hybridlm {
namespace {

template <class T, class In>
struct ForwardArguments {
    BandProblem<T, In> problem;
    int64_t* pairs;  // where the number of computed scores is added, or null
};

template <class T, class In>
struct BackwardArguments {
    BandProblem<T, In> problem;
    BandGradients<T, In> gradients;
};

class AllRows : public Band {
   public:
    using Band::Band;
    int64_t rows(int64_t u) const { return keys(u) * group(); }
    Row row(int64_t u, int64_t i) const {
        return {int32_t(first_token(u) + i / group()), int32_t(first_head(u) + i % group())};
    }
    Seen seen(int64_t u, int64_t i) const { return seen_from(u, first_token(u) + i / group()); }
};

template <class T, class In>
void forward(const ForwardArguments<T, In>& a) {
    RowProblem<T, In> x = a.problem.rows();
    x.pairs = a.pairs;
    row_attention_forward(x, AllRows(a.problem));
}

template <class T, class In>
void backward(const BackwardArguments<T, In>& a) {
    RowProblem<T, In> x = a.problem.rows();
    a.gradients.add_to(x, a.problem.call.layout.heads);
    row_attention_backward(x, AllRows(a.problem));
}

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_banded_attention_forward(const Call* call) {
    typed<ForwardArguments>(call, [](const auto& x) { forward(x); });
}

extern "C" void hybridlm_banded_attention_backward(const Call* call) {
    typed<BackwardArguments>(call, [](const auto& x) { backward(x); });
}
