/* Selective scan (Mamba-1) on the CPU, forward and backward.

     h[t] = exp(step[t] A) h[t-1] + step[t] x[t] B[t],   y[t] = (C[t] . h[t] + skip x[t]) silu(z[t])

   with step = dt + bias, or its softplus.

   Channels are processed in blocks of LANES, the vector dimension; a block's state (N x LANES) stays in the first-level
   cache over the whole sequence. The backward pass keeps the state at every CHUNK-th step only and recomputes between.
   Layouts: x dt z y (B,T,D), A (D,N), Bm Cm (B,T,G,N), skip bias (D), state (B,D,N), starts (B,T) bytes, all
   contiguous; skip, z, bias, starts and their gradients NULL where there are none.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../memory.h"
#include "../native_math.h"

#define LANES 64
#define CHUNK 32
#define SUMS 16 /* partial sums over lanes */
#define EACH_LANE _Pragma("omp simd") for (int i = 0; i < LANES; i++)

#define REAL float
#define EXP exp_f32
#define EXP_PRODUCT exp_product_f32
#define SOFTPLUS softplus_f32
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef EXP
#undef EXP_PRODUCT
#undef SOFTPLUS
#undef NAME
#define REAL double
#define EXP exp_f64
#define EXP_PRODUCT exp_product_f64
#define SOFTPLUS softplus_f64
#define NAME(x) x##_f64
#include __FILE__

#else

/* From memory to lanes, zeros where there is no channel or no memory. */
static inline void NAME(load)(REAL *lanes, const REAL *from, int64_t width) {
    if (!from) width = 0;
    for (int64_t i = 0; i < width; i++) lanes[i] = from[i];
    for (int64_t i = width; i < LANES; i++) lanes[i] = 0;
}

/* Step sizes, 0 where there is no channel: nothing changes there. */
static inline void NAME(load_steps)(REAL *step, const REAL *dt, const REAL *bias, int64_t softplus, int64_t width) {
    NAME(load)(step, dt, width);
    EACH_LANE step[i] += bias[i];
    if (softplus) EACH_LANE step[i] = SOFTPLUS(step[i]);
    for (int64_t i = width; i < LANES; i++) step[i] = 0;
}

/* By halves: one after the other, the additions would take more time than all else. */
static inline REAL NAME(sum)(REAL *terms) {
    for (int half = SUMS / 2; half; half /= 2)
        for (int i = 0; i < half; i++) terms[i] += terms[i + half];
    return terms[0];
}

/* (width, N) rows of memory <-> (N, LANES) in the cache */
static void NAME(gather)(REAL *lanes, const REAL *rows, int64_t width, int64_t N) {
    memset(lanes, 0, N * LANES * sizeof(REAL));
    if (rows)
        for (int64_t i = 0; i < width; i++)
            for (int64_t n = 0; n < N; n++) lanes[n * LANES + i] = rows[i * N + n];
}
static void NAME(scatter)(REAL *rows, const REAL *lanes, int64_t width, int64_t N) {
    for (int64_t i = 0; i < width; i++)
        for (int64_t n = 0; n < N; n++) rows[i * N + n] = lanes[n * LANES + i];
}

void NAME(selective_scan_forward)(int64_t batch, int64_t T, int64_t D, int64_t N, int64_t G, int64_t threads,
                                  int64_t softplus, const REAL *x, const REAL *dt, const REAL *A, const REAL *Bm,
                                  const REAL *Cm, const REAL *skip, const REAL *z, const REAL *bias,
                                  const REAL *initial, const uint8_t *starts, REAL *y, REAL *final) {
    const int64_t per_group = D / G, blocks = (per_group + LANES - 1) / LANES;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t d = g * per_group + block * LANES;
                const int64_t left = per_group - block * LANES, width = left < LANES ? left : LANES;
                REAL *a = there(malloc(2 * N * LANES * sizeof(REAL))), *h = a + N * LANES;
                REAL extra[LANES], shift[LANES];
                NAME(load)(extra, skip ? skip + d : NULL, width);
                NAME(load)(shift, bias ? bias + d : NULL, width);
                NAME(gather)(a, A + d * N, width, N);
                NAME(gather)(h, initial ? initial + (b * D + d) * N : NULL, width, N);
                for (int64_t t = 0; t < T; t++) {
                    const int64_t row = (b * T + t) * D + d, coefficients = ((b * T + t) * G + g) * N;
                    REAL step[LANES], input[LANES], out[LANES];
                    NAME(load_steps)(step, dt + row, shift, softplus, width);
                    NAME(load)(input, x + row, width);
                    EACH_LANE { out[i] = extra[i] * input[i]; input[i] *= step[i]; }
                    if (starts && starts[b * T + t]) memset(h, 0, N * LANES * sizeof(REAL));
                    for (int64_t n = 0; n < N; n++) {
                        const REAL bn = Bm[coefficients + n], cn = Cm[coefficients + n];
                        REAL *hn = h + n * LANES;
                        const REAL *an = a + n * LANES;
                        EACH_LANE {
                            hn[i] = EXP_PRODUCT(step[i], an[i]) * hn[i] + input[i] * bn;
                            out[i] += hn[i] * cn;
                        }
                    }
                    if (z) {
                        REAL gate[LANES];
                        NAME(load)(gate, z + row, width);
                        EACH_LANE out[i] *= gate[i] / (1 + EXP(-gate[i]));
                    }
                    for (int64_t i = 0; i < width; i++) y[row + i] = out[i];
                }
                NAME(scatter)(final + (b * D + d) * N, h, width, N);
                free(a);
            }
}

/* dB_parts and dC_parts (blocks, B, T, G, N): one part a block of channels, summed by the caller in a fixed order;
   dA_parts (B, D, N), dskip_parts and dbias_parts (B, D). */
void NAME(selective_scan_backward)(int64_t batch, int64_t T, int64_t D, int64_t N, int64_t G, int64_t threads,
                                   int64_t softplus, const REAL *dy, const REAL *dfinal, const REAL *x, const REAL *dt,
                                   const REAL *A, const REAL *Bm, const REAL *Cm, const REAL *skip, const REAL *z,
                                   const REAL *bias, const REAL *initial, const uint8_t *starts, REAL *dx, REAL *ddt,
                                   REAL *dA_parts, REAL *dB_parts, REAL *dC_parts, REAL *dskip_parts, REAL *dz,
                                   REAL *dbias_parts, REAL *dinitial) {
    const int64_t per_group = D / G, blocks = (per_group + LANES - 1) / LANES;
    const int64_t chunks = (T + CHUNK - 1) / CHUNK, size = N * LANES;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t d = g * per_group + block * LANES;
                const int64_t left = per_group - block * LANES, width = left < LANES ? left : LANES;
                /* a, da, dh, boundary states (chunks), states (CHUNK + 1) and decays (CHUNK) of one chunk */
                REAL *a = there(malloc((3 + chunks + 2 * CHUNK + 1) * size * sizeof(REAL)));
                REAL *da = a + size, *dh = da + size, *boundary = dh + size;
                REAL *states = boundary + chunks * size, *decays = states + (CHUNK + 1) * size;
                NAME(gather)(a, A + d * N, width, N);
                NAME(gather)(dh, dfinal + (b * D + d) * N, width, N);
                NAME(gather)(boundary, initial ? initial + (b * D + d) * N : NULL, width, N);
                memset(da, 0, size * sizeof(REAL));
                REAL extra[LANES], shift[LANES];
                double dextra[LANES] = {0}, dshift[LANES] = {0}; /* sums over the whole sequence */
                NAME(load)(extra, skip ? skip + d : NULL, width);
                NAME(load)(shift, bias ? bias + d : NULL, width);
                REAL steps[CHUNK][LANES];
                for (int64_t pass = 0; pass < 2 * chunks - 1; pass++) {
                    /* chunks 0 .. last-1 forward for their boundary states, then last .. 0 for the gradients */
                    const int64_t chunk = pass < chunks - 1 ? pass : 2 * chunks - 2 - pass;
                    const int64_t from = chunk * CHUNK, to = from + CHUNK < T ? from + CHUNK : T;
                    const int keep = pass >= chunks - 1;
                    REAL *h = keep ? states : boundary + (chunk + 1) * size;
                    memcpy(h, boundary + chunk * size, size * sizeof(REAL));
                    for (int64_t t = from; t < to; t++) {
                        const int64_t row = (b * T + t) * D + d, coefficients = ((b * T + t) * G + g) * N;
                        REAL step[LANES], input[LANES];
                        NAME(load_steps)(step, dt + row, shift, softplus, width);
                        memcpy(steps[t - from], step, sizeof step);
                        NAME(load)(input, x + row, width);
                        EACH_LANE input[i] *= step[i];
                        const REAL carry = starts && starts[b * T + t] ? 0 : 1;
                        REAL *next = keep ? h + size : h, *decay = decays + (t - from) * size;
                        for (int64_t n = 0; n < N; n++) {
                            const REAL bn = Bm[coefficients + n];
                            EACH_LANE {
                                const int64_t k = n * LANES + i;
                                const REAL e = carry * EXP_PRODUCT(step[i], a[k]);
                                if (keep) decay[k] = e;
                                next[k] = e * h[k] + input[i] * bn;
                            }
                        }
                        h = next;
                    }
                    if (!keep) continue;
                    for (int64_t t = to - 1; t >= from; t--) {
                        const int64_t row = (b * T + t) * D + d, coefficients = ((b * T + t) * G + g) * N;
                        const int64_t part = block * batch * T * G * N + coefficients;
                        const REAL *before = states + (t - from) * size, *after = before + size;
                        const REAL *decay = decays + (t - from) * size;
                        REAL step[LANES], input[LANES], out[LANES], dstep[LANES], dinput[LANES];
                        memcpy(step, steps[t - from], sizeof step);
                        NAME(load)(input, x + row, width);
                        NAME(load)(out, dy + row, width);
                        EACH_LANE { dstep[i] = 0; dinput[i] = 0; }
                        if (z) {
                            REAL gate[LANES], ungated[LANES];
                            NAME(load)(gate, z + row, width);
                            EACH_LANE ungated[i] = extra[i] * input[i];
                            for (int64_t n = 0; n < N; n++)
                                EACH_LANE ungated[i] += Cm[coefficients + n] * after[n * LANES + i];
                            EACH_LANE {
                                const REAL sigmoid = 1 / (1 + EXP(-gate[i]));
                                ungated[i] *= out[i] * sigmoid * (1 + gate[i] * (1 - sigmoid));
                                out[i] *= gate[i] * sigmoid;
                            }
                            for (int64_t i = 0; i < width; i++) dz[row + i] = ungated[i];
                        }
                        for (int64_t n = 0; n < N; n++) {
                            const REAL bn = Bm[coefficients + n], cn = Cm[coefficients + n];
                            REAL of_b[SUMS] = {0}, of_c[SUMS] = {0};
                            for (int first = 0; first < LANES; first += SUMS)
#pragma omp simd
                                for (int j = 0; j < SUMS; j++) {
                                    const int64_t i = first + j, k = n * LANES + i;
                                    const REAL grad = dh[k] + cn * out[i];
                                    const REAL dlog = grad * decay[k] * before[k];
                                    of_c[j] += out[i] * after[k];
                                    of_b[j] += grad * step[i] * input[i];
                                    dstep[i] += dlog * a[k];
                                    dinput[i] += grad * bn;
                                    da[k] += dlog * step[i];
                                    dh[k] = grad * decay[k];
                                }
                            dB_parts[part + n] = NAME(sum)(of_b);
                            dC_parts[part + n] = NAME(sum)(of_c);
                        }
                        EACH_LANE {
                            dstep[i] += dinput[i] * input[i];
                            dinput[i] = dinput[i] * step[i] + extra[i] * out[i];
                            dextra[i] += out[i] * input[i];
                        }
                        if (softplus) { /* the sigmoid is its slope */
                            REAL raw[LANES];
                            NAME(load)(raw, dt + row, width);
                            EACH_LANE {
                                const REAL sum = raw[i] + shift[i], sigmoid = 1 / (1 + EXP(-sum));
                                dstep[i] *= sum > 20 ? 1 : sigmoid;
                            }
                        }
                        EACH_LANE dshift[i] += dstep[i];
                        for (int64_t i = 0; i < width; i++) dx[row + i] = dinput[i];
                        for (int64_t i = 0; i < width; i++) ddt[row + i] = dstep[i];
                    }
                }
                for (int64_t i = 0; i < width; i++) {
                    if (skip) dskip_parts[b * D + d + i] = dextra[i];
                    if (bias) dbias_parts[b * D + d + i] = dshift[i];
                }
                NAME(scatter)(dA_parts + (b * D + d) * N, da, width, N);
                NAME(scatter)(dinitial + (b * D + d) * N, dh, width, N);
                free(a);
            }
}

#endif
