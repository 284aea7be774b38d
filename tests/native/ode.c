#include "driver.h"
/* the kernels: */
#include "../../src/diffeo/ops/cpu/ode.c"

#include "networks.h"

static Field case_field(const Network *net) {
    const long *shape = longs("field"); /* size, context, frequencies, path */
    const double *rates = doubles("rates"); /* low, high, bound */
    return (Field){net, floats("data_mean"), floats("noise_mean"), floats("data_std"), floats("noise_std"),
                   floats("context"), shape[0], shape[1], shape[2], (int)shape[3], rates[0], rates[1], rates[2]};
}

void run_ode(void) {
    CaseNetwork kept_here;
    const Field field = case_field(case_network(&kept_here));
    const Tableau tableau = {number("stages"), floats("times"), floats("coefficients"), floats("error")};
    const float *c = floats("control");
    const Control control = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], number("most")};
    const long rows = number("rows");
    long *evaluations = output_longs("#evaluations"), *counted = evaluations ? evaluations : (long *)memory(2 * rows);
    Trouble trouble;
    succeed(ode_adaptive_f32(rows, number("elements"), &field, &tableau, &control, floats("y"), output("out"), counted,
                             memory(rows), &trouble, threads));
}

void run_matching(void) {
    const Field field = case_field(NULL);
    succeed(matching_f32(number("rows"), &field, floats("noise"), floats("data"), floats("t"), output("inputs"),
                         output("std"), output("target"), threads));
}
