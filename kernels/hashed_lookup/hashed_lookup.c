/* Rows of tables that signs choose, on the CPU, forward and backward: with z = x / t,

     p = 1 / prod_i (1 + exp(-2 |z_i|)),  w = p or p sum_i |z_i|,  y = sum over k of w_k T_k[h_k],
     dT_k[h_k] += w_k dy,  dw_k = T_k[h_k] . dy,  dx_i = dw sign(x_i) p (2 u_i / (1 + u_i) [sum |z|] [+ 1]) / t

   with u = exp(-2 |z|). Layouts: x dx (M,K,bits), T dT (K,2^bits,D), dT zeros, y dy (M,D), codes w (K,M); all
   contiguous. The forward takes one slice of the columns and a block of tokens at a time through all tables, so that a
   slice of a table is read once for them and their sums stay in the cache; the backward gives each table to a thread.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>

#include "../memory.h"
#include "../native_math.h"

#define TOKENS 512
#define COLUMNS 128
#define AHEAD 4

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

static void NAME(choose)(int64_t M, int64_t K, int64_t bits, int64_t threads, int64_t scaled, REAL inverse,
                         const REAL *x, int32_t *codes, REAL *weights) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++)
        for (int64_t k = 0; k < K; k++) {
            const REAL *part = x + (m * K + k) * bits;
            int32_t code = 0;
            REAL below = 1, size = 0;
            for (int64_t i = 0; i < bits; i++) {
                const REAL z = (part[i] < 0 ? -part[i] : part[i]) * inverse;
                code = 2 * code + (part[i] >= 0);
                below *= 1 + EXP(-2 * z);
                size += z;
            }
            codes[k * M + m] = code;
            weights[k * M + m] = (scaled ? size : 1) / below;
        }
}

/* Rows lie anywhere: what comes AHEAD tokens later is fetched meanwhile. */
static inline void NAME(prefetch)(const REAL *row, int64_t width) {
    for (int64_t d = 0; d < width; d += 64 / sizeof(REAL)) __builtin_prefetch(row + d);
}

void NAME(hashed_lookup_forward)(int64_t M, int64_t K, int64_t bits, int64_t D, int64_t threads, int64_t scaled,
                                 const REAL *inverse, const REAL *x, const REAL *tables, int32_t *codes, REAL *weights,
                                 REAL *y) {
    const int64_t blocks = (M + TOKENS - 1) / TOKENS, slices = (D + COLUMNS - 1) / COLUMNS;
    NAME(choose)(M, K, bits, threads, scaled, *inverse, x, codes, weights);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < blocks * slices; task++) {
        const int64_t first = task / slices * TOKENS, column = task % slices * COLUMNS;
        const int64_t tokens = M - first < TOKENS ? M - first : TOKENS;
        const int64_t width = D - column < COLUMNS ? D - column : COLUMNS;
        REAL *sums = there(calloc(tokens * COLUMNS, sizeof(REAL)));
        for (int64_t k = 0; k < K; k++) {
            const REAL *table = tables + (k << bits) * D + column, *weight = weights + k * M + first;
            const int32_t *code = codes + k * M + first;
            for (int64_t m = 0; m < tokens; m++) {
                const REAL *row = table + code[m] * D, w = weight[m];
                REAL *sum = sums + m * COLUMNS;
                if (m + AHEAD < tokens) NAME(prefetch)(table + code[m + AHEAD] * D, width);
#pragma omp simd
                for (int64_t d = 0; d < width; d++) sum[d] += w * row[d];
            }
        }
        for (int64_t m = 0; m < tokens; m++)
            memcpy(y + (first + m) * D + column, sums + m * COLUMNS, width * sizeof(REAL));
        free(sums);
    }
}

/* dx of one table, from dweights (M) */
static void NAME(input_gradients)(int64_t M, int64_t K, int64_t bits, int64_t scaled, REAL inverse, const REAL *x,
                                  const REAL *dweights, REAL *dx) {
    for (int64_t m = 0; m < M; m++) {
        const REAL *part = x + m * K * bits;
        REAL *gradient = dx + m * K * bits, below = 1, size = 0;
        for (int64_t i = 0; i < bits; i++) {
            const REAL z = (part[i] < 0 ? -part[i] : part[i]) * inverse, u = EXP(-2 * z);
            below *= 1 + u;
            size += z;
            gradient[i] = 2 * u / (1 + u);
        }
        for (int64_t i = 0; i < bits; i++) {
            const REAL sign = (part[i] > 0) - (part[i] < 0);
            const REAL along = scaled ? 1 + size * gradient[i] : gradient[i];
            gradient[i] = dweights[m] * sign * along * inverse / below;
        }
    }
}

void NAME(hashed_lookup_backward)(int64_t M, int64_t K, int64_t bits, int64_t D, int64_t threads, int64_t scaled,
                                  const REAL *inverse, const REAL *dy, const REAL *x, const REAL *tables,
                                  int32_t *codes, REAL *weights, REAL *dx, REAL *dtables) {
    NAME(choose)(M, K, bits, threads, scaled, *inverse, x, codes, weights);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t k = 0; k < K; k++) {
        const REAL *weight = weights + k * M;
        const int32_t *code = codes + k * M;
        REAL *dweights = there(calloc(M, sizeof(REAL)));
        for (int64_t column = 0; column < D; column += COLUMNS) {
            const int64_t width = D - column < COLUMNS ? D - column : COLUMNS;
            const REAL *table = tables + (k << bits) * D + column;
            REAL *dtable = dtables + (k << bits) * D + column;
            for (int64_t m = 0; m < M; m++) {
                const REAL *row = table + code[m] * D, *arriving = dy + m * D + column, w = weight[m];
                REAL *drow = dtable + code[m] * D, dot = 0;
                if (m + AHEAD < M) {
                    NAME(prefetch)(table + code[m + AHEAD] * D, width);
                    NAME(prefetch)(dtable + code[m + AHEAD] * D, width);
                }
#pragma omp simd reduction(+ : dot)
                for (int64_t d = 0; d < width; d++) {
                    dot += row[d] * arriving[d];
                    drow[d] += w * arriving[d];
                }
                dweights[m] += dot;
            }
        }
        NAME(input_gradients)(M, K, bits, scaled, *inverse, x + k * bits, dweights, dx + k * bits);
        free(dweights);
    }
}

#endif
