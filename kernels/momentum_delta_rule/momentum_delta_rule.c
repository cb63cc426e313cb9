/* The delta rule with momentum on the CPU as matrix products over chunks of Q steps, forward and backward.

     w[t] = r[t] (v[t] - M[t-1]^T k[t]),   S[t] = m[t] S[t-1] + k[t] w[t]^T,   M[t] = a[t] M[t-1] + S[t],   y[t] = M[t]^T q[t]

   with a and m the exponentials of the log decay and the log momentum; where a sequence starts both are 0, and so is
   M[t-1]. Of what step j writes M[i] has the share A[i][j] and S[i] the share C[i][j],

     C[i] = m[i] C[i-1],   A[i] = a[i] A[i-1] + C[i],   C[j][j] = A[j][j] = 1

   and of M and S before the chunk those of two columns more, which begin with A = 1, C = 0 and A = 0, C = 1. With
   B[i] = A[i-1], 0 where a sequence starts at i, and Z the rows of M above those of S, the errors E, what is written, the
   outputs and what is there behind the chunk are

     E = V - [B.M o K, B.S o K] Z - (B o K K^T) W,   W = r o E,   Y = (A o Q K^T) W + [A.M o Q, A.S o Q] Z,
     M <- A.M M + A.S S + (A o K)^T W,   S <- C.S S + (C o K)^T W    (A and C of the last step)

   Shares are sums and products of what is not negative, in double. E is solved for row by row.
   Layouts: q k (B,T,H,K), v y (B,T,H,V), r g m (B,T,H), states (B,H,K,V), starts (B,T) bytes or NULL, all contiguous; y is
   of the q given: the caller scales it.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../native_math.h"

enum { ERROR, READ, WRITTEN }; /* shares of M and S */

/* The shares of a step's columns n: those of the i steps before it in the chunk, and the two of M and S. */
#define COLUMNS(n, i) for (int64_t n = (i) ? 0 : c->q_; n < c->columns; n = n + 1 == (i) ? c->q_ : n + 1)

#define REAL float
#define EXP exp_f32
#define TINY FLT_MIN /* smaller shares are 0: numbers below it take a hundred times as long */
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
#include "../delta_rule/triangle.h"
#include "../memory.h"

/* One chunk of q steps of a head; rows of keys are k_ wide, rows of values v_, rows of pairs q_, of shares q_ + 2. */
typedef struct {
    int64_t q, K, V, q_, k_, v_, columns;
    REAL *Q, *K_rows, *rate, *ones;
    REAL *QK, *KK, *P, *N; /* P = A o QK, N = -B o KK */
    REAL *share[3][2];     /* of M and S, (q): B.M B.S, A.M A.S, the last rows of A and C */
    REAL *turned, *wide;
    double *A, *C, *a, *m; /* row i of A and C before step i; a, m (q) */
} NAME(chunk);

/* What a call has of all chunks. */
typedef struct {
    int64_t T, H, K, V;
    const REAL *q, *k, *v, *rate, *g, *momentum;
    const uint8_t *starts;
} NAME(given);

static NAME(chunk) NAME(new_chunk)(int64_t Q, int64_t K, int64_t V) {
    NAME(chunk) c = {.K = K, .V = V, .q_ = PADDED(Q), .k_ = PADDED(K), .v_ = PADDED(V)};
    const int64_t keys = c.q_ * c.k_, pairs = c.q_ * c.q_, longest = c.q_ > 2 * c.k_ ? c.q_ : 2 * c.k_;
    REAL *next = NAME(zeros)(5 * keys + 4 * pairs + 7 * c.q_ + longest);
    c.Q = next, c.K_rows = next + keys, c.turned = next + 2 * keys, c.wide = next + 3 * keys, next += 5 * keys;
    c.QK = next, c.KK = next + pairs, c.P = next + 2 * pairs, c.N = next + 3 * pairs, next += 4 * pairs;
    for (int i = 0; i < 6; i++, next += c.q_) c.share[i / 2][i % 2] = next;
    c.rate = next, c.ones = next + c.q_;
    for (int64_t i = 0; i < longest; i++) c.ones[i] = 1;
    c.columns = c.q_ + 2;
    c.A = there(calloc(2 * (c.q_ + 1) * c.columns + 2 * c.q_, sizeof(double)));
    c.C = c.A + (c.q_ + 1) * c.columns, c.a = c.C + (c.q_ + 1) * c.columns, c.m = c.a + c.q_;
    c.A[c.q_] = c.C[c.q_ + 1] = 1;
    return c;
}

static void NAME(free_chunk)(NAME(chunk) *c) {
    free(c->Q);
    free(c->A);
}

/* Queries, keys, rates and shares of the steps from t on of head h in sequence b, and P and N; zeros behind the
   diagonal up to a whole tile. */
static void NAME(read_chunk)(NAME(chunk) *c, const NAME(given) *x, int64_t b, int64_t h, int64_t t, int64_t Q) {
    const int64_t q = c->q = MIN(Q, x->T - t), K = x->K, k_ = c->k_, q_ = c->q_, first = (b * x->T + t) * x->H + h;
    NAME(gather)(c->Q, k_, x->q + first * K, x->H * K, q, K, NULL);
    NAME(gather)(c->K_rows, k_, x->k + first * K, x->H * K, q, K, NULL);
    NAME(transpose)(c->turned, q_, c->K_rows, k_, q, K);
    NAME(product)(LOWER_RESULT, c->QK, q_, q, q, K, c->Q, k_, 1, c->turned, q_, NULL);
    NAME(product)(LOWER_RESULT, c->KK, q_, q, q, K, c->K_rows, k_, 1, c->turned, q_, NULL);
    for (int64_t i = 0; i < q; i++) {
        const int64_t token = first + i * x->H;
        const int begins = x->starts && x->starts[b * x->T + t + i];
        const double *before = c->A + i * c->columns, *carried = c->C + i * c->columns;
        double *A = c->A + (i + 1) * c->columns, *C = c->C + (i + 1) * c->columns;
        REAL *p = c->P + i * q_, *n = c->N + i * q_;
        c->rate[i] = x->rate[token];
        c->a[i] = begins ? 0 : EXP(x->g[token]), c->m[i] = begins ? 0 : EXP(x->momentum[token]);
        COLUMNS(j, i) {
            C[j] = c->m[i] * carried[j], C[j] = C[j] < TINY ? 0 : C[j];
            A[j] = c->a[i] * before[j] + C[j], A[j] = A[j] < TINY ? 0 : A[j];
        }
        A[i] = C[i] = 1;
        for (int64_t j = 0; j < i; j++) p[j] = A[j] * c->QK[i * q_ + j], n[j] = begins ? 0 : -before[j] * c->KK[i * q_ + j];
        p[i] = c->QK[i * q_ + i], n[i] = 0;
        for (int64_t j = i + 1; j % ROWS; j++) p[j] = n[j] = 0;
        for (int s = 0; s < 2; s++) c->share[ERROR][s][i] = begins ? 0 : before[q_ + s], c->share[READ][s][i] = A[q_ + s];
    }
    for (int64_t j = 0; j < q; j++)
        c->share[WRITTEN][0][j] = c->A[q * c->columns + j], c->share[WRITTEN][1][j] = c->C[q * c->columns + j];
}

/* The rows of the chunk, or of their gradients, for Z: wide = sign [share.M o from, share.S o from]. */
static void NAME(widen)(NAME(chunk) *c, REAL sign, REAL *const *share, const REAL *from) {
    for (int64_t i = 0; i < c->q; i++)
        for (int s = 0; s < 2; s++) {
            const REAL factor = sign * share[s][i];
#pragma omp simd
            for (int64_t n = 0; n < c->k_; n++) c->wide[(2 * i + s) * c->k_ + n] = factor * from[i * c->k_ + n];
        }
}

/* out (q, V) = scale o out + wide Z, and Z += wide^T rows. */
static void NAME(from_state)(NAME(chunk) *c, REAL *out, const REAL *Z, const REAL *scale) {
    NAME(product)(FULL, out, c->v_, c->q, c->V, 2 * c->k_, c->wide, 2 * c->k_, 1, Z, c->v_, scale);
}
static void NAME(to_state)(NAME(chunk) *c, REAL *Z, const REAL *rows) {
    NAME(product)(FULL, Z, c->v_, 2 * c->k_, c->V, c->q, c->wide, 1, 2 * c->k_, rows, c->v_, c->ones);
}

/* E and W of the chunk, whose values are in E. */
static void NAME(correct)(NAME(chunk) *c, REAL *E, REAL *W, const REAL *Z) {
    NAME(widen)(c, -1, c->share[ERROR], c->K_rows);
    NAME(from_state)(c, E, Z, c->ones);
    NAME(solve)(E, W, c->v_, c->q, c->V, c->N, c->q_, c->rate, c->ones);
}

/* Z behind the chunk, or R before it: first = own first + other second, second = mixed first + kept second. */
static void NAME(mix)(const NAME(chunk) *c, REAL *Z, REAL own, REAL other, REAL mixed, REAL kept) {
    REAL *second = Z + c->k_ * c->v_;
#pragma omp simd
    for (int64_t n = 0; n < c->k_ * c->v_; n++) {
        const REAL one = Z[n], two = second[n];
        Z[n] = own * one + other * two, second[n] = mixed * one + kept * two;
    }
}

static void NAME(advance)(NAME(chunk) *c, const REAL *W, REAL *Z) {
    const double *A = c->A + c->q * c->columns + c->q_, *C = c->C + c->q * c->columns + c->q_;
    NAME(mix)(c, Z, A[0], A[1], 0, C[1]);
    NAME(widen)(c, 1, c->share[WRITTEN], c->K_rows);
    NAME(to_state)(c, Z, W);
}

void NAME(momentum_delta_rule_forward)(int64_t batch, int64_t T, int64_t H, int64_t K, int64_t V, int64_t Q,
                                       int64_t threads, const REAL *q, const REAL *k, const REAL *v, const REAL *rate,
                                       const REAL *g, const REAL *m, const REAL *state, const REAL *momentum,
                                       const uint8_t *starts, REAL *y, REAL *last_state, REAL *last_momentum) {
    const NAME(given) x = {T, H, K, V, q, k, v, rate, g, m, starts};
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < H; h++) {
            NAME(chunk) c = NAME(new_chunk)(Q, K, V);
            const int64_t v_ = c.v_, place = (b * H + h) * K * V;
            REAL *Z = NAME(zeros)((2 * c.k_ + 3 * c.q_) * v_), *S = Z + c.k_ * v_;
            REAL *E = S + c.k_ * v_, *W = E + c.q_ * v_, *Y = W + c.q_ * v_;
            NAME(gather)(Z, v_, state + place, V, K, V, NULL);
            NAME(gather)(S, v_, momentum + place, V, K, V, NULL);
            for (int64_t t = 0; t < T; t += Q) {
                const int64_t at = ((b * T + t) * H + h) * V;
                NAME(read_chunk)(&c, &x, b, h, t, Q);
                NAME(gather)(E, v_, v + at, H * V, c.q, V, NULL);
                NAME(correct)(&c, E, W, Z);
                NAME(widen)(&c, 1, c.share[READ], c.Q);
                NAME(from_state)(&c, Y, Z, NULL);
                NAME(product)(LOWER, Y, v_, c.q, V, c.q, c.P, c.q_, 1, W, v_, c.ones);
                for (int64_t i = 0; i < c.q; i++) memcpy(y + at + i * H * V, Y + i * v_, V * sizeof(REAL));
                NAME(advance)(&c, W, Z);
            }
            NAME(gather)(last_state + place, V, Z, v_, K, V, NULL);
            NAME(gather)(last_momentum + place, V, S, v_, K, V, NULL);
            free(Z);
            NAME(free_chunk)(&c);
        }
}

/* Backward, with R the gradient of Z behind the chunk and X that of W:

     X = P^T dY + [A o K, C o K] R + N^T dV,   dV = r o X,   dr = E . X,   dP = dY W^T,   dN = dV W^T
     R <- [A.M, 0; A.S, C.S] R + [A.M o Q, A.S o Q]^T dY - [B.M o K, B.S o K]^T dV
     dQ = (A.M, A.S) o (dY Z^T) + (A o dP) K,   dK = (A, C) o (W R^T) - (B.M, B.S) o (dV Z^T) + (A o dP)^T Q - (...)

   The gradients of the shares are products of these with what the shares multiply, and go backwards through their
   recurrence to a and m. */

/* count rows ``part`` (2 k_ wide), times their shares, are gradients of the rows of ``from`` and join ``to``; products
   with ``from`` are gradients of the shares, those of M and S ``stride`` apart from row to row. A share of 0 has none:
   by the logarithms of its factors it stays 0, and of another sequence it is not the share of the step before. */
static void NAME(settle)(const NAME(chunk) *c, REAL *to, const REAL *part, REAL *const *share, const REAL *from, REAL sign,
                         double *dM, double *dS, int64_t stride) {
    for (int64_t i = 0; i < c->q; i++)
        for (int s = 0; s < 2; s++) {
            const REAL *row = part + (2 * i + s) * c->k_, factor = sign * share[s][i];
#pragma omp simd
            for (int64_t n = 0; n < c->k_; n++) to[i * c->k_ + n] += factor * row[n];
            if (factor) (s ? dS : dM)[i * stride] += sign * NAME(dot)(from + i * c->k_, row, c->K);
        }
}

/* Through P and N: dP and dN (q, q_) become A o dP and -B o dN, and the shares' gradients join dA. */
static void NAME(pairs)(const NAME(chunk) *c, const uint8_t *starts, REAL *dP, REAL *dN, double *dA) {
    for (int64_t i = 0; i < c->q; i++) {
        const double *A = c->A + (i + 1) * c->columns, *before = c->A + i * c->columns;
        double *now = dA + (i + 1) * c->columns, *earlier = dA + i * c->columns;
        REAL *p = dP + i * c->q_, *n = dN + i * c->q_;
        const int begins = starts && starts[i];
        for (int64_t j = 0; j < i; j++) {
            now[j] += (double)p[j] * c->QK[i * c->q_ + j], p[j] *= A[j];
            if (!begins) earlier[j] -= (double)n[j] * c->KK[i * c->q_ + j];
            n[j] *= begins ? 0 : -before[j];
        }
        n[i] = 0;
        for (int64_t j = i + 1; j % ROWS; j++) p[j] = n[j] = 0;
    }
}

/* Gradients of the log decay and the log momentum of the chunk's steps, from those of the shares. */
static void NAME(gates)(const NAME(chunk) *c, double *dA, double *dC, REAL *dg, REAL *dm, int64_t stride) {
    for (int64_t i = c->q - 1; i >= 0; i--) {
        double a = 0, m = 0;
        COLUMNS(j, i) {
            const int64_t before = i * c->columns + j, now = before + c->columns;
            dC[now] += dA[now];
            a += dA[now] * c->A[before], dA[before] += c->a[i] * dA[now];
            m += dC[now] * c->C[before], dC[before] += c->m[i] * dC[now];
        }
        dg[i * stride] = c->a[i] * a, dm[i * stride] = c->m[i] * m;
    }
}

void NAME(momentum_delta_rule_backward)(int64_t batch, int64_t T, int64_t H, int64_t K, int64_t V, int64_t Q,
                                        int64_t threads, const REAL *dy, const REAL *dstate, const REAL *dmomentum,
                                        const REAL *q, const REAL *k, const REAL *v, const REAL *rate, const REAL *g,
                                        const REAL *m, const REAL *state, const REAL *momentum, const uint8_t *starts,
                                        REAL *dq, REAL *dk, REAL *dv, REAL *drate, REAL *dg, REAL *dm,
                                        REAL *dinitial_state, REAL *dinitial_momentum) {
    const NAME(given) x = {T, H, K, V, q, k, v, rate, g, m, starts};
    const int64_t chunks = (T + Q - 1) / Q;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < H; h++) {
            NAME(chunk) c = NAME(new_chunk)(Q, K, V);
            const int64_t q_ = c.q_, k_ = c.k_, v_ = c.v_, place = (b * H + h) * K * V, shares = (q_ + 1) * c.columns;
            const int64_t half = k_ * v_, states = 2 * half, values = q_ * v_, kept = states + values, keys = q_ * k_;
            REAL *memory = NAME(zeros)((chunks + 1) * kept + 3 * states + 5 * values + 4 * keys + 2 * q_ * q_ + PAD * q_);
            REAL *R = memory + (chunks + 1) * kept, *Zt = R + states, *Rt = Zt + states;
            REAL *W = Rt + states, *Wt = W + values, *dY = Wt + values, *X = dY + values, *dV = X + values;
            REAL *dQ = dV + values, *dK = dQ + keys, *part = dK + keys, *dP = part + 2 * keys, *dN = dP + q_ * q_;
            double *dA = there(calloc(2 * shares, sizeof(double))), *dC = dA + shares;
            NAME(gather)(R, v_, dstate + place, V, K, V, NULL);
            NAME(gather)(R + half, v_, dmomentum + place, V, K, V, NULL);
            NAME(gather)(memory, v_, state + place, V, K, V, NULL);
            NAME(gather)(memory + half, v_, momentum + place, V, K, V, NULL);
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                REAL *Z = memory + chunk * kept, *E = Z + states;
                NAME(read_chunk)(&c, &x, b, h, chunk * Q, Q);
                NAME(gather)(E, v_, v + ((b * T + chunk * Q) * H + h) * V, H * V, c.q, V, NULL);
                NAME(correct)(&c, E, W, Z);
                memcpy(Z + kept, Z, states * sizeof(REAL));
                NAME(advance)(&c, W, Z + kept);
            }
            for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
                const int64_t t = chunk * Q, first = (b * T + t) * H + h;
                const REAL *Z = memory + chunk * kept, *E = Z + states;
                NAME(read_chunk)(&c, &x, b, h, t, Q);
                const int64_t last = c.q * c.columns;
                const double *A = c.A + last + q_, *C = c.C + last + q_;
                NAME(gather)(dY, v_, dy + first * V, H * V, c.q, V, NULL);
                NAME(gather)(W, v_, E, v_, c.q, V, c.rate);
                NAME(transpose)(Zt, 2 * k_, Z, v_, 2 * k_, V);
                NAME(transpose)(Rt, 2 * k_, R, v_, 2 * k_, V);
                NAME(transpose)(Wt, q_, W, v_, c.q, V);
                memset(dQ, 0, 2 * keys * sizeof(REAL));
                memset(dA, 0, 2 * shares * sizeof(double));
                for (int64_t n = 0; n < K; n++) {
                    const int64_t row = n * v_;
                    dA[last + q_] += NAME(dot)(Z + row, R + row, V);
                    dA[last + q_ + 1] += NAME(dot)(Z + half + row, R + row, V);
                    dC[last + q_ + 1] += NAME(dot)(Z + half + row, R + half + row, V);
                }
                /* what is written */
                NAME(product)(UPPER, X, v_, c.q, V, c.q, c.P, 1, q_, dY, v_, NULL);
                NAME(widen)(&c, 1, c.share[WRITTEN], c.K_rows);
                NAME(from_state)(&c, X, R, c.ones);
                NAME(solve_back)(X, dV, v_, c.q, V, c.N, q_, c.rate, c.ones);
                NAME(product)(FULL, part, 2 * k_, c.q, 2 * k_, V, W, v_, 1, Rt, 2 * k_, NULL);
                NAME(settle)(&c, dK, part, c.share[WRITTEN], c.K_rows, 1, dA + last, dC + last, 1);
                /* what reads the states before the chunk */
                NAME(product)(FULL, part, 2 * k_, c.q, 2 * k_, V, dY, v_, 1, Zt, 2 * k_, NULL);
                double *now = dA + c.columns + q_, *before = dA + q_;
                NAME(settle)(&c, dQ, part, c.share[READ], c.Q, 1, now, now + 1, c.columns);
                NAME(product)(FULL, part, 2 * k_, c.q, 2 * k_, V, dV, v_, 1, Zt, 2 * k_, NULL);
                NAME(settle)(&c, dK, part, c.share[ERROR], c.K_rows, -1, before, before + 1, c.columns);
                NAME(mix)(&c, R, A[0], 0, A[1], C[1]);
                NAME(widen)(&c, 1, c.share[READ], c.Q);
                NAME(to_state)(&c, R, dY);
                NAME(widen)(&c, -1, c.share[ERROR], c.K_rows);
                NAME(to_state)(&c, R, dV);
                /* within the chunk */
                NAME(product)(LOWER_RESULT, dP, q_, c.q, c.q, V, dY, v_, 1, Wt, q_, NULL);
                NAME(product)(LOWER_RESULT, dN, q_, c.q, c.q, V, dV, v_, 1, Wt, q_, NULL);
                NAME(pairs)(&c, starts ? starts + b * T + t : NULL, dP, dN, dA);
                NAME(product)(LOWER, dQ, k_, c.q, K, c.q, dP, q_, 1, c.K_rows, k_, c.ones);
                NAME(product)(UPPER, dK, k_, c.q, K, c.q, dP, 1, q_, c.Q, k_, c.ones);
                NAME(product)(LOWER, dK, k_, c.q, K, c.q, dN, q_, 1, c.K_rows, k_, c.ones);
                NAME(product)(UPPER, dK, k_, c.q, K, c.q, dN, 1, q_, c.K_rows, k_, c.ones);
                NAME(gates)(&c, dA, dC, dg + first, dm + first, H);
                for (int64_t i = 0; i < c.q; i++) {
                    const int64_t token = first + i * H;
                    memcpy(dq + token * K, dQ + i * k_, K * sizeof(REAL));
                    memcpy(dk + token * K, dK + i * k_, K * sizeof(REAL));
                    memcpy(dv + token * V, dV + i * v_, V * sizeof(REAL));
                    drate[token] = NAME(dot)(E + i * v_, X + i * v_, V);
                }
            }
            NAME(gather)(dinitial_state + place, V, R, v_, K, V, NULL);
            NAME(gather)(dinitial_momentum + place, V, R + half, v_, K, V, NULL);
            free(memory);
            free(dA);
            NAME(free_chunk)(&c);
        }
}

#endif
