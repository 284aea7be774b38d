/* The matrix product that networks and WaveNets share: sums[u, v] += sum over k of a[u, k] b[k, v].
 *
 * u counts units, k columns, and v vectors of lanes (rows of a batch, or times). A tile of U units x N vectors keeps
 * its accumulators in registers while k runs; see docs/kernels.md for the arithmetic. */
#pragma once
#include "lanes.h"

/* Before a loop over the accumulators of a tile, for what is indexed at run time lies in memory. */
#define UNROLL _Pragma("GCC unroll 8")

/* In floats, a[u, k] is at u * by_unit + k * by_column, b[k, v] at k * by_b + v * VL, and sums[u, v] at u * by_sums +
 * v * VL. a comes in segments of `count` columns, `by_segment` apart. */
typedef void (*Product)(
    const float *a, long by_unit, long by_column, long count, long segments, long by_segment, const float *b, long by_b,
    float *sums, long by_sums);

/* Products of tiles: PRODUCT_OF[units][vectors - 1], for those units that tile_of returns. */
HIDDEN extern const Product PRODUCT_OF[TILE + 1][WIDE];

/* The largest tile that fits into the units that are left. */
static inline int tile_of(long left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }
