/* Products of rows with a matrix, in any layout that matrix.py knows, or with the matrix that each row has chosen. */

#include "../memory.h"
#include "rows.h"
#include "../lowbit_matmul/lowbit_matmul.c"
#include "../minifloat_matmul/minifloat_matmul.c"
#define A_ROW_ALONE
#include "../sparse_matmul/sparse_matmul.c"

INLINE record_f32 record_of(const int64_t *a) {
    return (record_f32){a[6], a[7], a[15], a[16], a[17], (const uint8_t *)a[13], (const void *)a[18], (const uint8_t *)a[19]};
}

static void integer_rows(const int64_t *a, int64_t first, int64_t last) {
    const int64_t C = a[7], M = a[8], groups = a[16], size = C / groups;
    const record_f32 r = record_of(a);
    const row_f32 row = make_row_f32(r);
    float *w = kept(OF_NUMBERS, (C > WHOLE(groups) ? C : WHOLE(groups)) * sizeof(float)), sums[4];
    if (M == 1) sum_columns_f32(w, F(0), groups, size);
    for (int64_t n = first; n < last; n++) {
        read_row_f32(row, r, n);
        if (M == 1) {
            sums[0] = one_row_f32(row, F(0), w, groups, size);
        } else {
            numbers_f32(w, row, groups, size);
            for (int64_t m = 0; m < M; m++) sums[m] = inner_f32(w, F(0) + m * a[1], C);
        }
        put(a, n, sums, M);
    }
}

#if HAS_DIGITS
static void integer_rows_by_digits(const int64_t *a, int64_t first, int64_t last) {
    const int64_t M = a[8], count = last - first;
    const record_f32 r = record_of(a);
    const size_t steps = FULL(r.C) / UNIT; /* zeros behind the last column */
    float *step = memset(kept(OF_STEPS, (steps + M * count) * sizeof(float)), 0, steps * sizeof(float));
    float *found = step + steps, sums[4];
    for (int64_t m = 0; m < M; m++)
        digit_rows(r, first, last, digits_at((char *)a[27] + m * a[28], r.C, r.groups), a[29] ? 1 : 3, step, found + m * count);
    for (int64_t n = first; n < last; n++) {
        for (int64_t m = 0; m < M; m++) sums[m] = found[m * count + n - first];
        put(a, n, sums, M);
    }
}
#else
#define integer_rows_by_digits integer_rows
#endif

/* chunk: a row. a: x x_row digits digits_row (in bytes) C groups, and to what its largest number is rounded, or 0 */
static void digits_of_row(const int64_t *a, int64_t m) {
#if HAS_DIGITS
    const digit_row row = digits_at((char *)a[2] + m * a[3], a[4], a[5]);
    if (a[6])
        make_digit(row, F(0) + m * a[1], a[4], a[5], (float)a[6]);
    else
        make_digits(row, F(0) + m * a[1], a[4], a[5]);
#endif
}

static void minifloat_chunk(const int64_t *a, int64_t first, int64_t last) {
    const int64_t C = a[7], groups = a[16];
    const uint8_t *packed = (const uint8_t *)a[13];
    float *place = kept(OF_NUMBERS, (C + 8 + groups) * sizeof(float)), sums[4];
    for (int64_t n = first; n < last; n++) {
        row_sums_f32(sums, place, packed, n, (const void *)a[18], (int)a[17], F(19), F(0), a[1], C, (int)a[25],
                     (int)a[26], groups, (int)a[8]);
        put(a, n, sums, a[8]);
    }
}

INLINE void sparse_chunk(const int64_t *a, int64_t first, int64_t last, int brief, int M) {
    const int64_t C = a[7], bytes = (C + 7) / 8;
    const uint8_t *mask = (const uint8_t *)a[18];
    for (int64_t n = first; n < last; n++) {
        const int64_t k = begin_f32(a[6], n, a[15], bytes, mask + n * bytes, (const int32_t *)a[19]);
        float sums[MOST];
        if (k >= 0)
            sparse_row_f32(C, k, (const void *)a[13], mask + n * bytes, F(0), a[1], sums, brief, M);
        else
            for (int m = 0; m < M; m++) sums[m] = NAN;
        put(a, n, sums, M);
    }
}

/* sums += of so many numbers x their products with segments of rows of w (-, N) that begin at first */
INLINE void add_rows(float *sums, int64_t width, const float *w, int64_t N, int64_t first, const float *x,
                     const int64_t *rows, int64_t count) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const float *r[4];
        for (int j = 0; j < 4; j++) r[j] = w + (rows ? rows[i + j] : i + j) * N + first;
#pragma omp simd
        for (int64_t n = 0; n < width; n++)
            sums[n] += x[i] * r[0][n] + x[i + 1] * r[1][n] + x[i + 2] * r[2][n] + x[i + 3] * r[3][n];
    }
    for (; i < count; i++) {
        const float *row = w + (rows ? rows[i] : i) * N + first;
#pragma omp simd
        for (int64_t n = 0; n < width; n++) sums[n] += x[i] * row[n];
    }
}

#define SEGMENT 256 /* most outputs of a chunk of kept columns */

/* of a matrix (C, N) the rows that x keeps, of the others a product of low rank */
static void kept_rows(const int64_t *a, int64_t first, int64_t last) {
    const int64_t N = a[6], C = a[7], M = a[8], rank = a[17];
    int64_t *rows = kept(OF_PLACES, C * sizeof(int64_t));
    float *numbers = kept(OF_NUMBERS, (C + rank) * sizeof(float)), *latent = numbers + C, sums[4][SEGMENT] = {{0}};
    for (int64_t m = 0; m < M; m++) {
        const float *x = F(0) + m * a[1];
        int64_t count = 0;
        memset(latent, 0, rank * sizeof(float));
        for (int64_t c = 0; c < C; c++)
            if (!(fabsf(x[c]) * F(15)[c] <= real(a[16]))) { /* NaN is kept, too */
                rows[count] = c;
                numbers[count++] = x[c];
            } else {
                for (int64_t r = 0; r < rank; r++) latent[r] += x[c] * F(18)[c * rank + r];
            }
        add_rows(sums[m], last - first, F(13), N, first, numbers, rows, count);
        add_rows(sums[m], last - first, F(19), N, first, latent, 0, rank);
    }
    for (int64_t n = first; n < last; n++) {
        const float each[4] = {sums[0][n - first], sums[1][n - first], sums[2][n - first], sums[3][n - first]};
        put(a, n, each, M);
    }
}

/* of a matrix whose rows are inputs: what some of them add, which with all others' is the product */
static void input_rows(const int64_t *a, int64_t chunk, int brief) {
    const int64_t first = chunk * a[12], last = first + a[12] < a[7] ? first + a[12] : a[7];
    float *sums = kept(OF_NUMBERS, a[6] * sizeof(float));
    if (brief)
        add_inputs(a, first, last, sums, 1);
    else
        add_inputs(a, first, last, sums, 0);
    for (int64_t n = 0; n < a[6]; n++) put(a, n, sums + n, 1);
}

static void linear_rows(const int64_t *a, int64_t chunk) {
    const int64_t first = chunk * a[12], last = first + a[12] < a[6] ? first + a[12] : a[6];
    switch (a[14]) {
        case IN_COLUMNS:
        case IN_BRIEF_COLUMNS: input_rows(a, chunk, a[14] == IN_BRIEF_COLUMNS); return;
        case IN_INTEGERS:
            if (a[27])
                integer_rows_by_digits(a, first, last);
            else
                integer_rows(a, first, last);
            return;
        case IN_MINIFLOATS: minifloat_chunk(a, first, last); return;
        case SPARSE:
            if (a[8] == 1)
                sparse_chunk(a, first, last, 0, 1);
            else
                sparse_chunk(a, first, last, 0, (int)a[8]);
            return;
        case BRIEF_SPARSE: sparse_chunk(a, first, last, 1, (int)a[8]); return;
        case KEPT: kept_rows(a, first, last); return;
    }
    switch (2 * a[8] + a[14]) {
        case 2: matrix_rows(a, first, last, 0, 1); return;
        case 3: matrix_rows(a, first, last, 1, 1); return;
        case 4: matrix_rows(a, first, last, 0, 2); return;
        case 5: matrix_rows(a, first, last, 1, 2); return;
        case 6: matrix_rows(a, first, last, 0, 3); return;
        case 7: matrix_rows(a, first, last, 1, 3); return;
        case 8: matrix_rows(a, first, last, 0, 4); return;
        case 9: matrix_rows(a, first, last, 1, 4); return;
    }
}

/* chunk: of one matrix, for a slot (m, k); every so many slots (a[21]) share a row of x; where rows are inputs, each chunk
   has a row of y */
static void chosen_rows(const int64_t *a, int64_t chunk) {
    const int columns = a[14] == IN_COLUMNS || a[14] == IN_BRIEF_COLUMNS;
    const int64_t chunks = (a[columns ? 7 : 6] + a[12] - 1) / a[12], slot = chunk / chunks, part = chunk % chunks;
    const int64_t e = ((const int64_t *)a[20])[slot];
    int64_t own[ARGUMENTS];
    memcpy(own, a, sizeof own);
    own[0] += slot / a[21] * a[1] * (int64_t)sizeof(float);
    own[2] += (columns ? chunk : slot) * a[3] * (int64_t)sizeof(float);
    own[11] = a[11] && !(columns && part) ? a[11] + e * a[6] * (int64_t)sizeof(float) : 0;
    own[13] += e * a[22];
    own[18] += e * a[23];
    own[19] += e * a[24];
    own[27] += a[27] ? slot / a[21] * a[28] : 0;
    linear_rows(own, part);
}

static void linear_chunk(const int64_t *a, int64_t chunk) {
    if (a[20])
        chosen_rows(a, chunk);
    else
        linear_rows(a, chunk);
}
