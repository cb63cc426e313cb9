/* State-space duality (Mamba-2) on the CPU as matrix products over chunks of Q steps, forward and backward.

     S[t] = exp(dt[t] A) S[t-1] + dt[t] x[t] B[t]^T,   y[t] = S[t] C[t]

   In a chunk, with total[i] the running sum of dt A, X = dt x, L[i][j] = exp(total[i] - total[j]) for j <= i, start[i] =
   exp(total[i]), end[i] = exp(total[last] - total[i]) and S (P x N) the state before the chunk:

     M = (C B^T) o L,   Y = M X + start o (C S^T),   S <- start[last] S + (end o X)^T B

   Running sums are in double: their differences keep the small decays that follow a very large one. A task is a block
   of heads that share B and C; it goes through the chunks in order, C B^T formed once, states in the cache.
   Layouts: x dy (B,T,H,P), dt (B,T,H), A (H), Bm Cm (B,T,G,N), states (B,H,P,N), starts (B,T) bytes; contiguous,
   but for the steps of x, B and C, which lie x_row, B_row and C_row apart.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../memory.h"
#include "../native_math.h"

#define LOWEST (-1500.0) /* exp of a log decay below it is 0, also beside growth up to the largest double */

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

#include "product.h"

/* exp of a sum of log decays to the precision of the result: a REAL would round a sum of -10 by more. */
INLINE REAL NAME(decayed)(double sum) {
    const double bounded = sum < LOWEST ? LOWEST : sum; /* a finite REAL */
    const REAL rounded = (REAL)bounded;
    return EXP(rounded) * (1 + (REAL)(bounded - rounded));
}

/* The decays of one head in a chunk of q steps. */
typedef struct {
    double *total, *rest;     /* the running sum and what rounding took from it */
    int64_t *first;           /* first step whose input reaches step i: a start, or a decay of zero; -1: before the chunk */
    REAL *step, *start, *end; /* dt, and the factors above; zero across a change of sequence */
    REAL *across, *memory;    /* start[last], once for every row of a state */
} NAME(decays);

static NAME(decays) NAME(new_decays)(int64_t Q, int64_t rows) {
    NAME(decays) d;
    d.memory = NAME(zeros)(9 * PADDED(Q) + PADDED(rows));
    d.step = d.memory, d.start = d.step + PADDED(Q), d.end = d.start + PADDED(Q);
    d.total = (double *)(d.end + PADDED(Q));
    d.rest = d.total + PADDED(Q);
    d.first = (int64_t *)(d.rest + PADDED(Q));
    d.across = d.end + 7 * PADDED(Q);
    return d;
}

static void NAME(set_decays)(NAME(decays) *d, int64_t q, int64_t rows, const REAL *dt, int64_t stride, REAL A,
                             const uint8_t *starts) {
    double running = 0, rest = 0;
    int64_t first = -1;
    for (int64_t i = 0; i < q; i++) {
        d->step[i] = dt[i * stride];
        const double log_decay = (double)d->step[i] * A;
        if ((starts && starts[i]) || log_decay < LOWEST) {
            first = i;
        } else { /* the sum of two doubles and its error, exactly */
            const double sum = running + log_decay, added = sum - running;
            rest += (running - (sum - added)) + (log_decay - added);
            running = sum;
        }
        d->first[i] = first;
        d->total[i] = running;
        d->rest[i] = rest;
    }
    for (int64_t i = 0; i < q; i++) {
        const REAL start = NAME(decayed)(d->total[i] + d->rest[i]);
        const REAL end = NAME(decayed)((running - d->total[i]) + (rest - d->rest[i]));
        d->start[i] = d->first[i] < 0 ? start : 0;
        d->end[i] = i >= first ? end : 0;
    }
    for (int64_t r = 0; r < rows; r++) d->across[r] = d->start[q - 1];
}

/* Row i of L, with zeros behind the diagonal up to a whole tile. */
INLINE void NAME(decay_row)(REAL *row, const NAME(decays) *d, int64_t i) {
    const int64_t first = d->first[i] < 0 ? 0 : d->first[i];
    const double total = d->total[i], rest = d->rest[i];
    for (int64_t j = 0; j < first; j++) row[j] = 0;
#pragma omp simd
    for (int64_t j = first; j <= i; j++) row[j] = NAME(decayed)((total - d->total[j]) + (rest - d->rest[j]));
    for (int64_t j = i + 1; j % ROWS; j++) row[j] = 0;
}

void NAME(ssd_forward)(int64_t batch, int64_t T, int64_t H, int64_t P, int64_t G, int64_t N, int64_t Q, int64_t block,
                       int64_t x_row, int64_t B_row, int64_t C_row, int64_t threads, const REAL *x, const REAL *dt, const REAL *A, const REAL *Bm, const REAL *Cm,
                       const REAL *initial, const uint8_t *starts, REAL *y, REAL *final) {
    const int64_t per_group = H / G, blocks = (per_group + block - 1) / block;
    const int64_t q_ = PADDED(Q), n_ = PADDED(N), p_ = PADDED(P);
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t k = 0; k < blocks; k++) {
                const int64_t first = g * per_group + k * block, heads = MIN(block, per_group - k * block);
                NAME(decays) d = NAME(new_decays)(Q, n_);
                REAL *B = NAME(zeros)(3 * q_ * n_ + 2 * q_ * q_ + 2 * q_ * p_ + heads * n_ * p_);
                REAL *C = B + q_ * n_, *Bt = C + q_ * n_, *CB = Bt + n_ * q_, *M = CB + q_ * q_;
                REAL *X = M + q_ * q_, *Y = X + q_ * p_, *states = Y + q_ * p_; /* states are S^T here: (N, P) */
                for (int64_t h = 0; h < heads; h++)
                    NAME(transpose)(states + h * n_ * p_, p_, initial + (b * H + first + h) * P * N, N, P, N);
                for (int64_t t = 0; t < T; t += Q) {
                    const int64_t q = MIN(Q, T - t), row = b * T + t;
                    NAME(gather)(B, n_, Bm + row * B_row + g * N, B_row, q, N, NULL);
                    NAME(gather)(C, n_, Cm + row * C_row + g * N, C_row, q, N, NULL);
                    NAME(transpose)(Bt, q_, B, n_, q, N);
                    NAME(product)(LOWER_RESULT, CB, q_, q, q, N, C, n_, 1, Bt, q_, NULL);
                    for (int64_t h = 0; h < heads; h++) {
                        const int64_t head = first + h, at = (row * H + head) * P;
                        REAL *S = states + h * n_ * p_;
                        NAME(set_decays)(&d, q, N, dt + row * H + head, H, A[head], starts ? starts + row : NULL);
                        for (int64_t i = 0; i < q; i++) {
                            REAL *m = M + i * q_;
                            NAME(decay_row)(m, &d, i);
                            for (int64_t j = 0; j <= i; j++) m[j] *= CB[i * q_ + j];
                        }
                        NAME(gather)(X, p_, x + row * x_row + head * P, x_row, q, P, d.step);
                        NAME(product)(FULL, Y, p_, q, P, N, C, n_, 1, S, p_, NULL);
                        NAME(product)(LOWER, Y, p_, q, P, q, M, q_, 1, X, p_, d.start);
                        for (int64_t i = 0; i < q; i++) memcpy(y + at + i * H * P, Y + i * p_, P * sizeof(REAL));
                        NAME(gather)(X, p_, X, p_, q, P, d.end);
                        NAME(product)(FULL, S, p_, N, P, q, B, 1, n_, X, p_, d.across);
                    }
                }
                for (int64_t h = 0; h < heads; h++)
                    NAME(transpose)(final + (b * H + first + h) * P * N, N, states + h * n_ * p_, p_, N, P);
                free(B);
                free(d.memory);
            }
}

/* A head's part of dB or dC joins the sum over the heads; products are those of its rows with the rows of b. */
static void NAME(join)(REAL *sum, double *products, const REAL *part, const REAL *b, int64_t width, int64_t rows,
                       int64_t columns) {
    for (int64_t r = 0; r < rows; r++, sum += width, part += width, b += width) {
        products[r] = NAME(dot)(part, b, columns);
        for (int64_t c = 0; c < columns; c++) sum[c] += part[c];
    }
}

/* Chunks forward for the state before each, then in reverse with R, the gradient of the state behind the chunk:

     dM = dY X^T,   Z = dM o L,   dX = M^T dY + end o (B R^T),   R <- start[last] R + (start o dY)^T C
     dC = Z B + start o (dY S),   dB = Z^T C + end o (X R)       (Z summed over the heads before its products)

   The gradient of the log decay dt A at step t is the sum of all that decays by it, of Z o (C B^T) over i >= t > j, of
   start o (C . dY S) from t on, of end o (B . X R) before t, and start[last] <R, S>: no differences, so that it is as
   small as the decay, and 0 where another sequence begins. dB_parts and dC_parts (blocks, B, T,
   G, N): one part a block of heads, summed by the caller in a fixed order; dA_parts (B, H). */
void NAME(ssd_backward)(int64_t batch, int64_t T, int64_t H, int64_t P, int64_t G, int64_t N, int64_t Q, int64_t block,
                        int64_t x_row, int64_t B_row, int64_t C_row, int64_t threads, const REAL *dy, const REAL *dfinal, const REAL *x, const REAL *dt,
                        const REAL *A, const REAL *Bm, const REAL *Cm, const REAL *initial, const uint8_t *starts,
                        REAL *dx, REAL *ddt, REAL *dA_parts, REAL *dB_parts, REAL *dC_parts, REAL *dinitial) {
    const int64_t per_group = H / G, blocks = (per_group + block - 1) / block, chunks = (T + Q - 1) / Q;
    const int64_t q_ = PADDED(Q), n_ = PADDED(N), p_ = PADDED(P), size = p_ * n_;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t k = 0; k < blocks; k++) {
                const int64_t first = g * per_group + k * block, heads = MIN(block, per_group - k * block);
                NAME(decays) d = NAME(new_decays)(Q, p_);
                REAL *B = NAME(zeros)(6 * q_ * n_ + 4 * q_ * q_ + 6 * q_ * p_ + q_ + (chunks + 1) * heads * size);
                REAL *C = B + q_ * n_, *Bt = C + q_ * n_, *dB = Bt + n_ * q_, *dC = dB + q_ * n_, *part = dC + q_ * n_;
                REAL *CB = part + q_ * n_, *M = CB + q_ * q_, *Z = M + q_ * q_, *dM = Z + q_ * q_;
                REAL *X = dM + q_ * q_, *dY = X + q_ * p_, *dX = dY + q_ * p_, *scaled = dX + q_ * p_;
                REAL *Xt = scaled + q_ * p_, *dXt = Xt + p_ * q_, *ones = dXt + p_ * q_;
                REAL *R = ones + q_, *states = R + heads * size;
                for (int64_t i = 0; i < q_; i++) ones[i] = 1;
                double *dlog = there(calloc(4 * q_ + heads, sizeof(double))), *from_start = dlog + q_, *to_end = dlog + 2 * q_;
                double *columns = dlog + 3 * q_, *dA = dlog + 4 * q_;
                for (int64_t h = 0; h < heads; h++) {
                    NAME(gather)(R + h * size, n_, dfinal + (b * H + first + h) * P * N, N, P, N, NULL);
                    NAME(gather)(states + h * size, n_, initial + (b * H + first + h) * P * N, N, P, N, NULL);
                }
                for (int64_t t = 0; t < T - Q; t += Q) {
                    const int64_t row = b * T + t;
                    NAME(gather)(B, n_, Bm + row * B_row + g * N, B_row, Q, N, NULL);
                    for (int64_t h = 0; h < heads; h++) {
                        const int64_t head = first + h;
                        const REAL *before = states + (t / Q * heads + h) * size;
                        REAL *after = states + ((t / Q + 1) * heads + h) * size;
                        NAME(set_decays)(&d, Q, P, dt + row * H + head, H, A[head], starts ? starts + row : NULL);
                        NAME(gather)(X, p_, x + row * x_row + head * P, x_row, Q, P, d.step);
                        NAME(gather)(X, p_, X, p_, Q, P, d.end);
                        memcpy(after, before, size * sizeof(REAL));
                        NAME(product)(FULL, after, n_, P, N, Q, X, 1, p_, B, n_, d.across);
                    }
                }
                for (int64_t t = (chunks - 1) * Q; t >= 0; t -= Q) {
                    const int64_t q = MIN(Q, T - t), row = b * T + t;
                    NAME(gather)(B, n_, Bm + row * B_row + g * N, B_row, q, N, NULL);
                    NAME(gather)(C, n_, Cm + row * C_row + g * N, C_row, q, N, NULL);
                    NAME(transpose)(Bt, q_, B, n_, q, N);
                    NAME(product)(LOWER_RESULT, CB, q_, q, q, N, C, n_, 1, Bt, q_, NULL);
                    memset(Z, 0, q_ * q_ * sizeof(REAL));
                    memset(dB, 0, 2 * q_ * n_ * sizeof(REAL)); /* and dC */
                    for (int64_t h = 0; h < heads; h++) {
                        const int64_t head = first + h, at = (row * H + head) * P;
                        const REAL *S = states + (t / Q * heads + h) * size;
                        REAL *Rh = R + h * size;
                        memset(columns, 0, q * sizeof(double));
                        NAME(set_decays)(&d, q, P, dt + row * H + head, H, A[head], starts ? starts + row : NULL);
                        NAME(gather)(X, p_, x + row * x_row + head * P, x_row, q, P, d.step);
                        NAME(gather)(dY, p_, dy + at, H * P, q, P, NULL);
                        /* within the chunk */
                        NAME(transpose)(Xt, q_, X, p_, q, P);
                        NAME(product)(LOWER_RESULT, dM, q_, q, q, P, dY, p_, 1, Xt, q_, NULL);
                        for (int64_t i = q - 1; i >= 0; i--) {
                            REAL *m = M + i * q_, *z = Z + i * q_;
                            const REAL *cb = CB + i * q_, *dm = dM + i * q_;
                            double sum = 0;
                            NAME(decay_row)(m, &d, i);
#pragma omp simd reduction(+ : sum)
                            for (int64_t j = 0; j < i; j++) {
                                const REAL zj = dm[j] * m[j];
                                z[j] += zj;
                                m[j] *= cb[j];
                                sum += columns[j] += zj * cb[j]; /* over the rows from i on */
                            }
                            z[i] += dm[i];
                            m[i] = cb[i];
                            dlog[i] = sum;
                        }
                        /* through the state behind the chunk */
                        double passing = 0;
                        for (int64_t p = 0; p < P; p++)
                            passing += d.across[0] * NAME(dot)(Rh + p * n_, S + p * n_, N);
                        NAME(gather)(scaled, p_, X, p_, q, P, d.end);
                        NAME(product)(FULL, part, n_, q, N, P, scaled, p_, 1, Rh, n_, NULL);
                        NAME(join)(dB, to_end, part, B, n_, q, N);
                        NAME(product)(FULL, dXt, q_, P, q, N, Rh, n_, 1, Bt, q_, NULL);
                        NAME(transpose)(dX, p_, dXt, q_, P, q);
                        NAME(product)(UPPER, dX, p_, q, P, q, M, 1, q_, dY, p_, d.end);
                        /* through the state before the chunk */
                        NAME(gather)(scaled, p_, dY, p_, q, P, d.start);
                        NAME(product)(FULL, part, n_, q, N, P, scaled, p_, 1, S, n_, NULL);
                        NAME(join)(dC, from_start, part, C, n_, q, N);
                        NAME(product)(FULL, Rh, n_, P, N, q, scaled, 1, p_, C, n_, d.across);
                        for (int64_t i = 0; i < q; passing += to_end[i++]) dlog[i] += passing;
                        double leaving = 0;
                        for (int64_t i = q - 1; i >= 0; i--) {
                            const int64_t token = row + i, here = at + i * H * P;
                            leaving += from_start[i];
                            const double gradient = dlog[i] + leaving;
                            dA[h] += gradient * d.step[i];
                            ddt[token * H + head] = gradient * A[head] + NAME(dot)(dX + i * p_, x + token * x_row + head * P, P);
                            for (int64_t p = 0; p < P; p++) dx[here + p] = d.step[i] * dX[i * p_ + p];
                        }
                    }
                    NAME(product)(UPPER, dB, n_, q, N, q, Z, 1, q_, C, n_, ones);
                    NAME(product)(LOWER, dC, n_, q, N, q, Z, q_, 1, B, n_, ones);
                    for (int64_t i = 0; i < q; i++) {
                        const int64_t to = ((k * batch * T + row + i) * G + g) * N;
                        memcpy(dB_parts + to, dB + i * n_, N * sizeof(REAL));
                        memcpy(dC_parts + to, dC + i * n_, N * sizeof(REAL));
                    }
                }
                for (int64_t h = 0; h < heads; h++) {
                    const int64_t head = b * H + first + h;
                    NAME(gather)(dinitial + head * P * N, N, R + h * size, n_, P, N, NULL);
                    dA_parts[head] = dA[h];
                }
                free(B);
                free(d.memory);
                free(dlog);
            }
}

#endif
