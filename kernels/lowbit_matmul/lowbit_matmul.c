/* The product with packed integers on the CPU: y_mn = sum_g scale_ng sum_{c in g} (q_nc - zero_ng) x_mc.

   A row of C codes lies in blocks of 128, the last one shorter; a block of n codes is a part of n w / 8 bytes for each
   width w of 8, 4, 2, 1 whose sum is the width of the codes, lowest bits first. In a part of L bytes the w bits of code
   k L + i are those from bit k w on of byte i: one operation on whole words unpacks many codes. A row is unpacked to
   bytes q - 2^(bits-1), which for one row of x are multiplied as they are:

     y_n = sum_g scale_g (sum_c (q_c - 2^(bits-1)) x_c + (2^(bits-1) - zero_g) sum_c x_c)

   Layouts: packed (N, ceil(C/8) bits), scale (N, G) REAL, or bfloat16 where brief, zero (N, G) or NULL for
   2^(bits-1), x (M, C), y (M, N), w (N, C), contiguous. The file includes itself to define each function for float and
   double. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../memory.h"

#define BLOCK 128
#define LANES 16
#define AT_A_TIME 32 /* rows that a thread takes */
#define WHOLE(n) (((n) + LANES - 1) / LANES * LANES)
#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef uint64_t words __attribute__((vector_size(64)));
typedef uint8_t bytes __attribute__((vector_size(64)));
typedef int8_t few __attribute__((vector_size(LANES)));
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* compilers differ in what they make of the portable form, and this is the inner loop */
INLINE ints widened(const int8_t *q) {
#if defined(__AVX512F__)
    return (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q));
#elif defined(__AVX2__)
    const __m256i found[2] = {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)q)),
                              _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(q + 8)))};
    ints wide;
    memcpy(&wide, found, sizeof wide);
    return wide;
#else
    few narrow;
    memcpy(&narrow, q, LANES);
    return __builtin_convertvector(__builtin_convertvector(narrow, shorts), ints);
#endif
}

/* the bits of codes 0 to 63 (half 0) or 64 to 127 (half 1) in a part of a block, each in a byte */
INLINE words part_of(const uint8_t *part, int width, int half) {
    uint64_t w[8];
    memcpy(w, part, width * 16 < 64 ? width * 16 : 64);
    switch (width) {
        case 8: memcpy(w, part + 64 * half, 64); return (words){w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]};
        case 4: return (words){w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]} >> (4 * half) & 0x0f0f0f0f0f0f0f0f;
        case 2: return (words){w[0], w[1], w[2], w[3], w[0], w[1], w[2], w[3]} >> (words){0, 0, 0, 0, 2, 2, 2, 2} >>
                           (4 * half) & 0x0303030303030303;
        default: return (words){w[0], w[1], w[0], w[1], w[0], w[1], w[0], w[1]} >> (words){0, 0, 1, 1, 2, 2, 3, 3} >>
                            (4 * half) & 0x0101010101010101;
    }
}

/* a block of n codes, one after another */
INLINE void unpack_rest(int8_t *restrict q, const uint8_t *restrict packed, int64_t n, int bits) {
    for (int64_t c = 0; c < n; c++) {
        const uint8_t *part = packed;
        int code = 0, shift = 0;
        for (int width = 8; width; width >>= 1)
            if (bits & width) {
                const int64_t length = n * width / 8, slot = c / length;
                code |= (part[c - slot * length] >> (slot * width) & ((1 << width) - 1)) << shift;
                part += length;
                shift += width;
            }
        q[c] = (int8_t)(code - (1 << (bits - 1)));
    }
}

/* n: a multiple of 8 */
INLINE void unpack_row(int8_t *restrict q, const uint8_t *restrict packed, int64_t n, int bits) {
    int64_t c = 0;
    for (; c + BLOCK <= n; c += BLOCK, packed += BLOCK / 8 * bits)
        for (int half = 0; half < 2; half++) {
            const uint8_t *part = packed;
            words codes = {0};
            int shift = 0;
            for (int width = 8; width; width >>= 1)
                if (bits & width) {
                    codes |= part_of(part, width, half) << shift;
                    part += BLOCK / 8 * width;
                    shift += width;
                }
            const bytes centred = (bytes)codes - (uint8_t)(1 << (bits - 1));
            memcpy(q + c + 64 * half, &centred, 64);
        }
    if (c < n) unpack_rest(q + c, packed, n - c, bits);
}

static void unpack(int8_t *restrict q, const uint8_t *restrict packed, int64_t n, int64_t bits) {
    switch (bits) {
        case 1: unpack_row(q, packed, n, 1); break;
        case 2: unpack_row(q, packed, n, 2); break;
        case 3: unpack_row(q, packed, n, 3); break;
        case 4: unpack_row(q, packed, n, 4); break;
        case 5: unpack_row(q, packed, n, 5); break;
        case 6: unpack_row(q, packed, n, 6); break;
        case 7: unpack_row(q, packed, n, 7); break;
        default: unpack_row(q, packed, n, 8);
    }
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

#include "digits.h"

#if HAS_DIGITS
static void rows_as_digits(record_f32 r, int64_t threads, int64_t M, const float *x, float *y) {
    const int64_t apart = digit_bytes(r.C, r.groups);
    char *digits = kept(OF_DIGITS, M * apart);
    for (int64_t m = 0; m < M; m++) make_digits(digits_at(digits + m * apart, r.C, r.groups), x + m * r.C, r.C, r.groups);
#pragma omp parallel num_threads(threads)
    {
        const size_t bytes = FULL(r.C) / UNIT * sizeof(float);
        float *step = memset(kept(OF_STEPS, bytes), 0, bytes);
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < (r.N + AT_A_TIME - 1) / AT_A_TIME; chunk++) {
            const int64_t first = chunk * AT_A_TIME, last = first + AT_A_TIME < r.N ? first + AT_A_TIME : r.N;
            for (int64_t m = 0; m < M; m++)
                digit_rows(r, first, last, digits_at(digits + m * apart, r.C, r.groups), 3, step, y + m * r.N + first);
        }
    }
}
#endif

/* for up to 8 rows */
void lowbit_rows_f32(int64_t N, int64_t C, int64_t bits, int64_t groups, int64_t brief, int64_t threads, int64_t M,
                     const uint8_t *packed, const void *scale, const uint8_t *zero, const float *x, float *sums, float *y) {
    const record_f32 r = {N, C, bits, groups, brief, packed, scale, zero};
#if HAS_DIGITS
    if (fits_digits(C, groups)) {
        rows_as_digits(r, threads, M, x, y);
        return;
    }
#endif
    rows_as_numbers_f32(r, threads, M, x, sums, y);
}

void lowbit_rows_f64(int64_t N, int64_t C, int64_t bits, int64_t groups, int64_t brief, int64_t threads, int64_t M,
                     const uint8_t *packed, const void *scale, const uint8_t *zero, const double *x, double *sums,
                     double *y) {
    const record_f64 r = {N, C, bits, groups, brief, packed, scale, zero};
    rows_as_numbers_f64(r, threads, M, x, sums, y);
}

#else

typedef REAL NAME(vector) __attribute__((vector_size(LANES * sizeof(REAL))));
typedef struct {
    int64_t N, C, bits, groups, brief;
    const uint8_t *packed;
    const void *scale;
    const uint8_t *zero;
} NAME(record);

/* what a thread unpacks one row into: codes, scales, and zeros below the middle */
typedef struct {
    int8_t *q;
    REAL *scale, *offset;
} NAME(row);

INLINE NAME(vector) NAME(load)(const REAL *x) {
    NAME(vector) found;
    memcpy(&found, x, sizeof found);
    return found;
}

INLINE NAME(vector) NAME(wide)(const int8_t *q) { return __builtin_convertvector(widened(q), NAME(vector)); }

INLINE REAL NAME(total)(const NAME(vector) *v) {
    REAL parts[LANES];
    memcpy(parts, v, sizeof parts);
    for (int l = 0; l < 8; l++) parts[l] += parts[l + 8];
    for (int l = 0; l < 4; l++) parts[l] += parts[l + 4];
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
}

static NAME(row) NAME(make_row)(NAME(record) r) {
    const int64_t padded = (r.C + 63) / 64 * 64, groups = WHOLE(r.groups); /* zeros behind the last */
    int8_t *q = kept(OF_ROW, padded + 2 * groups * sizeof(REAL));
    REAL *scale = memset(q + padded, 0, 2 * groups * sizeof(REAL));
    return (NAME(row)){q, scale, scale + groups};
}

static void NAME(read_row)(NAME(row) row, NAME(record) r, int64_t n) {
    const int64_t padded = (r.C + 7) / 8 * 8, first = n * r.groups;
    const int32_t middle = 1 << (r.bits - 1);
    unpack(row.q, r.packed + n * (padded / 8 * r.bits), padded, r.bits);
    REAL *restrict scale = row.scale, *restrict offset = row.offset;
    if (r.brief) {
        const uint16_t *restrict brief = (const uint16_t *)r.scale + first;
        for (int64_t g = 0; g < r.groups; g++) {
            const uint32_t bits = (uint32_t)brief[g] << 16;
            float value;
            memcpy(&value, &bits, 4);
            scale[g] = value;
        }
    } else {
        memcpy(scale, (const REAL *)r.scale + first, r.groups * sizeof(REAL));
    }
    if (r.zero) { /* else it is 0 from the beginning */
        const uint8_t *restrict zero = r.zero + first;
        for (int64_t g = 0; g < r.groups; g++) offset[g] = (REAL)(middle - (int32_t)zero[g]);
    }
}

/* sum of q x over a group of size columns, a multiple of LANES */
INLINE NAME(vector) NAME(group)(const int8_t *q, const REAL *x, int64_t size) {
    NAME(vector) even = NAME(wide)(q) * NAME(load)(x), odd = {0};
    int64_t c = LANES;
    for (; c + LANES < size; c += 2 * LANES) {
        odd += NAME(wide)(q + c) * NAME(load)(x + c);
        even += NAME(wide)(q + c + LANES) * NAME(load)(x + c + LANES);
    }
    if (c < size) odd += NAME(wide)(q + c) * NAME(load)(x + c);
    return even + odd;
}

/* sum of scale (sum of q x + offset sums) over all groups; several sums at a time, as each addition waits for the last */
INLINE REAL NAME(sum_groups)(NAME(row) row, const REAL *x, const REAL *sums, int64_t groups, int64_t size) {
    NAME(vector) first = {0}, second = {0};
    for (int64_t g = 0; g < groups; g += LANES)
        first += NAME(load)(row.scale + g) * NAME(load)(row.offset + g) * NAME(load)(sums + g);
    int64_t g = 0;
    for (; g + 1 < groups; g += 2) {
        first += row.scale[g] * NAME(group)(row.q + g * size, x + g * size, size);
        second += row.scale[g + 1] * NAME(group)(row.q + (g + 1) * size, x + (g + 1) * size, size);
    }
    if (g < groups) first += row.scale[g] * NAME(group)(row.q + g * size, x + g * size, size);
    first += second;
    return NAME(total)(&first);
}

static REAL NAME(one_row)(NAME(row) row, const REAL *x, const REAL *sums, int64_t groups, int64_t size) {
    switch (size) {
        case 16: return NAME(sum_groups)(row, x, sums, groups, 16);
        case 32: return NAME(sum_groups)(row, x, sums, groups, 32);
        case 64: return NAME(sum_groups)(row, x, sums, groups, 64);
        case 128: return NAME(sum_groups)(row, x, sums, groups, 128);
    }
    if (size % LANES == 0) return NAME(sum_groups)(row, x, sums, groups, size);
    REAL found = 0;
    for (int64_t g = 0; g < groups; g++) {
        REAL part = row.offset[g] * sums[g];
        for (int64_t c = g * size; c < (g + 1) * size; c++) part += (REAL)row.q[c] * x[c];
        found += row.scale[g] * part;
    }
    return found;
}

/* w (C) of one row */
static void NAME(numbers)(REAL *restrict w, NAME(row) row, int64_t groups, int64_t size) {
    for (int64_t g = 0; g < groups; g++) {
        const REAL scale = row.scale[g], offset = row.offset[g];
        for (int64_t c = g * size; c < (g + 1) * size; c++) w[c] = scale * ((REAL)row.q[c] + offset);
    }
}

INLINE REAL NAME(inner)(const REAL *a, const REAL *b, int64_t n) {
    NAME(vector) even = {0}, odd = {0};
    int64_t c = 0;
    for (; c + 2 * LANES <= n; c += 2 * LANES) {
        even += NAME(load)(a + c) * NAME(load)(b + c);
        odd += NAME(load)(a + c + LANES) * NAME(load)(b + c + LANES);
    }
    even += odd;
    REAL sum = 0;
    for (; c < n; c++) sum += a[c] * b[c];
    return sum + NAME(total)(&even);
}

/* sums (G, filled up to LANES) of x over each group */
static void NAME(sum_columns)(REAL *sums, const REAL *x, int64_t groups, int64_t size) {
    for (int64_t g = 0; g < WHOLE(groups); g++) {
        REAL sum = 0;
        for (int64_t c = g * size; g < groups && c < (g + 1) * size; c++) sum += x[c];
        sums[g] = sum;
    }
}

/* y (M, N) for few rows: a row of the matrix is unpacked once for all of them; sums (G, filled up to LANES) for what x sums to.
   Threads take some rows as they come, for one may have no core at the moment */
static void NAME(rows_as_numbers)(NAME(record) r, int64_t threads, int64_t M, const REAL *x, REAL *sums, REAL *y) {
    const int64_t size = r.C / r.groups;
    if (M == 1) NAME(sum_columns)(sums, x, r.groups, size);
#pragma omp parallel num_threads(threads)
    {
        const NAME(row) row = NAME(make_row)(r);
        REAL *w = M > 1 ? kept(OF_NUMBERS, r.C * sizeof(REAL)) : NULL;
#pragma omp for schedule(dynamic, AT_A_TIME)
        for (int64_t n = 0; n < r.N; n++) {
            NAME(read_row)(row, r, n);
            if (M == 1) {
                y[n] = NAME(one_row)(row, x, sums, r.groups, size);
                continue;
            }
            NAME(numbers)(w, row, r.groups, size);
            for (int64_t m = 0; m < M; m++) y[m * r.N + n] = NAME(inner)(w, x + m * r.C, r.C);
        }
    }
}

void NAME(lowbit_dequantise)(int64_t N, int64_t C, int64_t bits, int64_t groups, int64_t brief, int64_t threads,
                             const uint8_t *packed, const void *scale, const uint8_t *zero, REAL *w) {
    const NAME(record) r = {N, C, bits, groups, brief, packed, scale, zero};
#pragma omp parallel num_threads(threads)
    {
        const NAME(row) row = NAME(make_row)(r);
#pragma omp for schedule(dynamic, AT_A_TIME)
        for (int64_t n = 0; n < N; n++) {
            NAME(read_row)(row, r, n);
            NAME(numbers)(w + n * C, row, groups, C / groups);
        }
    }
}

#endif
