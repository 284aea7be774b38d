/* driver CASES THREADS: run all cases of a file; say which of them differ, and exit with status 1 if one does.
 *
 * A file is a sequence of arrays: name (24 bytes), type (f, d, l or c) and count (8 bytes each), then the numbers, all
 * little-endian. "case" holds a case's name and "run" what runs it; "end" ends it. An array whose name begins with "="
 * is what is expected, to within tolerance[0] |expected| + tolerance[1] (1 + max |expected|). "lanes" says how many
 * floats a vector must hold for the case to be run. */
#include <stdarg.h>
#include <stdio.h>

#include "driver.h"

#define MOST 512

typedef struct {
    char name[24];
    long type, count;
    void *data;
} Array;

typedef struct {
    const Array *expected;
    void *found;
} Output;

int threads;
static Array arrays[MOST];
static Output outputs[MOST];
static void *taken[MOST];
static int array_count, output_count, taken_count, failures, failed_cases;

#define RUN_ALL(RUN) RUN(map) RUN(network) RUN(invert) RUN(wavenet) RUN(wavenet_invert) RUN(ode) RUN(matching) RUN(update)
#define DECLARE(name) void run_##name(void);
#define ENTRY(name) {#name, run_##name},
RUN_ALL(DECLARE)
static const struct {
    const char *name;
    void (*run)(void);
} RUNS[] = {RUN_ALL(ENTRY)};

static void stop(const char *what) {
    fprintf(stderr, "driver: %s\n", what);
    exit(2);
}

static void *take(size_t bytes) {
    void *found = malloc(bytes ? bytes : 1);
    if (!found || taken_count == MOST) stop("out of memory");
    return taken[taken_count++] = found;
}

static const Array *find(const char *prefix, const char *format, va_list arguments) {
    char name[64];
    const int length = snprintf(name, sizeof name, "%s", prefix);
    vsnprintf(name + length, sizeof name - (size_t)length, format, arguments);
    for (int i = 0; i < array_count; i++)
        if (!strcmp(arrays[i].name, name)) return arrays + i;
    return NULL;
}

#define FIND(prefix, format)                                                                                           \
    va_list arguments;                                                                                                 \
    va_start(arguments, format);                                                                                       \
    const Array *array = find(prefix, format, arguments);                                                              \
    va_end(arguments);                                                                                                 \
    if (!array) return NULL;

static void *typed(const Array *array, long type) {
    if (array->type != type) stop(array->name);
    return array->data;
}

const float *floats(const char *name, ...) { FIND("", name) return typed(array, 'f'); }
const long *longs(const char *name, ...) { FIND("", name) return typed(array, 'l'); }
const double *doubles(const char *name, ...) { FIND("", name) return typed(array, 'd'); }

float *memory(long count) {
    const size_t bytes = sizeof(float) * (size_t)count;
    return memset(take(bytes), 0xff, bytes);
}

static void *add_output(const Array *array, size_t width) {
    if (output_count == MOST) stop("too many outputs");
    void *found = take(width * (size_t)array->count);
    memset(found, 0xff, width * (size_t)array->count);
    outputs[output_count++] = (Output){array, found};
    return found;
}

float *output(const char *name, ...) { FIND("=", name) return add_output(array, sizeof(float)); }

long *output_longs(const char *name) {
    for (int i = 0; i < array_count; i++)
        if (arrays[i].name[0] == '=' && !strcmp(arrays[i].name + 1, name)) return add_output(arrays + i, sizeof(long));
    return NULL;
}

float *changed(const char *name, ...) {
    FIND("", name)
    for (int i = 0; i < array_count; i++)
        if (arrays[i].name[0] == '=' && !strcmp(arrays[i].name + 1, array->name))
            return memcpy(add_output(arrays + i, sizeof(float)), typed(array, 'f'), sizeof(float) * (size_t)array->count);
    return NULL;
}

const Map *case_maps(int *count) {
    const double *from = doubles("maps");
    *count = (int)number("map_count");
    Map *maps = take(sizeof(Map) * (size_t)*count);
    for (int m = 0; m < *count; m++, from += 5)
        maps[m] = (Map){(int)from[0], (int)from[1], from[2], from[3], from[4]};
    return maps;
}

void succeed(int failed) { failures += failed; }

#undef scratch
void *exact_scratch(int slot, size_t bytes) {
    static _Thread_local void *kept[2];
    free(kept[slot]);
    if (posix_memalign(kept + slot, 64, bytes)) return kept[slot] = NULL;
    return memset(kept[slot], 0xff, bytes);
}

static void compare(const Output *output, const double *tolerance) {
    const Array *array = output->expected;
    const double *expected = typed(array, 'd');
    const int whole = array->name[1] == '#'; /* counts */
    double largest = 0;
    for (long i = 0; i < array->count; i++) largest = fmax(largest, fabs(expected[i]));
    for (long i = 0; i < array->count; i++) {
        const double found = whole ? (double)((long *)output->found)[i] : (double)((float *)output->found)[i];
        if (fabs(found - expected[i]) <= tolerance[0] * fabs(expected[i]) + tolerance[1] * (1 + largest)) continue;
        if (!failures++) printf("  %s[%ld] is %.9g, not %.9g\n", array->name + 1, i, found, expected[i]);
    }
}

/* Run the case that was read, and forget it; returns whether it is one for these vectors. */
static int run_case(void) {
    const char *run = NULL, *name = NULL;
    for (int i = 0; i < array_count; i++) {
        if (!strcmp(arrays[i].name, "run")) run = typed(arrays + i, 'c');
        if (!strcmp(arrays[i].name, "case")) name = typed(arrays + i, 'c');
    }
    if (!run || !name) stop("a case without a name");
    const int meant = !longs("lanes") || number("lanes") == VL;
    if (meant) {
        size_t i = 0;
        while (i < sizeof RUNS / sizeof *RUNS && strcmp(RUNS[i].name, run)) i++;
        if (i == sizeof RUNS / sizeof *RUNS) stop(run);
        failures = 0;
        RUNS[i].run();
        for (int o = 0; o < output_count; o++) compare(outputs + o, doubles("tolerance"));
        if (failures) printf("%s, %d threads: %d numbers differ\n", name, threads, failures), failed_cases++;
    }
    for (int i = 0; i < taken_count; i++) free(taken[i]);
    array_count = output_count = taken_count = 0;
    return meant;
}

int main(int count, char **arguments) {
    FILE *file = count == 3 ? fopen(arguments[1], "rb") : NULL;
    threads = count == 3 ? atoi(arguments[2]) : 0;
    if (!file || threads < 1) stop("expected a file of cases and a number of threads");
    int cases = 0;
    for (Array next; fread(next.name, sizeof next.name, 1, file);) {
        if (!strcmp(next.name, "end")) {
            cases += run_case();
            continue;
        }
        if (array_count == MOST || !fread(&next.type, 16, 1, file)) stop("a file of cases that is cut off");
        const size_t width = next.type == 'f' ? 4 : next.type == 'c' ? 1 : 8, bytes = width * (size_t)next.count;
        next.data = take(bytes);
        if (fread(next.data, 1, bytes, file) != bytes) stop("a file of cases that is cut off");
        arrays[array_count++] = next;
    }
    fclose(file);
    printf("%d cases, %d failed\n", cases, failed_cases);
    return failed_cases || !cases;
}
