/* What the operations of a program have in common: their arguments, numbers in memory, activations. */

#ifndef ZOO_STEP_PROGRAM_H
#define ZOO_STEP_PROGRAM_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../native_math.h"
#include "../row_linear/row_linear.c"

#define ARGUMENTS 30
#define F(i) ((const float *)a[i])
#define OUT(i) ((float *)a[i])

INLINE float real(int64_t bits) {
    const int32_t low = (int32_t)bits;
    float value;
    memcpy(&value, &low, 4);
    return value;
}

INLINE float read_one(const void *from, int64_t i, int64_t brief) { return number(from, i, brief != 0); }

INLINE void write_one(void *to, int64_t i, float value, int64_t brief) {
    if (!brief) {
        ((float *)to)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = value != value ? 0x7fc00000u : bits + 0x7fff + (bits >> 16 & 1); /* to the nearest, ties to even */
    ((uint16_t *)to)[i] = (uint16_t)(bits >> 16);
}

INLINE float sigmoid(float x) { return 1 / (1 + exp_f32(-x)); }

INLINE float silu(float x) { return x / (1 + exp_f32(-x)); }

#endif
