// Dense rows on the CPU: epochs of stochastic gradient descent, full passes, what the curvature is
// made of, and predictions. Sparse rows are in sparse.h, what L-BFGS does with weights and gradients
// in descent.h, coordinate descent in coordinate_descent.h, and Newton's method in newton.h.
//
// This file is compiled once for each instruction set, SKMAX_SET, whose vectors have
// SKMAX_VECTOR_BYTES bytes. It holds no state, starts no thread, and calls nothing but the allocator:
// whoever calls it may do so in as many threads as they like.
//
// Rows are converted in tiles that stay in the cache, and meet the weights there. A product of few
// weights and few rows keeps its sums in registers: `dot` (logits: vectors run over the features)
// and `outer` (gradients: likewise). Logits and residuals of a tile are (classes, rows), so that
// the softmax runs over vectors of rows. In memory, rows of weights are `stride` values apart, a
// multiple of all vectors, of which those beyond the features are zero.
//
// Templates are in a namespace of each set: two sets must never share the code of one.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define SKMAX_JOIN_(a, b, c) a##b##_##c
#define SKMAX_JOIN(a, b, c) SKMAX_JOIN_(a, b, c)
#define SKMAX_EXPORT(name) \
    extern "C" __attribute__((visibility("default"))) int SKMAX_JOIN(skmax_, name, SKMAX_SET)
#define UNROLL _Pragma("GCC unroll 16")

// What is asked for. `skmax/kernels/job.py` has the same fields in the same order.
struct Job {
    int64_t n, d, k, m;  // rows, features, classes, models
    int64_t k_coef;      // rows of weights: k, or for predictions 1 of two classes
    int64_t stride;      // from one row of weights to the next, in values
    int64_t batch;       // rows of a step
    // Row i of X begins at X + x_rows[i] * row_bytes, or at X + i * row_bytes where that is null;
    // its values are value_bytes apart.
    const char* X;
    const int64_t* x_rows;
    int64_t row_bytes, value_bytes;
    const void* shift;  // (d,), subtracted in the type of `exact`; null: nothing is
    int64_t type, exact, is_double;  // of the values, of the shift, and whether weights are double
    // Row i has the targets and weights of row t_rows[i], or of row t_first + i.
    const int64_t* t_rows;
    int64_t t_first;
    const int64_t* labels;      // (n_samples,), or null
    const void* soft;           // (n_samples, k), or null
    const void* smoothing;      // (m, k), or null
    const void* sample_weight;  // (n_samples, n_columns), or null: all rows weigh 1
    const void* score_weight;   // likewise; null: as `sample_weight`
    const int64_t* columns;     // (m,)
    int64_t n_columns;
    // Weights: (m, k, stride) and (m, k). Intercepts of epochs are those at the mean.
    void *coef, *intercept, *coef_velocity, *intercept_velocity;
    const void *mean, *inverse_scale;                   // (m, stride)
    const void *rates, *momentum, *l2, *l1;             // (n_steps, m), and (m,)
    int64_t fit_intercept;
    // Sums over the rows that are added to: (m,), (m,), (m, k, d), (m, k). `by_coef` may be null.
    double *loss, *correct, *by_coef, *by_intercept;
    // Predictions: (n, k), or (n,) for labels.
    void* out;
    int64_t method;
    int64_t all_finite;  // set to 0 if the largest logit of any row is not finite
    // Sparse rows: row i has the values X[starts[i]], up to before starts[i + 1], of the features
    // `indices`. Both are of index_bytes. For `d` and `stride` see sparse.h.
    const void *indices, *starts;
    int64_t index_bytes, n_features;
    // Of epochs of sparse rows: (d,), null where none share any; and (n_units,).
    const int32_t* unit;
    const double* factor;
    int64_t n_units;
};

namespace SKMAX_SET {
namespace {

constexpr int BYTES = SKMAX_VECTOR_BYTES;
// Rows and vectors whose sums are in registers at once, beside MOST classes.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 4, VECTORS = 4, MOST = 6;
#else
constexpr int ROWS = 2, VECTORS = 2, MOST = 6;
#endif
// Rows of a tile are a multiple of this, which all vectors and ROWS divide.
constexpr int64_t GROUP = 16;

typedef float Float16B __attribute__((vector_size(16), may_alias));
typedef double Double16B __attribute__((vector_size(16), may_alias));
#if SKMAX_VECTOR_BYTES >= 32
typedef float Float32B __attribute__((vector_size(32), may_alias));
typedef double Double32B __attribute__((vector_size(32), may_alias));
#endif
#if SKMAX_VECTOR_BYTES >= 64
typedef float Float64B __attribute__((vector_size(64), may_alias));
typedef double Double64B __attribute__((vector_size(64), may_alias));
#endif

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same number of bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// The sum of the parts of a vector that have 16 bytes.
template <class Half, class Whole>
inline Half halved(Whole v) {
    Half half[2];
    memcpy(half, &v, sizeof v);
    return half[0] + half[1];
}
inline Float16B folded(Float16B v) { return v; }
inline Double16B folded(Double16B v) { return v; }
#if SKMAX_VECTOR_BYTES >= 32
inline Float16B folded(Float32B v) { return halved<Float16B>(v); }
inline Double16B folded(Double32B v) { return halved<Double16B>(v); }
#endif
#if SKMAX_VECTOR_BYTES >= 64
inline Float16B folded(Float64B v) { return folded(halved<Float32B>(v)); }
inline Double16B folded(Double64B v) { return folded(halved<Double32B>(v)); }
#endif

inline float sum_of_parts(Float16B v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline double sum_of_parts(Double16B v) { return v[0] + v[1]; }
template <class V>
inline auto sum_of(V v) {
    return sum_of_parts(folded(v));
}

// Of each 16 bytes of two vectors, what an index says: 0 to 3 of the first, 4 to 7 of the second.
#if defined(__clang__) || __GNUC__ >= 12
template <int I, int J, int K, int L>
inline Float16B picked(Float16B a, Float16B b) {
    return __builtin_shufflevector(a, b, I, J, K, L);
}
#define SKMAX_AT(i, part) ((i) < 4 ? (i) + 4 * (part) : N + (i)-4 + 4 * (part))
#if SKMAX_VECTOR_BYTES >= 32
template <int I, int J, int K, int L>
inline Float32B picked(Float32B a, Float32B b) {
    constexpr int N = 8;
    return __builtin_shufflevector(a, b, SKMAX_AT(I, 0), SKMAX_AT(J, 0), SKMAX_AT(K, 0),
                                   SKMAX_AT(L, 0), SKMAX_AT(I, 1), SKMAX_AT(J, 1), SKMAX_AT(K, 1),
                                   SKMAX_AT(L, 1));
}
#endif
#if SKMAX_VECTOR_BYTES >= 64
template <int I, int J, int K, int L>
inline Float64B picked(Float64B a, Float64B b) {
    constexpr int N = 16;
    return __builtin_shufflevector(a, b, SKMAX_AT(I, 0), SKMAX_AT(J, 0), SKMAX_AT(K, 0),
                                   SKMAX_AT(L, 0), SKMAX_AT(I, 1), SKMAX_AT(J, 1), SKMAX_AT(K, 1),
                                   SKMAX_AT(L, 1), SKMAX_AT(I, 2), SKMAX_AT(J, 2), SKMAX_AT(K, 2),
                                   SKMAX_AT(L, 2), SKMAX_AT(I, 3), SKMAX_AT(J, 3), SKMAX_AT(K, 3),
                                   SKMAX_AT(L, 3));
}
#endif
template <class V>
inline Float16B sums_of_four(V a, V b, V c, V d) {
    V ab = picked<0, 4, 1, 5>(a, b) + picked<2, 6, 3, 7>(a, b);
    V cd = picked<0, 4, 1, 5>(c, d) + picked<2, 6, 3, 7>(c, d);
    return folded(picked<0, 1, 4, 5>(ab, cd) + picked<2, 3, 6, 7>(ab, cd));
}
#else
template <class V>
inline Float16B sums_of_four(V a, V b, V c, V d) {
    return Float16B{sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
}
#endif
// The sums of vectors, one after the other.
template <class V, int N>
inline void sums_of(const V (&v)[N], float* out) {
    if constexpr (N % 4 == 0) {
        UNROLL for (int i = 0; i < N; i += 4) {
            Float16B sums = sums_of_four(v[i], v[i + 1], v[i + 2], v[i + 3]);
            memcpy(out + i, &sums, sizeof sums);
        }
    } else {
        UNROLL for (int i = 0; i < N; i++) out[i] = sum_of(v[i]);
    }
}
template <class V, int N>
inline void sums_of(const V (&v)[N], double* out) {
    UNROLL for (int i = 0; i < N; i++) out[i] = sum_of(v[i]);
}

#define SKMAX_VECTOR_(type, bytes) type##bytes##B
#define SKMAX_VECTOR(type, bytes) SKMAX_VECTOR_(type, bytes)

// exp(x) for LEAST <= x <= 0, and log(x) for x >= 1; what is no number stays that. From Cephes
// (S. L. Moshier, 1984 to 2000): 2^n by the exponent's bits, what is left by a polynomial.
struct Single {
    typedef float F;
    typedef int32_t Whole;
    typedef SKMAX_VECTOR(Float, SKMAX_VECTOR_BYTES) V;
    typedef double Doubles __attribute__((vector_size(2 * SKMAX_VECTOR_BYTES), may_alias));
    typedef int32_t I __attribute__((vector_size(SKMAX_VECTOR_BYTES), may_alias));
    static constexpr F LEAST = -86.5f;
    static inline V power(V x) {
        V magic = V{} + 12582912.f;  // what is added to it is rounded to a whole number
        V n = x * 1.44269504f + magic;
        V whole = n - magic, r = x - whole * 0.693359375f;
        r = r + whole * 2.12194440e-4f;
        V p = V{} + 1.9875691500e-4f;
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * (r * r) + (r + 1.f);
        return bits<V>(bits<I>(p) + (bits<I>(n) << 23));
    }
    static inline V logarithm(V x) {
        I exponent = (bits<I>(x * 0.707106781186547524f) >> 23) - 127 + 1;
        V e = __builtin_convertvector(exponent, V);
        V m = bits<V>(bits<I>(x) - (exponent << 23)) - 1.f;
        V s = m * m, p = V{} + 7.0376836292e-2f;
        p = p * m - 1.1514610310e-1f;
        p = p * m + 1.1676998740e-1f;
        p = p * m - 1.2420140846e-1f;
        p = p * m + 1.4249322787e-1f;
        p = p * m - 1.6668057665e-1f;
        p = p * m + 2.0000714765e-1f;
        p = p * m - 2.4999993993e-1f;
        p = p * m + 3.3333331174e-1f;
        p = p * m * s - e * 2.12194440e-4f - s * 0.5f;
        return m + p + e * 0.693359375f + (x - x);
    }
};
struct Twofold {
    typedef double F;
    typedef int64_t Whole;
    typedef SKMAX_VECTOR(Double, SKMAX_VECTOR_BYTES) V;
    typedef V Doubles;
    typedef int64_t I __attribute__((vector_size(SKMAX_VECTOR_BYTES), may_alias));
    static constexpr F LEAST = -706.;
    static inline V power(V x) {
        V magic = V{} + 6755399441055744.;
        V n = x * 1.4426950408889634073599 + magic;
        V whole = n - magic, r = x - whole * 6.93145751953125e-1;
        r = r - whole * 1.42860682030941723212e-6;
        V s = r * r, p = V{} + 1.26177193074810590878e-4;
        p = p * s + 3.02994407707441961300e-2;
        p = (p * s + 9.99999999999999999910e-1) * r;
        V q = V{} + 3.00198505138664455042e-6;
        q = q * s + 2.52448340349684104192e-3;
        q = q * s + 2.27265548208155028766e-1;
        q = q * s + 2.00000000000000000009e0;
        p = p / (q - p) * 2. + 1.;
        return bits<V>(bits<I>(p) + (bits<I>(n) << 52));
    }
    static inline V logarithm(V x) {
        I exponent = (bits<I>(x * 0.70710678118654752440) >> 52) - 1023 + 1;
        V e = __builtin_convertvector(exponent, V);
        V m = bits<V>(bits<I>(x) - (exponent << 52)) - 1.;
        V s = m * m, p = V{} + 1.01875663804580931796e-4;
        p = p * m + 4.97494994976747001425e-1;
        p = p * m + 4.70579119878881725854e0;
        p = p * m + 1.44989225341610930846e1;
        p = p * m + 1.79368678507819816313e1;
        p = p * m + 7.70838733755885391666e0;
        V q = m + 1.12873587189167450590e1;
        q = q * m + 4.52279145837532221105e1;
        q = q * m + 8.29875266912776603211e1;
        q = q * m + 7.11544750618563894466e1;
        q = q * m + 2.31251620126765340583e1;
        p = m * (s * p / q) - e * 2.121944400546905827679e-4 - s * 0.5;
        return m + p + e * 0.693359375 + (x - x);
    }
};

// Values of X

struct Half {
    uint16_t h;
};
template <class E, class T>
inline E widened(T value) {
    return (E)value;
}
template <class E>
inline E widened(Half value) {  // scaled by a power of two, which is exact
    uint32_t magnitude = (uint32_t)(value.h & 0x7fff) << 13, sign = (uint32_t)(value.h >> 15) << 31;
    float scaled = bits<float>(magnitude) * 0x1p112f;
    uint32_t special = (value.h & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    return (E)bits<float>(bits<uint32_t>(scaled) | special | sign);
}
template <class T>
inline T value_at(const char* p) {
    T value;
    memcpy(&value, p, sizeof value);
    return value;
}
template <class E>
inline E difference(E a, E b) {
    return a - b;
}
template <>
inline int64_t difference(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a - (uint64_t)b);
}

template <class T, class E, class F>
inline void convert_row(const char* x, int64_t step, int64_t d, const E* shift, F* out) {
    if (shift)
        for (int64_t i = 0; i < d; i++)
            out[i] = (F)difference<E>(widened<E>(value_at<T>(x + i * step)), shift[i]);
    else
        for (int64_t i = 0; i < d; i++) out[i] = (F)widened<F>(value_at<T>(x + i * step));
}
// Rows of X as floats; of values that follow one another, the compiler makes vectors. Where a line of
// the cache has but one of a row, it has some of the next rows, too: a few features are taken of all.
template <class T, class E, class F>
void convert(const char* const* x, int64_t count, int64_t step, int64_t d, const void* shift,
             F* out, int64_t stride) {
    const E* by = (const E*)shift;
    constexpr int64_t FEW = 64 / sizeof(F);
    if (step > 64 || step < -64)
        for (int64_t i = 0; i < d; i += FEW)
            for (int64_t r = 0; r < count; r++)
                convert_row<T, E, F>(x[r] + i * step, step, d - i < FEW ? d - i : FEW,
                                     by ? by + i : by, out + r * stride + i);
    else if (step == (int64_t)sizeof(T))
        for (int64_t r = 0; r < count; r++)
            convert_row<T, E, F>(x[r], sizeof(T), d, by, out + r * stride);
    else
        for (int64_t r = 0; r < count; r++)
            convert_row<T, E, F>(x[r], step, d, by, out + r * stride);
}

template <class F>
using Converter = void (*)(const char* const*, int64_t, int64_t, int64_t, const void*, F*, int64_t);
template <class F>
Converter<F> converter(const Job& job) {
    bool whole = job.shift && job.exact == 2;
    switch (job.type) {
        case 0: return convert<uint8_t, float, F>;
        case 1: return convert<int8_t, float, F>;
        case 2: return convert<uint16_t, float, F>;
        case 3: return convert<int16_t, float, F>;
        case 4: return whole ? convert<uint32_t, int64_t, F> : convert<uint32_t, double, F>;
        case 5: return whole ? convert<int32_t, int64_t, F> : convert<int32_t, double, F>;
        case 6: return whole ? convert<uint64_t, int64_t, F> : convert<uint64_t, double, F>;
        case 7: return whole ? convert<int64_t, int64_t, F> : convert<int64_t, double, F>;
        case 8: return convert<Half, float, F>;
        case 9: return convert<float, float, F>;
        case 10: return convert<double, double, F>;
    }
    return nullptr;
}

// Memory of one call

struct Arena {
    static constexpr size_t HUGE_PAGE = 1 << 21;
    char* memory = nullptr;
    size_t used = 0;
    template <class T>
    T* take(int64_t count) {  // on the first round, only counts
        char* at = memory ? memory + used : nullptr;
        used += ((size_t)count * sizeof(T) + 63) / 64 * 64 + 64;
        return (T*)at;
    }
    bool allocate() {
        size_t unit = used < HUGE_PAGE ? 64 : HUGE_PAGE;  // large pages are sooner there
        used = (used + unit - 1) / unit * unit;
        memory = (char*)aligned_alloc(unit, used);
#ifdef MADV_HUGEPAGE
        if (memory && unit == HUGE_PAGE) madvise(memory, used, MADV_HUGEPAGE);
#endif
        used = 0;
        return memory != nullptr;
    }
    ~Arena() { free(memory); }
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t rounded_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

template <class T>
struct Kernel {
    typedef typename T::F F;
    typedef typename T::V V;
    typedef V Unaligned __attribute__((aligned(sizeof(F)), may_alias));
    typedef typename T::I I;
    typedef typename T::Whole Whole;
    typedef typename T::Doubles Doubles;
    static constexpr int LANES = BYTES / sizeof(F);
    // Bytes of the rows of a tile, of features that `dot` takes at once, and of the logits.
    static constexpr int64_t TILE = 1 << 18, CHUNK = 1 << 12, LOGITS = 1 << 20;
    static constexpr int64_t LINE = 64;  // of a cache, in bytes
    // Rows whose gradient is summed in the precision of the weights: no tile has more.
    static constexpr int64_t SUMMED = 512;

    const Job& job;
    int64_t k, d, stride, rows, tile;  // `rows`: of the present tile, at most `tile`
    int64_t k_x;  // rows of weights that meet X: 1, if two classes are told apart by one
    Converter<F> to_floats;
    Arena arena;
    F *X, *logits, *target, *weight, *score, *gradient, *offset, *pair;
    double* by_intercept;
    const F** all_rows;
    const F** some_rows;
    Whole *labels, *some_labels;  // of all rows of the tile, and of those that a model learns from
    int64_t* active;              // which those are
    int64_t ones = 0;             // how many weights are 1, where all are
    const char** places;  // of the rows of the tile, and then of the next
    int64_t n_upcoming = 0, upcoming_row = 0, upcoming_byte = 0, upcoming_size = 0;
    int64_t upcoming_step = 0;  // from one feature of the next tile to another; 0: they come by rows
    int64_t row_size, lines = 0;
    bool backwards = false;
    const char* in_place = nullptr;  // rows that end before this are read where they are

    static V load(const F* p) { return *(const V*)p; }
    static V load_any(const F* p) { return *(const Unaligned*)p; }
    static void store(F* p, V v) { *(V*)p = v; }
    static V splat(F f) { return f - V{}; }

    Kernel(const Job& j, int64_t most_rows, bool one_row) : job(j) {
        k = job.k, d = job.d, stride = job.stride;
        k_x = one_row ? 1 : k;
        to_floats = converter<F>(job);
        int64_t fits = least(TILE / (stride * sizeof(F)), LOGITS / (k * sizeof(F)));
        fits = most(GROUP, least(fits / GROUP * GROUP, SUMMED));
        tile = rounded_up(least(most_rows, fits), GROUP);
        row_size = job.value_bytes > 0 ? job.value_bytes * d : 0;
        find_in_place();
    }

    // Rows that are floats already, and of which few weights make something, need not be copied.
    // Vectors go beyond the end of a row, where weights are zero: that must be another row of X.
    void find_in_place() {
        bool same = !job.starts && job.type == (sizeof(F) == 8 ? 10 : 9) && !job.shift && k_x <= 2 * MOST;
        same &= job.value_bytes == (int64_t)sizeof(F);
        if (!same || (job.row_bytes != row_size && d % LANES)) return;
        for (int64_t r = 0; r < job.n; r++) {
            const char* end = row(r) + row_size;
            if (end > in_place) in_place = end;
        }
    }

    bool allocate(bool with_gradient) {
        backwards = with_gradient;
        bool targets = job.soft || job.smoothing;
        for (int round = 0; round < 2; round++) {
            X = arena.take<F>(tile * stride);
            logits = arena.take<F>(k * tile);
            target = arena.take<F>(targets ? k * tile : 0);
            weight = arena.take<F>(tile);
            score = arena.take<F>(tile);
            gradient = arena.take<F>(with_gradient ? job.m * k_x * stride : 0);
            offset = arena.take<F>(job.m * k);
            pair = arena.take<F>(k_x < k ? job.m * stride : 0);
            by_intercept = arena.take<double>(job.m * k);
            all_rows = arena.take<const F*>(tile);
            some_rows = arena.take<const F*>(tile);
            labels = arena.take<Whole>(tile);
            some_labels = arena.take<Whole>(tile);
            active = arena.take<int64_t>(tile);
            places = arena.take<const char*>(tile);
            if (!round && !arena.allocate()) return false;
        }
        memset(by_intercept, 0, sizeof(double) * job.m * k);
        for (int64_t r = 0; r < tile; r++) {
            memset(X + r * stride + d, 0, sizeof(F) * (stride - d));
            active[r] = r;
        }
        return true;
    }

    int64_t target_row(int64_t i) const { return job.t_rows ? job.t_rows[i] : job.t_first + i; }
    const char* row(int64_t i) const {
        return job.X + (job.x_rows ? job.x_rows[i] : i) * job.row_bytes;
    }

    // Rows first to last of the job become the tile; those up to `next` are on their way.
    void read(int64_t first, int64_t last, int64_t next) {
        rows = last - first;
        int64_t width = rounded_up(d, LANES) * sizeof(F);
        for (int64_t r = 0; r < rows; r++) {
            places[r] = row(first + r), all_rows[r] = X + r * stride;
            if (!in_place) continue;
            if (places[r] + width <= in_place)
                all_rows[r] = (const F*)places[r];
            else
                to_floats(places + r, 1, job.value_bytes, d, job.shift, X + r * stride, stride);
        }
        for (int64_t r = rows; r < rounded_up(rows, GROUP); r++) all_rows[r] = all_rows[0];
        if (!in_place) to_floats(places, rows, job.value_bytes, d, job.shift, X, stride);
        n_upcoming = most(0, least(next - last, tile));
        upcoming_row = upcoming_byte = upcoming_step = 0, upcoming_size = row_size;
        for (int64_t r = 0; r < n_upcoming; r++) places[r] = row(last + r);
        // What lies between the values of a row is of other rows.
        if (job.value_bytes > LINE && job.value_bytes > job.row_bytes) {
            upcoming_step = job.value_bytes, upcoming_size = n_upcoming * job.row_bytes;
            n_upcoming = job.x_rows || upcoming_size <= 0 ? 0 : d;
        } else if (n_upcoming && places[n_upcoming - 1] - places[0] == (n_upcoming - 1) * row_size) {
            upcoming_size *= n_upcoming, n_upcoming = 1;  // as one
        }
        int64_t blocks = (k_x + MOST - 1) / MOST, stripes = stride / (VECTORS * LANES) + 1;
        int64_t at_once = k_x <= MOST / 2 ? 2 * ROWS : ROWS;
        int64_t calls = (rows / at_once + 1 + (backwards ? stripes : 0)) * blocks * job.m;
        lines = n_upcoming * (upcoming_size / LINE + 1) / calls + 1;
    }
    // Bring some of the upcoming rows nearer: a share of them whenever a product begins.
    void prefetch() {
        int64_t r = upcoming_row, byte = upcoming_byte;
        for (int64_t i = 0; i < lines && r < n_upcoming; i++) {
            const char* start = upcoming_step ? places[0] + r * upcoming_step : places[r];
            __builtin_prefetch(start + byte, 0, 2);
            byte += LINE;
            if (byte >= upcoming_size) byte = 0, r++;
        }
        upcoming_row = r, upcoming_byte = byte;
    }

    // Targets of the tile that all models share.
    void read_targets(int64_t first) {
        for (int64_t r = 0; r < rows; r++) {
            int64_t i = target_row(first + r);
            if (job.labels) {
                labels[r] = (Whole)job.labels[i];
                continue;
            }
            const F* soft = (const F*)job.soft + i * k;
            Whole label = 0;
            for (int64_t c = 0; c < k; c++) {
                target[c * tile + r] = soft[c];
                if (soft[c] > soft[label]) label = (Whole)c;
            }
            labels[r] = label;
        }
        if (job.labels && job.smoothing) {
            memset(target, 0, sizeof(F) * k * tile);
            for (int64_t r = 0; r < rows; r++) target[labels[r] * tile + r] = 1;
        }
    }

    // The rows of the tile that model j learns from, with their weights; how many they are.
    int64_t choose(int64_t j, int64_t first, const F**& chosen, const Whole*& of) {
        int64_t count = rows, end = rounded_up(rows, GROUP);
        chosen = all_rows, of = labels;
        if (job.sample_weight) {
            const F* weights = (const F*)job.sample_weight + job.columns[j];
            const F* scores = job.score_weight ? (const F*)job.score_weight + job.columns[j] : 0;
            chosen = some_rows, of = some_labels;
            count = 0;
            for (int64_t r = 0; r < rows; r++) {
                int64_t i = target_row(first + r) * job.n_columns;
                F w = weights[i], s = scores ? scores[i] : w;
                some_rows[count] = all_rows[r], some_labels[count] = labels[r], active[count] = r;
                weight[count] = w, score[count] = s;
                count += w != 0 || s != 0;
            }
            end = rounded_up(count, GROUP);
            for (int64_t r = count; r < end; r++)
                some_rows[r] = all_rows[0], some_labels[r] = -1, weight[r] = score[r] = 0;
        } else if (ones != rows) {
            for (int64_t r = 0; r < end; r++) weight[r] = score[r] = r < rows;
            ones = rows;
        }
        return count;
    }

    // Products

    template <int R, int C>
    static inline void dot(const F* const* x, const F* w, int64_t stride, int64_t first,
                           int64_t last, bool add, F* out, int64_t tile) {
        V sum[C][R] = {};
        const F* rows[R];
        UNROLL for (int r = 0; r < R; r++) rows[r] = x[r];
        for (int64_t i = first; i < last; i += LANES) {
            V values[R];
            UNROLL for (int r = 0; r < R; r++) values[r] = load_any(rows[r] + i);
            UNROLL for (int c = 0; c < C; c++) {
                V weights = load(w + c * stride + i);
                UNROLL for (int r = 0; r < R; r++) sum[c][r] += values[r] * weights;
            }
        }
        UNROLL for (int c = 0; c < C; c++) {
            F sums[R];
            sums_of<V, R>(sum[c], sums);
            UNROLL for (int r = 0; r < R; r++)
                out[c * tile + r] = add ? out[c * tile + r] + sums[r] : sums[r];
        }
    }

    template <int C>
    void dots(const F* const* x, int64_t count, const F* w, int64_t first, int64_t last, F* out) {
        constexpr int R = C <= MOST / 2 ? 2 * ROWS : ROWS;
        for (int64_t r = 0; r < count; r += R) {
            dot<R, C>(x + r, w, stride, first, last, first > 0, out + r, tile);
            prefetch();
        }
    }

    // Logits (n_classes, count) of weights (n_classes, stride), without the intercepts.
    void forward(const F* const* x, int64_t count, const F* w, int64_t n_classes, F* out) {
        int64_t n_blocks = (n_classes + MOST - 1) / MOST;
        for (int64_t first = 0; first < stride; first += CHUNK / sizeof(F)) {
            int64_t last = least(first + CHUNK / sizeof(F), rounded_up(d, LANES));
            if (first >= last) break;
            for (int64_t b = 0; b < n_blocks; b++) {
                int64_t c = n_classes * b / n_blocks, next = n_classes * (b + 1) / n_blocks;
                const F* some = w + c * stride;
                F* to = out + c * tile;
                switch (next - c) {
                    case 1: dots<1>(x, count, some, first, last, to); break;
                    case 2: dots<2>(x, count, some, first, last, to); break;
                    case 3: dots<3>(x, count, some, first, last, to); break;
                    case 4: dots<4>(x, count, some, first, last, to); break;
                    case 5: dots<5>(x, count, some, first, last, to); break;
                    case 6: dots<6>(x, count, some, first, last, to); break;
                }
            }
        }
        for (int64_t c = 0; c < n_classes; c++)
            for (int64_t r = count; r < rounded_up(count, GROUP); r++) out[c * tile + r] = 0;
    }

    // Of few sums there are several of each, over every second or fourth row: they need not wait for
    // one another.
    template <int C, int N>
    static inline void outer(const F* const* x, int64_t count, const F* z, int64_t tile, F* g,
                             int64_t stride, int64_t i, bool add) {
        constexpr int PARTS = C * N <= 1 ? 4 : C * N <= 2 ? 2 : 1;
        V sum[PARTS][C][N] = {};
        if (add)
            UNROLL for (int c = 0; c < C; c++) UNROLL for (int v = 0; v < N; v++)
                sum[0][c][v] = load(g + c * stride + i + v * LANES);
        int64_t r = 0;
        for (; r + PARTS <= count; r += PARTS)
            UNROLL for (int p = 0; p < PARTS; p++)
                add_row<C, N>(x[r + p] + i, z + r + p, tile, sum[p]);
        for (; r < count; r++) add_row<C, N>(x[r] + i, z + r, tile, sum[0]);
        UNROLL for (int c = 0; c < C; c++) UNROLL for (int v = 0; v < N; v++) {
            V total = sum[0][c][v];
            UNROLL for (int p = 1; p < PARTS; p++) total += sum[p][c][v];
            store(g + c * stride + i + v * LANES, total);
        }
    }
    template <int C, int N>
    static inline void add_row(const F* x, const F* z, int64_t tile, V (&sum)[C][N]) {
        V values[N];
        UNROLL for (int v = 0; v < N; v++) values[v] = load_any(x + v * LANES);
        UNROLL for (int c = 0; c < C; c++) {
            V factor = splat(z[c * tile]);
            UNROLL for (int v = 0; v < N; v++) sum[c][v] += factor * values[v];
        }
    }

    template <int N>
    void outers(const F* const* x, int64_t count, const F* z, int64_t n_classes, F* g, int64_t i,
                bool add) {
        int64_t n_blocks = (n_classes + MOST - 1) / MOST;
        for (int64_t b = 0; b < n_blocks; b++) {
            int64_t c = n_classes * b / n_blocks, next = n_classes * (b + 1) / n_blocks;
            const F* some = z + c * tile;
            F* to = g + c * stride;
            prefetch();
            switch (next - c) {
                case 1: outer<1, N>(x, count, some, tile, to, stride, i, add); break;
                case 2: outer<2, N>(x, count, some, tile, to, stride, i, add); break;
                case 3: outer<3, N>(x, count, some, tile, to, stride, i, add); break;
                case 4: outer<4, N>(x, count, some, tile, to, stride, i, add); break;
                case 5: outer<5, N>(x, count, some, tile, to, stride, i, add); break;
                case 6: outer<6, N>(x, count, some, tile, to, stride, i, add); break;
            }
        }
    }

    // The gradient (n_classes, stride) of what has residuals (n_classes, count) of its logits.
    void backward(const F* const* x, int64_t count, const F* z, int64_t n_classes, F* g, bool add) {
        constexpr int WIDE = VECTORS * MOST / 2;
        int64_t i = 0, last = rounded_up(d, LANES);
        if (n_classes == 1)
            for (; i + WIDE * LANES <= last; i += WIDE * LANES) {
                outer<1, WIDE>(x, count, z, tile, g, stride, i, add);
                prefetch();
            }
        for (; i + VECTORS * LANES <= last; i += VECTORS * LANES)
            outers<VECTORS>(x, count, z, n_classes, g, i, add);
        for (; i < last; i += LANES) outers<1>(x, count, z, n_classes, g, i, add);
    }

    // Logits of the tile, without intercepts, for model j.
    void logits_of(int64_t j, const F* const* x, int64_t count) {
        if (k_x < k) {
            forward(x, count, pair + j * stride, 1, logits + tile);
            memset(logits, 0, sizeof(F) * rounded_up(count, GROUP));
        } else
            forward(x, count, (const F*)job.coef + j * k * stride, k, logits);
    }

    // The largest logit of each of some rows, and its class: of equal ones, the first. What is no
    // number is not looked at, but noted.
    V largest(F* z, const F* b, I& label, I& unordered) {
        V top = splat(-INFINITY);
        label = I{}, unordered = I{};
        for (int64_t c = 0; c < k; c++) {
            V value = load(z + c * tile) + b[c];
            store(z + c * tile, value);
            I above = value > top;
            top = above ? value : top;
            label = above ? I{} + (Whole)c : label;
            unordered |= value != value;
        }
        return top;
    }
    // What is below the top, which may be infinite; and its exponential.
    static V below(V z, V top) { return z == top ? V{} : z - top; }
    static V exponential(V x) {
        I small = x < T::LEAST;
        V e = T::power(small ? splat(T::LEAST) : x);
        return small ? V{} : e;
    }
    // exp(z - top) in place of the logits, and its sum.
    V exponentials(F* z, V top) {
        V sum = {};
        for (int64_t c = 0; c < k; c++) {
            V e = exponential(below(load(z + c * tile), top));
            store(z + c * tile, e);
            sum += e;
        }
        return sum;
    }

    // Residuals in place of the logits of the rows that model j learns from, of labels `of`. Sums
    // over them are added: loss and accuracy, and residuals where `sums` is not null.
    void residuals(int64_t j, int64_t count, const Whole* of, const F* b, double* sums) {
        const F* smoothing = job.smoothing ? (const F*)job.smoothing + j * k : nullptr;
        F hard = 1;
        if (smoothing)
            for (int64_t c = 0; c < k; c++) hard -= smoothing[c];
        Doubles loss = {}, correct = {};
        for (int64_t r = 0; r < count; r += LANES) {
            F* z = logits + r;
            I label, unordered;
            V top = largest(z, b, label, unordered), w = load(weight + r), linear = {};
            int64_t here = least(LANES, count - r);
            if (job.soft || smoothing)
                for (int64_t i = 0; i < here; i++)
                    linear[i] = expected(z + i, active[r + i], top[i], hard, smoothing);
            else
                for (int64_t i = 0; i < here; i++) linear[i] = z[of[r + i] * tile + i] - top[i];
            V sum = exponentials(z, top), share = w / sum;
            loss += __builtin_convertvector(w * (T::logarithm(sum) - linear), Doubles);
            I right = label == *(const I*)(of + r);
            correct += __builtin_convertvector(right ? load(score + r) : V{}, Doubles);
            for (int64_t c = 0; c < k; c++) store(z + c * tile, load(z + c * tile) * share);
            if (job.soft || smoothing)
                for (int64_t i = 0; i < here; i++)
                    for (int64_t c = 0; c < k; c++)
                        z[c * tile + i] -=
                            weight[r + i] * target_at(c, active[r + i], hard, smoothing);
            else
                for (int64_t i = 0; i < here; i++) z[of[r + i] * tile + i] -= weight[r + i];
        }
        for (int i = 0; i < LANES; i++) job.loss[j] += loss[i], job.correct[j] += correct[i];
        if (!sums) return;
        for (int64_t c = 0; c < k; c++) {
            V sum = {};
            for (int64_t r = 0; r < count; r += LANES) sum += load(logits + c * tile + r);
            sums[c] += sum_of(sum);
        }
    }
    F target_at(int64_t c, int64_t row, F hard, const F* smoothing) {
        F t = target[c * tile + row];
        return smoothing ? hard * t + smoothing[c] : t;
    }
    // The mean of a row's logits below the top, weighted by its targets.
    F expected(const F* z, int64_t row, F top, F hard, const F* smoothing) {
        double sum = 0;
        for (int64_t c = 0; c < k; c++) {
            double t = target_at(c, row, hard, smoothing);
            if (t != 0) sum += t * ((double)z[c * tile] - top);
        }
        return (F)sum;
    }

    // The heavy-ball step and the proximal operator of the L1 penalty; see `skmax.solvers.sgd`.
    void step(int64_t j, int64_t size, F rate) {
        const F momentum = ((const F*)job.momentum)[j], l2 = ((const F*)job.l2)[j],
                l1 = ((const F*)job.l1)[j];
        const F *mean = (const F*)job.mean + j * stride,
                *scale = (const F*)job.inverse_scale + j * stride;
        const int64_t last = rounded_up(d, LANES);
        for (int64_t c = 0; c < k; c++) {
            int64_t at = j * k + c;
            F *coef = (F*)job.coef + at * stride, *velocity = (F*)job.coef_velocity + at * stride;
            const F* g = gradient + at * stride;
            F by_intercept_ = (F)(by_intercept[at] / size);
            V sum = {};
            for (int64_t i = 0; i < last; i += LANES) {
                V w = load(coef + i), s = load(scale + i), mu = load(mean + i);
                V slope = load(g + i) / (F)size - by_intercept_ * mu + l2 * w;
                V v = momentum * load(velocity + i) - rate * (slope * s * s);
                w += v;
                if (l1 > 0) {
                    V bound = rate * (l1 * s * s);
                    V clipped = w > bound ? bound : w < -bound ? -bound : w;
                    v -= clipped, w -= clipped;
                }
                store(velocity + i, v), store(coef + i, w);
                sum += w * mu;
            }
            F *b = (F*)job.intercept + at, *v = (F*)job.intercept_velocity + at;
            if (job.fit_intercept) {
                *v = momentum * *v - rate * by_intercept_;
                *b += *v;
            }
            offset[at] = *b - sum_of(sum);
            by_intercept[at] = 0;
        }
    }

    int epoch() {
        if (!to_floats || !allocate(true)) return 1;
        for (int64_t at = 0; at < job.m * k; at++) {
            const F *coef = (const F*)job.coef + at * stride,
                    *mean = (const F*)job.mean + at / k * stride;
            V sum = {};
            for (int64_t i = 0; i < rounded_up(d, LANES); i += LANES)
                sum += load(coef + i) * load(mean + i);
            offset[at] = ((const F*)job.intercept)[at] - sum_of(sum);
        }
        for (int64_t start = 0, s = 0; start < job.n; start += job.batch, s++) {
            int64_t end = least(start + job.batch, job.n);
            for (int64_t first = start; first < end; first += tile) {
                int64_t last = least(first + tile, end);
                read(first, last, job.n);
                read_targets(first);
                for (int64_t j = 0; j < job.m; j++) {
                    const F** x;
                    const Whole* of;
                    int64_t count = choose(j, first, x, of);
                    logits_of(j, x, count);
                    residuals(j, count, of, offset + j * k, by_intercept + j * k);
                    backward(x, count, logits, k, gradient + j * k * stride, first > start);
                    if (last == end) step(j, end - start, ((const F*)job.rates)[s * job.m + j]);
                }
            }
        }
        return 0;
    }

    // Weights of the second of two classes less those of the first.
    void prepare() {
        const F *coef = (const F*)job.coef, *intercept = (const F*)job.intercept;
        memcpy(offset, intercept, sizeof(F) * job.m * k);
        if (k_x == k) return;
        for (int64_t j = 0; j < job.m; j++) {
            const F* w = coef + 2 * j * stride;
            for (int64_t i = 0; i < stride; i++) pair[j * stride + i] = w[stride + i] - w[i];
        }
    }

    int pass() {
        if (!to_floats || !allocate(job.by_coef)) return 1;
        prepare();
        for (int64_t first = 0, summed = 0; first < job.n; first += tile) {
            int64_t last = least(first + tile, job.n);
            read(first, last, job.n);
            read_targets(first);
            bool flush = last == job.n || summed + rows + tile > SUMMED;
            for (int64_t j = 0; j < job.m; j++) {
                const F** x;
                const Whole* of;
                int64_t count = choose(j, first, x, of);
                logits_of(j, x, count);
                residuals(j, count, of, offset + j * k, job.by_coef ? by_intercept + j * k : nullptr);
                if (!job.by_coef) continue;
                F* g = gradient + j * k_x * stride;
                backward(x, count, logits + (k - k_x) * tile, k_x, g, summed > 0);
                if (flush) add_gradient(j, g);
            }
            summed = flush ? 0 : summed + rows;
        }
        if (job.by_coef)
            for (int64_t at = 0; at < job.m * k; at++) job.by_intercept[at] += by_intercept[at];
        return 0;
    }
    void add_gradient(int64_t j, const F* g) {
        double* total = job.by_coef + j * k * d;
        if (k_x < k)
            for (int64_t i = 0; i < d; i++) total[i] -= g[i], total[d + i] += g[i];
        else
            for (int64_t c = 0; c < k; c++)
                for (int64_t i = 0; i < d; i++) total[c * d + i] += g[c * stride + i];
    }

    // Weighted sums of the features into `by_coef`, and of their squares into `by_intercept`, (m, d).
    int moments() {
        if (!to_floats || !allocate(true)) return 1;
        memset(labels, 0, sizeof(Whole) * tile);
        for (int64_t first = 0, summed = 0; first < job.n; first += tile) {
            int64_t last = least(first + tile, job.n);
            read(first, last, job.n);
            bool flush = last == job.n || summed + rows + tile > SUMMED;
            for (int64_t j = 0; j < job.m; j++) {
                const F** x;
                const Whole* of;
                int64_t count = choose(j, first, x, of);
                F *sum = gradient + 2 * j * stride, *square = sum + stride;
                for (int64_t i = 0; i < d; i += LANES) {
                    V s = summed ? load(sum + i) : V{}, q = summed ? load(square + i) : V{};
                    for (int64_t r = 0; r < count; r++) {
                        V value = load_any(x[r] + i), weighted = weight[r] * value;
                        s += weighted, q += weighted * value;
                    }
                    store(sum + i, s), store(square + i, q);
                }
                for (int64_t i = 0; flush && i < d; i++)
                    job.by_coef[j * d + i] += sum[i], job.by_intercept[j * d + i] += square[i];
            }
            summed = flush ? 0 : summed + rows;
        }
        return 0;
    }

    // Curvatures of the loss by the logits, p (1 - p) times the row's weight, to `out`, (n, m, k).
    int curvatures() {
        if (!to_floats || !allocate(false)) return 1;
        prepare();
        memset(labels, 0, sizeof(Whole) * tile);
        for (int64_t first = 0; first < job.n; first += tile) {
            read(first, least(first + tile, job.n), job.n);
            F* out = (F*)job.out + first * job.m * k;
            memset(out, 0, sizeof(F) * rows * job.m * k);
            for (int64_t j = 0; j < job.m; j++) {
                const F** x;
                const Whole* of;
                int64_t count = choose(j, first, x, of);
                logits_of(j, x, count);
                for (int64_t r = 0; r < count; r += LANES)
                    to_curvatures(logits + r, r, least(LANES, count - r), j, out + j * k);
            }
        }
        return 0;
    }
    void to_curvatures(F* z, int64_t r, int64_t here, int64_t j, F* out) {
        I label, unordered;
        V top = largest(z, offset + j * k, label, unordered);
        V share = 1 / exponentials(z, top), w = load(weight + r);
        for (int64_t c = 0; c < k; c++) {
            V p = load(z + c * tile) * share;
            store(z + c * tile, w * (p * (1 - p)));
        }
        for (int64_t i = 0; i < here; i++)
            for (int64_t c = 0; c < k; c++) out[active[r + i] * job.m * k + c] = z[c * tile + i];
    }

    // Sums over rows, which are floats, of the squares q q' of their features and 1, for each column
    // of the weights (n, n_columns), of which there are k, or without any, to `out`, (k, d + 1, stride).
    // The features are less `mean`, and times `inverse_scale`, (d,).
    int second_moments() {
        tile = most(tile, 4 * GROUP);  // a sum is read and written once for so many rows
        if (!allocate(false)) return 1;
        const F* weights = (const F*)job.sample_weight;
        const int64_t p = d + 1;
        for (int64_t c = 0; c < k; c++) {
            F* sums = (F*)job.out + c * p * stride;
            bool add = false;
            rows = 0;
            for (int64_t r = 0; r < job.n; r++) {
                F w = weights ? weights[r * job.n_columns + c] : 1;
                if (!(w <= 0)) take_root(row(r), (F)sqrt(w), X + rows++ * stride);
                if (rows < tile && (r + 1 < job.n || (!rows && add))) continue;
                for (int64_t j = 0; j < p; j += VECTORS * LANES)
                    for (int64_t i = 0; i < least(p, j + VECTORS * LANES); i += MOST)
                        square_of(i, j, p, sums, add);
                rows = 0, add = true;
            }
            for (int64_t i = 0; i < p; i++)
                for (int64_t j = 0; j < i; j++) sums[i * stride + j] = sums[j * stride + i];
        }
        return 0;
    }
    void take_root(const char* x, F root, F* q) {
        const F *mean = (const F*)job.mean, *scale = (const F*)job.inverse_scale;
        for (int64_t i = 0; i < d; i++)
            q[i] = (value_at<F>(x + i * sizeof(F)) - mean[i]) * scale[i] * root;
        q[d] = job.fit_intercept ? root : 0;
    }
    // Of the squares, rows from i on and a few columns from j on.
    void square_of(int64_t i, int64_t j, int64_t p, F* sums, bool add) {
        bool whole = j + VECTORS * LANES <= stride;
        switch (least(MOST, p - i)) {
            case 1: return whole ? square<1, VECTORS>(i, j, sums, add) : squares<1>(i, j, sums, add);
            case 2: return whole ? square<2, VECTORS>(i, j, sums, add) : squares<2>(i, j, sums, add);
            case 3: return whole ? square<3, VECTORS>(i, j, sums, add) : squares<3>(i, j, sums, add);
            case 4: return whole ? square<4, VECTORS>(i, j, sums, add) : squares<4>(i, j, sums, add);
            case 5: return whole ? square<5, VECTORS>(i, j, sums, add) : squares<5>(i, j, sums, add);
            case 6: return whole ? square<6, VECTORS>(i, j, sums, add) : squares<6>(i, j, sums, add);
        }
    }
    template <int C>
    void squares(int64_t i, int64_t j, F* sums, bool add) {
        for (; j < stride; j += LANES) square<C, 1>(i, j, sums, add);
    }
    template <int C, int N>
    void square(int64_t i, int64_t j, F* sums, bool add) {
        V sum[C][N] = {};
        for (const F* q = X; q < X + rows * stride; q += stride) add_row<C, N>(q + j, q + i, 1, sum);
        F* g = sums + i * stride + j;
        UNROLL for (int c = 0; c < C; c++) UNROLL for (int v = 0; v < N; v++) {
            F* to = g + c * stride + v * LANES;
            store(to, add ? load(to) + sum[c][v] : sum[c][v]);
        }
    }

    // Predictions

    enum Method { DECISION, LABEL, PROBABILITY, LOG_PROBABILITY };

    int predict(int64_t* all_finite) {
        if (!to_floats || !allocate(false)) return 1;
        const F* intercept = (const F*)job.intercept;
        for (int64_t c = 0; c < k; c++) offset[c] = intercept[k_x < k ? 0 : c];
        if (k_x < k) {
            offset[0] = 0;
            memcpy(pair, job.coef, sizeof(F) * stride);
        }
        for (int64_t first = 0; first < job.n; first += tile) {
            read(first, least(first + tile, job.n), job.n);
            logits_of(0, all_rows, rows);
            for (int64_t r = 0; r < rows; r += LANES)
                if (!finish(logits + r, first + r, least(LANES, rows - r))) *all_finite = 0;
        }
        return 0;
    }

    // What is made of the logits of some rows, from row `first` on; whether they are finite.
    bool finish(F* z, int64_t first, int64_t count) {
        I label, unordered;
        V top = largest(z, offset, label, unordered);
        V seen = k_x < k ? load(z + tile) : top;  // the other logit is zero
        bool finite = true;
        for (int64_t i = 0; i < count; i++) finite &= !unordered[i] && seen[i] - seen[i] == 0;
        if (job.method == LABEL) {
            int64_t* out = (int64_t*)job.out + first;
            for (int64_t i = 0; i < count; i++) {
                out[i] = label[i];
                for (int64_t c = k; unordered[i] && c-- > 0;)  // the first that is no number
                    if (z[c * tile + i] != z[c * tile + i]) out[i] = c;
            }
            return finite;
        }
        if (job.method == PROBABILITY) {
            V share = 1 / exponentials(z, top);
            for (int64_t c = 0; c < k; c++) store(z + c * tile, load(z + c * tile) * share);
        } else if (job.method == LOG_PROBABILITY) {
            V sum = {};
            for (int64_t c = 0; c < k; c++) sum += exponential(below(load(z + c * tile), top));
            V log_sum = T::logarithm(sum);
            for (int64_t c = 0; c < k; c++)
                store(z + c * tile, below(load(z + c * tile), top) - log_sum);
        }
        F* out = (F*)job.out + first * k;
        for (int64_t c = 0; c < k; c += GROUP)
            for (int64_t i = 0; i < count; i++)
                for (int64_t b = c; b < least(c + GROUP, k); b++) out[i * k + b] = z[b * tile + i];
        return finite;
    }
};

#include "sparse.h"

}  // namespace
}  // namespace SKMAX_SET

#define SKMAX_DENSE(name, most_rows, one_row, call)                                       \
    SKMAX_EXPORT(name)(Job* job) {                                                        \
        using namespace SKMAX_SET;                                                        \
        if (job->is_double) return Kernel<Twofold>(*job, job->most_rows, one_row).call;   \
        return Kernel<Single>(*job, job->most_rows, one_row).call;                        \
    }
SKMAX_DENSE(epoch, batch, false, epoch())
SKMAX_DENSE(pass, n, job->k == 2, pass())
SKMAX_DENSE(moments, n, false, moments())
SKMAX_DENSE(curvatures, n, job->k == 2, curvatures())
SKMAX_DENSE(second_moments, n, false, second_moments())
SKMAX_DENSE(predict, n, job->k_coef < job->k, predict(&job->all_finite))

#define SKMAX_SPARSE(name, Class, call)                                             \
    SKMAX_EXPORT(sparse_##name)(Job* job) {                                         \
        using namespace SKMAX_SET;                                                  \
        bool is_wide = job->index_bytes == 8;                                       \
        if (job->is_double && is_wide) return Class<Twofold, int64_t>(*job).call;   \
        if (job->is_double) return Class<Twofold, int32_t>(*job).call;              \
        if (is_wide) return Class<Single, int64_t>(*job).call;                      \
        return Class<Single, int32_t>(*job).call;                                   \
    }
SKMAX_SPARSE(lay_out, Sparse, lay_out())
SKMAX_SPARSE(pass, Sparse, pass())
SKMAX_SPARSE(predict, Sparse, predict(&job->all_finite))
SKMAX_SPARSE(epoch, SparseEpoch, epoch())

#include "descent.h"
#include "coordinate_descent.h"
#include "newton.h"
