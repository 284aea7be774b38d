#include "driver.h"
/* the kernels: */
#include "../../src/diffeo/ops/cpu/network.c"

#include "networks.h"

static Mapping case_mapping(const long *shape, long rows) { /* generate, precise, elements, by_element, by_param */
    int count;
    const Map *maps = case_maps(&count);
    return (Mapping){.maps = maps, .count = count, .generate = (int)shape[0], .precise = (int)shape[1],
                     .elements = shape[2], .by_element = shape[3], .by_param = shape[4], .value = floats("value"),
                     .value_by_element = rows, .value_by_row = 1, .out = output("out"), .log_det = output("log_det")};
}

/* Forward; and where the case has a gradient, forward again, keeping what the backward pass needs, then that. */
void run_network(void) {
    CaseNetwork kept_here;
    const Network *net = case_network(&kept_here);
    const long rows = number("rows"), *mapped = longs("mapping"), *strides = longs("strides");
    const float *x = floats("x"), *context = floats("context"), *grad = floats("grad");
    Mapping mapping = {0};
    if (mapped) mapping = case_mapping(mapped, rows);
    succeed(network_f32(rows, net, context, x, strides[0], strides[1], mapped ? NULL : output("out"), NULL, NULL,
                        mapped ? &mapping : NULL, threads));
    if (!grad) return;

    float *values[MOST_LAYERS], *sums[MOST_LAYERS], *slopes[MOST_LAYERS];
    float *by_weights[MOST_LAYERS], *by_biases[MOST_LAYERS];
    for (int s = 0; s < sources_of(net); s++) by_weights[s] = output("weight%d", s);
    for (int l = 0; l < net->depth; l++) {
        values[l] = memory(kept_floats(rows, net->layers[l].columns));
        by_biases[l] = output("bias%d", l);
    }
    if (context) values[net->depth] = memory(kept_floats(rows, net->context->columns));
    for (int l = 0; l + 1 < net->depth; l++) { /* what a ReLU lets through tells its slope */
        const int simple = net->activation == RELU && !net->layers[l].residual;
        sums[l] = simple ? NULL : memory(kept_floats(rows, net->layers[l].units));
        slopes[l] = simple ? values[l + 1] : sums[l];
    }
    if (mapped) {
        mapping = case_mapping(mapped, rows);
        mapping.params = memory(kept_floats(rows, net->layers[net->depth - 1].units));
    }
    succeed(network_f32(rows, net, context, x, strides[0], strides[1], mapped ? NULL : output("out"), values, sums,
                        mapped ? &mapping : NULL, threads));
    float *by_x = output("x");
    if (mapped) {
        mapping.grad_log = floats("grad_log");
        mapping.by_value = output("value");
        if (!mapping.by_value) mapping.by_value = by_x; /* what is mapped is what the network sees */
    }
    succeed(network_backward_f32(rows, net, values, slopes, grad, by_x, output("context"), by_weights, by_biases,
                                 mapped ? &mapping : NULL, threads));
}

void run_invert(void) {
    CaseNetwork kept_here;
    int count;
    const Network *net = case_network(&kept_here);
    const Map *maps = case_maps(&count);
    const long elements = net->layers[0].columns, size = net->layers[net->depth - 1].units / elements;
    succeed(invert_f32(number("rows"), elements, size, net, floats("context"), maps, count, floats("z"), output("x"),
                       output("log_det"), number("block"), threads));
}
