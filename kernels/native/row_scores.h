// One tile of query rows against one block of keys: what row_attention.h spends its time in. Compiled once for all
// operators, in row_scores.cpp; it knows neither where rows come from nor what dtype they have there.

#pragma once

#include "row_tiles.h"

namespace hybridlm {

constexpr int FORWARD_KEYS = 128, BACKWARD_KEYS = 64;  // of a block

// Row lengths are `width`, D padded to a multiple of PANEL with zeros.
template <class T>
struct ForwardTile {
    int64_t width;
    T* q;            // [TILE, width], scaled for scores in base 2
    T* o;            // [TILE, width], a sum of values, and
    T* sum;          // [TILE, LANES], of their weights in as many parts
    T* top;          // [TILE], the largest score so far: weights are 2^(score - top)
    T* keep;         // [TILE]
    T* scores;       // [TILE, FORWARD_KEYS]
    int64_t pairs;   // scores computed so far
};

// Adds a block's keys, k in panels [width, PANEL] and v in rows. careful: v is not finite.
template <class T>
void attend(ForwardTile<T>& tile, const Block& block, const T* k, const T* v, bool careful);

template <class T>
struct BackwardTile {
    int64_t width;
    const T *q, *dout, *lse, *delta;  // of the rows: [TILE, width] twice, the latter times the gate; [TILE] twice
    T* dq;
    T *p, *ds;                                // [TILE, BACKWARD_KEYS]
    const T *k, *k_panels, *v_panels;         // of the keys: rows, and panels [width, PANEL]
    T *dk, *dv;                               // [BACKWARD_KEYS, width]
};

// Adds to dq / scale, to dk log2(e) and to dv. careful: q, dout or k is not finite.
template <class T>
void add_gradients(const BackwardTile<T>& tile, const Block& block, bool careful);

}  // namespace hybridlm
