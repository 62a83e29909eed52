// A chunk of C tokens: loading it, its decays, its triangular systems. Within a chunk, with a_t = exp(g_t),
//
//     D_ij = a_{j+1} ... a_i  (i >= j)        decay from token j to token i
//     grown_i = a_0 ... a_i                   decay from the state before the chunk to token i
//     left_j = D_{C-1,j}                      decay from token j to the state after the chunk
//
// as products of at most C factors: exact to a few roundings for any gate, without a difference of sums.
#pragma once

#include "simd.h"

namespace hybridlm {

constexpr int C = 16;        // tokens per chunk
constexpr int SEGMENT = 64;  // tokens between two states kept for the backward pass

// The sequences of a batch: token positions [begin[n], begin[n + 1]) and segments [first_segment(n), ...).
struct Layout {
    const int64_t* begin;
    int64_t n_sequences, heads, group, K, V;  // group: value heads per key head

    int64_t value_heads() const { return heads * group; }
    int64_t length(int64_t n) const { return begin[n + 1] - begin[n]; }
    int64_t first_segment(int64_t n) const {
        int64_t count = 0;
        for (int64_t i = 0; i < n; i++) count += (length(i) + SEGMENT - 1) / SEGMENT;
        return count;
    }
};

template <class T>
struct Sizes {
    int64_t K, V, ldv;  // padded; ldv: row length of [K, V] and [C, V] in scratch, no large power of two

    explicit Sizes(const Layout& x)
        : K(padded<T>(x.K)), V(padded<T>(x.V)), ldv(V + (V * sizeof(T) % 512 ? 0 : PAD<T>)) {}
};

// Vectors per head and token, [tokens, n_heads, size] in memory, seen from one head.
template <class In>
struct Tokens {
    In* data;
    int64_t stride, size;

    Tokens(In* x, int64_t n_heads, int64_t head, int64_t size)
        : data(x + head * size), stride(n_heads * size), size(size) {}
};

// Rows lie far apart, which no hardware prefetcher follows: each chunk asks for the one `ahead` tokens away.
template <bool WRITE, class In>
void prefetch(const In* row, int64_t size) {
    for (int64_t d = 0; d < size; d += 64 / sizeof(In)) __builtin_prefetch(row + d, WRITE, 2);
}

// Tokens [start, start + count) into rows of y [C, ld]; rows from count on are `fill`.
template <class T, class In>
void load(const Tokens<const In>& x, int64_t start, int count, int64_t ahead, T* __restrict y, int64_t ld, T fill = 0) {
    for (int i = 0; i < C; i++) {
        const In* __restrict row = x.data + (start + i) * x.stride;
        prefetch<false>(row + ahead * x.stride, x.size);
        if (i < count)
            for (int64_t d = 0; d < x.size; d++) y[i * ld + d] = widen(row[d]);
        else
            for (int64_t d = 0; d < x.size; d++) y[i * ld + d] = fill;
    }
}

template <class T, class Out>
void store(const T* __restrict y, int64_t ld, int64_t start, int count, int64_t ahead, const Tokens<Out>& x) {
    for (int i = 0; i < count; i++) {
        Out* __restrict row = x.data + (start + i) * x.stride;
        prefetch<true>(row + ahead * x.stride, x.size);
        for (int64_t d = 0; d < x.size; d++) narrow(y[i * ld + d], row[d]);
    }
}

// A dense [rows, cols] matrix into one with rows of ld; null stands for zeros.
template <class T>
void load_state(const T* x, int64_t rows, int64_t cols, T* y, int64_t ld) {
    for (int64_t r = 0; r < rows; r++)
        if (x)
            std::memcpy(y + r * ld, x + r * cols, cols * sizeof(T));
        else
            std::memset(y + r * ld, 0, cols * sizeof(T));
}

template <class T>
void store_state(const T* y, int64_t ld, int64_t rows, int64_t cols, T* x) {
    for (int64_t r = 0; r < rows; r++) std::memcpy(x + r * cols, y + r * ld, cols * sizeof(T));
}

template <class T>
struct alignas(64) Decays {
    T step[C];      // a_t, 1 behind the end of the sequence
    T grown[C];
    T left[C];
    T pair[C][C];   // D, zero above the diagonal

    void prepare(const Tokens<const T>& decay, int64_t start, int count) {
        load(decay, start, count, 0, step, 1, T(1));
        T all = 1;
        for (int i = 0; i < C; i++) grown[i] = all *= step[i];
        for (int i = 0; i < C; i++) {
            for (int j = 0; j < C; j++) pair[i][j] = i ? pair[i - 1][j] * step[i] : T(0);
            pair[i][i] = 1;
        }
        for (int j = 0; j < C; j++) left[j] = pair[C - 1][j];
    }
    T whole() const { return grown[C - 1]; }
};

// y = diag(factor) x, C rows.
template <class T>
void scale_rows(const T* factor, const T* x, int64_t ldx, T* y, int64_t ldy, int64_t cols) {
    for (int i = 0; i < C; i++)
        for (int64_t n = 0; n < cols; n += LANES<T>) vec(y + i * ldy + n) = factor[i] * vec(x + i * ldx + n);
}

// Sum of a * b over two states.
template <class T>
T dot_states(const T* a, const T* b, const Sizes<T>& size) {
    Vec<T> sum[4] = {};
    for (int64_t m = 0; m < size.K; m++)
        for (int64_t n = 0; n < size.V; n += LANES<T>)
            sum[m % 4] += vec(a + m * size.ldv + n) * vec(b + m * size.ldv + n);
    sum[0] += sum[1] + sum[2] + sum[3];
    T total = 0;
    for (int n = 0; n < LANES<T>; n++) total += sum[0][n];
    return total;
}

// x [C, cols] = (I + lower(a diag(beta)))^-1 x, in place: token by token, each corrects the ones behind it.
template <class T>
void solve_lower(const T (&a)[C][C], const T* beta, T* x, int64_t ld, int64_t cols) {
    alignas(64) T w[C][C];
    for (int i = 0; i < C; i++)
        for (int j = 0; j < C; j++) w[i][j] = a[i][j] * beta[j];
    for (int64_t n = 0; n < cols; n += LANES<T>) {
        Vec<T> row[C];
#pragma GCC unroll 16
        for (int i = 0; i < C; i++) row[i] = vec(x + i * ld + n);
#pragma GCC unroll 16
        for (int j = 0; j < C; j++) {
#pragma GCC unroll 16
            for (int i = j + 1; i < C; i++) row[i] -= w[i][j] * row[j];
        }
#pragma GCC unroll 16
        for (int i = 0; i < C; i++) vec(x + i * ld + n) = row[i];
    }
}

// The adjoint: x_j -= sum over i > j of a_ij beta_i x_i, last token first.
template <class T>
void solve_lower_adjoint(const T (&a)[C][C], const T* beta, T* x, int64_t ld, int64_t cols) {
    alignas(64) T w[C][C];
    for (int i = 0; i < C; i++)
        for (int j = 0; j < C; j++) w[i][j] = a[i][j] * beta[i];
    for (int64_t n = 0; n < cols; n += LANES<T>) {
        Vec<T> row[C];
#pragma GCC unroll 16
        for (int i = 0; i < C; i++) row[i] = vec(x + i * ld + n);
#pragma GCC unroll 16
        for (int i = C - 1; i > 0; i--) {
#pragma GCC unroll 16
            for (int j = 0; j < i; j++) row[j] -= w[i][j] * row[i];
        }
#pragma GCC unroll 16
        for (int i = 0; i < C; i++) vec(x + i * ld + n) = row[i];
    }
}

// y [C, cols] = diag(scale) y + b x, b [C, C] read at and below the diagonal only (ADJOINT: b^T, at and above it).
// What is masked is never read: a NaN stays with the tokens that may see it.
template <class T, bool ADJOINT>
void add_causal(const T (&b)[C][C], const T* x, int64_t ldx, const T* scale, T* y, int64_t ldy, int64_t cols) {
    for (int64_t n = 0; n < cols; n += LANES<T>) {
        Vec<T> sum[C];
#pragma GCC unroll 16
        for (int i = 0; i < C; i++) sum[i] = scale[i] * vec(y + i * ldy + n);
#pragma GCC unroll 16
        for (int j = 0; j < C; j++) {
            Vec<T> row = vec(x + j * ldx + n);
            if constexpr (ADJOINT) {
#pragma GCC unroll 16
                for (int i = 0; i <= j; i++) sum[i] += b[j][i] * row;
            } else {
#pragma GCC unroll 16
                for (int i = j; i < C; i++) sum[i] += b[i][j] * row;
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < C; i++) vec(y + i * ldy + n) = sum[i];
    }
}

// sums[i] = sum over columns of x[i, :] * y[i, :], C rows.
template <class T>
void dot_rows(const T* x, int64_t ldx, const T* y, int64_t ldy, int64_t cols, T* sums) {
    constexpr int L = LANES<T>;
    for (int first = 0; first < C; first += L) {
        Vec<T> part[L];
        for (int i = 0; i < L; i++) {
            Vec<T> sum = {};
            for (int64_t n = 0; n < cols; n += L)
                sum += vec(x + (first + i) * ldx + n) * vec(y + (first + i) * ldy + n);
            part[i] = sum;
        }
        transpose_stage<T, 1>(part);
        Vec<T> sum = part[0];
        for (int i = 1; i < L; i++) sum += part[i];
        vec(sums + first) = sum;
    }
}

// Gradient of g_t: the sum of pair[i][j] over i >= t > j, where row C (`to_end`) is the state after the chunk, column
// -1 (`from_start`) the state before it, and `through` the pair of both.
template <class T>
void gate_grads(const T (&pair)[C][C], const T* from_start, const T* to_end, T through, T* dg) {
    alignas(64) T seen[C][C], all[C][C];  // seen[t][j]: sum over i >= t, kept for j < t
    T column[C];
    for (int j = 0; j < C; j++) column[j] = to_end[j];
    for (int t = C - 1; t >= 0; t--)
        for (int j = 0; j < C; j++) {
            column[j] += j < t ? pair[t][j] : T(0);
            seen[t][j] = j < t ? column[j] : T(0);
        }
    transpose<T>(C, C, &seen[0][0], C, &all[0][0], C);
    T sum[C] = {};
    for (int j = 0; j < C; j++)
        for (int t = 0; t < C; t++) sum[t] += all[j][t];
    for (int t = C - 1; t >= 0; t--) {
        through += from_start[t];
        dg[t] = sum[t] + through;
    }
}

}  // namespace hybridlm
