/* The inner loops that no sequence of tensor operations does well: the rational-quadratic spline, feed-forward networks,
 * and the incremental walk. float32, plain C (gcc and clang), no headers beyond the standard ones. Each function has a
 * plain PyTorch twin that it must equal (tests/test_kernels.py); native.py builds and loads this file.
 */
#include "lanes.h"

#define MAX_BINS 64

/* ---- the rational-quadratic spline ------------------------------------------------------------------------------- */

typedef struct {
    int bins;
    double bound, min_bin, max_log_bend;
} Spline;

#define T float
#define V v16
#define I i16
#define FN(name) name##_f
#include "spline.h"
#undef T
#undef V
#undef I
#undef FN
#define T double
#define V d16
#define I l16
#define FN(name) name##_d
#include "spline.h"
#undef T
#undef V
#undef I
#undef FN

static inline d16 widen(v16 v) { return __builtin_convertvector(v, d16); }
static inline v16 narrow(d16 v) { return __builtin_convertvector(v, v16); }

static inline void spline_lanes(
    const Spline *s, int generate, int precise, v16 value, const v16 *params, v16 *out, v16 *log_det) {
    if (!precise) {
        if (generate) spline_generate_f(s, value, params, out, log_det);
        else spline_normalize_f(s, value, params, out, log_det);
        return;
    }
    d16 wide[3 * MAX_BINS], mapped, log_mapped;
    for (int j = 0; j < 3 * s->bins - 1; j++) wide[j] = widen(params[j]);
    if (generate) spline_generate_d(s, widen(value), wide, &mapped, &log_mapped);
    else spline_normalize_d(s, widen(value), wide, &mapped, &log_mapped);
    *out = narrow(mapped);
    *log_det = narrow(log_mapped);
}

/* Read the parameters of VL neighbouring columns. */
static inline void gather(const float *params, long by_param, int size, int n, v16 *p) {
    for (int j = 0; j < size; j++) p[j] = load(params + j * by_param, 1, n);
}

/* value, out, log_det are (rows, columns), contiguous; params are (size, rows, columns) with strides (by_param, by_row, 1).
 * `generate` chooses the side; `precise` computes in double precision. */
void spline_map_f32(
    long rows, long columns, const float *value, const float *params, long by_param, long by_row, int bins, double bound,
    double min_bin, double max_log_bend, int generate, int precise, float *out, float *log_det, int threads) {
    const Spline s = {bins, bound, min_bin, max_log_bend};
    const int size = 3 * bins - 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c += VL) {
            int n = columns - c < VL ? (int)(columns - c) : VL;
            v16 p[3 * MAX_BINS], v = load(value + r * columns + c, 1, n), mapped, log_mapped;
            gather(params + r * by_row + c, by_param, size, n, p);
            spline_lanes(&s, generate, precise, v, p, &mapped, &log_mapped);
            store(out + r * columns + c, n, mapped);
            store(log_det + r * columns + c, n, log_mapped);
        }
}

/* Gradients of sum(gz z + gl log dz/dx) for z = g(x); gparams is (rows, size, columns), contiguous. */
void spline_backward_f32(
    long rows, long columns, const float *x, const float *params, long by_param, long by_row, int bins, double bound,
    double min_bin, double max_log_bend, const float *gz, const float *gl, float *gx, float *gparams, int threads) {
    const Spline s = {bins, bound, min_bin, max_log_bend};
    const int size = 3 * bins - 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c += VL) {
            int n = columns - c < VL ? (int)(columns - c) : VL;
            long at = r * columns + c;
            v16 p[3 * MAX_BINS], grads[3 * MAX_BINS], by_x;
            gather(params + r * by_row + c, by_param, size, n, p);
            spline_backward_f(&s, load(x + at, 1, n), p, load(gz + at, 1, n), load(gl + at, 1, n), &by_x, grads);
            store(gx + at, n, by_x);
            for (int j = 0; j < size; j++) store(gparams + (r * size + j) * columns + c, n, grads[j]);
        }
}

#include "network.h"

/* ---- the incremental walk ---------------------------------------------------------------------------------------- */

enum { SHIFT, SCALE, AFFINE, SPLINE };

typedef struct {
    int kind, bins;
    double bound, min_bin, max_log_bend;
} Map; /* a univariate map; a chain of them in the order of generation */

static inline void generate(const Map *maps, int count, v16 z, const v16 *params, v16 *x, v16 *log_det) {
    v16 total = splat(0), step;
    for (int m = 0; m < count; m++) {
        switch (maps[m].kind) {
        case SHIFT: z += params[0]; params += 1; break;
        case SCALE: z *= exp_f(params[0]); total += params[0]; params += 1; break;
        case AFFINE:
            step = (float)maps[m].bound * tanh_f(params[1] / (float)maps[m].bound);
            z = params[0] + z * exp_f(step);
            total += step;
            params += 2;
            break;
        default: {
            const Spline s = {maps[m].bins, maps[m].bound, maps[m].min_bin, maps[m].max_log_bend};
            spline_lanes(&s, 1, 1, z, params, &z, &step);
            total += step;
            params += 3 * s.bins - 1;
        }
        }
    }
    *x = z;
    *log_det = total;
}

/* x_i = f(z_i; net(x_<i)) for i = 0 .. elements - 1, one masked pass in total. z, x: (rows, elements); log_det: (rows).
 * The last layer's units are ordered element by element, `size` parameters each. `shared` (or NULL) is (rows, units of the
 * first layer), added to the first layer's sums. Elements are taken in blocks: what is complete contributes to a block by
 * large products. Units are met in the order of what they see, so no mask is needed. Returns 1 if memory ran out. */
int walk_f32(
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
        v16 *values = scratch(OWN, sizeof(v16) * WIDE * (size_t)(total + units));
        if (!values) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (long index = 0; index < chunks; index++) {
            if (!values) continue;
            const Chunk chunk = chunk_of(rows, chunks, index);
            const int n = chunk.vectors;
            v16 log_sum[WIDE] = {{0}};
            for (long first = 0; first < elements; first += block) {
                const long last = first + block < elements ? first + block : elements;
                v16 *source = values, *sums = values + n * total;
                long source_done = first;
                for (int l = 0; l <= last_layer; l++) {
                    const Layer *layer = layers + l;
                    const long start = first ? layer->ends[first - 1] : 0, stop = layer->ends[last - 1];
                    start_sums(net, l, start, (int)(stop - start), chunk, rows, shared, sums + start * n);
                    product(layer->weight + start * layer->columns, layer->columns, stop - start, 0, source_done, source,
                            n, sums + start * n);
                    if (l == last_layer && net->direct)
                        product(net->direct->weight + start * elements, elements, stop - start, 0, first, values, n,
                                sums + start * n);
                    source += n * layer->columns;
                    source_done = start;
                    sums += n * layer->units;
                }
                for (long k = first; k < last; k++) {
                    v16 *in = values, *own = values + n * total;
                    long known_from = first, known_to = k;
                    for (int l = 0; l <= last_layer; l++) {
                        const Layer *layer = layers + l;
                        const long block_start = first ? layer->ends[first - 1] : 0;
                        const long start = k ? layer->ends[k - 1] : 0, stop = layer->ends[k];
                        v16 *hidden = in + n * layer->columns;
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
                    const v16 *params = own + n * (k ? layers[last_layer].ends[k - 1] : 0);
                    for (int v = 0; v < n; v++) {
                        const int count = lanes(chunk, v, rows);
                        const long at = (chunk.start + v * VL) * elements + k;
                        v16 mine[3 * MAX_BINS + 8], out, log_out;
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
