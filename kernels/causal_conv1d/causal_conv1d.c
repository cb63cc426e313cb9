/* Causal depthwise convolution on the CPU, forward and backward, over the history h = [state, x]:

     a[t] = bias + sum over lags l < W of w[l] h[t-l],   dh[t] = sum of w[l] da[t+l],   dw[l] = sum of h[t] da[t+l]

   and y = a or, with silu, a sigmoid(a). w[l] is weight[:, W-1-l]. No lag reaches across a start: of the pairs (t, t-l) those count that have none in (t-l, t].
   A task is a slice of SLICE channels, the vector dimension, of one batch row.
   Layouts: x y dy dx (B,T,D), weight (D,W), bias (D) or NULL, states (B,W-1,D), starts (B,T) bytes; contiguous, but for
   the steps of x, x_row apart.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../memory.h"
#include "../native_math.h"

#define SLICE 128
#define STRETCH 64 /* steps summed before they join the whole, which keeps the sums over T accurate */

/* How many lags count: from t backwards or forwards in time (direction -1, 1) until a start or lag W - 1. */
static int64_t count_lags(const uint8_t *starts, int64_t t, int64_t T, int64_t W, int direction) {
    int64_t lags = 1;
    for (; lags < W; lags++) {
        const int64_t newer = direction < 0 ? t - lags + 1 : t + lags;
        if (newer >= T || (starts && newer >= 0 && starts[newer])) break;
    }
    return lags;
}

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

/* w (W, SLICE), newest tap first */
static REAL *NAME(taps)(const REAL *weight, int64_t width, int64_t W) {
    REAL *w = there(calloc(W * SLICE, sizeof(REAL)));
    for (int64_t i = 0; i < width; i++)
        for (int64_t l = 0; l < W; l++) w[l * SLICE + i] = weight[i * W + W - 1 - l];
    return w;
}

static void NAME(convolve)(int64_t lags, REAL *y, const REAL *const *h, const REAL *w, const REAL *bias,
                           int64_t width) {
    memcpy(y, bias, width * sizeof(REAL));
    for (int64_t l = 0; l < lags; l++) {
        const REAL *wl = w + l * SLICE, *hl = h[l];
#pragma omp simd
        for (int64_t i = 0; i < width; i++) y[i] += wl[i] * hl[i];
    }
}

/* the same for the usual number of lags, in one pass */
static void NAME(convolve_4)(REAL *y, const REAL *const *h, const REAL *w, const REAL *bias, int64_t width) {
    const REAL *h0 = h[0], *h1 = h[1], *h2 = h[2], *h3 = h[3];
    const REAL *w1 = w + SLICE, *w2 = w + 2 * SLICE, *w3 = w + 3 * SLICE;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = bias[i] + w[i] * h0[i] + w1[i] * h1[i] + w2[i] * h2[i] + w3[i] * h3[i];
}

/* a[t] of a slice */
static void NAME(convolve_at)(REAL *a, int64_t t, int64_t T, int64_t W, const REAL *x, int64_t x_row,
                              const REAL *before, int64_t D, const uint8_t *start, const REAL *w, const REAL *bias,
                              int64_t width, const REAL **h) {
    const int64_t lags = count_lags(start, t, T, W, -1);
    for (int64_t l = 0; l < lags; l++) h[l] = t >= l ? x + (t - l) * x_row : before + (W - 1 + t - l) * D;
    if (lags == 4) NAME(convolve_4)(a, h, w, bias, width);
    else NAME(convolve)(lags, a, h, w, bias, width);
}

void NAME(causal_conv1d_forward)(int64_t batch, int64_t T, int64_t D, int64_t W, int64_t x_row, int64_t threads,
                                 int64_t silu, const REAL *x, const REAL *weight, const REAL *bias, const REAL *state,
                                 const uint8_t *starts, REAL *y, REAL *final) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t d = 0; d < D; d += SLICE) {
            const int64_t width = D - d < SLICE ? D - d : SLICE;
            const uint8_t *start = starts ? starts + b * T : NULL;
            const REAL *before = state + b * (W - 1) * D + d, *input = x + b * T * x_row + d;
            const REAL **h = there(malloc(W * sizeof(*h)));
            REAL *w = NAME(taps)(weight + d * W, width, W), offset[SLICE] = {0};
            if (bias) memcpy(offset, bias + d, width * sizeof(REAL));
            for (int64_t t = 0; t < T; t++) {
                REAL *out = y + (b * T + t) * D + d;
                NAME(convolve_at)(out, t, T, W, input, x_row, before, D, start, w, offset, width, h);
                if (silu) {
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) out[i] /= 1 + EXP(-out[i]);
                }
            }
            const int64_t kept = count_lags(start, T - 1, T, W, -1);
            for (int64_t l = 0; l < W - 1; l++) {
                REAL *out = final + (b * (W - 1) + W - 2 - l) * D + d;
                const int64_t t = T - 1 - l;
                if (l >= kept) memset(out, 0, width * sizeof(REAL));
                else memcpy(out, t >= 0 ? input + t * x_row : before + (W - 1 + t) * D, width * sizeof(REAL));
            }
            free(w);
            free(h);
        }
}

/* Step t of the history: dh, and for dw its products with the da (T, SLICE) of the lags from..to. */
static void NAME(correlate)(int64_t from, int64_t to, REAL *dh, REAL *dw, const REAL *h, const REAL *da, int64_t t,
                            const REAL *w, int64_t width) {
    for (int64_t l = from; l < to; l++) {
        const REAL *wl = w + l * SLICE, *later = da + (t + l) * SLICE;
        REAL *dwl = dw + l * SLICE;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            dh[i] += wl[i] * later[i];
            dwl[i] += h[i] * later[i];
        }
    }
}

/* dweight_parts (B, D, W), dbias_parts (B, D) */
void NAME(causal_conv1d_backward)(int64_t batch, int64_t T, int64_t D, int64_t W, int64_t x_row, int64_t threads,
                                  int64_t silu, const REAL *dy, const REAL *dfinal, const REAL *x, const REAL *weight,
                                  const REAL *bias, const REAL *state, const uint8_t *starts, REAL *dx,
                                  REAL *dweight_parts, REAL *dbias_parts, REAL *dinitial) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t d = 0; d < D; d += SLICE) {
            const int64_t width = D - d < SLICE ? D - d : SLICE, sums = (W + 1) * SLICE; /* of dw and of dbias */
            const uint8_t *start = starts ? starts + b * T : NULL;
            const REAL *before = state + b * (W - 1) * D + d, *input = x + b * T * x_row + d;
            REAL *w = NAME(taps)(weight + d * W, width, W), *whole = there(calloc(2 * sums, sizeof(REAL))), *dw = whole + sums;
            REAL *da = there(malloc(T * SLICE * sizeof(REAL))); /* dy through the activation */
            if (silu) {
                const REAL **h = there(malloc(W * sizeof(*h)));
                REAL offset[SLICE] = {0};
                if (bias) memcpy(offset, bias + d, width * sizeof(REAL));
                for (int64_t t = 0; t < T; t++) {
                    REAL *out = da + t * SLICE;
                    const REAL *gradient = dy + (b * T + t) * D + d;
                    NAME(convolve_at)(out, t, T, W, input, x_row, before, D, start, w, offset, width, h);
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) {
                        const REAL sigmoid = 1 / (1 + EXP(-out[i]));
                        out[i] = gradient[i] * sigmoid * (1 + out[i] * (1 - sigmoid));
                    }
                }
                free(h);
            } else
                for (int64_t t = 0; t < T; t++)
                    memcpy(da + t * SLICE, dy + (b * T + t) * D + d, width * sizeof(REAL));
            const int64_t kept = count_lags(start, T - 1, T, W, -1);
            for (int64_t t = 1 - W; t < T; t++) {
                const int64_t slot = b * (W - 1) + W - 1 + t, last = T - 1 - t;
                const REAL *h = t < 0 ? state + slot * D + d : input + t * x_row;
                REAL *dh = t < 0 ? dinitial + slot * D + d : dx + (b * T + t) * D + d, *dbias = dw + W * SLICE;
                /* the newest W - 1 steps of the history are the final state */
                if (last < W - 1 && last < kept)
                    memcpy(dh, dfinal + (b * (W - 1) + W - 2 - last) * D + d, width * sizeof(REAL));
                else memset(dh, 0, width * sizeof(REAL));
                const int64_t from = t < 0 ? -t : 0, to = count_lags(start, t, T, W, 1);
                NAME(correlate)(from, to, dh, dw, h, da, t, w, width);
                if (t >= 0)
                    for (int64_t i = 0; i < width; i++) dbias[i] += da[t * SLICE + i];
                if (t == T - 1 || (t + W) % STRETCH == 0) {
                    for (int64_t i = 0; i < sums; i++) whole[i] += dw[i];
                    memset(dw, 0, sums * sizeof(REAL));
                }
            }
            for (int64_t i = 0; i < width; i++) {
                for (int64_t l = 0; l < W; l++)
                    dweight_parts[(b * D + d + i) * W + W - 1 - l] = whole[l * SLICE + i];
                dbias_parts[b * D + d + i] = whole[W * SLICE + i];
            }
            free(w);
            free(whole);
            free(da);
        }
}

#endif
