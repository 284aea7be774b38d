#include "product.h"

#define EACH_SUM UNROLL for (int u = 0; u < U; u++) UNROLL for (int v = 0; v < N; v++)
#define PRODUCT(UNITS, VECTORS)                                                                                        \
    static void product_##UNITS##_##VECTORS(                                                                           \
        const float *restrict a, long by_unit, long by_column, long count, long segments, long by_segment,             \
        const float *restrict b, long by_b, float *restrict sums, long by_sums) {                                      \
        enum { U = UNITS, N = VECTORS };                                                                               \
        vf total[U][N];                                                                                                \
        EACH_SUM total[u][v] = *(const vf *)(sums + u * by_sums + v * VL);                                             \
        for (; segments > 0; segments--, a += by_segment)                                                              \
            for (long k = 0; k < count; k++, b += by_b) {                                                              \
                vf value[N];                                                                                           \
                UNROLL for (int v = 0; v < N; v++) value[v] = load_once(b + v * VL);                                   \
                UNROLL for (int u = 0; u < U; u++) {                                                                   \
                    const vf weight = splat(a[u * by_unit + k * by_column]);                                           \
                    UNROLL for (int v = 0; v < N; v++) total[u][v] += weight * value[v];                               \
                }                                                                                                      \
            }                                                                                                          \
        EACH_SUM *(vf *)(sums + u * by_sums + v * VL) = total[u][v];                                                   \
    }

#if WIDE == 3
#define PRODUCTS(U) PRODUCT(U, 1) PRODUCT(U, 2) PRODUCT(U, 3)
#define NAMES(U) {product_##U##_1, product_##U##_2, product_##U##_3}
#else
#define PRODUCTS(U) PRODUCT(U, 1) PRODUCT(U, 2)
#define NAMES(U) {product_##U##_1, product_##U##_2}
#endif
PRODUCTS(1) PRODUCTS(2) PRODUCTS(4)
#if TILE == 8
PRODUCTS(8)
#endif

const Product PRODUCT_OF[TILE + 1][WIDE] = {
    [1] = NAMES(1), [2] = NAMES(2), [4] = NAMES(4),
#if TILE == 8
    [8] = NAMES(8),
#endif
};
