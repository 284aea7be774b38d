/* Feed-forward networks, dense or masked, read forward and backward in one call each.
 *
 * Rows (the batch) are taken in chunks of up to WIDE vectors. Inside a chunk everything is feature-major, "panels" of
 * (features, vectors): one vector holds the same feature of many rows, and all layers of a chunk stay in the cache.
 * Units are sorted by what they see, so a mask is one number per unit, and the zeros above it are never multiplied.
 * What the backward pass needs is kept as (tiles of features, vectors, TILE, VL): read and written in few streams, for
 * every piece of memory far from the last one waits for its address translation and is not fetched ahead.
 */

#ifdef __AVX512F__
#define TILE 8 /* units computed together; TILE * WIDE accumulators must fit the registers */
#define WIDE 3
#else
#define TILE 6
#define WIDE 1
#endif
#define STAIRS 64
#define DEPTH 1024 /* rows summed at a time where weights' gradients are */

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
    const Layer *direct; /* added to the output layer, from the inputs; or NULL */
    int depth, activation;
    float bound; /* the network sees bound tanh(x / bound) */
} Network;

/* values[i] = act(sums[i]), and slopes[i] *= act'(sums[i]), for `count` vectors. */
#define EACH_VECTOR(formula)                                                                                           \
    for (long i = 0; i < count; i++) {                                                                                 \
        const v16 a = sums[i];                                                                                         \
        formula;                                                                                                       \
    }                                                                                                                  \
    break;
static inline void activate(int kind, const v16 *sums, long count, v16 *values) {
    switch (kind) {
    case RELU: EACH_VECTOR(values[i] = at_least_f(a, splat(0)))
    case SILU: EACH_VECTOR(values[i] = a / (1.0f + exp_f(-a)))
    case TANH: EACH_VECTOR(values[i] = tanh_f(a))
    default: EACH_VECTOR(values[i] = pick_f(a > 0, a, exp_f(at_most_f(a, splat(0))) - 1.0f))
    }
}

static inline void times_slope(int kind, const v16 *sums, long count, v16 *slopes) {
    switch (kind) {
    case RELU: EACH_VECTOR(slopes[i] *= pick_f(a > 0, splat(1), splat(0)))
    case SILU: EACH_VECTOR(const v16 s = 1.0f / (1.0f + exp_f(-a)); slopes[i] *= s * (1.0f + a * (1.0f - s)))
    case TANH: EACH_VECTOR(const v16 t = tanh_f(a); slopes[i] *= 1.0f - t * t)
    default: EACH_VECTOR(slopes[i] *= pick_f(a > 0, splat(1), exp_f(at_most_f(a, splat(0)))))
    }
}

static inline v16 soften(float bound, v16 x) { return bound * tanh_f(x / bound); }

/* ---- products: sums[u, v] += sum over k < count of a[u, k] b[k, v] ------------------------------------------------ */

/* a comes in segments of `count` columns each; the accumulators stay in registers over all of them. */

#define UNROLL _Pragma("GCC unroll 8")
#define PRODUCT(U, N)                                                                                                  \
    static void product_##U##_##N(                                                                                     \
        const float *restrict a, long by_unit, long by_column, long count, long segments, long by_segment,              \
        const v16 *restrict b, v16 *restrict sums) {                                                                   \
        v16 total[U][N];                                                                                               \
        UNROLL for (int u = 0; u < U; u++) UNROLL for (int v = 0; v < N; v++) total[u][v] = sums[u * N + v];           \
        for (; segments > 0; segments--, a += by_segment, b += count * N)                                              \
            for (long k = 0; k < count; k++) {                                                                         \
                v16 value[N];                                                                                          \
                UNROLL for (int v = 0; v < N; v++) value[v] = b[k * N + v];                                            \
                UNROLL for (int u = 0; u < U; u++) {                                                                   \
                    const v16 weight = splat(a[u * by_unit + k * by_column]);                                          \
                    UNROLL for (int v = 0; v < N; v++) total[u][v] += weight * value[v];                               \
                }                                                                                                      \
            }                                                                                                          \
        UNROLL for (int u = 0; u < U; u++) UNROLL for (int v = 0; v < N; v++) sums[u * N + v] = total[u][v];           \
    }
typedef void (*Product)(const float *, long, long, long, long, long, const v16 *, v16 *);
#if WIDE == 3
#define PRODUCTS(U) PRODUCT(U, 1) PRODUCT(U, 2) PRODUCT(U, 3)
#define NAMES(U) {product_##U##_1, product_##U##_2, product_##U##_3}
PRODUCTS(1) PRODUCTS(2) PRODUCTS(4) PRODUCTS(8)
static const Product PRODUCT_OF[TILE + 1][WIDE] = {[1] = NAMES(1), [2] = NAMES(2), [4] = NAMES(4), [8] = NAMES(8)};
#else
PRODUCT(1, 1) PRODUCT(2, 1) PRODUCT(4, 1) PRODUCT(6, 1)
static const Product PRODUCT_OF[TILE + 1][WIDE] = {
    [1] = {product_1_1}, [2] = {product_2_1}, [4] = {product_4_1}, [6] = {product_6_1}};
#endif

/* The largest tile that fits into what is left. */
static inline int tile_of(long left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* The same for any number of units, all of which see columns from .. to. */
static void product(const float *a, long by_unit, long units, long from, long to, const v16 *b, int n, v16 *sums) {
    if (from >= to) return;
    while (units > 0) {
        const int tile = tile_of(units);
        PRODUCT_OF[tile][n - 1](a + from, by_unit, 1, to - from, 1, 0, b + from * n, sums);
        a += tile * by_unit, sums += tile * n, units -= tile;
    }
}

/* The same for one tile of a masked layer: what all its units see, then the staircase at its edge, filled with zeros. */
static void masked_product(const Layer *layer, long unit, int tile, const v16 *b, int n, v16 *sums) {
    const float *a = layer->weight + unit * layer->columns;
    const long *seen = layer->seen + unit;
    const Product multiply = PRODUCT_OF[tile][n - 1];
    multiply(a, layer->columns, 1, seen[0], 1, 0, b, sums);
    float stairs[STAIRS * TILE];
    for (long k = seen[0]; k < seen[tile - 1]; k += STAIRS) {
        const long width = seen[tile - 1] - k < STAIRS ? seen[tile - 1] - k : STAIRS;
        for (int u = 0; u < tile; u++) {
            const long steps = seen[u] < k ? 0 : seen[u] - k < width ? seen[u] - k : width;
            memcpy(stairs + u * STAIRS, a + u * layer->columns + k, sizeof(float) * steps);
            memset(stairs + u * STAIRS + steps, 0, sizeof(float) * (width - steps));
        }
        multiply(stairs, STAIRS, 1, width, 1, 0, b + k * n, sums);
    }
}

/* ---- chunks of rows ---------------------------------------------------------------------------------------------- */

typedef struct {
    long start;  /* first row */
    int vectors; /* per feature */
} Chunk;

static long chunks_of(long rows, int threads) {
    const long vectors = (rows + VL - 1) / VL;
    long chunks = (vectors + WIDE - 1) / WIDE;
    chunks = (chunks + threads - 1) / threads * threads; /* as many for each */
    return chunks < vectors ? chunks : vectors;
}

static Chunk chunk_of(long rows, long chunks, long index) {
    const long vectors = (rows + VL - 1) / VL, start = vectors * index / chunks;
    return (Chunk){start * VL, (int)(vectors * (index + 1) / chunks - start)};
}

/* How many lanes of vector v of the chunk hold rows. */
static inline int lanes(Chunk chunk, int v, long rows) {
    const long left = rows - chunk.start - v * VL;
    return left < 0 ? 0 : left < VL ? (int)left : VL;
}

static void load_panel(
    Chunk chunk, long rows, long features, const float *x, long by_feature, long by_row, v16 *panel) {
    for (int v = 0; v < chunk.vectors; v++) {
        const int n = lanes(chunk, v, rows);
        const float *from = x + (chunk.start + v * VL) * by_row;
        for (long j = 0; j < features; j++) panel[j * chunk.vectors + v] = load(from + j * by_feature, by_row, n);
    }
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */

/* Start the sums of a tile: bias, and for the first layer the context's part, shared (rows, units). */
static void start_sums(
    const Network *net, int l, long unit, int tile, Chunk chunk, long rows, const float *shared, v16 *sums) {
    const Layer *layer = net->layers + l;
    for (int u = 0; u < tile; u++)
        for (int v = 0; v < chunk.vectors; v++) {
            sums[u * chunk.vectors + v] = splat(layer->bias[unit + u]);
            if (l == 0 && shared)
                sums[u * chunk.vectors + v] += load(
                    shared + (chunk.start + v * VL) * layer->units + unit + u, layer->units, lanes(chunk, v, rows));
        }
}

/* Where a feature's vector is kept, of `vectors` in all; and how much all of them need. */
static inline v16 *kept(const float *array, long vectors, long feature, long vector) {
    return (v16 *)array + (feature / TILE * vectors + vector) * TILE + feature % TILE;
}
static inline long vectors_of(long rows) { return (rows + VL - 1) / VL; }
static inline long tiles_of(long features) { return (features + TILE - 1) / TILE; }
static inline void keep(
    const v16 *from, int tile, int n, float *array, long vectors, long feature, long vector) {
    for (int u = 0; u < tile; u++)
        for (int v = 0; v < n; v++) *kept(array, vectors, feature + u, vector + v) = from[u * n + v];
}
/* Ask for a tile of it while its sums are still being computed. */
#define FETCH(array, vectors, feature, vector, n, write)                                                               \
    for (int i_ = 0; i_ < (n) * TILE; i_++) __builtin_prefetch(kept(array, vectors, feature, vector) + i_, write)
long kept_floats(long rows, long features) { return tiles_of(features) * TILE * vectors_of(rows) * VL; }

/* out (outputs, rows) = net(x). For the backward pass, `values` (depth arrays) receives the input of every layer and
 * `sums` (depth - 1 arrays) what the activations get, kept_floats long; any of these may be NULL.
 * x has strides (by_feature, by_row). Returns 1 if memory ran out. */
int network_f32(
    long rows, const Network *net, const float *shared, const float *x, long by_feature, long by_row, float *out,
    float *const *values, float *const *sums_kept, int threads) {
    const Layer *const layers = net->layers;
    const long vectors = vectors_of(rows), chunks = chunks_of(rows, threads), inputs = layers[0].columns;
    const int last = net->depth - 1;
    long total = inputs;
    for (int l = 0; l < last; l++) total += layers[l].units;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        v16 *panels = scratch(OWN, sizeof(v16) * WIDE * (size_t)total);
        if (!panels) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (long index = 0; index < chunks; index++) {
            if (!panels) continue;
            const Chunk chunk = chunk_of(rows, chunks, index);
            const int n = chunk.vectors;
            const long vector = chunk.start / VL;
            load_panel(chunk, rows, inputs, x, by_feature, by_row, panels);
            for (long j = 0; j < inputs * n; j++) panels[j] = soften(net->bound, panels[j]);
            if (values)
                for (long j = 0; j < inputs; j++)
                    for (int v = 0; v < n; v++) *kept(values[0], vectors, j, vector + v) = panels[j * n + v];
            v16 *in = panels;
            for (int l = 0; l <= last; l++) {
                const Layer *layer = layers + l;
                v16 *hidden = in + layer->columns * n;
                for (long unit = 0; unit < layer->units;) {
                    const int tile = tile_of(layer->units - unit);
                    v16 sums[TILE * WIDE];
                    if (values && l < last) FETCH(values[l + 1], vectors, unit, vector, n, 1);
                    start_sums(net, l, unit, tile, chunk, rows, shared, sums);
                    masked_product(layer, unit, tile, in, n, sums);
                    if (l == last && net->direct) masked_product(net->direct, unit, tile, panels, n, sums);
                    if (l == last) {
                        for (int u = 0; u < tile; u++)
                            for (int v = 0; v < n; v++)
                                store(out + (unit + u) * rows + chunk.start + v * VL, lanes(chunk, v, rows), sums[u * n + v]);
                    } else {
                        v16 *value = hidden + unit * n;
                        activate(net->activation, sums, tile * n, value);
                        if (layer->residual)
                            for (int i = 0; i < tile * n; i++) value[i] += in[unit * n + i];
                        if (values) keep(value, tile, n, values[l + 1], vectors, unit, vector);
                        if (sums_kept && sums_kept[l]) keep(sums, tile, n, sums_kept[l], vectors, unit, vector);
                    }
                    unit += tile;
                }
                in = hidden;
            }
        }
    }
    return failed;
}

/* ---- backward ---------------------------------------------------------------------------------------------------- */

/* Columns of a weight in tiles (units, TILE), masked: the transposed product then reads one stream. */
static void transpose_weight(const Layer *layer, long tile, float *to) {
    const long column = tile * TILE;
    const int width = layer->columns - column < TILE ? (int)(layer->columns - column) : TILE;
    const long all_see = width == TILE ? layer->first[column + TILE - 1] : layer->units;
    const float *from = layer->weight + column;
    for (long k = layer->first[column]; k < all_see; k++)
        for (int j = 0; j < TILE; j++)
            to[k * TILE + j] = j < width && k >= layer->first[column + j] ? from[k * layer->columns + j] : 0;
    for (long k = all_see; k < layer->units; k++) memcpy(to + k * TILE, from + k * layer->columns, sizeof(float) * TILE);
}

static void transposed_product(const Layer *layer, long tile, const float *transposed, const v16 *b, int n, v16 *sums) {
    const long from = layer->first[tile * TILE];
    PRODUCT_OF[TILE][n - 1](
        transposed + (tile * layer->units + from) * TILE, 1, TILE, layer->units - from, 1, 0, b + from * n, sums);
}

static inline float across(v16 a) { /* the sum of all lanes */
    a += SHUFFLE(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    a += SHUFFLE(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    return (a[0] + a[1]) + (a[2] + a[3]);
}

/* A task of the weights' gradients: by_weight[u, j] = sum over rows of g[row, u] x[row, j], for one panel of columns and
 * the units from .. to (from a multiple of TILE). `packed` holds DEPTH * WIDE vectors. */
static void weight_task(
    const Layer *layer, const float *g, const float *x, long vectors, long column, long from, long to, v16 *packed,
    float *by_weight) {
    const long columns = layer->columns;
    const int n = columns - column < WIDE * VL ? (int)vectors_of(columns - column) : WIDE;
    const int width = columns - column < n * VL ? (int)(columns - column) : n * VL;
    const long seeing = layer->first[column] / TILE * TILE > from ? layer->first[column] / TILE * TILE : from;
    for (long u = from; u < to && u < seeing; u++) memset(by_weight + u * columns + column, 0, sizeof(float) * width);
    if (seeing >= to) return;
    for (long start = 0; start < vectors; start += DEPTH / VL) {
        const long count = vectors - start < DEPTH / VL ? vectors - start : DEPTH / VL;
        for (long r = 0; r < count; r++)
            for (int v = 0; v < n; v++) {
                v16 block[VL];
                for (int j = 0; j < VL; j++)
                    block[j] = v * VL + j < width ? *kept(x, vectors, column + v * VL + j, start + r) : splat(0);
                transpose(block);
                for (int j = 0; j < VL; j++) packed[(r * VL + j) * n + v] = block[j];
            }
        for (long u = seeing; u < to;) {
            const int tile = tile_of(to - u);
            v16 sums[TILE * WIDE];
            for (int i = 0; i < tile; i++)
                for (int v = 0; v < n; v++)
                    sums[i * n + v] = start ? load(by_weight + (u + i) * columns + column + v * VL, 1,
                                                   width - v * VL < VL ? width - v * VL : VL)
                                            : splat(0);
            PRODUCT_OF[tile][n - 1](
                (const float *)kept(g, vectors, u, start), VL, 1, VL, count, TILE * VL, packed, sums);
            for (int i = 0; i < tile; i++, u++) {
                float *line = (float *)(sums + i * n), *goal = by_weight + u * columns + column;
                long end = layer->seen[u] - column < width ? layer->seen[u] - column : width;
                if (end < 0) end = 0;
                memcpy(goal, line, sizeof(float) * end);
                memset(goal + end, 0, sizeof(float) * (width - end));
            }
        }
    }
}

/* A chunk's part of the biases' gradients, and the gradient of what is shared, from those of `count` units' sums. */
static void finish_grads(
    const v16 *g, long unit, long count, Chunk chunk, long rows, float *parts, float *by_shared) {
    const int n = chunk.vectors;
    for (long u = 0; u < count; u++) {
        v16 sum = g[u * n];
        for (int v = 1; v < n; v++) sum += g[u * n + v];
        parts[unit + u] = across(sum);
        for (int v = 0; by_shared && v < n; v++)
            store(by_shared + (unit + u) * rows + chunk.start + v * VL, lanes(chunk, v, rows), g[u * n + v]);
    }
}

/* The weights' gradients are shared out by panels of columns, and by parts of the units where panels are few. */
static inline long weight_panels(const Layer *layer) { return (layer->columns + WIDE * VL - 1) / (WIDE * VL); }
static inline long weight_parts(const Layer *layer, int threads) {
    return (4 * threads + weight_panels(layer) - 1) / weight_panels(layer);
}

/* Gradients of sum(grad out) for out = net(x), given what network_f32 kept. grad is (outputs, rows). by_x is (inputs,
 * rows) or NULL; by_weights, by_biases are arrays of the layers'; by_direct goes with net->direct; by_shared is (units of the
 * first layer, rows). Sums are taken in an order that does not depend on scheduling.
 * Returns 1 if memory ran out. */
int network_backward_f32(
    long rows, const Network *net, float *const *values, float *const *sums_kept, const float *grad, float *by_x,
    float *const *by_weights, float *const *by_biases, float *by_direct, float *by_shared, int threads) {
    const Layer *const layers = net->layers, *const direct = net->direct;
    const int depth = net->depth, last = depth - 1, lowest = by_x ? 0 : 1;
    const long vectors = vectors_of(rows), chunks = chunks_of(rows, threads), inputs = layers[0].columns;
    /* shared by all threads: the transposed weights, every layer's gradient, every chunk's part of the biases' */
    size_t size = 0, units = 0;
    for (int l = 0; l < depth; l++) {
        size += (size_t)(tiles_of(layers[l].columns) * TILE * layers[l].units + kept_floats(rows, layers[l].units));
        units += (size_t)layers[l].units;
    }
    if (direct) size += (size_t)(tiles_of(direct->columns) * TILE * direct->units);
    float *memory = scratch(SHARED, sizeof(float) * (size + units * chunks + VL * (3 * (size_t)depth + 1)));
    const float **turned = malloc(sizeof(float *) * (size_t)(depth + 1));
    float **grads = malloc(sizeof(float *) * (size_t)depth), **parts = malloc(sizeof(float *) * (size_t)depth);
    int failed = !memory || !turned || !grads || !parts;
    long widest = inputs, tasks = 0, tiles = 0;
    if (!failed) {
        float *next = memory;
        for (int l = 0; l <= depth; l++) {
            const Layer *layer = l < depth ? layers + l : direct;
            if (!layer) break;
            turned[l] = next, next += tiles_of(layer->columns) * TILE * layer->units;
        }
        for (int l = 0; l < depth; l++) {
            next += (VL - (next - memory) % VL) % VL;
            grads[l] = next, next += kept_floats(rows, layers[l].units);
            parts[l] = next, next += layers[l].units * chunks;
            if (layers[l].units > widest) widest = layers[l].units;
        }
    }
    const int sources = depth + (direct != NULL);
    for (int l = 0; l < sources; l++) {
        const Layer *layer = l < depth ? layers + l : direct;
        tasks += weight_panels(layer) * weight_parts(layer, threads);
        if (l >= lowest) tiles += tiles_of(layer->columns);
    }
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
            size_t own = (size_t)WIDE * (size_t)widest * 4;
            if (own < DEPTH * WIDE) own = DEPTH * WIDE;
            v16 *panels = scratch(OWN, sizeof(v16) * own);
            if (!panels) {
#pragma omp atomic write
                failed = 1;
            }
#pragma omp for schedule(static)
            for (long t = 0; t < tiles; t++) {
                long tile = t;
                int l = lowest;
                while (tile >= tiles_of((l < depth ? layers + l : direct)->columns))
                    tile -= tiles_of((l < depth ? layers + l : direct)->columns), l++;
                const Layer *layer = l < depth ? layers + l : direct;
                transpose_weight(layer, tile, (float *)turned[l] + tile * layer->units * TILE);
            }
#pragma omp for schedule(dynamic)
            for (long index = 0; index < chunks; index++) {
                if (!panels) continue;
                const Chunk chunk = chunk_of(rows, chunks, index);
                const int n = chunk.vectors;
                const long vector = chunk.start / VL;
                /* gradients with respect to: a layer's sums, its input, and its output where it is residual */
                v16 *by_sums = panels, *by_input = panels + WIDE * widest, *by_output = panels + 2 * WIDE * widest,
                    *by_next = panels + 3 * WIDE * widest;
                load_panel(chunk, rows, layers[last].units, grad, rows, 1, by_sums);
                const long outputs = layers[last].units;
                for (long u = 0; u < outputs; u += TILE) {
                    const int width = outputs - u < TILE ? (int)(outputs - u) : TILE;
                    keep(by_sums + u * n, width, n, grads[last], vectors, u, vector);
                }
                finish_grads(by_sums, 0, outputs, chunk, rows, parts[last] + index * outputs, last ? NULL : by_shared);
                if (direct && by_x) { /* only the output layer's gradient matters: add it when the inputs' is complete */
                    for (long t = 0; t < tiles_of(inputs); t++) {
                        v16 sums[TILE * WIDE];
                        for (int i = 0; i < TILE * n; i++) sums[i] = splat(0);
                        transposed_product(direct, t, turned[depth], by_sums, n, sums);
                        for (int j = 0; j < TILE && t * TILE + j < inputs; j++)
                            for (int v = 0; v < n; v++) {
                                const long row = chunk.start + v * VL;
                                store(by_x + (t * TILE + j) * rows + row, lanes(chunk, v, rows), sums[j * n + v]);
                            }
                    }
                }
                for (int l = last; l >= lowest; l--) {
                    const Layer *layer = layers + l;
                    for (long t = 0; t < tiles_of(layer->columns); t++) {
                        const long column = t * TILE;
                        const int width = layer->columns - column < TILE ? (int)(layer->columns - column) : TILE;
                        v16 sums[TILE * WIDE];
                        if (l > 0) {
                            FETCH(sums_kept[l - 1], vectors, column, vector, n, 0);
                            FETCH(grads[l - 1], vectors, column, vector, n, 1);
                        }
                        for (int i = 0; i < TILE * n; i++)
                            sums[i] = layer->residual && i < width * n ? by_output[column * n + i] : splat(0);
                        transposed_product(layer, t, turned[l], by_sums, n, sums);
                        if (l == 0) {
                            for (int j = 0; j < width; j++)
                                for (int v = 0; v < n; v++) {
                                    const int count = lanes(chunk, v, rows);
                                    const v16 seen = *kept(values[0], vectors, column + j, vector + v) / net->bound;
                                    float *goal = by_x + (column + j) * rows + chunk.start + v * VL;
                                    v16 g = sums[j * n + v];
                                    if (direct) g += load(goal, 1, count);
                                    store(goal, count, g * (1.0f - seen * seen));
                                }
                            continue;
                        }
                        v16 *g = by_next + column * n, at[TILE * WIDE];
                        memcpy(by_input + column * n, sums, sizeof(v16) * width * n);
                        memcpy(g, sums, sizeof(v16) * width * n);
                        for (int j = 0; j < width; j++)
                            for (int v = 0; v < n; v++)
                                at[j * n + v] = *kept(sums_kept[l - 1], vectors, column + j, vector + v);
                        times_slope(net->activation, at, width * n, g);
                        keep(g, width, n, grads[l - 1], vectors, column, vector);
                        finish_grads(g, column, width, chunk, rows, parts[l - 1] + index * layer->columns,
                                     l == 1 ? by_shared : NULL);
                    }
                    if (l == 0) break;
                    /* what was this layer's input is the output of the one before */
                    v16 *free_panel = by_output;
                    by_output = by_input, by_input = free_panel;
                    free_panel = by_sums;
                    by_sums = by_next, by_next = free_panel;
                }
            }
#pragma omp for schedule(dynamic)
            for (long task = 0; task < tasks; task++) {
                if (!panels) continue;
                long rest = task;
                int l = 0;
                for (;; l++) {
                    const Layer *layer = l < depth ? layers + l : direct;
                    const long here = weight_panels(layer) * weight_parts(layer, threads);
                    if (rest < here) break;
                    rest -= here;
                }
                const Layer *layer = l < depth ? layers + l : direct;
                const long parts = weight_parts(layer, threads), part = rest % parts;
                const long column = rest / parts * WIDE * VL, from = layer->first[column], count = layer->units - from;
                const long start = part ? (from + count * part / parts) / TILE * TILE : 0;
                const long stop = part + 1 < parts ? (from + count * (part + 1) / parts) / TILE * TILE : layer->units;
                weight_task(layer, grads[l < depth ? l : last], values[l < depth ? l : 0], vectors, column, start, stop,
                            panels, l < depth ? by_weights[l] : by_direct);
            }
#pragma omp for schedule(static)
            for (int l = 0; l < depth; l++)
                for (long u = 0; u < layers[l].units; u++) {
                    float sum = 0;
                    for (long c = 0; c < chunks; c++) sum += parts[l][c * layers[l].units + u];
                    by_biases[l][u] = sum;
                }
        }
    }
    free(turned), free(grads), free(parts);
    return failed;
}
