// The boundary to Python (library.py): one plain struct per call, and threads over (sequence, head).
#pragma once

#include "chunk.h"

namespace hybridlm {

struct Call {
    int64_t dtype;  // of the tensors: 0 float32, 1 float64, 2 bfloat16
    int64_t threads;
    Layout layout;
    double scale;
    void* const* tensors;  // in the order that each function documents by reading them; null where there is none
};

// Hands out the tensors of a call one after the other, as pointers of the type asked for.
class Pointers {
    void* const* next;

   public:
    explicit Pointers(const Call& call) : next(call.tensors) {}
    template <class P>
    operator P*() {
        return static_cast<P*>(*next++);
    }
};

// run(T, In): the type computed in and the type of the tensors.
template <class Run>
void by_dtype(int64_t dtype, Run run) {
    if (dtype == 0)
        run(float(), float());
    else if (dtype == 1)
        run(double(), double());
    else
        run(float(), BFloat16());
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

}  // namespace hybridlm
