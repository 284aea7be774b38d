#include "driver.h"
/* the kernels: */
#include "../../src/diffeo/ops/cpu/wavenet.c"


static WaveNet case_wavenet(void) {
    const long *shape = longs("shape"); /* size, channels, depth, kernel, skip, hop, frames */
    WaveNet net = {.dilations = longs("dilations"), .size = shape[0], .channels = shape[1], .depth = shape[2],
                   .kernel = shape[3], .skip = shape[4], .hop = shape[5], .frames = shape[6]};
    for (int i = 0; i < 12; i++) net.weights[i] = floats("weight%d", i);
    return net;
}

void run_wavenet(void) {
    const WaveNet net = case_wavenet();
    const long rows = number("rows"), length = number("length");
    const float *x = floats("x"), *shared = floats("shared");
    succeed(wavenet_f32(rows, length, &net, shared, x, output("out"), NULL, threads));
    if (!floats("grad")) return;
    float *kept = memory(rows * wavenet_kept(length, &net));
    succeed(wavenet_f32(rows, length, &net, shared, x, output("out"), kept, threads));
    succeed(wavenet_backward_f32(rows, length, &net, x, kept, floats("grad"), output("x"), output("shared"),
                                 output("weights"), threads));
}

void run_wavenet_invert(void) {
    const WaveNet net = case_wavenet();
    int count;
    const Map *maps = case_maps(&count);
    succeed(wavenet_invert_f32(number("rows"), number("length"), &net, floats("shared"), maps, count, floats("z"),
                               output("x"), output("log_det"), threads));
}
