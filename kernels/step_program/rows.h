/* Products of up to four rows with a matrix of numbers, whose rows are outputs or inputs.

   Memory is read fastest as one stream, one line behind the other, and early enough: lines are fetched into the second
   cache while a thread works on those before, further ahead where it does more with each. */

#ifndef ZOO_STEP_ROWS_H
#define ZOO_STEP_ROWS_H

#include "common.h"

#define INPUTS 4 /* rows of a matrix whose rows are inputs at a time */
#define LINE 64 /* bytes */
#define ROWS_AHEAD (1 << 14) /* bytes: so far before its turn a line is fetched */
#define ROW_AHEAD (1 << 13) /* of one row of values */
#if defined(__AVX512F__)
#define PAIR 2 /* rows of a matrix at a time: as many as registers hold the sums of */
#else
#define PAIR 1
#endif

enum { IN_ROWS, IN_BRIEF_ROWS, IN_COLUMNS, IN_BRIEF_COLUMNS, IN_INTEGERS, IN_MINIFLOATS, SPARSE, BRIEF_SPARSE, KEPT };

/* y = base + out (factor W x + b); a: x x_row y y_row base base_row N C M factor out bias rows w layout, of codes: bits
   groups brief scale zero (or the table of their values), of sparse ones: K - - mask start, of kept columns: norms
   threshold rank and the two factors; of a chosen one: index share and the distances of matrices,
   scales and zeros in bytes; bits of exponent and mantissa; of x as digits: where, how far apart in
   bytes, and whether it is one a number */
INLINE void put(const int64_t *a, int64_t n, const float *sums, int64_t M) {
    for (int64_t m = 0; m < M; m++) {
        const float value = real(a[10]) * (real(a[9]) * sums[m] + (a[11] ? F(11)[n] : 0));
        OUT(2)[m * a[3] + n] = a[4] ? F(4)[m * a[5] + n] + value : value;
    }
}

INLINE void fetch(const char *line) { __builtin_prefetch(line, 0, 2); }

/* R neighbouring outputs from n on, each as ``column`` has it */
INLINE void some_rows(const int64_t *a, int64_t n, int brief, int M, int R) {
    const int64_t C = a[7];
    const void *w = (const void *)a[13];
    const char *ahead = (const char *)w + n * C * (brief ? 2 : 4) + (M > 1 ? ROWS_AHEAD : ROW_AHEAD);
    vector sums[2][4][2] = {{{{0}}}};
    int64_t c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES) {
        vector x[4][2];
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            x[m][0] = load(F(0) + m * a[1] + c);
            x[m][1] = load(F(0) + m * a[1] + c + LANES);
        }
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            for (int line = 0; line < (brief ? 1 : 2); line++, ahead += LINE) fetch(ahead);
            const vector first = numbers(w, (n + r) * C + c, brief), second = numbers(w, (n + r) * C + c + LANES, brief);
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) {
                sums[r][m][0] += first * x[m][0];
                sums[r][m][1] += second * x[m][1];
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
        float found[4];
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            float rest = 0;
            for (int64_t i = c; i < C; i++) rest += number(w, (n + r) * C + i, brief) * F(0)[m * a[1] + i];
            sums[r][m][0] += sums[r][m][1];
            found[m] = rest + total(&sums[r][m][0]);
        }
        put(a, n + r, found, M);
    }
}

INLINE void matrix_rows(const int64_t *a, int64_t first, int64_t last, int brief, int M) {
    int64_t n = first;
    for (; M > 1 && n + PAIR <= last; n += PAIR) some_rows(a, n, brief, M, PAIR);
    for (; n < last; n++) some_rows(a, n, brief, M, 1);
}

/* sums (N) over the inputs from first on of a matrix (C, N): its rows are read as they lie, some at a time, each a number
   of x times the row */
INLINE void add_inputs(const int64_t *a, int64_t first, int64_t last, float *sums, int brief) {
    const int64_t N = a[6], step = brief ? 2 * LANES : LANES, whole = N / step * step;
    const void *w = (const void *)a[13];
    memset(sums, 0, N * sizeof(float));
    for (int64_t c = first; c < last; c += INPUTS) {
        const int64_t rows = last - c < INPUTS ? last - c : INPUTS;
        float x[INPUTS] = {0};
        memcpy(x, F(0) + c, rows * sizeof(float));
        for (int64_t n = 0; n < whole; n += step) {
            vector sum[2] = {load(sums + n)};
            if (brief) sum[1] = load(sums + n + LANES);
            for (int64_t r = 0; r < rows; r++) {
                const int64_t place = (c + r) * N + n;
                fetch((const char *)w + (place + INPUTS * N) * (brief ? 2 : 4));
                sum[0] += x[r] * numbers(w, place, brief);
                if (brief) sum[1] += x[r] * numbers(w, place + LANES, brief);
            }
            memcpy(sums + n, sum, step * sizeof(float));
        }
        for (int64_t n = whole; n < N; n++)
            for (int64_t r = 0; r < rows; r++) sums[n] += x[r] * number(w, (c + r) * N + n, brief);
    }
}

#endif
