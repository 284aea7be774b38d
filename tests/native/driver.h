/* Runs the kernels without Python, for sanitizers and for processors that are emulated. Each file here includes one of
 * the kernels' and calls it with the arrays of a case, which tests/native_cases.py wrote; driver.c reads the cases and
 * compares what comes out. Include this first. */
#pragma once
#include "maps.h"

extern int threads; /* for the kernels to use */

/* An array of the case by its name, as long as it was written; NULL if it has none. `%d` in the name is an index. */
const float *floats(const char *name, ...);
const long *longs(const char *name, ...);
const double *doubles(const char *name, ...);
static inline long number(const char *name) { return *longs(name); }

/* Memory of exactly so many floats, until the case ends; all of them NaN. */
float *memory(long count);

/* Memory for what the case expects under this name, to be compared with that at its end; NULL if it expects nothing. */
float *output(const char *name, ...);
long *output_longs(const char *name);

/* The same, with what the case has under this name: for what a kernel changes in place. */
float *changed(const char *name, ...);

/* The univariate maps of the case, and how many there are. */
const Map *case_maps(int *count);

/* Count a kernel's failure as one of the case. */
void succeed(int failed);

/* Kernels get memory of exactly the size that they ask for, and NaN in it: neither a step past its end nor what was
 * never written remains unseen. */
void *exact_scratch(int slot, size_t bytes);
static inline void *exact_workspace(size_t bytes, int *failed) {
    void *found = exact_scratch(PER_THREAD, bytes);
    if (!found) *failed = 1;
    return found;
}
#define scratch exact_scratch
#define workspace exact_workspace
