/* y_mn = b_n + sum_c w_nc x_mc for up to four rows of x: a row of the matrix is read once for all of them, and the sums
   are float. Layouts: w (N, C) float, or bfloat16 where brief, x (M, C), y (M, N), contiguous; b (N) or NULL. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 16
#define CHUNK 16384 /* numbers that a thread takes at a time */
#define SMALL 65536 /* numbers of a matrix: below, starting threads takes longer than reading it */
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t uints __attribute__((vector_size(4 * LANES)));

INLINE vector load(const float *x) {
    vector found;
    memcpy(&found, x, sizeof found);
    return found;
}

/* compilers differ in what they make of the portable form, and this is the inner loop */
INLINE vector load_brief(const uint16_t *w) {
    uints bits;
#if defined(__AVX512F__)
    bits = (uints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)w)) << 16;
#elif defined(__AVX2__)
    const __m256i found[2] = {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)w)),
                              _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(w + 8)))};
    memcpy(&bits, found, sizeof bits);
    bits <<= 16;
#else
    for (int l = 0; l < LANES; l++) bits[l] = (uint32_t)w[l] << 16;
#endif
    vector wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

INLINE float number(const void *w, int64_t index, int brief) {
    if (!brief) return ((const float *)w)[index];
    const uint32_t bits = (uint32_t)((const uint16_t *)w)[index] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE vector numbers(const void *w, int64_t index, int brief) {
    return brief ? load_brief((const uint16_t *)w + index) : load((const float *)w + index);
}

INLINE float total(const vector *v) {
    float parts[LANES];
    memcpy(parts, v, sizeof parts);
    for (int l = 0; l < 8; l++) parts[l] += parts[l + 8];
    for (int l = 0; l < 4; l++) parts[l] += parts[l + 4];
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
}

/* M sums over a row of the matrix, of rows of x that lie x_row apart; two at a time, as each addition waits for the last */
INLINE void column(int64_t C, int64_t n, const void *w, const float *x, int64_t x_row, float *sums, int brief, int M) {
    vector even[4] = {{0}}, odd[4] = {{0}};
    int64_t c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES) {
        const vector first = numbers(w, n * C + c, brief), second = numbers(w, n * C + c + LANES, brief);
        for (int m = 0; m < M; m++) {
            even[m] += first * load(x + m * x_row + c);
            odd[m] += second * load(x + m * x_row + c + LANES);
        }
    }
    for (int m = 0; m < M; m++) {
        float rest = 0;
        for (int64_t i = c; i < C; i++) rest += number(w, n * C + i, brief) * x[m * x_row + i];
        even[m] += odd[m];
        sums[m] = rest + total(&even[m]);
    }
}

#define ROWS(M, BRIEF)                                                                             \
    _Pragma("omp parallel for schedule(dynamic, some) num_threads(threads) if (N * C > SMALL)") for (int64_t n = 0; n < N; n++) { \
        float sums[4];                                                                             \
        column(C, n, w, x, C, sums, BRIEF, M);                                                     \
        for (int m = 0; m < M; m++) y[m * N + n] = sums[m] + (bias ? bias[n] : 0);                 \
    }                                                                                              \
    return

void row_linear_f32(int64_t M, int64_t N, int64_t C, int64_t brief, int64_t threads, const void *w, const float *bias,
                    const float *x, float *y) {
    const int64_t some = 1 + CHUNK / (C + 1); /* rows as they come: a thread may have no core at the moment */
    switch (2 * M + (brief != 0)) {
        case 2: ROWS(1, 0);
        case 3: ROWS(1, 1);
        case 4: ROWS(2, 0);
        case 5: ROWS(2, 1);
        case 6: ROWS(3, 0);
        case 7: ROWS(3, 1);
        case 8: ROWS(4, 0);
        case 9: ROWS(4, 1);
    }
}
