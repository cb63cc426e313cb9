/* The triangular systems of the delta rules, E = V + N U with U = beta o E, N strictly lower triangular with zeros in
   the rest of its diagonal tiles: a tile of rows at a time. Included once for each REAL, behind product.h; rows of
   values are v_ wide, those of N q_. */

/* E, given as V, and U. */
static void NAME(solve)(REAL *E, REAL *U, int64_t v_, int64_t rows, int64_t V, const REAL *N, int64_t q_,
                        const REAL *beta, const REAL *ones) {
    for (int64_t r = 0; r < rows; r += ROWS) {
        if (r) NAME(product)(FULL, E + r * v_, v_, ROWS, V, r, N + r * q_, q_, 1, U, v_, ones);
        for (int64_t i = r; i < MIN(r + ROWS, rows); i++) {
            REAL *e = E + i * v_, *u = U + i * v_;
            for (int64_t j = r; j < i; j++) {
                const REAL factor = N[i * q_ + j];
#pragma omp simd
                for (int64_t n = 0; n < V; n++) e[n] += factor * U[j * v_ + n];
            }
#pragma omp simd
            for (int64_t n = 0; n < V; n++) u[n] = beta[i] * e[n];
        }
    }
}

/* Of W, given as the gradient of U from elsewhere, W + N^T dV and dV = beta o W, from the last row on. */
static void NAME(solve_back)(REAL *W, REAL *dV, int64_t v_, int64_t rows, int64_t V, const REAL *N, int64_t q_,
                             const REAL *beta, const REAL *ones) {
    for (int64_t r = (rows - 1) / ROWS * ROWS; r >= 0; r -= ROWS) {
        const int64_t end = MIN(r + ROWS, rows);
        if (end < rows)
            NAME(product)(FULL, W + r * v_, v_, ROWS, V, rows - end, N + end * q_ + r, 1, q_, dV + end * v_, v_, ones);
        for (int64_t i = end - 1; i >= r; i--) {
            REAL *w = W + i * v_, *dv = dV + i * v_;
            for (int64_t later = i + 1; later < end; later++) {
                const REAL factor = N[later * q_ + i];
#pragma omp simd
                for (int64_t n = 0; n < V; n++) w[n] += factor * dV[later * v_ + n];
            }
#pragma omp simd
            for (int64_t n = 0; n < V; n++) dv[n] = beta[i] * w[n];
        }
    }
}
