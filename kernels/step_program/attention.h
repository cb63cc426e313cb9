/* A step of attention: what is new is kept, and queries see what is held. */

#include "common.h"

static void turn(float *x, const float *frequency, int64_t P, float place, float scale, int64_t interleaved) {
    for (int64_t i = 0; i < P; i++) {
        const float angle = place * frequency[i], c = cosf(angle) * scale, s = sinf(angle) * scale;
        float *first = interleaved ? x + 2 * i : x + i, *second = interleaved ? x + 2 * i + 1 : x + P + i;
        const float left = *first, right = *second;
        *first = left * c - right * s;
        *second = right * c + left * s;
    }
}

/* all slots of a head but the oldest, one place further to the front */
INLINE void forget_oldest(void *held, int64_t slots, int64_t d, int64_t brief) {
    const int64_t size = d * (brief ? 2 : 4);
    memmove(held, (char *)held + size, (slots - 1) * size);
}

/* queries and keys are turned, keys and values kept; chunk: a head of q or k of a row. a: q q_row k k_row v v_row key value
   brief capacity slot place frequency P scale interleaved H G d full */
static void turn_head(const int64_t *a, int64_t chunk) {
    const int64_t H = a[16], G = a[17], d = a[18], m = chunk / (H + G), h = chunk % (H + G);
    float *x = h < H ? OUT(0) + m * a[1] + h * d : OUT(2) + m * a[3] + (h - H) * d;
    if (a[12]) turn(x, F(12), a[13], (float)a[11], real(a[14]), a[15]);
    if (h < H) return;
    const float *v = F(4) + m * a[5] + (h - H) * d;
    const int64_t start = (m * G + h - H) * a[9] * d, place = start + a[10] * d, size = a[8] ? 2 : 4;
    if (a[19]) {
        forget_oldest((char *)a[6] + start * size, a[9], d, a[8]);
        forget_oldest((char *)a[7] + start * size, a[9], d, a[8]);
    }
    for (int64_t i = 0; i < d; i++) {
        write_one((void *)a[6], place + i, x[i], a[8]);
        write_one((void *)a[7], place + i, v[i], a[8]);
    }
}

INLINE void attend_to(const int64_t *a, int64_t m, int64_t h, int brief) {
    const int64_t H = a[12], G = a[13], d = a[14], S = a[9], from = (m * G + h / (H / G)) * a[8] * d;
    const float *q = F(0) + m * a[1] + h * d;
    const float cap = real(a[15]), sink = a[16] ? F(16)[h] : -INFINITY;
    float *y = OUT(2) + m * a[3] + h * d, *weight = OUT(11) + (m * H + h) * a[8], most = sink, sum = 0;
    const void *key = (const void *)a[4], *value = (const void *)a[5];
    for (int64_t s = 0; s < S; s++) {
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < d; i++) dot += q[i] * number(key, from + s * d + i, brief);
        weight[s] = dot * real(a[10]);
        if (cap > 0) weight[s] = cap * tanh_f32(weight[s] / cap);
        most = weight[s] > most ? weight[s] : most;
    }
    for (int64_t s = 0; s < S; s++) weight[s] = exp_f32(weight[s] - most);
#pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < S; s++) sum += weight[s];
    sum += exp_f32(sink - most);
    memset(y, 0, d * sizeof(float));
    for (int64_t s = 0; s < S; s++) {
        const float share = weight[s] / sum;
#pragma omp simd
        for (int64_t i = 0; i < d; i++) y[i] += share * number(value, from + s * d + i, brief);
    }
}

/* chunk: a query head of a row. a: q q_row y y_row key value - brief capacity filled scale scratch H G d softcap (0 for
   none) sinks */
static void attend_head(const int64_t *a, int64_t chunk) {
    if (a[7])
        attend_to(a, chunk / a[12], chunk % a[12], 1);
    else
        attend_to(a, chunk / a[12], chunk % a[12], 0);
}
