// See row_scores.h. All products are the one register tile of row_tiles.h: numbers times vectors along the keys for
// scores, along D for the others. P and dS are read down columns where keys are rows, and never transposed.

#include "row_scores.h"

namespace hybridlm {
namespace {

// FIXED is the width of a row where it was compiled for one, else 0.
template <int FIXED, class T>
struct Forward {
    static constexpr int KEYS = FORWARD_KEYS, L = LANES<T>;
    ForwardTile<T>& x;
    const Block& block;

    int64_t width() const { return FIXED ? FIXED : x.width; }

    void run(const T* k, const T* v, bool careful) {
        for (int c = 0; c < KEYS; c += PANEL<T>)  // a panel at a time: it stays in L1
            for (int g = 0; g < block.groups; g++)
                if (block.first[g] <= c && c < block.last[g]) {
                    T* to = x.scores + g * GROUP * KEYS + c;
                    multiply_registers(
                        int(width()), x.q + g * GROUP * width(), width(), 1, k + c * width(), PANEL<T>,
                        [](int, int) { return Vec<T>{}; },
                        [&](int m, int n, Vec<T> y) { vec(to + m * KEYS + n * L) = y; });
                    x.pairs += GROUP * PANEL<T>;
                }
        for (int g = 0; g < block.groups; g++) {
            int m0 = g * GROUP, first = block.first[g], last = block.last[g];
            if (first >= last) continue;
            for (int m = m0; m < m0 + GROUP; m++) softmax(m, first, last);
            const T *p = x.scores + m0 * KEYS + first, *values = v + first * width();
            T* o = x.o + m0 * width();
            if (careful)
                accumulate_seen<true>(GROUP, width(), last - first, p, KEYS, 1, values, o, width(),
                                      [&](int m, int j) { return block.sees(m0 + m, first + j); }, x.keep + m0);
            else
                accumulate<true>(GROUP, width(), last - first, p, KEYS, 1, values, o, width(), x.keep + m0);
        }
    }

    // The row's scores become weights; keep: by how much the older ones shrink.
    void softmax(int m, int first, int last) {
        T* scores = x.scores + m * KEYS;
        if (block.edge)
            for (int c = first; c < last; c += L) vec(scores + c) = block.masked<T>(m, c, vec(scores + c), -INFINITY);
        Vec<T> most = Vec<T>{} + x.top[m], part[2] = {};
        for (int c = first; c < last; c += L) most = larger<T>(most, vec(scores + c));
        T now = largest_of<T>(most);
        for (int c = first; c < last; c += L) part[c / L % 2] += vec(scores + c) = exp2<T>(vec(scores + c) - now);
        x.keep[m] = exp2<T>(Vec<T>{} + (x.top[m] - now))[0];
        vec(x.sum + m * L) = x.keep[m] * vec(x.sum + m * L) + (part[0] + part[1]);
        x.top[m] = now;
    }
};

template <int FIXED, bool EDGE, class T>
struct Backward {
    static constexpr int KEYS = BACKWARD_KEYS, L = LANES<T>;
    const BackwardTile<T>& x;
    const Block& block;
    bool careful;

    int64_t width() const { return FIXED ? FIXED : x.width; }

    void run() {
        for (int c = 0; c < KEYS; c += PANEL<T>) {
            int m0 = 0, m1 = block.groups * GROUP;  // the rows that see this panel
            while (m0 < m1 && block.last[m0 / GROUP] <= c) m0 += GROUP;
            while (m1 > m0 && block.first[m1 / GROUP - 1] > c) m1 -= GROUP;
            for (int m = m0; m < m1; m += GROUP) scores(m, c);
            for (int m = m0; m < m1; m += GROUP) gradients(m, c);
            auto sees = [&](int j, int m) { return block.sees(m0 + m, c + j); };
            int64_t at = c * width(), rows = m0 * width();
            add(PANEL<T>, m1 - m0, x.p + m0 * KEYS + c, 1, KEYS, x.dout + rows, x.dv + at, sees);
            add(PANEL<T>, m1 - m0, x.ds + m0 * KEYS + c, 1, KEYS, x.q + rows, x.dk + at, sees);
        }
        for (int g = 0; g < block.groups; g++) {
            int m0 = g * GROUP, first = block.first[g], last = block.last[g];
            if (first < last)
                add(GROUP, last - first, x.ds + m0 * KEYS + first, KEYS, 1, x.k + first * width(), x.dq + m0 * width(),
                    [&](int m, int j) { return block.sees(m0 + m, first + j); });
        }
    }

    // Exponential and softmax gradient happen on the registers of the product. Pointers are local: vectors alias all.
    void scores(int m, int c) {
        T* p = x.p + m * KEYS + c;
        const T* lse = x.lse + m;
        multiply_registers(
            int(width()), x.q + m * width(), width(), 1, x.k_panels + c * width(), PANEL<T>,
            [](int, int) { return Vec<T>{}; },
            [&](int i, int n, Vec<T> s) {
                Vec<T> y = exp2<T>(s - lse[i]);
                if (EDGE) y = block.masked<T>(m + i, c + n * L, y, 0);
                vec(p + i * KEYS + n * L) = y;
            });
    }
    void gradients(int m, int c) {
        T *p = x.p + m * KEYS + c, *ds = x.ds + m * KEYS + c;
        const T* delta = x.delta + m;
        multiply_registers(
            int(width()), x.dout + m * width(), width(), 1, x.v_panels + c * width(), PANEL<T>,
            [](int, int) { return Vec<T>{}; },
            [&](int i, int n, Vec<T> dp) {
                Vec<T> y = vec(p + i * KEYS + n * L) * (dp - delta[i]);
                if (EDGE) y = block.masked<T>(m + i, c + n * L, y, 0);
                vec(ds + i * KEYS + n * L) = y;
            });
    }

    template <class Sees>
    void add(int rows, int depth, const T* a, int64_t row, int64_t col, const T* b, T* c, Sees sees) {
        if (EDGE && careful)
            accumulate_seen<false>(rows, width(), depth, a, row, col, b, c, width(), sees);
        else
            accumulate<false>(rows, width(), depth, a, row, col, b, c, width());
    }
};

// run(width) with the width as a constant where that is a common one, else 0.
template <class T, class Run>
void by_width(int64_t width, Run run) {
    if constexpr (std::is_same_v<T, float>) {
        if (width == 32) return run(std::integral_constant<int, 32>());
        if (width == 64) return run(std::integral_constant<int, 64>());
        if (width == 96) return run(std::integral_constant<int, 96>());
        if (width == 128) return run(std::integral_constant<int, 128>());
    }
    run(std::integral_constant<int, 0>());
}

}  // namespace

template <class T>
void attend(ForwardTile<T>& tile, const Block& block, const T* k, const T* v, bool careful) {
    by_width<T>(tile.width, [&](auto width) { Forward<width(), T>{tile, block}.run(k, v, careful); });
}

template <class T>
void add_gradients(const BackwardTile<T>& tile, const Block& block, bool careful) {
    by_width<T>(tile.width, [&](auto width) {
        if (block.edge)
            Backward<width(), true, T>{tile, block, careful}.run();
        else
            Backward<width(), false, T>{tile, block, false}.run();
    });
}

template void attend(ForwardTile<float>&, const Block&, const float*, const float*, bool);
template void attend(ForwardTile<double>&, const Block&, const double*, const double*, bool);
template void add_gradients(const BackwardTile<float>&, const Block&, bool);
template void add_gradients(const BackwardTile<double>&, const Block&, bool);

}  // namespace hybridlm
