/* Univariate maps of tensors, forward and backward, in one pass over memory. */
#include "maps.h"

/* ---- the rational-quadratic spline, in both precisions ----------------------------------------------------------- */

#define T float
#define V vf
#define I vi
#define FN(name) name##_f
#include "spline.h"
#undef T
#undef V
#undef I
#undef FN
#define T double
#define V vd
#define I vl
#define FN(name) name##_d
#include "spline.h"
#undef T
#undef V
#undef I
#undef FN

static void generate_spline(const Map *map, vf z, const vf *params, vf *x, vf *log_det) {
    vd wide[3 * MAX_BINS], mapped[2], log_mapped[2];
    for (int half = 0; half < 2; half++) {
        for (int j = 0; j < size_of(map); j++) wide[j] = widen(params[j], half);
        spline_generate_d(map, widen(z, half), wide, mapped + half, log_mapped + half);
    }
    *x = narrow(mapped);
    *log_det = narrow(log_mapped);
}

static void normalize_spline(const Map *map, int precise, vf x, const vf *params, vf *z, vf *log_det) {
    if (!precise) {
        spline_normalize_f(map, x, params, z, log_det);
        return;
    }
    vd wide[3 * MAX_BINS], mapped[2], log_mapped[2];
    for (int half = 0; half < 2; half++) {
        for (int j = 0; j < size_of(map); j++) wide[j] = widen(params[j], half);
        spline_normalize_d(map, widen(x, half), wide, mapped + half, log_mapped + half);
    }
    *z = narrow(mapped);
    *log_det = narrow(log_mapped);
}

/* ---- mixtures of logistics --------------------------------------------------------------------------------------- */

static inline vd log_sum_d(const vd *terms, int count) {
    vd top = (vd){0} - INFINITY, sum = {0};
    for (int k = 0; k < count; k++) top = at_least_d(top, terms[k]);
    for (int k = 0; k < count; k++) sum += exp_d(terms[k] - top);
    return top + log_d(sum);
}

/* x = F^-1(sigmoid(z)) of a mixture of logistics F, by Newton's method within a bracket, in double precision: as in
 * `newton_or_half` of ops/reference/roots.py. */
static void logistics_half(const Map *map, vd z, const vf *params, int half, vd *out, vd *log_det) {
    const int count = map->bins;
    vd weight[MAX_BINS], mean[MAX_BINS], log_scale[MAX_BINS], rate[MAX_BINS];
    vd below[MAX_BINS], above[MAX_BINS], both[MAX_BINS];
    vd low = (vd){0} + INFINITY, high = -low, log_slope = {0};
    for (int k = 0; k < count; k++) weight[k] = widen(params[k], half);
    const vd total = log_sum_d(weight, count);
    for (int k = 0; k < count; k++) {
        weight[k] -= total;
        mean[k] = widen(params[count + k], half);
        log_scale[k] = map->bound * tanh_d(widen(params[2 * count + k], half) / map->bound);
        rate[k] = exp_d(-log_scale[k]);
        const vd x_k = mean[k] + z / rate[k];
        low = at_most_d(low, x_k);
        high = at_least_d(high, x_k);
    }
    vd x = 0.5 * (low + high), moved = high - low;
    vl left = (vl){0} == 0;
    for (int round = 0; round < 100; round++) {
        for (int k = 0; k < count; k++) {
            const vd u = (x - mean[k]) * rate[k];
            const vd tail = log_d(1.0 + exp_d(-absolute_d(u)));
            below[k] = weight[k] + at_most_d(u, (vd){0}) - tail;  /* log sigmoid(u) */
            above[k] = weight[k] + at_most_d(-u, (vd){0}) - tail; /* log sigmoid(-u) */
            both[k] = below[k] + above[k] - weight[k] - log_scale[k];
        }
        const vd log_below = log_sum_d(below, count), log_above = log_sum_d(above, count);
        const vd reached = log_below - log_above;
        log_slope = pick_d(left, log_sum_d(both, count) - log_below - log_above, log_slope);
        low = pick_d(reached < z, x, low);
        high = pick_d(reached > z, x, high);
        const vd step = (z - reached) * exp_d(-log_slope), to = x + step;
        const vl newton = (to >= low) & (to <= high) & (absolute_d(step) <= 0.5 * moved);
        const vd new = pick_d(newton, to, 0.5 * (low + high));
        moved = absolute_d(new - x);
        x = pick_d(left, new, x);
        left &= moved > 1e-13 * (1.0 + absolute_d(x));
        long any = 0;
        for (int lane = 0; lane < VL / 2; lane++) any |= (long)left[lane];
        if (!any) break;
    }
    *out = x;
    *log_det = -log_slope;
}

static void generate_logistics(const Map *map, vf value, const vf *params, vf *out, vf *log_det) {
    vd mapped[2], log_mapped[2];
    for (int half = 0; half < 2; half++)
        logistics_half(map, widen(value, half), params, half, mapped + half, log_mapped + half);
    *out = narrow(mapped);
    *log_det = narrow(log_mapped);
}

/* ---- chains of maps ---------------------------------------------------------------------------------------------- */

void generate(const Map *maps, int count, vf z, const vf *params, vf *x, vf *log_det) {
    vf total = splat(0), step;
    for (int m = 0; m < count; params += size_of(maps + m), m++) {
        switch (maps[m].kind) {
        case SHIFT: z += params[0]; break;
        case SCALE: z *= exp_f(params[0]), total += params[0]; break;
        case AFFINE:
            step = (float)maps[m].bound * tanh_f(params[1] / (float)maps[m].bound);
            z = params[0] + z * exp_f(step), total += step;
            break;
        case LOGISTICS: generate_logistics(maps + m, z, params, &z, &step), total += step; break;
        default: generate_spline(maps + m, z, params, &z, &step), total += step;
        }
    }
    *x = z;
    *log_det = total;
}

/* The maps from the last one to `first`. `passed` (or NULL) receives what each of them got. */
static inline void normalize_chain(
    const Map *maps, int first, int count, int precise, vf x, const vf *params, vf *z, vf *log_det, vf *passed) {
    vf total = splat(0), step;
    for (int m = 0; m < count; m++) params += size_of(maps + m);
    for (int m = count - 1; m >= first; m--) {
        params -= size_of(maps + m);
        if (passed) passed[m] = x;
        switch (maps[m].kind) {
        case SHIFT: x -= params[0]; break;
        case SCALE: x *= exp_f(-params[0]), total -= params[0]; break;
        case AFFINE:
            step = (float)maps[m].bound * tanh_f(params[1] / (float)maps[m].bound);
            x = (x - params[0]) * exp_f(-step), total -= step;
            break;
        default: normalize_spline(maps + m, precise, x, params, &x, &step), total += step;
        }
    }
    *z = x;
    *log_det = total;
}

void normalize(const Map *maps, int count, int precise, vf x, const vf *params, vf *z, vf *log_det) {
    normalize_chain(maps, 0, count, precise, x, params, z, log_det, NULL);
}

void normalize_backward(
    const Map *maps, int count, vf x, const vf *params, vf gz, vf gl, vf *gx, vf *grads) {
    vf passed[MAX_MAPS], log_det;
    normalize_chain(maps, 1, count, 0, x, params, passed, &log_det, passed); /* nobody asks what the first one makes */
    for (int m = 0; m < count; params += size_of(maps + m), grads += size_of(maps + m), m++) {
        switch (maps[m].kind) {
        case SHIFT: grads[0] = -gz; break;
        case SCALE: {
            const vf scale = exp_f(-params[0]);
            grads[0] = -gz * scale * passed[m] - gl;
            gz *= scale;
            break;
        }
        case AFFINE: {
            const float bound = (float)maps[m].bound;
            const vf t = tanh_f(params[1] / bound), scale = exp_f(-bound * t);
            gz *= scale;
            grads[0] = -gz;
            grads[1] = -(gz * (passed[m] - params[0]) + gl) * (1.0f - t * t);
            break;
        }
        default: spline_backward_f(maps + m, passed[m], params, gz, gl, &gz, grads);
        }
    }
    *gx = gz;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Lanes of a matrix (rows, columns) whose rows are `by_row` apart, counted along the rows: they may run over a row's
 * end. */
typedef struct { long first, place[VL]; int n, together; } Lanes;

static inline Lanes lanes_at(long at, long total, long columns, long by_row) {
    long row = at / columns, column = at % columns;
    Lanes lanes = {.first = row * by_row + column, .n = total - at < VL ? (int)(total - at) : VL};
    lanes.together = column + lanes.n <= columns || by_row == columns;
    for (int i = 0; !lanes.together && i < lanes.n; i++) {
        lanes.place[i] = row * by_row + column;
        if (++column == columns) column = 0, row++;
    }
    return lanes;
}

static inline vf load_lanes(const float *from, const Lanes *lanes) {
    if (lanes->together) return load(from + lanes->first, 1, lanes->n);
    vf v = {0};
    for (int i = 0; i < lanes->n; i++) v[i] = from[lanes->place[i]];
    return v;
}

static inline void store_lanes(float *to, const Lanes *lanes, vf v) {
    if (lanes->together) store(to + lanes->first, lanes->n, v);
    else for (int i = 0; i < lanes->n; i++) to[lanes->place[i]] = v[i];
}

/* value, out, log_det are (rows, columns), contiguous; params are (size, rows, columns) with strides (by_param, by_row,
 * 1). `forward` generates, else normalizes; `precise` computes splines in double precision. */
void map_f32(
    long rows, long columns, const Map *maps, int count, const float *value, const float *params, long by_param,
    long by_row, int forward, int precise, float *out, float *log_det, int threads) {
    const int size = params_of(maps, count);
    const long total = rows * columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long at = 0; at < total; at += VL) {
        const Lanes lanes = lanes_at(at, total, columns, by_row);
        vf p[MAX_PARAMS], mapped, log_mapped;
        for (int j = 0; j < size; j++) p[j] = load_lanes(params + j * by_param, &lanes);
        const vf v = load(value + at, 1, lanes.n);
        if (forward) generate(maps, count, v, p, &mapped, &log_mapped);
        else normalize(maps, count, precise, v, p, &mapped, &log_mapped);
        store(out + at, lanes.n, mapped);
        store(log_det + at, lanes.n, log_mapped);
    }
}

/* Gradients of sum(gz z + gl log dz/dx) for z = f^-1(x); gparams has the layout of params. */
void map_backward_f32(
    long rows, long columns, const Map *maps, int count, const float *x, const float *params, long by_param,
    long by_row, const float *gz, const float *gl, float *gx, float *gparams, long g_by_param, long g_by_row,
    int threads) {
    const int size = params_of(maps, count);
    const long total = rows * columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long at = 0; at < total; at += VL) {
        const Lanes from = lanes_at(at, total, columns, by_row), to = lanes_at(at, total, columns, g_by_row);
        vf p[MAX_PARAMS], grads[MAX_PARAMS], by_x;
        for (int j = 0; j < size; j++) p[j] = load_lanes(params + j * by_param, &from);
        const vf v = load(x + at, 1, from.n), by_z = load(gz + at, 1, from.n), by_log = load(gl + at, 1, from.n);
        normalize_backward(maps, count, v, p, by_z, by_log, &by_x, grads);
        store(gx + at, from.n, by_x);
        for (int j = 0; j < size; j++) store_lanes(gparams + j * g_by_param, &to, grads[j]);
    }
}
