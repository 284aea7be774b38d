/* The inner loops that no sequence of tensor operations does well: the incremental walk and the rational-quadratic
 * spline. float32, plain C with GCC's vector types (gcc and clang), no headers beyond the standard ones. Each function has
 * a plain PyTorch twin that it must equal (tests/test_kernels.py); native.py builds and loads this file.
 *
 * Rows are taken in chunks of ROWS, feature-major inside a chunk, so that one vector holds the same feature of many rows.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VL 16 /* lanes per vector: one AVX-512 register of floats, two of AVX2, four of NEON */
typedef float v16 __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef double d16 __attribute__((vector_size(8 * VL), aligned(8), may_alias));
typedef int64_t l16 __attribute__((vector_size(8 * VL), aligned(8), may_alias));

#ifdef __AVX512F__
#define ROWS 32
#else
#define ROWS 16
#endif
#define NV (ROWS / VL)
#define UNITS 4 /* units per step of the matrix product: UNITS * NV accumulators */
#define MAX_BINS 64

static inline v16 splat(float a) { return (v16){0} + a; }
static inline v16 pick_f(i16 mask, v16 yes, v16 no) { return (v16)(((i16)yes & mask) | ((i16)no & ~mask)); }
static inline d16 pick_d(l16 mask, d16 yes, d16 no) { return (d16)(((l16)yes & mask) | ((l16)no & ~mask)); }
/* NaN passes: a NaN in the first argument is returned. */
static inline v16 at_most_f(v16 a, v16 top) { return pick_f(a > top, top, a); }
static inline v16 at_least_f(v16 a, v16 least) { return pick_f(a < least, least, a); }
static inline d16 at_most_d(d16 a, d16 top) { return pick_d(a > top, top, a); }
static inline d16 at_least_d(d16 a, d16 least) { return pick_d(a < least, least, a); }

/* ---- elementary functions, branchless, in both precisions -------------------------------------------------------- */

static inline v16 exp_f(v16 x) { /* relative error 1e-7 on [-87, 88], saturating outside */
    x = at_least_f(at_most_f(x, splat(88.0f)), splat(-87.0f));
    v16 shifted = x * 1.44269504f + 12582912.0f; /* rounds to the nearest integer, in the low bits of the mantissa */
    v16 n = shifted - 12582912.0f;
    v16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    v16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (v16)(((i16)shifted - 0x4b400000 + 127) << 23);
}

static inline d16 exp_d(d16 x) { /* relative error 1e-15 on [-700, 700], saturating outside */
    x = at_least_d(at_most_d(x, (d16){0} + 700.0), (d16){0} - 700.0);
    d16 shifted = x * 1.4426950408889634 + 6755399441055744.0;
    d16 n = shifted - 6755399441055744.0;
    d16 r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6;
    d16 p = (d16){0} + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    return p * (d16)(((l16)shifted - 0x4338000000000000L + 1023) << 52);
}

static inline v16 log_f(v16 x) { /* relative error 1e-7 for normal positive x */
    i16 exponent = ((i16)x - 0x3f3504f3) >> 23;
    v16 m = (v16)((i16)x - (exponent << 23)) - 1.0f; /* the mantissa in [sqrt 1/2, sqrt 2), less one */
    v16 e = __builtin_convertvector(exponent, v16);
    v16 p = splat(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    v16 s = m * m;
    return m + (p * m * s + e * -2.12194440e-4f - 0.5f * s) + e * 0.693359375f;
}

static inline d16 log_d(d16 x) { /* 2 atanh((m - 1) / (m + 1)) + e log 2 for normal positive x = m 2^e */
    l16 exponent = ((l16)x - 0x3fe6a09e667f3bcdL) >> 52;
    d16 m = (d16)((l16)x - (exponent << 52));
    d16 t = (m - 1.0) / (m + 1.0), s = t * t;
    d16 p = (d16){0} + 1.0 / 21;
    for (int k = 19; k >= 1; k -= 2) p = p * s + 1.0 / k;
    return 2.0 * t * p + __builtin_convertvector(exponent, d16) * 0.6931471805599453;
}

static inline v16 tanh_f(v16 x) {
    v16 a = pick_f(x < 0, -x, x), s = x * x;
    v16 p = splat(-5.70498872745e-3f);
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    v16 large = 1.0f - 2.0f / (exp_f(2.0f * a) + 1.0f);
    return pick_f(a < 0.625f, p * s * x + x, pick_f(x < 0, -large, large));
}

static inline d16 tanh_d(d16 x) { return 1.0 - 2.0 / (exp_d(2.0 * x) + 1.0); }

static inline v16 sqrt_f(v16 x) {
    v16 y = x;
    for (int i = 0; i < VL; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}
static inline d16 sqrt_d(d16 x) {
    d16 y = x;
    for (int i = 0; i < VL; i++) y[i] = __builtin_sqrt(x[i]);
    return y;
}

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

/* Move up to VL floats, stepping by `stride`, between memory and lanes; missing lanes read as zero. */
static inline v16 load(const float *p, long stride, int count) {
    if (stride == 1 && count == VL) return *(const v16 *)p;
    v16 v = {0};
    for (int i = 0; i < count; i++) v[i] = p[i * stride];
    return v;
}
static inline void store(float *p, int count, v16 v) {
    if (count == VL) *(v16 *)p = v;
    else for (int i = 0; i < count; i++) p[i] = v[i];
}

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

/* ---- the incremental walk ---------------------------------------------------------------------------------------- */

enum { RELU, SILU, TANH, ELU };
enum { SHIFT, SCALE, AFFINE, SPLINE };

typedef struct {
    const float *weight; /* (units, columns of the layer before), masked, rows sorted by degree */
    const float *bias;   /* (units) */
    const long *ends;    /* how many units are computable once k = 0 .. elements inputs are known */
    long units, columns;
    int residual;
} Layer;

typedef struct {
    int kind, bins;
    double bound, min_bin, max_log_bend;
} Map; /* a univariate map; a chain of them in the order of generation */

static inline v16 activate(int kind, v16 a) {
    switch (kind) {
    case RELU: return at_least_f(a, splat(0));
    case SILU: return a / (1.0f + exp_f(-a));
    case TANH: return tanh_f(a);
    default: return pick_f(a > 0, a, exp_f(at_most_f(a, splat(0))) - 1.0f);
    }
}

/* sums[u] += weight[u, from:to] @ values[from:to] for `units` units; sums and values are (., ROWS). */
#define PRODUCT(COUNT)                                                                                                 \
    static void product##COUNT(                                                                                        \
        const float *restrict weight, long columns, long from, long to, const v16 *restrict values,                    \
        v16 *restrict sums) {                                                                                          \
        v16 total[COUNT][NV];                                                                                          \
        for (int u = 0; u < COUNT; u++)                                                                                \
            for (int v = 0; v < NV; v++) total[u][v] = sums[u * NV + v];                                               \
        for (long j = from; j < to; j++)                                                                               \
            for (int u = 0; u < COUNT; u++)                                                                            \
                for (int v = 0; v < NV; v++) total[u][v] += weight[u * columns + j] * values[j * NV + v];              \
        for (int u = 0; u < COUNT; u++)                                                                                \
            for (int v = 0; v < NV; v++) sums[u * NV + v] = total[u][v];                                               \
    }
PRODUCT(1)
PRODUCT(2)
PRODUCT(3)
PRODUCT(4)

static void product(
    const float *weight, long columns, long units, long from, long to, const v16 *values, v16 *sums) {
    if (from >= to) return;
    for (; units >= UNITS; units -= UNITS, weight += UNITS * columns, sums += UNITS * NV)
        product4(weight, columns, from, to, values, sums);
    if (units == 3) product3(weight, columns, from, to, values, sums);
    else if (units == 2) product2(weight, columns, from, to, values, sums);
    else if (units == 1) product1(weight, columns, from, to, values, sums);
}

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
 * The last layer's rows are ordered element by element, `size` parameters each. `direct` (or NULL) adds its product with
 * the inputs to the last layer. `shared` (or NULL) is (rows, units of the first layer), added to the first layer's sums.
 * Returns 1 if memory ran out. */
int walk_f32(
    long rows, long elements, long size, const Layer *layers, int depth, const float *direct, const float *shared,
    int activation, float input_bound, const Map *maps, int map_count, const float *z, float *x, float *log_det,
    long block, int threads) {
    long total = elements, widest = 0;
    for (int l = 0; l < depth; l++) {
        if (l < depth - 1) total += layers[l].units;
        if (layers[l].units > widest) widest = layers[l].units;
    }
    const long chunks = (rows + ROWS - 1) / ROWS;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        /* per thread: the values of the inputs and of all hidden layers, and the sums of all layers */
        long sums_total = 0;
        for (int l = 0; l < depth; l++) sums_total += layers[l].units;
        v16 *values = aligned_alloc(64, sizeof(v16) * NV * (size_t)(total + sums_total + size));
        if (!values) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (long chunk = 0; chunk < chunks; chunk++) {
            if (!values) continue;
            const long first_row = chunk * ROWS;
            const int count = rows - first_row < ROWS ? (int)(rows - first_row) : ROWS;
            v16 log_sum[NV];
            for (int v = 0; v < NV; v++) log_sum[v] = splat(0);
            for (long first = 0; first < elements; first += block) {
                const long last = first + block < elements ? first + block : elements;
                /* what is complete contributes to this whole block by large products */
                v16 *source = values, *sums = values + NV * total;
                long source_done = first;
                for (int l = 0; l < depth; l++) {
                    const Layer *layer = layers + l;
                    const long start = first ? layer->ends[first - 1] : 0, stop = layer->ends[last - 1];
                    for (long u = start; u < stop; u++)
                        for (int v = 0; v < NV; v++) sums[u * NV + v] = splat(layer->bias[u]);
                    if (l == 0 && shared)
                        for (long u = start; u < stop; u++)
                            for (int r = 0; r < count; r++)
                                ((float *)(sums + u * NV))[r] += shared[(first_row + r) * layer->units + u];
                    product(layer->weight + start * layer->columns, layer->columns, stop - start, 0, source_done,
                            source, sums + start * NV);
                    if (l == depth - 1 && direct)
                        product(direct + start * elements, elements, stop - start, 0, first, values, sums + start * NV);
                    source += NV * layer->columns;
                    source_done = start;
                    sums += NV * layer->units;
                }
                for (long k = first; k < last; k++) {
                    v16 *in = values, *own = values + NV * total;
                    long known_from = first, known_to = k;
                    for (int l = 0; l < depth; l++) {
                        const Layer *layer = layers + l;
                        const long block_start = first ? layer->ends[first - 1] : 0;
                        const long start = k ? layer->ends[k - 1] : 0, stop = layer->ends[k];
                        v16 *hidden = in + NV * layer->columns;
                        product(layer->weight + start * layer->columns, layer->columns, stop - start, known_from,
                                known_to, in, own + start * NV);
                        if (l == depth - 1 && direct)
                            product(direct + start * elements, elements, stop - start, first, k, values,
                                    own + start * NV);
                        if (l < depth - 1)
                            for (long u = start * NV; u < stop * NV; u++) {
                                v16 value = activate(activation, own[u]);
                                hidden[u] = layer->residual ? value + in[u] : value + splat(0);
                            }
                        known_from = block_start;
                        known_to = stop;
                        if (l < depth - 1) {
                            in = hidden;
                            own += NV * layer->units;
                        }
                    }
                    const v16 *params = own + NV * (k ? layers[depth - 1].ends[k - 1] : 0);
                    for (int v = 0; v < NV; v++) {
                        int n = count - v * VL < VL ? count - v * VL : VL;
                        if (n <= 0) continue;
                        v16 mine[3 * MAX_BINS + 8], out, log_out;
                        for (long p = 0; p < size; p++) mine[p] = params[p * NV + v];
                        v16 noise = load(z + (first_row + v * VL) * elements + k, elements, n);
                        generate(maps, map_count, noise, mine, &out, &log_out);
                        for (int i = 0; i < n; i++) x[(first_row + v * VL + i) * elements + k] = out[i];
                        log_sum[v] += log_out;
                        values[k * NV + v] = input_bound * tanh_f(out / input_bound);
                    }
                }
            }
            for (int r = 0; r < count; r++) log_det[first_row + r] = ((float *)log_sum)[r];
        }
        free(values);
    }
    return failed;
}
