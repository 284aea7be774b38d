#include "driver.h"
/* the kernels: */
#include "../../src/diffeo/ops/cpu/maps.c"


void run_map(void) {
    int count;
    const Map *maps = case_maps(&count);
    const long *shape = longs("shape"); /* rows, columns, strides of the parameters, generate, precise */
    const float *value = floats("value"), *params = floats("params"), *gz = floats("gz");
    map_f32(shape[0], shape[1], maps, count, value, params, shape[2], shape[3], (int)shape[4], (int)shape[5],
            output("out"), output("log_det"), threads);
    if (gz)
        map_backward_f32(shape[0], shape[1], maps, count, value, params, shape[2], shape[3], gz, floats("gl"),
                         output("gx"), output("gparams"), shape[0] * shape[1], shape[1], threads);
}
