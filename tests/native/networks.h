/* The network of a case. */
#pragma once
#include "driver.h"

#define MOST_LAYERS 8

typedef struct {
    Network net;
    Layer layers[MOST_LAYERS]; /* then the direct connections, and the context's */
} CaseNetwork;

static inline const Network *case_network(CaseNetwork *to) {
    const long depth = number("depth"), direct = number("direct"), context = number("contextual");
    for (int l = 0; l < depth + direct + context; l++) {
        Layer *layer = to->layers + l;
        const long *shape = longs("layer%d", l); /* units, columns, residual */
        *layer = (Layer){floats("weight%d", l), floats("bias%d", l), longs("seen%d", l), longs("first%d", l),
                         longs("ends%d", l), shape[0], shape[1], (int)shape[2]};
    }
    to->net = (Network){to->layers, direct ? to->layers + depth : NULL, context ? to->layers + depth + direct : NULL,
                        (int)depth, (int)number("activation"), *floats("bound")};
    return &to->net;
}
