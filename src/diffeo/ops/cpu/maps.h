/* Univariate maps on the lanes of a vector, and chains of them; the reference implementations are the classes of
 * transforms/univariate.py. */
#pragma once
#include "lanes.h"

enum { SHIFT, SCALE, AFFINE, SPLINE, LOGISTICS };

typedef struct {
    int kind, bins;
    double bound, min_bin, max_log_bend;
} Map; /* a univariate map; a chain of them is given in the order of generation, as are their parameters */

#define MAX_BINS 64
#define MAX_MAPS 8
#define MAX_PARAMS (3 * MAX_BINS + 2 * MAX_MAPS)

static inline int size_of(const Map *map) {
    switch (map->kind) {
    case SPLINE: return 3 * map->bins - 1;
    case LOGISTICS: return 3 * map->bins;
    case AFFINE: return 2;
    default: return 1;
    }
}

static inline int params_of(const Map *maps, int count) {
    int size = 0;
    for (int m = 0; m < count; m++) size += size_of(maps + m);
    return size;
}

/* x = f(z) and log dx/dz, splines in double precision. */
HIDDEN void generate(const Map *maps, int count, vf z, const vf *params, vf *x, vf *log_det);

/* z = f^-1(x) and log dz/dx; `precise` computes splines in double precision. */
HIDDEN void normalize(const Map *maps, int count, int precise, vf x, const vf *params, vf *z, vf *log_det);

/* Gradients of gz z + gl log dz/dx for z = f^-1(x), with respect to x and the parameters. */
HIDDEN void normalize_backward(
    const Map *maps, int count, vf x, const vf *params, vf gz, vf gl, vf *gx, vf *grads);
