/* WaveNet (nets/wavenet.py): the parallel pass, forward and backward, and the incremental inversion.
 *
 * In parallel, lanes are consecutive times of one row. A row is taken in blocks of BLOCK times through all layers, so
 * that what a layer makes is still in the cache when the next one reads it; a dilated convolution is a product with the
 * same rows read some times earlier. Values are (channels, times); before the first time there are zeros.
 */
#include "maps.h"
#include "product.h"

#define PANEL (WIDE * VL) /* times computed together */
#define BLOCK (PANEL * (768 / PANEL))

enum { FIRST, FIRST_BIAS, TAPS, GATE_BIAS, RESIDUAL, RESIDUAL_BIAS, SKIP, SKIP_BIAS, MID, MID_BIAS, LAST, LAST_BIAS };

typedef struct {
    const float *weights[12];
    const long *dilations; /* of each layer */
    long size, channels, depth, kernel, skip, hop, frames;
} WaveNet;

static inline long padded(long length) { return (length + PANEL - 1) / PANEL * PANEL; }

/* How far the layers reach back, in whole vectors: the zeros before the first time. */
static long reach_of(const WaveNet *net) {
    long most = 0;
    for (long l = 0; l < net->depth; l++)
        if ((net->kernel - 1) * net->dilations[l] > most) most = (net->kernel - 1) * net->dilations[l];
    return (most + VL - 1) / VL * VL;
}

/* Floats that the backward pass needs of one row: all layers' inputs, both factors of their units, and what both
 * rectifiers of the head let through. */
long wavenet_kept(long length, const WaveNet *net) {
    const long width = padded(length), inputs = net->depth * net->channels * (reach_of(net) + width);
    return inputs + (net->depth * 2 * net->channels + 2 * net->skip) * width;
}

/* sums[u, t] += sum over k < count of a[u, k] b[k, t], for whole panels of times. */
static void product(const float *a, long by_unit, long by_column, long units, long count, const float *b, long by_b,
                    float *sums, long by_sums, long times) {
    for (long t = 0; t < times; t += PANEL)
        for (long u = 0; u < units;) {
            const int tile = tile_of(units - u);
            PRODUCT_OF[tile][WIDE - 1](
                a + u * by_unit, by_unit, by_column, count, 1, 0, b + t, by_b, sums + u * by_sums + t, by_sums);
            u += tile;
        }
}

/* g[i, j] += sum over times of a[i, t] b[j, t]: a weight's gradient. */
#define OUTER(U, W)                                                                                                    \
    static void outer_##U##_##W(                                                                                       \
        const float *restrict a, long by_a, const float *restrict b, long by_b, long times, float *g, long by_row) {   \
        vf total[U][W] = {{{0}}};                                                                                      \
        for (long t = 0; t < times; t += VL) {                                                                         \
            vf other[W];                                                                                               \
            UNROLL for (int j = 0; j < W; j++) other[j] = load_once(b + j * by_b + t);                                 \
            UNROLL for (int i = 0; i < U; i++) {                                                                       \
                const vf value = load_once(a + i * by_a + t);                                                          \
                UNROLL for (int j = 0; j < W; j++) total[i][j] += value * other[j];                                    \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int i = 0; i < U; i++) UNROLL for (int j = 0; j < W; j++)                                          \
            g[i * by_row + j] += across(total[i][j]);                                                                  \
    }
#if OUTER_WIDE == 4
OUTER(4, 4)
#define OUTER_TILE outer_4_4
#else
OUTER(4, 2)
#define OUTER_TILE outer_4_2
#endif
OUTER(4, 1) OUTER(1, 1)

static void outer(const float *a, long by_a, long rows, const float *b, long by_b, long columns, long times, float *g,
                  long by_row) {
    for (long i = 0; i < rows;) {
        const int tall = rows - i >= 4;
        for (long j = 0; j < columns;) {
            const int wide = tall && columns - j >= OUTER_WIDE;
            (wide ? OUTER_TILE : tall ? outer_4_1 : outer_1_1)(
                a + i * by_a, by_a, b + j * by_b, by_b, times, g + i * by_row + j, by_row);
            j += wide ? OUTER_WIDE : 1;
        }
        i += tall ? 4 : 1;
    }
}

static void sum_rows(const float *a, long by_a, long rows, long times, float *g) {
    for (long i = 0; i < rows; i++) {
        vf total = {0};
        for (long t = 0; t < times; t += VL) total += *(const vf *)(a + i * by_a + t);
        g[i] += across(total);
    }
}

/* Set (rows, times) to one number per row, plus one per row and frame. */
static void start_sums(const float *bias, long rows, const float *shared, const WaveNet *net, long first, long times,
                  float *sums, long by_sums) {
    for (long i = 0; i < rows; i++)
        for (long t = 0; t < times; t += VL) {
            vf value = splat(bias[i]);
            if (shared) {
                const long last = net->frames - 1, from = (first + t) / net->hop, to = (first + t + VL - 1) / net->hop;
                const float *row = shared + i * net->frames;
                if (from == to) value += splat(row[from < last ? from : last]);
                else
                    for (int lane = 0; lane < VL; lane++) {
                        const long frame = (first + t + lane) / net->hop;
                        value[lane] += row[frame < last ? frame : last];
                    }
            }
            *(vf *)(sums + i * by_sums + t) = value;
        }
}

static void rectify(float *values, long by_row, long rows, long times) {
    for (long i = 0; i < rows; i++)
        for (long t = 0; t < times; t += VL) {
            vf *at = (vf *)(values + i * by_row + t);
            *at = at_least_f(*at, splat(0));
        }
}

/* x (rows, length), shared (rows, depth, 2 channels, frames) or NULL, out (rows, size, length); `kept` (or NULL)
 * receives what the backward pass needs, wavenet_kept floats per row. Without it, a row is cut where there are threads
 * to spare: a piece begins as far before its first output as outputs see, and what is wrong there, for lack of a past,
 * reaches none of its outputs. Returns 1 if memory ran out. */
int wavenet_f32(long rows, long length, const WaveNet *net, const float *shared, const float *x, float *out,
                float *kept, int threads) {
    const long C = net->channels, S = net->skip, depth = net->depth, size = net->size;
    long field = 1; /* an output sees the samples up to this far before its time */
    for (long l = 0; l < net->depth; l++) field += (net->kernel - 1) * net->dilations[l];
    long pieces = kept || rows >= threads ? 1 : threads / rows;
    const long most = length / (4 * field + BLOCK); /* or the repeated part would cost too much */
    if (pieces > most) pieces = most > 1 ? most : 1;
    const long piece = (padded(length) / PANEL + pieces - 1) / pieces * PANEL, lead = pieces > 1 ? padded(field) : 0;
    const long width = pieces > 1 ? lead + piece : padded(length), before = reach_of(net), by_h = before + width;
    const long by_value = kept ? width : BLOCK; /* without a backward pass, one block of one layer is enough */
    const long layers = kept ? depth : 1;
    const float *const *const w = net->weights;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const long need = kept ? 0 : depth * C * by_h + layers * 2 * C * by_value + 2 * S * by_value;
        float *const memory = workspace(sizeof(float) * (size_t)(need + (C + size) * BLOCK), &failed);
#pragma omp for schedule(dynamic)
        for (long index = 0; index < rows * pieces; index++) {
            if (!memory) continue;
            const long r = index / pieces, first_output = index % pieces * piece;
            const long origin = first_output > lead ? first_output - lead : 0; /* what the piece's times count from */
            const long end = first_output + piece < length && pieces > 1 ? first_output + piece : length;
            const long span = padded(end - origin);
            float *const units = memory, *const outputs = units + C * BLOCK;
            float *const inputs = kept ? kept + r * wavenet_kept(length, net) : outputs + size * BLOCK;
            float *const factors = inputs + depth * C * by_h;
            float *const skips = factors + layers * 2 * C * by_value, *const mids = skips + S * by_value;
            for (long i = 0; i < depth * C; i++) memset(inputs + i * by_h, 0, sizeof(float) * (size_t)before);
            for (long first = 0; first < span; first += BLOCK) {
                const long times = span - first < BLOCK ? span - first : BLOCK, at = kept ? first : 0;
                for (long i = 0; i < C; i++) {
                    float *const h = inputs + i * by_h + before + first;
                    const float slope = w[FIRST][i], bias = w[FIRST_BIAS][i];
                    for (long t = 0; t < times; t++) {
                        const long past = origin + first + t - 1;
                        h[t] = bias + (past >= 0 && past < length ? slope * x[r * length + past] : 0);
                    }
                }
                start_sums(w[SKIP_BIAS], S, NULL, net, 0, times, skips + at, by_value);
                for (long l = 0; l < depth; l++) {
                    const float *const h = inputs + l * C * by_h + before + first;
                    float *const gate = factors + (kept ? l : 0) * 2 * C * by_value + at;
                    const float *const added = shared ? shared + (r * depth + l) * 2 * C * net->frames : NULL;
                    start_sums(w[GATE_BIAS] + l * 2 * C, 2 * C, added, net, origin + first, times, gate, by_value);
                    for (long tap = 0; tap < net->kernel; tap++)
                        product(w[TAPS] + (l * net->kernel + tap) * 2 * C * C, C, 1, 2 * C, C,
                                 h - tap * net->dilations[l], by_h, gate, by_value, times);
                    for (long i = 0; i < C; i++)
                        for (long t = 0; t < times; t += VL) {
                            vf *const a = (vf *)(gate + i * by_value + t);
                            vf *const b = (vf *)(gate + (C + i) * by_value + t);
                            *a = tanh_f(*a);
                            *b = 1.0f / (1.0f + exp_f(-*b));
                            *(vf *)(units + i * BLOCK + t) = *a * *b;
                        }
                    product(w[SKIP] + l * C, depth * C, 1, S, C, units, BLOCK, skips + at, by_value, times);
                    if (l == depth - 1) break;
                    float *const next = inputs + (l + 1) * C * by_h + before + first;
                    for (long i = 0; i < C; i++)
                        for (long t = 0; t < times; t += VL)
                            *(vf *)(next + i * by_h + t) =
                                *(const vf *)(h + i * by_h + t) + w[RESIDUAL_BIAS][l * C + i];
                    product(w[RESIDUAL] + l * C * C, C, 1, C, C, units, BLOCK, next, by_h, times);
                }
                rectify(skips + at, by_value, S, times);
                start_sums(w[MID_BIAS], S, NULL, net, 0, times, mids + at, by_value);
                product(w[MID], S, 1, S, S, skips + at, by_value, mids + at, by_value, times);
                rectify(mids + at, by_value, S, times);
                start_sums(w[LAST_BIAS], size, NULL, net, 0, times, outputs, BLOCK);
                product(w[LAST], S, 1, size, S, mids + at, by_value, outputs, BLOCK, times);
                const long from = origin + first > first_output ? origin + first : first_output;
                const long to = origin + first + times < end ? origin + first + times : end;
                if (from >= to) continue;
                for (long i = 0; i < size; i++)
                    memcpy(out + (r * size + i) * length + from, outputs + i * BLOCK + from - origin - first,
                           sizeof(float) * (size_t)(to - from));
            }
        }
    }
    return failed;
}

/* Gradients from by_out (rows, size, length): of x (or NULL), of shared (or NULL), and of all weights (or NULL), one
 * after another in their order, (rows, total): summing over rows is left to the caller, in an order that no scheduling
 * changes. */
int wavenet_backward_f32(long rows, long length, const WaveNet *net, const float *x, const float *kept,
                         const float *by_out, float *by_x, float *by_shared, float *by_weights, int threads) {
    const long C = net->channels, S = net->skip, depth = net->depth, size = net->size, kernel = net->kernel;
    const long width = padded(length), before = reach_of(net), by_h = before + width;
    const long sizes[12] = {C, C, depth * kernel * 2 * C * C, depth * 2 * C, (depth - 1) * C * C, (depth - 1) * C,
                            S * depth * C, S, S * S, S, size * S, size};
    const float *const *const w = net->weights;
    long total = 0;
    for (int i = 0; i < 12; i++) total += sizes[i];
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const long need = depth * 2 * C * by_h + (3 * C + 2 * S + size) * BLOCK;
        float *const memory = workspace(sizeof(float) * (size_t)need, &failed);
#pragma omp for schedule(dynamic)
        for (long r = 0; r < rows; r++) {
            if (!memory) continue;
            /* the gradients of the gates, with zeros behind the last time; and one block of the rest */
            float *const by_gates = memory, *const by_next = by_gates + depth * 2 * C * by_h;
            float *const by_units = by_next + C * BLOCK, *const units = by_units + C * BLOCK;
            float *const by_skip = units + C * BLOCK, *const by_mid = by_skip + S * BLOCK;
            float *const outs = by_mid + S * BLOCK;
            const float *const inputs = kept + r * wavenet_kept(length, net);
            const float *const factors = inputs + depth * C * by_h;
            const float *const skips = factors + depth * 2 * C * width, *const mids = skips + S * width;
            float *g[12] = {NULL};
            if (by_weights) {
                float *next = by_weights + r * total;
                for (int i = 0; i < 12; next += sizes[i++]) g[i] = next;
                memset(g[0], 0, sizeof(float) * (size_t)total);
            }
            const long sharing = depth * 2 * C * net->frames;
            if (by_shared) memset(by_shared + r * sharing, 0, sizeof(float) * (size_t)sharing);
            for (long i = 0; i < depth * 2 * C; i++)
                memset(by_gates + i * by_h + width, 0, sizeof(float) * (size_t)before);
            for (long first = (width - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
                const long times = width - first < BLOCK ? width - first : BLOCK;
                const long valid = length - first < times ? length - first : times;
                memset(outs, 0, sizeof(float) * (size_t)(size * BLOCK));
                for (long i = 0; i < size; i++)
                    memcpy(outs + i * BLOCK, by_out + (r * size + i) * length + first, sizeof(float) * (size_t)valid);
                if (by_weights) {
                    outer(outs, BLOCK, size, mids + first, width, S, times, g[LAST], S);
                    sum_rows(outs, BLOCK, size, times, g[LAST_BIAS]);
                }
                memset(by_mid, 0, sizeof(float) * (size_t)(S * BLOCK));
                product(w[LAST], 1, S, S, size, outs, BLOCK, by_mid, BLOCK, times);
                for (long i = 0; i < S; i++)
                    for (long t = 0; t < times; t += VL) {
                        vf *const at = (vf *)(by_mid + i * BLOCK + t);
                        *at = pick_f(*(const vf *)(mids + i * width + first + t) > 0, *at, splat(0));
                    }
                if (by_weights) {
                    outer(by_mid, BLOCK, S, skips + first, width, S, times, g[MID], S);
                    sum_rows(by_mid, BLOCK, S, times, g[MID_BIAS]);
                }
                memset(by_skip, 0, sizeof(float) * (size_t)(S * BLOCK));
                product(w[MID], 1, S, S, S, by_mid, BLOCK, by_skip, BLOCK, times);
                for (long i = 0; i < S; i++)
                    for (long t = 0; t < times; t += VL) {
                        vf *const at = (vf *)(by_skip + i * BLOCK + t);
                        *at = pick_f(*(const vf *)(skips + i * width + first + t) > 0, *at, splat(0));
                    }
                if (by_weights) sum_rows(by_skip, BLOCK, S, times, g[SKIP_BIAS]);
                memset(by_next, 0, sizeof(float) * (size_t)(C * BLOCK));
                for (long l = depth - 1; l >= 0; l--) {
                    const float *const gate = factors + l * 2 * C * width + first;
                    const float *const h = inputs + l * C * by_h + before + first;
                    float *const by_gate = by_gates + l * 2 * C * by_h + first;
                    memset(by_units, 0, sizeof(float) * (size_t)(C * BLOCK));
                    product(w[SKIP] + l * C, 1, depth * C, C, S, by_skip, BLOCK, by_units, BLOCK, times);
                    if (l < depth - 1)
                        product(w[RESIDUAL] + l * C * C, 1, C, C, C, by_next, BLOCK, by_units, BLOCK, times);
                    for (long i = 0; i < C; i++)
                        for (long t = 0; t < times; t += VL) {
                            const vf a = *(const vf *)(gate + i * width + t);
                            const vf b = *(const vf *)(gate + (C + i) * width + t);
                            const vf by = *(const vf *)(by_units + i * BLOCK + t);
                            *(vf *)(units + i * BLOCK + t) = a * b;
                            *(vf *)(by_gate + i * by_h + t) = by * b * (1.0f - a * a);
                            *(vf *)(by_gate + (C + i) * by_h + t) = by * a * b * (1.0f - b);
                        }
                    if (by_weights) {
                        outer(by_skip, BLOCK, S, units, BLOCK, C, times, g[SKIP] + l * C, depth * C);
                        if (l < depth - 1) {
                            outer(by_next, BLOCK, C, units, BLOCK, C, times, g[RESIDUAL] + l * C * C, C);
                            sum_rows(by_next, BLOCK, C, times, g[RESIDUAL_BIAS] + l * C);
                        }
                        sum_rows(by_gate, by_h, 2 * C, times, g[GATE_BIAS] + l * 2 * C);
                    }
                    if (by_shared)
                        for (long i = 0; i < 2 * C; i++) {
                            float *const row = by_shared + ((r * depth + l) * 2 * C + i) * net->frames;
                            for (long t = 0; t < valid;) {
                                const long frame = (first + t) / net->hop, end = (frame + 1) * net->hop - first;
                                float sum = 0;
                                for (; t < valid && t < end; t++) sum += by_gate[i * by_h + t];
                                row[frame] += sum;
                            }
                        }
                    for (long tap = 0; tap < kernel; tap++) {
                        const long shift = tap * net->dilations[l], at = (l * kernel + tap) * 2 * C * C;
                        if (by_weights) outer(by_gate, by_h, 2 * C, h - shift, by_h, C, times, g[TAPS] + at, C);
                        product(w[TAPS] + at, 1, C, C, 2 * C, by_gate + shift, by_h, by_next, BLOCK, times);
                    }
                }
                if (by_weights) sum_rows(by_next, BLOCK, C, times, g[FIRST_BIAS]);
                for (long t = 0; t < times; t++) {
                    const long past = first + t - 1;
                    if (past < 0 || past >= length) continue;
                    float sum = 0;
                    for (long i = 0; i < C; i++) {
                        const float by = by_next[i * BLOCK + t];
                        sum += w[FIRST][i] * by;
                        if (by_weights) g[FIRST][i] += x[r * length + past] * by;
                    }
                    if (by_x && past < length) by_x[r * length + past] = sum;
                }
                /* no output depends on the last sample */
                if (by_x && first == (width - 1) / BLOCK * BLOCK) by_x[r * length + length - 1] = 0;
            }
        }
    }
    return failed;
}

/* ---- incremental inversion --------------------------------------------------------------------------------------- */

#define ROWS 4 /* that share a reading of the weights */

/* Lanes of a vector: here all widths are filled up to whole ones. */
long vector_lanes(void) { return VL; }

/* y[r, u] += sum over k < count of a[k, u] x[r, k] for R rows and N vectors of units: lanes are units. Sums over k run
 * in D strands, for one strand would wait for itself. */
#define MATVEC(R, N, D)                                                                                                \
    static void matvec_##R##_##N(                                                                                      \
        const float *restrict a, long units, long count, const float *restrict x, long by_x, float *restrict y,        \
        long by_y) {                                                                                                   \
        vf total[D][R][N] = {{{{0}}}};                                                                                 \
        for (long k = 0; k < count; k += D)                                                                            \
            UNROLL for (int d = 0; d < D; d++) {                                                                       \
                UNROLL for (int v = 0; v < N; v++) {                                                                   \
                    const vf weight = load_once(a + (k + d) * units + v * VL);                                         \
                    UNROLL for (int r = 0; r < R; r++) total[d][r][v] += weight * splat(x[r * by_x + k + d]);          \
                }                                                                                                      \
            }                                                                                                          \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < N; v++) {                                        \
            vf sum = total[0][r][v];                                                                                   \
            UNROLL for (int d = 1; d < D; d++) sum += total[d][r][v];                                                  \
            *(vf *)(y + r * by_y + v * VL) += sum;                                                                     \
        }                                                                                                              \
    }
MATVEC(1, 4, 2) MATVEC(1, 2, 4)
#if VL > 4
MATVEC(1, 1, 8)
#else
MATVEC(1, 1, 4) /* strands divide a vector */
#endif
#if MATVEC_WIDE == 4
MATVEC(4, 4, 1) MATVEC(4, 2, 2) MATVEC(4, 1, 4)
#else
MATVEC(4, 2, 1) MATVEC(4, 1, 2)
#define matvec_4_4 NULL
#endif

typedef void (*Matvec)(const float *, long, long, const float *, long, float *, long);
static const Matvec MATVEC_OF[2][5] = {{NULL, matvec_1_1, matvec_1_2, NULL, matvec_1_4},
                                       {NULL, matvec_4_1, matvec_4_2, NULL, matvec_4_4}};

/* The same for any number of units. Units and counts are whole vectors. */
static void matvec(
    int batch, const float *a, long units, long count, const float *x, long by_x, float *y, long by_y) {
    for (long u = 0; u < units;) {
        const long left = (units - u) / VL, most = batch > 1 ? MATVEC_WIDE : 4;
        const long vectors = left >= 4 && most == 4 ? 4 : left >= 2 ? 2 : 1;
        MATVEC_OF[batch > 1][vectors](a + u, units, count, x, by_x, y + u, by_y);
        u += vectors * VL;
    }
}

static void start_rows(int batch, const float *bias, long units, const float *more, float *y, long by_y) {
    for (int r = 0; r < batch; r++)
        for (long u = 0; u < units; u += VL)
            *(vf *)(y + r * by_y + u) = *(const vf *)(bias + u) + (more ? *(const vf *)(more + u) : splat(0));
}

/* x_t = f(z_t; net(x_<t)) for t = 0 .. length - 1. Here all widths are whole vectors, filled up with zeros, and weights
 * are transposed: taps (depth, kernel, channels, 2 channels), residual (depth - 1, channels, channels), skip (depth,
 * channels, skip), mid (skip, skip), last (skip, size); shared (rows, depth, frames, 2 channels) or NULL. z, x: (rows,
 * length); log_det: (rows). Each layer's past is a ring as long as its convolution reaches back. Returns 1 if memory
 * ran out. */
int wavenet_invert_f32(
    long rows, long length, const WaveNet *net, const float *shared, const Map *maps, int map_count, const float *z,
    float *x, float *log_det, int threads) {
    const long C = net->channels, S = net->skip, depth = net->depth, size = net->size, kernel = net->kernel;
    const float *const *const w = net->weights;
    const int count = params_of(maps, map_count);
    long past = 0;
    for (long l = 0; l < depth; l++) past += (kernel - 1) * net->dilations[l];
    const long full = rows / ROWS, groups = full + rows % ROWS; /* what is left over, row by row */
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const long need = ROWS * (past * C + 4 * C + 2 * S + size);
        float *const memory = workspace(sizeof(float) * (size_t)need, &failed);
#pragma omp for schedule(dynamic)
        for (long group = 0; group < groups; group++) {
            if (!memory) continue;
            const int batch = group < full ? ROWS : 1;
            const long first = group < full ? group * ROWS : full * ROWS + group - full;
            float *const h = memory, *const units = h + ROWS * C, *const gate = units + ROWS * C;
            float *const skips = gate + ROWS * 2 * C, *const mids = skips + ROWS * S;
            float *const params = mids + ROWS * S, *const rings = params + ROWS * size;
            memset(rings, 0, sizeof(float) * (size_t)(batch * past * C));
            float last[ROWS] = {0};
            vf log_sum = {0};
            for (long t = 0; t < length; t++) {
                for (int r = 0; r < batch; r++)
                    for (long u = 0; u < C; u += VL)
                        *(vf *)(h + r * C + u) =
                            *(const vf *)(w[FIRST_BIAS] + u) + *(const vf *)(w[FIRST] + u) * splat(last[r]);
                start_rows(batch, w[SKIP_BIAS], S, NULL, skips, S);
                float *ring = rings;
                for (long l = 0; l < depth; l++) {
                    const long dilation = net->dilations[l], span = (kernel - 1) * dilation;
                    for (int r = 0; r < batch; r++)
                        start_rows(1, w[GATE_BIAS] + l * 2 * C, 2 * C,
                             shared ? shared + (((first + r) * depth + l) * net->frames + t / net->hop) * 2 * C : NULL,
                             gate + r * 2 * C, 2 * C);
                    const float *const taps = w[TAPS] + l * kernel * 2 * C * C;
                    matvec(batch, taps, 2 * C, C, h, C, gate, 2 * C);
                    for (long tap = 1; tap < kernel; tap++) {
                        const long place = (t + span - tap * dilation) % span;
                        matvec(batch, taps + tap * 2 * C * C, 2 * C, C, ring + place * batch * C, C, gate, 2 * C);
                    }
                    memcpy(ring + t % span * batch * C, h, sizeof(float) * (size_t)(batch * C));
                    ring += span * batch * C;
                    for (int r = 0; r < batch; r++)
                        for (long u = 0; u < C; u += VL) {
                            const vf a = *(const vf *)(gate + r * 2 * C + u);
                            const vf b = *(const vf *)(gate + r * 2 * C + C + u);
                            *(vf *)(units + r * C + u) = tanh_f(a) / (1.0f + exp_f(-b));
                        }
                    matvec(batch, w[SKIP] + l * C * S, S, C, units, C, skips, S);
                    if (l == depth - 1) break;
                    for (int r = 0; r < batch; r++)
                        for (long u = 0; u < C; u += VL)
                            *(vf *)(h + r * C + u) += *(const vf *)(w[RESIDUAL_BIAS] + l * C + u);
                    matvec(batch, w[RESIDUAL] + l * C * C, C, C, units, C, h, C);
                }
                rectify(skips, S, batch, S);
                start_rows(batch, w[MID_BIAS], S, NULL, mids, S);
                matvec(batch, w[MID], S, S, skips, S, mids, S);
                rectify(mids, S, batch, S);
                start_rows(batch, w[LAST_BIAS], size, NULL, params, size);
                matvec(batch, w[LAST], size, S, mids, S, params, size);
                vf map_params[MAX_PARAMS], out, log_out;
                for (int p = 0; p < count; p++) map_params[p] = load(params + p, size, batch);
                generate(maps, map_count, load(z + first * length + t, length, batch), map_params, &out, &log_out);
                for (int r = 0; r < batch; r++) x[(first + r) * length + t] = last[r] = out[r];
                log_sum += log_out;
            }
            store(log_det + first, batch, log_sum);
        }
    }
    return failed;
}
