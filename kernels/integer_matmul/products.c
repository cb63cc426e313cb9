/* Rows of integers times a matrix of packed integers with a scale and a zero for each group of columns:

     y_mn = s_m sum_g s_ng (sum_{c in g} q_nc v_mc - z_ng sum_{c in g} v_mc)

   The sum over a group, or over SPAN columns of a longer one, is an exact integer and scaled once. LANES rows of the
   matrix stand beside each other in a panel, a lane each: four columns of all of them (a quad) are a vector of bytes,
   which one operation multiplies with four numbers of a row of v, adding the products of each lane up. A group is filled
   up to whole quads with zeros. Layouts: v (M, C) int8, step (M), packed and scale as in lowbit_matmul.c, zero (N, G) or
   NULL for 2^(bits-1), y (M, N). */

#include "../lowbit_matmul/lowbit_matmul.c"

#define QUAD 4
#define SPAN 512 /* products of 255 and 128, whose sum float32 holds */
#define LINE 64

#ifdef __AVX512VNNI__
#define TILE 8 /* rows of v */
#else
#define TILE 2
#endif

typedef union {
    ints lanes;
    uint8_t codes[LANES][QUAD];
} quad;

/* of LANES rows of the matrix: codes as they are, and of each group a scale and what a sum of v is multiplied by; row by
   row, and with those of all rows beside each other */
typedef struct {
    int64_t C, G, size, filled, stride, apart; /* size: columns of a group, which are filled up, as rows are of both */
    uint8_t *rows;
    float *scales, *belows;
    quad *quads;
    vector_f32 *scale, *below;
} panel;

static void *zeros(int part, size_t bytes) {
    char *found = kept(part, bytes + LINE);
    return memset(found + (LINE - (uintptr_t)found % LINE), 0, bytes);
}

static panel make_panel(int64_t C, int64_t G) {
    const int64_t size = C / G, filled = (size + QUAD - 1) / QUAD * QUAD, stride = (G * filled + LINE - 1) / LINE * LINE;
    const int64_t apart = WHOLE(G), all = LANES * apart;
    float *scales = zeros(OF_SCALES, 4 * all * sizeof(float));
    uint8_t *rows = zeros(OF_CODES, 2 * LANES * stride);
    vector_f32 *scale = (vector_f32 *)(scales + 2 * all);
    return (panel){C, G, size, filled, stride, apart, rows, scales, scales + all,
                   (quad *)(rows + LANES * stride), scale, scale + apart};
}

#ifdef __AVX512F__
/* LANES words of each of LANES rows, which are so many words apart, to LANES words of all rows */
INLINE void turn(void *to, const void *rows, int64_t apart) {
    const ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    __m512i v[LANES];
    for (int i = 0; i < LANES; i++) v[i] = _mm512_load_si512((const int32_t *)rows + i * apart);
#pragma GCC unroll 4
    for (int bit = 0; bit < 4; bit++) {
        const int step = 1 << bit;
        const ints odd = (lane & step) != 0, left = lane + (odd & (LANES - step)), right = lane + (odd & LANES) + (~odd & step);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & step)) {
                const __m512i first = v[i];
                v[i] = _mm512_permutex2var_epi32(first, (__m512i)left, v[i + step]);
                v[i + step] = _mm512_permutex2var_epi32(first, (__m512i)right, v[i + step]);
            }
    }
    for (int i = 0; i < LANES; i++) _mm512_store_si512((int32_t *)to + i * LANES, v[i]);
}
#else
INLINE void turn(void *to, const void *rows, int64_t apart) {
    for (int k = 0; k < LANES; k++)
        for (int i = 0; i < LANES; i++)
            memcpy((char *)to + (i * LANES + k) * QUAD, (const char *)rows + (k * apart + i) * QUAD, QUAD);
}
#endif

static void read_panel(panel p, record_f32 r, int64_t n, int64_t rows, row_f32 row) {
    const uint8_t middle = (uint8_t)(1 << (r.bits - 1));
    for (int64_t k = 0; k < rows; k++) {
        read_row_f32(row, r, n + k);
        uint8_t *restrict to = p.rows + k * p.stride;
        const int8_t *restrict q = row.q;
        if (p.filled == p.size)
            for (int64_t c = 0; c < p.C; c++) to[c] = (uint8_t)q[c] + middle;
        else
            for (int64_t c = 0; c < p.C; c++) to[c / p.size * p.filled + c % p.size] = (uint8_t)q[c] + middle;
        memcpy(p.scales + k * p.apart, row.scale, p.G * sizeof(float));
        for (int64_t g = 0; g < p.G; g++) p.belows[k * p.apart + g] = row.scale[g] * (row.offset[g] - (float)middle);
    }
    for (int64_t c = 0; c < p.stride; c += LINE) turn(p.quads + c / QUAD, p.rows + c, p.stride / QUAD);
    for (int64_t g = 0; g < p.G; g += LANES) {
        turn(p.scale + g, p.scales + g, p.apart);
        turn(p.below + g, p.belows + g, p.apart);
    }
}

/* total + the products of a quad with four numbers */
INLINE ints multiplied(ints total, const quad *q, const int8_t *v) {
#if defined(__AVX512VNNI__)
    int32_t four;
    memcpy(&four, v, QUAD);
    return (ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)q->lanes, _mm512_set1_epi32(four));
#elif defined(__AVX2__)
    int32_t four;
    memcpy(&four, v, QUAD);
    const __m256i x = _mm256_set1_epi32(four), byte = _mm256_set1_epi16(255);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd = _mm256_srai_epi16(x, 8);
    __m256i sum[2], codes[2];
    memcpy(sum, &total, sizeof sum);
    memcpy(codes, q, sizeof codes);
    for (int i = 0; i < 2; i++) {
        const __m256i first = _mm256_madd_epi16(_mm256_and_si256(codes[i], byte), even);
        const __m256i second = _mm256_madd_epi16(_mm256_srli_epi16(codes[i], 8), odd);
        sum[i] = _mm256_add_epi32(sum[i], _mm256_add_epi32(first, second));
    }
    memcpy(&total, sum, sizeof sum);
    return total;
#else
    for (int i = 0; i < QUAD; i++) total += (q->lanes >> 8 * i & 255) * v[i];
    return total;
#endif
}

/* sums of some rows of v, filled up as the panel's, with those of the matrix */
INLINE void products(panel p, const int8_t *v, const float *sums, int rows, vector_f32 *total) {
    for (int m = 0; m < rows; m++) total[m] = (vector_f32){0};
    for (int64_t g = 0; g < p.G; g++) {
        const int64_t end = (g + 1) * p.filled;
        for (int64_t first = g * p.filled; first < end; first += SPAN) {
            const int64_t last = first + SPAN < end ? first + SPAN : end;
            ints sum[TILE] = {0};
            for (int64_t c = first; c < last; c += QUAD)
                for (int m = 0; m < rows; m++) sum[m] = multiplied(sum[m], p.quads + c / QUAD, v + m * p.stride + c);
            for (int m = 0; m < rows; m++) total[m] += p.scale[g] * __builtin_convertvector(sum[m], vector_f32);
        }
        for (int m = 0; m < rows; m++) total[m] += p.below[g] * sums[m * p.G + g];
    }
}

void integer_products_f32(int64_t N, int64_t C, int64_t bits, int64_t G, int64_t brief, int64_t threads, int64_t M,
                          const uint8_t *packed, const void *scale, const uint8_t *zero, const int8_t *v, const float *step,
                          float *y) {
    const record_f32 r = {N, C, bits, G, brief, packed, scale, zero};
    const panel form = make_panel(C, G);
    int8_t *x = there(calloc(M * form.stride, 1));
    float *sums = there(malloc(M * G * sizeof(float)));
#pragma omp parallel num_threads(threads)
    {
        const panel p = make_panel(C, G);
        const row_f32 row = make_row_f32(r);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++)
            for (int64_t g = 0; g < G; g++) {
                int32_t sum = 0;
                memcpy(x + m * p.stride + g * p.filled, v + m * C + g * p.size, p.size);
                for (int64_t c = g * p.size; c < (g + 1) * p.size; c++) sum += v[m * C + c];
                sums[m * G + g] = (float)sum;
            }
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < N; n += LANES) {
            const int64_t rows = N - n < LANES ? N - n : LANES;
            read_panel(p, r, n, rows, row);
            for (int64_t m = 0; m < M;) {
                vector_f32 total[TILE];
                const int64_t many = M - m < TILE ? 1 : TILE;
                if (many == TILE)
                    products(p, x + m * p.stride, sums + m * G, TILE, total);
                else
                    products(p, x + m * p.stride, sums + m * G, 1, total);
                for (int64_t i = 0; i < many; i++, m++) {
                    total[i] *= step[m];
                    memcpy(y + m * N + n, total + i, rows * sizeof(float));
                }
            }
        }
    }
    free(x);
    free(sums);
}
