/* The generalised delta rule on the CPU, one time step after another, forward and backward.

     r[t] = S[t-1]^T a[t],   S[t] = diag(exp g[t]) S[t-1] + b[t] r[t]^T + k[t] v[t]^T,   y[t] = S[t]^T q[t]

   A task is a head of a sequence; its state stays in the cache. Forwards the lanes are value channels, so that r and y
   are sums of rows; what step t + 1 reads is summed while step t writes, in one pass over the state. Backwards, with
   R[t] the gradient of S[t], through y[t] too,

     u[t] = R[t]^T b[t],   dS[t-1] = diag(exp g[t]) R[t] + a[t] u[t]^T,   R[t-1] = dS[t-1] + q[t-1] dy[t-1]^T
     dq = S[t] dy   dk = R v   dv = R^T k   da = S[t-1] u   db = R r   dg = exp g o (the row sums of R o S[t-1])

   most are sums over the value channels, and the lanes are key channels. The state is kept at every CHUNK-th step and
   recomputed between.
   Layouts: q k a b g (B,T,H,K), v y (B,T,H,V), states (B,H,K,V), starts (B,T) bytes or NULL, all contiguous.
   The file includes itself to define each function for float and double. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../native_math.h"

#define VECTORS 2 /* a row of a slice of the state: enough sums side by side to hide what an addition takes */
#define CHUNK 16
#define ALIGNED(count) (((count) + 15) / 16 * 16)

#define REAL float
#define EXP exp_f32
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef EXP
#undef NAME
#define REAL double
#define EXP exp_f64
#define NAME(x) x##_f64
#include __FILE__

#else

typedef REAL NAME(vector) __attribute__((vector_size(BYTES), may_alias));
typedef REAL NAME(quarter) __attribute__((vector_size(16)));
#define WIDTH ((int64_t)(BYTES / sizeof(REAL)))
#define LANES (VECTORS * WIDTH)

static REAL *NAME(zeros)(int64_t count) {
    const size_t bytes = ALIGNED(count) * sizeof(REAL);
    return memset(aligned_alloc(64, bytes), 0, bytes);
}

static void NAME(set_decay)(REAL *decay, const REAL *g, int64_t K) {
#pragma omp simd
    for (int64_t n = 0; n < K; n++) decay[n] = EXP(g[n]);
}

/* One step of a slice (K, LANES) of the state: what it reads in, its output and what the next step reads out. */
INLINE void NAME(step)(REAL *state, int64_t K, const REAL *decay, const REAL *k, const REAL *b, const REAL *q,
                       const REAL *next_a, const REAL *v, REAL *read, REAL *y) {
    NAME(vector) value[VECTORS], found[VECTORS], out[VECTORS], ahead[VECTORS];
    for (int i = 0; i < VECTORS; i++) {
        value[i] = ((const NAME(vector) *)v)[i], found[i] = ((NAME(vector) *)read)[i];
        out[i] = ahead[i] = (NAME(vector)){0};
    }
    for (int64_t n = 0; n < K; n++) {
        NAME(vector) *row = (NAME(vector) *)(state + n * LANES);
        for (int i = 0; i < VECTORS; i++) {
            const NAME(vector) now = decay[n] * row[i] + b[n] * found[i] + k[n] * value[i];
            row[i] = now;
            out[i] += q[n] * now;
            ahead[i] += next_a[n] * now;
        }
    }
    for (int i = 0; i < VECTORS; i++) ((NAME(vector) *)y)[i] = out[i], ((NAME(vector) *)read)[i] = ahead[i];
}

void NAME(generalized_delta_rule_forward)(int64_t batch, int64_t T, int64_t H, int64_t K, int64_t V, int64_t threads,
                                          const REAL *q, const REAL *k, const REAL *v, const REAL *a, const REAL *b,
                                          const REAL *g, const REAL *initial, const uint8_t *starts, REAL *y,
                                          REAL *final) {
    const int64_t slices = (V + LANES - 1) / LANES, size = K * LANES;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t batched = 0; batched < batch; batched++)
        for (int64_t h = 0; h < H; h++) {
            const int64_t state = (batched * H + h) * K * V;
            REAL *S = NAME(zeros)(slices * (size + LANES) + 2 * LANES + K), *read = S + slices * size;
            REAL *value = read + slices * LANES, *out = value + LANES, *decay = out + LANES;
            for (int64_t s = 0; s < slices; s++) {
                const int64_t width = V - s * LANES < LANES ? V - s * LANES : LANES;
                for (int64_t n = 0; n < K; n++) {
                    REAL *row = S + s * size + n * LANES;
                    const REAL reader = a[(batched * T * H + h) * K + n];
                    memcpy(row, initial + state + n * V + s * LANES, width * sizeof(REAL));
                    for (int64_t i = 0; i < LANES; i++) read[s * LANES + i] += reader * row[i];
                }
            }
            for (int64_t t = 0; t < T; t++) {
                const int64_t token = (batched * T + t) * H + h, now = token * K, next = t + 1 < T ? now + H * K : now;
                if (starts && starts[batched * T + t]) memset(S, 0, slices * (size + LANES) * sizeof(REAL)); /* and read */
                NAME(set_decay)(decay, g + now, K);
                for (int64_t s = 0; s < slices; s++) {
                    const int64_t width = V - s * LANES < LANES ? V - s * LANES : LANES, at = token * V + s * LANES;
                    memcpy(value, v + at, width * sizeof(REAL)); /* what is behind it does not count */
                    NAME(step)(S + s * size, K, decay, k + now, b + now, q + now, a + next, value, read + s * LANES, out);
                    memcpy(y + at, out, width * sizeof(REAL));
                }
            }
            for (int64_t s = 0; s < slices; s++) {
                const int64_t width = V - s * LANES < LANES ? V - s * LANES : LANES;
                for (int64_t n = 0; n < K; n++)
                    memcpy(final + state + n * V + s * LANES, S + s * size + n * LANES, width * sizeof(REAL));
            }
            free(S);
        }
}

/* By quarters: element after element would take longer than all else. */
INLINE REAL NAME(sum)(NAME(vector) terms) {
    NAME(quarter) parts[BYTES / 16];
    memcpy(parts, &terms, sizeof terms);
    for (int i = 1; i < BYTES / 16; i++) parts[0] += parts[i];
    REAL sum = parts[0][0];
    for (int i = 1; i < (int)(16 / sizeof(REAL)); i++) sum += parts[0][i];
    return sum;
}

/* (K, V) in memory <-> (V, row) in the cache */
static void NAME(gather)(REAL *to, const REAL *from, int64_t K, int64_t V, int64_t row) {
    for (int64_t n = 0; n < K; n++)
        for (int64_t c = 0; c < V; c++) to[c * row + n] = from[n * V + c];
}
static void NAME(scatter)(REAL *to, const REAL *from, int64_t K, int64_t V, int64_t row) {
    for (int64_t n = 0; n < K; n++)
        for (int64_t c = 0; c < V; c++) to[n * V + c] = from[c * row + n];
}

/* What a step has of the key channels, each count vectors long. */
typedef struct {
    NAME(vector) *q, *k, *a, *b, *decay;
} NAME(keys);

/* What a step reads of the state before it (V, row), and the state after it, which may be the same memory. */
static void NAME(advance)(NAME(vector) *after, const NAME(vector) *before, REAL *read, NAME(keys) now, const REAL *v,
                          int64_t V, int64_t count) {
    for (int64_t c = 0; c < V; c++, before += count, after += count) {
        NAME(vector) terms = {0};
        for (int64_t i = 0; i < count; i++) terms += now.a[i] * before[i];
        const REAL found = read[c] = NAME(sum)(terms), value = v[c];
        for (int64_t i = 0; i < count; i++) after[i] = now.decay[i] * before[i] + found * now.b[i] + value * now.k[i];
    }
}

/* The gradient of the state after a step becomes that of the state before it. */
static void NAME(retreat)(NAME(vector) *gradient, const NAME(vector) *before, const NAME(vector) *after,
                          const REAL *read, NAME(keys) now, const REAL *v, const REAL *dy, REAL *dv, REAL *dread,
                          NAME(keys) d, int64_t V, int64_t count) {
    for (int64_t c = 0; c < V; c++) {
        NAME(vector) *row = gradient + c * count, of_v = {0}, of_read = {0};
        for (int64_t i = 0; i < count; i++) {
            row[i] += dy[c] * now.q[i];
            of_v += row[i] * now.k[i];
            of_read += row[i] * now.b[i];
        }
        dv[c] = NAME(sum)(of_v);
        dread[c] = NAME(sum)(of_read);
    }
    for (int64_t i = 0; i < count; i++) {
        NAME(vector) dq = {0}, dk = {0}, da = {0}, db = {0}, ddecay = {0};
        const NAME(vector) decay = now.decay[i], reader = now.a[i];
        for (int64_t c = 0; c < V; c++) {
            const int64_t here = c * count + i;
            const NAME(vector) R = gradient[here], S = before[here];
            dq += dy[c] * after[here];
            dk += v[c] * R;
            da += dread[c] * S;
            db += read[c] * R;
            ddecay += R * S;
            gradient[here] = decay * R + dread[c] * reader;
        }
        d.q[i] = dq, d.k[i] = dk, d.a[i] = da, d.b[i] = db, d.decay[i] = decay * ddecay;
    }
}

static NAME(keys) NAME(keys_at)(REAL *memory, int64_t row) {
    return (NAME(keys)){(NAME(vector) *)memory, (NAME(vector) *)(memory + row), (NAME(vector) *)(memory + 2 * row),
                        (NAME(vector) *)(memory + 3 * row), (NAME(vector) *)(memory + 4 * row)};
}

void NAME(generalized_delta_rule_backward)(int64_t batch, int64_t T, int64_t H, int64_t K, int64_t V, int64_t threads,
                                           const REAL *dy, const REAL *dfinal, const REAL *q, const REAL *k,
                                           const REAL *v, const REAL *a, const REAL *b, const REAL *g,
                                           const REAL *initial, const uint8_t *starts, REAL *dq, REAL *dk, REAL *dv,
                                           REAL *da, REAL *db, REAL *dg, REAL *dinitial) {
    const int64_t count = (K + WIDTH - 1) / WIDTH, row = count * WIDTH, size = V * row, chunks = (T + CHUNK - 1) / CHUNK;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t batched = 0; batched < batch; batched++)
        for (int64_t h = 0; h < H; h++) {
            const int64_t state = (batched * H + h) * K * V;
            /* R, zeros, boundary states, states of one chunk; its steps' keys and their gradients; what they read */
            REAL *R = NAME(zeros)((2 + chunks + CHUNK + 1) * size + (CHUNK + 1) * 5 * row + (CHUNK + 1) * V);
            REAL *none = R + size, *boundary = none + size, *states = boundary + chunks * size;
            REAL *keys = states + (CHUNK + 1) * size, *dkeys = keys + CHUNK * 5 * row;
            REAL *read = dkeys + 5 * row, *dread = read + CHUNK * V;
            NAME(gather)(R, dfinal + state, K, V, row);
            NAME(gather)(boundary, initial + state, K, V, row);
            for (int64_t pass = 0; pass < 2 * chunks - 1; pass++) {
                /* chunks 0 .. last-1 forward for their boundary states, then last .. 0 for the gradients */
                const int64_t chunk = pass < chunks - 1 ? pass : 2 * chunks - 2 - pass;
                const int64_t from = chunk * CHUNK, to = from + CHUNK < T ? from + CHUNK : T;
                const int keep = pass >= chunks - 1;
                memcpy(states, boundary + chunk * size, size * sizeof(REAL));
                for (int64_t t = from; t < to; t++) {
                    const int64_t token = (batched * T + t) * H + h, i = t - from;
                    REAL *memory = keys + i * 5 * row, *before = states + (keep ? i : 0) * size;
                    const REAL *given[] = {q, k, a, b};
                    for (int part = 0; part < 4; part++)
                        memcpy(memory + part * row, given[part] + token * K, K * sizeof(REAL));
                    NAME(set_decay)(memory + 4 * row, g + token * K, K);
                    REAL *after = keep ? before + size : t + 1 < to ? before : boundary + (chunk + 1) * size;
                    if (starts && starts[batched * T + t]) before = none;
                    NAME(advance)((NAME(vector) *)after, (NAME(vector) *)before, read + i * V, NAME(keys_at)(memory, row),
                                  v + token * V, V, count);
                }
                if (!keep) continue;
                for (int64_t t = to - 1; t >= from; t--) {
                    const int64_t token = (batched * T + t) * H + h, i = t - from;
                    const int begins = starts && starts[batched * T + t];
                    const REAL *after = states + (i + 1) * size, *before = begins ? none : after - size;
                    NAME(retreat)((NAME(vector) *)R, (NAME(vector) *)before, (NAME(vector) *)after, read + i * V,
                                  NAME(keys_at)(keys + i * 5 * row, row), v + token * V, dy + token * V, dv + token * V,
                                  dread, NAME(keys_at)(dkeys, row), V, count);
                    REAL *wanted[] = {dq, dk, da, db, dg};
                    for (int part = 0; part < 5; part++)
                        memcpy(wanted[part] + token * K, dkeys + part * row, K * sizeof(REAL));
                    if (begins) memset(R, 0, size * sizeof(REAL));
                }
            }
            NAME(scatter)(dinitial + state, R, K, V, row);
            free(R);
        }
}

#undef WIDTH
#undef LANES
#endif
