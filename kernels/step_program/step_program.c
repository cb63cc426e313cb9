/* One step of decoding as a list of records, each an operation on rows of floats, run by all threads in one region.

   A record is a number of the operation, the number of its chunks and its arguments: pointers, sizes, the bits of floats.
   Threads take chunks of a record as they come, one after another of a part of their own, as memory is read fastest, then
   of others' parts; they go on to the next record once all chunks are done. None waits for a thread that has taken
   nothing, as one may that has no core at the moment. The rows m of a value lie apart by a stride.
   Numbers of the file are those of program.py. */

#include <sched.h>

#include "attention.h"
#include "elementwise.h"
#include "experts.h"
#include "linear.h"
#include "mixers.h"
#include "recall.h"

#define PORTIONS 7 /* most parts of a record that threads begin with */
#define PATIENCE 4096 /* turns of waiting before a thread gives its core away */

typedef struct {
    int64_t code, chunks, a[ARGUMENTS], joined; /* joined: it may run beside the record before */
} record;

/* a program as one thread sees it: the part of each record's chunks with which it begins; how many chunks of each part
   are taken (PORTIONS, count), those of one part side by side, as one thread counts there; how many are done (count) */
typedef struct {
    const record *records;
    int64_t count, portions, own, *taken, *done;
} view;

/* y = base + factor (w n(x) + b), or w n(x silu(z)), over groups of a row; n: over the root mean square, or of what is
   left without the mean; chunk: a row. a: x x_row y y_row base base_row w z z_row width factor groups eps b centred */
static void norm_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1], *base = a[4] ? F(4) + m * a[5] : 0, *w = F(6), *z = a[7] ? F(7) + m * a[8] : 0;
    const float *b = F(13), factor = real(a[10]);
    float *y = OUT(2) + m * a[3];
    const int64_t size = a[9] / a[11];
    for (int64_t g = 0; g < a[11]; g++, x += size, y += size) {
        float mean = 0, sum = 0;
        if (z)
            for (int64_t i = 0; i < size; i++) y[i] = x[i] * silu(z[g * size + i]);
        const float *from = z ? y : x;
        if (a[14]) {
#pragma omp simd reduction(+ : mean)
            for (int64_t i = 0; i < size; i++) mean += from[i];
            mean /= (float)size;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += (from[i] - mean) * (from[i] - mean);
        const float scale = factor / sqrtf(sum / (float)size + real(a[12]));
        for (int64_t i = 0; i < size; i++) {
            float value = (from[i] - mean) * scale * (w ? w[g * size + i] : 1);
            if (b) value += factor * b[g * size + i];
            y[i] = base ? base[g * size + i] + value : value;
        }
    }
}

static void work(const record *r, int64_t chunk) {
    switch (r->code) {
        case 0: norm_row(r->a, chunk); return;
        case 1: linear_chunk(r->a, chunk); return;
        case 2: conv_columns(r->a, chunk); return;
        case 3: ssd_head(r->a, chunk); return;
        case 4: scan_channels(r->a, chunk); return;
        case 5: turn_head(r->a, chunk); return;
        case 6: attend_heads(r->a, chunk); return;
        case 7: glu_columns(r->a, chunk); return;
        case 8: scale_row(r->a, chunk); return;
        case 9: route_row(r->a, chunk); return;
        case 10: combine_row(r->a, chunk); return;
        case 11: digits_of_row(r->a, chunk); return;
        case 12: pick_row(r->a, chunk); return;
        case 13: blend_row(r->a, chunk); return;
        case 14: decay_columns(r->a, chunk); return;
        case 15: shift_row(r->a, chunk); return;
        case 16: leak_row(r->a, chunk); return;
        case 17: rotate_row(r->a, chunk); return;
        case 18: recall_columns(r->a, chunk); return;
        case 19: gate_head(r->a, chunk); return;
        case 20: bonus_head(r->a, chunk); return;
        case 21: features_head(r->a, chunk); return;
        case 22: quotient_head(r->a, chunk); return;
        case 23: slstm_head(r->a, chunk); return;
        case 24: round_row(r->a, chunk); return;
        case 25: modes_channels(r->a, chunk); return;
    }
}

INLINE void pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* a chunk of record k, of the own portion while there is one; -1 where all are taken */
INLINE int64_t take(view v, int64_t k) {
    const int64_t count = v.records[k].chunks;
    for (int64_t i = 0; i < v.portions; i++) {
        const int64_t p = (v.own + i) % v.portions, first = count * p / v.portions;
        const int64_t size = count * (p + 1) / v.portions - first;
        int64_t *taken = &v.taken[p * v.count + k];
        if (__atomic_load_n(taken, __ATOMIC_RELAXED) >= size) continue;
        const int64_t chunk = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
        if (chunk < size) return first + chunk;
    }
    return -1;
}

/* until all chunks of the record before k are done, and of those that it ran beside */
INLINE void wait_before(view v, int64_t k) {
    do {
        k--;
        for (int64_t turns = 0; __atomic_load_n(&v.done[k], __ATOMIC_ACQUIRE) < v.records[k].chunks; turns++)
            if (turns < PATIENCE)
                pause_core();
            else
                sched_yield();
    } while (k && v.records[k].joined);
}

/* progress: (PORTIONS + 1, count) */
void run_program_f32(int64_t count, int64_t threads, const record *records, int64_t *progress) {
    const int64_t portions = threads < PORTIONS ? threads : PORTIONS;
    int64_t arrived = 0;
    memset(progress, 0, (PORTIONS + 1) * count * sizeof *progress);
#pragma omp parallel num_threads(threads)
    {
        const int64_t own = __atomic_fetch_add(&arrived, 1, __ATOMIC_RELAXED) % portions;
        const view v = {records, count, portions, own, progress, progress + PORTIONS * count};
        for (int64_t k = 0; k < count; k++) {
            int64_t done = 0;
            if (k && !records[k].joined) wait_before(v, k);
            for (int64_t chunk; (chunk = take(v, k)) >= 0; done++) work(&records[k], chunk);
            if (done) __atomic_fetch_add(&v.done[k], done, __ATOMIC_RELEASE);
        }
    }
}

/* whether codes are multiplied by digits here */
void has_digits_f32(int64_t *found) { *found = HAS_DIGITS; }
