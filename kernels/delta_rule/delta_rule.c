/* The delta rule on the CPU as matrix products over chunks of Q steps, forward and backward.

     S[t] = D + k[t] u[t]^T,   D = a[t] o S[t-1],   u[t] = beta[t] (v[t] - D^T k[t]),   y[t] = S[t]^T q[t]

   with a[t] = exp(log decay), of each key channel, and 0 where a sequence starts. In a chunk, with since[i] the product
   of a up to step i, until[j] that behind step j, S (K x V) the state before the chunk, and for j <= i

     P[i][j] = sum_c q[i][c] k[j][c] (product of a[.][c] over (j, i]),   A[i][j] that of k[i] with k[j] for j < i,

   the errors E, corrections U = beta o E, outputs and the next state are

     E = V - (since o K) S - A U,   Y = P U + (since o Q) S,   S <- since[last] o S + (until o K)^T U

   where E is solved for row by row. One decay a head factors out of the sums: P = (Q K^T) o L. One a channel is split at
   boundaries between two halves, of pairs of steps, of pairs of pairs, and so on (``scores_by_halves`` in chunks.py).
   All decays are products over the very steps they span, none above 1.
   Layouts: q k (B,T,H,K), v y (B,T,H,V), beta (B,T,H), g (B,T,H,G) with G = K or 1, or NULL, states (B,H,K,V), starts
   (B,T) bytes or NULL, all contiguous; y is of the q given: the caller scales it.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../native_math.h"

#define REAL float
#define EXP exp_f32
#define TINY FLT_MIN /* smaller decays are 0: numbers below it take a hundred times as long */
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef EXP
#undef TINY
#undef NAME
#define REAL double
#define EXP exp_f64
#define TINY DBL_MIN
#define NAME(x) x##_f64
#include __FILE__

#else

#include "../ssd/product.h"
#include "../memory.h"
#include "triangle.h"

/* One chunk of q steps of a head; rows of keys are k_ wide, rows of values v_, rows of pairs q_. */
typedef struct {
    int64_t q, K, V, q_, k_, v_;
    REAL *Q, *K_rows, *decay, *since, *until, *beta;
    REAL *P, *N, *L; /* N = -A; L only for one decay a head */
    REAL *late, *early, *turned, *block, *reach_since, *reach_until, *ones;
    double *running;
} NAME(chunk);

/* What a call has of all chunks. */
typedef struct {
    int64_t T, H, K, V, G;
    const REAL *q, *k, *v, *beta, *g;
    const uint8_t *starts;
} NAME(given);

static NAME(chunk) NAME(new_chunk)(int64_t Q, int64_t K, int64_t V) {
    NAME(chunk) c = {.K = K, .V = V, .q_ = PADDED(Q), .k_ = PADDED(K), .v_ = PADDED(V)};
    const int64_t keys = c.q_ * c.k_, pairs = c.q_ * c.q_, longest = c.q_ > c.k_ ? c.q_ : c.k_;
    REAL *next = NAME(zeros)(10 * keys + 4 * pairs + c.q_ + 3 * longest);
    REAL **of_keys[] = {&c.Q, &c.K_rows, &c.decay, &c.since, &c.until, &c.late, &c.early, &c.turned, &c.reach_since,
                        &c.reach_until};
    REAL **of_pairs[] = {&c.P, &c.N, &c.L, &c.block};
    for (int i = 0; i < 10; i++, next += keys) *of_keys[i] = next;
    for (int i = 0; i < 4; i++, next += pairs) *of_pairs[i] = next;
    c.beta = next, c.ones = next + c.q_, c.running = (double *)(c.ones + longest);
    for (int64_t i = 0; i < longest; i++) c.ones[i] = 1;
    return c;
}

/* to = sign decay o from, of count rows of keys. */
static void NAME(decayed)(const NAME(chunk) *c, REAL *to, REAL sign, const REAL *decay, const REAL *from, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count * c->k_; i++) to[i] = sign * decay[i] * from[i];
}

/* The decays before a row join it: row = row o by, flushed. */
INLINE void NAME(join)(REAL *row, const REAL *by, int64_t count) {
#pragma omp simd
    for (int64_t n = 0; n < count; n++) {
        const REAL product = row[n] * by[n];
        row[n] = product < TINY ? 0 : product;
    }
}

/* A long product of decays goes on: in double, as its rounding is that of all values. */
INLINE void NAME(go_on)(REAL *now, double *running, const REAL *by, int64_t step, int64_t count) {
#pragma omp simd
    for (int64_t n = 0; n < count; n++) {
        const double product = running[n] * by[n * step];
        running[n] = product < TINY ? 0 : product;
        now[n] = (REAL)running[n];
    }
}

/* Queries, keys, betas and decays of the steps from t on of head h in sequence b. */
static void NAME(read_chunk)(NAME(chunk) *c, const NAME(given) *x, int64_t b, int64_t h, int64_t t, int64_t Q) {
    const int64_t q = c->q = MIN(Q, x->T - t), K = x->K, k_ = c->k_, first = (b * x->T + t) * x->H + h;
    NAME(gather)(c->Q, k_, x->q + first * K, x->H * K, q, K, NULL);
    NAME(gather)(c->K_rows, k_, x->k + first * K, x->H * K, q, K, NULL);
    for (int64_t i = 0; i < q; i++) {
        const int64_t token = first + i * x->H;
        REAL *row = c->decay + i * k_;
        const int begins = x->starts && x->starts[b * x->T + t + i];
        const REAL one = begins ? 0 : x->g && x->G == 1 ? EXP(x->g[token]) : 1;
        c->beta[i] = x->beta[token];
        for (int64_t n = 0; n < K; n++) row[n] = one;
        if (x->g && x->G > 1 && !begins) {
            const REAL *g = x->g + token * K;
#pragma omp simd
            for (int64_t n = 0; n < K; n++) row[n] = EXP(g[n]);
        }
    }
    for (int64_t n = 0; n < k_; n++) c->running[n] = 1;
    for (int64_t i = 0; i < q; i++) NAME(go_on)(c->since + i * k_, c->running, c->decay + i * k_, 1, K);
    for (int64_t n = 0; n < k_; n++) c->running[n] = c->until[(q - 1) * k_ + n] = 1;
    for (int64_t j = q - 2; j >= 0; j--) NAME(go_on)(c->until + j * k_, c->running, c->decay + (j + 1) * k_, 1, K);
}

/* P, N and L with one decay a head; zeros behind the diagonal up to a whole tile. */
static void NAME(scalar_scores)(NAME(chunk) *c) {
    const int64_t q = c->q, q_ = c->q_, k_ = c->k_;
    NAME(transpose)(c->turned, q_, c->K_rows, k_, q, c->K);
    NAME(product)(LOWER_RESULT, c->P, q_, q, q, c->K, c->Q, k_, 1, c->turned, q_, NULL);
    NAME(product)(LOWER_RESULT, c->N, q_, q, q, c->K, c->K_rows, k_, 1, c->turned, q_, NULL);
    for (int64_t i = 0; i < q; i++) {
        REAL *p = c->P + i * q_, *n = c->N + i * q_, *l = c->L + i * q_;
        NAME(go_on)(l, c->running, c->decay + i * k_, 0, i);
        for (int64_t j = 0; j < i; j++) p[j] *= l[j], n[j] *= -l[j];
        c->running[i] = l[i] = 1, n[i] = 0;
        for (int64_t j = i + 1; j % ROWS; j++) p[j] = n[j] = 0;
    }
}

/* The pairs of halves (s, m), (m, end), from single steps on: reach_since up to a step from its half's start, and
   reach_until from a step to its half's end. */
static void NAME(start_halves)(NAME(chunk) *c) {
    memcpy(c->reach_since, c->decay, c->q * c->k_ * sizeof(REAL));
    for (int64_t i = 0; i < c->q * c->k_; i++) c->reach_until[i] = 1;
}

static void NAME(unite_halves)(NAME(chunk) *c, int64_t s, int64_t m, int64_t end) {
    for (int64_t j = s; j < m; j++) NAME(join)(c->reach_until + j * c->k_, c->reach_since + (end - 1) * c->k_, c->K);
    for (int64_t i = m; i < end; i++) NAME(join)(c->reach_since + i * c->k_, c->reach_since + (m - 1) * c->k_, c->K);
}

/* to[i][j] = sign from[m + i] . early[j], of later steps (m, end) and earlier ones (s, m). */
static void NAME(between)(NAME(chunk) *c, REAL *to, REAL sign, const REAL *from, int64_t s, int64_t m, int64_t end) {
    const int64_t half = m - s, k_ = c->k_, width = PADDED(half);
    NAME(decayed)(c, c->late, sign, c->reach_since + m * k_, from + m * k_, end - m);
    if (half >= ROWS)
        NAME(product)(FULL, c->block, width, end - m, half, c->K, c->late, k_, 1, c->turned, width, NULL);
    for (int64_t i = 0; i < end - m; i++)
        for (int64_t j = 0; j < half; j++)
            to[(m + i) * c->q_ + s + j] = half >= ROWS ? c->block[i * width + j]
                                                       : (REAL)NAME(dot)(c->late + i * k_, c->early + j * k_, c->K);
}

/* P and N with a decay for each channel. */
static void NAME(vector_scores)(NAME(chunk) *c) {
    const int64_t q = c->q, q_ = c->q_, k_ = c->k_;
    NAME(start_halves)(c);
    for (int64_t i = 0; i < q; i++) {
        c->P[i * q_ + i] = NAME(dot)(c->Q + i * k_, c->K_rows + i * k_, c->K), c->N[i * q_ + i] = 0;
        for (int64_t j = i + 1; j % ROWS; j++) c->P[i * q_ + j] = c->N[i * q_ + j] = 0;
    }
    for (int64_t half = 1; half < q; half *= 2)
        for (int64_t s = 0; s + half < q; s += 2 * half) {
            const int64_t m = s + half, end = MIN(m + half, q);
            NAME(decayed)(c, c->early, 1, c->reach_until + s * k_, c->K_rows + s * k_, half);
            if (half >= ROWS) NAME(transpose)(c->turned, PADDED(half), c->early, k_, half, c->K);
            NAME(between)(c, c->P, 1, c->Q, s, m, end);
            NAME(between)(c, c->N, -1, c->K_rows, s, m, end);
            NAME(unite_halves)(c, s, m, end);
        }
}

/* E and U of the chunk, whose values are in E; then S behind it. */
static void NAME(correct)(NAME(chunk) *c, REAL *E, REAL *U, const REAL *S) {
    NAME(decayed)(c, c->late, -1, c->since, c->K_rows, c->q);
    NAME(product)(FULL, E, c->v_, c->q, c->V, c->K, c->late, c->k_, 1, S, c->v_, c->ones);
    NAME(solve)(E, U, c->v_, c->q, c->V, c->N, c->q_, c->beta, c->ones);
}

static void NAME(advance)(NAME(chunk) *c, const REAL *U, REAL *S) {
    NAME(decayed)(c, c->late, 1, c->until, c->K_rows, c->q);
    NAME(product)(FULL, S, c->v_, c->K, c->V, c->q, c->late, 1, c->k_, U, c->v_, c->since + (c->q - 1) * c->k_);
}

void NAME(delta_rule_forward)(int64_t batch, int64_t T, int64_t H, int64_t K, int64_t V, int64_t G, int64_t Q,
                              int64_t threads, const REAL *q, const REAL *k, const REAL *v, const REAL *beta,
                              const REAL *g, const REAL *initial, const uint8_t *starts, REAL *y, REAL *final) {
    const NAME(given) x = {T, H, K, V, G, q, k, v, beta, g, starts};
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < H; h++) {
            NAME(chunk) c = NAME(new_chunk)(Q, K, V);
            const int64_t v_ = c.v_, state = (b * H + h) * K * V;
            REAL *S = NAME(zeros)(c.k_ * v_ + 3 * c.q_ * v_), *E = S + c.k_ * v_, *U = E + c.q_ * v_, *Y = U + c.q_ * v_;
            NAME(gather)(S, v_, initial + state, V, K, V, NULL);
            for (int64_t t = 0; t < T; t += Q) {
                const int64_t at = ((b * T + t) * H + h) * V;
                NAME(read_chunk)(&c, &x, b, h, t, Q);
                (g && G > 1 ? NAME(vector_scores) : NAME(scalar_scores))(&c);
                NAME(gather)(E, v_, v + at, H * V, c.q, V, NULL);
                NAME(correct)(&c, E, U, S);
                NAME(decayed)(&c, c.late, 1, c.since, c.Q, c.q);
                NAME(product)(FULL, Y, v_, c.q, V, K, c.late, c.k_, 1, S, v_, NULL);
                NAME(product)(LOWER, Y, v_, c.q, V, c.q, c.P, c.q_, 1, U, v_, c.ones);
                for (int64_t i = 0; i < c.q; i++) memcpy(y + at + i * H * V, Y + i * v_, V * sizeof(REAL));
                NAME(advance)(&c, U, S);
            }
            NAME(gather)(final + state, V, S, v_, K, V, NULL);
            free(S);
            free(c.Q);
        }
}

/* Backward, with R the gradient of the state behind the chunk:

     dU = P^T dY + (until o K) R,   W = dU - A^T dV,   dV = beta o W,   dbeta = E . W
     dP = dY U^T,   dA = -dV U^T,   R <- since[last] o R + (since o Q)^T dY - (since o K)^T dV
     dQ = since o (dY S^T) + dP through P,   dK = -since o (dV S^T) + until o (U R^T) + dP, dA through P and A

   The gradient of the log decay of step t and a channel is the sum of all that decays by it: of pairs (j, i] with t in
   them, of what reads S from t on, of what is written before t, and since[last] <S, R>. */

/* Gradients of the rows of a chunk (steps, keys), and work space of the same size. */
typedef struct {
    REAL *dQ, *dK, *dG, *part, *change;
    double *pairs; /* of one decay a head, (steps) and as many for work */
} NAME(gradients);

/* count rows of ``part``, times their decays, are gradients of rows of ``from``: they join ``to``, and products with
   ``from`` join ``change``. */
static void NAME(settle)(const NAME(chunk) *c, REAL *to, REAL *change, const REAL *part, const REAL *decay,
                         const REAL *from, REAL sign, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count * c->k_; i++) {
        const REAL gradient = sign * decay[i] * part[i];
        to[i] += gradient;
        change[i] += from[i] * gradient;
    }
}

/* dG of count steps from what reads at or behind them, and of what is written before them; ``change`` becomes 0. */
static void NAME(spread_read)(const NAME(chunk) *c, REAL *dG, REAL *change, int64_t count) {
    for (int64_t i = count - 1; i >= 0; i--)
        for (int64_t n = 0; n < c->k_; n++) {
            REAL *now = change + i * c->k_ + n;
            if (i) now[-c->k_] += *now;
            dG[i * c->k_ + n] += *now;
            *now = 0;
        }
}

static void NAME(spread_written)(const NAME(chunk) *c, REAL *dG, REAL *change, int64_t count) {
    for (int64_t i = 1; i < count; i++)
        for (int64_t n = 0; n < c->k_; n++) {
            REAL *before = change + (i - 1) * c->k_ + n;
            dG[i * c->k_ + n] += *before;
            before[c->k_] += *before;
            *before = 0;
        }
    memset(change + (count - 1) * c->k_, 0, c->k_ * sizeof(REAL));
}

/* Through P and A with one decay a head: dP and dA (steps, steps) are overwritten. */
static void NAME(scalar_gradients)(NAME(chunk) *c, REAL *dP, REAL *dA, NAME(gradients) *d) {
    const int64_t q = c->q, q_ = c->q_, k_ = c->k_;
    double *columns = d->pairs + q_;
    memset(columns, 0, q_ * sizeof(double));
    for (int64_t i = q - 1; i >= 0; i--) {
        REAL *p = dP + i * q_, *a = dA + i * q_;
        const REAL *l = c->L + i * q_;
        double sum = 0;
        for (int64_t j = 0; j < i; j++) {
            sum += columns[j] += (double)p[j] * c->P[i * q_ + j] - (double)a[j] * c->N[i * q_ + j];
            p[j] *= l[j], a[j] *= l[j];
        }
        d->pairs[i] = sum;
        a[i] = 0;
        for (int64_t j = i + 1; j % ROWS; j++) p[j] = a[j] = 0;
    }
    NAME(product)(LOWER, d->dQ, k_, q, c->K, q, dP, q_, 1, c->K_rows, k_, c->ones);
    NAME(product)(UPPER, d->dK, k_, q, c->K, q, dP, 1, q_, c->Q, k_, c->ones);
    NAME(product)(LOWER, d->dK, k_, q, c->K, q, dA, q_, 1, c->K_rows, k_, c->ones);
    NAME(product)(UPPER, d->dK, k_, q, c->K, q, dA, 1, q_, c->K_rows, k_, c->ones);
}

/* Through P and A with a decay for each channel. */
static void NAME(vector_gradients)(NAME(chunk) *c, REAL *dP, REAL *dA, NAME(gradients) *d) {
    const int64_t q = c->q, q_ = c->q_, k_ = c->k_, K = c->K;
    NAME(start_halves)(c);
    for (int64_t i = 0; i < q; i++)
        for (int64_t n = 0; n < K; n++) {
            d->dQ[i * k_ + n] += dP[i * q_ + i] * c->K_rows[i * k_ + n];
            d->dK[i * k_ + n] += dP[i * q_ + i] * c->Q[i * k_ + n];
        }
    for (int64_t half = 1; half < q; half *= 2)
        for (int64_t s = 0; s + half < q; s += 2 * half) {
            const int64_t m = s + half, end = MIN(m + half, q), late = m * k_, early = s * k_, corner = m * q_ + s;
            NAME(decayed)(c, c->early, 1, c->reach_until + early, c->K_rows + early, half);
            NAME(product)(FULL, d->part, k_, end - m, K, half, dP + corner, q_, 1, c->early, k_, NULL);
            NAME(settle)(c, d->dQ + late, d->change, d->part, c->reach_since + late, c->Q + late, 1, end - m);
            NAME(product)(FULL, d->part, k_, end - m, K, half, dA + corner, q_, 1, c->early, k_, NULL);
            NAME(settle)(c, d->dK + late, d->change, d->part, c->reach_since + late, c->K_rows + late, 1, end - m);
            NAME(spread_read)(c, d->dG + late, d->change, end - m);
            NAME(decayed)(c, c->late, 1, c->reach_since + late, c->Q + late, end - m);
            NAME(product)(FULL, d->part, k_, half, K, end - m, dP + corner, 1, q_, c->late, k_, NULL);
            NAME(decayed)(c, c->late, 1, c->reach_since + late, c->K_rows + late, end - m);
            NAME(product)(FULL, d->part, k_, half, K, end - m, dA + corner, 1, q_, c->late, k_, c->ones);
            NAME(settle)(c, d->dK + early, d->change, d->part, c->reach_until + early, c->K_rows + early, 1, half);
            NAME(spread_written)(c, d->dG + early, d->change, half);
            NAME(unite_halves)(c, s, m, end);
        }
}

void NAME(delta_rule_backward)(int64_t batch, int64_t T, int64_t H, int64_t K, int64_t V, int64_t G, int64_t Q,
                               int64_t threads, const REAL *dy, const REAL *dfinal, const REAL *q, const REAL *k,
                               const REAL *v, const REAL *beta, const REAL *g, const REAL *initial,
                               const uint8_t *starts, REAL *dq, REAL *dk, REAL *dv, REAL *dbeta, REAL *dg,
                               REAL *dinitial) {
    const NAME(given) x = {T, H, K, V, G, q, k, v, beta, g, starts};
    const int64_t chunks = (T + Q - 1) / Q, vector = g && G > 1;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < H; h++) {
            NAME(chunk) c = NAME(new_chunk)(Q, K, V);
            const int64_t q_ = c.q_, k_ = c.k_, v_ = c.v_, state = (b * H + h) * K * V;
            const int64_t states = k_ * v_, pairs = q_ * q_, values = q_ * v_, kept = states + values + 2 * pairs;
            REAL *memory = NAME(zeros)((chunks + 1) * kept + 3 * states + 5 * values + 5 * q_ * k_ + 2 * pairs + PAD * q_);
            REAL *R = memory + (chunks + 1) * kept, *St = R + states, *Rt = St + states;
            REAL *U = Rt + states, *Ut = U + values, *dY = Ut + values, *W = dY + values, *dV = W + values;
            REAL *dQ = dV + values, *dP = dQ + 5 * q_ * k_, *dA = dP + pairs; /* tiles at their edges end behind dA */
            NAME(gradients) d = {dQ, dQ + q_ * k_, dQ + 2 * q_ * k_, dQ + 3 * q_ * k_, dQ + 4 * q_ * k_, NULL};
            d.pairs = there(calloc(2 * q_, sizeof(double)));
            NAME(gather)(R, v_, dfinal + state, V, K, V, NULL);
            NAME(gather)(memory, v_, initial + state, V, K, V, NULL);
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                REAL *S = memory + chunk * kept, *E = S + states;
                NAME(read_chunk)(&c, &x, b, h, chunk * Q, Q);
                (vector ? NAME(vector_scores) : NAME(scalar_scores))(&c);
                NAME(gather)(E, v_, v + ((b * T + chunk * Q) * H + h) * V, H * V, c.q, V, NULL);
                NAME(correct)(&c, E, U, S);
                memcpy(E + values, c.P, 2 * pairs * sizeof(REAL)); /* and N, which lies behind it */
                memcpy(S + kept, S, states * sizeof(REAL));
                NAME(advance)(&c, U, S + kept);
            }
            for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
                const int64_t t = chunk * Q, first = (b * T + t) * H + h;
                const REAL *S = memory + chunk * kept, *E = S + states;
                NAME(read_chunk)(&c, &x, b, h, t, Q);
                if (!vector) NAME(scalar_scores)(&c);
                memcpy(c.P, E + values, 2 * pairs * sizeof(REAL));
                NAME(gather)(dY, v_, dy + first * V, H * V, c.q, V, NULL);
                NAME(gather)(U, v_, E, v_, c.q, V, c.beta);
                NAME(transpose)(St, k_, S, v_, K, V);
                NAME(transpose)(Rt, k_, R, v_, K, V);
                NAME(transpose)(Ut, q_, U, v_, c.q, V);
                memset(dQ, 0, 5 * q_ * k_ * sizeof(REAL));
                for (int64_t n = 0; n < K; n++) {
                    const REAL passing = c.since[(c.q - 1) * k_ + n] * (REAL)NAME(dot)(S + n * v_, R + n * v_, V);
                    for (int64_t i = 0; i < c.q; i++) d.dG[i * k_ + n] = passing;
                }
                /* corrections */
                NAME(product)(UPPER, W, v_, c.q, V, c.q, c.P, 1, q_, dY, v_, NULL);
                NAME(decayed)(&c, c.late, 1, c.until, c.K_rows, c.q);
                NAME(product)(FULL, W, v_, c.q, V, K, c.late, k_, 1, R, v_, c.ones);
                NAME(solve_back)(W, dV, v_, c.q, V, c.N, q_, c.beta, c.ones);
                /* through what is written to the state behind the chunk */
                NAME(product)(FULL, d.part, k_, c.q, K, V, U, v_, 1, Rt, k_, NULL);
                NAME(settle)(&c, d.dK, d.change, d.part, c.until, c.K_rows, 1, c.q);
                NAME(spread_written)(&c, d.dG, d.change, c.q);
                /* through what reads the state before it */
                NAME(product)(FULL, d.part, k_, c.q, K, V, dY, v_, 1, St, k_, NULL);
                NAME(settle)(&c, d.dQ, d.change, d.part, c.since, c.Q, 1, c.q);
                NAME(product)(FULL, d.part, k_, c.q, K, V, dV, v_, 1, St, k_, NULL);
                NAME(settle)(&c, d.dK, d.change, d.part, c.since, c.K_rows, -1, c.q);
                NAME(spread_read)(&c, d.dG, d.change, c.q);
                NAME(decayed)(&c, c.late, 1, c.since, c.Q, c.q);
                NAME(product)(FULL, R, v_, K, V, c.q, c.late, 1, k_, dY, v_, c.since + (c.q - 1) * k_);
                NAME(decayed)(&c, c.late, -1, c.since, c.K_rows, c.q);
                NAME(product)(FULL, R, v_, K, V, c.q, c.late, 1, k_, dV, v_, c.ones);
                /* within the chunk */
                NAME(product)(LOWER_RESULT, dP, q_, c.q, c.q, V, dY, v_, 1, Ut, q_, NULL);
                NAME(product)(LOWER_RESULT, dA, q_, c.q, c.q, V, dV, v_, 1, Ut, q_, NULL);
                for (int64_t i = 0; i < c.q * q_; i++) dA[i] = -dA[i];
                (vector ? NAME(vector_gradients) : NAME(scalar_gradients))(&c, dP, dA, &d);
                for (int64_t i = 0; i < c.q; i++) {
                    const int64_t token = first + i * H;
                    memcpy(dq + token * K, d.dQ + i * k_, K * sizeof(REAL));
                    memcpy(dk + token * K, d.dK + i * k_, K * sizeof(REAL));
                    memcpy(dv + token * V, dV + i * v_, V * sizeof(REAL));
                    dbeta[token] = NAME(dot)(E + i * v_, W + i * v_, V);
                    if (vector) memcpy(dg + token * K, d.dG + i * k_, K * sizeof(REAL));
                    if (g && !vector) {
                        double sum = d.pairs[i];
                        for (int64_t n = 0; n < K; n++) sum += d.dG[i * k_ + n];
                        dg[token] = sum;
                    }
                }
            }
            NAME(gather)(dinitial + state, V, R, v_, K, V, NULL);
            free(memory);
            free(d.pairs);
            free(c.Q);
        }
}

#endif
