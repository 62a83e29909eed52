// Head-routed attention, forward and backward: a unit of row_attention.h is one key head of one sequence, its rows are
// the active queries of the head's group by token.

#include "../native/row_attention_backward.h"

namespace hybridlm {
namespace {

template <class T, class In>
struct Problem {
    Call call;  // a head is a key head, `group` query heads of D = K numbers read it
    const In *q, *k, *v;
    const T* gate;           // [tokens, H], 0 where inactive; or null, which is 1
    const int64_t* strides;  // of q, k, v: from token to token and from head to head
    const int64_t* windows;  // [H_kv], the last tokens that are seen; null is all
    const int64_t* sinks;    // [H_kv], the first ones that are seen besides
    T* lse;                  // [tokens, H]
    In* o;                   // [tokens, H, D]
};

template <class T, class In>
struct ForwardArguments {
    Problem<T, In> problem;
    int64_t* pairs;  // where the number of computed scores is added, or null
};

template <class T, class In>
struct BackwardArguments {
    Problem<T, In> problem;
    const In* dout;  // [tokens, H, D], as are the gradients
    In *dq, *dk, *dv;
    T* dgate;  // [tokens, H], or null
};

// The active rows of every unit; `inactive` is called for the others.
template <class T, class In>
class Routed {
    const Problem<T, In>& x;
    const Layout& layout;
    std::vector<std::vector<Row>> active;

   public:
    template <class Inactive>
    Routed(const Problem<T, In>& x, Inactive inactive) : x(x), layout(x.call.layout), active(units()) {
        parallel(x.call.threads, units(), no_worker, [&](NoWorker&, int64_t u) {
            int64_t n = u / layout.heads, H = layout.value_heads(), first = u % layout.heads * layout.group;
            active[u].reserve(x.gate ? 0 : layout.length(n) * layout.group);
            for (int64_t t = layout.begin[n]; t < layout.begin[n + 1]; t++)
                for (int64_t head = first; head < first + layout.group; head++) {
                    Row row{int32_t(t), int32_t(head)};
                    if (!x.gate || x.gate[t * H + head] != 0)
                        active[u].push_back(row);
                    else
                        inactive(row);
                }
        });
    }
    int64_t units() const { return layout.n_sequences * layout.heads; }
    int64_t rows(int64_t u) const { return int64_t(active[u].size()); }
    int64_t keys(int64_t u) const { return layout.length(u / layout.heads); }
    Row row(int64_t u, int64_t i) const { return active[u][i]; }
    Row key(int64_t u, int64_t j) const {
        return {int32_t(layout.begin[u / layout.heads] + j), int32_t(u % layout.heads)};
    }
    Seen seen(int64_t u, int64_t i) const {
        int64_t head = u % layout.heads, end = active[u][i].token - layout.begin[u / layout.heads] + 1;
        int64_t begin = x.windows ? end - x.windows[head] : 0, sink = x.windows ? x.sinks[head] : 0;
        if (begin <= sink) return {{0, 0}, {0, int32_t(end)}};
        return {{0, int32_t(begin)}, {int32_t(sink), int32_t(end)}};
    }
};

template <class T, class In>
RowProblem<T, In> row_problem(const Problem<T, In>& x) {
    const Layout& layout = x.call.layout;
    RowProblem<T, In> y = {};
    y.threads = x.call.threads, y.D = layout.K, y.heads = layout.value_heads(), y.scale = T(x.call.scale);
    y.q = {x.q, x.strides[0], x.strides[1]};
    y.k = {x.k, x.strides[2], x.strides[3]};
    y.v = {x.v, x.strides[4], x.strides[5]};
    y.o = {x.o, y.heads * y.D, y.D};
    y.gate = x.gate, y.lse = x.lse;
    return y;
}

template <class T, class In>
void forward(const ForwardArguments<T, In>& a) {
    RowProblem<T, In> x = row_problem(a.problem);
    x.pairs = a.pairs;
    Routed<T, In> rows(a.problem, [&](Row row) { std::memset(x.o.at(row), 0, x.D * sizeof(In)); });
    row_attention_forward(x, rows);
}

template <class T, class In>
void backward(const BackwardArguments<T, In>& a) {
    RowProblem<T, In> x = row_problem(a.problem);
    int64_t keys = a.problem.call.layout.heads;
    x.dout = {a.dout, x.heads * x.D, x.D};
    x.dq = {a.dq, x.heads * x.D, x.D};
    x.dk = {a.dk, keys * x.D, x.D};
    x.dv = {a.dv, keys * x.D, x.D};
    x.dgate = a.dgate;
    Routed<T, In> rows(a.problem, [&](Row row) {
        std::memset(x.dq.at(row), 0, x.D * sizeof(In));
        if (x.dgate) x.dgate[x.number(row)] = 0;
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
