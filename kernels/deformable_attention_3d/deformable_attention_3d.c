/* 3D deformable attention on the CPU, forward and backward, without the volume. With pixels c around (u, v), w_c the
   share of each in bilinear interpolation, s_c its depth interpolated at d, and g_c = dy . F_c:

     y = sum over p, c of a w_c s_c F_c,   dF_c += a w_c s_c dy,   da = sum w_c s_c g_c,
     du = a W sum w_c' s_c g_c,   dd = a D sum w_c s_c' g_c,   dDepth_c[k] += a w_c share_k g_c

   Layouts: value F (B,H,W,N,C), depth (B,H,W,D), its gradient (N,B,H,W,D) and zeros as dF is, locations (B,Q,N,P,3) of
   u v d, weights a (B,Q,N,P), y dy (B,Q,N,C); all contiguous. Queries are shared out forward; backward images and heads,
   of which each writes to its own part. The file includes itself to define each function for float and double. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#define REAL float
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include __FILE__

#else

/* Of one point what its pixels have in common, and each of them (-1: it lies outside). */
typedef struct {
    int64_t bin, pixel[4];
    REAL low, high, w[4], along_u[4], along_v[4], s[4], along_d[4];
} NAME(Point);

/* Whether anything is read at all: not further than a place away from the volume, nor at what is no number. */
static inline int NAME(find)(int64_t H, int64_t W, int64_t D, const REAL *depth, const REAL *at, NAME(Point) * point) {
    const REAL x = at[0] * W - (REAL)0.5, y = at[1] * H - (REAL)0.5, z = at[2] * D - (REAL)0.5;
    if (!(x >= -1 && x < W && y >= -1 && y < H && z >= -1 && z < D)) return 0;
    const int64_t i = (int64_t)floor(x), j = (int64_t)floor(y), k = (int64_t)floor(z);
    const REAL right = x - i, below = y - j, behind = z - k;
    point->bin = k;
    point->low = k >= 0 ? 1 - behind : 0;
    point->high = k + 1 < D ? behind : 0;
    for (int64_t c = 0; c < 4; c++) {
        const int64_t column = i + (c & 1), row = j + (c >> 1);
        const REAL wide = c & 1 ? right : 1 - right, tall = c >> 1 ? below : 1 - below;
        if (column < 0 || column >= W || row < 0 || row >= H) {
            point->pixel[c] = -1;
            continue;
        }
        const REAL *levels = depth + (row * W + column) * D;
        const REAL first = k >= 0 ? levels[k] : 0, second = k + 1 < D ? levels[k + 1] : 0;
        point->pixel[c] = row * W + column;
        point->w[c] = wide * tall;
        point->along_u[c] = c & 1 ? tall : -tall;
        point->along_v[c] = c >> 1 ? wide : -wide;
        point->s[c] = (1 - behind) * first + behind * second;
        point->along_d[c] = second - first;
    }
    return 1;
}

void NAME(deformable_attention_3d_forward)(int64_t B, int64_t H, int64_t W, int64_t N, int64_t C, int64_t D, int64_t Q,
                                           int64_t P, int64_t threads, const REAL *value, const REAL *depth,
                                           const REAL *locations, const REAL *weights, REAL *y) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < B * Q; row++) {
        const int64_t image = row / Q * H * W;
        for (int64_t n = 0; n < N; n++) {
            REAL *sum = y + (row * N + n) * C;
            memset(sum, 0, C * sizeof(REAL));
            for (int64_t p = 0; p < P; p++) {
                const int64_t at = (row * N + n) * P + p;
                NAME(Point) point;
                if (!NAME(find)(H, W, D, depth + image * D, locations + 3 * at, &point)) continue;
                for (int64_t c = 0; c < 4; c++) {
                    if (point.pixel[c] < 0) continue;
                    const REAL factor = weights[at] * point.w[c] * point.s[c];
                    const REAL *features = value + ((image + point.pixel[c]) * N + n) * C;
#pragma omp simd
                    for (int64_t d = 0; d < C; d++) sum[d] += factor * features[d];
                }
            }
        }
    }
}

void NAME(deformable_attention_3d_backward)(int64_t B, int64_t H, int64_t W, int64_t N, int64_t C, int64_t D, int64_t Q,
                                            int64_t P, int64_t threads, const REAL *dy, const REAL *value,
                                            const REAL *depth, const REAL *locations, const REAL *weights,
                                            REAL *dvalue, REAL *ddepth, REAL *dlocations, REAL *dweights) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < B * N; part++) {
        const int64_t b = part / N, n = part % N, image = b * H * W;
        REAL *dlevels = ddepth + (n * B + b) * H * W * D;
        for (int64_t q = 0; q < Q; q++) {
            const REAL *arriving = dy + ((b * Q + q) * N + n) * C;
            for (int64_t p = 0; p < P; p++) {
                const int64_t at = ((b * Q + q) * N + n) * P + p;
                const REAL a = weights[at];
                REAL du = 0, dv = 0, dd = 0, da = 0;
                NAME(Point) point;
                if (NAME(find)(H, W, D, depth + image * D, locations + 3 * at, &point))
                    for (int64_t c = 0; c < 4; c++) {
                        if (point.pixel[c] < 0) continue;
                        const int64_t place = ((image + point.pixel[c]) * N + n) * C;
                        const REAL factor = a * point.w[c] * point.s[c];
                        REAL g = 0;
#pragma omp simd reduction(+ : g)
                        for (int64_t d = 0; d < C; d++) {
                            g += arriving[d] * value[place + d];
                            dvalue[place + d] += factor * arriving[d];
                        }
                        REAL *levels = dlevels + point.pixel[c] * D;
                        if (point.bin >= 0) levels[point.bin] += a * point.w[c] * point.low * g;
                        if (point.bin + 1 < D) levels[point.bin + 1] += a * point.w[c] * point.high * g;
                        da += point.w[c] * point.s[c] * g;
                        du += point.along_u[c] * point.s[c] * g;
                        dv += point.along_v[c] * point.s[c] * g;
                        dd += point.w[c] * point.along_d[c] * g;
                    }
                dweights[at] = da;
                dlocations[3 * at] = a * W * du;
                dlocations[3 * at + 1] = a * H * dv;
                dlocations[3 * at + 2] = a * D * dd;
            }
        }
    }
}

#endif
