/* Vectors of floats and doubles (GCC's vector extensions: gcc and clang, any processor), and elementary functions of
 * them. */
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VL 16 /* lanes per vector: one AVX-512 register of floats, two of AVX2, four of NEON */
typedef float v16 __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef double d16 __attribute__((vector_size(8 * VL), aligned(8), may_alias));
typedef int64_t l16 __attribute__((vector_size(8 * VL), aligned(8), may_alias));

/* a - 0 is a, whatever a's sign, so compilers drop the subtraction; 0 + a they must compute. */
static inline v16 splat(float a) { return a - (v16){0}; }
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

/* ---- memory ------------------------------------------------------------------------------------------------------ */

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

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i16){__VA_ARGS__})
#endif

/* Transpose 16 vectors of 16: four rounds that exchange ever larger off-diagonal blocks. */
static inline void transpose(v16 *m) {
#define ROUND(STEP, KEEP, MOVE)                                                                                        \
    for (int i = 0; i < VL; i++)                                                                                       \
        if (!(i & STEP)) {                                                                                             \
            const v16 a = m[i], b = m[i + STEP];                                                                       \
            m[i] = SHUFFLE(a, b, KEEP);                                                                                \
            m[i + STEP] = SHUFFLE(a, b, MOVE);                                                                         \
        }
#define EACH(...) __VA_ARGS__
    ROUND(1, EACH(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
          EACH(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    ROUND(2, EACH(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
          EACH(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    ROUND(4, EACH(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
          EACH(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    ROUND(8, EACH(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
          EACH(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#undef EACH
#undef ROUND
}

/* Memory that a thread keeps from call to call, for clearing fresh pages would cost more than much of the arithmetic.
 * NULL if there is none to be had. */
static void *scratch(int slot, size_t bytes) {
    static _Thread_local struct {
        void *memory;
        size_t bytes;
    } kept[2];
    if (kept[slot].bytes < bytes) {
        free(kept[slot].memory);
        bytes = (bytes + bytes / 4 + 63) / 64 * 64;
        kept[slot].memory = aligned_alloc(64, bytes);
        kept[slot].bytes = kept[slot].memory ? bytes : 0;
    }
    return kept[slot].memory;
}
enum { SHARED, OWN };
