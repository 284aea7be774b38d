/* For clang: its calls of an OpenMP runtime, answered by GCC's, which is PyTorch's.

clang's own runtime would keep a second pool of threads, which wait busily while PyTorch's work, and the other way
round: with two threads on two cores a network of 1,024 units took three times as long. These are the entry points that
clang's code for parallel regions, static and dynamic loops, barriers and critical sections calls (kmp.h of LLVM),
and libgomp's behind them (libgomp_g.h of GCC); both interfaces are stable. They are hidden, so that no other runtime in
the process stands in for them. */
#if defined(__clang__) && defined(DIFFEO_GOMP)
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))
#define MOST 48 /* values that a parallel region shares */

void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
bool GOMP_loop_dynamic_start(long, long, long, long, long *, long *);
bool GOMP_loop_dynamic_next(long *, long *);
void GOMP_loop_end_nowait(void);
void GOMP_barrier(void);
void GOMP_critical_start(void);
void GOMP_critical_end(void);
int omp_get_thread_num(void);
int omp_get_num_threads(void);

typedef void task_t(int32_t *, int32_t *, ...);

typedef struct {
    task_t *task;
    void *shared[MOST];
} region_t;

static __thread int32_t asked; /* threads of the next region; 0 for as many as there are */
static __thread struct {
    long low, end, step, chunk;
    bool begun;
} loop;

#define FOUR(i) s[i], s[(i) + 1], s[(i) + 2], s[(i) + 3]
#define SIXTEEN(i) FOUR(i), FOUR((i) + 4), FOUR((i) + 8), FOUR((i) + 12)

static void run(void *data) {
    const region_t *region = data;
    void *const *s = region->shared;
    int32_t thread = omp_get_thread_num(), bound = 0;
    region->task(&thread, &bound, SIXTEEN(0), SIXTEEN(16), SIXTEEN(32)); /* a task leaves alone what it does not take */
}

HIDDEN int32_t __kmpc_global_thread_num(void *place) {
    (void)place;
    return omp_get_thread_num();
}

HIDDEN void __kmpc_push_num_threads(void *place, int32_t thread, int32_t threads) {
    (void)place, (void)thread;
    asked = threads;
}

HIDDEN void __kmpc_fork_call(void *place, int32_t count, task_t *task, ...) {
    (void)place;
    if (count > MOST)
        __builtin_trap(); /* the build is raced before it is used, and would be found out */
    region_t region = {task, {0}};
    va_list rest;
    va_start(rest, task);
    for (int32_t i = 0; i < count; i++)
        region.shared[i] = va_arg(rest, void *);
    va_end(rest);
    unsigned threads = asked > 0 ? (unsigned)asked : 0;
    asked = 0;
    GOMP_parallel(run, &region, threads, 0);
}

HIDDEN void __kmpc_serialized_parallel(void *place, int32_t thread) {
    (void)place, (void)thread;
    asked = 0;
}

HIDDEN void __kmpc_end_serialized_parallel(void *place, int32_t thread) {
    (void)place, (void)thread;
}

HIDDEN void __kmpc_barrier(void *place, int32_t thread) {
    (void)place, (void)thread;
    GOMP_barrier();
}

HIDDEN void __kmpc_critical(void *place, int32_t thread, void *lock) {
    (void)place, (void)thread, (void)lock;
    GOMP_critical_start();
}

HIDDEN void __kmpc_end_critical(void *place, int32_t thread, void *lock) {
    (void)place, (void)thread, (void)lock;
    GOMP_critical_end();
}

/* Both ends of a range are within it; a thread without a share gets one that ends before it begins. */
#define STATIC(NAME, TYPE, STEP)                                                                                      \
    HIDDEN void NAME(void *place, int32_t thread, int32_t kind, int32_t *last, TYPE *low, TYPE *high, STEP *stride,   \
                     STEP step, STEP chunk) {                                                                         \
        (void)place, (void)thread, (void)kind, (void)chunk;                                                           \
        TYPE me = (TYPE)omp_get_thread_num(), threads = (TYPE)omp_get_num_threads();                                  \
        TYPE trips = (TYPE)((*high - *low) / (TYPE)step + 1), share = trips / threads, extra = trips % threads;       \
        TYPE first = me * share + (me < extra ? me : extra), mine = share + (me < extra);                             \
        *last = mine > 0 && first + mine == trips;                                                                    \
        *stride = (STEP)(trips * (TYPE)step);                                                                         \
        *low += first * (TYPE)step;                                                                                   \
        *high = *low + (mine - 1) * (TYPE)step;                                                                       \
    }

STATIC(__kmpc_for_static_init_4, int32_t, int32_t)
STATIC(__kmpc_for_static_init_4u, uint32_t, int32_t)
STATIC(__kmpc_for_static_init_8, int64_t, int64_t)
STATIC(__kmpc_for_static_init_8u, uint64_t, int64_t)

HIDDEN void __kmpc_for_static_fini(void *place, int32_t thread) {
    (void)place, (void)thread;
}

HIDDEN void __kmpc_dispatch_init_8(void *place, int32_t thread, int32_t kind, int64_t low, int64_t high, int64_t step,
                                   int64_t chunk) {
    (void)place, (void)thread, (void)kind;
    loop.low = low, loop.end = high + step, loop.step = step, loop.chunk = chunk > 0 ? chunk : 1, loop.begun = false;
}

HIDDEN int32_t __kmpc_dispatch_next_8(void *place, int32_t thread, int32_t *last, int64_t *low, int64_t *high,
                                      int64_t *step) {
    (void)place, (void)thread;
    long from, to;
    bool more = loop.begun ? GOMP_loop_dynamic_next(&from, &to)
                           : GOMP_loop_dynamic_start(loop.low, loop.end, loop.step, loop.chunk, &from, &to);
    loop.begun = true;
    *last = 0;
    if (!more) {
        GOMP_loop_end_nowait();
        return 0;
    }
    *low = from, *high = to - loop.step, *step = loop.step;
    return 1;
}

HIDDEN void __kmpc_dispatch_deinit(void *place, int32_t thread) {
    (void)place, (void)thread;
}
#else
typedef int nothing_here; /* GCC calls its own runtime */
#endif
