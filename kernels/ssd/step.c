/* One time step of state-space duality (Mamba-2): for each head, with the step d = clamp(softplus(dt + bias)) and the
   decay a = exp(d A),

     h' = a h + d x B^T,  y = h' C + D x

   in one pass over the state. Layouts: x y (B,H,P), dt (B,H), A bias (H), maps (B,G,N) for G groups of heads, D (H,P),
   h h' (B,H,P,N), limits (2), contiguous; bias and D may be NULL, h' may be h. */

#include "../native_math.h"

static inline float step_of(float dt, int64_t softplus, const float *limits) {
    const float d = softplus ? softplus_f32(dt) : dt;
    return d < limits[0] ? limits[0] : d > limits[1] ? limits[1] : d;
}

static inline void head(int64_t P, int64_t N, float step, float decay, const float *restrict x, const float *restrict B,
                        const float *restrict C, const float *restrict D, const float *h, float *restrict y,
                        float *next) {
    for (int64_t p = 0; p < P; p++) {
        const float in = step * x[p];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t n = 0; n < N; n++) {
            const float value = decay * h[p * N + n] + in * B[n];
            next[p * N + n] = value;
            sum += value * C[n];
        }
        y[p] = D ? sum + D[p] * x[p] : sum;
    }
}

void ssd_step_f32(int64_t batch, int64_t H, int64_t P, int64_t N, int64_t G, int64_t softplus, int64_t threads,
                  const float *limits, const float *x, const float *dt, const float *A, const float *bias,
                  const float *B, const float *C, const float *D, const float *h, float *y, float *next) {
#pragma omp parallel for schedule(static) num_threads(threads) if (batch * H * P * N > 1 << 18)
    for (int64_t i = 0; i < batch * H; i++) {
        const int64_t k = i % H, map = (i / H * G + k / (H / G)) * N;
        const float step = step_of(bias ? dt[i] + bias[k] : dt[i], softplus, limits);
        const float rate = A[k] < -3e30f ? -3e30f : A[k]; /* an infinite one times no time is no number */
        head(P, N, step, exp_product_f32(step, rate), x + i * P, B + map, C + map, D ? D + k * P : 0, h + i * P * N,
             y + i * P, next + i * P * N);
    }
}
