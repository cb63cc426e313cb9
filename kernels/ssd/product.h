/* Small matrix products out of one register tile, for matrices in the cache: row-major, aligned to 64 bytes, zero-padded
   to multiples of PAD. Included once for each REAL, behind native_math.h. */

#ifndef PAD

/* A register tile of ROWS x VECTORS vectors: 16 of 32 registers, or 8 of 16. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 8
#else
#define ROWS 4
#endif
#define VECTORS 2
#define PAD 16 /* a multiple of ROWS and of the elements of a vector */
#define PADDED(n) (((n) + PAD - 1) / PAD * PAD)
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* What part of a product is not zero, or is wanted: all of it; the left factor is lower or upper triangular, with zeros
   in the rest of its diagonal tiles; the lower triangle of the result. */
enum { FULL, LOWER, UPPER, LOWER_RESULT };

#endif

typedef REAL NAME(vector) __attribute__((vector_size(BYTES), may_alias));
#define LANES ((int64_t)(BYTES / sizeof(REAL)))

/* ROWS x (count vectors) of out = scale o out + a b, summed over k in from..to; without a scale out is overwritten. */
INLINE void NAME(tile)(const int count, REAL *out, int64_t out_row, const REAL *a, int64_t a_row, int64_t a_step,
                       const REAL *b, int64_t b_row, int64_t from, int64_t to, const REAL *scale) {
    NAME(vector) sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < count; v++) sum[r][v] = (NAME(vector)){0};
    for (int64_t k = from; k < to; k++) {
        const NAME(vector) *row = (const NAME(vector) *)(b + k * b_row);
        for (int r = 0; r < ROWS; r++) {
            const REAL factor = a[r * a_row + k * a_step];
            for (int v = 0; v < count; v++) sum[r][v] += factor * row[v];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < count; v++) {
            NAME(vector) *at = (NAME(vector) *)(out + r * out_row) + v;
            if (scale) sum[r][v] += scale[r] * *at; /* last: terms join a small sum, not a large one */
            *at = sum[r][v];
        }
}

/* out (rows, columns) = scale o out + a b over depth steps, scale one factor a row or NULL for 0. a[r][k] stands at
   a[r a_row + k a_step], so that a may be transposed. Rows and columns are rounded up to whole tiles. */
static __attribute__((noinline)) void NAME(product)(int part, REAL *out, int64_t out_row, int64_t rows, int64_t columns, int64_t depth,
                          const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t b_row,
                          const REAL *scale) {
    for (int64_t c = 0; c < columns; c += VECTORS * LANES)
        for (int64_t r = 0; r < rows; r += ROWS) {
            const int64_t end = part == LOWER_RESULT ? MIN(columns, r + ROWS) : columns;
            const int64_t from = part == UPPER ? r : 0, to = part == LOWER ? MIN(depth, r + ROWS) : depth;
            REAL *tile = out + r * out_row + c;
            const REAL *left = a + r * a_row, *factors = scale ? scale + r : NULL;
            if (end > c + (VECTORS - 1) * LANES)
                NAME(tile)(VECTORS, tile, out_row, left, a_row, a_step, b + c, b_row, from, to, factors);
            else if (end > c)
                NAME(tile)(1, tile, out_row, left, a_row, a_step, b + c, b_row, from, to, factors);
        }
}

/* to (rows, width) = factor o from, (rows, columns) with a row every stride elements; one factor a row, NULL for 1. */
static void NAME(gather)(REAL *to, int64_t width, const REAL *from, int64_t stride, int64_t rows, int64_t columns,
                         const REAL *factor) {
    for (int64_t r = 0; r < rows; r++) {
        const REAL scale = factor ? factor[r] : 1;
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) to[r * width + c] = scale * from[r * stride + c];
    }
}

/* to (columns, to_width) = the transpose of from (rows, columns), in blocks of one cache line. */
static void NAME(transpose)(REAL *to, int64_t to_width, const REAL *from, int64_t from_width, int64_t rows,
                            int64_t columns) {
    for (int64_t block = 0; block < columns; block += PAD)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = block; c < MIN(block + PAD, columns); c++)
                to[c * to_width + r] = from[r * from_width + c];
}

/* Aligned zeros; count a multiple of PAD. */
static REAL *NAME(zeros)(int64_t count) {
    REAL *memory = aligned_alloc(64, count * sizeof(REAL));
    return memset(memory, 0, count * sizeof(REAL));
}

/* Inner product in PAD running sums, which is what makes it accurate as well as fast. */
static double NAME(dot)(const REAL *a, const REAL *b, int64_t count) {
    REAL sums[PAD] = {0};
    double sum = 0;
    for (; count >= PAD; a += PAD, b += PAD, count -= PAD)
        for (int64_t i = 0; i < PAD; i++) sums[i] += a[i] * b[i];
    for (int64_t i = 0; i < count; i++) sums[i] += a[i] * b[i];
    for (int64_t i = 0; i < PAD; i++) sum += sums[i];
    return sum;
}

#undef LANES
