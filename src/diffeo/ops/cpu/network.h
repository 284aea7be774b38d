/* Feed-forward networks, dense or masked: what is common to their passes (network.c) and to velocities (ode.c).
 *
 * Rows (the batch) are taken in chunks of up to WIDE vectors. Inside a chunk everything is feature-major, "panels" of
 * (features, vectors): one vector holds the same feature of many rows, and all layers of a chunk stay in the cache.
 * Units are sorted by what they see, so a mask is one number per unit, and the zeros above it are never multiplied.
 * What the backward pass needs is kept as (tiles of features, vectors, TILE, VL): read and written in few streams, for
 * every piece of memory far from the last one waits for its address translation and is not fetched ahead.
 */
#pragma once
#include "maps.h"
#include "product.h"

#define GROUP 4   /* chunks that share a reading of the weights */
#define STAIRS 64 /* columns of a mask's edge that are filled with zeros at a time */

enum { RELU, SILU, TANH, ELU };

typedef struct {
    const float *weight; /* (units, columns) */
    const float *bias;   /* (units) */
    const long *seen;    /* unit u sees the first seen[u] columns; ascending */
    const long *first;   /* column j is seen by the units from first[j] on; ascending */
    const long *ends;    /* how many units are computable once k = 0 .. elements inputs are known; NULL where unknown */
    long units, columns;
    int residual; /* whether the layer's input is added to its output */
} Layer;

typedef struct {
    const Layer *layers;
    const Layer *direct;  /* added to the output layer, from the inputs; or NULL */
    const Layer *context; /* added to the first layer, from what else is known of a row; or NULL */
    int depth, activation;
    float bound; /* the network sees bound tanh(x / bound), of the context as well */
} Network;

/* ---- activations ------------------------------------------------------------------------------------------------- */

/* values[i] = act(sums[i]), and slopes[i] *= act'(sums[i]), for `count` vectors. */
#define EACH_VECTOR(formula)                                                                                           \
    for (long i = 0; i < count; i++) {                                                                                 \
        const vf a = sums[i];                                                                                          \
        formula;                                                                                                       \
    }                                                                                                                  \
    break;
static inline void activate(int kind, const vf *sums, long count, vf *values) {
    switch (kind) {
    case RELU: EACH_VECTOR(values[i] = at_least_f(a, splat(0)))
    case SILU: EACH_VECTOR(values[i] = a / (1.0f + exp_f(-a)))
    case TANH: EACH_VECTOR(values[i] = tanh_f(a))
    default: EACH_VECTOR(values[i] = pick_f(a > 0, a, exp_f(at_most_f(a, splat(0))) - 1.0f))
    }
}

static inline void times_slope(int kind, const vf *sums, long count, vf *slopes) {
    switch (kind) {
    case RELU: EACH_VECTOR(slopes[i] *= pick_f(a > 0, splat(1), splat(0)))
    case SILU: EACH_VECTOR(const vf s = 1.0f / (1.0f + exp_f(-a)); slopes[i] *= s * (1.0f + a * (1.0f - s)))
    case TANH: EACH_VECTOR(const vf t = tanh_f(a); slopes[i] *= 1.0f - t * t)
    default: EACH_VECTOR(slopes[i] *= pick_f(a > 0, splat(1), exp_f(at_most_f(a, splat(0)))))
    }
}

static inline vf soften(float bound, vf x) { return bound * tanh_f(x / bound); }

/* The slope of what the network sees of an input, bound tanh(input / bound), from that. */
static inline vf input_slope(float bound, vf seen) {
    const vf t = seen / bound;
    return 1.0f - t * t;
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* sums += a b for a tile of units, whose weights are by_unit apart, and `count` features of a panel b. */
static inline void tile_product(int tile, int n, const float *a, long by_unit, long count, const vf *b, vf *sums) {
    PRODUCT_OF[tile][n - 1](a, by_unit, 1, count, 1, 0, (const float *)b, n * VL, (float *)sums, n * VL);
}

/* The same for any number of units, all of which see columns from .. to. */
static inline void product(
    const float *a, long by_unit, long units, long from, long to, const vf *b, int n, vf *sums) {
    if (from >= to) return;
    while (units > 0) {
        const int tile = tile_of(units);
        tile_product(tile, n, a + from, by_unit, to - from, b + from * n, sums);
        a += tile * by_unit, sums += tile * n, units -= tile;
    }
}

/* The same for one tile of a masked layer: what all its units see, then the staircase at its edge, filled with zeros.
 */
static inline void masked_product(const Layer *layer, long unit, int tile, const vf *b, int n, vf *sums) {
    const float *a = layer->weight + unit * layer->columns;
    const long *seen = layer->seen + unit;
    tile_product(tile, n, a, layer->columns, seen[0], b, sums);
    float stairs[STAIRS * TILE];
    for (long k = seen[0]; k < seen[tile - 1]; k += STAIRS) {
        const long width = seen[tile - 1] - k < STAIRS ? seen[tile - 1] - k : STAIRS;
        for (int u = 0; u < tile; u++) {
            const long steps = seen[u] < k ? 0 : seen[u] - k < width ? seen[u] - k : width;
            memcpy(stairs + u * STAIRS, a + u * layer->columns + k, sizeof(float) * steps);
            memset(stairs + u * STAIRS + steps, 0, sizeof(float) * (width - steps));
        }
        tile_product(tile, n, stairs, STAIRS, width, b + k * n, sums);
    }
}

/* ---- chunks of rows ---------------------------------------------------------------------------------------------- */

typedef struct {
    long index, start; /* which chunk, and its first row */
    int vectors;       /* per feature */
} Chunk;

static inline long vectors_of(long rows) { return (rows + VL - 1) / VL; }

static inline long chunks_of(long rows, int threads) {
    const long vectors = vectors_of(rows);
    long chunks = (vectors + WIDE - 1) / WIDE;
    chunks = (chunks + threads - 1) / threads * threads; /* as many for each */
    return chunks < vectors ? chunks : vectors;
}

static inline Chunk chunk_of(long rows, long chunks, long index) {
    const long vectors = vectors_of(rows), start = vectors * index / chunks;
    return (Chunk){index, start * VL, (int)(vectors * (index + 1) / chunks - start)};
}

/* How many lanes of vector v of the chunk hold rows. */
static inline int lanes(Chunk chunk, int v, long rows) {
    const long left = rows - chunk.start - v * VL;
    return left < 0 ? 0 : left < VL ? (int)left : VL;
}

/* ---- what is kept for a backward pass ---------------------------------------------------------------------------- */

/* Where a feature's vector is kept, of `vectors` in all; and how much all of them need. */
static inline vf *kept(const float *array, long vectors, long feature, long vector) {
    return (vf *)array + (feature / TILE * vectors + vector) * TILE + feature % TILE;
}
static inline long tiles_of(long features) { return (features + TILE - 1) / TILE; }
static inline void keep(
    const vf *from, long count, int n, float *array, long vectors, long feature, long vector) {
    for (long u = 0; u < count; u++)
        for (int v = 0; v < n; v++) *kept(array, vectors, feature + u, vector + v) = from[u * n + v];
}
long kept_floats(long rows, long features);

/* ---- forward ----------------------------------------------------------------------------------------------------- */

static inline long contexts_of(const Network *net) { return net->context ? net->context->columns : 0; }

/* Start the sums of units of layer l: bias, and for the first layer the context's part. */
static inline void start_sums(const Network *net, int l, long unit, long units, const vf *context, int n, vf *sums) {
    const float *bias = net->layers[l].bias + unit; /* read once: for the compiler, sums may lie anywhere */
    for (long u = 0; u < units; u++) {
        const vf begin = splat(bias[u]);
        for (int v = 0; v < n; v++) sums[u * n + v] = begin;
    }
    if (l == 0 && net->context) {
        const long columns = net->context->columns;
        product(net->context->weight + unit * columns, columns, units, 0, columns, context, n, sums);
    }
}

/* What to do with a network's outputs: they are the parameters of univariate maps of `value`. */
typedef struct {
    const Map *maps;
    int count, generate, precise;
    long elements, by_element, by_param; /* parameter p of element i is output i * by_element + p * by_param */
    const float *value;                  /* (elements, rows), in any layout */
    long value_by_element, value_by_row;
    float *out, *log_det;   /* (elements, rows) and (rows) */
    float *params;          /* kept for the backward pass, or NULL */
    const float *grad_log;  /* backward: of log_det; that of out is the network's `grad` */
    float *by_value;        /* backward: (elements, rows), or NULL; may be the gradient of the network's inputs */
} Mapping;

/* Ask for a tile of it while its sums are still being computed. */
#define FETCH(array, vectors, feature, vector, n, write)                                                               \
    for (int i_ = 0; i_ < (n) * TILE; i_++) __builtin_prefetch(kept(array, vectors, feature, vector) + i_, write)

typedef struct {
    const Network *net;
    long rows, vectors;
    const Mapping *mapping;
    float *out; /* NULL leaves the outputs in their panel */
    float *const *values, *const *sums;
} Forward;

/* One tile of layer l: `inputs` are the network's, before which the context lies, `in` the layer's, and `hidden`
 * receives its values. */
static inline void forward_tile(
    const Forward *f, int l, long unit, int tile, Chunk chunk, const vf *inputs, const vf *in, vf *hidden) {
    const Layer *layer = f->net->layers + l;
    const int n = chunk.vectors, last = f->net->depth - 1;
    const long vector = chunk.start / VL;
    vf sums[TILE * WIDE], *value = hidden + unit * n;
    if (f->values && l < last) FETCH(f->values[l + 1], f->vectors, unit, vector, n, 1);
    start_sums(f->net, l, unit, tile, inputs - contexts_of(f->net) * n, n, sums);
    masked_product(layer, unit, tile, in, n, sums);
    if (l == last) {
        if (f->net->direct) masked_product(f->net->direct, unit, tile, inputs, n, sums);
        if (!f->out) {
            memcpy(value, sums, sizeof(vf) * tile * n);
            if (f->mapping && f->mapping->params) keep(sums, tile, n, f->mapping->params, f->vectors, unit, vector);
            return;
        }
        for (int u = 0; u < tile; u++)
            for (int v = 0; v < n; v++)
                store(f->out + (unit + u) * f->rows + chunk.start + v * VL, lanes(chunk, v, f->rows), sums[u * n + v]);
        return;
    }
    activate(f->net->activation, sums, tile * n, value);
    if (layer->residual)
        for (int i = 0; i < tile * n; i++) value[i] += in[unit * n + i];
    if (f->values) keep(value, tile, n, f->values[l + 1], f->vectors, unit, vector);
    if (f->sums && f->sums[l]) keep(sums, tile, n, f->sums[l], f->vectors, unit, vector);
}

/* All layers for a group of chunks, from the inputs at the beginning of their panels; returns the features before the
 * outputs. */
static inline long forward_layers(const Forward *f, const Chunk *group, int count, vf *const *panel) {
    long done = 0;
    for (int l = 0; l < f->net->depth; l++) {
        const Layer *layer = f->net->layers + l;
        for (long unit = 0; unit < layer->units;) {
            const int tile = tile_of(layer->units - unit);
            for (int c = 0; c < count; c++) {
                vf *in = panel[c] + done * group[c].vectors;
                forward_tile(f, l, unit, tile, group[c], panel[c], in, in + layer->columns * group[c].vectors);
            }
            unit += tile;
        }
        done += layer->columns;
    }
    return done;
}
