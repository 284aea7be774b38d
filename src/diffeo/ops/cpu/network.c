/* The passes of feed-forward networks: forward, backward, and the incremental inversion of a masked one. */
#include "network.h"

#define DEPTH 1024 /* rows summed at a time where weights' gradients are */

long kept_floats(long rows, long features) { return tiles_of(features) * TILE * vectors_of(rows) * VL; }

/* ---- groups of chunks -------------------------------------------------------------------------------------------- */

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

static void load_panel(
    Chunk chunk, long rows, long features, const float *x, long by_feature, long by_row, vf *panel) {
    for (int v = 0; v < chunk.vectors; v++) {
        const int n = lanes(chunk, v, rows);
        const float *from = x + (chunk.start + v * VL) * by_row;
        for (long j = 0; j < features; j++) panel[j * chunk.vectors + v] = load(from + j * by_feature, by_row, n);
    }
}

/* What the network sees of features. */
static void see_panel(
    const Network *net, Chunk chunk, long rows, long features, const float *x, long by_feature, long by_row,
    vf *panel) {
    load_panel(chunk, rows, features, x, by_feature, by_row, panel);
    for (long j = 0; j < features * chunk.vectors; j++) panel[j] = soften(net->bound, panel[j]);
}

/* ---- maps of the outputs ----------------------------------------------------------------------------------------- */

static inline vf value_of(const Mapping *m, Chunk chunk, int v, long rows, long i) {
    return load(m->value + i * m->value_by_element + (chunk.start + v * VL) * m->value_by_row, m->value_by_row,
                lanes(chunk, v, rows));
}

static void map_chunk(const Mapping *m, Chunk chunk, long rows, const vf *outputs) {
    const int n = chunk.vectors, size = params_of(m->maps, m->count);
    for (int v = 0; v < n; v++) {
        const int count = lanes(chunk, v, rows);
        vf total = splat(0), params[MAX_PARAMS], out, log_det;
        for (long i = 0; i < m->elements; i++) {
            for (int p = 0; p < size; p++) params[p] = outputs[(i * m->by_element + p * m->by_param) * n + v];
            const vf value = value_of(m, chunk, v, rows, i);
            if (m->generate) generate(m->maps, m->count, value, params, &out, &log_det);
            else normalize(m->maps, m->count, m->precise, value, params, &out, &log_det);
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
        vf params[MAX_PARAMS], grads[MAX_PARAMS], by_value;
        for (long i = 0; i < m->elements; i++) {
            for (int p = 0; p < size; p++)
                params[p] = *kept(m->params, vectors, i * m->by_element + p * m->by_param, row / VL);
            normalize_backward(m->maps, m->count, value_of(m, chunk, v, rows, i), params,
                               load(grad + i * rows + row, 1, count), by_log, &by_value, grads);
            for (int p = 0; p < size; p++) by_params[(i * m->by_element + p * m->by_param) * n + v] = grads[p];
            if (m->by_value) store(m->by_value + i * rows + row, count, by_value);
        }
    }
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */

/* out (outputs, rows) = net(x), or where there is a mapping (else NULL), what that does with them. For the backward
 * pass, `values` receives the input of every layer, and after these the context where there is one, and `sums` (depth -
 * 1 arrays) what the activations get, kept_floats long; any of these may be NULL. x has strides (by_feature, by_row),
 * the context is (rows, contexts). Returns 1 if memory ran out. */
int network_f32(
    long rows, const Network *net, const float *context, const float *x, long by_feature, long by_row, float *out,
    float *const *values, float *const *sums, const Mapping *mapping, int threads) {
    const Forward f = {net, rows, vectors_of(rows), mapping, mapping ? NULL : out, values, sums};
    const long chunks = chunks_of(rows, threads), groups = groups_of(chunks, threads);
    const long inputs = net->layers[0].columns, contexts = contexts_of(net);
    long total = contexts + inputs;
    for (int l = 0; l < net->depth; l++) total += net->layers[l].units;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        vf *panels = workspace(sizeof(vf) * GROUP * WIDE * (size_t)total, &failed);
#pragma omp for schedule(dynamic)
        for (long index = 0; index < groups; index++) {
            if (!panels) continue;
            Chunk group[GROUP];
            vf *panel[GROUP];
            const int count = group_of(rows, chunks, groups, index, group);
            for (int c = 0; c < count; c++) {
                const int n = group[c].vectors;
                vf *const beside = panels + c * WIDE * total;
                panel[c] = beside + contexts * n;
                see_panel(net, group[c], rows, inputs, x, by_feature, by_row, panel[c]);
                if (contexts) see_panel(net, group[c], rows, contexts, context, 1, contexts, beside);
                if (!values) continue;
                keep(panel[c], inputs, n, values[0], f.vectors, 0, group[c].start / VL);
                if (contexts) keep(beside, contexts, n, values[net->depth], f.vectors, 0, group[c].start / VL);
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
        transposed + (tile * layer->units + from) * TILE, 1, TILE, layer->units - from, 1, 0,
        (const float *)(b + from * n), n * VL, (float *)sums, n * VL);
}

/* A task of the weights' gradients: by_weight[u, j] = sum over rows of g[row, u] x[row, j], for one panel of columns
 * and the units from .. to (from a multiple of TILE). `packed` holds DEPTH * WIDE vectors. */
static void weight_task(
    const Layer *layer, const float *g, const float *x, long vectors, Chunk panel, long from, long to, vf *packed,
    float *by_weight) {
    const long columns = layer->columns, column = panel.start;
    const int n = panel.vectors;
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
                (const float *)kept(g, vectors, u, start), VL, 1, VL, count, TILE * VL, (const float *)packed, n * VL,
                (float *)sums, n * VL);
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

/* A chunk's part of the biases' gradients, from those of `count` units' sums. */
static void add_biases(const vf *g, long count, int n, float *parts) {
    for (long u = 0; u < count; u++) {
        vf sum = g[u * n];
        for (int v = 1; v < n; v++) sum += g[u * n + v];
        parts[u] = across(sum);
    }
}

/* The weights' gradients are shared out by panels of columns, chunks of them as equal as can be, and by parts of the
 * units where panels are few. */
static inline long weight_panels(const Layer *layer) { return (layer->columns + WIDE * VL - 1) / (WIDE * VL); }
static inline long weight_parts(const Layer *layer, int threads) {
    return (2 * threads + weight_panels(layer) - 1) / weight_panels(layer);
}

typedef struct {
    const Network *net;
    long rows, vectors;
    float *const *values, *const *sums; /* what the forward pass kept */
    const float **transposed;           /* transposed weights of all sources */
    float **grads, **parts;             /* gradients of each layer's sums; of the biases, every chunk's part */
    const Mapping *mapping;
} Backward;

/* Where sums come from: the layers, then the direct connections and the context where there are any. */
static inline int sources_of(const Network *net) {
    return net->depth + (net->direct != NULL) + (net->context != NULL);
}
static inline const Layer *source_of(const Network *net, int s) {
    return s < net->depth ? net->layers + s : s == net->depth && net->direct ? net->direct : net->context;
}
/* Which sums a source is part of, and which of the kept values it reads. */
static inline int sums_of(const Network *net, int s) {
    return s < net->depth ? s : source_of(net, s) == net->direct ? net->depth - 1 : 0;
}
static inline int values_of(const Network *net, int s) {
    return s < net->depth ? s : source_of(net, s) == net->direct ? 0 : net->depth;
}

/* A chunk's gradients with respect to a layer's sums, to its input, and to its output where it is residual. */
typedef struct {
    vf *sums, *input, *output, *next;
} Panels;

/* The gradient of an input from that of what the network sees of it, added where there is a part already. */
static inline void add_to_inputs(
    const Backward *b, const float *seen, float *by, long input, Chunk chunk, int v, vf g, int add) {
    const int count = lanes(chunk, v, b->rows);
    float *goal = by + input * b->rows + chunk.start + v * VL;
    g *= input_slope(b->net->bound, *kept(seen, b->vectors, input, chunk.start / VL + v));
    if (add) g += load(goal, 1, count);
    store(goal, count, g);
}

/* A source's share of the gradient of what it reads, `by` (columns, rows), from that of its sums. */
static void add_source(
    const Backward *b, int s, const Chunk *group, int count, const Panels *p, float *by, int add) {
    const Layer *source = source_of(b->net, s);
    const float *seen = b->values[values_of(b->net, s)];
    for (long t = 0; t < tiles_of(source->columns); t++)
        for (int c = 0; c < count; c++) {
            const int n = group[c].vectors;
            vf sums[TILE * WIDE];
            for (int i = 0; i < TILE * n; i++) sums[i] = splat(0);
            transposed_product(source, t, b->transposed[s], p[c].sums, n, sums);
            for (int j = 0; j < TILE && t * TILE + j < source->columns; j++)
                for (int v = 0; v < n; v++) add_to_inputs(b, seen, by, t * TILE + j, group[c], v, sums[j * n + v], add);
        }
}

/* Begin a chunk: the gradient of the outputs is that of the last layer's sums. */
static void backward_start(const Backward *b, const float *grad, Chunk chunk, Panels p) {
    const int n = chunk.vectors, last = b->net->depth - 1;
    const long outputs = b->net->layers[last].units;
    if (b->mapping) map_chunk_backward(b->mapping, chunk, b->rows, b->vectors, grad, p.sums);
    else load_panel(chunk, b->rows, outputs, grad, b->rows, 1, p.sums);
    keep(p.sums, outputs, n, b->grads[last], b->vectors, 0, chunk.start / VL);
    add_biases(p.sums, outputs, n, b->parts[last] + chunk.index * outputs);
}

/* From the gradient of layer l's sums, l > 0, to that of a tile of its inputs, and of the sums of the layer before. */
static void backward_tile(const Backward *b, int l, long t, Chunk chunk, Panels p) {
    const Layer *layer = b->net->layers + l;
    const int n = chunk.vectors;
    const long column = t * TILE, vector = chunk.start / VL;
    const int width = layer->columns - column < TILE ? (int)(layer->columns - column) : TILE;
    vf sums[TILE * WIDE], at[TILE * WIDE];
    FETCH(b->sums[l - 1], b->vectors, column, vector, n, 0);
    FETCH(b->grads[l - 1], b->vectors, column, vector, n, 1);
    for (int i = 0; i < TILE * n; i++)
        sums[i] = layer->residual && i < width * n ? p.output[column * n + i] : splat(0);
    transposed_product(layer, t, b->transposed[l], p.sums, n, sums);
    vf *g = p.next + column * n;
    memcpy(p.input + column * n, sums, sizeof(vf) * width * n);
    memcpy(g, sums, sizeof(vf) * width * n);
    for (int j = 0; j < width; j++)
        for (int v = 0; v < n; v++) at[j * n + v] = *kept(b->sums[l - 1], b->vectors, column + j, vector + v);
    times_slope(b->net->activation, at, width * n, g);
    keep(g, width, n, b->grads[l - 1], b->vectors, column, vector);
    add_biases(g, width, n, b->parts[l - 1] + chunk.index * layer->columns + column);
}

/* Gradients of sum(grad out) for out of network_f32, from what that kept. grad has out's shape. by_x is (inputs,
 * rows) or NULL, by_context (contexts, rows) or NULL; by_weights are arrays of all sources', by_biases of the layers'.
 * Sums are taken in an order that does not depend on scheduling. Returns 1 if memory ran out. */
int network_backward_f32(
    long rows, const Network *net, float *const *values, float *const *sums, const float *grad, float *by_x,
    float *by_context, float *const *by_weights, float *const *by_biases, const Mapping *mapping, int threads) {
    const Layer *const layers = net->layers;
    const int depth = net->depth, last = depth - 1, lowest = by_x ? 0 : 1, sources = sources_of(net);
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
    const float **transposed = malloc(sizeof(float *) * (size_t)sources);
    float **grads = malloc(sizeof(float *) * (size_t)depth), **parts = malloc(sizeof(float *) * (size_t)depth);
    const Backward b = {net, rows, vectors, values, sums, transposed, grads, parts, mapping};
    int failed = !memory || !transposed || !grads || !parts;
    if (!failed) {
        float *next = memory;
        for (int l = 0; l < depth; l++) grads[l] = next, next += kept_floats(rows, layers[l].units);
        for (int s = 0; s < sources; s++)
            transposed[s] = next, next += tiles_of(source_of(net, s)->columns) * TILE * source_of(net, s)->units;
        for (int l = 0; l < depth; l++) parts[l] = next, next += layers[l].units * chunks;
#pragma omp parallel num_threads(threads)
        {
            const size_t panel = 4 * GROUP * WIDE * (size_t)widest, packed = DEPTH * WIDE;
            vf *panels = workspace(sizeof(vf) * (panel > packed ? panel : packed), &failed);
#pragma omp for schedule(static)
            for (long task = 0; task < tiles; task++) {
                long tile = task;
                int s = lowest;
                for (; tile >= tiles_of(source_of(net, s)->columns); s++) tile -= tiles_of(source_of(net, s)->columns);
                const Layer *layer = source_of(net, s);
                transpose_weight(layer, tile, (float *)transposed[s] + tile * layer->units * TILE);
            }
#pragma omp for schedule(dynamic)
            for (long index = 0; index < groups; index++) {
                if (!panels) continue;
                Chunk group[GROUP];
                Panels p[GROUP];
                const int count = group_of(rows, chunks, groups, index, group);
                for (int c = 0; c < count; c++) {
                    vf *first = panels + 4 * c * WIDE * widest;
                    p[c] = (Panels){first, first + WIDE * widest, first + 2 * WIDE * widest, first + 3 * WIDE * widest};
                    backward_start(&b, grad, group[c], p[c]);
                }
                /* the direct connections' share of the inputs' gradient; the rest is added when it is known */
                const int mapped_first = mapping && mapping->by_value == by_x;
                if (by_x && net->direct) add_source(&b, depth, group, count, p, by_x, mapped_first);
                for (int l = last; l > 0; l--) {
                    for (long t = 0; t < tiles_of(layers[l].columns); t++)
                        for (int c = 0; c < count; c++) backward_tile(&b, l, t, group[c], p[c]);
                    /* what was this layer's input is the output of the one before */
                    for (int c = 0; c < count; c++) p[c] = (Panels){p[c].next, p[c].output, p[c].input, p[c].sums};
                }
                if (by_x) add_source(&b, 0, group, count, p, by_x, mapped_first || net->direct);
                if (by_context) add_source(&b, sources - 1, group, count, p, by_context, 0);
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
                const Chunk panel = chunk_of(layer->columns, weight_panels(layer), rest / parts_here);
                const long from = layer->first[panel.start];
                const long count = layer->units - from;
                const long start = part ? (from + count * part / parts_here) / TILE * TILE : 0;
                const long stop =
                    part + 1 < parts_here ? (from + count * (part + 1) / parts_here) / TILE * TILE : layer->units;
                weight_task(layer, grads[sums_of(net, s)], values[values_of(net, s)], vectors, panel, start, stop,
                            panels, by_weights[s]);
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
    free(transposed), free(grads), free(parts);
    return failed;
}

/* ---- incremental inversion --------------------------------------------------------------------------------------- */

/* Elements are taken in blocks: what is complete contributes to a block by large products, the rest element by element.
 * Units are sorted by what they see, so no mask is needed. */
typedef struct {
    const Network *net;
    const vf *context;
    long rows, elements;
    Chunk chunk;
    vf *values, *sums; /* panels of the inputs and all hidden layers; of the sums of all layers */
} Inversion;

/* How many units of a layer do not depend on elements from `known` on. */
static inline long ends_of(const Layer *layer, long known) { return known ? layer->ends[known - 1] : 0; }

/* Begin the sums of all units that the elements first .. last complete: what the elements before contribute. */
static void begin_block(const Inversion *s, long first, long last) {
    const int n = s->chunk.vectors, output = s->net->depth - 1;
    const vf *in = s->values;
    vf *sums = s->sums;
    long known = first;
    for (int l = 0; l <= output; l++) {
        const Layer *layer = s->net->layers + l, *direct = s->net->direct;
        const long start = ends_of(layer, first), units = ends_of(layer, last) - start;
        vf *goal = sums + start * n;
        start_sums(s->net, l, start, units, s->context, n, goal);
        product(layer->weight + start * layer->columns, layer->columns, units, 0, known, in, n, goal);
        if (l == output && direct)
            product(direct->weight + start * s->elements, s->elements, units, 0, first, s->values, n, goal);
        in += n * layer->columns, sums += n * layer->units;
        known = start;
    }
}

/* The parameters of element k (parameters, vectors): its units' sums, completed by what the block has made so far. */
static const vf *element_params(const Inversion *s, long first, long k) {
    const int n = s->chunk.vectors, output = s->net->depth - 1;
    vf *in = s->values, *sums = s->sums;
    long from = first, to = k;
    for (int l = 0;; l++) {
        const Layer *layer = s->net->layers + l, *direct = s->net->direct;
        const long start = ends_of(layer, k), stop = ends_of(layer, k + 1);
        vf *goal = sums + start * n, *hidden = in + n * layer->columns;
        product(layer->weight + start * layer->columns, layer->columns, stop - start, from, to, in, n, goal);
        if (l == output) {
            if (direct)
                product(
                    direct->weight + start * s->elements, s->elements, stop - start, first, k, s->values, n, goal);
            return goal;
        }
        activate(s->net->activation, goal, (stop - start) * n, hidden + start * n);
        if (layer->residual)
            for (long u = start * n; u < stop * n; u++) hidden[u] += in[u];
        from = ends_of(layer, first), to = stop;
        in = hidden, sums += n * layer->units;
    }
}

/* x_i = f(z_i; net(x_<i)) for i = 0 .. elements - 1, one masked pass in total. z, x: (rows, elements); log_det: (rows).
 * The last layer's units are ordered element by element, `size` parameters each. The context is (rows, contexts);
 * `block` is how many elements a block has. Returns 1 if memory ran out. */
int invert_f32(
    long rows, long elements, long size, const Network *net, const float *context, const Map *maps, int map_count,
    const float *z, float *x, float *log_det, long block, int threads) {
    const long chunks = chunks_of(rows, threads), contexts = contexts_of(net);
    long total = elements + contexts, units = 0;
    for (int l = 0; l < net->depth; l++) {
        if (l < net->depth - 1) total += net->layers[l].units;
        units += net->layers[l].units;
    }
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        vf *memory = workspace(sizeof(vf) * WIDE * (size_t)(total + units), &failed);
#pragma omp for schedule(dynamic)
        for (long index = 0; index < chunks; index++) {
            if (!memory) continue;
            const Chunk chunk = chunk_of(rows, chunks, index);
            const int n = chunk.vectors;
            if (contexts) see_panel(net, chunk, rows, contexts, context, 1, contexts, memory);
            const Inversion s = {net, memory, rows, elements, chunk, memory + n * contexts, memory + n * total};
            vf log_sum[WIDE] = {{0}};
            for (long k = 0, first = 0; k < elements; k++) {
                if (k % block == 0) begin_block(&s, first = k, k + block < elements ? k + block : elements);
                const vf *outputs = element_params(&s, first, k);
                for (int v = 0; v < n; v++) {
                    const int count = lanes(chunk, v, rows);
                    const long at = (chunk.start + v * VL) * elements + k;
                    vf params[MAX_PARAMS], out, log_out;
                    for (long p = 0; p < size; p++) params[p] = outputs[p * n + v];
                    generate(maps, map_count, load(z + at, elements, count), params, &out, &log_out);
                    for (int i = 0; i < count; i++) x[at + i * elements] = out[i];
                    log_sum[v] += log_out;
                    s.values[k * n + v] = soften(net->bound, out);
                }
            }
            for (int v = 0; v < n; v++) store(log_det + chunk.start + v * VL, lanes(chunk, v, rows), log_sum[v]);
        }
    }
    return failed;
}
