/* The inner loops that no sequence of tensor operations does well: univariate maps, feed-forward networks,
 * the incremental walk, whole solves of differential equations, the optimizer's step. float32, plain C (gcc and clang),
 * no headers beyond the standard ones. Each function has a plain PyTorch twin that it must equal
 * (tests/test_kernels.py); native.py builds and loads this file.
 */
#include "lanes.h"

#define MAX_BINS 64

/* ---- the rational-quadratic spline ------------------------------------------------------------------------------- */

typedef struct {
    int bins;
    double bound, min_bin, max_log_bend;
} Spline;

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

/* ---- univariate maps --------------------------------------------------------------------------------------------- */

enum { SHIFT, SCALE, AFFINE, SPLINE, LOGISTICS };

typedef struct {
    int kind, bins;
    double bound, min_bin, max_log_bend;
} Map; /* a univariate map; a chain of them is given in the order of generation, as are their parameters */

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
static inline Spline spline_of(const Map *map) {
    return (Spline){map->bins, map->bound, map->min_bin, map->max_log_bend};
}

static inline void spline_lanes(
    const Map *map, int generate, int precise, vf value, const vf *params, vf *out, vf *log_det) {
    const Spline s = spline_of(map);
    if (!precise) {
        if (generate) spline_generate_f(&s, value, params, out, log_det);
        else spline_normalize_f(&s, value, params, out, log_det);
        return;
    }
    vd wide[3 * MAX_BINS], mapped[2], log_mapped[2];
    for (int half = 0; half < 2; half++) {
        for (int j = 0; j < 3 * s.bins - 1; j++) wide[j] = widen(params[j], half);
        if (generate) spline_generate_d(&s, widen(value, half), wide, mapped + half, log_mapped + half);
        else spline_normalize_d(&s, widen(value, half), wide, mapped + half, log_mapped + half);
    }
    *out = narrow(mapped);
    *log_det = narrow(log_mapped);
}

static inline vd log_sum_d(const vd *terms, int count) {
    vd top = (vd){0} - INFINITY, sum = {0};
    for (int k = 0; k < count; k++) top = at_least_d(top, terms[k]);
    for (int k = 0; k < count; k++) sum += exp_d(terms[k] - top);
    return top + log_d(sum);
}

/* x = F^-1(sigmoid(z)) of a mixture of logistics F, by Newton's method within a bracket, in double precision. */
static void logistics_half(const Map *map, vd z, const vf *params, int half, vd *out, vd *log_det) {
    const int count = map->bins;
    vd weight[MAX_BINS], mean[MAX_BINS], log_scale[MAX_BINS], below[MAX_BINS], above[MAX_BINS], both[MAX_BINS];
    vd low = (vd){0} + INFINITY, high = -low, log_slope = {0};
    for (int k = 0; k < count; k++) weight[k] = widen(params[k], half);
    const vd total = log_sum_d(weight, count);
    for (int k = 0; k < count; k++) {
        weight[k] -= total;
        mean[k] = widen(params[count + k], half);
        log_scale[k] = map->bound * tanh_d(widen(params[2 * count + k], half) / map->bound);
        const vd own = mean[k] + exp_d(log_scale[k]) * z;
        low = at_most_d(low, own);
        high = at_least_d(high, own);
    }
    vd x = 0.5 * (low + high);
    for (int round = 0; round < 100; round++) {
        for (int k = 0; k < count; k++) {
            const vd u = (x - mean[k]) * exp_d(-log_scale[k]);
            const vd tail = log_d(1.0 + exp_d(pick_d(u < 0, u, -u)));
            below[k] = weight[k] + at_most_d(u, (vd){0}) - tail;  /* log sigmoid(u) */
            above[k] = weight[k] + at_most_d(-u, (vd){0}) - tail; /* log sigmoid(-u) */
            both[k] = below[k] + above[k] - weight[k] - log_scale[k];
        }
        const vd log_below = log_sum_d(below, count), log_above = log_sum_d(above, count);
        const vd reached = log_below - log_above;
        log_slope = log_sum_d(both, count) - log_below - log_above;
        low = pick_d(reached < z, x, low);
        high = pick_d(reached > z, x, high);
        const vd step = x + (z - reached) * exp_d(-log_slope);
        const vd new = pick_d((step >= low) & (step <= high), step, 0.5 * (low + high));
        const vd moved = pick_d(new < x, x - new, new - x), size = pick_d(new < 0, -new, new);
        const vl left = moved > 1e-13 * (1.0 + size);
        x = new;
        long any = 0;
        for (int lane = 0; lane < VL / 2; lane++) any |= (long)left[lane];
        if (!any) break;
    }
    *out = x;
    *log_det = -log_slope;
}

static void logistics_lanes(const Map *map, vf value, const vf *params, vf *out, vf *log_det) {
    vd mapped[2], log_mapped[2];
    for (int half = 0; half < 2; half++)
        logistics_half(map, widen(value, half), params, half, mapped + half, log_mapped + half);
    *out = narrow(mapped);
    *log_det = narrow(log_mapped);
}

/* x = f(z) and log dx/dz, splines in double precision. */
static void generate(const Map *maps, int count, vf z, const vf *params, vf *x, vf *log_det) {
    vf total = splat(0), step;
    for (int m = 0; m < count; params += size_of(maps + m), m++) {
        switch (maps[m].kind) {
        case SHIFT: z += params[0]; break;
        case SCALE: z *= exp_f(params[0]), total += params[0]; break;
        case AFFINE:
            step = (float)maps[m].bound * tanh_f(params[1] / (float)maps[m].bound);
            z = params[0] + z * exp_f(step), total += step;
            break;
        case LOGISTICS: logistics_lanes(maps + m, z, params, &z, &step), total += step; break;
        default: spline_lanes(maps + m, 1, 1, z, params, &z, &step), total += step;
        }
    }
    *x = z;
    *log_det = total;
}

/* z = f^-1(x) and log dz/dx; `params` are those of all maps, `passed` (or NULL) receives what each map got. */
static void normalize(
    const Map *maps, int count, int precise, vf x, const vf *params, vf *z, vf *log_det, vf *passed) {
    vf total = splat(0), step;
    for (int m = 0; m < count; m++) params += size_of(maps + m);
    for (int m = count - 1; m >= 0; m--) {
        params -= size_of(maps + m);
        if (passed) passed[m] = x;
        switch (maps[m].kind) {
        case SHIFT: x -= params[0]; break;
        case SCALE: x *= exp_f(-params[0]), total -= params[0]; break;
        case AFFINE:
            step = (float)maps[m].bound * tanh_f(params[1] / (float)maps[m].bound);
            x = (x - params[0]) * exp_f(-step), total -= step;
            break;
        default: spline_lanes(maps + m, 0, precise, x, params, &x, &step), total += step;
        }
    }
    *z = x;
    *log_det = total;
}

/* Gradients of gz z + gl log dz/dx for z = f^-1(x), with respect to x and the parameters. */
static void normalize_backward(
    const Map *maps, int count, vf x, const vf *params, vf gz, vf gl, vf *gx, vf *grads) {
    vf passed[MAX_MAPS], z, log_det;
    normalize(maps, count, 0, x, params, &z, &log_det, passed);
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
        default: {
            const Spline s = spline_of(maps + m);
            spline_backward_f(&s, passed[m], params, gz, gl, &gz, grads);
        }
        }
    }
    *gx = gz;
}

static inline int params_of(const Map *maps, int count) {
    int size = 0;
    for (int m = 0; m < count; m++) size += size_of(maps + m);
    return size;
}

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
        else normalize(maps, count, precise, v, p, &mapped, &log_mapped, NULL);
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

/* Lanes of a vector: what the incremental inversion of a WaveNet must fill widths up to. */
long vector_lanes(void) { return VL; }

#include "network.h"

/* ---- the incremental walk ---------------------------------------------------------------------------------------- */

/* x_i = f(z_i; net(x_<i)) for i = 0 .. elements - 1, one masked pass in total. z, x: (rows, elements); log_det: (rows).
 * The last layer's units are ordered element by element, `size` parameters each. `shared` (or NULL) is (rows, units of
 * the first layer), added to the first layer's sums. Elements are taken in blocks: what is complete contributes to a
 * block by large products. Units are met in the order of what they see, so no mask is needed. Returns 1 if memory ran
 * out. */
int invert_f32(
    long rows, long elements, long size, const Network *net, const float *shared, const Map *maps, int map_count,
    const float *z, float *x, float *log_det, long block, int threads) {
    const Layer *const layers = net->layers;
    const long chunks = chunks_of(rows, threads);
    const int last_layer = net->depth - 1;
    long total = elements, units = 0;
    for (int l = 0; l <= last_layer; l++) {
        if (l < last_layer) total += layers[l].units;
        units += layers[l].units;
    }
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        /* the values of the inputs and of all hidden layers, then the sums of all layers */
        vf *values = scratch(OWN, sizeof(vf) * WIDE * (size_t)(total + units));
        if (!values) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (long index = 0; index < chunks; index++) {
            if (!values) continue;
            const Chunk chunk = chunk_of(rows, chunks, index);
            const int n = chunk.vectors;
            vf log_sum[WIDE] = {{0}};
            for (long first = 0; first < elements; first += block) {
                const long last = first + block < elements ? first + block : elements;
                vf *source = values, *sums = values + n * total;
                long source_done = first;
                for (int l = 0; l <= last_layer; l++) {
                    const Layer *layer = layers + l;
                    const long start = first ? layer->ends[first - 1] : 0, stop = layer->ends[last - 1];
                    start_sums(net, l, start, (int)(stop - start), chunk, rows, shared, sums + start * n);
                    product(layer->weight + start * layer->columns, layer->columns, stop - start, 0, source_done,
                            source, n, sums + start * n);
                    if (l == last_layer && net->direct)
                        product(net->direct->weight + start * elements, elements, stop - start, 0, first, values, n,
                                sums + start * n);
                    source += n * layer->columns;
                    source_done = start;
                    sums += n * layer->units;
                }
                for (long k = first; k < last; k++) {
                    vf *in = values, *own = values + n * total;
                    long known_from = first, known_to = k;
                    for (int l = 0; l <= last_layer; l++) {
                        const Layer *layer = layers + l;
                        const long block_start = first ? layer->ends[first - 1] : 0;
                        const long start = k ? layer->ends[k - 1] : 0, stop = layer->ends[k];
                        vf *hidden = in + n * layer->columns;
                        product(layer->weight + start * layer->columns, layer->columns, stop - start, known_from,
                                known_to, in, n, own + start * n);
                        if (l == last_layer && net->direct)
                            product(net->direct->weight + start * elements, elements, stop - start, first, k, values, n,
                                    own + start * n);
                        known_from = block_start;
                        known_to = stop;
                        if (l == last_layer) break;
                        activate(net->activation, own + start * n, (stop - start) * n, hidden + start * n);
                        if (layer->residual)
                            for (long u = start * n; u < stop * n; u++) hidden[u] += in[u];
                        in = hidden;
                        own += n * layer->units;
                    }
                    const vf *params = own + n * (k ? layers[last_layer].ends[k - 1] : 0);
                    for (int v = 0; v < n; v++) {
                        const int count = lanes(chunk, v, rows);
                        const long at = (chunk.start + v * VL) * elements + k;
                        vf mine[MAX_PARAMS], out, log_out;
                        for (long p = 0; p < size; p++) mine[p] = params[p * n + v];
                        generate(maps, map_count, load(z + at, elements, count), mine, &out, &log_out);
                        for (int i = 0; i < count; i++) x[at + i * elements] = out[i];
                        log_sum[v] += log_out;
                        values[k * n + v] = soften(net->bound, out);
                    }
                }
            }
            for (int v = 0; v < n; v++) store(log_det + chunk.start + v * VL, lanes(chunk, v, rows), log_sum[v]);
        }
    }
    return failed;
}

#include "wavenet.h"
#include "ode.h"
#include "update.h"
