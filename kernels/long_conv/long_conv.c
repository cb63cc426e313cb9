/* The long convolution on the CPU, forward and backward, by FFTs of length N = 2^a (all of a circle of that length, else
   at least T + L - 1) over a group of channels at a time:

     y = g o (c + D o u),  c = inverse(U K)
     dc = g o dy,  du = inverse(conj(K) dC) + D o dc,  dk = inverse(sum_b conj(U) dC),  dg = dy o (c + D o u)

   Vectors run over channels, LANES in the real part and LANES others in the imaginary part of one complex transform:
   with Z the spectrum of a + i b, A_m = (Z_m + conj Z_-m) / 2 and B_m = (Z_m - conj Z_-m) / 2i. The transform leaves a
   spectrum in bit-reversed order, which its inverse takes, so that nothing is ever permuted; there the mirror image of
   the places p in [2^j, 2^(j+1)) is 3 2^j - 1 - p. A circle whose length is no power of two is the line folded; the
   gradient that arrives is then continued periodically.

   Layouts: u dy gate (B,T,D), their steps u_row, dy_row, gate_row apart; kernel (D,L), skip (D), and the results y du
   dgate (B,T,D), dkernel (D,L), dskip (D) contiguous; roots (3N/4,2) the powers of exp(-2 pi i / N); gate, dgate, skip
   and dskip NULL where there is none. The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
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

#define VEC NAME(vector)
#define SIZES NAME(sizes)
#define LANES ((int64_t)(sizeof(VEC) / sizeof(REAL)))

typedef REAL VEC __attribute__((vector_size(64)));

typedef struct {
    int64_t B, T, L, D, N;
    int circular;
} SIZES;

/* In place, x (n,2); roots are those of length n times step. Two levels of radix 2 at a time. */
static void NAME(transform)(VEC *restrict x, int64_t n, const REAL *roots, int64_t step) {
    if (n == 2) {
        const VEC re = x[0], im = x[1];
        x[0] = re + x[2], x[1] = im + x[3];
        x[2] = re - x[2], x[3] = im - x[3];
    }
    if (n < 4) return;
    const int64_t quarter = n / 4;
    VEC *x0 = x, *x1 = x + 2 * quarter, *x2 = x + 4 * quarter, *x3 = x + 6 * quarter;
    for (int64_t j = 0; j < quarter; j++) {
        const int64_t r = 2 * j, i = 2 * j + 1;
        const REAL *w1 = roots + 2 * j * step, *w2 = roots + 4 * j * step, *w3 = roots + 6 * j * step;
        const VEC sum_r = x0[r] + x2[r], sum_i = x0[i] + x2[i], apart_r = x0[r] - x2[r], apart_i = x0[i] - x2[i];
        const VEC sum1_r = x1[r] + x3[r], sum1_i = x1[i] + x3[i], apart1_r = x1[r] - x3[r], apart1_i = x1[i] - x3[i];
        const VEC p_r = sum_r - sum1_r, p_i = sum_i - sum1_i;
        const VEC q_r = apart_r + apart1_i, q_i = apart_i - apart1_r;
        const VEC s_r = apart_r - apart1_i, s_i = apart_i + apart1_r;
        x0[r] = sum_r + sum1_r, x0[i] = sum_i + sum1_i;
        x1[r] = p_r * w2[0] - p_i * w2[1], x1[i] = p_r * w2[1] + p_i * w2[0];
        x2[r] = q_r * w1[0] - q_i * w1[1], x2[i] = q_r * w1[1] + q_i * w1[0];
        x3[r] = s_r * w3[0] - s_i * w3[1], x3[i] = s_r * w3[1] + s_i * w3[0];
    }
    if (quarter == 1) return;
    NAME(transform)(x0, quarter, roots, 4 * step);
    NAME(transform)(x1, quarter, roots, 4 * step);
    NAME(transform)(x2, quarter, roots, 4 * step);
    NAME(transform)(x3, quarter, roots, 4 * step);
}

/* n times the inverse of the above, step for step backwards */
static void NAME(inverse)(VEC *restrict x, int64_t n, const REAL *roots, int64_t step) {
    if (n == 2) {
        const VEC re = x[0], im = x[1];
        x[0] = re + x[2], x[1] = im + x[3];
        x[2] = re - x[2], x[3] = im - x[3];
    }
    if (n < 4) return;
    const int64_t quarter = n / 4;
    VEC *x0 = x, *x1 = x + 2 * quarter, *x2 = x + 4 * quarter, *x3 = x + 6 * quarter;
    if (quarter > 1) {
        NAME(inverse)(x0, quarter, roots, 4 * step);
        NAME(inverse)(x1, quarter, roots, 4 * step);
        NAME(inverse)(x2, quarter, roots, 4 * step);
        NAME(inverse)(x3, quarter, roots, 4 * step);
    }
    for (int64_t j = 0; j < quarter; j++) {
        const int64_t r = 2 * j, i = 2 * j + 1;
        const REAL *w1 = roots + 2 * j * step, *w2 = roots + 4 * j * step, *w3 = roots + 6 * j * step;
        const VEC p_r = x1[r] * w2[0] + x1[i] * w2[1], p_i = x1[i] * w2[0] - x1[r] * w2[1];
        const VEC q_r = x2[r] * w1[0] + x2[i] * w1[1], q_i = x2[i] * w1[0] - x2[r] * w1[1];
        const VEC s_r = x3[r] * w3[0] + x3[i] * w3[1], s_i = x3[i] * w3[0] - x3[r] * w3[1];
        const VEC sum_r = x0[r] + p_r, sum_i = x0[i] + p_i, apart_r = x0[r] - p_r, apart_i = x0[i] - p_i;
        const VEC sum1_r = q_r + s_r, sum1_i = q_i + s_i, apart1_r = s_i - q_i, apart1_i = q_r - s_r;
        x0[r] = sum_r + sum1_r, x0[i] = sum_i + sum1_i;
        x2[r] = sum_r - sum1_r, x2[i] = sum_i - sum1_i;
        x1[r] = apart_r + apart1_r, x1[i] = apart_i + apart1_i;
        x3[r] = apart_r - apart1_r, x3[i] = apart_i - apart1_i;
    }
}

/* z = or += the spectrum of a times that of b, or of a times the conjugate of that of b, over n; all (n,2); z may be
   a or b unless it is added to */
static void NAME(product)(VEC *z, const VEC *a, const VEC *b, int64_t n, REAL sign, int adds) {
    const REAL scale = (REAL)0.25 / n;
    for (int64_t p = 0, top = 1; p < n; p++) {
        while (p >= 2 * top) top *= 2;
        const int64_t mirror = p < 2 ? p : 3 * top - 1 - p;
        if (mirror < p) continue;
        const VEC *ap = a + 2 * p, *am = a + 2 * mirror, *bp = b + 2 * p, *bm = b + 2 * mirror;
        /* twice the spectra of the real (1) and the imaginary (2) lanes */
        const VEC a1_r = ap[0] + am[0], a1_i = ap[1] - am[1], a2_r = ap[1] + am[1], a2_i = am[0] - ap[0];
        const VEC b1_r = bp[0] + bm[0], b1_i = sign * (bp[1] - bm[1]);
        const VEC b2_r = bp[1] + bm[1], b2_i = sign * (bm[0] - bp[0]);
        const VEC c1_r = (a1_r * b1_r - a1_i * b1_i) * scale, c1_i = (a1_r * b1_i + a1_i * b1_r) * scale;
        const VEC c2_r = (a2_r * b2_r - a2_i * b2_i) * scale, c2_i = (a2_r * b2_i + a2_i * b2_r) * scale;
        VEC at[2] = {c1_r - c2_i, c1_i + c2_r}, at_mirror[2] = {c1_r + c2_i, c2_r - c1_i};
        for (int part = 0; part < 2; part++) {
            if (adds) at[part] += z[2 * p + part], at_mirror[part] += z[2 * mirror + part];
            z[2 * p + part] = at[part];
            z[2 * mirror + part] = at_mirror[part];
        }
    }
}

/* x (N,2) from channels d.. of a signal (T,D), times gate, continued over the circle up to step ``until`` */
static void NAME(load)(VEC *x, const REAL *signal, int64_t row, const REAL *gate, int64_t gate_row, int64_t T,
                       int64_t until, int64_t N, int64_t lanes) {
    memset(x, 0, N * 2 * sizeof(VEC));
    for (int64_t t = 0; t < until; t++) {
        REAL *to = (REAL *)(x + 2 * t);
        const int64_t from = t < T ? t : t - T;
        if (gate)
            for (int64_t l = 0; l < lanes; l++) to[l] = signal[from * row + l] * gate[from * gate_row + l];
        else if (lanes == 2 * LANES)
            memcpy(to, signal + from * row, 2 * sizeof(VEC));
        else
            for (int64_t l = 0; l < lanes; l++) to[l] = signal[from * row + l];
    }
}

static void NAME(load_taps)(VEC *x, const REAL *kernel, int64_t L, int64_t N, int64_t lanes) {
    memset(x, 0, N * 2 * sizeof(VEC));
    for (int64_t j = 0; j < L; j++)
        for (int64_t l = 0; l < lanes; l++) ((REAL *)(x + 2 * j))[l] = kernel[l * L + j];
}

/* step t of the convolution on the line, or of the circle it is folded to */
static inline void NAME(step)(REAL *restrict c, const VEC *x, int64_t t, SIZES s) {
    memcpy(c, x + 2 * t, 2 * sizeof(VEC));
    if (s.circular && s.N > s.T && t < s.L - 1)
        for (int64_t l = 0; l < 2 * LANES; l++) c[l] += ((const REAL *)(x + 2 * (t + s.T)))[l];
}

static VEC *NAME(room)(int64_t N, int64_t count) {
    void *found = NULL;
    return posix_memalign(&found, 64, count * N * 2 * sizeof(VEC)) ? NULL : found;
}

void NAME(long_conv_forward)(int64_t B, int64_t T, int64_t L, int64_t D, int64_t N, int64_t circular, int64_t threads,
                             int64_t u_row, int64_t gate_row, const REAL *roots, const REAL *u, const REAL *kernel,
                             const REAL *skip, const REAL *gate, REAL *y) {
    const SIZES sizes = {B, T, L, D, N, (int)circular};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t d = 0; d < D; d += 2 * LANES) {
        const int64_t lanes = D - d < 2 * LANES ? D - d : 2 * LANES;
        VEC *K = NAME(room)(N, 2), *U = K + 2 * N;
        NAME(load_taps)(K, kernel + d * L, L, N, lanes);
        NAME(transform)(K, N, roots, 1);
        for (int64_t b = 0; b < B; b++) {
            NAME(load)(U, u + b * T * u_row + d, u_row, NULL, 0, T, T, N, lanes);
            NAME(transform)(U, N, roots, 1);
            NAME(product)(U, U, K, N, 1, 0);
            NAME(inverse)(U, N, roots, 1);
            for (int64_t t = 0; t < T; t++) {
                REAL c[2 * LANES], *to = y + (b * T + t) * D + d;
                const REAL *at = u + (b * T + t) * u_row + d, *by = gate + (gate ? (b * T + t) * gate_row + d : 0);
                NAME(step)(c, U, t, sizes);
                if (skip)
                    for (int64_t l = 0; l < lanes; l++) c[l] += skip[d + l] * at[l];
                if (gate)
                    for (int64_t l = 0; l < lanes; l++) c[l] *= by[l];
                for (int64_t l = 0; l < lanes; l++) to[l] = c[l];
            }
        }
        free(K);
    }
}

void NAME(long_conv_backward)(int64_t B, int64_t T, int64_t L, int64_t D, int64_t N, int64_t circular, int64_t threads,
                              int64_t u_row, int64_t gate_row, int64_t dy_row, const REAL *roots, const REAL *dy,
                              const REAL *u, const REAL *kernel, const REAL *skip, const REAL *gate, REAL *du,
                              REAL *dkernel, REAL *dskip, REAL *dgate) {
    const SIZES sizes = {B, T, L, D, N, (int)circular};
    const int64_t until = circular && N > T ? T + L - 1 : T;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t d = 0; d < D; d += 2 * LANES) {
        const int64_t lanes = D - d < 2 * LANES ? D - d : 2 * LANES;
        VEC *K = NAME(room)(N, 5), *U = K + 2 * N, *dC = U + 2 * N, *dK = dC + 2 * N, *C = dK + 2 * N;
        memset(dK, 0, N * 2 * sizeof(VEC));
        NAME(load_taps)(K, kernel + d * L, L, N, lanes);
        NAME(transform)(K, N, roots, 1);
        double along[2 * LANES] = {0};
        for (int64_t b = 0; b < B; b++) {
            const REAL *u_b = u + b * T * u_row + d, *dy_b = dy + b * T * dy_row + d;
            const REAL *gate_b = gate ? gate + b * T * gate_row + d : NULL;
            NAME(load)(U, u_b, u_row, NULL, 0, T, T, N, lanes);
            NAME(transform)(U, N, roots, 1);
            if (gate) {
                NAME(product)(C, U, K, N, 1, 0);
                NAME(inverse)(C, N, roots, 1);
                for (int64_t t = 0; t < T; t++) {
                    REAL c[2 * LANES], *to = dgate + (b * T + t) * D + d;
                    NAME(step)(c, C, t, sizes);
                    for (int64_t l = 0; l < lanes; l++)
                        to[l] = dy_b[t * dy_row + l] * (c[l] + (skip ? skip[d + l] * u_b[t * u_row + l] : 0));
                }
            }
            NAME(load)(dC, dy_b, dy_row, gate_b, gate_row, T, until, N, lanes);
            if (skip)
                for (int64_t t = 0; t < T; t++)
                    for (int64_t l = 0; l < lanes; l++)
                        along[l] += ((REAL *)(dC + 2 * t))[l] * u_b[t * u_row + l];
            NAME(transform)(dC, N, roots, 1);
            NAME(product)(dK, dC, U, N, -1, 1);
            NAME(product)(C, dC, K, N, -1, 0);
            NAME(inverse)(C, N, roots, 1);
            for (int64_t t = 0; t < T; t++) {
                REAL *to = du + (b * T + t) * D + d, *c = (REAL *)(C + 2 * t);
                for (int64_t l = 0; l < lanes; l++) {
                    const REAL dc = skip ? dy_b[t * dy_row + l] * (gate ? gate_b[t * gate_row + l] : 1) : 0;
                    to[l] = c[l] + (skip ? skip[d + l] * dc : 0);
                }
            }
        }
        for (int64_t l = 0; skip && l < lanes; l++) dskip[d + l] = (REAL)along[l];
        NAME(inverse)(dK, N, roots, 1);
        for (int64_t l = 0; l < lanes; l++)
            for (int64_t j = 0; j < L; j++) dkernel[(d + l) * L + j] = ((REAL *)(dK + 2 * j))[l];
        free(K);
    }
}

#undef VEC
#undef SIZES
#undef LANES

#endif
