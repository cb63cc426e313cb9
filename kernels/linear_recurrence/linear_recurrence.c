/* Diagonal linear recurrence on the CPU, forward and backward: h[t] = exp(g[t]) h[t-1] + x[t].

   Channels are processed in slices of LANES, the vector dimension, one slice after another over the whole sequence.
   Layouts: x (B,T,D) with steps x_row apart and g (B,T,D) with steps g_row apart, dy h dx dg (B,T,D), state (B,D),
   starts (B,T) bytes or NULL, all others contiguous.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../memory.h"
#include "../native_math.h"

#define LANES 64

#define REAL float
#define EXP exp_f32
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef EXP
#undef NAME
#define REAL double
#define EXP exp_f64
#define NAME(x) x##_f64
#include __FILE__

#else

/* decay of a step, zeros where a sequence starts */
static inline void NAME(load_decay)(REAL *decay, const REAL *g, const uint8_t *start, int64_t width) {
    if (start && *start) memset(decay, 0, width * sizeof(REAL));
    else {
#pragma omp simd
        for (int64_t i = 0; i < width; i++) decay[i] = EXP(g[i]);
    }
}

void NAME(linear_recurrence_forward)(int64_t batch, int64_t T, int64_t D, int64_t x_row, int64_t g_row, int64_t threads,
                                     const REAL *x, const REAL *g, const REAL *state, const uint8_t *starts,
                                     REAL *states, REAL *final) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t d = 0; d < D; d += LANES) {
            const int64_t width = D - d < LANES ? D - d : LANES;
            const REAL *before = state + b * D + d;
            for (int64_t t = 0; t < T; t++) {
                const REAL *input = x + (b * T + t) * x_row + d;
                REAL *h = states + (b * T + t) * D + d, decay[LANES];
                NAME(load_decay)(decay, g + (b * T + t) * g_row + d, starts ? starts + b * T + t : NULL, width);
#pragma omp simd
                for (int64_t i = 0; i < width; i++) h[i] = decay[i] * before[i] + input[i];
                before = h;
            }
            memcpy(final + b * D + d, before, width * sizeof(REAL));
        }
}

void NAME(linear_recurrence_backward)(int64_t batch, int64_t T, int64_t D, int64_t x_row, int64_t g_row,
                                      int64_t threads, const REAL *dy, const REAL *dfinal, const REAL *x, const REAL *g,
                                      const REAL *state, const uint8_t *starts, REAL *dx, REAL *dg, REAL *dinitial) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t d = 0; d < D; d += LANES) {
            const int64_t width = D - d < LANES ? D - d : LANES;
            /* decays, and the state before each step */
            REAL *decays = there(malloc(2 * T * LANES * sizeof(REAL))), *states = decays + T * LANES;
            memcpy(states, state + b * D + d, width * sizeof(REAL));
            for (int64_t t = 0; t < T; t++) {
                const REAL *input = x + (b * T + t) * x_row + d;
                REAL *decay = decays + t * LANES, *h = states + t * LANES;
                NAME(load_decay)(decay, g + (b * T + t) * g_row + d, starts ? starts + b * T + t : NULL, width);
                if (t + 1 < T) {
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) h[LANES + i] = decay[i] * h[i] + input[i];
                }
            }
            REAL gradient[LANES];
            memcpy(gradient, dfinal + b * D + d, width * sizeof(REAL));
            for (int64_t t = T - 1; t >= 0; t--) {
                const int64_t row = (b * T + t) * D + d;
                const REAL *decay = decays + t * LANES, *h = states + t * LANES;
#pragma omp simd
                for (int64_t i = 0; i < width; i++) {
                    const REAL arrived = gradient[i] + dy[row + i], through = arrived * decay[i];
                    dx[row + i] = arrived;
                    dg[row + i] = through * h[i];
                    gradient[i] = through;
                }
            }
            memcpy(dinitial + b * D + d, gradient, width * sizeof(REAL));
            free(decays);
        }
}

#endif
