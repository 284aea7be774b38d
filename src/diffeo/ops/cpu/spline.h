/* The rational-quadratic spline on a vector's lanes; included by maps.c once per precision, with the types T, V, I and
 * FN defined. The formulas are those of transforms/univariate.py. */

typedef struct {
    V left, bottom, width, height; /* of each lane's bin */
    V slope, before, after;        /* height / width of that bin and of its neighbours */
    V bent0, bent1;                /* tanh(raw / max_log_bend) of the knots at its ends */
    V bend0, bend1;                /* d0 and d1 over the harmonic mean of the two slopes they join */
    V d0, d1;
    I index;
} FN(Bin);

static inline void FN(shares)(int k, const V *logits, V *share) {
    V top = logits[0], sum = {0};
    for (int j = 1; j < k; j++) top = FN(at_least)(logits[j], top); /* a NaN shows in the sum */
    for (int j = 0; j < k; j++) sum += share[j] = FN(exp)(logits[j] - top);
    const V scale = 1 / sum;
    for (int j = 0; j < k; j++) share[j] *= scale;
}

/* Sizes of the bins of one side, as in the reference implementation. */
static inline void FN(sizes)(const Map *s, const V *share, V *size) {
    const T least = (T)(2 * s->bound * s->min_bin), span = (T)(2 * s->bound * (1 - s->min_bin * s->bins));
    for (int j = 0; j < s->bins; j++) size[j] = least + span * share[j];
}

static inline V FN(harmonic)(V a, V b) { return 2 * a * b / (a + b); }

/* The bin that holds each lane's value, among the knots of one side (widths or heights). */
static inline void FN(find)(
    const Map *s, V value, const V *widths, const V *heights, int by_height, const V *raw, FN(Bin) *b) {
    const V *side = by_height ? heights : widths, one = (V){0} + 1;
    V knot = (V){0} - (T)s->bound, across = knot, down = knot;
    b->index = (I){0};
    b->left = b->bottom = knot;
    b->width = widths[0];
    b->height = heights[0];
    b->before = one;
    b->slope = heights[0] / widths[0];
    b->after = heights[1] / widths[1];
    V raw0 = {0}, raw1 = raw[0], before = b->slope, slope = b->after, after = one;
    for (int j = 1; j < s->bins; j++) {
        knot += side[j - 1];
        across += widths[j - 1];
        down += heights[j - 1];
        I beyond = value >= knot;
        b->index = (beyond & j) | (~beyond & b->index);
        b->left = FN(pick)(beyond, across, b->left);
        b->bottom = FN(pick)(beyond, down, b->bottom);
        b->width = FN(pick)(beyond, widths[j], b->width);
        b->height = FN(pick)(beyond, heights[j], b->height);
        b->before = FN(pick)(beyond, before, b->before);
        b->slope = FN(pick)(beyond, slope, b->slope);
        raw0 = FN(pick)(beyond, raw[j - 1], raw0);
        if (j < s->bins - 1) {
            after = heights[j + 1] / widths[j + 1];
            b->after = FN(pick)(beyond, after, b->after);
            raw1 = FN(pick)(beyond, raw[j], raw1);
        }
        before = slope, slope = after;
    }
    b->bent0 = FN(tanh)(raw0 / (T)s->max_log_bend);
    b->bent1 = FN(tanh)(raw1 / (T)s->max_log_bend);
    b->bend0 = FN(exp)((T)s->max_log_bend * b->bent0);
    b->bend1 = FN(exp)((T)s->max_log_bend * b->bent1);
    /* at the ends of the box the derivative is that of the identity outside */
    b->d0 = FN(pick)(b->index == 0, one, b->bend0 * FN(harmonic)(b->before, b->slope));
    b->d1 = FN(pick)(b->index == s->bins - 1, one, b->bend1 * FN(harmonic)(b->slope, b->after));
}

static inline V FN(clip)(const Map *s, V value) {
    return FN(at_most)(FN(at_least)(value, (V){0} - (T)s->bound), (V){0} + (T)s->bound);
}

static inline I FN(inside)(const Map *s, V value) { return (value < (T)s->bound) & (value > -(T)s->bound); }

static inline V FN(log_derivative)(V xi, V slope, V d0, V d1, V denominator) {
    V rest = 1 - xi, numerator = d1 * xi * xi + 2 * slope * xi * rest + d0 * rest * rest;
    return 2 * FN(log)(slope) + FN(log)(numerator) - 2 * FN(log)(denominator);
}

/* x = g^-1(z) and log dx/dz. */
static inline void FN(spline_generate)(const Map *s, V z, const V *params, V *x, V *log_det) {
    V widths[MAX_BINS], heights[MAX_BINS];
    FN(shares)(s->bins, params, widths);
    FN(sizes)(s, widths, widths);
    FN(shares)(s->bins, params + s->bins, heights);
    FN(sizes)(s, heights, heights);
    FN(Bin) b;
    V clipped = FN(clip)(s, z);
    FN(find)(s, clipped, widths, heights, 1, params + 2 * s->bins, &b);
    V eta = (clipped - b.bottom) / b.height, bend = b.d0 + b.d1 - 2 * b.slope;
    V qa = b.slope - b.d0 + eta * bend, qb = b.d0 - eta * bend, qc = -b.slope * eta;
    V discriminant = qb * qb - 4 * qa * qc;
    discriminant = FN(at_least)(discriminant, (V){0} + 1.17549435e-38f);
    V xi = -2 * qc / (qb + FN(sqrt)(discriminant));
    V log_slope = FN(log_derivative)(xi, b.slope, b.d0, b.d1, b.slope + bend * xi * (1 - xi));
    *log_det = FN(pick)(FN(inside)(s, z), -log_slope, (V){0});
    *x = FN(pick)(FN(inside)(s, z), b.left + b.width * xi, z);
}

/* z = g(x) and log dz/dx. */
static inline void FN(spline_normalize)(const Map *s, V x, const V *params, V *z, V *log_det) {
    V widths[MAX_BINS], heights[MAX_BINS];
    FN(shares)(s->bins, params, widths);
    FN(sizes)(s, widths, widths);
    FN(shares)(s->bins, params + s->bins, heights);
    FN(sizes)(s, heights, heights);
    FN(Bin) b;
    V clipped = FN(clip)(s, x);
    FN(find)(s, clipped, widths, heights, 0, params + 2 * s->bins, &b);
    V xi = (clipped - b.left) / b.width, mixed = xi * (1 - xi);
    V denominator = b.slope + (b.d0 + b.d1 - 2 * b.slope) * mixed;
    V log_slope = FN(log_derivative)(xi, b.slope, b.d0, b.d1, denominator);
    V inner = b.bottom + b.height * (b.slope * xi * xi + b.d0 * mixed) / denominator;
    *log_det = FN(pick)(FN(inside)(s, x), log_slope, (V){0});
    *z = FN(pick)(FN(inside)(s, x), inner, x);
}

/* Gradients of gz z + gl log dz/dx with respect to x and the parameters. */
static inline void FN(spline_backward)(
    const Map *s, V x, const V *params, V gz, V gl, V *gx, V *grads) {
    V share_w[MAX_BINS], share_h[MAX_BINS], widths[MAX_BINS], heights[MAX_BINS], none = {0};
    FN(shares)(s->bins, params, share_w);
    FN(sizes)(s, share_w, widths);
    FN(shares)(s->bins, params + s->bins, share_h);
    FN(sizes)(s, share_h, heights);
    FN(Bin) b;
    V clipped = FN(clip)(s, x);
    FN(find)(s, clipped, widths, heights, 0, params + 2 * s->bins, &b);
    I inside = FN(inside)(s, x);
    V pass = FN(pick)(inside, none, gz);
    gz = FN(pick)(inside, gz, none);
    gl = FN(pick)(inside, gl, none);
    V w = b.width, slope = b.slope, xi = (clipped - b.left) / w, rest = 1 - xi;
    V q = xi * rest, dq = 1 - 2 * xi, bend = b.d0 + b.d1 - 2 * slope;
    V den = slope + bend * q, num = slope * xi * xi + b.d0 * q;
    V top = b.d1 * xi * xi + 2 * slope * q + b.d0 * rest * rest;
    V scale = gz * b.height / (den * den), over_top = gl / top, over_den = -2 * gl / den;
    /* with respect to xi, the bin's slope, and its end derivatives */
    V by_xi = scale * ((2 * slope * xi + b.d0 * dq) * den - num * bend * dq) +
              over_top * (2 * b.d1 * xi + 2 * slope * dq - 2 * b.d0 * rest) + over_den * bend * dq;
    V by_slope =
        scale * (xi * xi * den - num * (1 - 2 * q)) + over_top * 2 * q + over_den * (1 - 2 * q) + 2 * gl / slope;
    V by_d0 = scale * q * (den - num) + over_top * rest * rest + over_den * q;
    V by_d1 = -scale * num * q + over_top * xi * xi + over_den * q;
    *gx = by_xi / w + pass;
    /* the end derivatives follow the slopes that they join */
    by_d0 = FN(pick)(b.index == 0, none, by_d0);
    by_d1 = FN(pick)(b.index == s->bins - 1, none, by_d1);
    V sum0 = b.before + slope, sum1 = slope + b.after;
    V by_before = by_d0 * b.bend0 * 2 * slope * slope / (sum0 * sum0);
    V by_after = by_d1 * b.bend1 * 2 * slope * slope / (sum1 * sum1);
    by_slope += by_d0 * b.bend0 * 2 * b.before * b.before / (sum0 * sum0) +
                by_d1 * b.bend1 * 2 * b.after * b.after / (sum1 * sum1);
    V by_left = -by_xi / w, by_width = (-xi * by_xi - slope * by_slope) / w;
    V by_height = by_slope / w + gz * num / den;
    V mean_w = none, mean_h = none;
    for (int j = 0; j < s->bins; j++) {
        const V over = 1 / widths[j];
        V by_other = FN(pick)(b.index == j + 1, by_before, FN(pick)(b.index == j - 1, by_after, none)) * over;
        grads[j] = FN(pick)(b.index > j, by_left, FN(pick)(b.index == j, by_width, none)) -
                   by_other * heights[j] * over;
        grads[s->bins + j] = FN(pick)(b.index > j, gz, FN(pick)(b.index == j, by_height, none)) + by_other;
        mean_w += share_w[j] * grads[j];
        mean_h += share_h[j] * grads[s->bins + j];
    }
    const T span = (T)(2 * s->bound * (1 - s->min_bin * s->bins));
    for (int j = 0; j < s->bins; j++) {
        grads[j] = span * share_w[j] * (grads[j] - mean_w);
        grads[s->bins + j] = span * share_h[j] * (grads[s->bins + j] - mean_h);
    }
    by_d0 *= b.d0 * (1 - b.bent0 * b.bent0);
    by_d1 *= b.d1 * (1 - b.bent1 * b.bent1);
    for (int j = 0; j < s->bins - 1; j++)
        grads[2 * s->bins + j] = FN(pick)(b.index == j + 1, by_d0, FN(pick)(b.index == j, by_d1, none));
}
