/* One step of decoding as a list of records, each an operation on rows of floats, run by all threads in one region.

   A record is a number of the operation, the number of its chunks and its arguments: pointers, sizes, the bits of floats.
   Threads take chunks of a record as they come, and go on to the next once all of its chunks are done; none waits for a
   thread that has taken nothing, as one may that has no core at the moment. The rows m of a value lie apart by a stride.
   Numbers of the file are those of program.py. */

#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../native_math.h"
#include "../row_linear/row_linear.c"
#include "../lowbit_matmul/lowbit_matmul.c"
#include "../ssd/step.c"

#define ARGUMENTS 22
#define PATIENCE 4096 /* turns of waiting before a thread gives its core away */

typedef struct {
    int64_t code, chunks, a[ARGUMENTS];
} record;

typedef struct {
    int64_t taken, done, apart[6];
} progress;

INLINE float real(int64_t bits) {
    const int32_t low = (int32_t)bits;
    float value;
    memcpy(&value, &low, 4);
    return value;
}

INLINE float read_one(const void *from, int64_t i, int64_t brief) { return number(from, i, brief != 0); }

INLINE void write_one(void *to, int64_t i, float value, int64_t brief) {
    if (!brief) {
        ((float *)to)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = value != value ? 0x7fc00000u : bits + 0x7fff + (bits >> 16 & 1); /* to the nearest, ties to even */
    ((uint16_t *)to)[i] = (uint16_t)(bits >> 16);
}

INLINE float silu(float x) { return x / (1 + exp_f32(-x)); }

#define F(i) ((const float *)a[i])
#define OUT(i) ((float *)a[i])

/* y = w n(x) or w n(x silu(z)) over groups of a row; chunk: a row. a: x x_row y y_row w z z_row width groups eps */
static void norm_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1], *w = F(4), *z = a[5] ? F(5) + m * a[6] : 0;
    float *y = OUT(2) + m * a[3];
    const int64_t size = a[7] / a[8];
    for (int64_t g = 0; g < a[8]; g++, x += size, y += size) {
        float sum = 0;
        if (z)
            for (int64_t i = 0; i < size; i++) y[i] = x[i] * silu(z[g * size + i]);
        const float *from = z ? y : x;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += from[i] * from[i];
        const float scale = 1 / sqrtf(sum / (float)size + real(a[9]));
        for (int64_t i = 0; i < size; i++) y[i] = from[i] * scale * (w ? w[g * size + i] : 1);
    }
}

/* y = base + out (factor W x + b); a: x x_row y y_row base base_row N C M factor out bias rows, then of numbers: w brief,
   of a record: packed bits groups brief scale zero with 2 in the place of brief */
INLINE void put(const int64_t *a, int64_t n, const float *sums, int64_t M) {
    for (int64_t m = 0; m < M; m++) {
        const float value = real(a[10]) * (real(a[9]) * sums[m] + (a[11] ? F(11)[n] : 0));
        OUT(2)[m * a[3] + n] = a[4] ? F(4)[m * a[5] + n] + value : value;
    }
}

INLINE void matrix_rows(const int64_t *a, int64_t first, int64_t last, int brief, int M) {
    for (int64_t n = first; n < last; n++) {
        float sums[4];
        column(a[7], n, (const void *)a[13], F(0), a[1], sums, brief, M);
        put(a, n, sums, M);
    }
}

static void record_rows(const int64_t *a, int64_t first, int64_t last) {
    const int64_t C = a[7], M = a[8], groups = a[16], size = C / groups;
    const record_f32 r = {a[6], C, a[15], groups, a[17], (const uint8_t *)a[13], (const void *)a[18], (const uint8_t *)a[19]};
    const row_f32 row = make_row_f32(r);
    float *w = malloc((C > WHOLE(groups) ? C : WHOLE(groups)) * sizeof(float));
    if (M == 1) sum_columns_f32(w, F(0), groups, size);
    for (int64_t n = first; n < last; n++) {
        float sums[4];
        read_row_f32(row, r, n);
        if (M == 1) {
            sums[0] = one_row_f32(row, F(0), w, groups, size);
        } else {
            numbers_f32(w, row, groups, size);
            for (int64_t m = 0; m < M; m++) sums[m] = dot_f32(w, F(0) + m * a[1], C);
        }
        put(a, n, sums, M);
    }
    free_row_f32(row);
    free(w);
}

static void linear_rows(const int64_t *a, int64_t chunk) {
    const int64_t first = chunk * a[12], last = first + a[12] < a[6] ? first + a[12] : a[6];
    if (a[14] == 2) {
        record_rows(a, first, last);
        return;
    }
    switch (2 * a[8] + a[14]) {
        case 2: matrix_rows(a, first, last, 0, 1); return;
        case 3: matrix_rows(a, first, last, 1, 1); return;
        case 4: matrix_rows(a, first, last, 0, 2); return;
        case 5: matrix_rows(a, first, last, 1, 2); return;
        case 6: matrix_rows(a, first, last, 0, 3); return;
        case 7: matrix_rows(a, first, last, 1, 3); return;
        case 8: matrix_rows(a, first, last, 0, 4); return;
        case 9: matrix_rows(a, first, last, 1, 4); return;
    }
}

/* a step of the convolution, its taps w (W, D); chunk: a row. a: x x_row y y_row w b state next brief D W silu. next may
   be state */
static void conv_row(const int64_t *a, int64_t m) {
    const int64_t D = a[9], W = a[10], brief = a[8], size = (W - 1) * D;
    const float *x = F(0) + m * a[1], *w = F(4), *b = F(5);
    float *y = OUT(2) + m * a[3];
    const void *state = (const char *)a[6] + m * size * (brief ? 2 : 4);
    void *next = (char *)a[7] + m * size * (brief ? 2 : 4);
#pragma omp simd
    for (int64_t d = 0; d < D; d++) y[d] = (b ? b[d] : 0) + w[(W - 1) * D + d] * x[d];
    for (int64_t k = 0; k < W - 1; k++) {
        if (brief) {
            const uint16_t *from = (const uint16_t *)state + k * D;
            uint16_t *to = (uint16_t *)next + k * D;
            for (int64_t d = 0; d < D; d++) y[d] += w[k * D + d] * read_one(from, d, 1);
            if (k + 1 < W - 1)
                memmove(to, from + D, D * 2);
            else
                for (int64_t d = 0; d < D; d++) write_one(to, d, x[d], 1);
        } else {
            const float *from = (const float *)state + k * D;
            float *to = (float *)next + k * D;
#pragma omp simd
            for (int64_t d = 0; d < D; d++) y[d] += w[k * D + d] * from[d];
            memmove(to, k + 1 < W - 1 ? from + D : x, D * 4);
        }
    }
    if (a[11])
        for (int64_t d = 0; d < D; d++) y[d] = silu(y[d]);
}

/* a step of Mamba-2; chunk: a head of a row. a: x x_row dt dt_row B B_row C C_row A bias D state next y y_row limits
   H P N G softplus */
static void ssd_head(const int64_t *a, int64_t chunk) {
    const int64_t H = a[16], P = a[17], N = a[18], G = a[19], m = chunk / H, k = chunk % H, map = k / (H / G) * N;
    const float dt = F(2)[m * a[3] + k];
    const float step = step_of(a[9] ? dt + F(9)[k] : dt, a[20], F(15));
    const float rate = F(8)[k] < -3e30f ? -3e30f : F(8)[k];
    head(P, N, step, exp_product_f32(step, rate), F(0) + m * a[1] + k * P, F(4) + m * a[5] + map, F(6) + m * a[7] + map,
         a[10] ? F(10) + k * P : 0, F(11) + chunk * P * N, OUT(13) + m * a[14] + k * P, OUT(12) + chunk * P * N);
}

/* a step of Mamba-1, gated; chunk: 64 channels of a row. a: x x_row dt dt_row B B_row C C_row A D z z_row state next y
   y_row dim N */
static void scan_channels(const int64_t *a, int64_t chunk) {
    const int64_t dim = a[16], N = a[17], blocks = (dim + 63) / 64, m = chunk / blocks, first = chunk % blocks * 64;
    const int64_t last = first + 64 < dim ? first + 64 : dim;
    const float *B = F(4) + m * a[5], *C = F(6) + m * a[7], *A = F(8), *D = F(9);
    for (int64_t d = first; d < last; d++) {
        const float x = F(0)[m * a[1] + d], step = softplus_f32(F(2)[m * a[3] + d]), in = step * x;
        const float *h = F(12) + (m * dim + d) * N, *rate = A + d * N;
        float *next = OUT(13) + (m * dim + d) * N, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t n = 0; n < N; n++) {
            const float value = exp_product_f32(step, rate[n]) * h[n] + in * B[n];
            next[n] = value;
            sum += value * C[n];
        }
        OUT(14)[m * a[15] + d] = (sum + D[d] * x) * silu(F(10)[m * a[11] + d]);
    }
}

static void turn(float *x, const float *frequency, int64_t P, float place, float scale, int64_t interleaved) {
    for (int64_t i = 0; i < P; i++) {
        const float angle = place * frequency[i], c = cosf(angle) * scale, s = sinf(angle) * scale;
        float *first = interleaved ? x + 2 * i : x + i, *second = interleaved ? x + 2 * i + 1 : x + P + i;
        const float left = *first, right = *second;
        *first = left * c - right * s;
        *second = right * c + left * s;
    }
}

/* queries and keys are turned, keys and values kept; chunk: a head of q or k of a row. a: q q_row k k_row v v_row key value
   brief capacity slot place frequency P scale interleaved H G d */
static void turn_head(const int64_t *a, int64_t chunk) {
    const int64_t H = a[16], G = a[17], d = a[18], m = chunk / (H + G), h = chunk % (H + G);
    float *x = h < H ? OUT(0) + m * a[1] + h * d : OUT(2) + m * a[3] + (h - H) * d;
    if (a[12]) turn(x, F(12), a[13], (float)a[11], real(a[14]), a[15]);
    if (h < H) return;
    const float *v = F(4) + m * a[5] + (h - H) * d;
    const int64_t place = ((m * G + h - H) * a[9] + a[10]) * d;
    for (int64_t i = 0; i < d; i++) {
        write_one((void *)a[6], place + i, x[i], a[8]);
        write_one((void *)a[7], place + i, v[i], a[8]);
    }
}

INLINE void attend_to(const int64_t *a, int64_t m, int64_t h, int brief) {
    const int64_t H = a[12], G = a[13], d = a[14], S = a[9], from = (m * G + h / (H / G)) * a[8] * d;
    const float *q = F(0) + m * a[1] + h * d;
    float *y = OUT(2) + m * a[3] + h * d, *weight = OUT(11) + (m * H + h) * a[8], most = -INFINITY, sum = 0;
    const void *key = (const void *)a[4], *value = (const void *)a[5];
    for (int64_t s = 0; s < S; s++) {
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < d; i++) dot += q[i] * number(key, from + s * d + i, brief);
        weight[s] = dot * real(a[10]);
        most = weight[s] > most ? weight[s] : most;
    }
    for (int64_t s = 0; s < S; s++) weight[s] = exp_f32(weight[s] - most);
#pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < S; s++) sum += weight[s];
    memset(y, 0, d * sizeof(float));
    for (int64_t s = 0; s < S; s++) {
        const float share = weight[s] / sum;
#pragma omp simd
        for (int64_t i = 0; i < d; i++) y[i] += share * number(value, from + s * d + i, brief);
    }
}

/* chunk: a query head of a row. a: q q_row y y_row key value - brief capacity filled scale scratch H G d */
static void attend_head(const int64_t *a, int64_t chunk) {
    if (a[7])
        attend_to(a, chunk / a[12], chunk % a[12], 1);
    else
        attend_to(a, chunk / a[12], chunk % a[12], 0);
}

/* y = silu(gate) up; chunk: a row. a: gate gate_row up up_row y y_row width */
static void glu_row(const int64_t *a, int64_t m) {
    const float *gate = F(0) + m * a[1], *up = F(2) + m * a[3];
    float *y = OUT(4) + m * a[5];
#pragma omp simd
    for (int64_t i = 0; i < a[6]; i++) y[i] = silu(gate[i]) * up[i];
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
        case 1: linear_rows(r->a, chunk); return;
        case 2: conv_row(r->a, chunk); return;
        case 3: ssd_head(r->a, chunk); return;
        case 4: scan_channels(r->a, chunk); return;
        case 5: turn_head(r->a, chunk); return;
        case 6: attend_head(r->a, chunk); return;
        case 7: glu_row(r->a, chunk); return;
        case 8: scale_row(r->a, chunk); return;
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
