/* The product with scaled signs by tables: y_mn = sum_g (sum_p alpha_ngp sum_{c in g} b_npc x_mc + offset_ng sum_{c in g} x_mc).

   Four bits of a plane choose one of the 16 sums that the signs of four numbers of x can have, so that a table of 16
   floats, a vector register, serves sixteen rows of the matrix at once. Layouts: planes (N, P, C / 8), alpha (N, G, P),
   offset (N, G) or NULL, x (M, C), tables (C / 4, 16), y (M, N), contiguous; groups are whole bytes. */

#include <stdint.h>
#include <string.h>

#define ROWS 16

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

typedef struct {
    int64_t N, bytes, P, G;
    const uint8_t *planes;
    const float *alpha, *offset;
} record;

static void fill(float *restrict tables, const float *restrict x, int64_t C) {
    for (int64_t q = 0; q < C / 4; q++)
        for (int key = 0; key < 16; key++) {
            float sum = 0;
            for (int j = 0; j < 4; j++) sum += key >> j & 1 ? x[4 * q + j] : -x[4 * q + j];
            tables[16 * q + key] = sum;
        }
}

/* column j of found: byte j of every row */
static void transpose(uint8_t found[ROWS][ROWS], uint8_t given[ROWS][ROWS]) {
#if defined(__SSE2__)
    __m128i a[ROWS], b[ROWS];
    memcpy(a, given, sizeof a);
    for (int turn = 0; turn < 4; turn++) {
        for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        memcpy(a, b, sizeof a);
    }
    memcpy(found, a, sizeof a);
#else
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < ROWS; j++) found[j][r] = given[r][j];
#endif
}

/* sums += what the bytes of sixteen rows choose from the two tables of eight columns */
static inline void look_up(float *restrict sums, const uint8_t *restrict byte, const float *restrict table) {
#if defined(__AVX512F__)
    const __m512i key = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)byte));
    const __m512 low = _mm512_permutexvar_ps(key, _mm512_loadu_ps(table)); /* of the lowest four bits */
    const __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(key, 4), _mm512_loadu_ps(table + 16));
    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_add_ps(low, high)));
#else
    for (int r = 0; r < ROWS; r++) sums[r] += table[byte[r] & 15] + table[16 + (byte[r] >> 4)];
#endif
}

/* y (ROWS) of rows n, n + 1, ..., the last one again where there are no more */
static void tile(float *restrict y, record r, int64_t n, const float *restrict tables) {
    const int64_t size = r.bytes / r.G;
    int64_t row[ROWS];
    for (int i = 0; i < ROWS; i++) row[i] = n + i < r.N ? n + i : r.N - 1;
    for (int i = 0; i < ROWS; i++) y[i] = 0;
    for (int64_t g = 0; g < r.G && r.offset; g++) {
        float sum = 0;
        for (int64_t j = g * size; j < (g + 1) * size; j++) sum += tables[32 * j + 15] + tables[32 * j + 31];
        for (int i = 0; i < ROWS; i++) y[i] += r.offset[row[i] * r.G + g] * sum;
    }
    for (int64_t p = 0; p < r.P; p++) {
        float sums[ROWS] = {0};
        int64_t left = size, g = 0;
        for (int64_t first = 0; first < r.bytes; first += ROWS) {
            const int64_t count = r.bytes - first < ROWS ? r.bytes - first : ROWS;
            uint8_t given[ROWS][ROWS], byte[ROWS][ROWS];
            for (int i = 0; i < ROWS; i++) memcpy(given[i], r.planes + (row[i] * r.P + p) * r.bytes + first, count);
            transpose(byte, given);
            for (int64_t j = 0; j < count; j++) {
                look_up(sums, byte[j], tables + 32 * (first + j));
                if (--left) continue;
                for (int i = 0; i < ROWS; i++) {
                    y[i] += r.alpha[(row[i] * r.G + g) * r.P + p] * sums[i];
                    sums[i] = 0;
                }
                left = size;
                g++;
            }
        }
    }
}

void binary_rows_f32(int64_t N, int64_t C, int64_t P, int64_t G, int64_t threads, int64_t M, const uint8_t *planes,
                     const float *alpha, const float *offset, const float *x, float *tables, float *y) {
    const record r = {N, C / 8, P, G, planes, alpha, offset};
    for (int64_t m = 0; m < M; m++) {
        fill(tables, x + m * C, C);
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
        for (int64_t n = 0; n < N; n += ROWS) {
            float found[ROWS];
            tile(found, r, n, tables);
            memcpy(y + m * N + n, found, (N - n < ROWS ? N - n : ROWS) * sizeof(float));
        }
    }
}

/* w (8) += the signs of a byte times alpha */
static inline void add_signs(float *restrict w, uint8_t signs, float alpha) {
#if defined(__AVX512VL__)
    const __m256 up = _mm256_set1_ps(alpha), down = _mm256_set1_ps(-alpha);
    _mm256_storeu_ps(w, _mm256_add_ps(_mm256_loadu_ps(w), _mm256_mask_blend_ps(signs, down, up)));
#else
    for (int i = 0; i < 8; i++) w[i] += signs >> i & 1 ? alpha : -alpha;
#endif
}

/* w (N, C) */
void binary_dequantise_f32(int64_t N, int64_t C, int64_t P, int64_t G, int64_t threads, const uint8_t *planes,
                           const float *alpha, const float *offset, float *w) {
    const int64_t bytes = C / 8, size = bytes / G;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < N; n++)
        for (int64_t g = n * G, j = 0; j < bytes; g++)
            for (const int64_t end = j + size; j < end; j++) {
                float found[8] = {0};
                for (int64_t p = 0; p < P; p++) add_signs(found, planes[(n * P + p) * bytes + j], alpha[g * P + p]);
                for (int i = 0; i < 8; i++) w[n * C + 8 * j + i] = found[i] + (offset ? offset[g] : 0);
            }
}
