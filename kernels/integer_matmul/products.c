/* Rows of integers times a matrix of packed integers with a scale and a zero for each group of columns:

     y_mn = s_m sum_g s_ng (sum_{c in g} q_nc v_mc - z_ng sum_{c in g} v_mc)

   The sums over 32 columns and fewer are exact integers; each is scaled once. Layouts: v (M, C) int8, step (M), packed and
   scale as in lowbit_matmul.c, zero (N, G) or NULL for 2^(bits-1), y (M, N). */

#include "../lowbit_matmul/lowbit_matmul.c"

#define NEXT 4 /* rows of the matrix beside each other */
#define PAIR 2 /* rows of v */

/* NEXT rows of the matrix, unpacked: codes as they are (NEXT, C filled up to 64), and of each group a scale and what a
   sum of v is multiplied by (NEXT, G filled up to LANES) */
typedef struct {
    int64_t C, G, stride, groups;
    uint8_t *q;
    float *scale, *below;
} panel;

static panel make_panel(int64_t C, int64_t G) {
    panel p = {C, G, (C + 63) / 64 * 64, WHOLE(G), 0, 0, 0};
    p.q = memset(kept(OF_CODES, NEXT * p.stride + BLOCK), 0, NEXT * p.stride + BLOCK);
    p.scale = memset(kept(OF_SCALES, 2 * NEXT * p.groups * sizeof(float)), 0, 2 * NEXT * p.groups * sizeof(float));
    p.below = p.scale + NEXT * p.groups;
    return p;
}

static void read_panel(panel p, record_f32 r, int64_t n, int64_t rows, row_f32 row) {
    const uint8_t middle = (uint8_t)(1 << (r.bits - 1));
    for (int64_t k = 0; k < rows; k++) {
        read_row_f32(row, r, n + k);
        for (int64_t c = 0; c < p.C; c++) p.q[k * p.stride + c] = (uint8_t)row.q[c] + middle;
        for (int64_t g = 0; g < p.G; g++) {
            p.scale[k * p.groups + g] = row.scale[g];
            p.below[k * p.groups + g] = row.scale[g] * (row.offset[g] - (float)middle);
        }
    }
}

#if HAS_DIGITS
/* sums of some rows of v with NEXT rows of the matrix, of groups of 32 columns or a multiple */
INLINE void products(panel p, const int8_t *v, const float *sums, int rows, float *found) {
    __m512 total[PAIR][NEXT];
    const int64_t size = p.C / p.G;
    for (int m = 0; m < rows; m++)
        for (int k = 0; k < NEXT; k++) {
            total[m][k] = _mm512_setzero_ps();
            for (int64_t g = 0; g < p.groups; g += LANES)
                total[m][k] = _mm512_fmadd_ps(_mm512_loadu_ps(p.below + k * p.groups + g),
                                              _mm512_loadu_ps(sums + m * p.groups + g), total[m][k]);
        }
    for (int64_t c = 0; c < p.stride; c += 64) {
        const int64_t g = c / size, next = c + 32 < p.C ? (c + 32) / size : g;
        __m512i x[PAIR];
        for (int m = 0; m < rows; m++) x[m] = _mm512_loadu_si512(v + m * p.stride + c);
        for (int k = 0; k < NEXT; k++) {
            const float *scale = p.scale + k * p.groups;
            const __m512 s = _mm512_mask_broadcastss_ps(_mm512_set1_ps(scale[g]), 0xff00, _mm_load_ss(scale + next));
            const __m512i q = _mm512_loadu_si512(p.q + k * p.stride + c);
            for (int m = 0; m < rows; m++)
                total[m][k] = _mm512_fmadd_ps(
                    _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x[m])), s, total[m][k]);
        }
    }
    for (int m = 0; m < rows; m++)
        for (int k = 0; k < NEXT; k++) found[m * NEXT + k] = _mm512_reduce_add_ps(total[m][k]);
}
#endif

/* of groups of any size, and without such instructions */
static void any_products(panel p, const int8_t *v, const float *sums, float *found) {
    const int64_t size = p.C / p.G;
    for (int k = 0; k < NEXT; k++) {
        float total = 0;
        for (int64_t g = 0; g < p.G; g++) {
            int32_t sum = 0;
            const uint8_t *q = p.q + k * p.stride + g * size;
            for (int64_t c = 0; c < size; c++) sum += (int16_t)q[c] * (int16_t)v[g * size + c];
            total += p.scale[k * p.groups + g] * (float)sum + p.below[k * p.groups + g] * sums[g];
        }
        found[k] = total;
    }
}

void integer_products_f32(int64_t N, int64_t C, int64_t bits, int64_t G, int64_t brief, int64_t threads, int64_t M,
                          const uint8_t *packed, const void *scale, const uint8_t *zero, const int8_t *v, const float *step,
                          float *y) {
    const record_f32 r = {N, C, bits, G, brief, packed, scale, zero};
    const int64_t stride = (C + 63) / 64 * 64, groups = WHOLE(G), size = C / G;
    int8_t *x = there(calloc((M + 1) * stride, 1)); /* zeros behind each row */
    float *sums = there(calloc((M + 1) * groups, sizeof(float)));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        memcpy(x + m * stride, v + m * C, C);
        for (int64_t g = 0; g < G; g++) {
            int32_t sum = 0;
            for (int64_t c = g * size; c < (g + 1) * size; c++) sum += v[m * C + c];
            sums[m * groups + g] = (float)sum;
        }
    }
#pragma omp parallel num_threads(threads)
    {
        const panel p = make_panel(C, G);
        const row_f32 row = make_row_f32(r);
#pragma omp for schedule(dynamic, 4)
        for (int64_t n = 0; n < N; n += NEXT) {
            const int64_t rows = N - n < NEXT ? N - n : NEXT;
            read_panel(p, r, n, rows, row);
            for (int64_t m = 0; m < M; m += PAIR) {
                const int64_t pair = M - m < PAIR ? M - m : PAIR;
                float found[PAIR * NEXT];
#if HAS_DIGITS
                if (size % UNIT == 0)
                    products(p, x + m * stride, sums + m * groups, PAIR, found); /* a row of zeros is behind the last */
                else
#endif
                    for (int64_t i = 0; i < pair; i++)
                        any_products(p, x + (m + i) * stride, sums + (m + i) * groups, found + i * NEXT);
                for (int64_t i = 0; i < pair; i++)
                    for (int64_t k = 0; k < rows; k++) y[(m + i) * N + n + k] = step[m + i] * found[i * NEXT + k];
            }
        }
    }
    free(x);
    free(sums);
}
