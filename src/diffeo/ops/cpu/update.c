/* What a training step does once the gradients are known: their norm, then AdamW and the moving average of the weights,
 * of all parameters in one pass. Tensors are taken in pieces of one size, so no sum depends on the number of threads.
 */
#include "lanes.h"

#define PIECE 4096
/* elements whose squares are added in single precision: widening each would cost more than all else */
#define RUN (8 * VL)
#define WORTH_SHARING 65536 /* elements from which on waking other threads pays */

typedef struct {
    float *value, *average, *mean, *square; /* (size): the parameter, its average, the moments of its gradient */
    float *steps;                           /* how many it took */
    long size;
    double rate, decay; /* the full learning rate, and the share of it by which the parameter decays */
} Trained;

typedef struct {
    double kept_mean, kept_square, epsilon; /* how much of the moments is kept, and what is added to the root */
} Adam;

static inline long pieces_of(const Trained *each) { return (each->size + PIECE - 1) / PIECE; }

static long size_of_all(const Trained *all, long count) {
    long total = 0;
    for (long i = 0; i < count; i++) total += all[i].size;
    return total;
}

/* The first element and the number of elements of a piece. */
static inline long piece_of(const Trained *each, long piece, long *from) {
    *from = piece * PIECE;
    return each->size - *from < PIECE ? each->size - *from : PIECE;
}

/* The norm of all gradients together; those that are NULL are zero. NaN if there is no memory. */
double gradient_norm_f32(const Trained *all, const float *const *grads, long count, int threads) {
    long pieces = 0;
    for (long i = 0; i < count; i++) pieces += pieces_of(all + i);
    double *const sums = scratch(SHARED, sizeof(double) * (size_t)(pieces + 1)), total = 0;
    if (!sums) return NAN;
#pragma omp parallel num_threads(threads) if (size_of_all(all, count) > WORTH_SHARING)
    for (long i = 0, done = 0; i < count; done += pieces_of(all + i++)) {
#pragma omp for schedule(static) nowait
        for (long piece = 0; piece < pieces_of(all + i); piece++) {
            long from;
            const long size = grads[i] ? piece_of(all + i, piece, &from) : 0;
            vd sum = {0};
            for (long start = 0; start < size; start += RUN) {
                const long stop = start + RUN < size ? start + RUN : size;
                vf run = {0};
                for (long j = start; j < stop; j += VL) {
                    const vf g = load(grads[i] + from + j, 1, stop - j < VL ? (int)(stop - j) : VL);
                    run += g * g;
                }
                sum += widen(run, 0) + widen(run, 1);
            }
            sums[done + piece] = 0;
            for (int lane = 0; lane < VL / 2; lane++) sums[done + piece] += sum[lane];
        }
    }
    for (long piece = 0; piece < pieces; piece++) total += sums[piece];
    return sqrt(total);
}

/* One step of the parameters that have a gradient, which is multiplied by `scale` first, at `factor` of their rates;
 * then of all averages, of which `kept` is kept. */
void update_f32(
    const Trained *all, const float *const *grads, long count, const Adam *adam, double factor, double scale,
    double kept, int threads) {
#pragma omp parallel num_threads(threads) if (size_of_all(all, count) > WORTH_SHARING)
    for (long i = 0; i < count; i++) {
        const Trained *const p = all + i;
        const double steps = *p->steps + 1, rate = p->rate * factor;
        const float step = (float)(rate / (1 - pow(adam->kept_mean, steps))), epsilon = (float)adam->epsilon;
        const float root = (float)sqrt(1 - pow(adam->kept_square, steps)), shrunk = (float)(1 - rate * p->decay);
        const float new_mean = (float)(1 - adam->kept_mean), new_square = (float)(1 - adam->kept_square);
#pragma omp for schedule(static) nowait
        for (long piece = 0; piece < pieces_of(p); piece++) {
            long from;
            const long size = piece_of(p, piece, &from);
            for (long at = from; at < from + size; at += VL) {
                const int n = from + size - at < VL ? (int)(from + size - at) : VL;
                vf value = load(p->value + at, 1, n);
                if (grads[i]) {
                    const vf g = load(grads[i] + at, 1, n) * (float)scale;
                    vf mean = load(p->mean + at, 1, n), square = load(p->square + at, 1, n);
                    mean = fused_f(new_mean, g - mean, mean);
                    square = (float)adam->kept_square * square + new_square * g * g;
                    value = value * shrunk - step * mean / (sqrt_f(square) / root + epsilon);
                    store(p->mean + at, n, mean), store(p->square + at, n, square), store(p->value + at, n, value);
                }
                store(p->average + at, n, value + (float)kept * (load(p->average + at, 1, n) - value));
            }
        }
    }
    for (long i = 0; i < count; i++)
        if (grads[i]) *all[i].steps += 1;
}
