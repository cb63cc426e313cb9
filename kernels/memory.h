/* Memory that is there: where a system has none left, the process ends with a word and does not write to address 0. */

#ifndef ZOO_MEMORY_H
#define ZOO_MEMORY_H

#include <stdio.h>
#include <stdlib.h>

static inline void *there(void *memory) {
    if (!memory) {
        fputs("zoo: out of memory in a C kernel\n", stderr);
        abort();
    }
    return memory;
}

#endif
