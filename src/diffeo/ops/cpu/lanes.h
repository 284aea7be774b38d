/* Vectors as wide as the processor's registers (GCC's vector extensions: gcc and clang, any processor), what follows
 * from their width, and elementary functions of them. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* All that depends on the instruction set: the floats of a vector, and the tiles of the three products, whose
 * accumulators must stay in registers.
 *   matrix product (product.c): TILE units x WIDE vectors of rows, WIDE values, one weight
 *   outer product (wavenet.c): 4 x OUTER_WIDE accumulators, OUTER_WIDE + 1 values
 *   vector-matrix products (wavenet.c): 4 rows x MATVEC_WIDE vectors of units, 4 inputs, one weight
 * A fused multiply-add takes four cycles and two begin in each, so at least eight accumulators keep them busy. */
#if defined __AVX512F__ /* 32 registers of 16 floats */
#define VL 16
#define TILE 8
#define WIDE 3
#define OUTER_WIDE 4
#define MATVEC_WIDE 4
#elif defined __AVX__ /* 16 registers of 8 floats, all of which the product takes */
#define VL 8
#define TILE 4
#define WIDE 3
#define OUTER_WIDE 2
#define MATVEC_WIDE 2
#elif defined __aarch64__ /* 32 registers of 4 floats; gcc loads all weights of a column at once */
#define VL 4
#define TILE 8
#define WIDE 2
#define OUTER_WIDE 4
#define MATVEC_WIDE 4
#else /* SSE2: 16 registers of 4 floats, and one more for a product before it is added */
#define VL 4
#define TILE 4
#define WIDE 2
#define OUTER_WIDE 2
#define MATVEC_WIDE 2
#endif

/* One register each: VL floats or 32-bit integers, VL / 2 doubles or 64-bit integers. */
typedef float vf __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(4 * VL), aligned(8), may_alias));
typedef int64_t vl __attribute__((vector_size(4 * VL), aligned(8), may_alias));

/* a - 0 is a, whatever a's sign, so compilers drop the subtraction; 0 + a they must compute. */
static inline vf splat(float a) { return a - (vf){0}; }
/* The vector at `from`, loaded once however often it is used. Tuned for some processors, AMD's Zen among them, GCC would
 * load it anew for each multiply-add, and a core begins two or three loads in a cycle. */
static inline vf load_once(const float *from) {
    vf value = *(const vf *)from;
#if defined __x86_64__
    __asm__("" : "+v"(value)); /* what it is now, only its register knows */
#elif defined __aarch64__
    __asm__("" : "+w"(value));
#endif
    return value;
}
static inline vf pick_f(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
static inline vd pick_d(vl mask, vd yes, vd no) { return (vd)(((vl)yes & mask) | ((vl)no & ~mask)); }
/* NaN passes: a NaN in the first argument is returned. */
static inline vf at_most_f(vf a, vf top) { return pick_f(a > top, top, a); }
static inline vf at_least_f(vf a, vf least) { return pick_f(a < least, least, a); }
static inline vd at_most_d(vd a, vd top) { return pick_d(a > top, top, a); }
static inline vd at_least_d(vd a, vd least) { return pick_d(a < least, least, a); }
static inline vd absolute_d(vd a) { return pick_d(a < 0, -a, a); }

#define HIDDEN __attribute__((visibility("hidden"))) /* shared between the files of the library only */

/* ---- elementary functions, branchless, in both precisions -------------------------------------------------------- */

static inline vf exp_f(vf x) { /* relative error 1e-7 on [-87, 88], saturating outside */
    x = at_least_f(at_most_f(x, splat(88.0f)), splat(-87.0f));
    vf shifted = x * 1.44269504f + 12582912.0f; /* rounds to the nearest integer, in the low bits of the mantissa */
    vf n = shifted - 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vf)(((vi)shifted - 0x4b400000 + 127) << 23);
}

static inline vd exp_d(vd x) { /* relative error 1e-15 on [-700, 700], saturating outside */
    x = at_least_d(at_most_d(x, (vd){0} + 700.0), (vd){0} - 700.0);
    vd shifted = x * 1.4426950408889634 + 6755399441055744.0;
    vd n = shifted - 6755399441055744.0;
    vd r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6;
    vd p = (vd){0} + 1.0 / 479001600;
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
    return p * (vd)(((vl)shifted - 0x4338000000000000L + 1023) << 52);
}

static inline vf log_f(vf x) { /* relative error 1e-7 for normal positive x */
    vi exponent = ((vi)x - 0x3f3504f3) >> 23;
    vf m = (vf)((vi)x - (exponent << 23)) - 1.0f; /* the mantissa in [sqrt 1/2, sqrt 2), less one */
    vf e = __builtin_convertvector(exponent, vf);
    vf p = splat(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    vf s = m * m;
    return m + (p * m * s + e * -2.12194440e-4f - 0.5f * s) + e * 0.693359375f;
}

static inline vd log_d(vd x) { /* 2 atanh((m - 1) / (m + 1)) + e log 2 for normal positive x = m 2^e */
    vl exponent = ((vl)x - 0x3fe6a09e667f3bcdL) >> 52;
    vd m = (vd)((vl)x - (exponent << 52));
    vd t = (m - 1.0) / (m + 1.0), s = t * t;
    vd p = (vd){0} + 1.0 / 21;
    for (int k = 19; k >= 1; k -= 2) p = p * s + 1.0 / k;
    return 2.0 * t * p + __builtin_convertvector(exponent, vd) * 0.6931471805599453;
}

static inline vf tanh_f(vf x) {
    vf a = pick_f(x < 0, -x, x), s = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    vf large = 1.0f - 2.0f / (exp_f(2.0f * a) + 1.0f);
    return pick_f(a < 0.625f, p * s * x + x, pick_f(x < 0, -large, large));
}

static inline vd tanh_d(vd x) { return 1.0 - 2.0 / (exp_d(2.0 * x) + 1.0); }

#ifdef __AVX512F__ /* gcc would make two halves of the loop below */
#include <immintrin.h>
static inline vf sqrt_f(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
static inline vd sqrt_d(vd x) { return (vd)_mm512_sqrt_pd((__m512d)x); }
#else /* one instruction */
static inline vf sqrt_f(vf x) {
    vf y = x;
    for (int i = 0; i < VL; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}
static inline vd sqrt_d(vd x) {
    vd y = x;
    for (int i = 0; i < VL / 2; i++) y[i] = __builtin_sqrt(x[i]);
    return y;
}
#endif

/* ---- between the precisions: doubles come in two halves ---------------------------------------------------------- */

typedef float half_vf __attribute__((vector_size(2 * VL), may_alias));
typedef union {
    vf whole;
    half_vf half[2];
} Halves;

static inline vd widen(vf v, int half) { return __builtin_convertvector(((Halves){v}).half[half], vd); }
static inline vf narrow(const vd *halves) {
    Halves v;
    for (int i = 0; i < 2; i++) v.half[i] = __builtin_convertvector(halves[i], half_vf);
    return v.whole;
}

/* a b + c, rounded once on every processor: sums whose terms cancel agree between them. */
static inline vf fused_f(float a, vf b, vf c) {
#if defined __FMA__ || defined __aarch64__
    return a * b + c;
#else
    vd sum[2];
    for (int i = 0; i < 2; i++) sum[i] = a * widen(b, i) + widen(c, i);
    return narrow(sum);
#endif
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Move up to VL floats, stepping by `stride`, between memory and lanes; missing lanes read as zero. */
static inline vf load(const float *p, long stride, int count) {
    if (stride == 1 && count == VL) return *(const vf *)p;
    vf v = {0};
    for (int i = 0; i < count; i++) v[i] = p[i * stride];
    return v;
}
static inline void store(float *p, int count, vf v) {
    if (count == VL) *(vf *)p = v;
    else for (int i = 0; i < count; i++) p[i] = v[i];
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* INDEX(i, step) for every lane i. */
#define FOUR(INDEX, step, i) INDEX(i, step), INDEX(i + 1, step), INDEX(i + 2, step), INDEX(i + 3, step)
#if VL == 16
#define EACH_LANE(INDEX, step) FOUR(INDEX, step, 0), FOUR(INDEX, step, 4), FOUR(INDEX, step, 8), FOUR(INDEX, step, 12)
#elif VL == 8
#define EACH_LANE(INDEX, step) FOUR(INDEX, step, 0), FOUR(INDEX, step, 4)
#else
#define EACH_LANE(INDEX, step) FOUR(INDEX, step, 0)
#endif

/* Transpose VL vectors of VL: rounds that exchange ever larger off-diagonal blocks. */
static inline void transpose(vf *m) {
#define UPPER(i, step) ((i) & (step) ? VL + (i) - (step) : (i))
#define LOWER(i, step) ((i) & (step) ? VL + (i) : (i) + (step))
#define ROUND(STEP)                                                                                                    \
    for (int i = 0; i < VL; i++)                                                                                       \
        if (!(i & STEP)) {                                                                                             \
            const vf a = m[i], b = m[i + STEP];                                                                        \
            m[i] = SHUFFLE(a, b, EACH_LANE(UPPER, STEP));                                                              \
            m[i + STEP] = SHUFFLE(a, b, EACH_LANE(LOWER, STEP));                                                       \
        }
    ROUND(1)
    ROUND(2)
#if VL > 4
    ROUND(4)
#endif
#if VL > 8
    ROUND(8)
#endif
#undef ROUND
#undef LOWER
#undef UPPER
}

static inline float across(vf a) { /* the sum of all lanes */
#define ROTATED(i, step) (((i) + (step)) % VL)
#if VL > 8
    a += SHUFFLE(a, a, EACH_LANE(ROTATED, 8));
#endif
#if VL > 4
    a += SHUFFLE(a, a, EACH_LANE(ROTATED, 4));
#endif
#undef ROTATED
    return (a[0] + a[1]) + (a[2] + a[3]);
}

/* Memory that a thread keeps from call to call, for clearing fresh pages would cost more than much of the arithmetic:
 * one piece for what all threads of a call share, and one for each thread's workspace. NULL if there is none. */
enum { SHARED, PER_THREAD };
static inline void *scratch(int slot, size_t bytes) {
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

/* A thread's workspace within a parallel region, which says in `failed` where there is none. */
static inline void *workspace(size_t bytes, int *failed) {
    void *memory = scratch(PER_THREAD, bytes);
    if (!memory) {
#pragma omp atomic write
        *failed = 1;
    }
    return memory;
}
