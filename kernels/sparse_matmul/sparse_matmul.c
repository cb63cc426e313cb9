/* The product with a sparse matrix on the CPU: y_mn = sum_c w_nc x_mc, w_nc the next of the values where the mask has a bit
   and 0 elsewhere. Sixteen places at a time are filled from as many values as there are bits, and multiplied as they are.

   Layouts: values (K) REAL, or bfloat16 where brief, mask (N, ceil(C/8)), column 8 i + k of a row in bit k of byte i, start
   (N + 1), or NULL for K / N values a row, x (M, C), y (M, N), contiguous. A row whose bits are more than its values is NaN.
   The file includes itself to define each function for float and double; with A_ROW_ALONE it defines sparse_row and what that needs. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define EXPANDS
#endif

#define LANES 16
#define MOST 8      /* rows of x */
#define SMALL 65536 /* values: below, starting threads takes longer than reading them */
#define INLINE static inline __attribute__((always_inline))

/* the bits of sixteen columns from byte i on, of a row of so many bytes */
INLINE uint32_t bits_at(const uint8_t *mask, int64_t i, int64_t bytes) {
    return mask[i] | (i + 1 < bytes ? (uint32_t)mask[i + 1] << 8 : 0);
}

INLINE int64_t count_bits(const uint8_t *mask, int64_t bytes) {
    int64_t count = 0, i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t word;
        memcpy(&word, mask + i, 8);
        count += __builtin_popcountll(word);
    }
    for (; i < bytes; i++) count += __builtin_popcount(mask[i]);
    return count;
}

INLINE float from_brief(uint16_t brief) {
    const uint32_t bits = (uint32_t)brief << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

#ifndef A_ROW_ALONE

#define FILL(TYPE)                                                                                  \
    for (int64_t i = 0; i < bytes; i++)                                                             \
        for (uint32_t bits = row[i]; bits; bits &= bits - 1)                                        \
            ((TYPE *)w)[n * C + 8 * i + __builtin_ctz(bits)] = ((const TYPE *)values)[k++]

/* w (N, C), zero before, of values of so many bytes each; each thread counts the bits before its rows */
static void fill(int64_t N, int64_t C, int64_t K, int64_t size, int64_t threads, const void *values, const uint8_t *mask,
                 void *w) {
    const int64_t bytes = (C + 7) / 8;
#pragma omp parallel for schedule(static) num_threads(threads) if (K > SMALL)
    for (int64_t part = 0; part < threads; part++) {
        const int64_t first = N * part / threads, last = N * (part + 1) / threads;
        int64_t k = count_bits(mask, first * bytes);
        for (int64_t n = first; n < last; n++) {
            const uint8_t *row = mask + n * bytes;
            if (k + count_bits(row, bytes) > K) {
                memset((char *)w + n * C * size, 0xff, C * size); /* NaN in every format */
                continue;
            }
            if (size == 2) {
                FILL(uint16_t);
            } else if (size == 4) {
                FILL(uint32_t);
            } else {
                FILL(uint64_t);
            }
        }
    }
}

#endif

#define REAL float
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef NAME
#ifndef A_ROW_ALONE
#define REAL double
#define NAME(x) x##_f64
#include __FILE__
#undef REAL
#undef NAME
#endif

#else

typedef REAL NAME(sixteen) __attribute__((vector_size(LANES * sizeof(REAL))));

INLINE NAME(sixteen) NAME(sixteen_at)(const REAL *x) {
    NAME(sixteen) found;
    memcpy(&found, x, sizeof found);
    return found;
}

INLINE REAL NAME(sum_of)(const NAME(sixteen) *v) {
    REAL parts[LANES];
    memcpy(parts, v, sizeof parts);
    for (int l = 0; l < 8; l++) parts[l] += parts[l + 8];
    for (int l = 0; l < 4; l++) parts[l] += parts[l + 4];
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
}

/* value k of those that have so few or many bytes */
INLINE REAL NAME(value_at)(const void *values, int64_t k, int brief) {
    return brief ? (REAL)from_brief(((const uint16_t *)values)[k]) : ((const REAL *)values)[k];
}

/* sixteen places of a row, from value k on */
INLINE NAME(sixteen) NAME(places)(const void *values, int64_t k, uint32_t bits, int brief) {
#ifdef EXPANDS
    if (sizeof(REAL) == 4) {
        const __mmask16 there = (__mmask16)((1u << __builtin_popcount(bits)) - 1);
        __m512 packed;
        if (brief) {
            const __m256i narrow = _mm256_maskz_loadu_epi16(there, (const uint16_t *)values + k);
            packed = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
        } else {
            packed = _mm512_maskz_loadu_ps(there, (const float *)values + k);
        }
        const __m512 spread = _mm512_maskz_expand_ps((__mmask16)bits, packed);
        NAME(sixteen) found;
        memcpy(&found, &spread, sizeof spread);
        return found;
    }
#endif
    REAL found[LANES] = {0};
    for (; bits; bits &= bits - 1) found[__builtin_ctz(bits)] = NAME(value_at)(values, k++, brief);
    return NAME(sixteen_at)(found);
}

/* of one row of the matrix, from value k on, the sums with M rows of x that lie apart; two sums each, as an addition waits
   for the last */
INLINE void NAME(sparse_row)(int64_t C, int64_t k, const void *values, const uint8_t *mask, const REAL *x, int64_t apart,
                             REAL *sums, int brief, int M) {
    const int64_t bytes = (C + 7) / 8;
    NAME(sixteen) even[MOST] = {{0}}, odd[MOST] = {{0}};
    int64_t c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES) {
        uint16_t bits[2];
        memcpy(bits, mask + c / 8, 4);
        const NAME(sixteen) first = NAME(places)(values, k, bits[0], brief);
        k += __builtin_popcount(bits[0]);
        const NAME(sixteen) second = NAME(places)(values, k, bits[1], brief);
        k += __builtin_popcount(bits[1]);
        for (int m = 0; m < M; m++) {
            even[m] += first * NAME(sixteen_at)(x + m * apart + c);
            odd[m] += second * NAME(sixteen_at)(x + m * apart + c + LANES);
        }
    }
    for (int m = 0; m < M; m++) even[m] += odd[m];
    REAL rest[MOST] = {0};
    for (; c < C; c += LANES)
        for (uint32_t bits = bits_at(mask, c / 8, bytes); bits; bits &= bits - 1) {
            const int64_t place = c + __builtin_ctz(bits);
            const REAL w = NAME(value_at)(values, k++, brief);
            for (int m = 0; m < M && place < C; m++) rest[m] += w * x[m * apart + place];
        }
    for (int m = 0; m < M; m++) sums[m] = rest[m] + NAME(sum_of)(&even[m]);
}

/* where the values of row n begin; -1 where its bits are not as many as its values */
INLINE int64_t NAME(begin)(int64_t N, int64_t n, int64_t K, int64_t bytes, const uint8_t *row, const int32_t *start) {
    const int64_t k = start ? start[n] : n * (K / N), end = start ? start[n + 1] : k + K / N;
    return k < 0 || end > K || count_bits(row, bytes) != end - k ? -1 : k;
}

#ifndef A_ROW_ALONE

#undef SPARSE_ROWS
#define SPARSE_ROWS(COUNT, BRIEF)                                                                                     \
    _Pragma("omp parallel for schedule(dynamic, 32) num_threads(threads) if (K > SMALL)") for (int64_t n = 0; n < N; n++) { \
        const int64_t k = NAME(begin)(N, n, K, bytes, mask + n * bytes, start);                                       \
        REAL sums[MOST];                                                                                              \
        if (k >= 0) NAME(sparse_row)(C, k, values, mask + n * bytes, x, C, sums, BRIEF, COUNT);                       \
        for (int64_t m = 0; m < M; m++) y[m * N + n] = k < 0 ? NAN : sums[m];                                         \
    }

void NAME(sparse_rows)(int64_t N, int64_t C, int64_t K, int64_t brief, int64_t threads, int64_t M, const void *values,
                       const uint8_t *mask, const int32_t *start, const REAL *x, REAL *y) {
    const int64_t bytes = (C + 7) / 8;
    switch (2 * M + (brief != 0)) {
        case 2: SPARSE_ROWS(1, 0); break;
        case 3: SPARSE_ROWS(1, 1); break;
        case 4: SPARSE_ROWS(2, 0); break;
        case 5: SPARSE_ROWS(2, 1); break;
        default:
            if (brief) {
                SPARSE_ROWS(M, 1);
            } else {
                SPARSE_ROWS(M, 0);
            }
    }
}

void NAME(sparse_dense)(int64_t N, int64_t C, int64_t K, int64_t size, int64_t threads, const void *values,
                        const uint8_t *mask, void *w) {
    fill(N, C, K, size, threads, values, mask, w);
}

#endif

#endif
