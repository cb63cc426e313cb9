/* A step of attention: what is new is kept, and queries see what is held. */

#include "common.h"

/* a pair of channels by the angle with these cosine and sine */
INLINE void turn_pair(float *x, int64_t i, int64_t P, float c, float s, int64_t interleaved) {
    float *first = interleaved ? x + 2 * i : x + i, *second = interleaved ? x + 2 * i + 1 : x + P + i;
    const float left = *first, right = *second;
    *first = left * c - right * s;
    *second = right * c + left * s;
}

static void turn(float *x, const float *frequency, int64_t P, float place, float scale, int64_t interleaved) {
    for (int64_t i = 0; i < P; i++) {
        const float angle = place * frequency[i];
        turn_pair(x, i, P, cosf(angle) * scale, sinf(angle) * scale, interleaved);
    }
}

/* queries and keys are turned by the place that a state has for each row; chunk: a row. a: q q_row k k_row frequency P scale
   interleaved H G d place next */
static void rotate_row(const int64_t *a, int64_t m) {
    const int64_t P = a[5], place = ((const int64_t *)a[11])[m];
    for (int64_t i = 0; i < P; i++) {
        const float angle = (float)place * F(4)[i], c = cosf(angle) * real(a[6]), s = sinf(angle) * real(a[6]);
        for (int64_t h = 0; h < a[8]; h++) turn_pair(OUT(0) + m * a[1] + h * a[10], i, P, c, s, a[7]);
        for (int64_t h = 0; h < a[9]; h++) turn_pair(OUT(2) + m * a[3] + h * a[10], i, P, c, s, a[7]);
    }
    ((int64_t *)a[12])[m] = place + 1;
}

/* all slots of a head but the oldest, one place further to the front */
INLINE void forget_oldest(void *held, int64_t slots, int64_t d, int64_t brief) {
    const int64_t size = d * (brief ? 2 : 4);
    memmove(held, (char *)held + size, (slots - 1) * size);
}

/* queries and keys are turned, keys and values kept in a cache; chunk: a head of q or k of a row. a: q q_row k k_row v
   v_row key value brief capacity slot place frequency P scale interleaved H G d full apart width; heads of q lie apart,
   a value has its own width */
static void turn_head(const int64_t *a, int64_t chunk) {
    const int64_t H = a[16], G = a[17], d = a[18], width = a[21], m = chunk / (H + G), h = chunk % (H + G);
    float *x = h < H ? OUT(0) + m * a[1] + h * a[20] : OUT(2) + m * a[3] + (h - H) * d;
    if (a[12]) turn(x, F(12), a[13], (float)a[11], real(a[14]), a[15]);
    if (h < H) return;
    const float *v = F(4) + m * a[5] + (h - H) * width;
    const int64_t start = (m * G + h - H) * a[9], place = start + a[10], size = a[8] ? 2 : 4;
    if (a[19]) {
        forget_oldest((char *)a[6] + start * d * size, a[9], d, a[8]);
        forget_oldest((char *)a[7] + start * width * size, a[9], width, a[8]);
    }
    for (int64_t i = 0; i < d; i++) write_one((void *)a[6], place * d + i, x[i], a[8]);
    for (int64_t i = 0; i < width; i++) write_one((void *)a[7], place * width + i, v[i], a[8]);
}

/* of four keys at a time, as each addition waits for the last; more: added to what is there */
INLINE void logits_of(float *logit, const float *q, const void *key, int64_t from, int64_t S, int64_t d, float scale,
                      int brief, int more) {
    const int64_t whole = d / LANES * LANES;
    for (int64_t s = 0; s < S; s += 4) {
        const int64_t last = S - s < 4 ? S - s : 4;
        vector sums[4] = {{0}};
        int64_t place[4];
        for (int64_t k = 0; k < 4; k++) place[k] = from + (s + (k < last ? k : 0)) * d;
        for (int64_t i = 0; i < whole; i += LANES) {
            const vector part = load(q + i);
            for (int k = 0; k < 4; k++) sums[k] += part * numbers(key, place[k] + i, brief);
        }
        for (int64_t k = 0; k < last; k++) {
            float rest = 0;
            for (int64_t i = whole; i < d; i++) rest += q[i] * number(key, place[k] + i, brief);
            logit[s + k] = (more ? logit[s + k] : 0) + scale * (rest + total(&sums[k]));
        }
    }
}

/* sums over the slots stay in registers for as many channels as there are */
INLINE void mixed(float *y, const float *weight, const void *value, int64_t from, int64_t S, int64_t d, int brief) {
    int64_t i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES) {
        vector sums[4] = {{0}};
        for (int64_t s = 0; s < S; s++)
            for (int k = 0; k < 4; k++) sums[k] += weight[s] * numbers(value, from + s * d + i + k * LANES, brief);
        memcpy(y + i, sums, sizeof sums);
    }
    memset(y + i, 0, (d - i) * sizeof(float));
    for (int64_t s = 0; i < d && s < S; s++)
#pragma omp simd
        for (int64_t j = i; j < d; j++) y[j] += weight[s] * number(value, from + s * d + j, brief);
}

INLINE void attend_to(const int64_t *a, int64_t m, int64_t h, int brief) {
    const int64_t H = a[12], G = a[13], d = a[14], width = a[17], S = a[9], from = (m * G + h / (H / G)) * a[8];
    const float cap = real(a[15]), sink = a[16] ? F(16)[h] : -INFINITY;
    float *weight = OUT(11) + (m * H + h) * a[8], most = sink, sum = 0;
    logits_of(weight, F(0) + m * a[1] + h * a[18], (const void *)a[4], from * d, S, d, real(a[10]), brief, 0);
    if (a[19])
        logits_of(weight, F(19) + m * a[20] + h * width, (const void *)a[5], from * width, S, width, real(a[10]), brief, 1);
    for (int64_t s = 0; cap > 0 && s < S; s++) weight[s] = cap * tanh_f32(weight[s] / cap);
#pragma omp simd reduction(max : most)
    for (int64_t s = 0; s < S; s++) most = weight[s] > most ? weight[s] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < S; s++) sum += weight[s] = exp_f32(weight[s] - most);
    sum = 1 / (sum + exp_f32(sink - most));
    for (int64_t s = 0; s < S; s++) weight[s] *= sum;
    mixed(OUT(2) + m * a[3] + h * width, weight, (const void *)a[5], from * width, S, width, brief);
}

/* chunk: a query head of a row. a: q q_row y y_row key value - brief capacity filled scale scratch H G d softcap (0 for
   none) sinks width apart latent latent_row; heads of q lie apart, a value has its own width; latent: a query of that
   width for the values, which are keys too */
static void attend_head(const int64_t *a, int64_t chunk) {
    if (a[7])
        attend_to(a, chunk / a[12], chunk % a[12], 1);
    else
        attend_to(a, chunk / a[12], chunk % a[12], 0);
}
