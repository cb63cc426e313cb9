/* The product with packed floating-point numbers of a few bits: y_mn = sum_g scale_ng sum_{c in g} value(q_nc) x_mc.

   A number of E <= 5 bits of exponent and M <= 10 of mantissa is one of half precision after its bits are moved and its
   exponent is multiplied by a power of two, subnormal ones too. Layouts: packed (N, ceil(C/8) bits), scale (N, G),
   table (256) value of each code, x (M, C), y (M, N), contiguous. */

#ifndef REAL

#include "../memory.h"
#include "../packed.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

INLINE int64_t values_f64(double *w, const uint8_t *q, int64_t n, int E, int M, double scale) { return 0; }

/* scale times the values of q up to a multiple of 8, or of none where there are no instructions for it: how many */
INLINE int64_t values_f32(float *w, const uint8_t *q, int64_t n, int E, int M, float scale) {
    int64_t c = 0;
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

/* few rows of x: a row of the matrix is made numbers once for all of them */
void NAME(minifloat_rows)(int64_t N, int64_t C, int64_t E, int64_t mantissa, int64_t groups, int64_t threads, int64_t M,
                          const uint8_t *packed, const REAL *scale, const REAL *table, const REAL *x, REAL *y) {
    const int64_t padded = (C + 7) / 8 * 8, bytes = padded / 8 * (1 + E + mantissa);
#pragma omp parallel num_threads(threads)
    {
        uint8_t *unpacked = there(malloc(padded));
        REAL *w = there(malloc(padded * sizeof(REAL)));
#pragma omp for schedule(dynamic, 32)
        for (int64_t n = 0; n < N; n++) {
            NAME(row_values)(w, unpacked, packed + n * bytes, scale + n * groups, table, C, (int)E, (int)mantissa, groups);
            for (int64_t m = 0; m < M; m++) y[m * N + n] = NAME(dot)(w, x + m * C, C);
        }
        free(unpacked);
        free(w);
    }
}

#endif
