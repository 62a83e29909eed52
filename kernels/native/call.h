// The boundary to Python (library.py): one plain struct per kernel, and threads over (sequence, head).
#pragma once

#include <memory>

#include "chunk.h"

namespace hybridlm {

// How every struct of arguments begins. The pointers to tensors follow, by the names and in the order of the operator's
// native.py; null where there is none.
struct Call {
    int64_t dtype;  // of the tensors: 0 float32, 1 float64, 2 bfloat16
    int64_t threads;
    Layout layout;
    double scale;
};

// run(arguments) in the types of its tensors: Arguments<T, In> computes in T and reads In.
template <template <class, class> class Arguments, class Run>
void typed(const Call* call, Run run) {
    if (call->dtype == 0)
        run(*reinterpret_cast<const Arguments<float, float>*>(call));
    else if (call->dtype == 1)
        run(*reinterpret_cast<const Arguments<double, double>*>(call));
    else
        run(*reinterpret_cast<const Arguments<float, BFloat16>*>(call));
}

// work(worker, i) for i in [0, tasks), each thread with a worker of its own. Tasks share no output, so that the result
// does not depend on the number of threads.
template <class Make, class Work>
void parallel(int64_t threads, int64_t tasks, Make make, Work work) {
    int team = int(std::max<int64_t>(1, std::min(threads, tasks)));
#pragma omp parallel num_threads(team)
    {
        FlushDenormals flush;
        auto worker = make();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; i++) work(*worker, i);
    }
}

// Worker<T, In>(x).run(sequence, head) for every value head of x.problem, each thread with a worker of its own.
template <template <class, class> class Worker, template <class, class> class Arguments, class T, class In>
void for_each_head(const Arguments<T, In>& x) {
    const Layout& layout = x.problem.layout();
    int64_t heads = layout.value_heads();
    parallel(
        x.problem.call.threads, layout.n_sequences * heads, [&] { return std::make_unique<Worker<T, In>>(x); },
        [&](Worker<T, In>& worker, int64_t i) { worker.run(i / heads, i % heads); });
}

}  // namespace hybridlm
