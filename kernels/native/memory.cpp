// Huge pages for large results: faulting them in by 4 KiB costs as much as a third of computing them.

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

extern "C" void hybridlm_huge_pages(char* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 1 << 21;
    uintptr_t first = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / PAGE * PAGE;
    // advice: whether the system takes it changes nothing but time
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}
