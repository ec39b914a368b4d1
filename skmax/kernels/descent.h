// What an iteration of L-BFGS does with weights and gradients besides the pass over the rows, a part of
// core.cpp: the same as descent.cu, and the solution of linear systems. Vectors of models are (m, k, d + 1) in the coordinates of the
// preconditioner, the intercept last; `size` is k (d + 1). Whatever is done with several of them is
// done a block of elements at a time, which stays in the cache.

// What is asked for. `skmax/kernels/host_descent.py` has the same fields in the same order.
struct Vectors {
    int64_t m, k, d, r;  // models, classes, features, vectors of each model
    int64_t n, most, place, size;  // pairs in use, and room for so many; the one that is meant
    int64_t is_double, fit_intercept;
    double n_rows;
    const double *weights, *gradient, *old_weights, *old_gradient;  // (m, k, d + 1)
    const void *units, *mean;          // (m, d), or null: all 1, and all 0
    const double *loss, *correct;      // (m)
    const double *by_coef;             // (m, k, d)
    const double *by_intercept;        // (m, k)
    const double* strengths;           // (2, m): l2, l1
    const double* l2;                  // (m, d)
    const double *class_sums, *sums;   // (m, k, d) and (m, d), or null: 0
    const uint8_t* known;              // (m, k): 0 where a class takes no part; or null
    void *steps, *changes;             // (m, most, size)
    const double* factors;             // (m, n), or with that of the guess (m, n + 1)
    void* guess;                       // (m, r, size)
    void *coef, *intercept;            // (m, k, d) and (m, k)
    double* out;
    double* values;
};

namespace SKMAX_SET {
namespace {

constexpr int64_t BLOCK = 512;

// Sums in lanes, so that vectors of them can be added, always in the same order.
struct Sum {
    static constexpr int LANES = 16;
    double lanes[LANES] = {};
    template <class Term>
    inline void add(int64_t count, Term term) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES)
            for (int lane = 0; lane < LANES; lane++) lanes[lane] += term(i + lane);
        for (int lane = 0; i < count; i++, lane++) lanes[lane] += term(i);
    }
    double total() const {
        double sum = 0;
        for (double lane : lanes) sum += lane;
        return sum;
    }
};

template <class Do>
inline void in_blocks(int64_t count, Do act) {
    for (int64_t first = 0; first < count; first += BLOCK)
        act(first, count - first < BLOCK ? count - first : BLOCK);
}

template <class F>
struct Descent {
    const Vectors& v;
    explicit Descent(const Vectors& vectors) : v(vectors) {}

    const F* row_of(const void* array, int64_t j) const {
        return array ? (const F*)array + j * v.d : nullptr;
    }

    // Weights as the loss of rows sees them.
    int state() {
        for (int64_t at = 0; at < v.m * v.k; at++) {
            const F *units = row_of(v.units, at / v.k), *mean = row_of(v.mean, at / v.k);
            const double* w = v.weights + at * (v.d + 1);
            F* coef = (F*)v.coef + at * v.d;
            Sum sum;
            in_blocks(v.d, [&](int64_t first, int64_t count) {
                const double* x = w + first;
                F* to = coef + first;
                const F *u = units + first, *mu = mean + first;
                if (units)
                    for (int64_t i = 0; i < count; i++) to[i] = (F)(x[i] * (double)u[i]);
                else
                    for (int64_t i = 0; i < count; i++) to[i] = (F)x[i];
                if (mean && units)
                    sum.add(count, [&](int64_t i) { return x[i] * ((double)mu[i] * (double)u[i]); });
                else if (mean)
                    sum.add(count, [&](int64_t i) { return x[i] * (double)mu[i]; });
            });
            ((F*)v.intercept)[at] = (F)(w[v.d] - sum.total());
        }
        return 0;
    }

    // The gradient of the objective less its L1 term, from sums over the rows; and means and penalties:
    // loss and accuracy (m), then L2 times 2 and L1 by models (m).
    int gradient() {
        double *ridges = v.values + 2 * v.m, *lassos = ridges + v.m;
        for (int64_t j = 0; j < v.m; j++) {
            const F *units = row_of(v.units, j), *mean = row_of(v.mean, j);
            const double l2 = v.strengths[j], l1 = v.strengths[v.m + j], n = v.n_rows;
            v.values[j] = v.loss[j] / n, v.values[v.m + j] = v.correct[j] / n;
            Sum ridge, lasso;
            for (int64_t at = j * v.k; at < (j + 1) * v.k; at++) {
                const double by_origin = v.by_intercept[at] / n;
                const double *w = v.weights + at * (v.d + 1), *by = v.by_coef + at * v.d;
                double* result = v.out + at * (v.d + 1);
                in_blocks(v.d, [&](int64_t first, int64_t count) {
                    double unit[BLOCK], penalty[BLOCK];
                    const double *x = w + first, *g = by + first;
                    double* to = result + first;
                    for (int64_t i = 0; i < count; i++)
                        unit[i] = units ? (double)units[first + i] : 1.0;
                    for (int64_t i = 0; i < count; i++) penalty[i] = l2 * unit[i] * unit[i] * x[i];
                    if (mean)
                        for (int64_t i = 0; i < count; i++)
                            to[i] = penalty[i] + unit[i] * (g[i] / n - by_origin * mean[first + i]);
                    else
                        for (int64_t i = 0; i < count; i++) to[i] = penalty[i] + unit[i] * (g[i] / n);
                    ridge.add(count, [&](int64_t i) { return penalty[i] * x[i]; });
                    if (l1 > 0)
                        lasso.add(count, [&](int64_t i) { return fabs(x[i]) * (l1 * unit[i]); });
                });
                result[v.d] = v.fit_intercept ? by_origin : 0;
            }
            ridges[j] = ridge.total(), lassos[j] = lasso.total();
        }
        return 0;
    }

    // Vectors (m, r, k, d + 1) less their mean over the classes, in place.
    int centered() {
        const int64_t p = v.d + 1;
        for (int64_t stack = 0; stack < v.m * v.r; stack++) {
            const uint8_t* known = v.known ? v.known + stack / v.r * v.k : nullptr;
            F* values = (F*)v.guess + stack * v.k * p;
            int64_t n_known = 0;
            for (int64_t c = 0; c < v.k; c++) n_known += !known || known[c];
            in_blocks(p, [&](int64_t first, int64_t count) {
                double mean[BLOCK] = {};
                for (int64_t c = 0; c < v.k; c++)
                    if (!known || known[c])
                        for (int64_t i = 0; i < count; i++) mean[i] += values[c * p + first + i];
                for (int64_t i = 0; i < count; i++) mean[i] /= (double)n_known;
                for (int64_t c = 0; c < v.k; c++)
                    if (!known || known[c])
                        for (int64_t i = 0; i < count; i++) values[c * p + first + i] -= (F)mean[i];
            });
        }
        return 0;
    }

    // The inner products that skmax.duality is made of, (10, m, k).
    int bounds() {
        const int64_t stride = v.m * v.k;
        for (int64_t at = 0; at < stride; at++) {
            const double *w = v.weights + at * (v.d + 1), *g = v.gradient + at * (v.d + 1);
            const double* l2 = v.l2 + at / v.k * v.d;
            Sum sums[8];
            in_blocks(v.d, [&](int64_t first, int64_t count) {
                double inverse[BLOCK];
                const double *x = w + first, *y = g + first, *l = l2 + first;
                for (int64_t i = 0; i < count; i++) inverse[i] = l[i] > 0 ? 1 / l[i] : 0.0;
                sums[0].add(count, [&](int64_t i) { return y[i] * x[i]; });
                sums[1].add(count, [&](int64_t i) { return x[i] * x[i]; });
                sums[2].add(count, [&](int64_t i) { return y[i] * y[i]; });
                sums[3].add(count, [&](int64_t i) { return x[i] * x[i] * l[i]; });
                sums[4].add(count, [&](int64_t i) { return y[i] * y[i] * inverse[i]; });
                if (!v.class_sums) return;
                const double *s = v.class_sums + at * v.d + first, *mu = v.sums + at / v.k * v.d + first;
                sums[5].add(count, [&](int64_t i) { return x[i] * s[i]; });
                sums[6].add(count, [&](int64_t i) { return y[i] * s[i] * inverse[i]; });
                sums[7].add(count,
                            [&](int64_t i) { return y[i] * (mu[i] * inverse[i]) - x[i] * mu[i]; });
            });
            for (int i = 0; i < 8; i++) v.out[i * stride + at] = sums[i].total();
            v.out[8 * stride + at] = w[v.d], v.out[9 * stride + at] = g[v.d];
        }
        return 0;
    }

    // Keeps the step and the change that lead from the old weights to the others. The product of both;
    // and those of each of the n steps with the change and with the gradient: (2 n + 1, m).
    int remember() {
        for (int64_t j = 0; j < v.m; j++) {
            F *steps = (F*)v.steps + j * v.most * v.size, *changes = (F*)v.changes + j * v.most * v.size;
            const int64_t at = j * v.size;
            Sum product, of_change[16], of_gradient[16];
            in_blocks(v.size, [&](int64_t first, int64_t count) {
                const double *w = v.weights + at + first, *old_w = v.old_weights + at + first;
                const double *g = v.gradient + at + first, *old_g = v.old_gradient + at + first;
                F *step = steps + v.place * v.size + first, *change = changes + v.place * v.size + first;
                product.add(count, [&](int64_t i) { return (w[i] - old_w[i]) * (g[i] - old_g[i]); });
                for (int64_t i = 0; i < count; i++) step[i] = (F)(w[i] - old_w[i]);
                for (int64_t i = 0; i < count; i++) change[i] = (F)(g[i] - old_g[i]);
                for (int64_t pair = 0; pair < v.n; pair++) {
                    const F* other = steps + pair * v.size + first;
                    of_change[pair].add(
                        count, [&](int64_t i) { return (double)other[i] * (double)change[i]; });
                    of_gradient[pair].add(count, [&](int64_t i) { return (double)other[i] * g[i]; });
                }
            });
            v.out[j] = product.total();
            for (int64_t pair = 0; pair < v.n; pair++) {
                v.out[(2 * pair + 1) * v.m + j] = of_change[pair].total();
                v.out[(2 * pair + 2) * v.m + j] = of_gradient[pair].total();
            }
        }
        return 0;
    }

    // The gradient less the n changes times factors; and behind it, where r is 2, the newest change.
    int rest() {
        for (int64_t j = 0; j < v.m; j++) {
            const F* changes = (const F*)v.changes + j * v.most * v.size;
            F* to = (F*)v.guess + j * v.r * v.size;
            in_blocks(v.size, [&](int64_t first, int64_t count) {
                double sum[BLOCK];
                memcpy(sum, v.gradient + j * v.size + first, sizeof(double) * count);
                for (int64_t pair = 0; pair < v.n; pair++) {
                    const F* change = changes + pair * v.size + first;
                    const double factor = v.factors[j * v.n + pair];
                    for (int64_t i = 0; i < count; i++) sum[i] -= factor * (double)change[i];
                }
                for (int64_t i = 0; i < count; i++) to[first + i] = (F)sum[i];
            });
            if (v.r == 2) memcpy(to + v.size, changes + v.place * v.size, sizeof(F) * v.size);
        }
        return 0;
    }

    // Products of what the first guess makes of `rest` with the gradient, of what it makes of the
    // newest change with that, if there are both, and of the former with the n changes: (n + 2, m).
    int products() {
        for (int64_t j = 0; j < v.m; j++) {
            const F* changes = (const F*)v.changes + j * v.most * v.size;
            const F *guess = (const F*)v.guess + j * v.r * v.size, *of_newest = guess + v.size;
            Sum of_gradient, expected, of_changes[16];
            in_blocks(v.size, [&](int64_t first, int64_t count) {
                const F* z = guess + first;
                const double* g = v.gradient + j * v.size + first;
                of_gradient.add(count, [&](int64_t i) { return (double)z[i] * g[i]; });
                if (v.r == 2) {
                    const F *y = changes + v.place * v.size + first, *hy = of_newest + first;
                    expected.add(count, [&](int64_t i) { return (double)hy[i] * (double)y[i]; });
                }
                for (int64_t pair = 0; pair < v.n; pair++) {
                    const F* change = changes + pair * v.size + first;
                    of_changes[pair].add(
                        count, [&](int64_t i) { return (double)z[i] * (double)change[i]; });
                }
            });
            v.out[j] = of_gradient.total(), v.out[v.m + j] = expected.total();
            for (int64_t pair = 0; pair < v.n; pair++)
                v.out[(pair + 2) * v.m + j] = of_changes[pair].total();
        }
        return 0;
    }

    // The first guess and the n steps, times factors.
    int combined() {
        for (int64_t j = 0; j < v.m; j++) {
            const F* steps = (const F*)v.steps + j * v.most * v.size;
            const F* guess = (const F*)v.guess + j * v.r * v.size;
            const double* factors = v.factors + j * (v.n + 1);
            in_blocks(v.size, [&](int64_t first, int64_t count) {
                double* to = v.out + j * v.size + first;
                for (int64_t i = 0; i < count; i++) to[i] = factors[0] * (double)guess[first + i];
                for (int64_t pair = 0; pair < v.n; pair++) {
                    const F* step = steps + pair * v.size + first;
                    for (int64_t i = 0; i < count; i++) to[i] += factors[pair + 1] * (double)step[i];
                }
            });
        }
        return 0;
    }
};

// Solutions of linear systems, in place of right-hand sides in `guess`, (m, r, size). The matrices
// are L L', of the L in `steps`, (m, size, size), which are zero above the diagonal.
template <class T>
struct Triangles {
    typedef typename T::F F;
    typedef typename T::V V;
    typedef V Unaligned __attribute__((aligned(sizeof(F)), may_alias));
    static constexpr int LANES = BYTES / sizeof(F);
    const Vectors& v;
    const int64_t p, stride;
    F* x;  // (MOST_AT_ONCE, stride): what is solved; what is not, and the rest, is zero

    static constexpr int MOST_AT_ONCE = 4;
    explicit Triangles(const Vectors& vectors)
        : v(vectors), p(v.size), stride(rounded_up(p, LANES)) {}

    int solve() {
        Arena arena;
        for (int round = 0; round < 2; round++) {
            x = arena.take<F>(MOST_AT_ONCE * stride);
            if (!round && !arena.allocate()) return 1;
        }
        for (int64_t j = 0; j < v.m; j++) {
            const F* L = (const F*)v.steps + j * p * p;
            F* b = (F*)v.guess + j * v.r * p;
            int64_t r = 0;
            for (; r + 4 <= v.r; r += 4) solve<4>(L, b + r * p);
            for (; r + 2 <= v.r; r += 2) solve<2>(L, b + r * p);
            for (; r < v.r; r++) solve<1>(L, b + r * p);
        }
        return 0;
    }
    // Values of row i that vectors may have: beyond the diagonal, but not beyond the matrix.
    int64_t wide(int64_t i) const {
        int64_t end = rounded_up(i, LANES);
        return i * p + end <= p * p ? end : i / LANES * LANES;
    }
    template <int R>
    void solve(const F* L, F* b) {
        memset(x, 0, sizeof(F) * R * stride);
        for (int64_t i = 0; i < p; i++) {
            const F* row = L + i * p;
            V sum[R] = {};
            int64_t end = wide(i);
            for (int64_t c = 0; c < end; c += LANES) {
                V l = *(const Unaligned*)(row + c);
                UNROLL for (int r = 0; r < R; r++) sum[r] += l * *(const V*)(x + r * stride + c);
            }
            UNROLL for (int r = 0; r < R; r++) {
                F rest = b[r * p + i] - sum_of(sum[r]);
                for (int64_t c = end; c < i; c++) rest -= row[c] * x[r * stride + c];
                x[r * stride + i] = rest / row[i];
            }
        }
        for (int64_t i = p - 1; i >= 0; i--) {
            const F* row = L + i * p;
            F solved[R];
            UNROLL for (int r = 0; r < R; r++)
                solved[r] = b[r * p + i] = x[r * stride + i] / row[i];
            int64_t end = wide(i);
            for (int64_t c = 0; c < end; c += LANES) {
                V l = *(const Unaligned*)(row + c);
                UNROLL for (int r = 0; r < R; r++) *(V*)(x + r * stride + c) -= l * solved[r];
            }
            for (int64_t c = end; c < i; c++)
                for (int r = 0; r < R; r++) x[r * stride + c] -= row[c] * solved[r];
        }
    }
};

}  // namespace
}  // namespace SKMAX_SET

#define SKMAX_DESCENT(name)                                                   \
    SKMAX_EXPORT(name)(const Vectors* vectors) {                              \
        using namespace SKMAX_SET;                                            \
        if (vectors->is_double) return Descent<double>(*vectors).name();      \
        return Descent<float>(*vectors).name();                               \
    }
SKMAX_DESCENT(state)
SKMAX_DESCENT(gradient)
SKMAX_DESCENT(centered)
SKMAX_DESCENT(bounds)
SKMAX_DESCENT(remember)
SKMAX_DESCENT(rest)
SKMAX_DESCENT(products)
SKMAX_DESCENT(combined)

SKMAX_EXPORT(solve)(const Vectors* vectors) {
    using namespace SKMAX_SET;
    if (vectors->is_double) return Triangles<Twofold>(*vectors).solve();
    return Triangles<Single>(*vectors).solve();
}
