/* Selective scan (Mamba-1) on the CPU, forward and backward.

     h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t],   y[t] = C[t] . h[t]

   Channels are processed in blocks of LANES, the vector dimension; a block's state (N x LANES) stays in the first-level
   cache over the whole sequence. The backward pass keeps the state at every CHUNK-th step only and recomputes between.
   Layouts: x dt y (B,T,D), A (D,N), Bm Cm (B,T,G,N), state (B,D,N), starts (B,T) bytes, all contiguous.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../native_math.h"

#define LANES 32
#define CHUNK 32
#define EACH_LANE _Pragma("omp simd") for (int i = 0; i < LANES; i++)

#define REAL float
#define EXP_PRODUCT exp_product_f32
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef EXP_PRODUCT
#undef NAME
#define REAL double
#define EXP_PRODUCT exp_product_f64
#define NAME(x) x##_f64
#include __FILE__

#else

static inline void NAME(load)(REAL *lanes, const REAL *from, int64_t width) {
    for (int64_t i = 0; i < width; i++) lanes[i] = from[i];
    for (int64_t i = width; i < LANES; i++) lanes[i] = 0;
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
                                  const REAL *x, const REAL *dt, const REAL *A, const REAL *Bm, const REAL *Cm,
                                  const REAL *initial, const uint8_t *starts, REAL *y, REAL *final) {
    const int64_t per_group = D / G, blocks = (per_group + LANES - 1) / LANES;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t d = g * per_group + block * LANES;
                const int64_t left = per_group - block * LANES, width = left < LANES ? left : LANES;
                REAL *a = malloc(2 * N * LANES * sizeof(REAL)), *h = a + N * LANES;
                NAME(gather)(a, A + d * N, width, N);
                NAME(gather)(h, initial ? initial + (b * D + d) * N : NULL, width, N);
                for (int64_t t = 0; t < T; t++) {
                    const int64_t row = (b * T + t) * D + d, coefficients = ((b * T + t) * G + g) * N;
                    REAL step[LANES], input[LANES], out[LANES];
                    NAME(load)(step, dt + row, width);
                    NAME(load)(input, x + row, width);
                    EACH_LANE { input[i] *= step[i]; out[i] = 0; }
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
                    for (int64_t i = 0; i < width; i++) y[row + i] = out[i];
                }
                NAME(scatter)(final + (b * D + d) * N, h, width, N);
                free(a);
            }
}

/* dB_parts and dC_parts (blocks, B, T, G, N): one part a block of channels, summed by the caller in a fixed order;
   dA_parts (B, D, N). */
void NAME(selective_scan_backward)(int64_t batch, int64_t T, int64_t D, int64_t N, int64_t G, int64_t threads,
                                   const REAL *dy, const REAL *dfinal, const REAL *x, const REAL *dt, const REAL *A,
                                   const REAL *Bm, const REAL *Cm, const REAL *initial, const uint8_t *starts, REAL *dx,
                                   REAL *ddt, REAL *dA_parts, REAL *dB_parts, REAL *dC_parts, REAL *dinitial) {
    const int64_t per_group = D / G, blocks = (per_group + LANES - 1) / LANES;
    const int64_t chunks = (T + CHUNK - 1) / CHUNK, size = N * LANES;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t d = g * per_group + block * LANES;
                const int64_t left = per_group - block * LANES, width = left < LANES ? left : LANES;
                /* a, da, dh, boundary states (chunks), states (CHUNK + 1) and decays (CHUNK) of one chunk */
                REAL *a = malloc((3 + chunks + 2 * CHUNK + 1) * size * sizeof(REAL));
                REAL *da = a + size, *dh = da + size, *boundary = dh + size;
                REAL *states = boundary + chunks * size, *decays = states + (CHUNK + 1) * size;
                NAME(gather)(a, A + d * N, width, N);
                NAME(gather)(dh, dfinal + (b * D + d) * N, width, N);
                NAME(gather)(boundary, initial ? initial + (b * D + d) * N : NULL, width, N);
                memset(da, 0, size * sizeof(REAL));
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
                        NAME(load)(step, dt + row, width);
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
                        NAME(load)(step, dt + row, width);
                        NAME(load)(input, x + row, width);
                        NAME(load)(out, dy + row, width);
                        EACH_LANE { dstep[i] = 0; dinput[i] = 0; }
                        for (int64_t n = 0; n < N; n++) {
                            const REAL bn = Bm[coefficients + n], cn = Cm[coefficients + n];
                            REAL sum_b = 0, sum_c = 0;
#pragma omp simd reduction(+ : sum_b, sum_c)
                            for (int i = 0; i < LANES; i++) {
                                const int64_t k = n * LANES + i;
                                const REAL grad = dh[k] + cn * out[i];
                                const REAL dlog = grad * decay[k] * before[k];
                                sum_c += out[i] * after[k];
                                sum_b += grad * step[i] * input[i];
                                dstep[i] += dlog * a[k];
                                dinput[i] += grad * bn;
                                da[k] += dlog * step[i];
                                dh[k] = grad * decay[k];
                            }
                            dB_parts[part + n] = sum_b;
                            dC_parts[part + n] = sum_c;
                        }
                        for (int64_t i = 0; i < width; i++) {
                            dx[row + i] = dinput[i] * step[i];
                            ddt[row + i] = dstep[i] + dinput[i] * input[i];
                        }
                    }
                }
                NAME(scatter)(dA_parts + (b * D + d) * N, da, width, N);
                NAME(scatter)(dinitial + (b * D + d) * N, dh, width, N);
                free(a);
            }
}

#endif
