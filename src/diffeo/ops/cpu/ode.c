/* Continuous flows: dy/dt = v(y, t) for independent rows, solved from one time to another in one call.
 *
 * v is the velocity of a Gaussian, in closed form, and a network's correction to it. Lanes are rows, each with a time
 * and a step. A lane whose row is done takes the next row of a queue that all threads share; when the queue
 * is empty, the rows under way move together. What becomes of a row does not depend on the lane, so neither on
 * scheduling.
 */
#include <limits.h>

#include "network.h"

enum { LINEAR, COSINE, VARIANCE_PRESERVING };

#define LANES (WIDE * VL)
#define AT(j, v) ((j) * WIDE + (v)) /* a vector of a state, whose panels are (elements, WIDE) */

typedef struct {
    const Network *net;   /* of (x - mean_t) / std_t, the time's embedding and the context, side by side */
    const float *data_mean, *noise_mean, *data_std, *noise_std; /* (size) */
    const float *context; /* (rows, context_size) */
    long size, context_size, frequencies;
    int path;
    double low, high; /* the noise's rate at the data and at the noise, of VARIANCE_PRESERVING */
    double bound;     /* the correction is std_t bound tanh(output / bound), or std_t output where infinite */
} Field;

/* An explicit Runge-Kutta method whose last stage is at the new state; coefficients are (stages, stages), and `error`
 * weighs the stages in the estimated error. */
typedef struct {
    long stages;
    const float *times, *coefficients, *error;
} Tableau;

/* ---- the velocity ------------------------------------------------------------------------------------------------ */

/* sin(pi u) and cos(pi u) for |u| < 2^22. */
static inline void sin_cos_pi(vf u, vf *sine, vf *cosine) {
    const vf shifted = u + 12582912.0f; /* rounds to the nearest integer, in the low bits of the mantissa */
    const vf x = (u - (shifted - 12582912.0f)) * 3.14159265f, s = x * x;
    vf p = splat(1.0f / 6227020800), q = splat(1.0f / 479001600);
    p = p * s - 1.0f / 39916800, q = q * s - 1.0f / 3628800;
    p = p * s + 1.0f / 362880, q = q * s + 1.0f / 40320;
    p = p * s - 1.0f / 5040, q = q * s - 1.0f / 720;
    p = p * s + 1.0f / 120, q = q * s + 1.0f / 24;
    p = p * s - 1.0f / 6, q = q * s - 0.5f;
    const vi odd = (vi)shifted << 31; /* half turns change the sign */
    *sine = (vf)((vi)(p * s * x + x) ^ odd);
    *cosine = (vf)((vi)(q * s + 1.0f) ^ odd);
}

/* x_t = data x_1 + noise x_0, and its derivatives. */
typedef struct {
    vf data, noise, data_rate, noise_rate;
} Point;

static inline Point point_at(const Field *f, vf t) {
    if (f->path == LINEAR) return (Point){t, 1.0f - t, splat(1), splat(-1)};
    if (f->path == COSINE) {
        const float half = 1.57079633f;
        vf sine, cosine;
        sin_cos_pi(0.5f * t, &sine, &cosine);
        return (Point){sine, cosine, half * cosine, -half * sine};
    }
    vd data[2], noise[2], data_rate[2], noise_rate[2];
    for (int i = 0; i < 2; i++) {
        const vd left = 1.0 - widen(t, i), rate = f->low + left * (f->high - f->low);
        const vd total = left * f->low + 0.5 * left * left * (f->high - f->low);
        const vd variance = 1.0 - exp_d(-total);
        data[i] = exp_d(-0.5 * total);
        noise[i] = at_least_d(sqrt_d(at_least_d(variance, (vd){0})), (vd){0} + 1e-6);
        data_rate[i] = 0.5 * rate * data[i];
        noise_rate[i] = -0.5 * rate * data[i] * data[i] / noise[i];
    }
    return (Point){narrow(data), narrow(noise), narrow(data_rate), narrow(noise_rate)};
}

/* Element j of Gaussian noise and data, x_t ~ N(mean, variance), whose velocity is rate + slope (x - mean). */
typedef struct {
    vf mean, rate, variance, slope;
} Gaussian;

static inline Gaussian gaussian_at(const Field *f, Point p, long j) {
    const float m1 = f->data_mean[j], m0 = f->noise_mean[j];
    const float v1 = f->data_std[j] * f->data_std[j], v0 = f->noise_std[j] * f->noise_std[j];
    const vf variance = p.data * p.data * v1 + p.noise * p.noise * v0;
    return (Gaussian){p.data * m1 + p.noise * m0, p.data_rate * m1 + p.noise_rate * m0, variance,
                      (p.data * p.data_rate * v1 + p.noise * p.noise_rate * v0) / variance};
}

/* How many features a time's embedding has, and the embedding, into inputs that are n vectors apart: t, then sines and
 * cosines of 2^k pi t. */
static inline long embedded(const Field *f) { return 1 + 2 * f->frequencies; }
static inline void embed_times(const Field *f, vf t, int n, vf *in) {
    in[0] = t;
    for (long k = 1; k <= f->frequencies; k++)
        sin_cos_pi((float)(1L << (k - 1)) * t, in + k * n, in + (k + f->frequencies) * n);
}

typedef struct {
    vf *inputs;      /* of the network, then the values of all its layers: (features, vectors) */
    float **sums;     /* what the activations get, where a trace is asked for, as `kept` */
    vf *tangents[2]; /* (GROUP, widest layer, vectors) */
    vf *std;         /* (size) */
    vf *context;     /* (context_size) */
    vf *y, *point;   /* states (elements): where a step begins, where a stage is taken */
    vf *stages;      /* (stages, elements) */
} Workspace;

static inline long widest_of(const Network *net) {
    long widest = 0;
    for (int l = 0; l < net->depth; l++)
        if (net->layers[l].units > widest) widest = net->layers[l].units;
    return widest;
}

/* Carve a thread's workspace out of its memory, or (memory NULL) only count it, in vectors. */
static size_t carve(const Field *f, long stages, long elements, vf *memory, Workspace *work) {
    const Network *net = f->net;
    size_t used = 0;
#define TAKE(goal, vectors) (goal) = memory ? (void *)(memory + used) : NULL, used += (size_t)(vectors)
    long total = net->layers[0].columns;
    for (int l = 0; l < net->depth; l++) total += net->layers[l].units;
    TAKE(work->inputs, WIDE * total);
    TAKE(work->sums, (net->depth * sizeof(float *) + sizeof(vf) - 1) / sizeof(vf));
    for (int l = 0; l < net->depth; l++) {
        float *sums;
        TAKE(sums, kept_floats(LANES, net->layers[l].units) / VL);
        if (memory) work->sums[l] = sums;
    }
    for (int i = 0; i < 2; i++) TAKE(work->tangents[i], GROUP * WIDE * widest_of(net));
    TAKE(work->std, WIDE * f->size);
    TAKE(work->context, WIDE * f->context_size);
    TAKE(work->y, WIDE * elements);
    TAKE(work->point, WIDE * elements);
    TAKE(work->stages, WIDE * elements * stages);
#undef TAKE
    return used;
}

/* One tile of a hidden layer: the tangents of `some` inputs from `start` on, (units, vectors) and `stride` apart. */
static void tangent_tile(
    const Network *net, int l, long unit, int tile, long start, int some, int n, const Workspace *work, const vf *in,
    vf *out, long stride) {
    const Layer *layer = net->layers + l;
    vf at[TILE * WIDE], slope[TILE * WIDE];
    for (int u = 0; u < tile; u++)
        for (int v = 0; v < n; v++) {
            at[u * n + v] = *kept(work->sums[l], n, unit + u, v);
            slope[u * n + v] = splat(1);
        }
    times_slope(net->activation, at, tile * n, slope);
    for (int i = 0; i < some; i++, in += stride, out += stride) {
        vf moved[TILE * WIDE];
        for (int u = 0; u < tile; u++)
            for (int v = 0; v < n; v++) {
                moved[u * n + v] = splat(0);
                if (l) continue;
                /* each of the first tangents has one entry */
                moved[u * n + v] += layer->weight[(unit + u) * layer->columns + start + i];
                moved[u * n + v] *= input_slope(net->bound, work->inputs[(start + i) * n + v]);
            }
        if (l) masked_product(layer, unit, tile, in, n, moved);
        for (int j = 0; j < tile * n; j++) {
            out[unit * n + j] = moved[j] * slope[j];
            if (layer->residual) out[unit * n + j] += in[unit * n + j];
        }
    }
}

/* Add the trace of the correction by the first `size` inputs, whose tangents go through the network in groups. */
static void add_trace(const Field *f, int n, const Workspace *work, const vf *correction, vf *trace) {
    const Network *net = f->net;
    const Layer *const last = net->layers + net->depth - 1;
    const long stride = n * widest_of(net);
    const float bound = (float)f->bound;
    for (long start = 0; start < f->size; start += GROUP) {
        const int some = f->size - start < GROUP ? (int)(f->size - start) : GROUP;
        vf *in = work->tangents[0], *out = work->tangents[1];
        for (int l = 0; l < net->depth - 1; l++) {
            for (long unit = 0; unit < net->layers[l].units;) {
                const int tile = tile_of(net->layers[l].units - unit);
                tangent_tile(net, l, unit, tile, start, some, n, work, in, out, stride);
                unit += tile;
            }
            vf *const swapped = in;
            in = out, out = swapped;
        }
        for (int i = 0; i < some; i++) {
            const float *weights = last->weight + (start + i) * last->columns;
            vf slope[WIDE] = {0};
            if (net->depth > 1) product(weights, last->columns, 1, 0, last->columns, in + i * stride, n, slope);
            else
                for (int v = 0; v < n; v++)
                    slope[v] = weights[start + i] * input_slope(net->bound, work->inputs[(start + i) * n + v]);
            for (int v = 0; v < n; v++) trace[v] += slope[v] * input_slope(bound, correction[(start + i) * n + v]);
        }
    }
}

/* The velocity of n vectors of rows at their times, and where `trace` is asked for its divergence behind it. */
static void velocity(const Field *f, int n, int trace, const vf *t, const vf *y, Workspace *work, vf *out) {
    const long size = f->size, known = size + embedded(f), inputs = known + f->context_size;
    const Network *net = f->net;
    vf *const in = work->inputs, divergence[WIDE];
    for (int v = 0; v < n; v++) {
        const Point p = point_at(f, t[v]);
        divergence[v] = splat(0);
        for (long j = 0; j < size; j++) {
            const Gaussian g = gaussian_at(f, p, j);
            const vf std = sqrt_f(g.variance), deviation = y[AT(j, v)] - g.mean;
            out[AT(j, v)] = g.rate + g.slope * deviation;
            work->std[AT(j, v)] = std;
            in[j * n + v] = deviation / std;
            divergence[v] += g.slope;
        }
        embed_times(f, t[v], n, in + size * n + v);
        for (long j = 0; j < f->context_size; j++) in[(known + j) * n + v] = work->context[AT(j, v)];
    }
    for (long j = 0; j < inputs * n; j++) in[j] = soften(net->bound, in[j]);
    const Forward forward = {.net = net, .rows = n * VL, .vectors = n, .sums = trace ? work->sums : NULL};
    const Chunk chunk = {0, 0, n};
    vf *const correction = in + forward_layers(&forward, &chunk, 1, &work->inputs) * n;
    if (f->bound < INFINITY)
        for (long j = 0; j < size * n; j++) correction[j] = soften((float)f->bound, correction[j]);
    if (trace) add_trace(f, n, work, correction, divergence);
    for (int v = 0; v < n; v++) {
        for (long j = 0; j < size; j++) out[AT(j, v)] += work->std[AT(j, v)] * correction[j * n + v];
        if (trace) out[AT(size, v)] = divergence[v];
    }
}

/* Training pairs of flow matching at x_t = data x_1 + noise x_0, both (rows, size): the network's inputs (inputs,
 * rows), and as (size, rows) std_t and the target of std_t times its bounded outputs, dx_t/dt less the Gaussian's
 * velocity. In that difference all cancels but (data' noise - data noise') / variance (noise noise_std^2 x_1 - data
 * data_std^2 x_0), x_1, x_0 less their means. Returns 1 if memory ran out. */
int matching_f32(
    long rows, const Field *f, const float *noise, const float *data, const float *times, float *inputs, float *std,
    float *target, int threads) {
    const long size = f->size, features = embedded(f);
    int failed = 0;
#pragma omp parallel num_threads(threads) if (rows * size > 16384)
    {
        vf *const in = workspace(sizeof(vf) * (size_t)features, &failed);
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row += VL) {
            if (!in) continue;
            const int n = rows - row < VL ? (int)(rows - row) : VL;
            const vf t = load(times + row, 1, n);
            const Point p = point_at(f, t);
            for (long j = 0; j < size; j++) {
                const Gaussian g = gaussian_at(f, p, j);
                const float v1 = f->data_std[j] * f->data_std[j], v0 = f->noise_std[j] * f->noise_std[j];
                const vf x1 = load(data + row * size + j, size, n) - f->data_mean[j], root = sqrt_f(g.variance);
                const vf x0 = load(noise + row * size + j, size, n) - f->noise_mean[j];
                const vf rotation = (p.data_rate * p.noise - p.data * p.noise_rate) / g.variance;
                store(inputs + j * rows + row, n, (p.data * x1 + p.noise * x0) / root);
                store(std + j * rows + row, n, root);
                store(target + j * rows + row, n, rotation * (p.noise * v0 * x1 - p.data * v1 * x0));
            }
            embed_times(f, t, 1, in);
            for (long k = 0; k < features; k++) store(inputs + (size + k) * rows + row, n, in[k]);
            for (long k = 0; k < f->context_size; k++)
                store(inputs + (size + features + k) * rows + row, n,
                      load(f->context + row * f->context_size + k, f->context_size, n));
        }
    }
    return failed;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

/* to = y + h sum_i weights_i stages_i; y may be NULL. */
static void combine(
    const float *weights, long count, const vf *stages, long elements, int n, const vf *h, const vf *y, vf *to) {
    for (long j = 0; j < elements; j++)
        for (int v = 0; v < n; v++) {
            vf total = splat(0);
            for (long i = 0; i < count; i++)
                if (weights[i] != 0) total += weights[i] * stages[AT(i * elements + j, v)];
            to[AT(j, v)] = y ? y[AT(j, v)] + total * h[v] : total * h[v];
        }
}

/* The stages of a step from work->y, the first of which is known; the last one is taken at work->point. */
static void take_stages(
    const Field *f, const Tableau *tableau, int n, long elements, const vf *t, const vf *h, Workspace *work) {
    for (long i = 1; i < tableau->stages; i++) {
        vf at[WIDE];
        combine(tableau->coefficients + i * tableau->stages, i, work->stages, elements, n, h, work->y, work->point);
        for (int v = 0; v < n; v++) at[v] = t[v] + tableau->times[i] * h[v];
        velocity(f, n, elements > f->size, at, work->point, work, work->stages + AT(i * elements, 0));
    }
}

/* A lane of a panel, as floats that are LANES apart. */
static inline float *lane_of(vf *panel, int lane) { return (float *)panel + lane; }
static inline float largest(float a, float b) { return a > b || a != a ? a : b; } /* NaN passes */

static void take_row(const Field *f, long row, const float *y, long elements, int lane, Workspace *work) {
    for (long j = 0; j < elements; j++) lane_of(work->y, lane)[j * LANES] = y[row * elements + j];
    for (long j = 0; j < f->context_size; j++)
        lane_of(work->context, lane)[j * LANES] = f->context[row * f->context_size + j];
}

/* Move a lane of a panel to another one. */
static void move_lane(vf *panel, long features, int from, int to) {
    for (long j = 0; j < features; j++) lane_of(panel, to)[j * LANES] = lane_of(panel, from)[j * LANES];
}

/* The first row that failed, as all of them take their steps side by side; count is in evaluations. */
typedef struct {
    long count, row;
    int finite; /* whether the velocity was */
    float t;
} Trouble;

static void report(Trouble *first, Trouble failure) {
#pragma omp critical(trouble)
    if (failure.count < first->count ||
        (failure.count == first->count &&
         (failure.finite < first->finite || (failure.finite == first->finite && failure.row < first->row)))) {
#pragma omp atomic write
        first->count = failure.count;
        first->row = failure.row, first->finite = failure.finite, first->t = failure.t;
    }
}

static inline long count_of(const Trouble *first) {
    long count;
#pragma omp atomic read
    count = first->count;
    return count;
}

static int all_finite(vf *panel, long elements, int lane) {
    for (long j = 0; j < elements; j++)
        if (!isfinite(lane_of(panel, lane)[j * LANES])) return 0;
    return 1;
}

/* How steps are chosen; see `adaptive` in transforms/solvers.py. */
typedef struct {
    float start, stop, rtol, atol, least, safety, shrink, grow;
    long most;
} Control;

/* The length of a lane's first step, in two parts: a short one to look ahead by, and, having looked, the step. */
static float short_length(const Control *c, vf *y, vf *k, long elements, int lane, float *slope) {
    float size = 0;
    *slope = 0;
    for (long j = 0; j < elements; j++) {
        const float value = lane_of(y, lane)[j * LANES], scale = c->atol + c->rtol * fabsf(value);
        size = largest(fabsf(value / scale), size);
        *slope = largest(fabsf(lane_of(k, lane)[j * LANES] / scale), *slope);
    }
    const float length = size < 1e-5f || *slope < 1e-5f ? 1e-6f : 0.01f * size / fmaxf(*slope, 1e-30f);
    return fminf(length, fabsf(c->stop - c->start));
}

static float first_length(
    const Control *c, vf *y, vf *k, vf *probed, long elements, int lane, float length, float slope) {
    const float way = fabsf(c->stop - c->start);
    float bend = 0;
    for (long j = 0; j < elements; j++) {
        const float scale = c->atol + c->rtol * fabsf(lane_of(y, lane)[j * LANES]);
        bend = largest(fabsf((lane_of(probed, lane)[j * LANES] - lane_of(k, lane)[j * LANES]) / scale), bend);
    }
    bend = (bend == bend ? bend : INFINITY) / length;
    const float steepest = fmaxf(slope, bend);
    const float found = steepest <= 1e-15f ? fmaxf(1e-3f * length, 1e-6f) : powf(0.01f / steepest, 0.2f);
    return fminf(fmaxf(fminf(100 * length, found), 1e-8f * way), way);
}

/* Begin a chunk of rows: the derivatives (rows, elements) at the start and the lengths (rows) of the first steps. */
static void begin_rows(
    const Field *f, const Control *c, Chunk chunk, long rows, long elements, const float *y, Workspace *work,
    float *slopes, float *lengths, Trouble *trouble) {
    const int n = chunk.vectors, trace = elements > f->size;
    const float sign = c->stop > c->start ? 1.0f : -1.0f;
    const long left = rows - chunk.start, count = left < n * VL ? left : n * VL;
    vf t[WIDE], h[WIDE], *const k = work->stages, *const probed = k + AT(elements, 0);
    float ahead[LANES], slope[LANES];
    for (int lane = 0; lane < count; lane++) take_row(f, chunk.start + lane, y, elements, lane, work);
    for (int v = 0; v < n; v++) t[v] = splat(c->start), h[v] = splat(0);
    velocity(f, n, trace, t, work->y, work, k);
    for (int lane = 0; lane < count; lane++) {
        if (!all_finite(k, elements, lane)) report(trouble, (Trouble){2, chunk.start + lane, 0, c->start});
        ahead[lane] = short_length(c, work->y, k, elements, lane, slope + lane);
        *lane_of(h, lane) = sign * ahead[lane];
    }
    const float one = 1;
    combine(&one, 1, k, elements, n, h, work->y, work->point);
    for (int v = 0; v < n; v++) t[v] += h[v];
    velocity(f, n, trace, t, work->point, work, probed);
    for (int lane = 0; lane < count; lane++) {
        const long row = chunk.start + lane;
        lengths[row] = first_length(c, work->y, k, probed, elements, lane, ahead[lane], slope[lane]);
        for (long j = 0; j < elements; j++) slopes[row * elements + j] = lane_of(k, lane)[j * LANES];
    }
}

/* The rows under way of one thread. */
typedef struct {
    long row, count; /* which row, and its evaluations so far; row -1 where there is none */
    float length, error;
    int last; /* whether the step under way is the row's last one */
} Lane;

/* Judge a lane's step, and begin the next one; as in the body of `adaptive`. `errors` is a panel. */
static void judge(
    const Tableau *tableau, const Control *c, int lane, long elements, Lane *state, float *t, float h, vf *errors,
    Workspace *work, float *out, long *evaluations, float *error, Trouble *trouble) {
    vf *const new = work->point, *const next = work->stages + AT((tableau->stages - 1) * elements, 0);
    float worst = 0, largest_error = 0;
    for (long j = 0; j < elements; j++) {
        const float each = fabsf(lane_of(errors, lane)[j * LANES]);
        const float size = largest(fabsf(lane_of(new, lane)[j * LANES]), fabsf(lane_of(work->y, lane)[j * LANES]));
        worst = largest(each / (size * c->rtol + c->atol), worst);
        largest_error = largest(each, largest_error);
    }
    const int accepted = worst <= 1, finite = isfinite(worst);
    state->count += tableau->stages - 1;
    /* a trial that left the numbers is too long a step; the velocity itself is finite where a step begins */
    float growth = 0.5f * c->shrink;
    if (finite) growth = fminf(fmaxf(c->safety * powf(fmaxf(worst, 1e-10f), -0.2f), c->shrink), c->grow);
    state->length = fabsf(h) * (accepted ? growth : fminf(growth, 1));
    if (accepted) {
        state->error += largest_error;
        *t = state->last ? c->stop : *t + h;
        for (long j = 0; j < elements; j++) {
            lane_of(work->y, lane)[j * LANES] = lane_of(new, lane)[j * LANES];
            lane_of(work->stages, lane)[j * LANES] = lane_of(next, lane)[j * LANES];
        }
        if (state->last) {
            for (long j = 0; j < elements; j++) out[state->row * elements + j] = lane_of(work->y, lane)[j * LANES];
            evaluations[state->row] = state->count;
            error[state->row] = state->error;
            state->row = -1;
            return;
        }
    }
    if (state->count + tableau->stages - 1 > c->most || (!accepted && state->length < c->least))
        report(trouble, (Trouble){state->count, state->row, finite, *t});
    if (state->count >= count_of(trouble)) state->row = -1; /* there will be no result */
}

/* Solve for all rows of a queue that lanes ask for the next one. */
static void run_lanes(
    const Field *f, const Tableau *tableau, const Control *c, int capacity, long rows, long elements, const float *y,
    const float *slopes, const float *lengths, Workspace *work, long *queue, float *out, long *evaluations,
    float *error, Trouble *trouble) {
    const float sign = c->stop > c->start ? 1.0f : -1.0f;
    Lane lanes[LANES];
    vf t[WIDE], h[WIDE], *const errors = work->stages + AT(elements, 0); /* a stage that is not needed any more */
    memset(work->y, 0, sizeof(vf) * WIDE * elements);
    memset(work->stages, 0, sizeof(vf) * WIDE * elements);
    memset(work->context, 0, sizeof(vf) * WIDE * f->context_size);
    for (int v = 0; v < WIDE; v++) t[v] = splat(c->start), h[v] = splat(0);
    for (int lane = 0; lane < LANES; lane++) lanes[lane].row = -1;
    for (;;) {
        int under_way = 0;
        for (int lane = 0; lane < capacity; lane++) {
            if (lanes[lane].row < 0) {
                long row;
#pragma omp atomic capture
                row = (*queue)++;
                if (row >= rows) continue;
                take_row(f, row, y, elements, lane, work);
                for (long j = 0; j < elements; j++)
                    lane_of(work->stages, lane)[j * LANES] = slopes[row * elements + j];
                lanes[lane] = (Lane){row, 2, lengths[row], 0, 0};
                *lane_of(t, lane) = c->start;
            }
            if (under_way < lane) { /* lanes before it are idle for good */
                lanes[under_way] = lanes[lane], lanes[lane].row = -1;
                move_lane(t, 1, lane, under_way);
                move_lane(work->y, elements, lane, under_way);
                move_lane(work->stages, elements, lane, under_way);
                move_lane(work->context, f->context_size, lane, under_way);
            }
            under_way++;
        }
        if (!under_way) return;
        for (int lane = 0; lane < under_way; lane++) {
            Lane *state = lanes + lane;
            const float remaining = (c->stop - *lane_of(t, lane)) * sign;
            state->last = state->length >= remaining * (1 - 1e-6f); /* a sliver left over would cost a step */
            *lane_of(h, lane) = sign * (state->last ? remaining : state->length);
        }
        const int n = (int)vectors_of(under_way);
        take_stages(f, tableau, n, elements, t, h, work);
        combine(tableau->error, tableau->stages, work->stages, elements, n, h, NULL, errors);
        for (int lane = 0; lane < under_way; lane++)
            judge(tableau, c, lane, elements, lanes + lane, lane_of(t, lane), *lane_of(h, lane), errors, work, out,
                  evaluations, error, trouble);
    }
}

/* Solve from the states y (rows, elements): where elements exceed the field's size, the last one is the log-det.
 * Returns 0; 1 if memory ran out; 2 where a row failed, which is in `trouble`. */
int ode_adaptive_f32(
    long rows, long elements, const Field *field, const Tableau *tableau, const Control *control, const float *y,
    float *out, long *evaluations, float *error, Trouble *trouble, int threads) {
    const long chunks = chunks_of(rows, threads);
    const int capacity = (int)((vectors_of(rows) + chunks - 1) / chunks) * VL; /* lanes of a thread */
    float *slopes = scratch(SHARED, sizeof(float) * (size_t)(rows * (elements + 1)));
    float *const lengths = slopes + rows * elements;
    int failed = !slopes;
    long queue = 0;
    *trouble = (Trouble){LONG_MAX, rows, 1, 0};
    if (failed) return 1;
#pragma omp parallel num_threads(threads)
    {
        Workspace work = {0};
        vf *memory = workspace(sizeof(vf) * carve(field, tableau->stages, elements, NULL, &work), &failed);
        if (memory) carve(field, tableau->stages, elements, memory, &work);
#pragma omp for schedule(dynamic)
        for (long index = 0; index < chunks; index++)
            if (memory)
                begin_rows(field, control, chunk_of(rows, chunks, index), rows, elements, y, &work, slopes, lengths,
                           trouble);
        if (memory && count_of(trouble) == LONG_MAX)
            run_lanes(field, tableau, control, capacity, rows, elements, y, slopes, lengths, &work, &queue, out,
                      evaluations, error, trouble);
    }
    return failed ? 1 : trouble->count < LONG_MAX ? 2 : 0;
}
