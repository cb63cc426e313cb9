/* Codes times rows of x whose numbers are integers of three digits, or rounded to one, by instructions that multiply bytes.

   A number of 32 neighbours, of which the largest is 8 million, is hi 2^16 + mid 2^8 + lo with digits in [-128, 127]: as
   exact as a float beside the largest of its neighbours. Sums of codes times digits are exact integers, and NaN among the
   32 is NaN of their step:

     sum_c q_c x_c = s (2^16 sum q hi + 2^8 sum q mid + sum q lo)

   Of a row that is rounded to integers of up to 8 bits the lowest digit is all, and s is the row's.
   Layouts: codes in the order of packed rows; digits (3, C filled up to 128) of a row of x, zeros behind the last. */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAS_DIGITS 1

#define UNIT 32 /* neighbours that share a step of x */
#define AHEAD 4 /* rows of the matrix that are asked of memory before they are read */
#define FULL(n) (((n) + BLOCK - 1) / BLOCK * BLOCK)

typedef struct {
    int8_t *digits;
    float *step, *sums; /* of each unit; over each group */
} digit_row;

static int64_t digit_bytes(int64_t C, int64_t groups) {
    return 3 * FULL(C) + (FULL(C) / UNIT + WHOLE(groups)) * (int64_t)sizeof(float);
}

/* whether codes of so many groups can be multiplied so */
static int fits_digits(int64_t C, int64_t groups) { return C / groups % UNIT == 0; }

static digit_row digits_at(void *memory, int64_t C, int64_t groups) {
    float *step = (float *)((int8_t *)memory + 3 * FULL(C));
    return (digit_row){memory, step, step + FULL(C) / UNIT};
}

INLINE void put_digits(int8_t *to, __m512i first, __m512i second) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128((__m128i *)(to + LANES), _mm512_cvtepi32_epi8(second));
}

/* what is left above the lowest digit, which is in [-128, 127] */
INLINE __m512i above(__m512i v) { return _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8); }

static void make_digits(digit_row row, const float *x, int64_t C, int64_t groups) {
    const int64_t size = C / groups, stride = FULL(C);
    for (int k = 0; k < 3; k++) memset(row.digits + k * stride + C, 0, stride - C);
    memset(row.step, 0, (stride / UNIT + WHOLE(groups)) * sizeof(float));
    for (int64_t c = 0, u = 0; c < C; c += UNIT, u++) {
        const __m512 x0 = _mm512_loadu_ps(x + c), x1 = _mm512_loadu_ps(x + c + LANES);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x0), _mm512_abs_ps(x1)));
        const float inverse = most > 1e-30f ? 8e6f / most : 0, known = most > 1e-30f ? most / 8e6f : 1;
        const float step = _mm512_cmp_ps_mask(x0, x1, _CMP_UNORD_Q) ? NAN : known; /* a maximum may be blind to it */
        const __m512i v0 = _mm512_cvtps_epi32(_mm512_mul_ps(x0, _mm512_set1_ps(inverse)));
        const __m512i v1 = _mm512_cvtps_epi32(_mm512_mul_ps(x1, _mm512_set1_ps(inverse)));
        put_digits(row.digits + 2 * stride + c, v0, v1);
        put_digits(row.digits + stride + c, above(v0), above(v1));
        put_digits(row.digits + c, above(above(v0)), above(above(v1)));
        row.step[u] = step;
        row.sums[c / size] += step * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(v0, v1));
    }
}

/* a row of one digit: integers of up to ``top``, to which its largest number is rounded; all NaN where one is not finite,
   as infinity over infinity is none */
static void make_digit(digit_row row, const float *x, int64_t C, int64_t groups, float top) {
    int8_t *v = row.digits + 2 * FULL(C);
    const int64_t size = C / groups;
    float most = 0, wrong = 0;
#pragma omp simd reduction(max : most) reduction(+ : wrong)
    for (int64_t c = 0; c < C; c++) {
        most = fabsf(x[c]) > most ? fabsf(x[c]) : most;
        wrong += x[c] * 0;
    }
    const float step = most > 0 ? most / top : 1;
    memset(v + C, 0, FULL(C) - C);
    for (int64_t c = 0; c < C; c++) v[c] = (int8_t)(wrong == 0 ? rintf(x[c] / step) : 0);
    memset(row.step, 0, (FULL(C) / UNIT + WHOLE(groups)) * sizeof(float));
    for (int64_t u = 0; u < C / UNIT; u++) row.step[u] = wrong == 0 ? step : NAN;
    for (int64_t g = 0; g < groups; g++) {
        int32_t sum = 0;
        for (int64_t c = g * size; c < (g + 1) * size; c++) sum += v[c];
        row.sums[g] = row.step[0] * (float)sum;
    }
}

#ifdef __GFNI__
/* the matrix over bits that moves so many of a byte from one place to another, and leaves none else */
INLINE long long moving(int width, int from, int to) {
    uint64_t rows = 0;
#pragma GCC unroll 4
    for (int bit = 0; bit < width; bit++) rows |= (uint64_t)1 << (from + bit + 8 * (7 - to - bit));
    return (long long)rows;
}

/* ``part_of`` << to, by one instruction after the load */
INLINE __m512i part_at(const uint8_t *part, int width, int half, int to) {
    const int from = 4 * half;
    switch (width) {
        case 8: return _mm512_loadu_si512(part + 64 * half);
        case 4: return _mm512_gf2p8affine_epi64_epi8(_mm512_loadu_si512(part), _mm512_set1_epi64(moving(4, from, to)), 0);
        case 2: {
            const long long a = moving(2, from, to), b = moving(2, from + 2, to);
            const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)part));
            return _mm512_gf2p8affine_epi64_epi8(twice, _mm512_set_epi64(b, b, b, b, a, a, a, a), 0);
        }
        default: {
            const long long a = moving(1, from, to), b = moving(1, from + 1, to);
            const long long c = moving(1, from + 2, to), d = moving(1, from + 3, to);
            const __m512i often = _mm512_broadcast_i64x2(_mm_loadu_si128((const __m128i *)part));
            return _mm512_gf2p8affine_epi64_epi8(often, _mm512_set_epi64(d, d, c, c, b, b, a, a), 0);
        }
    }
}
#else
INLINE __m512i part_at(const uint8_t *part, int width, int half, int to) {
    return (__m512i)(part_of(part, width, half) << to);
}
#endif

/* 64 codes as they are, not centred */
INLINE __m512i codes_at(const uint8_t *block, int bits, int half) {
    __m512i codes = _mm512_setzero_si512();
    int to = 0;
#pragma GCC unroll 4
    for (int width = 8; width; width >>= 1)
        if (bits & width) {
            codes = _mm512_or_si512(codes, part_at(block, width, half, to));
            block += BLOCK / 8 * width;
            to += width;
        }
    return codes;
}

/* sums of 64 codes times digits, one or three, in floats: few codes leave room for all in 32 bits */
INLINE __m512 digit_sums(__m512i q, const int8_t *digits, int64_t stride, int bits, int count) {
    const __m512i none = _mm512_setzero_si512(), lo = _mm512_loadu_si512(digits + 2 * stride);
    if (count == 1) return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(none, q, lo));
    const __m512i mid = _mm512_loadu_si512(digits + stride);
    __m512i sum = _mm512_dpbusd_epi32(none, q, _mm512_loadu_si512(digits));
    if (bits <= 6) {
        sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), q, mid);
        return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), q, lo));
    }
    const __m512i low = _mm512_dpbusd_epi32(_mm512_slli_epi32(_mm512_dpbusd_epi32(none, q, mid), 8), q, lo);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(65536), _mm512_cvtepi32_ps(low));
}

/* the steps of two units, each in half of the lanes */
INLINE __m512 two_steps(const float *step) {
    return _mm512_mask_broadcastss_ps(_mm512_set1_ps(step[0]), 0xff00, _mm_load_ss(step + 1));
}

INLINE __m512 scales_at(record_f32 r, int64_t index, __mmask16 some) {
    if (!r.brief) return _mm512_maskz_loadu_ps(some, (const float *)r.scale + index);
    const __m256i brief = _mm256_maskz_loadu_epi16(some, (const uint16_t *)r.scale + index);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(brief), 16));
}

/* step (C / 32): scales of row n times the steps of x; returns what zeros take from the sum, in lanes */
INLINE __m512 steps_of(float *step, record_f32 r, int64_t n, digit_row x) {
    const int64_t repeat = r.C / r.groups / UNIT;
    __m512 below = _mm512_setzero_ps(), zero = _mm512_set1_ps((float)(1 << (r.bits - 1)));
    for (int64_t g = 0; g < r.groups; g += LANES) {
        const __mmask16 some = r.groups - g < LANES ? (__mmask16)((1 << (r.groups - g)) - 1) : 0xffff;
        const __m512 scale = scales_at(r, n * r.groups + g, some);
        if (r.zero) zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(some, r.zero + n * r.groups + g)));
        below = _mm512_fmadd_ps(_mm512_mul_ps(scale, zero), _mm512_maskz_loadu_ps(some, x.sums + g), below);
        if (repeat == 1) {
            _mm512_mask_storeu_ps(step + g, some, _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(some, x.step + g)));
            continue;
        }
        float scales[LANES];
        _mm512_storeu_ps(scales, scale);
        for (int64_t i = 0; i < LANES && g + i < r.groups; i++)
            for (int64_t u = (g + i) * repeat; u < (g + i + 1) * repeat; u++) step[u] = scales[i] * x.step[u];
    }
    return below;
}

/* sum of row n of the matrix with one row of x: a row after the other, as memory is read fastest; step: place for as many
   numbers as x has steps, filled up to 128 columns, zeros behind the last */
INLINE float digit_product(record_f32 r, int64_t n, digit_row x, float *step, int bits, int count) {
    const int64_t stride = FULL(r.C), size = (r.C + 7) / 8 * bits;
    const uint8_t *packed = r.packed + n * size;
    __m512 sum = _mm512_sub_ps(_mm512_setzero_ps(), steps_of(step, r, n, x));
    int64_t c = 0;
    for (; c + BLOCK <= r.C; c += BLOCK, packed += BLOCK / 8 * bits)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            if (64 * half < BLOCK / 8 * bits) _mm_prefetch((const char *)packed + AHEAD * size + 64 * half, _MM_HINT_T0);
            const __m512i q = codes_at(packed, bits, half);
            const __m512 sums = digit_sums(q, x.digits + c + 64 * half, stride, bits, count);
            sum = _mm512_fmadd_ps(sums, two_steps(step + c / UNIT + 2 * half), sum);
        }
    if (c < r.C) {
        uint8_t rest[BLOCK] = {0};
        unpack_rest((int8_t *)rest, packed, r.C - c, bits);
        for (int64_t i = 0; i < r.C - c; i++) rest[i] += (uint8_t)(1 << (bits - 1));
        for (int half = 0; half < 2; half++) {
            const __m512i q = _mm512_loadu_si512(rest + 64 * half);
            const __m512 sums = digit_sums(q, x.digits + c + 64 * half, stride, bits, count);
            sum = _mm512_fmadd_ps(sums, two_steps(step + c / UNIT + 2 * half), sum);
        }
    }
    return _mm512_reduce_add_ps(sum);
}

#define DIGIT_ROWS(BITS)                                                                                    \
    if (count == 1)                                                                                         \
        for (int64_t n = first; n < last; n++) sums[n - first] = digit_product(r, n, x, step, BITS, 1); \
    else                                                                                                    \
        for (int64_t n = first; n < last; n++) sums[n - first] = digit_product(r, n, x, step, BITS, 3); \
    return

/* sums (last - first) of rows of the matrix with one row of x, of so many digits; step: as of ``digit_product`` */
static void digit_rows(record_f32 r, int64_t first, int64_t last, digit_row x, int count, float *step, float *sums) {
    switch (r.bits) {
        case 1: DIGIT_ROWS(1);
        case 2: DIGIT_ROWS(2);
        case 3: DIGIT_ROWS(3);
        case 4: DIGIT_ROWS(4);
        case 5: DIGIT_ROWS(5);
        case 6: DIGIT_ROWS(6);
        case 7: DIGIT_ROWS(7);
        default: DIGIT_ROWS(8);
    }
}

#else
#define HAS_DIGITS 0
#endif
