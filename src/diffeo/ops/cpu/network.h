/* Feed-forward networks, dense or masked, read forward and backward in one call each.
 *
 * Rows (the batch) are taken in chunks of up to WIDE vectors. Inside a chunk everything is feature-major, "panels" of
 * (features, vectors): one vector holds the same feature of many rows, and all layers of a chunk stay in the cache.
 * Units are sorted by what they see, so a mask is one number per unit, and the zeros above it are never multiplied.
 * What the backward pass needs is kept as (tiles of features, vectors, TILE, VL): read and written in few streams, for
 * every piece of memory far from the last one waits for its address translation and is not fetched ahead.
 */

#define GROUP 4 /* chunks that share a reading of the weights */
#define STAIRS 64 /* columns of a mask's edge that are filled with zeros at a time */
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
        const vf a = sums[i];                                                                                         \
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

/* ---- products: sums[u, v] += sum over k < count of a[u, k] b[k, v] ----------------------------------------------- */

/* a comes in segments of `count` columns each; the accumulators stay in registers over all of them. */

#define UNROLL _Pragma("GCC unroll 8")
#define PRODUCT(U, N)                                                                                                  \
    static void product_##U##_##N(                                                                                     \
        const float *restrict a, long by_unit, long by_column, long count, long segments, long by_segment,             \
        const vf *restrict b, vf *restrict sums) {                                                                   \
        vf total[U][N];                                                                                               \
        UNROLL for (int u = 0; u < U; u++) UNROLL for (int v = 0; v < N; v++) total[u][v] = sums[u * N + v];           \
        for (; segments > 0; segments--, a += by_segment, b += count * N)                                              \
            for (long k = 0; k < count; k++) {                                                                         \
                vf value[N];                                                                                          \
                UNROLL for (int v = 0; v < N; v++) value[v] = b[k * N + v];                                            \
                UNROLL for (int u = 0; u < U; u++) {                                                                   \
                    const vf weight = splat(a[u * by_unit + k * by_column]);                                          \
                    UNROLL for (int v = 0; v < N; v++) total[u][v] += weight * value[v];                               \
                }                                                                                                      \
            }                                                                                                          \
        UNROLL for (int u = 0; u < U; u++) UNROLL for (int v = 0; v < N; v++) sums[u * N + v] = total[u][v];           \
    }
typedef void (*Product)(const float *, long, long, long, long, long, const vf *, vf *);
#if WIDE == 3
#define PRODUCTS(U) PRODUCT(U, 1) PRODUCT(U, 2) PRODUCT(U, 3)
#define NAMES(U) {product_##U##_1, product_##U##_2, product_##U##_3}
#else
#define PRODUCTS(U) PRODUCT(U, 1) PRODUCT(U, 2)
#define NAMES(U) {product_##U##_1, product_##U##_2}
#endif
PRODUCTS(1) PRODUCTS(2) PRODUCTS(4)
#if TILE == 8
PRODUCTS(8)
#elif TILE == 6
PRODUCTS(6)
#endif
static const Product PRODUCT_OF[TILE + 1][WIDE] = {
    [1] = NAMES(1), [2] = NAMES(2), [4] = NAMES(4),
#if TILE == 8
    [8] = NAMES(8),
#elif TILE == 6
    [6] = NAMES(6),
#endif
};

/* The largest tile that fits into what is left. */
static inline int tile_of(long left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* The same for any number of units, all of which see columns from .. to. */
static void product(const float *a, long by_unit, long units, long from, long to, const vf *b, int n, vf *sums) {
    if (from >= to) return;
    while (units > 0) {
        const int tile = tile_of(units);
        PRODUCT_OF[tile][n - 1](a + from, by_unit, 1, to - from, 1, 0, b + from * n, sums);
        a += tile * by_unit, sums += tile * n, units -= tile;
    }
}

/* The same for one tile of a masked layer: what all its units see, then the staircase at its edge, filled with zeros.
 */
static void masked_product(const Layer *layer, long unit, int tile, const vf *b, int n, vf *sums) {
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
    long index, start; /* which chunk, and its first row */
    int vectors;       /* per feature */
} Chunk;

static inline long vectors_of(long rows) { return (rows + VL - 1) / VL; }

static long chunks_of(long rows, int threads) {
    const long vectors = vectors_of(rows);
    long chunks = (vectors + WIDE - 1) / WIDE;
    chunks = (chunks + threads - 1) / threads * threads; /* as many for each */
    return chunks < vectors ? chunks : vectors;
}

static Chunk chunk_of(long rows, long chunks, long index) {
    const long vectors = vectors_of(rows), start = vectors * index / chunks;
    return (Chunk){index, start * VL, (int)(vectors * (index + 1) / chunks - start)};
}

/* A thread takes chunks in groups: a tile's weights, once read, serve all chunks of a group. Returns how many. */
static long groups_of(long chunks, int threads) {
    const long groups = ((chunks + GROUP - 1) / GROUP + threads - 1) / threads * threads;
    return groups < chunks ? groups : chunks;
}

static int group_of(long rows, long chunks, long groups, long index, Chunk *group) {
    int count = 0;
    for (long c = chunks * index / groups; c < chunks * (index + 1) / groups; c++)
        group[count++] = chunk_of(rows, chunks, c);
    return count;
}

/* How many lanes of vector v of the chunk hold rows. */
static inline int lanes(Chunk chunk, int v, long rows) {
    const long left = rows - chunk.start - v * VL;
    return left < 0 ? 0 : left < VL ? (int)left : VL;
}

static void load_panel(
    Chunk chunk, long rows, long features, const float *x, long by_feature, long by_row, vf *panel) {
    for (int v = 0; v < chunk.vectors; v++) {
        const int n = lanes(chunk, v, rows);
        const float *from = x + (chunk.start + v * VL) * by_row;
        for (long j = 0; j < features; j++) panel[j * chunk.vectors + v] = load(from + j * by_feature, by_row, n);
    }
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */

/* Start the sums of a tile: bias, and for the first layer the context's part, shared (rows, units). */
static void start_sums(
    const Network *net, int l, long unit, int tile, Chunk chunk, long rows, const float *shared, vf *sums) {
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
static inline vf *kept(const float *array, long vectors, long feature, long vector) {
    return (vf *)array + (feature / TILE * vectors + vector) * TILE + feature % TILE;
}
static inline long tiles_of(long features) { return (features + TILE - 1) / TILE; }
static inline void keep(
    const vf *from, long count, int n, float *array, long vectors, long feature, long vector) {
    for (long u = 0; u < count; u++)
        for (int v = 0; v < n; v++) *kept(array, vectors, feature + u, vector + v) = from[u * n + v];
}
/* Ask for a tile of it while its sums are still being computed. */
#define FETCH(array, vectors, feature, vector, n, write)                                                               \
    for (int i_ = 0; i_ < (n) * TILE; i_++) __builtin_prefetch(kept(array, vectors, feature, vector) + i_, write)
long kept_floats(long rows, long features) { return tiles_of(features) * TILE * vectors_of(rows) * VL; }

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

static inline vf value_of(const Mapping *m, Chunk chunk, int v, long rows, long i) {
    return load(m->value + i * m->value_by_element + (chunk.start + v * VL) * m->value_by_row, m->value_by_row,
                lanes(chunk, v, rows));
}

static void map_chunk(const Mapping *m, Chunk chunk, long rows, const vf *params) {
    const int n = chunk.vectors, size = params_of(m->maps, m->count);
    for (int v = 0; v < n; v++) {
        const int count = lanes(chunk, v, rows);
        vf total = splat(0), own[MAX_PARAMS], out, log_det;
        for (long i = 0; i < m->elements; i++) {
            for (int p = 0; p < size; p++) own[p] = params[(i * m->by_element + p * m->by_param) * n + v];
            const vf value = value_of(m, chunk, v, rows, i);
            if (m->generate) generate(m->maps, m->count, value, own, &out, &log_det);
            else normalize(m->maps, m->count, m->precise, value, own, &out, &log_det, NULL);
            store(m->out + i * rows + chunk.start + v * VL, count, out);
            total += log_det;
        }
        store(m->log_det + chunk.start + v * VL, count, total);
    }
}

/* by_params: gradients of the outputs of the network, a panel. */
static void map_chunk_backward(
    const Mapping *m, Chunk chunk, long rows, long vectors, const float *grad, vf *by_params) {
    const int n = chunk.vectors, size = params_of(m->maps, m->count);
    for (int v = 0; v < n; v++) {
        const int count = lanes(chunk, v, rows);
        const long row = chunk.start + v * VL;
        const vf by_log = load(m->grad_log + row, 1, count);
        vf own[MAX_PARAMS], grads[MAX_PARAMS], by_value;
        for (long i = 0; i < m->elements; i++) {
            for (int p = 0; p < size; p++)
                own[p] = *kept(m->params, vectors, i * m->by_element + p * m->by_param, row / VL);
            normalize_backward(m->maps, m->count, value_of(m, chunk, v, rows, i), own,
                               load(grad + i * rows + row, 1, count), by_log, &by_value, grads);
            for (int p = 0; p < size; p++) by_params[(i * m->by_element + p * m->by_param) * n + v] = grads[p];
            if (m->by_value) store(m->by_value + i * rows + row, count, by_value);
        }
    }
}

typedef struct {
    const Network *net;
    long rows, vectors;
    const float *shared;
    const Mapping *mapping;
    float *out; /* NULL leaves the outputs in their panel */
    float *const *values, *const *sums;
} Forward;

/* One tile of layer l: `inputs` are the network's, `in` the layer's, and `hidden` receives its values. */
static void forward_tile(
    const Forward *f, int l, long unit, int tile, Chunk chunk, const vf *inputs, const vf *in, vf *hidden) {
    const Layer *layer = f->net->layers + l;
    const int n = chunk.vectors, last = f->net->depth - 1;
    const long vector = chunk.start / VL;
    vf sums[TILE * WIDE], *value = hidden + unit * n;
    if (f->values && l < last) FETCH(f->values[l + 1], f->vectors, unit, vector, n, 1);
    start_sums(f->net, l, unit, tile, chunk, f->rows, f->shared, sums);
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
static long forward_layers(const Forward *f, const Chunk *group, int count, vf *const *panel) {
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

/* out (outputs, rows) = net(x), or where there is a mapping (else NULL), what that does with them. For the backward
 * pass, `values` (depth arrays) receives the input of every layer and `sums` (depth - 1 arrays) what the activations
 * get, kept_floats long; any of these may be NULL. x has strides (by_feature, by_row). Returns 1 if memory ran out. */
int network_f32(
    long rows, const Network *net, const float *shared, const float *x, long by_feature, long by_row, float *out,
    float *const *values, float *const *sums, const Mapping *mapping, int threads) {
    const Forward f = {net, rows, vectors_of(rows), shared, mapping, mapping ? NULL : out, values, sums};
    const long chunks = chunks_of(rows, threads), groups = groups_of(chunks, threads), inputs = net->layers[0].columns;
    long total = inputs;
    for (int l = 0; l < net->depth; l++) total += net->layers[l].units;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        vf *panels = scratch(OWN, sizeof(vf) * GROUP * WIDE * (size_t)total);
        if (!panels) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (long index = 0; index < groups; index++) {
            if (!panels) continue;
            Chunk group[GROUP];
            vf *panel[GROUP];
            const int count = group_of(rows, chunks, groups, index, group);
            for (int c = 0; c < count; c++) {
                const int n = group[c].vectors;
                panel[c] = panels + c * WIDE * total;
                load_panel(group[c], rows, inputs, x, by_feature, by_row, panel[c]);
                for (long j = 0; j < inputs * n; j++) panel[c][j] = soften(net->bound, panel[c][j]);
                if (values) keep(panel[c], inputs, n, values[0], f.vectors, 0, group[c].start / VL);
            }
            const long done = forward_layers(&f, group, count, panel);
            for (int c = 0; mapping && c < count; c++)
                map_chunk(mapping, group[c], rows, panel[c] + done * group[c].vectors);
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
    for (long k = all_see; k < layer->units; k++)
        memcpy(to + k * TILE, from + k * layer->columns, sizeof(float) * TILE);
}

static void transposed_product(const Layer *layer, long tile, const float *transposed, const vf *b, int n, vf *sums) {
    const long from = layer->first[tile * TILE];
    PRODUCT_OF[TILE][n - 1](
        transposed + (tile * layer->units + from) * TILE, 1, TILE, layer->units - from, 1, 0, b + from * n, sums);
}

/* A task of the weights' gradients: by_weight[u, j] = sum over rows of g[row, u] x[row, j], for one panel of columns
 * and the units from .. to (from a multiple of TILE). `packed` holds DEPTH * WIDE vectors. */
static void weight_task(
    const Layer *layer, const float *g, const float *x, long vectors, long column, long from, long to, vf *packed,
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
                vf block[VL];
                for (int j = 0; j < VL; j++)
                    block[j] = v * VL + j < width ? *kept(x, vectors, column + v * VL + j, start + r) : splat(0);
                transpose(block);
                for (int j = 0; j < VL; j++) packed[(r * VL + j) * n + v] = block[j];
            }
        for (long u = seeing; u < to;) {
            const int tile = tile_of(to - u);
            vf sums[TILE * WIDE];
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
    const vf *g, long unit, long count, Chunk chunk, long rows, float *parts, float *by_shared) {
    const int n = chunk.vectors;
    for (long u = 0; u < count; u++) {
        vf sum = g[u * n];
        for (int v = 1; v < n; v++) sum += g[u * n + v];
        parts[unit + u] = across(sum);
        for (int v = 0; by_shared && v < n; v++)
            store(by_shared + (unit + u) * rows + chunk.start + v * VL, lanes(chunk, v, rows), g[u * n + v]);
    }
}

/* The weights' gradients are shared out by panels of columns, and by parts of the units where panels are few. */
static inline long weight_panels(const Layer *layer) { return (layer->columns + WIDE * VL - 1) / (WIDE * VL); }
static inline long weight_parts(const Layer *layer, int threads) {
    return (2 * threads + weight_panels(layer) - 1) / weight_panels(layer);
}

typedef struct {
    const Network *net;
    long rows, vectors;
    float *const *values, *const *sums; /* what the forward pass kept */
    const float **turned;               /* transposed weights of the layers, then of the direct connections */
    float **grads, **parts;             /* gradients of each layer's sums; of the biases, every chunk's part */
    const Mapping *mapping;
    float *by_x, *by_shared;
} Backward;

/* Whether the inputs' gradient holds a part already when the first layer's is added. */
static inline int begun(const Backward *b) {
    return b->net->direct || (b->mapping && b->mapping->by_value == b->by_x);
}

/* A chunk's gradients with respect to a layer's sums, to its input, and to its output where it is residual. */
typedef struct {
    vf *sums, *input, *output, *next;
} Panels;

/* The gradient of an input from that of what the network sees of it, added where there is a part already. */
static inline void add_to_inputs(const Backward *b, long input, Chunk chunk, int v, vf g, int add) {
    const int count = lanes(chunk, v, b->rows);
    const vf seen = *kept(b->values[0], b->vectors, input, chunk.start / VL + v) / b->net->bound;
    float *goal = b->by_x + input * b->rows + chunk.start + v * VL;
    g *= 1.0f - seen * seen;
    if (add) g += load(goal, 1, count);
    store(goal, count, g);
}

/* Begin a chunk: the gradient of the outputs is that of the last layer's sums. */
static void backward_start(const Backward *b, const float *grad, Chunk chunk, Panels p) {
    const int n = chunk.vectors, last = b->net->depth - 1;
    const long outputs = b->net->layers[last].units;
    if (b->mapping) map_chunk_backward(b->mapping, chunk, b->rows, b->vectors, grad, p.sums);
    else load_panel(chunk, b->rows, outputs, grad, b->rows, 1, p.sums);
    keep(p.sums, outputs, n, b->grads[last], b->vectors, 0, chunk.start / VL);
    finish_grads(
        p.sums, 0, outputs, chunk, b->rows, b->parts[last] + chunk.index * outputs, last ? NULL : b->by_shared);
    if (!b->net->direct || !b->by_x) return;
    /* the direct connections' share of the inputs' gradient; the rest is added when it is known */
    const Layer *direct = b->net->direct;
    for (long t = 0; t < tiles_of(direct->columns); t++) {
        vf sums[TILE * WIDE];
        for (int i = 0; i < TILE * n; i++) sums[i] = splat(0);
        transposed_product(direct, t, b->turned[b->net->depth], p.sums, n, sums);
        const int add = b->mapping && b->mapping->by_value == b->by_x;
        for (int j = 0; j < TILE && t * TILE + j < direct->columns; j++)
            for (int v = 0; v < n; v++) add_to_inputs(b, t * TILE + j, chunk, v, sums[j * n + v], add);
    }
}

/* From the gradient of layer l's sums to that of a tile of its inputs, and of the sums of the layer before. */
static void backward_tile(const Backward *b, int l, long t, Chunk chunk, Panels p) {
    const Layer *layer = b->net->layers + l;
    const int n = chunk.vectors;
    const long column = t * TILE, vector = chunk.start / VL;
    const int width = layer->columns - column < TILE ? (int)(layer->columns - column) : TILE;
    vf sums[TILE * WIDE], at[TILE * WIDE];
    if (l > 0) {
        FETCH(b->sums[l - 1], b->vectors, column, vector, n, 0);
        FETCH(b->grads[l - 1], b->vectors, column, vector, n, 1);
    }
    for (int i = 0; i < TILE * n; i++)
        sums[i] = layer->residual && i < width * n ? p.output[column * n + i] : splat(0);
    transposed_product(layer, t, b->turned[l], p.sums, n, sums);
    if (l == 0) {
        for (int j = 0; j < width; j++)
            for (int v = 0; v < n; v++) add_to_inputs(b, column + j, chunk, v, sums[j * n + v], begun(b));
        return;
    }
    vf *g = p.next + column * n;
    memcpy(p.input + column * n, sums, sizeof(vf) * width * n);
    memcpy(g, sums, sizeof(vf) * width * n);
    for (int j = 0; j < width; j++)
        for (int v = 0; v < n; v++) at[j * n + v] = *kept(b->sums[l - 1], b->vectors, column + j, vector + v);
    times_slope(b->net->activation, at, width * n, g);
    keep(g, width, n, b->grads[l - 1], b->vectors, column, vector);
    finish_grads(g, column, width, chunk, b->rows, b->parts[l - 1] + chunk.index * layer->columns,
                 l == 1 ? b->by_shared : NULL);
}

static inline const Layer *source_of(const Network *net, int s) {
    return s < net->depth ? net->layers + s : net->direct;
}

/* Gradients of sum(grad out) for out of network_f32, given what that kept. grad has out's shape. by_x is (inputs,
 * rows) or NULL; by_weights, by_biases are arrays of the layers'; by_direct goes with net->direct; by_shared is (units
 * of the first layer, rows). Sums are taken in an order that does not depend on scheduling. Returns 1 if memory ran
 * out. */
int network_backward_f32(
    long rows, const Network *net, float *const *values, float *const *sums, const float *grad, float *by_x,
    float *const *by_weights, float *const *by_biases, float *by_direct, float *by_shared, const Mapping *mapping,
    int threads) {
    const Layer *const layers = net->layers;
    const int depth = net->depth, last = depth - 1, lowest = by_x ? 0 : 1, sources = depth + (net->direct != NULL);
    const long vectors = vectors_of(rows), chunks = chunks_of(rows, threads), groups = groups_of(chunks, threads);
    /* how much memory: transposed weights, gradients, parts of the biases' gradients; how much work */
    size_t size = VL * (size_t)(depth + 1);
    long widest = layers[0].columns, tasks = 0, tiles = 0;
    for (int s = 0; s < sources; s++) {
        const Layer *layer = source_of(net, s);
        size += (size_t)(tiles_of(layer->columns) * TILE * layer->units + kept_floats(rows, layer->units) +
                         layer->units * chunks);
        tasks += weight_panels(layer) * weight_parts(layer, threads);
        if (s >= lowest) tiles += tiles_of(layer->columns);
        if (layer->units > widest) widest = layer->units;
    }
    float *memory = scratch(SHARED, sizeof(float) * size);
    const float **turned = malloc(sizeof(float *) * (size_t)sources);
    float **grads = malloc(sizeof(float *) * (size_t)depth), **parts = malloc(sizeof(float *) * (size_t)depth);
    const Backward b = {net, rows, vectors, values, sums, turned, grads, parts, mapping, by_x, by_shared};
    int failed = !memory || !turned || !grads || !parts;
    if (!failed) {
        float *next = memory;
        for (int l = 0; l < depth; l++) grads[l] = next, next += kept_floats(rows, layers[l].units);
        for (int s = 0; s < sources; s++)
            turned[s] = next, next += tiles_of(source_of(net, s)->columns) * TILE * source_of(net, s)->units;
        for (int l = 0; l < depth; l++) parts[l] = next, next += layers[l].units * chunks;
#pragma omp parallel num_threads(threads)
        {
            const size_t walk = 4 * GROUP * WIDE * (size_t)widest, packed = DEPTH * WIDE;
            vf *panels = scratch(OWN, sizeof(vf) * (walk > packed ? walk : packed));
            if (!panels) {
#pragma omp atomic write
                failed = 1;
            }
#pragma omp for schedule(static)
            for (long task = 0; task < tiles; task++) {
                long tile = task;
                int s = lowest;
                for (; tile >= tiles_of(source_of(net, s)->columns); s++) tile -= tiles_of(source_of(net, s)->columns);
                transpose_weight(source_of(net, s), tile, (float *)turned[s] + tile * source_of(net, s)->units * TILE);
            }
#pragma omp for schedule(dynamic)
            for (long index = 0; index < groups; index++) {
                if (!panels) continue;
                Chunk group[GROUP];
                Panels p[GROUP];
                const int count = group_of(rows, chunks, groups, index, group);
                for (int c = 0; c < count; c++) {
                    vf *own = panels + 4 * c * WIDE * widest;
                    p[c] = (Panels){own, own + WIDE * widest, own + 2 * WIDE * widest, own + 3 * WIDE * widest};
                    backward_start(&b, grad, group[c], p[c]);
                }
                for (int l = last; l >= lowest; l--) {
                    for (long t = 0; t < tiles_of(layers[l].columns); t++)
                        for (int c = 0; c < count; c++) backward_tile(&b, l, t, group[c], p[c]);
                    /* what was this layer's input is the output of the one before */
                    for (int c = 0; c < count; c++) p[c] = (Panels){p[c].next, p[c].output, p[c].input, p[c].sums};
                }
            }
#pragma omp for schedule(dynamic)
            for (long task = 0; task < tasks; task++) {
                if (!panels) continue;
                long rest = task;
                int s = 0;
                for (;; s++) {
                    const long here = weight_panels(source_of(net, s)) * weight_parts(source_of(net, s), threads);
                    if (rest < here) break;
                    rest -= here;
                }
                const Layer *layer = source_of(net, s);
                const long parts_here = weight_parts(layer, threads), part = rest % parts_here;
                const long column = rest / parts_here * WIDE * VL, from = layer->first[column];
                const long count = layer->units - from;
                const long start = part ? (from + count * part / parts_here) / TILE * TILE : 0;
                const long stop =
                    part + 1 < parts_here ? (from + count * (part + 1) / parts_here) / TILE * TILE : layer->units;
                weight_task(layer, grads[s < depth ? s : last], values[s < depth ? s : 0], vectors, column, start, stop,
                            panels, s < depth ? by_weights[s] : by_direct);
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
