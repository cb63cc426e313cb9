/* One time step of the short causal convolution: y_d = f(b_d + sum_k w_dk u_kd) over the W - 1 inputs before and x, and
   the newest W - 1 inputs. Layouts: x y (B,D), w (D,W), b (D) or NULL, state next (B,W-1,D), contiguous. */

#include "../native_math.h"

void conv_step_f32(int64_t batch, int64_t D, int64_t W, int64_t silu, const float *restrict x, const float *restrict w,
                   const float *restrict b, const float *restrict state, float *restrict y, float *restrict next) {
    for (int64_t i = 0; i < batch; i++, x += D, y += D, state += (W - 1) * D, next += (W - 1) * D) {
        for (int64_t d = 0; d < D; d++) y[d] = (b ? b[d] : 0) + w[d * W + W - 1] * x[d];
        for (int64_t k = 0; k < W - 1; k++)
            for (int64_t d = 0; d < D; d++) {
                y[d] += w[d * W + k] * state[k * D + d];
                next[k * D + d] = k + 1 < W - 1 ? state[(k + 1) * D + d] : x[d];
            }
        if (silu)
            for (int64_t d = 0; d < D; d++) y[d] = y[d] / (1 + exp_f32(-y[d]));
    }
}
