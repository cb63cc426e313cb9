/* Products of up to four rows with a matrix of numbers, whose rows are outputs or inputs.

   Memory is read fastest as one stream, one line behind the other, and early enough: a thread that computes as much with
   a line as four rows do has the next ones fetched into its second cache while it works on those before. */

#ifndef ZOO_STEP_ROWS_H
#define ZOO_STEP_ROWS_H

#include "common.h"

#define SEGMENT 512 /* most outputs of a chunk of a matrix whose rows are inputs */
#define LINE 64 /* bytes */
#define ROWS_AHEAD (1 << 14) /* bytes: so far before its turn a line is fetched */
#define FURTHER 16 /* rows of a matrix whose rows are inputs that are fetched before their turn */
#if defined(__AVX512F__)
#define PAIR 2 /* rows of a matrix at a time: as many as registers hold the sums of */
#else
#define PAIR 1
#endif

enum { IN_ROWS, IN_BRIEF_ROWS, IN_COLUMNS, IN_BRIEF_COLUMNS, IN_INTEGERS, IN_MINIFLOATS, SPARSE, BRIEF_SPARSE, KEPT };

/* y = base + out (factor W x + b); a: x x_row y y_row base base_row N C M factor out bias rows w layout, of codes: bits
   groups brief scale zero (or the table of their values), of sparse ones: K - - mask start, of kept columns: norms
   threshold rank and the two factors; of a chosen one: index share and the distances of matrices,
   scales and zeros in bytes; bits of exponent and mantissa; of x as digits: where and how far apart in
   bytes */
INLINE void put(const int64_t *a, int64_t n, const float *sums, int64_t M) {
    for (int64_t m = 0; m < M; m++) {
        const float value = real(a[10]) * (real(a[9]) * sums[m] + (a[11] ? F(11)[n] : 0));
        OUT(2)[m * a[3] + n] = a[4] ? F(4)[m * a[5] + n] + value : value;
    }
}

INLINE void fetch(const char *line) { __builtin_prefetch(line, 0, 2); }

/* PAIR neighbouring outputs from n on, each as ``column`` has it */
INLINE void pair_of_rows(const int64_t *a, int64_t n, int brief, int M) {
    const int64_t C = a[7];
    const void *w = (const void *)a[13];
    const char *ahead = (const char *)w + n * C * (brief ? 2 : 4) + ROWS_AHEAD;
    vector sums[PAIR][4][2] = {{{{0}}}};
    int64_t c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES) {
        vector x[4][2];
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            x[m][0] = load(F(0) + m * a[1] + c);
            x[m][1] = load(F(0) + m * a[1] + c + LANES);
        }
#pragma GCC unroll 2
        for (int r = 0; r < PAIR; r++) {
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
    for (int r = 0; r < PAIR; r++) {
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

/* a thread that computes nothing but one row with a line waits for memory alone, and is served best where it asks for
   nothing else */
INLINE void matrix_rows(const int64_t *a, int64_t first, int64_t last, int brief, int M) {
    int64_t n = first;
    for (; M > 1 && n + PAIR <= last; n += PAIR) pair_of_rows(a, n, brief, M);
    for (; n < last; n++) {
        float sums[4];
        column(a[7], n, (const void *)a[13], F(0), a[1], sums, brief, M);
        put(a, n, sums, M);
    }
}

/* of a matrix (C, N): four of its rows at a time, each a number of x times a segment of the row */
INLINE void segment(const int64_t *a, int64_t first, int64_t last, int brief) {
    const int64_t N = a[6], C = a[7], step = brief ? 2 * LANES : LANES, whole = (last - first) / step * step;
    const void *w = (const void *)a[13];
    float sums[SEGMENT];
    memset(sums, 0, (last - first) * sizeof(float));
    for (int64_t c = 0; c < C; c += 4) {
        const int64_t rows = C - c < 4 ? C - c : 4;
        float x[4] = {0};
        const int64_t further = c + FURTHER < C ? FURTHER * N : (FURTHER - C) * N + last - first; /* of the next segment */
        memcpy(x, F(0) + c, rows * sizeof(float));
        for (int64_t n = 0; n < whole; n += step) {
            const int64_t place = c * N + first + n;
            vector sum[2] = {load(sums + n)};
            if (brief) sum[1] = load(sums + n + LANES);
            for (int64_t r = 0; r < rows; r++) {
                fetch((const char *)w + (place + r * N + further) * (brief ? 2 : 4));
                sum[0] += x[r] * numbers(w, place + r * N, brief);
                if (brief) sum[1] += x[r] * numbers(w, place + r * N + LANES, brief);
            }
            memcpy(sums + n, sum, step * sizeof(float));
        }
        for (int64_t n = whole; n < last - first; n++)
            for (int64_t r = 0; r < rows; r++) sums[n] += x[r] * number(w, (c + r) * N + first + n, brief);
    }
    for (int64_t n = first; n < last; n++) put(a, n, sums + n - first, 1);
}

#endif
