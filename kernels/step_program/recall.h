/* Steps of memories that are a matrix S (K, V) a head, and what stands before and behind them. */

#include "common.h"

#define PARTS 4 /* vectors of the columns of a memory that a chunk has */

enum { ADDED, CORRECTED, TURNED };

/* numbers of a vector, of which so many are there */
INLINE vector some(const float *x, int64_t count) {
    vector found = {0};
    memcpy(&found, x, count * sizeof(float));
    return found;
}

/* With D = diag(d), w = b v, for the columns from first on: parts vectors of them, of the last so many numbers.
     added:     S' = D S + k w^T
     corrected: S' = D S + k (w - b (D S)^T k)^T
     turned:    S' = D S - (r c) (S^T c)^T + k w^T
   and y = scale S'^T q. a: as in recall_columns */
INLINE void recall(const int64_t *a, int64_t m, int64_t h, int64_t first, int parts, int64_t last, int kind) {
    const int64_t K = a[20], V = a[21], g = h / (a[18] / a[19]), each = a[22], start = (m * a[18] + h) * K * V + first;
    const float one = 1, *q = F(0) + m * a[1] + g * K, *k = F(2) + m * a[3] + g * K, *S = F(14) + start;
    const float *d = a[6] ? F(6) + m * a[7] + h * (each ? K : 1) : &one, *c = F(10) + m * a[11] + h * K;
    const float *r = F(12) + m * a[13] + h * K, b = a[8] ? F(8)[m * a[9] + h] : 1;
    const float scale = real(a[24]) * (a[25] ? F(25)[m * a[26] + h] : 1);
    float *next = OUT(15) + start;
    vector found[PARTS] = {{0}}, new[PARTS], y[PARTS] = {{0}};
    for (int64_t i = 0; kind != ADDED && i < K; i++) {
        const float factor = kind == CORRECTED ? d[each * i] * k[i] : c[i];
        for (int p = 0; p < parts; p++) found[p] += factor * some(S + i * V + p * LANES, p + 1 < parts ? LANES : last);
    }
    for (int p = 0; p < parts; p++) {
        new[p] = some(F(4) + m * a[5] + h * V + first + p * LANES, p + 1 < parts ? LANES : last);
        new[p] = b * (kind == CORRECTED ? new[p] - found[p] : new[p]);
    }
    for (int64_t i = 0; i < K; i++) {
        const float keep = d[each * i], in = k[i], out = q[i], back = kind == TURNED ? r[i] * c[i] : 0;
        for (int p = 0; p < parts; p++) {
            const int64_t count = p + 1 < parts ? LANES : last;
            vector row = keep * some(S + i * V + p * LANES, count) + in * new[p];
            if (kind == TURNED) row -= back * found[p];
            memcpy(next + i * V + p * LANES, &row, count * sizeof(float));
            y[p] += out * row;
        }
    }
    for (int p = 0; p < parts; p++) {
        y[p] *= scale;
        memcpy(OUT(16) + m * a[17] + h * V + first + p * LANES, &y[p], (p + 1 < parts ? LANES : last) * sizeof(float));
    }
}

INLINE void recall_kind(const int64_t *a, int64_t chunk, int kind) {
    const int64_t chunks = (a[21] + PARTS * LANES - 1) / (PARTS * LANES), m = chunk / chunks / a[18];
    const int64_t h = chunk / chunks % a[18], first = chunk % chunks * PARTS * LANES, left = a[21] - first;
    if (left >= PARTS * LANES) {
        recall(a, m, h, first, PARTS, LANES, kind);
        return;
    }
    for (int64_t c = 0; c < left; c += LANES)
        if (left - c >= LANES)
            recall(a, m, h, first + c, 1, LANES, kind);
        else
            recall(a, m, h, first + c, 1, left - c, kind);
}

/* chunk: 64 columns of the memory of a head of a row. a: q q_row k k_row v v_row d d_row b b_row c c_row r r_row S S' y
   y_row H G K V each (d has a number a channel) kind scale read read_row (a factor of y a head); H heads of v for G of q
   and k. S' may be S */
static void recall_columns(const int64_t *a, int64_t chunk) {
    switch (a[23]) {
        case ADDED: recall_kind(a, chunk, ADDED); return;
        case CORRECTED: recall_kind(a, chunk, CORRECTED); return;
        default: recall_kind(a, chunk, TURNED);
    }
}

/* The gates of an mLSTM, whose exponents are kept small by the stabilizer s: what the memory keeps, how much of the new
   enters, and what is read divided by. chunk: a head of a row. a: q q_row k k_row i i_row f f_row n n' s s' H K scale eps
   keep enter read, each of these (rows, H) */
static void gate_head(const int64_t *a, int64_t chunk) {
    const int64_t H = a[12], K = a[13], m = chunk / H, h = chunk % H;
    const float *q = F(0) + m * a[1] + h * K, *k = F(2) + m * a[3] + h * K, *n = F(8) + chunk * K;
    const float in = F(4)[m * a[5] + h], old = F(10)[chunk] - softplus_f32(-F(6)[m * a[7] + h]);
    const float most = old > in ? old : in, s = most > -80 ? most : -80; /* exp(80) is still a float */
    const float keep = exp_f32(old - s), enter = exp_f32(in - s), least = exp_f32(-s);
    float *next = OUT(9) + chunk * K, sum = 0;
    for (int64_t i = 0; i < K; i++) {
        next[i] = keep * n[i] + enter * k[i];
        sum += q[i] * next[i];
    }
    sum = fabsf(real(a[14]) * sum);
    OUT(11)[chunk] = s;
    OUT(16)[chunk] = keep;
    OUT(17)[chunk] = enter;
    OUT(18)[chunk] = 1 / ((sum > least ? sum : least) + real(a[15]));
}

/* y += (sum of q k w over a head) v; chunk: a head of a row. a: q q_row k k_row w v v_row y y_row H K */
static void bonus_head(const int64_t *a, int64_t chunk) {
    const int64_t K = a[10], m = chunk / a[9], h = chunk % a[9];
    const float *q = F(0) + m * a[1] + h * K, *k = F(2) + m * a[3] + h * K, *w = F(4) + h * K, *v = F(5) + m * a[6] + h * K;
    float *y = OUT(7) + m * a[8] + h * K, sum = 0;
    for (int64_t i = 0; i < K; i++) sum += q[i] * k[i] * w[i];
    for (int64_t i = 0; i < K; i++) y[i] += sum * v[i];
}

/* phi of the Taylor attention: 1, the numbers over root 4 of K, their products i <= j, squares over root 2 */
static void features(float *y, const float *x, int64_t K) {
    const float scale = powf((float)K, -0.25f);
    *y++ = 1;
    for (int64_t i = 0; i < K; i++) *y++ = scale * x[i];
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = i; j < K; j++) *y++ = (i == j ? 0.707106781f : 1) * scale * x[i] * (scale * x[j]);
}

/* features of queries and keys, and a 1 behind each value; chunk: a head of a row. a: q q_row k k_row v v_row to_q to_q_row
   to_k to_k_row to_v to_v_row H K V */
static void features_head(const int64_t *a, int64_t chunk) {
    const int64_t H = a[12], K = a[13], V = a[14], D = (K + 1) * (K + 2) / 2, m = chunk / H, h = chunk % H;
    float *v = OUT(10) + m * a[11] + h * (V + 1);
    features(OUT(6) + m * a[7] + h * D, F(0) + m * a[1] + h * K, K);
    features(OUT(8) + m * a[9] + h * D, F(2) + m * a[3] + h * K, K);
    memcpy(v, F(4) + m * a[5] + h * V, V * sizeof(float));
    v[V] = 1;
}

/* what is read, over the sum that stands behind it; chunk: a head of a row. a: x x_row y y_row H V eps */
static void quotient_head(const int64_t *a, int64_t chunk) {
    const int64_t V = a[5], m = chunk / a[4], h = chunk % a[4];
    const float *x = F(0) + m * a[1] + h * (V + 1), factor = 1 / (x[V] + real(a[6]));
    for (int64_t i = 0; i < V; i++) OUT(2)[m * a[3] + h * V + i] = factor * x[i];
}
