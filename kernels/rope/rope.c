/* Rotary embedding on the CPU: pairs (a, b) of channels turn to (a cos - b sin, b cos + a sin), the other channels stay.
   Layouts: x (B,T,H,K), its steps x_row apart; y the same, contiguous; cos and sin (T,P), or (B,T,P) when batched, the
   same for all heads. The file includes itself to define the function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <string.h>

#define REAL float
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include __FILE__

#else

void NAME(rope)(int64_t B, int64_t T, int64_t H, int64_t K, int64_t P, int64_t x_row, int64_t batched,
                int64_t interleaved, int64_t threads, const REAL *x, const REAL *cos, const REAL *sin, REAL *y) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t step = 0; step < B * T; step++) {
        const int64_t angle = (batched ? step : step % T) * P;
        const REAL *c = cos + angle, *s = sin + angle;
        for (int64_t h = 0; h < H; h++) {
            const REAL *from = x + step * x_row + h * K;
            REAL *restrict to = y + (step * H + h) * K;
            if (interleaved)
                for (int64_t i = 0; i < P; i++) {
                    to[2 * i] = from[2 * i] * c[i] - from[2 * i + 1] * s[i];
                    to[2 * i + 1] = from[2 * i + 1] * c[i] + from[2 * i] * s[i];
                }
            else
                for (int64_t i = 0; i < P; i++) {
                    to[i] = from[i] * c[i] - from[P + i] * s[i];
                    to[P + i] = from[P + i] * c[i] + from[i] * s[i];
                }
            memcpy(to + 2 * P, from + 2 * P, (K - 2 * P) * sizeof(REAL));
        }
    }
}

#endif
