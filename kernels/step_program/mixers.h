/* Steps of recurrent mixers. */

#include "../memory.h"
#include "common.h"
#include "../ssd/step.c"

/* a step of the convolution, its taps w (W, D); chunk: some columns of a row. a: x x_row y y_row w b state next brief D W
   silu columns. next may be state */
static void conv_columns(const int64_t *a, int64_t chunk) {
    const int64_t D = a[9], W = a[10], brief = a[8], chunks = (D + a[12] - 1) / a[12], m = chunk / chunks;
    const int64_t first = chunk % chunks * a[12], width = D - first < a[12] ? D - first : a[12];
    const int64_t start = m * (W - 1) * D + first;
    const float *x = F(0) + m * a[1] + first, *w = F(4) + first, *b = a[5] ? F(5) + first : 0;
    float *y = OUT(2) + m * a[3] + first;
#pragma omp simd
    for (int64_t d = 0; d < width; d++) y[d] = (b ? b[d] : 0) + w[(W - 1) * D + d] * x[d];
    for (int64_t k = 0; k < W - 1; k++) {
        if (brief) {
            const uint16_t *from = (const uint16_t *)a[6] + start + k * D;
            uint16_t *to = (uint16_t *)a[7] + start + k * D;
            for (int64_t d = 0; d < width; d++) y[d] += w[k * D + d] * read_one(from, d, 1);
            if (k + 1 < W - 1)
                memmove(to, from + D, width * 2);
            else
                for (int64_t d = 0; d < width; d++) write_one(to, d, x[d], 1);
        } else {
            const float *from = F(6) + start + k * D;
            float *to = OUT(7) + start + k * D;
#pragma omp simd
            for (int64_t d = 0; d < width; d++) y[d] += w[k * D + d] * from[d];
            memmove(to, k + 1 < W - 1 ? from + D : x, width * 4);
        }
    }
    if (a[11])
        for (int64_t d = 0; d < width; d++) y[d] = silu(y[d]);
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

/* a step of linear systems, a channel each, of complex modes h: h' = a h + b x - q 2 Re(v h), y = Re(c h') + D x; without
   q the matrix of the system is diagonal. chunk: 64 channels of a row. a: x x_row y y_row a b c q v D state next dim N */
static void modes_channels(const int64_t *a, int64_t chunk) {
    const int64_t dim = a[12], N = a[13], blocks = (dim + 63) / 64, m = chunk / blocks, first = chunk % blocks * 64;
    const int64_t last = first + 64 < dim ? first + 64 : dim;
    for (int64_t d = first; d < last; d++) {
        const float x = F(0)[m * a[1] + d], *keep = F(4) + d * N, *in = F(5) + d * N, *out = F(6) + d * N;
        const float *q = F(7) + (a[7] ? d * N : 0), *v = F(8) + (a[7] ? d * N : 0), *h = F(10) + (m * dim + d) * N;
        float *next = OUT(11) + (m * dim + d) * N, seen = 0, sum = 0;
        if (a[7])
            for (int64_t n = 0; n < N; n += 2) seen += 2 * (v[n] * h[n] - v[n + 1] * h[n + 1]);
        for (int64_t n = 0; n < N; n += 2) {
            float re = keep[n] * h[n] - keep[n + 1] * h[n + 1] + in[n] * x;
            float im = keep[n] * h[n + 1] + keep[n + 1] * h[n] + in[n + 1] * x;
            if (a[7]) re -= q[n] * seen, im -= q[n + 1] * seen;
            next[n] = re;
            next[n + 1] = im;
            sum += out[n] * re - out[n + 1] * im;
        }
        OUT(2)[m * a[3] + d] = sum + F(9)[d] * x;
    }
}

/* y_j = x + (the x before - x) mu_j for several mu; chunk: a row. a: x x_row y y_row mu state next brief D count. next may
   be state */
static void shift_row(const int64_t *a, int64_t m) {
    const int64_t D = a[8], brief = a[7];
    const float *x = F(0) + m * a[1];
    for (int64_t j = 0; j < a[9]; j++) {
        const float *mu = F(4) + j * D;
        float *y = OUT(2) + m * a[3] + j * D;
        for (int64_t d = 0; d < D; d++) y[d] = x[d] + (read_one((const void *)a[5], m * D + d, brief) - x[d]) * mu[d];
    }
    for (int64_t d = 0; d < D; d++) write_one((void *)a[6], m * D + d, x[d], brief);
}

/* a step of the gated recurrence of Griffin, h' = e^l h + sqrt(1 - e^(2 l)) sigmoid(i) x with l = rate sigmoid(r), where
   1 - e^(-2 u) = 2 t / (1 + t) for t = tanh u; the first input is not multiplied by the root. chunk: a row. a: x x_row r
   r_row i i_row y y_row rate state next begun begun' D */
static void leak_row(const int64_t *a, int64_t m) {
    const int64_t D = a[13], begun = ((const int64_t *)a[11])[m];
    const float *x = F(0) + m * a[1], *r = F(2) + m * a[3], *in = F(4) + m * a[5], *rate = F(8), *h = F(9) + m * D;
    float *y = OUT(6) + m * a[7], *next = OUT(10) + m * D;
#pragma omp simd
    for (int64_t d = 0; d < D; d++) {
        const float open = sigmoid(r[d]), t = tanh_f32(-rate[d] * open), gain = begun ? sqrtf(2 * t / (1 + t)) : 1;
        y[d] = next[d] = exp_product_f32(rate[d], open) * h[d] + gain * sigmoid(in[d]) * x[d];
    }
    ((int64_t *)a[12])[m] = 1;
}

/* a step of an sLSTM: gates' logits x (4, H, D) and of what the head gave before, h R; then h, c, n and the stabilizer m,
   a cell (4, H, D). chunk: a head of a row. a: x x_row y y_row R cell cell' H D. cell' may be cell */
static void slstm_head(const int64_t *a, int64_t chunk) {
    const int64_t H = a[7], D = a[8], m = chunk / H, h = chunk % H, part = H * D, own = m * 4 * part + h * D;
    const float *before = F(5) + own;
    float *cell = OUT(6) + own, *z = there(malloc(4 * D * sizeof(float)));
    for (int64_t g = 0; g < 4; g++) memcpy(z + g * D, F(0) + m * a[1] + g * part + h * D, D * sizeof(float));
    for (int64_t d = 0; d < D; d++) {
        const float out = before[d], *R = F(4) + (h * D + d) * 4 * D;
#pragma omp simd
        for (int64_t j = 0; j < 4 * D; j++) z[j] += out * R[j];
    }
    for (int64_t d = 0; d < D; d++) {
        const float c = before[part + d], n = before[2 * part + d], i = z[d];
        const float kept = n == 0 ? -INFINITY : before[3 * part + d] - softplus_f32(-z[D + d]), most = kept > i ? kept : i;
        const float keep = exp_f32(kept - most), enter = exp_f32(i - most);
        cell[part + d] = keep * c + enter * tanh_f32(z[2 * D + d]);
        cell[2 * part + d] = keep * n + enter;
        cell[3 * part + d] = most;
        cell[d] = OUT(2)[m * a[3] + h * D + d] = sigmoid(z[3 * D + d]) * cell[part + d] / cell[2 * part + d];
    }
    free(z);
}
