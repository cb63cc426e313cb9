/* The sLSTM's recurrence on the CPU, forward and backward: with the logits x[t] + R h[t-1] of i, f, z and o,

     kept = logsigmoid(f) + m[t-1] (-inf where n[t-1] is 0),   m[t] = max(kept, i)
     c[t] = exp(kept - m[t]) c[t-1] + exp(i - m[t]) tanh(z),   n[t] = exp(kept - m[t]) n[t-1] + exp(i - m[t])
     h[t] = sigmoid(o) c[t] / n[t]

   A task is one head of one sequence. As h does not depend on m, the backward takes every m as a constant but for the
   last one, which the final state is held by: what that one's gradient is follows the larger of kept and i back.
   Layouts: x dx (B,T,4,H,D), R (H,D,4,D), states (B,4,H,D), outputs (B,T,H,D), starts (B,T) bytes or NULL, contiguous.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../memory.h"
#include "../native_math.h"

#define REAL float
#define EXP exp_f32
#define SOFTPLUS softplus_f32
#define TANH tanhf
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef EXP
#undef SOFTPLUS
#undef TANH
#undef NAME
#define REAL double
#define EXP exp_f64
#define SOFTPLUS softplus_f64
#define TANH tanh
#define NAME(x) x##_f64
#include __FILE__

#else

/* What the backward needs of a step, D numbers each: memory and normaliser after it, its gates as they act, the
   derivative of logsigmoid(f), and whether the forget gate won. */
typedef struct {
    REAL *c, *n, *f, *i, *z, *o, *slope, *forgot;
} NAME(Step);

static NAME(Step) NAME(step_at)(REAL *memory, int64_t D) {
    NAME(Step) s = {memory, memory + D, memory + 2 * D, memory + 3 * D, memory + 4 * D, memory + 5 * D,
                    memory + 6 * D, memory + 7 * D};
    return s;
}

/* logits = x + R h, (4, D); the gates of x lie H D apart. */
static void NAME(logits_of)(REAL *logits, const REAL *x, const REAL *R, const REAL *h, int64_t H, int64_t D) {
    for (int64_t g = 0; g < 4; g++) memcpy(logits + g * D, x + g * H * D, D * sizeof(REAL));
    int64_t d = 0;
    for (; d + 4 <= D; d += 4) {
        const REAL *row = R + d * 4 * D, a = h[d], b = h[d + 1], c = h[d + 2], e = h[d + 3];
#pragma omp simd
        for (int64_t j = 0; j < 4 * D; j++)
            logits[j] += a * row[j] + b * row[4 * D + j] + (c * row[8 * D + j] + e * row[12 * D + j]);
    }
    for (; d < D; d++) {
        const REAL *row = R + d * 4 * D, a = h[d];
#pragma omp simd
        for (int64_t j = 0; j < 4 * D; j++) logits[j] += a * row[j];
    }
}

/* One step of the state (h, c, n, m), and what the backward needs of it. */
static void NAME(advance)(REAL *state, const REAL *logits, NAME(Step) s, int64_t D) {
    REAL *h = state, *c = h + D, *n = c + D, *m = n + D;
    for (int64_t j = 0; j < D; j++) s.z[j] = TANH(logits[2 * D + j]);
#pragma omp simd
    for (int64_t j = 0; j < D; j++) {
        const REAL input = logits[j], forget = logits[D + j], before = m[j] - SOFTPLUS(-forget);
        const REAL kept = n[j] == 0 ? -INFINITY : before;
        const REAL top = kept > input ? kept : input;
        const REAL f = EXP(kept - top), i = EXP(input - top), o = 1 / (1 + EXP(-logits[3 * D + j]));
        c[j] = f * c[j] + i * s.z[j];
        n[j] = f * n[j] + i;
        m[j] = top;
        h[j] = o * c[j] / n[j];
        s.c[j] = c[j], s.n[j] = n[j], s.f[j] = f, s.i[j] = i, s.o[j] = o;
        s.slope[j] = 1 / (1 + EXP(forget));
        s.forgot[j] = kept > input;
    }
}

/* The four rows of one head of a state (4, H, D), to or from (4, D). */
static void NAME(copy_head)(REAL *to, int64_t to_gap, const REAL *from, int64_t from_gap, int64_t D) {
    for (int64_t g = 0; g < 4; g++) memcpy(to + g * to_gap, from + g * from_gap, D * sizeof(REAL));
}

void NAME(slstm_forward)(int64_t batch, int64_t T, int64_t H, int64_t D, int64_t threads, const REAL *x, const REAL *R,
                         const REAL *initial, const uint8_t *starts, REAL *output, REAL *final) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t head = 0; head < H; head++) {
            REAL *state = there(malloc(16 * D * sizeof(REAL))), *logits = state + 4 * D;
            const NAME(Step) scratch = NAME(step_at)(logits + 4 * D, D);
            NAME(copy_head)(state, D, initial + (b * 4 * H + head) * D, H * D, D);
            for (int64_t t = 0; t < T; t++) {
                const int64_t row = b * T + t;
                if (starts && starts[row]) memset(state, 0, 4 * D * sizeof(REAL));
                NAME(logits_of)(logits, x + (row * 4 * H + head) * D, R + head * D * 4 * D, state, H, D);
                NAME(advance)(state, logits, scratch, D);
                memcpy(output + (row * H + head) * D, state, D * sizeof(REAL));
            }
            NAME(copy_head)(final + (b * 4 * H + head) * D, H * D, state, D, D);
            free(state);
        }
}

/* before: h[t-1] of each step, zeros where a sequence starts, from which and dx the caller has the gradient of R. */
void NAME(slstm_backward)(int64_t batch, int64_t T, int64_t H, int64_t D, int64_t threads, const REAL *dy,
                          const REAL *dfinal, const REAL *x, const REAL *R, const REAL *initial, const uint8_t *starts,
                          REAL *before, REAL *dx, REAL *dinitial) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t head = 0; head < H; head++) {
            const REAL *weights = R + head * D * 4 * D, *first = initial + (b * 4 * H + head) * D;
            REAL *state = there(malloc((12 * D + T * 8 * D) * sizeof(REAL))), *logits = state + 4 * D;
            REAL *gradient = logits + 4 * D, *steps = gradient + 4 * D;
            NAME(copy_head)(state, D, first, H * D, D);
            for (int64_t t = 0; t < T; t++) {
                const int64_t row = b * T + t;
                if (starts && starts[row]) memset(state, 0, 4 * D * sizeof(REAL));
                memcpy(before + (row * H + head) * D, state, D * sizeof(REAL));
                NAME(logits_of)(logits, x + (row * 4 * H + head) * D, weights, state, H, D);
                NAME(advance)(state, logits, NAME(step_at)(steps + t * 8 * D, D), D);
            }
            NAME(copy_head)(gradient, D, dfinal + (b * 4 * H + head) * D, H * D, D);
            REAL *dh = gradient, *dc = dh + D, *dn = dc + D, *dm = dn + D;
#pragma omp simd
            for (int64_t j = 0; j < D; j++) dm[j] -= dc[j] * state[D + j] + dn[j] * state[2 * D + j];
            for (int64_t t = T - 1; t >= 0; t--) {
                const int64_t row = b * T + t;
                const int starting = starts && starts[row];
                const NAME(Step) s = NAME(step_at)(steps + t * 8 * D, D);
                const REAL *c = t ? s.c - 8 * D : first + H * D, *n = t ? s.n - 8 * D : first + 2 * H * D;
                const REAL *arriving = dy + (row * H + head) * D;
#pragma omp simd
                for (int64_t j = 0; j < D; j++) {
                    const REAL dout = dh[j] + arriving[j], share = s.c[j] / s.n[j], per = dout * s.o[j] / s.n[j];
                    const REAL memory = dc[j] + per, normaliser = dn[j] - per * share;
                    const REAL of_kept = starting ? 0 : s.f[j] * (memory * c[j] + normaliser * n[j]);
                    const REAL of_input = s.i[j] * (memory * s.z[j] + normaliser);
                    const REAL of_top = dm[j], kept = s.forgot[j];
                    logits[j] = of_input + (1 - kept) * of_top;
                    logits[D + j] = (of_kept + kept * of_top) * s.slope[j];
                    logits[2 * D + j] = memory * s.i[j] * (1 - s.z[j] * s.z[j]);
                    logits[3 * D + j] = dout * share * s.o[j] * (1 - s.o[j]);
                    dc[j] = starting ? 0 : memory * s.f[j];
                    dn[j] = starting ? 0 : normaliser * s.f[j];
                    dm[j] = starting ? 0 : kept * of_top;
                }
                NAME(copy_head)(dx + (row * 4 * H + head) * D, H * D, logits, D, D);
                for (int64_t d = 0; d < D; d++) {
                    const REAL *weight = weights + d * 4 * D;
                    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < 4 * D; j++) sum += weight[j] * logits[j];
                    dh[d] = starting ? 0 : sum;
                }
            }
#pragma omp simd
            for (int64_t j = 0; j < D; j++) dm[j] += dc[j] * first[H * D + j] + dn[j] * first[2 * H * D + j];
            NAME(copy_head)(dinitial + (b * 4 * H + head) * D, H * D, gradient, D, D);
            free(state);
        }
}

#endif
