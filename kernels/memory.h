/* Memory that is there: where a system has none left, the process ends with a word and does not write to address 0. */

#ifndef ZOO_MEMORY_H
#define ZOO_MEMORY_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static inline void *there(void *memory) {
    if (!memory) {
        fputs("zoo: out of memory in a C kernel\n", stderr);
        abort();
    }
    return memory;
}

/* What a thread computes in, kept from one call to the next, so that a token allocates nothing. */
enum { OF_DIGITS, OF_STEPS, OF_NUMBERS, OF_CODES, OF_SCALES, OF_ROW, OF_PLACES, KEPT_PARTS };

typedef struct {
    void *memory[KEPT_PARTS];
    size_t bytes[KEPT_PARTS];
} kept_parts;

static pthread_key_t kept_key;
static pthread_once_t kept_once = PTHREAD_ONCE_INIT;

static void end_kept(void *parts) {
    for (int part = 0; part < KEPT_PARTS; part++) free(((kept_parts *)parts)->memory[part]);
    free(parts);
}

static void begin_kept(void) { pthread_key_create(&kept_key, end_kept); }

/* this thread's memory of so many bytes, of one part or another, until it asks for the same part again; what stood
   there may stand there still. It goes with the thread */
static inline void *kept(int part, size_t bytes) {
    static _Thread_local kept_parts *own;
    if (!own) {
        pthread_once(&kept_once, begin_kept);
        own = there(calloc(1, sizeof *own));
        pthread_setspecific(kept_key, own);
    }
    if (own->bytes[part] < bytes) {
        free(own->memory[part]);
        own->memory[part] = there(malloc(bytes));
        own->bytes[part] = bytes;
    }
    return own->memory[part];
}

#endif
