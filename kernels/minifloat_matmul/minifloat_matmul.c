/* The product with packed floating-point numbers of a few bits: y_mn = sum_g scale_ng sum_{c in g} value(q_nc) x_mc.

   A number of E <= 5 bits of exponent and M <= 10 of mantissa is one of half precision after its bits are moved and its
   exponent is multiplied by a power of two, subnormal ones too; those of 4 bits are looked up in a register. Layouts: packed (N, ceil(C/8) bits), scale (N, G),
   table (256) value of each code, x (M, C), y (M, N), contiguous. */

#ifndef REAL

#include "../memory.h"
#include "../packed.h"

#define MOST_ROWS 8 /* of x */

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
typedef struct {
    __m512 factor;
    __m256i low, high;
    __m128i body, sign;
} halves; /* how 8 bits become half precision: what is moved, and by how much */

INLINE halves halves_of(int E, int M) {
    return (halves){_mm512_set1_ps((float)(1 << (15 - ((1 << (E - 1)) - 1)))), _mm256_set1_epi16((short)((1 << (E + M)) - 1)),
                    _mm256_set1_epi16((short)(1 << (E + M))), _mm_cvtsi32_si128(10 - M), _mm_cvtsi32_si128(15 - E - M)};
}

/* the values of 16 codes over the factor */
INLINE __m512 sixteen(const uint8_t *q, halves h) {
    const __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)q));
    return _mm512_cvtph_ps(_mm256_or_si256(_mm256_sll_epi16(_mm256_and_si256(code, h.low), h.body),
                                           _mm256_sll_epi16(_mm256_and_si256(code, h.high), h.sign)));
}

INLINE __m512 spread(const void *scale, int64_t index, int brief) {
    if (!brief) return _mm512_set1_ps(((const float *)scale)[index]);
    return _mm512_castsi512_ps(_mm512_set1_epi32((int)((uint32_t)((const uint16_t *)scale)[index] << 16)));
}

/* sums (M) of one row of 4 or 8 bits, its numbers made and multiplied 16 at a time, in groups of so many columns as a
   power of two says; of 4 bits those of whole blocks. How many columns */
INLINE int64_t sums_at_once(float *sums, const uint8_t *q, const void *scale, int64_t index, int brief, const float *table,
                            const float *x, int64_t x_row, int64_t C, int E, int mantissa, int shift, int M) {
    __m512 total[MOST_ROWS][4];
    int64_t c = 0;
    for (int m = 0; m < M; m++)
        for (int k = 0; k < 4; k++) total[m][k] = _mm512_setzero_ps();
    if (1 + E + mantissa == 4) {
        const __m512 values = _mm512_loadu_ps(table); /* a permutation reads the lowest 4 bits of an index */
        for (; c + 128 <= C; c += 128, q += 64)
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                const int64_t low = c + LANES * k, high = low + 64;
                const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(q + LANES * k)));
                const __m512 a = _mm512_mul_ps(_mm512_permutexvar_ps(codes, values), spread(scale, index + (low >> shift), brief));
                const __m512 b = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), values),
                                               spread(scale, index + (high >> shift), brief));
                for (int m = 0; m < M; m++) {
                    total[m][k] = _mm512_fmadd_ps(a, _mm512_loadu_ps(x + m * x_row + low), total[m][k]);
                    total[m][k] = _mm512_fmadd_ps(b, _mm512_loadu_ps(x + m * x_row + high), total[m][k]);
                }
            }
    } else {
        const halves h = halves_of(E, mantissa);
        for (; c + 4 * LANES <= C; c += 4 * LANES)
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                const int64_t at = c + LANES * k;
                const __m512 a = _mm512_mul_ps(sixteen(q + at, h), spread(scale, index + (at >> shift), brief));
                for (int m = 0; m < M; m++)
                    total[m][k] = _mm512_fmadd_ps(a, _mm512_loadu_ps(x + m * x_row + at), total[m][k]);
            }
        for (int m = 0; m < M; m++)
            for (int k = 0; k < 4; k++) total[m][k] = _mm512_mul_ps(total[m][k], h.factor);
    }
    for (int m = 0; m < M; m++)
        sums[m] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(total[m][0], total[m][1]), _mm512_add_ps(total[m][2], total[m][3])));
    return c;
}
#endif

/* the power of two that the columns of a group are, or beyond them all where there is one group; -1 where they are none
   that 16 columns at a time fit into */
INLINE int power_of(int64_t C, int64_t groups) {
    const int64_t size = C / groups;
    return groups == 1 ? 62 : size % LANES || size & (size - 1) ? -1 : __builtin_ctzll(size);
}

INLINE int64_t values_f64(double *w, const uint8_t *q, int64_t n, int E, int M, double scale) { return 0; }

/* scale times the values of q up to a multiple of 8, or of none where there are no instructions for it: how many */
INLINE int64_t values_f32(float *w, const uint8_t *q, int64_t n, int E, int M, float scale) {
    int64_t c = 0;
#ifdef __AVX512F__
    const halves h = halves_of(E, M);
    const __m512 each = _mm512_mul_ps(h.factor, _mm512_set1_ps(scale));
    for (; c + LANES <= n; c += LANES) _mm512_storeu_ps(w + c, _mm512_mul_ps(sixteen(q + c, h), each));
#endif
#ifdef __F16C__
    const __m256 factor = _mm256_set1_ps(scale * (float)(1 << (15 - ((1 << (E - 1)) - 1))));
    const __m128i body = _mm_cvtsi32_si128(10 - M), sign = _mm_cvtsi32_si128(15 - E - M);
    const __m128i low = _mm_set1_epi16((short)((1 << (E + M)) - 1)), high = _mm_set1_epi16((short)(1 << (E + M)));
    for (; c + 8 <= n; c += 8) {
        const __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(q + c)));
        const __m128i half = _mm_or_si128(_mm_sll_epi16(_mm_and_si128(code, low), body),
                                          _mm_sll_epi16(_mm_and_si128(code, high), sign));
        _mm256_storeu_ps(w + c, _mm256_mul_ps(_mm256_cvtph_ps(half), factor));
    }
#endif
    return c;
}

INLINE double scale_at_f64(const void *scale, int64_t index, int brief) { return ((const double *)scale)[index]; }

INLINE float scale_at_f32(const void *scale, int64_t index, int brief) {
    if (!brief) return ((const float *)scale)[index];
    const uint32_t bits = (uint32_t)((const uint16_t *)scale)[index] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE int64_t at_once_f64(double *sums, const uint8_t *q, const void *scale, int64_t index, int brief, const double *table,
                           const double *x, int64_t x_row, int64_t C, int E, int mantissa, int64_t groups, int M) {
    return 0;
}

/* sums of so many of the columns, of none where there are no instructions for it */
INLINE int64_t at_once_f32(float *sums, const uint8_t *q, const void *scale, int64_t index, int brief, const float *table,
                           const float *x, int64_t x_row, int64_t C, int E, int mantissa, int64_t groups, int M) {
#ifdef __AVX512F__
    const int shift = power_of(C, groups), bits = 1 + E + mantissa;
    if (shift >= 0 && (bits == 4 || bits == 8)) {
        if (M == 1) return sums_at_once(sums, q, scale, index, brief, table, x, x_row, C, E, mantissa, shift, 1);
        return sums_at_once(sums, q, scale, index, brief, table, x, x_row, C, E, mantissa, shift, M);
    }
#endif
    return 0;
}

#define REAL float
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include __FILE__
#undef REAL
#undef NAME

#else

/* w (C) of a row of codes, unpacked (C, filled up to 8) where they are of less than 8 bits */
INLINE void NAME(row_values)(REAL *w, uint8_t *unpacked, const uint8_t *q, const REAL *scale, const REAL *table, int64_t C,
                             int E, int mantissa, int64_t groups) {
    const int64_t bits = 1 + E + mantissa, size = C / groups;
    if (bits < 8) {
        codes_of(unpacked, q, (C + 7) / 8 * 8, bits);
        q = unpacked;
    }
    for (int64_t first = 0, g = 0; g < groups; g++, first += size) {
        const int64_t done = NAME(values)(w + first, q + first, size, E, mantissa, scale[g]);
        for (int64_t c = first + done; c < first + size; c++) w[c] = scale[g] * table[q[c]];
    }
}

/* sums (M) of row n of the matrix with rows of x that lie x_row apart; place: for C numbers filled up to 8, and for the
   scales of a row */
INLINE void NAME(row_sums)(REAL *sums, REAL *place, const uint8_t *packed, int64_t n, const void *scale, int brief,
                           const REAL *table, const REAL *x, int64_t x_row, int64_t C, int E, int mantissa, int64_t groups,
                           int M) {
    const int64_t padded = (C + 7) / 8 * 8;
    const uint8_t *q = packed + n * (padded / 8 * (1 + E + mantissa));
    const int64_t done = NAME(at_once)(sums, q, scale, n * groups, brief, table, x, x_row, C, E, mantissa, groups, M);
    if (done == C) return;
    REAL *own = place + padded;
    for (int64_t g = 0; g < groups; g++) own[g] = NAME(scale_at)(scale, n * groups + g, brief);
    uint8_t *unpacked = kept(OF_CODES, padded);
    NAME(row_values)(place, unpacked, q, own, table, C, E, mantissa, groups);
    for (int m = 0; m < M; m++) sums[m] = NAME(dot)(place + done, x + m * x_row + done, C - done) + (done ? sums[m] : 0);
}

/* w (N, C) */
void NAME(minifloat_dequantise)(int64_t N, int64_t C, int64_t E, int64_t mantissa, int64_t groups, int64_t threads,
                                const uint8_t *packed, const REAL *scale, const REAL *table, REAL *w) {
    const int64_t padded = (C + 7) / 8 * 8, bytes = padded / 8 * (1 + E + mantissa);
#pragma omp parallel num_threads(threads)
    {
        uint8_t *unpacked = kept(OF_CODES, padded);
#pragma omp for schedule(dynamic, 32)
        for (int64_t n = 0; n < N; n++)
            NAME(row_values)(w + n * C, unpacked, packed + n * bytes, scale + n * groups, table, C, (int)E, (int)mantissa, groups);
    }
}

/* few rows of x: a row of the matrix is made numbers once for all of them */
void NAME(minifloat_rows)(int64_t N, int64_t C, int64_t E, int64_t mantissa, int64_t groups, int64_t threads, int64_t M,
                          const uint8_t *packed, const REAL *scale, const REAL *table, const REAL *x, REAL *y) {
#pragma omp parallel num_threads(threads)
    {
        REAL *place = kept(OF_NUMBERS, (C + 8 + groups) * sizeof(REAL)), sums[MOST_ROWS];
#pragma omp for schedule(dynamic, 32)
        for (int64_t n = 0; n < N; n++)
            for (int64_t m = 0; m < M; m += MOST_ROWS) {
                const int rows = (int)(M - m < MOST_ROWS ? M - m : MOST_ROWS);
                NAME(row_sums)(sums, place, packed, n, scale, 0, table, x + m * C, C, C, (int)E, (int)mantissa, groups, rows);
                for (int i = 0; i < rows; i++) y[(m + i) * N + n] = sums[i];
            }
    }
}

#endif
