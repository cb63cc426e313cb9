/* Steps of recurrent mixers. */

#include "common.h"
#include "../ssd/step.c"

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
