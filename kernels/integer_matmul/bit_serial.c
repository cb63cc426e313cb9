/* Sums of products of odd integers, bit by bit: sums_mng = sum_ij 2^(i+j) (K_ng - 2 popcount_g(mask_n & (x_mi ^ w_nj))).

   Layouts: x (M, X, bytes), w (N, W, bytes), mask (N, bytes) or NULL, sums (M, N, G), contiguous; groups are whole bytes,
   or the only one is the row. Bits behind the last column are equal in x and w, so that they count for nothing. */

#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t first, size, count; /* bytes of a group, and its columns */
} group;

static inline uint64_t word(const uint8_t *bytes, int64_t count) {
    uint64_t found = 0;
    memcpy(&found, bytes, count < 8 ? count : 8);
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
