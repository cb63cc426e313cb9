/* One step of decoding as a list of records, each an operation on rows of floats, run by all threads in one region.

   A record is a number of the operation, the number of its chunks and its arguments: pointers, sizes, the bits of floats.
   Threads take chunks of a record as they come, and go on to the next once all of its chunks are done; none waits for a
   thread that has taken nothing, as one may that has no core at the moment. The rows m of a value lie apart by a stride.
   Numbers of the file are those of program.py. */

#include <sched.h>

#include "attention.h"
#include "experts.h"
#include "linear.h"
#include "mixers.h"

#define PATIENCE 4096 /* turns of waiting before a thread gives its core away */

typedef struct {
    int64_t code, chunks, a[ARGUMENTS];
} record;

typedef struct {
    int64_t taken, done, apart[6];
} progress;

/* y = base + factor w n(x), or w n(x silu(z)), over groups of a row; chunk: a row. a: x x_row y y_row base base_row w z
   z_row width factor groups eps */
static void norm_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1], *base = a[4] ? F(4) + m * a[5] : 0, *w = F(6), *z = a[7] ? F(7) + m * a[8] : 0;
    float *y = OUT(2) + m * a[3];
    const int64_t size = a[9] / a[11];
    for (int64_t g = 0; g < a[11]; g++, x += size, y += size) {
        float sum = 0;
        if (z)
            for (int64_t i = 0; i < size; i++) y[i] = x[i] * silu(z[g * size + i]);
        const float *from = z ? y : x;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += from[i] * from[i];
        const float scale = real(a[10]) / sqrtf(sum / (float)size + real(a[12]));
        for (int64_t i = 0; i < size; i++) {
            const float value = from[i] * scale * (w ? w[g * size + i] : 1);
            y[i] = base ? base[g * size + i] + value : value;
        }
    }
}

INLINE float activated(float x, int64_t kind) {
    switch (kind) {
        case 0: return silu(x);
        case 1: return 0.5f * x * (1 + tanh_f32(0.797884561f * (x + 0.044715f * x * x * x)));
        case 2: return 0.5f * x * (1 + erff(x * 0.707106781f));
        case 3: return x > 0 ? x : 0;
        case 4: return sigmoid(x);
        case 5: return x > 0 ? x * x : 0;
        default: return x;
    }
}

INLINE void glu_of(const float *gate, const float *up, float *y, int64_t width, int64_t kind) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = activated(gate[i], kind) * (up ? up[i] : 1);
}

/* alpha tanh(x / alpha) */
INLINE void capped(const float *x, float *y, int64_t width, float alpha) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = alpha * tanh_f32(x[i] / alpha);
}

/* (u + 1) g sigmoid(alpha g), both bounded */
INLINE void clamped_glu(const float *gate, const float *up, float *y, int64_t width, float alpha, float limit) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        const float g = gate[i] > limit ? limit : gate[i], u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
        y[i] = (u + 1) * g * sigmoid(alpha * g);
    }
}

/* y = an activation of the gate, times up where there is one; chunk: some columns of a row. a: gate gate_row up up_row y
   y_row width kind alpha limit columns */
static void glu_columns(const int64_t *a, int64_t chunk) {
    const int64_t chunks = (a[6] + a[10] - 1) / a[10], m = chunk / chunks, first = chunk % chunks * a[10];
    const int64_t width = a[6] - first < a[10] ? a[6] - first : a[10];
    const float *gate = F(0) + m * a[1] + first, *up = a[2] ? F(2) + m * a[3] + first : 0;
    float *y = OUT(4) + m * a[5] + first;
    switch (a[7]) {
        case 0: glu_of(gate, up, y, width, 0); return;
        case 1: glu_of(gate, up, y, width, 1); return;
        case 3: glu_of(gate, up, y, width, 3); return;
        case 4: glu_of(gate, up, y, width, 4); return;
        case 6: clamped_glu(gate, up, y, width, real(a[8]), real(a[9])); return;
        case 7: capped(gate, y, width, real(a[8])); return;
        default: glu_of(gate, up, y, width, a[7]);
    }
}

/* y = x w, or with base y = base + factor x; chunk: a row. a: x x_row y y_row w base base_row factor width */
static void scale_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1], *w = F(4), *base = a[5] ? F(5) + m * a[6] : 0, factor = real(a[7]);
    float *y = OUT(2) + m * a[3];
    for (int64_t i = 0; i < a[8]; i++) y[i] = (base ? base[i] : 0) + factor * (w ? w[i] * x[i] : x[i]);
}

static void work(const record *r, int64_t chunk) {
    switch (r->code) {
        case 0: norm_row(r->a, chunk); return;
        case 1: linear_chunk(r->a, chunk); return;
        case 2: conv_row(r->a, chunk); return;
        case 3: ssd_head(r->a, chunk); return;
        case 4: scan_channels(r->a, chunk); return;
        case 5: turn_head(r->a, chunk); return;
        case 6: attend_head(r->a, chunk); return;
        case 7: glu_columns(r->a, chunk); return;
        case 8: scale_row(r->a, chunk); return;
        case 9: route_row(r->a, chunk); return;
        case 10: combine_row(r->a, chunk); return;
        case 11: digits_of_row(r->a, chunk); return;
    }
}

INLINE void pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

void run_program_f32(int64_t count, int64_t threads, const record *records, progress *at) {
    memset(at, 0, count * sizeof *at);
#pragma omp parallel num_threads(threads)
    for (int64_t k = 0; k < count; k++) {
        for (int64_t turns = 0; k && __atomic_load_n(&at[k - 1].done, __ATOMIC_ACQUIRE) < records[k - 1].chunks; turns++)
            if (turns < PATIENCE)
                pause_core();
            else
                sched_yield();
        int64_t chunk;
        while ((chunk = __atomic_fetch_add(&at[k].taken, 1, __ATOMIC_RELAXED)) < records[k].chunks) {
            work(&records[k], chunk);
            __atomic_fetch_add(&at[k].done, 1, __ATOMIC_RELEASE);
        }
    }
}

/* whether codes are multiplied by digits here */
void has_digits_f32(int64_t *found) { *found = HAS_DIGITS; }
