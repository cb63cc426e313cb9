/* What kernels over packed codes share: a row of codes as bytes, and the product of two rows of numbers.

   A row of codes lies in blocks of 128, the last one shorter; a block of n codes is a part of n w / 8 bytes for each
   width w of 8, 4, 2, 1 whose sum is the width of the codes, lowest bits first. In a part of L bytes the w bits of code
   k L + i are those from bit k w on of byte i. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

/* q (n), n a multiple of 8 */
static inline void codes_of(uint8_t *restrict q, const uint8_t *restrict packed, int64_t n, int64_t bits) {
    for (int64_t c = 0; c < n; c += 128) {
        const int64_t block = n - c < 128 ? n - c : 128;
        memset(q + c, 0, block);
        for (int width = 8, shift = 0; width; width >>= 1) {
            if (!(bits & width)) continue;
            const int64_t length = block * width / 8;
            for (int slot = 0; slot < 8 / width; slot++) {
                uint8_t *restrict found = q + c + slot * length;
                for (int64_t i = 0; i < length; i++)
                    found[i] |= (packed[i] >> (slot * width) & ((1 << width) - 1)) << shift;
            }
            packed += length;
            shift += width;
        }
    }
}

typedef float lanes_f32 __attribute__((vector_size(4 * LANES)));
typedef double lanes_f64 __attribute__((vector_size(8 * LANES)));

#define DEFINE_DOT(REAL, NAME)                                         \
    INLINE lanes_##NAME lanes_at_##NAME(const REAL *x) {               \
        lanes_##NAME found;                                            \
        memcpy(&found, x, sizeof found);                               \
        return found;                                                  \
    }                                                                  \
    INLINE REAL dot_##NAME(const REAL *a, const REAL *b, int64_t n) {  \
        lanes_##NAME even = {0}, odd = {0};                            \
        int64_t c = 0;                                                 \
        for (; c + 2 * LANES <= n; c += 2 * LANES) {                   \
            even += lanes_at_##NAME(a + c) * lanes_at_##NAME(b + c);   \
            odd += lanes_at_##NAME(a + c + LANES) * lanes_at_##NAME(b + c + LANES); \
        }                                                              \
        even += odd;                                                   \
        REAL sum = 0;                                                  \
        for (; c < n; c++) sum += a[c] * b[c];                         \
        for (int l = 0; l < LANES; l++) sum += even[l];                \
        return sum;                                                    \
    }

DEFINE_DOT(float, f32)
DEFINE_DOT(double, f64)
