// Head-routed attention, forward and backward: the rows of a unit are the active queries of the group, by token.

#include "../native/band.h"

namespace hybridlm {
namespace {

template <class T, class In>
struct ForwardArguments {
    BandProblem<T, In> problem;
    const T* gate;   // [tokens, H], 0 where inactive
    int64_t* pairs;  // where the number of computed scores is added, or null
};

template <class T, class In>
struct BackwardArguments {
    BandProblem<T, In> problem;
    BandGradients<T, In> gradients;
    const T* gate;
    T* dgate;  // [tokens, H]
};

// The active rows of every unit; `inactive` is called for the others.
class ActiveRows : public Band {
    std::vector<std::vector<Row>> active;

   public:
    template <class T, class In, class Inactive>
    ActiveRows(const BandProblem<T, In>& x, const T* gate, Inactive inactive) : Band(x), active(units()) {
        int64_t heads = x.call.layout.value_heads();
        parallel(x.call.threads, units(), no_worker, [&](NoWorker&, int64_t u) {
            for (int64_t t = first_token(u); t < first_token(u) + keys(u); t++)
                for (int64_t head = first_head(u); head < first_head(u) + group(); head++) {
                    Row row{int32_t(t), int32_t(head)};
                    if (gate[t * heads + head] != 0)
                        active[u].push_back(row);
                    else
                        inactive(row);
                }
        });
    }
    int64_t rows(int64_t u) const { return int64_t(active[u].size()); }
    Row row(int64_t u, int64_t i) const { return active[u][i]; }
    Seen seen(int64_t u, int64_t i) const { return seen_from(u, active[u][i].token); }
};

template <class T, class In>
void forward(const ForwardArguments<T, In>& a) {
    RowProblem<T, In> x = a.problem.rows();
    x.gate = a.gate, x.pairs = a.pairs;
    ActiveRows rows(a.problem, a.gate, [&](Row row) { std::memset(x.o.at(row), 0, x.D * sizeof(In)); });
    row_attention_forward(x, rows);
}

template <class T, class In>
void backward(const BackwardArguments<T, In>& a) {
    RowProblem<T, In> x = a.problem.rows();
    a.gradients.add_to(x, a.problem.call.layout.heads);
    x.gate = a.gate, x.dgate = a.dgate;
    ActiveRows rows(a.problem, a.gate, [&](Row row) {
        std::memset(x.dq.at(row), 0, x.D * sizeof(In));
        x.dgate[x.number(row)] = 0;
    });
    row_attention_backward(x, rows);
}

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_head_routed_attention_forward(const Call* call) {
    typed<ForwardArguments>(call, [](const auto& x) { forward(x); });
}

extern "C" void hybridlm_head_routed_attention_backward(const Call* call) {
    typed<BackwardArguments>(call, [](const auto& x) { backward(x); });
}
