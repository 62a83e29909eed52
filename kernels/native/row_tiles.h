// What softmax attention of listed rows (row_attention.h) is built from: the exponential, one register tile for all
// products, where rows lie in memory, and which keys a tile's rows see.

#pragma once

#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <vector>

#include "call.h"

extern "C" void hybridlm_huge_pages(char* data, int64_t bytes);

namespace hybridlm {

constexpr int GROUP = TILE_ROWS;  // a register tile is GROUP x PANEL
template <class T>
constexpr int PANEL = 2 * LANES<T>;
constexpr int TILE = 64;  // query rows that are worked on together

// Memory with nothing in it yet, on huge pages if it is large.
template <class T>
class Scratch {
    struct Free {
        void operator()(T* x) const { std::free(x); }
    };
    std::unique_ptr<T, Free> data;

   public:
    explicit Scratch(int64_t count) {
        size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        data.reset(bytes ? static_cast<T*>(std::aligned_alloc(64, bytes)) : nullptr);
        if (bytes && !data) std::abort();
        hybridlm_huge_pages(reinterpret_cast<char*>(data.get()), int64_t(bytes));
    }
    T* get() const { return data.get(); }
};

// Vectors

template <class T>
Vec<T> larger(Vec<T> a, Vec<T> b) {  // b where one is a NaN
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
    if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
#endif
    return a > b ? a : b;
}

template <class T, int S, size_t... I>
inline Vec<T> swap_lanes(Vec<T> x, std::index_sequence<I...>) {  // lane i gets lane i ^ S
#if defined(__clang__)
    return __builtin_shufflevector(x, x, (I ^ S)...);
#else
    typename VecOf<T>::mask pick = {(I ^ S)...};
    return __builtin_shuffle(x, pick);
#endif
}

// f over all lanes of x, in every lane.
template <class T, int S = LANES<T> / 2, class F>
inline Vec<T> fold(Vec<T> x, F f) {
    if constexpr (S > 0)
        return fold<T, S / 2>(f(x, swap_lanes<T, S>(x, std::make_index_sequence<LANES<T>>())), f);
    else
        return x;
}
template <class T>
T sum_of(Vec<T> x) {
    return fold<T>(x, [](Vec<T> a, Vec<T> b) { return a + b; })[0];
}
template <class T>
T largest_of(Vec<T> x) {
    return fold<T>(x, larger<T>)[0];
}

// 2^f for |f| <= 1/2 as a polynomial, highest power first, and how a float is put together.
template <class T>
struct PowerOfTwo;
template <>
struct PowerOfTwo<float> {
    static constexpr float ROUNDER = 12582912, LEAST = -127;  // 1.5 * 2^23: what is added to it is rounded
    static constexpr int MANTISSA = 23;
    static constexpr float TERMS[] = {1.535336188e-4f, 1.339887440e-3f, 9.618437358e-3f, 5.550332471e-2f,
                                      2.402264791e-1f, 6.931472029e-1f, 1.f};
};
template <>
struct PowerOfTwo<double> {
    static constexpr double ROUNDER = 6755399441055744, LEAST = -1023;
    static constexpr int MANTISSA = 52;
    static constexpr double TERMS[] = {  // (ln 2)^n / n!
        1.3691488853904129e-12, 2.5678435993488206e-11, 4.4455382718708116e-10, 7.0549116208011233e-9,
        1.0178086009239699e-7,  1.3215486790144307e-6,  1.5252733804059840e-5,  1.5403530393381608e-4,
        1.3333558146428443e-3,  9.6181291076284768e-3,  5.5504108664821580e-2,  2.4022650695910072e-1,
        6.9314718055994531e-1,  1.0};
};

// 2^x for x far below the largest exponent; exactly 0 from the least one down, denormals being flushed.
template <class T>
inline Vec<T> exp2(Vec<T> x) {
    using P = PowerOfTwo<T>;
    x = larger<T>(Vec<T>{} + P::LEAST, x);  // in this order a NaN stays
    Vec<T> shifted = x + P::ROUNDER, whole = shifted - P::ROUNDER, f = x - whole, y = Vec<T>{} + P::TERMS[0];
    constexpr int terms = int(std::size(P::TERMS));
#pragma GCC unroll 16
    for (int i = 1; i < terms; i++) y = y * f + P::TERMS[i];
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_scalef_ps(0xffff, (__m512)y, (__m512)whole);
    if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_scalef_pd(0xff, (__m512d)y, (__m512d)whole);
#endif
    using Ints = typename VecOf<T>::mask;
    Vec<T> scaled = (Vec<T>)((Ints)y + ((Ints)shifted << P::MANTISSA));
    return x == x ? scaled : x;
}

// Products

// done(m, n, start(m, n) + sum over k of a[m * row + k * col] * b[k * ldb + n * LANES ..]) for a register tile
template <class T, class Start, class Done>
[[gnu::always_inline]] inline void multiply_registers(int depth, const T* a, int64_t row, int64_t col, const T* b,
                                                      int64_t ldb, Start start, Done done) {
    constexpr int L = LANES<T>;
    Vec<T> sum[GROUP][2];
#pragma GCC unroll 16
    for (int m = 0; m < GROUP; m++) sum[m][0] = start(m, 0), sum[m][1] = start(m, 1);
    for (int k = 0; k < depth; k++, a += col, b += ldb) {
#pragma GCC unroll 16
        for (int m = 0; m < GROUP; m++) sum[m][0] += a[m * row] * vec(b), sum[m][1] += a[m * row] * vec(b + L);
    }
#pragma GCC unroll 16
    for (int m = 0; m < GROUP; m++) done(m, 0, sum[m][0]), done(m, 1, sum[m][1]);
}

// c [rows, cols] = diag(keep) c + a b, or c + a b without keep; row lengths of b and c are ld.
template <bool KEEP, class T>
[[gnu::always_inline]] inline void accumulate(int rows, int64_t cols, int depth, const T* a, int64_t row, int64_t col,
                                              const T* b, T* c, int64_t ld, const T* keep = nullptr) {
    constexpr int L = LANES<T>;
    for (int m = 0; m < rows; m += GROUP)
        for (int64_t n = 0; n < cols; n += PANEL<T>) {
            auto at = [&](int i, int j) -> Vec<T>& { return vec(c + (m + i) * ld + n + j * L); };
            multiply_registers(
                depth, a + m * row, row, col, b + n, ld,
                [&](int i, int j) { return KEEP ? keep[m + i] * at(i, j) : at(i, j); },
                [&](int i, int j, Vec<T> x) { at(i, j) = x; });
        }
}

// The same, only the terms that seen(m, k): a 0 that stands for a masked score would make a NaN of another's NaN.
template <bool KEEP, class T, class Seen>
void accumulate_seen(int rows, int64_t cols, int depth, const T* a, int64_t row, int64_t col, const T* b, T* c,
                     int64_t ld, Seen seen, const T* keep = nullptr) {
    for (int m = 0; m < rows; m++) {
        for (int64_t n = 0; KEEP && n < cols; n++) c[m * ld + n] *= keep[m];
        for (int k = 0; k < depth; k++)
            for (int64_t n = 0; n < cols && seen(m, k); n++) c[m * ld + n] += a[m * row + k * col] * b[k * ld + n];
    }
}

// Rows in memory

// A (token, head): of queries, or of keys.
struct Row {
    int32_t token, head;
};

// Vectors [tokens, heads, D], any strides but the last.
template <class In>
struct Vectors {
    In* data;
    int64_t token, head;

    In* at(Row row) const { return data + row.token * token + row.head * head; }
};

// factor x, with zeros up to `padded`.
template <class T, class In>
inline void load_row(const In* __restrict x, int64_t size, T factor, T* __restrict y, int64_t padded) {
    for (int64_t d = 0; d < size; d++) y[d] = factor * widen(x[d]);
    for (int64_t d = size; d < padded; d++) y[d] = 0;
}

template <class T, class In>
inline void store_row(const T* __restrict y, int64_t size, T factor, In* __restrict x) {
    for (int64_t d = 0; d < size; d++) narrow(factor * y[d], x[d]);
}

template <class T>
bool all_finite(const T* x, int64_t count) {  // count is a multiple of PANEL
    Vec<T> nothing[2] = {};
    for (int64_t i = 0; i < count; i += PANEL<T>)
        nothing[0] += T(0) * vec(x + i), nothing[1] += T(0) * vec(x + i + LANES<T>);
    return sum_of<T>(nothing[0] + nothing[1]) == 0;
}

// What rows see

// A row sees the keys [from[r], to[r]) for r = 0 and 1. Neither end of either range goes down from row to row.
struct Seen {
    int32_t from[2], to[2];
};

// A tile's rows before a block of keys: of each group of rows, the columns [first, last) that any of its rows sees.
class Block {
    const Seen* rows;
    int range, key;  // of the two; the block's first key

   public:
    int groups, first[TILE / GROUP], last[TILE / GROUP];
    bool edge;  // some row does not see some key of it

    Block(const Seen* rows, int n_rows, int range) : rows(rows), range(range), groups((n_rows + GROUP - 1) / GROUP) {}

    int begin() const { return rows[0].from[range]; }
    int end() const { return rows[groups * GROUP - 1].to[range]; }

    void at(int new_key, int keys, int panel) {
        key = new_key;
        edge = key < rows[groups * GROUP - 1].from[range] || key + keys > rows[0].to[range];
        for (int g = 0; g < groups; g++) {
            first[g] = std::clamp(rows[g * GROUP].from[range] - key, 0, keys) / panel * panel;
            last[g] = std::clamp(rows[g * GROUP + GROUP - 1].to[range] - key, 0, keys);
        }
    }
    bool sees(int row, int column) const {
        return key + column >= rows[row].from[range] && key + column < rows[row].to[range];
    }
    template <class T>  // x where the row sees the key of a lane, counted from `column`
    Vec<T> masked(int row, int column, Vec<T> x, T other) const {
        typename VecOf<T>::mask lane = lane_numbers<T>(std::make_index_sequence<LANES<T>>()) + (key + column);
        return (lane >= rows[row].from[range]) & (lane < rows[row].to[range]) ? x : Vec<T>{} + other;
    }
};

}  // namespace hybridlm
