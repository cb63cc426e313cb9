/* What the C kernels share: exp, softplus and tanh of floats and doubles in a form that compilers vectorise, and the size of a
   vector for those that are written with the vector extensions of gcc and clang. */

#ifndef ZOO_NATIVE_MATH_H
#define ZOO_NATIVE_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Bytes of a vector register. */
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define INLINE static inline __attribute__((always_inline))

/* exp to about 1 ulp for float, as 2^n times a polynomial on |r| <= ln2/2, for x in the normal range. */
static inline float exp_inside_f32(float x) {
    float bounded = x < -87.0f ? -87.0f : x > 88.5f ? 88.5f : x;
    float shifted = bounded * 1.44269504089f + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    float n = shifted - 12582912.0f;
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t exponent = (bits - 0x4B400000 + 127) << 23;
    float scale;
    memcpy(&scale, &exponent, 4);
    return p * scale;
}

/* 0 below the normal range, inf above. */
static inline float exp_f32(float x) {
    const float value = exp_inside_f32(x);
    return x < -87.0f ? 0.0f : x > 88.5f ? INFINITY : value;
}

static inline double exp_f64(double x) { return exp(x); }

/* exp(a b) to the precision of the result: rounding a product of -10 costs ten times that. */
static inline float exp_product_f32(float a, float b) {
    const float x = a * b;
    float value = exp_inside_f32(x);
#if defined(__FMA__) || defined(__aarch64__)
    value += value * fmaf(a, b, -x);
#endif
    return x < -87.0f ? 0.0f : x > 88.5f ? INFINITY : value;
}

static inline double exp_product_f64(double a, double b) { return exp(a * b); }

/* log(1 + e^x), with log(1 + u) = 2 artanh(u / (2 + u)) by its series, to the precision of u however small; x itself
   above 20, as in torch. */
static inline float softplus_f32(float x) {
    const float u = exp_f32(x < 0 ? x : -x), s = u / (2 + u), square = s * s;
    float sum = 0;
    for (int k = 15; k > 0; k -= 2) sum = sum * square + 1.0f / k;
    return x > 20 ? x : (x < 0 ? 0 : x) + 2 * s * sum;
}

static inline double softplus_f64(double x) { return x > 20 ? x : log1p(exp(x)); }

/* From exp; where that cancels, by an odd polynomial (Cephes), to about 1 ulp. */
static inline float tanh_f32(float x) {
    const float small = exp_f32(x < 0 ? 2 * x : -2 * x), magnitude = 1 - 2 * small / (1 + small), square = x * x;
    float p = -5.70498872745e-3f;
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    return square < 0.390625f ? x + x * square * p : x < 0 ? -magnitude : magnitude;
}

#endif
