/* RMS normalisation on the CPU, forward and backward. With the gate s = silu(z) inside (i = s, o = 1), outside
   (i = 1, o = s) or absent (i = o = 1), over each group of n channels of a row:

     g = x i,  r = 1 / sqrt(sum g^2 / n + eps),  y = w o g r
     u = w o dy,  dg = r (u - g r^2 sum(u g) / n),  dx = dg i,  dw = sum over rows of dy o g r,
     ds = dg x (inside) or w dy g r (outside)

   Layouts: x z dy (M,D), their rows x_row, z_row, dy_row apart; y dx dz (M,D), weight (D), contiguous; z and dz NULL
   without a gate. The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>

#include "../memory.h"
#include "../native_math.h"

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

/* y (n): one group of a row */
static void NAME(normalise)(REAL *restrict y, const REAL *x, const REAL *weight, const REAL *z, int64_t n,
                            int64_t outside, REAL eps) {
    REAL squares = 0;
    if (z && !outside) {
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++) {
            y[i] = x[i] * (z[i] / (1 + EXP(-z[i])));
            squares += y[i] * y[i];
        }
    } else {
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    }
    const REAL scale = 1 / (REAL)sqrt(squares / n + eps);
    if (!z) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
    } else if (outside) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i] * (z[i] / (1 + EXP(-z[i])));
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = y[i] * scale * weight[i];
    }
}

void NAME(rms_norm_forward)(int64_t M, int64_t D, int64_t groups, int64_t x_row, int64_t z_row, int64_t threads,
                            int64_t outside, const REAL *eps, const REAL *x, const REAL *weight, const REAL *z,
                            REAL *y) {
    const int64_t n = D / groups;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++)
        for (int64_t d = 0; d < D; d += n)
            NAME(normalise)(y + m * D + d, x + m * x_row + d, weight + d, z ? z + m * z_row + d : NULL, n, outside,
                            *eps);
}

/* one group of a row; work (5, n); dw is added to */
static void NAME(gradients)(REAL *restrict dx, REAL *restrict dw, REAL *restrict dz, const REAL *dy, const REAL *x,
                            const REAL *weight, const REAL *z, int64_t n, int64_t outside, REAL eps,
                            REAL *restrict work) {
    REAL *inner = work, *outer = work + n, *slope = work + 2 * n, *g = work + 3 * n, *u = work + 4 * n;
    REAL squares = 0, along = 0;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) inner[i] = outer[i] = 1;
    if (z) {
        REAL *gate = outside ? outer : inner;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            const REAL sigmoid = 1 / (1 + EXP(-z[i]));
            gate[i] = z[i] * sigmoid;
            slope[i] = sigmoid * (1 + z[i] * (1 - sigmoid));
        }
    }
#pragma omp simd reduction(+ : squares, along)
    for (int64_t i = 0; i < n; i++) {
        g[i] = x[i] * inner[i];
        u[i] = dy[i] * weight[i] * outer[i];
        squares += g[i] * g[i];
        along += u[i] * g[i];
    }
    const REAL r = 1 / (REAL)sqrt(squares / n + eps), back = along * r * r / n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        dw[i] += dy[i] * outer[i] * g[i] * r;
        dx[i] = r * (u[i] - g[i] * back) * inner[i];
    }
    if (!z) return;
    if (outside) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dz[i] = dy[i] * weight[i] * g[i] * r * slope[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dz[i] = r * (u[i] - g[i] * back) * x[i] * slope[i];
    }
}

/* dweight_parts (M / block, D) */
void NAME(rms_norm_backward)(int64_t M, int64_t D, int64_t groups, int64_t x_row, int64_t z_row, int64_t threads,
                             int64_t outside, int64_t dy_row, int64_t block, const REAL *eps, const REAL *dy,
                             const REAL *x, const REAL *weight, const REAL *z, REAL *dx, REAL *dweight_parts,
                             REAL *dz) {
    const int64_t n = D / groups;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < M; first += block) {
        REAL *work = there(malloc(5 * n * sizeof(REAL))), *dw = dweight_parts + first / block * D;
        for (int64_t d = 0; d < D; d++) dw[d] = 0;
        for (int64_t m = first; m < M && m < first + block; m++)
            for (int64_t d = 0; d < D; d += n)
                NAME(gradients)(dx + m * D + d, dw + d, z ? dz + m * D + d : NULL, dy + m * dy_row + d,
                                x + m * x_row + d, weight + d, z ? z + m * z_row + d : NULL, n, outside, *eps, work);
        free(work);
    }
}

#endif
