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

/* of R heads at a time, which share the keys, and of some keys, as each addition waits for the last; more: added to what is
   there. Queries and logits of the heads lie apart */
INLINE void logits_of(float *logit, int64_t logits_apart, const float *q, int64_t apart, const void *key, int64_t from,
                      int64_t S, int64_t d, float scale, int brief, int more, int R) {
    const int64_t whole = d / LANES * LANES, keys = R == 1 ? 4 : 2;
    for (int64_t s = 0; s < S; s += keys) {
        const int64_t last = S - s < keys ? S - s : keys;
        vector sums[4][4] = {{{0}}};
        int64_t place[4];
        for (int64_t k = 0; k < keys; k++) place[k] = from + (s + (k < last ? k : 0)) * d;
        for (int64_t i = 0; i < whole; i += LANES)
#pragma GCC unroll 4
            for (int k = 0; k < keys; k++) {
                const vector part = numbers(key, place[k] + i, brief);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) sums[r][k] += load(q + r * apart + i) * part;
            }
        for (int r = 0; r < R; r++)
            for (int64_t k = 0; k < last; k++) {
                float rest = 0, *to = logit + r * logits_apart + s + k;
                for (int64_t i = whole; i < d; i++) rest += q[r * apart + i] * number(key, place[k] + i, brief);
                *to = (more ? *to : 0) + scale * (rest + total(&sums[r][k]));
            }
    }
}

/* sums over the slots stay in registers for as many channels as there are; R heads share the values */
INLINE void mixed(float *y, int64_t y_apart, const float *weight, int64_t weights_apart, const void *value, int64_t from,
                  int64_t S, int64_t d, int brief, int R) {
    int64_t i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES) {
        vector sums[4][4] = {{{0}}};
        for (int64_t s = 0; s < S; s++)
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                const vector part = numbers(value, from + s * d + i + k * LANES, brief);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) sums[r][k] += weight[r * weights_apart + s] * part;
            }
        for (int r = 0; r < R; r++) memcpy(y + r * y_apart + i, sums[r], sizeof sums[r]);
    }
    for (int r = 0; r < R; r++, y += y_apart, weight += weights_apart) {
        memset(y + i, 0, (d - i) * sizeof(float));
        for (int64_t s = 0; i < d && s < S; s++)
#pragma omp simd
            for (int64_t j = i; j < d; j++) y[j] += weight[s] * number(value, from + s * d + j, brief);
    }
}

/* logits of a head become weights */
INLINE void weigh(float *weight, int64_t S, float cap, float sink) {
    float most = sink, sum = 0;
    for (int64_t s = 0; cap > 0 && s < S; s++) weight[s] = cap * tanh_f32(weight[s] / cap);
#pragma omp simd reduction(max : most)
    for (int64_t s = 0; s < S; s++) most = weight[s] > most ? weight[s] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < S; s++) sum += weight[s] = exp_f32(weight[s] - most);
    sum = 1 / (sum + exp_f32(sink - most));
    for (int64_t s = 0; s < S; s++) weight[s] *= sum;
}

/* R heads from h on, which share a head of keys and values */
INLINE void attend_to(const int64_t *a, int64_t m, int64_t h, int brief, int R) {
    const int64_t H = a[12], G = a[13], d = a[14], width = a[17], S = a[9], capacity = a[8];
    const int64_t from = (m * G + h / (H / G)) * capacity;
    float *weight = OUT(11) + (m * H + h) * capacity;
    logits_of(weight, capacity, F(0) + m * a[1] + h * a[18], a[18], (const void *)a[4], from * d, S, d, real(a[10]), brief,
              0, R);
    if (a[19])
        logits_of(weight, capacity, F(19) + m * a[20] + h * width, width, (const void *)a[5], from * width, S, width,
                  real(a[10]), brief, 1, R);
    for (int64_t r = 0; r < R; r++) weigh(weight + r * capacity, S, real(a[15]), a[16] ? F(16)[h + r] : -INFINITY);
    mixed(OUT(2) + m * a[3] + h * width, width, weight, capacity, (const void *)a[5], from * width, S, width, brief, R);
}

/* chunk: a[21] query heads of a row. a: q q_row y y_row key value - brief capacity filled scale scratch H G d softcap (0
   for none) sinks width apart latent latent_row together; heads of q lie apart, a value has its own width; latent: a query
   of that width for the values, which are keys too; so many heads share a head of keys */
static void attend_heads(const int64_t *a, int64_t chunk) {
    const int64_t chunks = a[12] / a[21], m = chunk / chunks, h = chunk % chunks * a[21];
    switch (2 * a[21] + (a[7] != 0)) {
        case 2: attend_to(a, m, h, 0, 1); return;
        case 3: attend_to(a, m, h, 1, 1); return;
        case 4: attend_to(a, m, h, 0, 2); return;
        case 5: attend_to(a, m, h, 1, 2); return;
        case 6: attend_to(a, m, h, 0, 3); return;
        case 7: attend_to(a, m, h, 1, 3); return;
        case 8: attend_to(a, m, h, 0, 4); return;
        case 9: attend_to(a, m, h, 1, 4); return;
    }
}
