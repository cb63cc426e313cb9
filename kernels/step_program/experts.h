/* Which experts a row goes to, and the sum of what they make of it. */

#include "common.h"

/* the k largest of n numbers, the first of equal ones first; what was taken becomes -inf */
static void largest(float *x, int64_t n, int64_t k, int64_t *index) {
    for (int64_t j = 0; j < k; j++) {
        int64_t best = 0;
        for (int64_t i = 1; i < n; i++)
            if (x[i] > x[best]) best = i;
        index[j] = best;
        x[best] = -INFINITY;
    }
}

/* -inf outside the best groups, a group by the sum of its largest numbers; spare has n numbers */
static void within_groups(float *ranked, float *spare, int64_t n, int64_t groups, int64_t kept, int64_t top) {
    const int64_t size = n / groups;
    for (int64_t g = 0; g < groups; g++) {
        float sum = 0;
        memcpy(spare + groups, ranked + g * size, size * sizeof(float));
        for (int64_t j = 0; j < top; j++) {
            int64_t best = 0;
            for (int64_t i = 1; i < size; i++)
                if (spare[groups + i] > spare[groups + best]) best = i;
            sum += spare[groups + best];
            spare[groups + best] = -INFINITY;
        }
        spare[g] = sum;
    }
    for (int64_t left = groups - kept; left > 0; left--) {
        int64_t worst = -1;
        for (int64_t g = 0; g < groups; g++)
            if (spare[g] < INFINITY && (worst < 0 || spare[g] <= spare[worst])) worst = g;
        for (int64_t i = 0; i < size; i++) ranked[worst * size + i] = -INFINITY;
        spare[worst] = INFINITY;
    }
}

/* chunk: a row. a: logits logits_row bias index weight scratch scratch_row E k sigmoid normalize scale groups kept top */
static void route_row(const int64_t *a, int64_t m) {
    const int64_t E = a[7], k = a[8];
    const float *logits = F(0) + m * a[1];
    float *scores = OUT(5) + m * a[6], *ranked = scores + E, *weight = OUT(4) + m * k, most = -INFINITY, sum = 0;
    int64_t *index = (int64_t *)a[3] + m * k;
    for (int64_t e = 0; e < E; e++) most = logits[e] > most ? logits[e] : most;
    for (int64_t e = 0; e < E; e++) sum += scores[e] = a[9] ? sigmoid(logits[e]) : exp_f32(logits[e] - most);
    for (int64_t e = 0; e < E; e++) {
        if (!a[9]) scores[e] /= sum;
        ranked[e] = scores[e] + (a[2] ? F(2)[e] : 0);
    }
    if (a[13] < a[12]) within_groups(ranked, ranked + E, E, a[12], a[13], a[14]);
    largest(ranked, E, k, index);
    sum = 1e-20f;
    for (int64_t j = 0; j < k; j++) sum += weight[j] = scores[index[j]];
    for (int64_t j = 0; j < k; j++) weight[j] = (a[10] ? weight[j] / sum : weight[j]) * real(a[11]);
}

/* y = base + factor sum of weight x over the experts, or of x where there are no weights; chunk: a row.
   a: x k y y_row base base_row weight - - width factor */
static void combine_row(const int64_t *a, int64_t m) {
    const int64_t k = a[1], width = a[9];
    const float *x = F(0) + m * k * width, *weight = a[6] ? F(6) + m * k : 0, *base = a[4] ? F(4) + m * a[5] : 0;
    float *y = OUT(2) + m * a[3];
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        float sum = 0;
        for (int64_t j = 0; j < k; j++) sum += (weight ? weight[j] : 1) * x[j * width + i];
        y[i] = (base ? base[i] : 0) + real(a[10]) * sum;
    }
}
