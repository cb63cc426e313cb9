/* The leaky memory on the CPU, forward and the chain of its gradient:

     kept = decay m[t-1],   m[t] = kept + gain 1.7159 tanh(2/3 (act(x[t] + kept W_in) W_out + bias))

   A task is ROWS sequences, which share what is read of the weights; these are copied with their rows filled up with
   zeros to whole tiles of two vectors.
   Layouts: x (B,T,H), memories (B,T,D), states (B,D), starts (B,T) bytes or NULL, contiguous.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../memory.h"
#include "../native_math.h"

#define ROWS 4

#define REAL float
#define EXP exp_f32
#define TANH tanh_f32
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef EXP
#undef TANH
#undef NAME
#define REAL double
#define EXP exp_f64
#define TANH tanh
#define NAME(x) x##_f64
#include __FILE__

#else

typedef REAL NAME(Vector) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

#define LANES ((int64_t)(BYTES / sizeof(REAL)))
#define WHOLE(size) (((size) + 2 * LANES - 1) / (2 * LANES) * 2 * LANES)

/* (K, J) -> (K, WHOLE(J)) */
static REAL *NAME(padded)(const REAL *weights, int64_t K, int64_t J) {
    REAL *copy = there(calloc(K * WHOLE(J) + 1, sizeof(REAL)));
    for (int64_t k = 0; k < K; k++) memcpy(copy + k * WHOLE(J), weights + k * J, J * sizeof(REAL));
    return copy;
}

/* to (ROWS, J) += from (ROWS, K) weights (K, J), for a J of whole tiles; the rows of from lie ``gap`` apart. */
static void NAME(add_product)(REAL *to, const REAL *from, int64_t gap, const REAL *weights, int64_t K, int64_t J) {
    for (int64_t j = 0; j < J; j += 2 * LANES) {
        NAME(Vector) sums[ROWS][2] = {0}; /* small beside what they are added to: that comes last, and rounds once */
        for (int64_t k = 0; k < K; k++) {
            const NAME(Vector) *row = (const NAME(Vector) *)(weights + k * J + j);
            for (int r = 0; r < ROWS; r++) {
                sums[r][0] += from[r * gap + k] * row[0];
                sums[r][1] += from[r * gap + k] * row[1];
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int half = 0; half < 2; half++) *(NAME(Vector) *)(to + r * J + j + half * LANES) += sums[r][half];
    }
}

void NAME(leaky_memory_forward)(int64_t batch, int64_t T, int64_t D, int64_t H, int64_t threads, int64_t smooth,
                                const REAL *x, const REAL *W_in, const REAL *W_out, const REAL *bias,
                                const REAL *decay, const REAL *gain, const REAL *initial, const uint8_t *starts,
                                REAL *states, REAL *final) {
    const int64_t memory = WHOLE(D), units = WHOLE(H);
    REAL *in = NAME(padded)(W_in, D, H), *out = NAME(padded)(W_out, H, D);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < batch; first += ROWS) {
        const int64_t rows = batch - first < ROWS ? batch - first : ROWS;
        REAL *state = there(calloc(ROWS * (3 * memory + units), sizeof(REAL))), *kept = state + ROWS * memory;
        REAL *drive = kept + ROWS * memory, *hidden = drive + ROWS * memory;
        for (int64_t r = 0; r < rows; r++) memcpy(state + r * memory, initial + (first + r) * D, D * sizeof(REAL));
        for (int64_t t = 0; t < T; t++) {
            for (int64_t r = 0; r < rows; r++) {
                const int64_t row = (first + r) * T + t;
                REAL *before = state + r * memory;
                if (starts && starts[row]) memset(before, 0, D * sizeof(REAL));
#pragma omp simd
                for (int64_t d = 0; d < D; d++) kept[r * memory + d] = decay[d] * before[d];
                memcpy(drive + r * memory, bias, D * sizeof(REAL));
                memcpy(hidden + r * units, x + row * H, H * sizeof(REAL));
            }
            NAME(add_product)(hidden, kept, memory, in, D, units);
            for (int64_t i = 0; i < rows * units; i += units) {
                REAL *u = hidden + i;
                if (smooth) {
#pragma omp simd
                    for (int64_t h = 0; h < H; h++) u[h] = u[h] / (1 + EXP(-u[h]));
                } else {
#pragma omp simd
                    for (int64_t h = 0; h < H; h++) u[h] = u[h] > 0 ? u[h] : 0;
                }
            }
            NAME(add_product)(drive, hidden, units, out, H, memory);
            for (int64_t r = 0; r < rows; r++) {
                REAL *after = states + ((first + r) * T + t) * D;
#pragma omp simd
                for (int64_t d = 0; d < D; d++) {
                    const REAL pull = TANH(drive[r * memory + d] * (REAL)(2.0 / 3));
                    after[d] = kept[r * memory + d] + gain[d] * ((REAL)1.7159 * pull);
                }
                memcpy(state + r * memory, after, D * sizeof(REAL));
            }
        }
        for (int64_t r = 0; r < rows; r++) memcpy(final + (first + r) * D, state + r * memory, D * sizeof(REAL));
        free(state);
    }
    free(in);
    free(out);
}

/* out_in (D,H) and in_out (H,D): W_out and W_in transposed. */
void NAME(leaky_memory_chain)(int64_t batch, int64_t T, int64_t D, int64_t H, int64_t threads, const REAL *dy,
                              const REAL *dfinal, const REAL *decay, const REAL *hidden_slope, const REAL *drive_slope,
                              const REAL *in_out, const REAL *out_in, const uint8_t *starts, REAL *gradients, REAL *dx,
                              REAL *dkept, REAL *dinitial) {
    const int64_t memory = WHOLE(D), units = WHOLE(H);
    REAL *in = NAME(padded)(in_out, H, D), *out = NAME(padded)(out_in, D, H);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < batch; first += ROWS) {
        const int64_t rows = batch - first < ROWS ? batch - first : ROWS;
        REAL *carried = there(calloc(ROWS * (3 * memory + units), sizeof(REAL))), *drive = carried + ROWS * memory;
        REAL *kept = drive + ROWS * memory, *hidden = kept + ROWS * memory;
        for (int64_t r = 0; r < rows; r++) memcpy(carried + r * memory, dfinal + (first + r) * D, D * sizeof(REAL));
        for (int64_t t = T - 1; t >= 0; t--) {
            memset(hidden, 0, ROWS * units * sizeof(REAL));
            for (int64_t r = 0; r < rows; r++) {
                const int64_t row = (first + r) * T + t;
#pragma omp simd
                for (int64_t d = 0; d < D; d++) {
                    const REAL arrived = carried[r * memory + d] + dy[row * D + d];
                    gradients[row * D + d] = kept[r * memory + d] = arrived;
                    drive[r * memory + d] = drive_slope[row * D + d] * arrived;
                }
            }
            NAME(add_product)(hidden, drive, memory, out, D, units);
            for (int64_t r = 0; r < rows; r++) {
                const int64_t row = (first + r) * T + t;
#pragma omp simd
                for (int64_t h = 0; h < H; h++)
                    dx[row * H + h] = hidden[r * units + h] *= hidden_slope[row * H + h];
            }
            NAME(add_product)(kept, hidden, units, in, H, memory);
            for (int64_t r = 0; r < rows; r++) {
                const int64_t row = (first + r) * T + t;
                const REAL *of_kept = kept + r * memory;
                memcpy(dkept + row * D, of_kept, D * sizeof(REAL));
                if (starts && starts[row]) memset(carried + r * memory, 0, D * sizeof(REAL));
                else {
#pragma omp simd
                    for (int64_t d = 0; d < D; d++) carried[r * memory + d] = decay[d] * of_kept[d];
                }
            }
        }
        for (int64_t r = 0; r < rows; r++) memcpy(dinitial + (first + r) * D, carried + r * memory, D * sizeof(REAL));
        free(carried);
    }
    free(in);
    free(out);
}

#undef LANES
#undef WHOLE

#endif
