// Newton's method for a stack of models that share few features: part of core.cpp. What it does, and
// in which letters, is told in `skmax/solvers/newton.py`. All arrays over rows have `padded` of them,
// of which those beyond n weigh nothing, and are all double.

// What is asked for. `skmax/kernels/newton.py` has the same fields in the same order.
struct Models {
    int64_t first, last;            // which models
    int64_t k, r, p, n, padded;     // classes, contrasts, features and the intercept, rows
    int64_t stride;                 // from one row of Z to the next, in values: not of X, zero from p on
    int64_t few_trials, most_trials, r_there;  // r_there: of the Hessian that is asked for
    double flat, rounding, longer, inside, one;
    const double* Z;                // (n, stride): rows of p values, or of X, which has one less:
    const double *mean, *inverse;   // (p - 1), what these are less, and times, before the last, `one`
    const double *basis, *offset;   // (m, k, r), (m, k)
    const double *target, *weight, *score;          // (1 or m, k, padded), (1 or m, padded)
    int64_t of_target, of_weight, of_score;         // from those of a model to the next: 0 if all share
    const int64_t* label;           // (padded)
    const double* penalty;          // (m, r, p)
    double *V, *U, *P;              // (m, r, p), (m, r, padded), (m, k, padded)
    double *value, *loss, *accuracy;  // (m)
    double *gradient, *of_loss;       // (m, r, p)
    const double *step, *promised;    // (m, r, p), (m)
    int64_t* found;                   // (m)
    double *entropy, *foreseen;       // (m), (m, r, p); or null
    double* hessian;  // (m, r_there p, r_there p), of which the upper triangle is written
};

namespace SKMAX_SET {
namespace {

// Where a convex function of a length is flat, by secants of its slope within a bracket.
struct Line {
    double longer, inside, slope;
    double at = 1, last = 0, low = 0, high = INFINITY;
    void turn(double here) {
        double change = here - slope, secant;
        (here < 0 ? low : high) = at;  // or no number
        secant = change > 0 && change < INFINITY ? at - here * (at - last) / change : low;
        double width = (high < longer * at ? high : longer * at) - low;
        double least = low + inside * width, most = low + (1 - inside) * width;
        last = at, slope = here;
        at = secant < least ? least : secant > most ? most : secant;
    }
};

// Whether rows weigh nothing: a fold holds them out.
inline bool all_zero(const double* weights, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (weights[i] != 0) return false;
    return true;
}

// Hessians: for each pair of contrasts, sums of products of two features over rows, times weights. Of
// few features, all products are made once for all pairs, and the sums are a product of matrices.
template <class T>
struct Hessian : Kernel<T> {
    typedef Kernel<T> Base;
    typedef typename T::F F;
    typedef typename T::V V;
    using Base::arena, Base::LANES, Base::rows, Base::stride, Base::tile;
    // Bytes of the rows of a tile, which all pairs go over, and of a part of it, which is near while
    // the sums of a pair are.
    static constexpr int64_t TILE = 1 << 18, PART = 1 << 14;
    // So few features are few, if there are so many pairs. 1,000 x 20 with 20 classes took 5 ms
    // instead of 12 for four Hessians.
    static constexpr int64_t FEW = 32, PAIRS = 3;
    // What is nothing beside 1, of features and of weights: products must not lose their precision,
    // which takes a hundred times as long.
    static constexpr double NO_VALUE = sizeof(F) == 4 ? 1e-10 : 0, NO_WEIGHT = NO_VALUE * 1e-15;

    const Models& of;
    const int64_t n_pairs;
    const bool by_products;
    int64_t part, width;        // of rows, and of the sums of a pair
    F *Y, *Q, *sums, *weights;  // (rows, stride), (part, stride), (n_pairs, width), (n_pairs, rows)
    double* shares;             // (r_there, rows)
    const F** places;

    Hessian(const Models& models, const Job& job)
        : Base(job, 1, true),
          of(models),
          n_pairs(models.r_there * (models.r_there + 1) / 2),
          by_products(models.p <= FEW && n_pairs >= PAIRS) {
        if (by_products) this->d = stride = rounded_up(of.p * (of.p + 1) / 2, LANES);
        width = by_products ? stride : of.p * stride;
        int64_t fits = TILE / (most(stride, n_pairs) * sizeof(F)) / GROUP * GROUP;
        rows = tile = most(GROUP, least(fits, of.padded));
        part = most(GROUP, PART / (stride * sizeof(F)) / GROUP * GROUP);
    }
    bool allocate() {
        for (int round = 0; round < 2; round++) {
            Y = arena.template take<F>(rows * stride);
            Q = arena.template take<F>(by_products ? of.p : part * stride);
            sums = arena.template take<F>(n_pairs * width);
            weights = arena.template take<F>(n_pairs * rows);
            shares = arena.template take<double>(of.r_there * rows);
            places = arena.template take<const F*>(rows);
            if (!round && !arena.allocate()) return false;
        }
        memset(Y, 0, sizeof(F) * rows * stride);
        for (int64_t i = 0; i < rows; i++) places[i] = Y + i * stride;
        return true;
    }

    int hessians() {
        if (!allocate()) return 1;
        for (int64_t j = of.first; j < of.last; j++) {
            bool begun = false;
            for (int64_t first = 0; first < of.n; first += rows) {
                int64_t count = least(rows, of.n - first);
                if (all_zero(of.weight + j * of.of_weight + first, count)) continue;
                for (int64_t i = 0; i < count; i++) read_row(of.Z + (first + i) * of.stride, i);
                weigh(j, first);
                if (by_products) {
                    this->backward(places, count, weights, n_pairs, sums, begun);
                } else {
                    for (int64_t pair = 0; pair < n_pairs; pair++)
                        for (int64_t i = 0; i < count; i += part)
                            add(i, least(part, count - i), pair, begun || i > 0);
                }
                begun = true;
            }
            if (!begun) memset(sums, 0, sizeof(F) * n_pairs * width);
            write(j);
        }
        return 0;
    }
    void read_row(const double* z, int64_t i) {
        F* y = by_products ? Q : Y + i * stride;
        const double *mean = of.mean, *inverse = of.inverse;
        const int64_t d = of.p - 1;
        if (mean) {
            for (int64_t f = 0; f < d; f++) y[f] = not_tiny((z[f] - mean[f]) * inverse[f], NO_VALUE);
            y[d] = (F)of.one;
        } else {
            for (int64_t f = 0; f <= d; f++) y[f] = not_tiny(z[f], NO_VALUE);
        }
        if (!by_products) return;
        F* to = Y + i * stride;
        for (int64_t f = 0; f < of.p; to += of.p - f, f++)
            for (int64_t g = f; g < of.p; g++) to[g - f] = y[f] * y[g];
    }

    // Second derivatives of the losses of rows by pairs of contrasts a <= b. All classes that are in
    // the first have the same part in the second.
    void weigh(int64_t j, int64_t first) {
        const double *B = of.basis + j * of.k * of.r, *P = of.P + j * of.k * of.padded + first;
        const double* w = of.weight + j * of.of_weight + first;
        const int64_t count = least(rows, of.n - first);
        memset(shares, 0, sizeof(double) * of.r_there * rows);
        for (int64_t a = 0; a < of.r_there; a++)
            for (int64_t c = 0; c < of.k; c++) {
                double factor = B[c * of.r + a];
                if (factor == 0) continue;
                for (int64_t i = 0; i < count; i++)
                    shares[a * rows + i] += factor * P[c * of.padded + i];
            }
        F* to = weights;
        for (int64_t a = 0; a < of.r_there; a++)
            for (int64_t b = a; b < of.r_there; b++, to += rows) {
                const double *x = shares + a * rows, *y = shares + b * rows;
                if (a < b) {
                    double common = 0;
                    for (int64_t c = 0; c < of.k && common == 0; c++)
                        if (B[c * of.r + a] != 0) common = B[c * of.r + b];
                    for (int64_t i = 0; i < count; i++)
                        to[i] = not_tiny(w[i] * x[i] * (common - y[i]), NO_WEIGHT);
                    continue;
                }
                for (int64_t i = 0; i < count; i++) {
                    double square = 0;
                    for (int64_t c = 0; c < of.k; c++)
                        square += B[c * of.r + a] * B[c * of.r + a] * P[c * of.padded + i];
                    to[i] = not_tiny(w[i] * (square - x[i] * x[i]), NO_WEIGHT);
                }
            }
    }
    static F not_tiny(double value, double least) { return fabs(value) < least ? 0 : (F)value; }

    // To the sums of a pair, at least of the upper triangle, those of some rows.
    void add(int64_t first, int64_t count, int64_t pair, bool add) {
        const F *y = Y + first * stride, *weight = weights + pair * rows + first;
        F* to = sums + pair * width;
        for (int64_t i = 0; i < count; i++)
            for (int64_t f = 0; f < stride; f += LANES)
                this->store(Q + i * stride + f, this->load(y + i * stride + f) * weight[i]);
        for (int64_t i = 0; i < of.p; i += MOST)
            for (int64_t j = i / LANES * LANES; j < of.p; j += VECTORS * LANES)
                switch (least(VECTORS, (of.p - j + LANES - 1) / LANES)) {
                    case 1: square_of<1>(y, i, j, count, to, add); break;
                    case 2: square_of<2>(y, i, j, count, to, add); break;
                    case 3: square_of<VECTORS - 1>(y, i, j, count, to, add); break;
                    case 4: square_of<VECTORS>(y, i, j, count, to, add); break;
                }
    }
    template <int N>
    void square_of(const F* y, int64_t i, int64_t j, int64_t count, F* to, bool add) {
        switch (least(MOST, of.p - i)) {
            case 1: return square<1, N>(y, i, j, count, to, add);
            case 2: return square<2, N>(y, i, j, count, to, add);
            case 3: return square<3, N>(y, i, j, count, to, add);
            case 4: return square<4, N>(y, i, j, count, to, add);
            case 5: return square<5, N>(y, i, j, count, to, add);
            case 6: return square<6, N>(y, i, j, count, to, add);
        }
    }
    template <int C, int N>
    void square(const F* y, int64_t i, int64_t j, int64_t count, F* to, bool add) {
        V sum[C][N] = {};
        for (int64_t row = 0; row < count * stride; row += stride)
            Base::template add_row<C, N>(Q + row + j, y + row + i, 1, sum);
        UNROLL for (int c = 0; c < C; c++) UNROLL for (int v = 0; v < N; v++) {
            F* at = to + (i + c) * stride + j + v * LANES;
            this->store(at, add ? this->load(at) + sum[c][v] : sum[c][v]);
        }
    }

    void write(int64_t j) {
        const int64_t p = of.p, q = of.r_there * p;
        const F* block = sums;
        for (int64_t a = 0; a < of.r_there; a++)
            for (int64_t b = a; b < of.r_there; b++, block += width) {
                double* to = of.hessian + j * q * q + a * p * q + b * p;
                const F* row = block;  // of the upper triangle
                for (int64_t f = 0; f < p; row += by_products ? p - f : stride, f++)
                    for (int64_t g = f; g < p; g++) {
                        double sum = row[by_products ? g - f : g];
                        to[f * q + g] = sum;
                        if (a < b) to[g * q + f] = sum;
                    }
            }
    }
};

struct Newton : Kernel<Twofold> {
    typedef I UnalignedI __attribute__((aligned(8), may_alias));
    const Models& of;
    double *change, *slopes, *weights, *sums;  // (r, padded), twice, and (r, stride), twice
    double* totals;                            // (r)
    double* last;                              // (n_last, stride): copies of rows
    V *of_contrasts, *of_classes;              // of a few rows
    const double** places;
    // Vectors go beyond the end of a row of X, where weights are zero: that must be another row.
    int64_t n_last = 0;

    Newton(const Models& models, const Job& job) : Kernel<Twofold>(job, 1, true), of(models) {
        tile = of.padded;
        if (of.mean) n_last = least(of.n, stride / of.stride + 1);
    }
    bool allocate() {
        for (int round = 0; round < 2; round++) {
            change = arena.take<double>(of.r * of.padded);
            slopes = arena.take<double>(of.r * of.padded);
            weights = arena.take<double>(of.r * stride);
            sums = arena.take<double>(of.r * stride);
            totals = arena.take<double>(of.r);
            last = arena.take<double>(n_last * stride);
            of_contrasts = arena.take<V>(of.r);
            of_classes = arena.take<V>(of.k);
            places = arena.take<const double*>(of.padded);
            if (!round && !arena.allocate()) return false;
        }
        memset(change, 0, sizeof(double) * of.r * of.padded);  // of rows that weigh nothing
        memset(weights, 0, sizeof(double) * of.r * stride);
        memset(last, 0, sizeof(double) * n_last * stride);
        for (int64_t i = 0; i < of.padded; i++) {
            places[i] = i < of.n ? of.Z + i * of.stride : places[0];
            if (i < of.n - n_last || i >= of.n) continue;
            double* copy = last + (i - of.n + n_last) * stride;
            memcpy(copy, places[i], sizeof(double) * (of.p - 1));
            places[i] = copy;
        }
        return true;
    }
    static void store_any(double* p, V v) { *(Unaligned*)p = v; }
    const double* basis(int64_t j) const { return of.basis + j * of.k * of.r; }
    const double* target(int64_t j) const { return of.target + j * of.of_target; }
    const double* weight(int64_t j) const { return of.weight + j * of.of_weight; }
    const double* score(int64_t j) const { return of.score + j * of.of_score; }
    double* probability(int64_t j) const { return of.P + j * of.k * of.padded; }
    double* logit(int64_t j) const { return of.U + j * of.r * of.padded; }

    // Products with the rows, of which a tile stays in the cache

    template <class Do>
    void in_tiles(int64_t j, Do act) {
        int64_t rows = most(GROUP, TILE / (stride * sizeof(double)) / GROUP * GROUP);
        for (int64_t first = 0; first < of.n; first += rows) {
            int64_t count = least(rows, of.n - first);
            bool rest = all_zero(weight(j) + first, count) && all_zero(score(j) + first, count);
            if (!rest) act(first, count);
        }
    }
    void to_rows(int64_t j, const double* given, double* out) {
        const int64_t d = of.p - 1;
        for (int64_t a = 0; a < of.r; a++, given += of.p) {
            double* weight = weights + a * stride;
            if (!of.mean) {
                memcpy(weight, given, sizeof(double) * of.p);
                continue;
            }
            totals[a] = of.one * given[d];  // what all rows have
            for (int64_t f = 0; f < d; f++)
                weight[f] = given[f] * of.inverse[f], totals[a] -= weight[f] * of.mean[f];
        }
        in_tiles(j, [&](int64_t first, int64_t count) {
            forward(places + first, count, weights, of.r, out + first);
            for (int64_t a = 0; of.mean && a < of.r; a++)
                for (int64_t i = first; i < first + count; i++) out[a * of.padded + i] += totals[a];
        });
    }
    void from_rows(int64_t j, double* out) {  // of the slopes
        const int64_t d = of.p - 1;
        bool begun = false;
        memset(sums, 0, sizeof(double) * of.r * stride);
        for (int64_t a = 0; a < of.r; a++) totals[a] = 0;
        in_tiles(j, [&](int64_t first, int64_t count) {
            backward(places + first, count, slopes + first, of.r, sums, begun);
            for (int64_t a = 0; of.mean && a < of.r; a++)
                for (int64_t i = first; i < first + count; i++) totals[a] += slopes[a * of.padded + i];
            begun = true;
        });
        for (int64_t a = 0; a < of.r; a++, out += of.p) {
            const double* sum = sums + a * stride;
            if (!of.mean) {
                memcpy(out, sum, sizeof(double) * of.p);
                continue;
            }
            for (int64_t f = 0; f < d; f++)
                out[f] = (sum[f] - totals[a] * of.mean[f]) * of.inverse[f];
            out[d] = of.one * totals[a];
        }
    }

    template <class Do>
    void by_lanes(int64_t j, Do act) {
        in_tiles(j, [&](int64_t first, int64_t count) {
            for (int64_t i = first; i < first + count; i += LANES) act(i);
        });
    }

    // What contrasts make of what some rows have of classes, less the targets.
    void slopes_of(int64_t j, int64_t i) {
        const double* B = basis(j);
        V w = load_any(weight(j) + i);
        for (int64_t c = 0; c < of.k; c++) of_classes[c] -= load_any(target(j) + c * of.padded + i);
        for (int64_t a = 0; a < of.r; a++) {
            V sum = {};
            for (int64_t c = 0; c < of.k; c++) sum += B[c * of.r + a] * of_classes[c];
            store_any(slopes + a * of.padded + i, sum * w);
        }
    }

    // The loss at a length of the change from U, and what belongs to it; the slope by the length.
    double evaluate(int64_t j, double length) {
        const double *B = basis(j), *offset = of.offset + j * of.k, *U = logit(j);
        double* P = probability(j);
        V loss = {}, right = {}, along = {};
        by_lanes(j, [&](int64_t i) {
            for (int64_t a = 0; a < of.r; a++) {
                of_contrasts[a] = load_any(U + a * of.padded + i);
                if (length != 0) of_contrasts[a] -= length * load_any(change + a * of.padded + i);
            }
            V top = splat(-INFINITY), others = {}, linear = {}, w = load_any(weight(j) + i);
            I label = {};
            for (int64_t c = 0; c < of.k; c++) {
                V z = splat(offset[c]);
                for (int64_t a = 0; a < of.r; a++) z += B[c * of.r + a] * of_contrasts[a];
                I above = z > top;
                top = above ? z : top;
                label = above ? I{} + (Whole)c : label;
                of_classes[c] = z;
            }
            for (int64_t c = 0; c < of.k; c++) {
                V z = below(of_classes[c], top);
                linear += load_any(target(j) + c * of.padded + i) * z;
                of_classes[c] = exponential(z);
                others += label == I{} + (Whole)c ? V{} : of_classes[c];
            }
            V sum = 1 + others, share = 1 / sum;
            for (int64_t c = 0; c < of.k; c++) {
                of_classes[c] *= share;
                store_any(P + c * of.padded + i, of_classes[c]);
            }
            // What a sum near 1 has lost of the others, its logarithm gets back.
            loss += w * (Twofold::logarithm(sum) + (others - (sum - 1)) * share - linear);
            I same = label == *(const UnalignedI*)(of.label + i);
            right += same ? load_any(score(j) + i) : V{};
            slopes_of(j, i);
            for (int64_t a = 0; length != 0 && a < of.r; a++)
                along += load_any(slopes + a * of.padded + i) * load_any(change + a * of.padded + i);
        });
        of.loss[j] = sum_of(loss), of.accuracy[j] = sum_of(right);
        return -sum_of(along);
    }
    // The objective at a length of the step from V; its slope by the length.
    double objective(int64_t j, double length) {
        const int64_t size = of.r * of.p;
        const double *from = of.V + j * size, *penalty = of.penalty + j * size;
        double slope = evaluate(j, length), ridge = 0;
        for (int64_t i = 0; i < size; i++) {
            double step = length != 0 ? of.step[j * size + i] : 0, v = from[i] - length * step;
            ridge += penalty[i] * v * v, slope -= penalty[i] * v * step;
        }
        of.value[j] = of.loss[j] + ridge / 2;
        return slope;
    }
    void turn(int64_t j) {
        const int64_t size = of.r * of.p;
        from_rows(j, of.of_loss + j * size);
        for (int64_t i = j * size; i < (j + 1) * size; i++)
            of.gradient[i] = of.of_loss[i] + of.penalty[i] * of.V[i];
    }

    int stay() {
        if (!allocate()) return 1;
        for (int64_t j = of.first; j < of.last; j++) {
            to_rows(j, of.V + j * of.r * of.p, logit(j));
            objective(j, 0);
            turn(j);
        }
        return 0;
    }
    int go() {
        if (!allocate()) return 1;
        for (int64_t j = of.first; j < of.last; j++) {
            to_rows(j, of.step + j * of.r * of.p, change);
            if (of.entropy) foresee(j);
            of.found[j] = search(j);
            turn(j);
        }
        return 0;
    }
    // Go as far as is good; whether there is such a length.
    bool search(int64_t j) {
        const double promised = of.promised[j], enough = of.value[j] * (1 + of.rounding);
        Line line{of.longer, of.inside, -promised};
        for (int64_t trial = 0; trial < of.most_trials; trial++) {
            double slope = objective(j, line.at);
            bool done = of.value[j] <= enough;
            if (trial < of.few_trials) done &= fabs(slope) <= of.flat * promised;
            if (done) {
                double *V = of.V + j * of.r * of.p, *U = logit(j);
                const double* step = of.step + j * of.r * of.p;
                for (int64_t i = 0; i < of.r * of.p; i++) V[i] -= line.at * step[i];
                for (int64_t i = 0; i < of.r * of.padded; i++) U[i] -= line.at * change[i];
                return true;
            }
            line.turn(slope);
        }
        objective(j, 0);
        return false;
    }
    // The entropy of the probabilities that a whole step makes, linearised, and the slope there.
    void foresee(int64_t j) {
        const double *B = basis(j), *P = probability(j);
        V entropy = {};
        by_lanes(j, [&](int64_t i) {
            V mean = {}, sum = {};
            for (int64_t a = 0; a < of.r; a++)
                of_contrasts[a] = -load_any(change + a * of.padded + i);
            for (int64_t c = 0; c < of.k; c++) {
                V z = {};
                for (int64_t a = 0; a < of.r; a++) z += B[c * of.r + a] * of_contrasts[a];
                mean += load_any(P + c * of.padded + i) * z;
                of_classes[c] = z;
            }
            for (int64_t c = 0; c < of.k; c++) {
                V q = load_any(P + c * of.padded + i) * (1 + of_classes[c] - mean);
                of_classes[c] = q > 0 ? q : V{};
                sum += of_classes[c];
            }
            V of_row = {};
            for (int64_t c = 0; c < of.k; c++) {
                V q = of_classes[c] /= sum;
                of_row += q * Twofold::logarithm(1 / (q < 1e-300 ? splat(1e-300) : q));
            }
            entropy += of_row * load_any(weight(j) + i);
            slopes_of(j, i);
        });
        of.entropy[j] = sum_of(entropy);
        from_rows(j, of.foreseen + j * of.r * of.p);
    }
};

// What the rows are to `Kernel`.
template <class T>
inline Job rows_of(const Models& models) {
    constexpr int64_t VALUES = 64 / sizeof(typename T::F);
    Job job = {};
    job.k = job.m = job.k_coef = 1;
    job.d = job.stride = ((models.p + VALUES - 1) / VALUES | 1) * VALUES;
    return job;
}

}  // namespace
}  // namespace SKMAX_SET

#define SKMAX_NEWTON(name, Class, T, call)                                      \
    SKMAX_EXPORT(name)(const Models* models) {                                  \
        using namespace SKMAX_SET;                                              \
        Job job = rows_of<T>(*models);                                          \
        return Class(*models, job).call;                                        \
    }
SKMAX_NEWTON(newton_stay, Newton, Twofold, stay())
SKMAX_NEWTON(newton_go, Newton, Twofold, go())
SKMAX_NEWTON(newton_hessian, Hessian<Twofold>, Twofold, hessians())
SKMAX_NEWTON(newton_hessian_in_single, Hessian<Single>, Single, hessians())
