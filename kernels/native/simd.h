// Vectors, scratch memory and the one matrix product that every operator is built from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hybridlm {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
constexpr int TILE_ROWS = 8;  // TILE_ROWS x 2 accumulators fill half of the registers
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
constexpr int TILE_ROWS = 4;
#else
constexpr int VECTOR_BYTES = 16;
constexpr int TILE_ROWS = 4;
#endif

template <class T>
struct VecOf {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), may_alias));
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> mask __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);

// Every dimension of a scratch matrix is a multiple of this, the padding zero: no loop has a tail.
template <class T>
constexpr int PAD = std::max(LANES<T>, 8);

template <class T>
int64_t padded(int64_t n) {
    return (n + PAD<T> - 1) / PAD<T> * PAD<T>;
}

template <class T>
Vec<T>& vec(T* p) {  // p is aligned to VECTOR_BYTES
    return *reinterpret_cast<Vec<T>*>(p);
}
template <class T>
const Vec<T>& vec(const T* p) {
    return *reinterpret_cast<const Vec<T>*>(p);
}

// bfloat16 is the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
};
inline float widen(BFloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

inline void narrow(float x, BFloat16& y) {  // to nearest, ties to even; a NaN stays a NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    y.bits = uint16_t(x == x ? rounded : 0x7fc0);
}
inline void narrow(float x, float& y) { y = x; }
inline void narrow(double x, double& y) { y = x; }

// Denormals cost a hundred cycles each and are nothing beside a decaying state: zero while this object lives.
class FlushDenormals {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();

   public:
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;

   public:
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" : : "r"(before | (uint64_t(1) << 24)));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#else
   public:
    FlushDenormals() {}  // NOLINT: a constructor keeps the variable from being called unused
#endif
};

// One thread's scratch memory, zeroed, handed out in aligned pieces. A first pass over a null arena adds up the sizes.
class Arena {
    char* base = nullptr;
    size_t used = 0;

   public:
    template <class T>
    T* take(int64_t count) {
        T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
        // one more line than asked for: pieces of 2^n bytes would all start in the same cache set
        used += (count * sizeof(T) + 63) / 64 * 64 + 64;
        return piece;
    }
    void allocate() {
        base = static_cast<char*>(std::aligned_alloc(64, used));
        if (!base) std::abort();
        std::memset(base, 0, used);
        used = 0;
    }
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { std::free(base); }
};

template <class T, size_t... I>
inline typename VecOf<T>::mask lane_numbers(std::index_sequence<I...>) {
    return typename VecOf<T>::mask{I...};
}

// x in the lanes whose number, counted from `first`, is at most `last`; 0 in the others.
template <class T>
Vec<T> up_to(int last, int first, Vec<T> x) {
    typename VecOf<T>::mask lane = lane_numbers<T>(std::make_index_sequence<LANES<T>>());
    return lane <= last - first ? x : Vec<T>{};
}

template <class T, int S, bool HIGH, size_t... I>
inline Vec<T> exchange(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
    constexpr int L = LANES<T>;
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (HIGH ? (I & S ? L + I : I + S) : (I & S ? L + I - S : I))...);
#else
    typename VecOf<T>::mask pick = {(HIGH ? (I & S ? L + I : I + S) : (I & S ? L + I - S : I))...};
    return __builtin_shuffle(a, b, pick);
#endif
}

template <class T, int S>
inline void transpose_stage(Vec<T>* x) {
    if constexpr (S < LANES<T>) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES<T>; i++)
            if (!(i & S)) {
                Vec<T> a = x[i], b = x[i + S];
                x[i] = exchange<T, S, false>(a, b, std::make_index_sequence<LANES<T>>());
                x[i + S] = exchange<T, S, true>(a, b, std::make_index_sequence<LANES<T>>());
            }
        transpose_stage<T, 2 * S>(x);
    }
}

// y [cols, ldy] = transpose of x [rows, ldx]; rows and cols are multiples of LANES.
template <class T>
void transpose(int64_t rows, int64_t cols, const T* x, int64_t ldx, T* y, int64_t ldy) {
    constexpr int L = LANES<T>;
    for (int64_t r = 0; r < rows; r += L)
        for (int64_t c = 0; c < cols; c += L) {
            Vec<T> block[L];
#pragma GCC unroll 16
            for (int i = 0; i < L; i++) block[i] = vec(x + (r + i) * ldx + c);
            transpose_stage<T, 1>(block);
#pragma GCC unroll 16
            for (int i = 0; i < L; i++) vec(y + (c + i) * ldy + r) = block[i];
        }
}

// The operand that is read one number at a time: element (m, k) is at data[m * row + k * col].
template <class T>
struct Left {
    const T* data;
    int64_t row, col;
};

template <class T, int ROWS, int VECS, bool UNIT>
inline void multiply_tile(int64_t depth, Left<T> a, const T* b, int64_t ldb, T* c, const T* from, int64_t ldc, T keep) {
    constexpr int L = LANES<T>;
    Vec<T> sum[ROWS][VECS];
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < VECS; n++) sum[m][n] = keep == 0 ? Vec<T>{} : keep * vec(from + m * ldc + n * L);
    const T* left = a.data;
    for (int64_t k = 0; k < depth; k++) {
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
            for (int n = 0; n < VECS; n++) sum[m][n] += left[UNIT ? m : m * a.row] * vec(b + n * L);
        left += a.col;
        b += ldb;
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < VECS; n++) vec(c + m * ldc + n * L) = sum[m][n];
}

template <class T, int ROWS, int VECS, bool UNIT>
inline void multiply_panel(int64_t rows, int64_t n, int64_t depth, Left<T> a, const T* b, int64_t ldb, T* c,
                           const T* from, int64_t ldc, T keep) {
    for (int64_t m = 0; m < rows; m += ROWS)
        multiply_tile<T, ROWS, VECS, UNIT>(depth, {a.data + m * a.row, a.row, a.col}, b + n, ldb, c + m * ldc + n,
                                           from + m * ldc + n, ldc, keep);
}

// c [rows, cols] = keep * from + a [rows, depth] b [depth, cols]; from is c unless given, and is not read for keep = 0.
template <class T>
void multiply(int64_t rows, int64_t cols, int64_t depth, Left<T> a, const T* b, int64_t ldb, T* c, int64_t ldc,
              T keep = 0, const T* from = nullptr) {
    constexpr int L = LANES<T>;
    from = from ? from : c;
    for (int64_t n = 0; n < cols;) {
        bool wide = n + 2 * L <= cols;
        if (wide && a.row == 1)
            multiply_panel<T, TILE_ROWS, 2, true>(rows, n, depth, a, b, ldb, c, from, ldc, keep);
        else if (wide)
            multiply_panel<T, TILE_ROWS, 2, false>(rows, n, depth, a, b, ldb, c, from, ldc, keep);
        else
            multiply_panel<T, 8, 1, false>(rows, n, depth, a, b, ldb, c, from, ldc, keep);
        n += wide ? 2 * L : L;
    }
}

// multiply() whose sums over depth are sums of short sums: the rounding error of a long one is several times larger.
// c and the buffer of its size are dense.
template <class T>
void multiply_in_parts(int64_t rows, int64_t cols, int64_t depth, Left<T> a, const T* b, int64_t ldb, T* c, T* buffer) {
    constexpr int64_t PART = 8;
    for (int64_t k = 0; k < depth; k += PART) {
        int64_t part = std::min(PART, depth - k);
        multiply<T>(rows, cols, part, {a.data + k * a.col, a.row, a.col}, b + k * ldb, ldb, k ? buffer : c, cols);
        for (int64_t i = 0; k && i < rows * cols; i += LANES<T>) vec(c + i) += vec(buffer + i);
    }
}

}  // namespace hybridlm
