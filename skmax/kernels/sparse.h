// Sparse rows (CSR) on the CPU: the part of core.cpp that knows them.
//
// Rows of weights are those of a feature, (d, width): a value of X meets all classes (of all models)
// at once. A width is whole vectors of 16 bytes, or 1 where two classes are told apart by one row.
// Logits come row by row, and are transposed for the softmax, and back.

// Vectors that may begin at any multiple of 16 bytes. Passed as types, they would lose that.
template <class F>
struct Loose;
template <>
struct Loose<float> {
    typedef Float16B Quad;
    struct Short {
        typedef Quad U;
    };
    struct Whole {
        typedef SKMAX_VECTOR(Float, SKMAX_VECTOR_BYTES) U __attribute__((aligned(16)));
    };
};
template <>
struct Loose<double> {
    typedef Double16B Quad;
    struct Short {
        typedef Quad U;
    };
    struct Whole {
        typedef SKMAX_VECTOR(Double, SKMAX_VECTOR_BYTES) U __attribute__((aligned(16)));
    };
};
inline void transpose(Float16B (&q)[4]) {
    Float16B a = q[0], b = q[1], c = q[2], d = q[3];
    UNROLL for (int i = 0; i < 4; i++) q[i] = Float16B{a[i], b[i], c[i], d[i]};
}
inline void transpose(Double16B (&q)[2]) {
    Double16B a = q[0], b = q[1];
    UNROLL for (int i = 0; i < 2; i++) q[i] = Double16B{a[i], b[i]};
}

template <class T, class Index>
struct Sparse : Kernel<T> {
    typedef Kernel<T> Base;
    using typename Base::F;
    using typename Base::V;
    using typename Base::Whole;
    using Base::active, Base::all_rows, Base::by_intercept, Base::job, Base::k, Base::k_x,
        Base::LANES, Base::logits, Base::offset, Base::rows, Base::stride, Base::tile, Base::X;
    typedef typename Loose<F>::Quad Quad;
    typedef typename Loose<F>::Short Short;
    typedef typename Loose<F>::Whole Vector;
    static constexpr int QUAD = 16 / sizeof(F);
    // Vectors of a row of weights whose sums are in registers at once.
    static constexpr int BLOCK = 8;
    // Values of a feature whose gradients are summed in the precision of single weights.
    static constexpr int64_t TERMS = 512;

    struct Row {
        const Index* at;
        const F* x;
        int64_t size;
    };

    Arena memory;
    const Index *indices, *starts;
    F* values;           // of a row, where those of X are of another type
    F* sums;             // (d, width): of gradients, until they are added to `by_coef`
    uint16_t* terms;     // of each feature, how many gradients have been summed
    int64_t n_features;

    explicit Sparse(const Job& j) : Base(j, j.n, j.d < j.m * j.k) {
        indices = (const Index*)job.indices, starts = (const Index*)job.starts;
        n_features = job.n_features;
    }

    int64_t row_of(int64_t i) const { return job.x_rows ? job.x_rows[i] : i; }
    static bool is_exact(const Job& job) { return job.type == (sizeof(F) == 4 ? 9 : 10); }

    bool allocate(bool with_gradient) {
        if (!Base::allocate(false)) return false;
        int64_t widest = 0;
        for (int64_t i = 0; i < job.n && !is_exact(job); i++) {
            int64_t row = row_of(i);
            widest = most(widest, starts[row + 1] - starts[row]);
        }
        bool summed = with_gradient && stride > 1;
        for (int round = 0; round < 2; round++) {
            values = memory.take<F>(widest);
            sums = memory.take<F>(summed ? n_features * stride : 0);
            terms = memory.take<uint16_t>(summed ? n_features : 0);
            if (!round && !memory.allocate()) return false;
        }
        for (int64_t r = 0; r < tile; r++) all_rows[r] = X + r * stride;
        if (!summed) return true;
        memset(sums, 0, sizeof(F) * n_features * stride);
        memset(terms, 0, sizeof(uint16_t) * n_features);
        return true;
    }

    Row row(int64_t i) {
        int64_t first = starts[row_of(i)], size = starts[row_of(i) + 1] - first;
        const char* x = job.X + first * job.value_bytes;
        if (is_exact(job)) return {indices + first, (const F*)x, size};
        Base::to_floats(&x, 1, job.value_bytes, size, nullptr, values, 0);
        return {indices + first, values, size};
    }

    // Products of a row of X with rows of weights, and of its transpose with residuals. The last of
    // N vectors ends where the block does: it may overlap the one before.

    template <class L, int N>
    static int64_t place(int64_t first, int64_t last, int v) {
        constexpr int64_t SIZE = sizeof(typename L::U) / sizeof(F);
        return v < N - 1 ? first + v * SIZE : last - SIZE;
    }
    template <class L, int N, class At>
    static void gather(const At* at, const F* x, int64_t size, const F* w, int64_t stride,
                       int64_t first, int64_t last, F* out) {
        typedef typename L::U U;
        U sum[N] = {};
        for (int64_t i = 0; i < size; i++) {
            const F* weights = w + (int64_t)at[i] * stride;
            U value = U{} + x[i];
            UNROLL for (int v = 0; v < N; v++)
                sum[v] += value * *(const U*)(weights + place<L, N>(first, last, v));
        }
        UNROLL for (int v = 0; v < N; v++) *(U*)(out + place<L, N>(first, last, v)) = sum[v];
    }
    template <class L, int N, class At>
    static void scatter(const At* at, const F* x, int64_t size, const F* z, int64_t stride,
                        int64_t first, int64_t last, F* g) {
        typedef typename L::U U;
        U residual[N];
        UNROLL for (int v = 0; v < N; v++)
            residual[v] = *(const U*)(z + place<L, N>(first, last, v));
        for (int64_t i = 0; i < size; i++) {
            F* sums = g + (int64_t)at[i] * stride;
            U value = U{} + x[i], sum[N];
            UNROLL for (int v = 0; v < N; v++)
                sum[v] = *(const U*)(sums + place<L, N>(first, last, v)) + value * residual[v];
            UNROLL for (int v = 0; v < N; v++) *(U*)(sums + place<L, N>(first, last, v)) = sum[v];
        }
    }
#define SKMAX_BLOCK(U, N) \
    case N: \
        if constexpr (forward) gather<U, N>(at, x, size, from, stride, first, last, to); \
        else scatter<U, N>(at, x, size, from, stride, first, last, to); \
        break;
    template <bool forward, class At>
    static void blocks(const At* at, const F* x, int64_t size, const F* from, int64_t stride, F* to) {
        if (stride < LANES) {
            int64_t first = 0, last = stride;
            switch (stride / QUAD) {
                SKMAX_BLOCK(Short, 1) SKMAX_BLOCK(Short, 2) SKMAX_BLOCK(Short, 3)
            }
            return;
        }
        int64_t n_vectors = (stride + LANES - 1) / LANES, n_blocks = (n_vectors + BLOCK - 1) / BLOCK;
        for (int64_t b = 0; b < n_blocks; b++) {
            int64_t v = n_vectors * b / n_blocks, next = n_vectors * (b + 1) / n_blocks;
            int64_t first = v * LANES, last = least(next * LANES, stride);
            switch (next - v) {
                SKMAX_BLOCK(Vector, 1) SKMAX_BLOCK(Vector, 2) SKMAX_BLOCK(Vector, 3)
                SKMAX_BLOCK(Vector, 4) SKMAX_BLOCK(Vector, 5) SKMAX_BLOCK(Vector, 6)
                SKMAX_BLOCK(Vector, 7) SKMAX_BLOCK(Vector, 8)
            }
        }
    }
#undef SKMAX_BLOCK

    template <class At>
    static F sum_of_products(const At* at, const F* x, int64_t size, const F* w) {
        F even = 0, odd = 0;
        int64_t i = 0;
        for (; i + 1 < size; i += 2) {
            even += x[i] * w[at[i]], odd += x[i + 1] * w[at[i + 1]];
            asm volatile("");  // loads one by one are faster than vectors that are gathered
        }
        return i < size ? even + odd + x[i] * w[at[i]] : even + odd;
    }
    void forward(const Row& row, const F* w, F* out) const {
        if (stride > 1) blocks<true>(row.at, row.x, row.size, w, stride, out);
        else *out = sum_of_products(row.at, row.x, row.size, w);
    }

    // Logits of model j of some rows become columns, and back.
    void to_columns(int64_t j, const F* const* x, int64_t count) {
        F* z = logits + (k - k_x) * tile;
        if (k_x < k) memset(logits, 0, sizeof(F) * rounded_up(count, GROUP));
        for (int64_t r = 0; r < count; r += QUAD) {
            int64_t c = 0;
            if (r + QUAD <= count)
                for (; c + QUAD <= k_x; c += QUAD) {
                    Quad q[QUAD];
                    UNROLL for (int i = 0; i < QUAD; i++) q[i] = loose(x[r + i] + j * k_x + c);
                    transpose(q);
                    UNROLL for (int i = 0; i < QUAD; i++) store(z + (c + i) * tile + r, q[i]);
                }
            for (; c < k_x; c++)
                for (int64_t i = r; i < least(r + QUAD, count); i++)
                    z[c * tile + i] = x[i][j * k_x + c];
        }
        for (int64_t c = 0; c < k_x; c++)
            for (int64_t r = count; r < rounded_up(count, GROUP); r++) z[c * tile + r] = 0;
    }
    void to_rows(int64_t j, const F* const* x, int64_t count) {
        const F* z = logits + (k - k_x) * tile;
        if (count < rows)
            for (int64_t r = 0; r < rows; r++)
                memset(X + r * stride + j * k_x, 0, sizeof(F) * k_x);
        for (int64_t r = 0; r < count; r += QUAD) {
            int64_t c = 0;
            if (r + QUAD <= count)
                for (; c + QUAD <= k_x; c += QUAD) {
                    Quad q[QUAD];
                    UNROLL for (int i = 0; i < QUAD; i++) q[i] = loose(z + (c + i) * tile + r);
                    transpose(q);
                    UNROLL for (int i = 0; i < QUAD; i++) store((F*)x[r + i] + j * k_x + c, q[i]);
                }
            for (; c < k_x; c++)
                for (int64_t i = r; i < least(r + QUAD, count); i++)
                    ((F*)x[i])[j * k_x + c] = z[c * tile + i];
        }
    }
    static Quad loose(const F* p) {
        Quad q;
        memcpy(&q, p, sizeof q);
        return q;
    }
    static void store(F* p, Quad q) { memcpy(p, &q, sizeof q); }

    // Full passes

    // Weights (m, k, d) as (d, width); of two classes, the second less the first.
    int lay_out() {
        const int64_t d = n_features, width = stride, used = job.m * k_x;
        const F* coef = (const F*)job.coef;
        F* out = (F*)job.out;
        for (int64_t i = 0; i < d; i += GROUP)
            for (int64_t c = 0; c < width; c++)
                for (int64_t f = i; f < least(i + GROUP, d); f++)
                    out[f * width + c] = c >= used ? 0
                                         : k_x == k ? coef[c * d + f]
                                         : coef[(2 * c + 1) * d + f] - coef[2 * c * d + f];
        return 0;
    }

    int pass() {
        const bool gradient = job.by_coef;
        if (!Base::to_floats || !allocate(gradient)) return 1;
        memcpy(offset, job.intercept, sizeof(F) * job.m * k);
        for (int64_t first = 0; first < job.n; first += tile) {
            rows = least(tile, job.n - first);
            for (int64_t r = 0; r < rows; r++)
                forward(row(first + r), (const F*)job.coef, X + r * stride);
            Base::read_targets(first);
            for (int64_t j = 0; j < job.m; j++) {
                const F** x;
                const Whole* of;
                int64_t count = Base::choose(j, first, x, of);
                to_columns(j, x, count);
                Base::residuals(j, count, of, offset + j * k, gradient ? by_intercept + j * k : 0);
                if (gradient) to_rows(j, x, count);
            }
            for (int64_t r = 0; r < rows && gradient; r++) backward(row(first + r), X + r * stride);
        }
        if (gradient) finish_gradient();
        return 0;
    }
    void backward(const Row& row, const F* z) {
        if (stride == 1) {
            double* total = job.by_coef + n_features;
            for (int64_t i = 0; i < row.size; i++) total[row.at[i]] += (double)row.x[i] * *z;
            return;
        }
        blocks<false>(row.at, row.x, row.size, z, stride, sums);
        if (sizeof(F) == sizeof(double)) return;
        for (int64_t i = 0; i < row.size; i++)
            if (++terms[row.at[i]] == TERMS) add_sums(row.at[i], row.at[i] + 1);
    }
    // Add what was summed for some of the features to their gradient, and begin anew.
    void add_sums(int64_t first, int64_t last) {
        const int64_t d = n_features;
        for (int64_t c = 0; c < job.m * k_x; c++) {
            double* total = job.by_coef + (k_x < k ? 2 * c : c) * d;
            for (int64_t f = first; f < last; f++) {
                double sum = sums[f * stride + c];
                if (k_x < k) total[f] -= sum, total[d + f] += sum;
                else total[f] += sum;
            }
        }
        for (int64_t f = first; f < last; f++) terms[f] = 0;
        memset(sums + first * stride, 0, sizeof(F) * stride * (last - first));
    }
    void finish_gradient() {
        if (stride == 1)
            for (int64_t f = 0; f < n_features; f++) job.by_coef[f] = -job.by_coef[n_features + f];
        else
            for (int64_t f = 0; f < n_features; f += GROUP) add_sums(f, least(f + GROUP, n_features));
        for (int64_t at = 0; at < job.m * k; at++) job.by_intercept[at] += by_intercept[at];
    }

    // Predictions

    int predict(int64_t* all_finite) {
        if (!Base::to_floats || !allocate(false)) return 1;
        for (int64_t c = 0; c < k; c++) offset[c] = ((const F*)job.intercept)[k_x < k ? 0 : c];
        if (k_x < k) offset[0] = 0;
        for (int64_t first = 0; first < job.n; first += tile) {
            rows = least(tile, job.n - first);
            for (int64_t r = 0; r < rows; r++)
                forward(row(first + r), (const F*)job.coef, X + r * stride);
            to_columns(0, all_rows, rows);
            for (int64_t r = 0; r < rows; r += LANES)
                if (!Base::finish(logits + r, first + r, least(LANES, rows - r))) *all_finite = 0;
        }
        return 0;
    }
};

// An epoch of one model. Weights and velocities are (d, stride) while it lasts.
//
// Where features have units of which many share one, and there is no L1 penalty, a step moves the
// features of its batch alone: what steps without a gradient make of a weight and its velocity is
// linear in both, and the same for all weights of a unit. It is found once, and done to a feature
// when a batch next has it: lazily, as in Z. C. Lipton and C. Elkan, Efficient elastic net
// regularization for sparse linear models, 2015. Centring adds to all weights, in every step, the
// mean of their feature times something of its unit: the unit's drift, which is kept beside them.
template <class T, class Index>
struct SparseEpoch : Sparse<T, Index> {
    typedef Sparse<T, Index> Base;
    using typename Base::F;
    using typename Base::Quad;
    using typename Base::Row;
    using typename Base::Short;
    using typename Base::Vector;
    using typename Base::Whole;
    using Base::by_intercept, Base::is_exact, Base::job, Base::k, Base::LANES, Base::n_features,
        Base::offset, Base::QUAD, Base::row_of, Base::rows, Base::starts, Base::stride, Base::tile,
        Base::X;
    // Features whose products with means are summed in the precision of the weights.
    static constexpr int64_t TERMS = 256;

    Arena memory;
    F *coef, *velocity;
    const F *mean, *scale;  // (d,), or null
    F momentum, l2, l1;
    double *intercept, *intercept_velocity, *at_mean;  // (k,); the intercept is that at the mean
    // The features of the batch: which they are, the place of each among them, that of each value,
    // their weights now (t, stride), those less the drift, and their gradient.
    int32_t *features, *place, *local;
    F *now, *without_drift, *gradient, *by_intercept_, *none, *sum;
    int64_t t;
    char* asleep;  // whether all weights and velocities of a feature are zero

    // The units: that of each feature, 1 / its square, and the decay of weights of each.
    const int32_t* unit;
    const double* factor;
    int64_t e, length, step_;  // steps taken since all weights were up to date, and the most
    int32_t* since;            // when each feature was
    // What has become of a weight and a velocity since each step, (length + 1, 4, e): the weight
    // that they make, from the weight and from the velocity, and the velocity, likewise.
    double* response;
    // Of each unit and class, drifts, and the products of means and weights without them; how fast
    // both change; sums of squared means (e,), and of means times gradients.
    double *drift, *product, *drift_velocity, *product_velocity, *squares, *by_product;

    explicit SparseEpoch(const Job& j) : Base(j) {
        unit = job.unit, factor = job.factor, e = job.n_units;
        mean = (const F*)job.mean, scale = (const F*)job.inverse_scale;
        momentum = *(const F*)job.momentum, l2 = *(const F*)job.l2, l1 = *(const F*)job.l1;
        int64_t n_steps = (job.n + job.batch - 1) / job.batch;
        length = unit ? least(n_steps, (int64_t)sqrt(2. * n_features * k / e) + 1) : 0;
    }

    bool allocate() {
        if (!Base::allocate(false)) return false;
        int64_t largest = 0;
        for (int64_t start = 0; start < job.n; start += job.batch) {
            int64_t size = 0;
            for (int64_t i = start; i < least(start + job.batch, job.n); i++)
                size += starts[row_of(i) + 1] - starts[row_of(i)];
            largest = most(largest, size);
        }
        int64_t of_batch = least(largest, n_features) * stride, units = unit && mean ? e * k : 0;
        for (int round = 0; round < 2; round++) {
            coef = memory.take<F>(n_features * stride);
            velocity = memory.take<F>(n_features * stride);
            intercept = memory.take<double>(k);
            intercept_velocity = memory.take<double>(k);
            at_mean = memory.take<double>(k);
            features = memory.take<int32_t>(least(largest, n_features));
            place = memory.take<int32_t>(n_features);
            local = memory.take<int32_t>(largest);
            now = memory.take<F>(of_batch);
            without_drift = units ? memory.take<F>(of_batch) : now;
            gradient = memory.take<F>(of_batch);
            by_intercept_ = memory.take<F>(stride);
            none = memory.take<F>(stride);
            sum = memory.take<F>(stride);
            asleep = memory.take<char>(n_features);
            since = memory.take<int32_t>(unit ? n_features : 0);
            response = memory.take<double>(unit ? (length + 1) * 4 * e : 0);
            drift = memory.take<double>(4 * units);
            by_product = memory.take<double>(units);
            squares = memory.take<double>(units ? e : 0);
            if (!round && !memory.allocate()) return false;
        }
        return true;
    }

    int epoch() {
        if (!Base::to_floats || !allocate()) return 1;
        begin();
        const F* rates = (const F*)job.rates;
        for (int64_t start = 0, s = 0; start < job.n; start += job.batch, s++) {
            int64_t end = least(start + job.batch, job.n);
            compact(start, end);
            take();
            for (int64_t c = 0; c < k; c++) offset[c] = (F)(intercept[c] - at_mean[c]);
            differentiate(start, end);
            if (unit) step_lazily(rates[s], end - start);
            else step_all(rates[s], end - start);
            step_intercept(rates[s], end - start);
            for (int64_t i = 0; i < t; i++) place[features[i]] = -1;
        }
        finish();
        return 0;
    }

    void begin() {
        transposed((const F*)job.coef, coef), transposed((const F*)job.coef_velocity, velocity);
        for (int64_t f = 0; f < n_features; f++) place[f] = -1, asleep[f] = is_zero(f);
        for (int64_t c = 0; c < stride; c++) none[c] = by_intercept_[c] = 0;
        for (int64_t c = 0; c < k; c++) {
            intercept[c] = ((const F*)job.intercept)[c], at_mean[c] = 0;
            intercept_velocity[c] = ((const F*)job.intercept_velocity)[c];
            for (int64_t f = 0; f < n_features && mean; f++)
                at_mean[c] += (double)mean[f] * coef[f * stride + c];
            intercept[c] += at_mean[c];
        }
        if (unit) begin_lazily();
    }
    // Weights (k, d), transposed; and back.
    void transposed(const F* from, F* to) {
        for (int64_t i = 0; i < n_features; i += GROUP)
            for (int64_t c = 0; c < stride; c++)
                for (int64_t f = i; f < least(i + GROUP, n_features); f++)
                    to[f * stride + c] = c < k ? from[c * n_features + f] : 0;
    }
    void transposed_back(const F* from, F* to) {
        for (int64_t i = 0; i < n_features; i += GROUP)
            for (int64_t c = 0; c < k; c++)
                for (int64_t f = i; f < least(i + GROUP, n_features); f++)
                    to[c * n_features + f] = from[f * stride + c];
    }
    void finish() {
        if (unit) finish_lazily();
        transposed_back(coef, (F*)job.coef), transposed_back(velocity, (F*)job.coef_velocity);
        for (int64_t c = 0; c < k; c++) {
            ((F*)job.intercept)[c] = (F)(intercept[c] - at_mean[c]);
            ((F*)job.intercept_velocity)[c] = (F)intercept_velocity[c];
        }
    }

    // Which features the batch has, and where among them those of its values are.
    void compact(int64_t start, int64_t end) {
        int32_t* to = local;
        t = 0;
        for (int64_t i = start; i < end; i++)
            for (int64_t v = starts[row_of(i)]; v < starts[row_of(i) + 1]; v++) {
                int64_t f = Base::indices[v];
                if (place[f] < 0) place[f] = (int32_t)t, features[t++] = (int32_t)f;
                *to++ = place[f];
            }
    }
    // The weights of the batch's features as they are now.
    void take() {
        for (int64_t i = 0; i < t; i++) {
            int64_t f = features[i];
            const F *w = coef + f * stride, *v = velocity + f * stride;
            F *to = without_drift + i * stride, *all = now + i * stride;
            if (!unit) {
                memcpy(to, w, sizeof(F) * stride);
                continue;
            }
            const double* made = response + since[f] * 4 * e + unit[f];
            F a = (F)made[0], b = (F)made[e];
            for (int64_t c = 0; c < stride; c++) to[c] = a * w[c] + b * v[c];
            if (all == to) continue;
            const double* added = drift + unit[f] * k;
            for (int64_t c = 0; c < k; c++) all[c] = to[c] + mean[f] * (F)added[c];
            for (int64_t c = k; c < stride; c++) all[c] = 0;
        }
    }
    // Loss and gradient of the batch.
    void differentiate(int64_t start, int64_t end) {
        memset(gradient, 0, sizeof(F) * t * stride);
        const int32_t* at = local;
        for (int64_t first = start; first < end; first += tile) {
            const int32_t* again = at;
            rows = least(tile, end - first);
            for (int64_t r = 0; r < rows; r++) {
                Row row = Base::row(first + r);
                Base::template blocks<true>(at, row.x, row.size, now, stride, X + r * stride);
                at += row.size;
            }
            const F** x;
            const Whole* of;
            Base::read_targets(first);
            int64_t count = Base::choose(0, first, x, of);
            Base::to_columns(0, x, count);
            Base::residuals(0, count, of, offset, by_intercept);
            Base::to_rows(0, x, count);
            for (int64_t r = 0; r < rows; r++) {
                Row row = Base::row(first + r);
                const F* z = X + r * stride;
                Base::template blocks<false>(again, row.x, row.size, z, stride, gradient);
                again += row.size;
            }
        }
    }
    void step_intercept(F rate, int64_t size) {
        for (int64_t c = 0; c < k; c++) {
            if (job.fit_intercept) {
                double& v = intercept_velocity[c];
                v = momentum * v - rate * by_intercept[c] / size;
                intercept[c] += v;
            }
            by_intercept[c] = 0;
        }
    }

    // The step of `skmax.solvers.sgd`, of all features but those that it leaves at zero.
    void step_all(F rate, int64_t size) {
        F largest = 0;
        for (int64_t c = 0; c < k; c++) {
            by_intercept_[c] = (F)(by_intercept[c] / size), at_mean[c] = 0;
            F by = (F)fabs(by_intercept_[c]);
            largest = by <= largest ? largest : by;
        }
        for (int64_t first = 0; first < n_features; first += TERMS) {
            for (int64_t c = 0; c < stride; c++) sum[c] = 0;
            for (int64_t f = first; f < least(first + TERMS, n_features); f++) {
                F mu = mean ? mean[f] : 0, s = scale ? scale[f] : 1;
                if (asleep[f] && place[f] < 0 && (F)fabs(mu) * largest <= l1) continue;
                const F* g = place[f] < 0 ? none : gradient + place[f] * stride;
                int64_t c = 0;
                for (; c + LANES <= stride; c += LANES)
                    step_some<Vector>(f * stride + c, c, g + c, rate, size, mu, s);
                for (; c < stride; c += QUAD)
                    step_some<Short>(f * stride + c, c, g + c, rate, size, mu, s);
                asleep[f] = l1 > 0 && is_zero(f);
            }
            for (int64_t c = 0; c < k; c++) at_mean[c] += sum[c];
        }
    }
    template <class L>
    void step_some(int64_t at, int64_t c, const F* g, F rate, int64_t size, F mu, F s) {
        typedef typename L::U U;
        U w = *(const U*)(coef + at), by = *(const U*)(by_intercept_ + c);
        U slope = *(const U*)g / (F)size - by * mu + l2 * w;
        U v = momentum * *(const U*)(velocity + at) - rate * (slope * s * s);
        w += v;
        if (l1 > 0) {
            U bound = U{} + rate * (l1 * s * s);
            U clipped = w > bound ? bound : w < -bound ? -bound : w;
            v -= clipped, w -= clipped;
        }
        *(U*)(velocity + at) = v, *(U*)(coef + at) = w;
        *(U*)(sum + c) += w * mu;
    }
    bool is_zero(int64_t f) const {
        F any = 0;
        const F *w = coef + f * stride, *v = velocity + f * stride;
        for (int64_t c = 0; c < stride; c++) any += (w[c] != 0) + (v[c] != 0);
        return any == 0;
    }

    // Lazy steps

    void begin_lazily() {
        for (int64_t f = 0; f < n_features; f++) since[f] = 0;
        restart();
        if (!mean) return;
        for (int64_t u = 0; u < e; u++) squares[u] = 0;
        memset(drift, 0, sizeof(double) * 4 * e * k);
        product = drift + e * k;
        drift_velocity = product + e * k, product_velocity = drift_velocity + e * k;
        for (int64_t f = 0; f < n_features; f++) {
            double mu = mean[f];
            int64_t u = unit[f] * k;
            squares[unit[f]] += mu * mu;
            for (int64_t c = 0; c < k; c++) {
                product[u + c] += mu * coef[f * stride + c];
                product_velocity[u + c] += mu * velocity[f * stride + c];
            }
        }
    }
    // Count steps from here: all weights are up to date.
    void restart() {
        step_ = 0;
        start_response();
    }
    void start_response() {
        double* made = response + step_ * 4 * e;
        for (int64_t u = 0; u < 4 * e; u++) made[u] = u < e || u >= 3 * e;
    }
    // What a step without a gradient makes of what there was after each of those before.
    void respond(F rate) {
        for (int64_t s = 0; s <= step_; s++) {
            double *a = response + s * 4 * e, *b = a + e, *va = b + e, *vb = va + e;
            for (int64_t u = 0; u < e; u++) {
                double decay = (double)rate * factor[u] * l2;
                va[u] = momentum * va[u] - decay * a[u], a[u] += va[u];
                vb[u] = momentum * vb[u] - decay * b[u], b[u] += vb[u];
            }
        }
        step_++;
        start_response();
    }
    void step_lazily(F rate, int64_t size) {
        if (mean) multiply_by_means();
        respond(rate);
        for (int64_t i = 0; i < t; i++) {
            int64_t f = features[i];
            F *w = coef + f * stride, *v = velocity + f * stride;
            const F *g = gradient + i * stride, *before = without_drift + i * stride;
            const double* made = response + since[f] * 4 * e + unit[f];
            F a = (F)made[2 * e], b = (F)made[3 * e], by = (F)(rate / size * factor[unit[f]]);
            for (int64_t c = 0; c < stride; c++) {
                v[c] = a * w[c] + b * v[c] - by * g[c];
                w[c] = before[c] + v[c];
            }
            since[f] = (int32_t)step_;
        }
        if (mean) step_drift(rate, size);
        if (step_ == length) settle();
    }
    void multiply_by_means() {
        memset(by_product, 0, sizeof(double) * e * k);
        for (int64_t i = 0; i < t; i++) {
            int64_t f = features[i];
            double mu = mean[f], *to = by_product + unit[f] * k;
            for (int64_t c = 0; c < k; c++) to[c] += mu * gradient[i * stride + c];
        }
    }
    void step_drift(F rate, int64_t size) {
        for (int64_t c = 0; c < k; c++) at_mean[c] = 0;
        for (int64_t u = 0; u < e; u++) {
            double decay = (double)rate * factor[u] * l2, by = (double)rate / size * factor[u];
            for (int64_t c = 0; c < k; c++) {
                int64_t at = u * k + c;
                double &dv = drift_velocity[at], &pv = product_velocity[at];
                dv = momentum * dv - decay * drift[at] + by * by_intercept[c];
                pv = momentum * pv - decay * product[at] - by * by_product[at];
                drift[at] += dv, product[at] += pv;
                at_mean[c] += product[at] + squares[u] * drift[at];
            }
        }
    }
    // Bring all weights up to date.
    void settle() {
        for (int64_t f = 0; f < n_features; f++) {
            if (since[f] == step_) continue;
            F *w = coef + f * stride, *v = velocity + f * stride;
            const double* made = response + since[f] * 4 * e + unit[f];
            F a = (F)made[0], b = (F)made[e], va = (F)made[2 * e], vb = (F)made[3 * e];
            for (int64_t c = 0; c < stride; c++) {
                F before = w[c];
                w[c] = a * before + b * v[c], v[c] = va * before + vb * v[c];
            }
        }
        for (int64_t f = 0; f < n_features; f++) since[f] = 0;
        restart();
    }
    void finish_lazily() {
        settle();
        for (int64_t f = 0; f < n_features && mean; f++)
            for (int64_t c = 0; c < k; c++) {
                coef[f * stride + c] += (F)(mean[f] * drift[unit[f] * k + c]);
                velocity[f * stride + c] += (F)(mean[f] * drift_velocity[unit[f] * k + c]);
            }
    }
};
