/* Products of odd integers, bit by bit: sums_mng = sum_ij 2^(i+j) (K_ng - 2 popcount_g(mask_n & (x_mi ^ w_nj))), and
   y_mn = step_m sum_g scale_ng sums_mng.

   Layouts: x (M, X, bytes), w (N, W, bytes), mask (N, bytes) or NULL, sums (M, N, G), scale (N, G), step (M), y (M, N),
   contiguous; groups are whole bytes, or the only one is the row. Bits behind the last column are equal in x and w, so
   that they count for nothing. */

#include "../memory.h"
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VPOPCNTDQ__)
#include <immintrin.h>
#define WORDS 16 /* of 32 bits */
#endif

typedef struct {
    int64_t first, size, count; /* bytes of a group, and its columns */
} group;

static inline uint64_t word(const uint8_t *bytes, int64_t count) {
    uint64_t found = 0;
    uint32_t half;
    if (count >= 8) {
        memcpy(&found, bytes, 8);
        return found;
    }
    if (count == 4) {
        memcpy(&half, bytes, 4);
        return half;
    }
    for (int64_t b = 0; b < count; b++) found |= (uint64_t)bytes[b] << 8 * b;
    return found;
}

static int64_t differ(const uint8_t *x, const uint8_t *w, const uint8_t *mask, int64_t size) {
    int64_t found = 0;
    for (int64_t b = 0; b < size; b += 8) {
        uint64_t bits = word(x + b, size - b) ^ word(w + b, size - b);
        if (mask) bits &= word(mask + b, size - b);
        found += __builtin_popcountll(bits);
    }
    return found;
}

static int32_t total(const uint8_t *x, const uint8_t *w, const uint8_t *mask, int64_t X, int64_t W, int64_t bytes, group g) {
    int64_t count = g.count, found = 0;
    if (mask) {
        count = 0;
        for (int64_t b = 0; b < g.size; b += 8) count += __builtin_popcountll(word(mask + g.first + b, g.size - b));
    }
    for (int64_t i = 0; i < X; i++)
        for (int64_t j = 0; j < W; j++) {
            const int64_t d = differ(x + i * bytes + g.first, w + j * bytes + g.first, mask ? mask + g.first : NULL, g.size);
            found += (count - 2 * d) * ((int64_t)1 << (i + j));
        }
    return (int32_t)found;
}

void bit_serial_f32(int64_t N, int64_t C, int64_t X, int64_t W, int64_t G, int64_t threads, int64_t M, const uint8_t *x,
                    const uint8_t *w, const uint8_t *mask, int32_t *sums) {
    const int64_t bytes = (C + 7) / 8, size = G == 1 ? bytes : C / G / 8;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < N; n++)
        for (int64_t m = 0; m < M; m++)
            for (int64_t g = 0; g < G; g++)
                sums[(m * N + n) * G + g] = total(x + m * X * bytes, w + n * W * bytes, mask ? mask + n * bytes : NULL, X,
                                                  W, bytes, (group){g * size, size, C / G});
}

#if defined(__AVX512VPOPCNTDQ__)
/* sum_g scale_g sums_g of a row of x and of w in groups of whole words; scale: of each word, as many as bytes fill up */
static inline float by_words(const uint8_t *x, const uint8_t *w, const uint8_t *mask, int64_t X, int64_t W, int64_t bytes,
                             const float *scale) {
    const __m512i top = _mm512_set1_epi32((int)(((1u << X) - 1) * ((1u << W) - 1)));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t b = 0; b < bytes; b += 4 * WORDS, scale += WORDS) {
        const __mmask16 some = bytes - b < 4 * WORDS ? (__mmask16)((1 << (bytes - b) / 4) - 1) : 0xffff;
        const __m512i counted = mask ? _mm512_maskz_loadu_epi32(some, mask + b) : _mm512_set1_epi32(-1);
        __m512i apart = _mm512_setzero_si512();
        for (int64_t i = 0; i < X; i++) {
            const __m512i bits = _mm512_maskz_loadu_epi32(some, x + i * bytes + b);
            for (int64_t j = 0; j < W; j++) {
                const __m512i other = _mm512_xor_si512(bits, _mm512_maskz_loadu_epi32(some, w + j * bytes + b));
                const __m512i found = _mm512_popcnt_epi32(_mm512_and_si512(other, counted));
                apart = _mm512_add_epi32(apart, _mm512_sll_epi32(found, _mm_cvtsi64_si128(i + j)));
            }
        }
        const __m512i count = _mm512_mullo_epi32(_mm512_popcnt_epi32(counted), top);
        const __m512i sums = _mm512_sub_epi32(count, _mm512_slli_epi32(apart, 1));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(scale), sum);
    }
    return _mm512_reduce_add_ps(sum);
}
#endif

void bit_serial_products_f32(int64_t N, int64_t C, int64_t X, int64_t W, int64_t G, int64_t threads, int64_t M,
                             const uint8_t *x, const uint8_t *w, const uint8_t *mask, const float *scale, const float *step,
                             float *y) {
    const int64_t bytes = (C + 7) / 8, size = G == 1 ? bytes : C / G / 8;
#pragma omp parallel num_threads(threads)
    {
#if defined(__AVX512VPOPCNTDQ__)
        const size_t places = (bytes + 4 * WORDS - 1) / (4 * WORDS) * WORDS * sizeof(float);
        float *each = memset(kept(OF_SCALES, places), 0, places);
#endif
#pragma omp for schedule(dynamic, 16)
        for (int64_t n = 0; n < N; n++) {
            const uint8_t *own = w + n * W * bytes, *counted = mask ? mask + n * bytes : NULL;
#if defined(__AVX512VPOPCNTDQ__)
            if (C / G % 32 == 0) {
                for (int64_t g = 0, k = 0; g < G; g++)
                    for (int64_t b = 0; b < size; b += 4) each[k++] = scale[n * G + g];
                for (int64_t m = 0; m < M; m++)
                    y[m * N + n] = step[m] * by_words(x + m * X * bytes, own, counted, X, W, bytes, each);
                continue;
            }
#endif
            for (int64_t m = 0; m < M; m++) {
                float sum = 0;
                for (int64_t g = 0; g < G; g++)
                    sum += scale[n * G + g] *
                           (float)total(x + m * X * bytes, own, counted, X, W, bytes, (group){g * size, size, C / G});
                y[m * N + n] = step[m] * sum;
            }
        }
    }
}
