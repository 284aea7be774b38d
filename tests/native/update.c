#include "driver.h"
/* the kernels: */
#include "../../src/diffeo/ops/cpu/update.c"


void run_update(void) {
    enum { MOST = 32 };
    Trained all[MOST];
    const float *grads[MOST];
    const double *adam = doubles("adam"), *step = doubles("step"); /* factor, scale, kept */
    const long count = number("count");
    for (int i = 0; i < count && i < MOST; i++) {
        const double *rates = doubles("rates%d", i);
        all[i] = (Trained){changed("value%d", i), changed("average%d", i), changed("mean%d", i), changed("square%d", i),
                           changed("steps%d", i), longs("size%d", i)[0], rates[0], rates[1]};
        grads[i] = floats("grad%d", i);
    }
    *output("norm") = (float)gradient_norm_f32(all, grads, count, threads);
    const Adam with = {adam[0], adam[1], adam[2]};
    update_f32(all, grads, count, &with, step[0], step[1], step[2], threads);
}
