/* The product with packed integers on the CPU: y_mn = sum_g scale_ng sum_{c in g} (q_nc - zero_ng) x_mc.

   A row of C codes lies in blocks of 128, the last one shorter; a block of n codes is a part of n w / 8 bytes for each
   width w of 8, 4, 2, 1 whose sum is the width of the codes, lowest bits first. In a part of L bytes the w bits of code
   k L + i are those from bit k w on of byte i: one operation on whole words unpacks many codes.

   Layouts: packed (N, ceil(C/8) bits), scale (N, G) REAL, or bfloat16 where brief, zero (N, G) or NULL for
   2^(bits-1), x (M, C), y (M, N), w (N, C), contiguous. The file includes itself to define each function for float and
   double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 128
#define LANES 16

/* part (length) -> codes (8 / width * length): these bits of them, from bit shift on */
static inline __attribute__((always_inline)) void unpack_part(uint8_t *restrict codes, const uint8_t *restrict part,
                                                              int64_t length, int width, int shift) {
    const uint8_t mask = (uint8_t)((1 << width) - 1);
    const uint64_t masks = 0x0101010101010101u * mask;
    const int64_t words = length / 8 * 8;
    for (int slot = 0; slot < 8 / width; slot++) {
        uint8_t *target = codes + slot * length;
        for (int64_t i = 0; i < words; i += 8) {
            uint64_t value, before = 0;
            memcpy(&value, part + i, 8);
            if (shift) memcpy(&before, target + i, 8);
            value = (value >> (slot * width) & masks) << shift | before;
            memcpy(target + i, &value, 8);
        }
        for (int64_t i = words; i < length; i++)
            target[i] = (uint8_t)((part[i] >> (slot * width) & mask) << shift) | (shift ? target[i] : 0);
    }
}

static inline __attribute__((always_inline)) void unpack_block(uint8_t *restrict codes, const uint8_t *restrict packed,
                                                               int64_t n, int bits) {
    int shift = 0;
    for (int width = 8; width; width >>= 1)
        if (bits & width) {
            unpack_part(codes, packed, n * width / 8, width, shift);
            packed += n * width / 8;
            shift += width;
        }
}

/* n: a multiple of 8 */
static inline __attribute__((always_inline)) void unpack_row(uint8_t *restrict codes, const uint8_t *restrict packed,
                                                             int64_t n, int bits) {
    int64_t c = 0;
    for (; c + BLOCK <= n; c += BLOCK) unpack_block(codes + c, packed + c / 8 * bits, BLOCK, bits);
    if (c < n) unpack_block(codes + c, packed + c / 8 * bits, n - c, bits);
}

/* the codes of a row, unpacked into work where they are no bytes already */
static const uint8_t *row_of(uint8_t *restrict work, const uint8_t *packed, int64_t n, int64_t bits) {
    switch (bits) {
        case 1: unpack_row(work, packed, n, 1); break;
        case 2: unpack_row(work, packed, n, 2); break;
        case 3: unpack_row(work, packed, n, 3); break;
        case 4: unpack_row(work, packed, n, 4); break;
        case 5: unpack_row(work, packed, n, 5); break;
        case 6: unpack_row(work, packed, n, 6); break;
        case 7: unpack_row(work, packed, n, 7); break;
        default: return packed;
    }
    return work;
}

#define REAL float
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include __FILE__

#else

typedef REAL NAME(vector) __attribute__((vector_size(LANES * sizeof(REAL))));
typedef struct {
    int64_t C, bits, groups, brief;
    const uint8_t *packed;
    const void *scale;
    const uint8_t *zero;
} NAME(record);

static inline REAL NAME(scale_at)(NAME(record) r, int64_t index) {
    if (!r.brief) return ((const REAL *)r.scale)[index];
    const uint32_t bits = (uint32_t)((const uint16_t *)r.scale)[index] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline int32_t NAME(zero_at)(NAME(record) r, int64_t index) {
    return r.zero ? r.zero[index] : 1 << (r.bits - 1);
}

/* LANES codes, less zero */
static inline __attribute__((always_inline)) NAME(vector) NAME(wide)(const uint8_t *codes, int32_t zero) {
    NAME(vector) found;
    for (int l = 0; l < LANES; l++) found[l] = (REAL)((int32_t)codes[l] - zero);
    return found;
}

static inline __attribute__((always_inline)) NAME(vector) NAME(load)(const REAL *x) {
    NAME(vector) found;
    memcpy(&found, x, sizeof found);
    return found;
}

/* sum of scale (codes - zero) x over a row */
static inline REAL NAME(one_row)(NAME(record) r, const uint8_t *codes, int64_t n, const REAL *x) {
    const int64_t size = r.C / r.groups, whole = size / LANES * LANES;
    NAME(vector) sum = {0};
    REAL rest = 0;
    for (int64_t g = 0; g < r.groups; g++, codes += size, x += size) {
        const REAL scale = NAME(scale_at)(r, n * r.groups + g);
        const int32_t zero = NAME(zero_at)(r, n * r.groups + g);
        NAME(vector) even = {0}, odd = {0};
        int64_t c = 0;
        for (; c + 2 * LANES <= whole; c += 2 * LANES) {
            even += NAME(wide)(codes + c, zero) * NAME(load)(x + c);
            odd += NAME(wide)(codes + c + LANES, zero) * NAME(load)(x + c + LANES);
        }
        if (c < whole) even += NAME(wide)(codes + c, zero) * NAME(load)(x + c);
        sum += scale * (even + odd);
        REAL part = 0;
        for (c = whole; c < size; c++) part += (REAL)((int32_t)codes[c] - zero) * x[c];
        rest += scale * part;
    }
    for (int l = 0; l < LANES; l++) rest += sum[l];
    return rest;
}

/* w (C) = scale (codes - zero) */
static inline void NAME(dequantise_row)(REAL *restrict w, NAME(record) r, const uint8_t *restrict codes, int64_t n) {
    const int64_t size = r.C / r.groups;
    for (int64_t g = 0; g < r.groups; g++) {
        const REAL scale = NAME(scale_at)(r, n * r.groups + g);
        const int32_t zero = NAME(zero_at)(r, n * r.groups + g);
        for (int64_t c = g * size; c < (g + 1) * size; c++) w[c] = scale * (REAL)((int32_t)codes[c] - zero);
    }
}

static inline REAL NAME(dot)(const REAL *a, const REAL *b, int64_t n) {
    NAME(vector) even = {0}, odd = {0};
    int64_t c = 0;
    for (; c + 2 * LANES <= n; c += 2 * LANES) {
        even += NAME(load)(a + c) * NAME(load)(b + c);
        odd += NAME(load)(a + c + LANES) * NAME(load)(b + c + LANES);
    }
    even += odd;
    REAL sum = 0;
    for (; c < n; c++) sum += a[c] * b[c];
    for (int l = 0; l < LANES; l++) sum += even[l];
    return sum;
}

/* y (M, N) for few rows: a row of the matrix is unpacked once for all of them */
void NAME(lowbit_rows)(int64_t N, int64_t C, int64_t bits, int64_t groups, int64_t brief, int64_t threads, int64_t M,
                       const uint8_t *packed, const void *scale, const uint8_t *zero, const REAL *x, REAL *y) {
    const NAME(record) r = {C, bits, groups, brief, packed, scale, zero};
    const int64_t padded = (C + 7) / 8 * 8, bytes = padded / 8 * bits;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *work = malloc(padded);
        REAL *w = M > 1 ? malloc(C * sizeof(REAL)) : NULL;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const uint8_t *codes = row_of(work, packed + n * bytes, padded, bits);
            if (M == 1) {
                y[n] = NAME(one_row)(r, codes, n, x);
                continue;
            }
            NAME(dequantise_row)(w, r, codes, n);
            for (int64_t m = 0; m < M; m++) y[m * N + n] = NAME(dot)(w, x + m * C, C);
        }
        free(work);
        free(w);
    }
}

void NAME(lowbit_dequantise)(int64_t N, int64_t C, int64_t bits, int64_t groups, int64_t brief, int64_t threads,
                             const uint8_t *packed, const void *scale, const uint8_t *zero, REAL *w) {
    const NAME(record) r = {C, bits, groups, brief, packed, scale, zero};
    const int64_t padded = (C + 7) / 8 * 8, bytes = padded / 8 * bits;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *work = malloc(padded);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++)
            NAME(dequantise_row)(w + n * C, r, row_of(work, packed + n * bytes, padded, bits), n);
        free(work);
    }
}

#endif
