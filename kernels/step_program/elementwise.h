/* What is computed number by number: activations, products, columns in another order. */

#include "common.h"

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

/* y = base + factor w x, w of a column, of the row (by) or both; chunk: a row. a: x x_row y y_row w base base_row factor
   width by by_row */
static void scale_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1], *w = F(4), *base = a[5] ? F(5) + m * a[6] : 0;
    const float factor = real(a[7]) * (a[9] ? F(9)[m * a[10]] : 1);
    float *y = OUT(2) + m * a[3];
    for (int64_t i = 0; i < a[8]; i++) y[i] = (base ? base[i] : 0) + factor * (w ? w[i] * x[i] : x[i]);
}

/* y_i = x_index(i); chunk: a row. a: x x_row y y_row index width */
static void pick_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1];
    const int64_t *index = (const int64_t *)a[4];
    float *y = OUT(2) + m * a[3];
    for (int64_t i = 0; i < a[5]; i++) y[i] = x[index[i]];
}

/* y = x + (z - x) g; chunk: a row. a: x x_row z z_row g g_row y y_row width */
static void blend_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1], *z = F(2) + m * a[3], *g = F(4) + m * a[5];
    float *y = OUT(6) + m * a[7];
#pragma omp simd
    for (int64_t i = 0; i < a[8]; i++) y[i] = x[i] + (z[i] - x[i]) * g[i];
}

/* y = exp(rate f(x + b)) with f softplus (0), softplus of the negative (1) or sigmoid (2); chunk: some columns of a row. a: x
   x_row y y_row rate b width f columns */
static void decay_columns(const int64_t *a, int64_t chunk) {
    const int64_t chunks = (a[6] + a[8] - 1) / a[8], m = chunk / chunks, first = chunk % chunks * a[8];
    const int64_t last = first + a[8] < a[6] ? first + a[8] : a[6];
    const float *x = F(0) + m * a[1], *rate = F(4), *b = F(5);
    float *y = OUT(2) + m * a[3];
    for (int64_t i = first; i < last; i++) {
        const float in = b ? x[i] + b[i] : x[i];
        y[i] = exp_product_f32(rate[i], a[7] == 2 ? sigmoid(in) : softplus_f32(a[7] ? -in : in));
    }
}

/* y = s v with the integers v nearest to x / s, the largest number of the row on the largest of them; chunk: a row. a: x x_row
   y y_row width top */
static void round_row(const int64_t *a, int64_t m) {
    const float *x = F(0) + m * a[1];
    float *y = OUT(2) + m * a[3], most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < a[4]; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    const float step = most > 0 ? most / (float)a[5] : 1;
    for (int64_t i = 0; i < a[4]; i++) y[i] = step * rintf(x[i] / step);
}
