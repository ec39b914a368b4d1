// An epoch of minibatch SGD on a stack of models of sparse rows (CSR), in one cooperative launch:
// what skmax.solvers.sgd.sgd_epoch does. Shapes are those of skmax.problem.
//
// Weights lie in the device's memory, those that belong to a feature side by side, (d, columns):
// each model has a multiple of VECTOR classes, padded with zeros, and a thread has a chunk of so
// many. A step has three phases, which all blocks share and which end with a barrier of the grid:
//   forward   logits, loss and residual, a row of a model per warp or block;
//   collect   what sums over many rows have in common: residuals, and of features that many rows of
//             the batch have, the gradient, a piece at a time;
//   backward  gradient and step of all weights, of a chunk of a feature per thread.
// A thread has the same chunk of classes for all its features, of whose weights it sums the product
// with the mean; these sums are summed while the next logits are on their way. All sums are taken
// in a fixed order, so that two runs are equal to the last bit.
//
// Entries are sorted by step and feature before: those of a feature are a run among the step's.
//
// The build defines
//   REAL     float or double: X, weights and arithmetic
//   VECTOR   of classes
//   THREADS  of a block
//   BLOCKS   of a multiprocessor

constexpr int SIZE = sizeof(REAL);
constexpr int WARP = 32, WARPS = THREADS / WARP;
// Loads of a thread that are on their way together, and of one that has more to keep.
constexpr int AHEAD = 4, LESS = VECTOR == 4 ? 2 : 1;
constexpr REAL LOWEST = SIZE == 4 ? REAL(-3e38) : REAL(-1e308);  // below all logits

struct alignas(VECTOR * SIZE) Vector {
    REAL at[VECTOR];
};
// A value of X, as sorted by step and feature.
struct alignas(2 * SIZE) Entry {
    REAL x;
    int row;  // of the batch
};

// The entries of a feature, from one to before another.
struct alignas(8) Run {
    int first, last;
};

// What another block may have written.
template <int SIZE> struct Bits;
template <> struct Bits<8> {
    typedef uint2 type;
};
template <> struct Bits<16> {
    typedef uint4 type;
};
template <typename T> __device__ __forceinline__ T load(const void *from) {
    typedef typename Bits<sizeof(T)>::type Type;
    const Type bits = __ldcg(static_cast<const Type *>(from));
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T> __device__ __forceinline__ void store(void *to, const T &value) {
    typedef typename Bits<sizeof(T)>::type Type;
    Type bits;
    memcpy(&bits, &value, sizeof value);
    __stcg(static_cast<Type *>(to), bits);
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __noinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __noinline__ double logarithm(double x) { return log(x); }

template <typename T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
    return value;
}
__device__ __forceinline__ REAL warp_max(REAL value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        const REAL other = from_lane_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

// What the proximal operator of the L1 penalty takes off a weight.
__device__ __forceinline__ REAL clip(REAL w, REAL threshold) {
    return w > threshold ? threshold : (w < -threshold ? -threshold : w);
}

// The kernel's arguments; which are null says what there is none of.
struct Arguments {
    const REAL *values;           // (entries,), of X
    const int *features, *starts; // (entries,), (n_samples + 1,)
    const int *visit;             // (n,): the row that is visited when
    const long long *keys;        // (entries,): sorted, see keys_of_entries
    const int *place;             // (entries,): the row of the batch that an entry is in
    int entries, low;             // bits of a key that say which entry it is of
    int n, batch, steps, d, classes, models;
    int log_size, pieces;         // of a piece, in entries, and of a step that there is memory for
    int chunks, all_chunks;       // of a model's classes, and of all models'
    int stride;                   // from one of a thread's features to the next
    int parts;                    // in which a product with the mean is summed
    const long long *label;       // (n_samples,), or null: see target
    const REAL *target;           // (n_samples, classes), or null
    const REAL *weight;           // (n_samples, u), or null: all 1
    const REAL *score_weight;     // likewise; or null: as weight
    int u;
    const int *column;            // (models,): a model's weights
    const REAL *smoothing;        // (models, classes), or null
    const REAL *mean;             // (models, d), or null: zero
    const REAL *inverse_scale;    // (models, d), or null: one
    const REAL *rate;             // (steps, models)
    const REAL *l2, *l1, *momentum;              // (models,)
    int fit_intercept;
    const REAL *coef, *velocity;                 // (models, classes, d)
    const REAL *intercept, *intercept_velocity;  // (models, classes)
    REAL *new_coef, *new_velocity, *new_intercept, *new_intercept_velocity;
    double *sums;                 // (2, models), out: loss and correct
    unsigned *counter;            // 0, 0
};

// What all blocks share, which nobody has written to.
struct Scratch {
    REAL *coef, *velocity;       // (d, columns)
    REAL *residual;              // (batch, columns)
    REAL *part;                  // (pieces, 2, columns): see collect
    REAL *product;               // (parts, columns): sums of weights times mean
    REAL *bias, *bias_velocity;  // (columns,): at the preconditioner's origin
    REAL *dot;                   // (columns,): the weights' product with the mean
    REAL *of_all;                // (columns,): sums of residuals
    double *sums;                // (batch, models, 2): loss and correct
    Entry *entry;                // (entries,)
    int *feature;                // (entries,): of these
    Run *run;                    // (d,): of the last batch that has a feature
    int *first;                  // (steps + 1,): entry of a step
};

// A thread at work.
struct Worker {
    const Arguments a;
    const Scratch s;
    const int thread, lane, warp, block, blocks;
    const int id, total;    // of threads
    const int task, tasks;  // of warps, of which neighbours are in different blocks
    const int chunks, all_chunks;
    const int q;            // this thread's chunk

    __device__ __forceinline__ Worker(const Arguments &a, const Scratch &s)
        : a(a), s(s), thread(anew(threadIdx.x)), lane(thread % WARP), warp(thread / WARP),
          block(anew(blockIdx.x)), blocks(gridDim.x), id(block * THREADS + thread),
          total(blocks * THREADS), task(warp * blocks + block), tasks(blocks * WARPS),
          chunks(anew(a.chunks)), all_chunks(anew(a.all_chunks)), q(id % all_chunks) {}

    // Where a chunk of a row is in a matrix.
    __device__ __forceinline__ size_t at(int row, int chunk) const {
        return size_t(row) * (all_chunks * VECTOR) + chunk * VECTOR;
    }

    __device__ __forceinline__ int rows_in(int step) const {
        const int left = a.n - step * a.batch;
        return left < a.batch ? left : a.batch;
    }

    // Weights and entries as they come, in their new order.
    __device__ __forceinline__ void start() const {
        for (int i = task; i < (a.d + WARP - 1) / WARP * all_chunks; i += tasks) {
            const int f = i / all_chunks * WARP + lane, c = i % all_chunks, model = c / chunks;
            if (f >= a.d) continue;
            Vector w, v;
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const int k = c % chunks * VECTOR + j;
                const size_t from = (size_t(model) * a.classes + k) * a.d + f;
                w.at[j] = k < a.classes ? a.coef[from] : REAL(0);
                v.at[j] = k < a.classes ? a.velocity[from] : REAL(0);
            }
            const size_t to = at(f, c);
            store(s.coef + to, w);
            store(s.velocity + to, v);
        }
        for (int i = id; i < all_chunks * VECTOR; i += total) {
            const int k = i % (chunks * VECTOR), from = i / (chunks * VECTOR) * a.classes + k;
            __stcg(s.bias + i, k < a.classes ? a.intercept[from] : REAL(0));
            __stcg(s.bias_velocity + i, k < a.classes ? a.intercept_velocity[from] : REAL(0));
        }
        for (int i = id; i < 2 * a.batch * a.models; i += total) __stcg(s.sums + i, 0.);
        for (int f = id; f < a.d; f += total) store(s.run + f, Run{-1, -1});
        for (long long i = id; i <= a.entries; i += total) {
            const long long key = i < a.entries ? a.keys[i] : 0;
            if (key > 0) {
                const size_t e = key & ((1ll << a.low) - 1);
                store(s.entry + i, Entry{a.values[e], a.place[e]});
                __stcg(s.feature + i, int((key >> a.low) % a.d));
            }
            const int step = i < a.entries ? step_of(key) : a.steps;
            for (int t = i > 0 ? step_of(a.keys[i - 1]) + 1 : 0; t <= step; ++t)
                __stcg(s.first + t, int(i));
        }
    }

    // Of an entry that no step has, it is -1.
    __device__ __forceinline__ int step_of(long long key) const {
        return int((key >> a.low) / a.d) - 1;
    }

    // The sum over `count` rows of a matrix, of a chunk of its columns: what all lanes know then.
    __device__ __forceinline__ Vector column_sum(const REAL *from, int count, int chunk) const {
        Vector sum{};
        for (int i = lane; i < count; i += WARP * AHEAD) {
            Vector some[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                const int row = i + WARP * j;
                some[j] = row < count ? load<Vector>(from + at(row, chunk)) : Vector{};
            }
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) add(sum, some[j]);
        }
#pragma unroll
        for (int j = 0; j < VECTOR; ++j) sum.at[j] = warp_sum(sum.at[j]);
        return sum;
    }

    __device__ __forceinline__ static void add(Vector &sum, const Vector &other, REAL factor = 1) {
#pragma unroll
        for (int j = 0; j < VECTOR; ++j) sum.at[j] += factor * other.at[j];
    }

    // The weights' product with the mean. It is there once its counter says so.
    __device__ __forceinline__ void sum_products(int step) const {
        if (!a.mean) return;
        for (int c = task; c < all_chunks; c += tasks) {
            const Vector dot = column_sum(s.product, a.parts, c);
            if (lane > 0) continue;
            store(s.dot + c * VECTOR, dot);
            if (step > 0) continue;
            Vector bias = load<Vector>(s.bias + c * VECTOR);
            add(bias, dot);
            store(s.bias + c * VECTOR, bias);
        }
        if (block >= all_chunks) return;
        __syncthreads();
        if (thread == 0) arrive(a.counter + 1);
    }
    __device__ __forceinline__ void wait_for_products(int step) const {
        if (!a.mean) return;
        if (lane == 0)
            wait_for(a.counter + 1, (step + 1) * (all_chunks < blocks ? all_chunks : blocks));
        __syncwarp();
    }

    // Where the entries of features begin and end.
    __device__ __forceinline__ void find_runs(int step) const {
        const int first = __ldcg(s.first + step), last = __ldcg(s.first + step + 1);
        for (int i = first + id; i < last; i += total) {
            const int f = __ldcg(s.feature + i);
            int *const run = reinterpret_cast<int *>(s.run + f);
            if (i == first || __ldcg(s.feature + i - 1) != f) __stcg(run, i);
            if (i + 1 == last || __ldcg(s.feature + i + 1) != f) __stcg(run + 1, i + 1);
        }
    }

    // Of a row's entries, what their weights of a chunk add to the logits. Where a warp has the
    // row, there are as many lanes to each entry as it has chunks, and each lane gets the sum.
    template <int TEAM>
    __device__ __forceinline__ Vector products(int first, int last, int model, int from) const {
        const int member = TEAM == 1 ? lane : thread;
        int lanes = WARP * TEAM;
        if (TEAM == 1)
            while (lanes / 2 >= chunks) lanes /= 2;
        const int chunk = from + member % lanes, apart = WARP * TEAM / lanes;
        const REAL *const weights = s.coef + at(0, model * chunks + chunk);
        Vector sum{};
        if (chunk < chunks)
            for (int e = first + member / lanes; e < last; e += AHEAD * apart) {
                int feature[AHEAD];
                REAL x[AHEAD];
                Vector w[AHEAD];
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) {
                    const int here = e + apart * i;
                    feature[i] = here < last ? a.features[here] : -1;
                    x[i] = here < last ? a.values[here] : REAL(0);
                }
#pragma unroll
                for (int i = 0; i < AHEAD; ++i)
                    w[i] = feature[i] < 0 ? Vector{} : load<Vector>(weights + at(feature[i], 0));
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) add(sum, w[i], x[i]);
            }
        if (TEAM == 1)
            for (int mask = lanes; mask < WARP; mask *= 2) {
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) sum.at[j] += from_lane_xor(sum.at[j], mask);
            }
        return sum;
    }

    // What a row should be, class by class.
    struct Target {
        const REAL *soft, *smoothing;
        int label;
        REAL hard_share;

        __device__ __forceinline__ REAL of(int k) const {
            const REAL t = soft ? soft[k] : REAL(k == label);
            return smoothing ? hard_share * t + smoothing[k] : t;
        }
    };

    // What the lanes of a warp know together: the sum of the first three, of the last the largest.
    __device__ __forceinline__ static void share_in_warp(REAL (&values)[4]) {
#pragma unroll
        for (int i = 0; i < 3; ++i) values[i] = warp_sum(values[i]);
        values[3] = warp_max(values[3]);
    }

    // The same of all warps of a row. `turn` changes from call to call.
    template <int TEAM>
    __device__ __forceinline__ void share(REAL (&values)[4], int turn) const {
        share_in_warp(values);
        if (TEAM == 1) return;
        REAL(*const all)[4] = reinterpret_cast<REAL(*)[4]>(shared_memory) + turn % 2 * WARPS;
        if (lane == 0)
#pragma unroll
            for (int i = 0; i < 4; ++i) all[warp][i] = values[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i)
            values[i] = lane < WARPS ? all[lane][i] : (i < 3 ? REAL(0) : LOWEST);
        share_in_warp(values);
    }

    // A row's target; of soft ones, the label is the first of the likeliest classes.
    template <int TEAM>
    __device__ __forceinline__ Target target_of(int model, int row) const {
        Target target{a.target ? a.target + size_t(row) * a.classes : nullptr,
                      a.smoothing ? a.smoothing + model * a.classes : nullptr,
                      a.label ? int(a.label[row]) : 0, 1};
        if (target.smoothing) {
            REAL sum = 0;
            for (int k = lane; k < a.classes; k += WARP) sum += target.smoothing[k];
            target.hard_share = 1 - warp_sum(sum);
        }
        if (!target.soft) return target;
        const int member = TEAM == 1 ? lane : thread;
        REAL most[4] = {0, 0, 0, LOWEST}, first[4] = {0, 0, 0, LOWEST};
        for (int k = member; k < a.classes; k += WARP * TEAM)
            if (target.soft[k] > most[3]) most[3] = target.soft[k], first[3] = -k;
        const REAL mine = most[3];
        share<TEAM>(most, 0);
        if (mine != most[3]) first[3] = LOWEST;
        share<TEAM>(first, 1);
        target.label = int(-first[3]);
        return target;
    }

    // Loss and residual of a row, at which TEAM warps work: each thread has every so many-th chunk
    // of classes; where that is more than one, logits are kept where the residual will be.
    template <int TEAM> __device__ __forceinline__ void forward(int step, int model, int r) const {
        constexpr int MEMBERS = WARP * TEAM;
        const int member = TEAM == 1 ? lane : thread;
        const int row = a.visit[step * a.batch + r];
        REAL *const residual = s.residual + at(r, model * chunks);
        const Target target = target_of<TEAM>(model, row);
        const bool once = TEAM == 1 || chunks <= MEMBERS;
        Vector z{};
        REAL top[4] = {0, 0, 0, LOWEST};
        for (int from = 0; from < chunks; from += MEMBERS) {
            z = products<TEAM>(a.starts[row], a.starts[row + 1], model, from);
            if (from == 0) wait_for_products(step);
            const int c = (from + member) * VECTOR;
            if (from + member >= chunks) continue;
            add(z, load<Vector>(s.bias + at(0, model * chunks) + c));
            if (a.mean) add(z, load<Vector>(s.dot + at(0, model * chunks) + c), -1);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                if (c + j >= a.classes) z.at[j] = LOWEST;
                top[3] = z.at[j] > top[3] ? z.at[j] : top[3];
            }
            if (!once) store(residual + c, z);
        }
        share<TEAM>(top, 0);
        // Of the exponentials, the targets, these times the logits; and less the likeliest class.
        REAL sums[4] = {0, 0, 0, LOWEST};
        for (int c = member * VECTOR; c < chunks * VECTOR; c += MEMBERS * VECTOR) {
            if (!once) z = load<Vector>(residual + c);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const int k = c + j;
                if (k >= a.classes) continue;
                const REAL below = z.at[j] - top[3], part = target.of(k);
                if (below == 0 && -k > sums[3]) sums[3] = -k;
                if (part != 0) {
                    sums[1] += part;
                    sums[2] += part * below;
                }
                z.at[j] = exponential(below);
                sums[0] += z.at[j];
            }
            if (!once) store(residual + c, z);
        }
        share<TEAM>(sums, 1);
        const size_t of_row = size_t(row) * a.u + (a.weight ? a.column[model] : 0);
        const REAL weight = a.weight ? a.weight[of_row] : REAL(1), factor = 1 / sums[0];
        for (int c = member * VECTOR; c < chunks * VECTOR; c += MEMBERS * VECTOR) {
            if (!once) z = load<Vector>(residual + c);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j)
                z.at[j] =
                    c + j < a.classes ? weight * (z.at[j] * factor - target.of(c + j)) : REAL(0);
            store(residual + c, z);
        }
        if (member > 0) return;
        double *const slot = s.sums + 2 * (size_t(r) * a.models + model);
        __stcg(slot, __ldcg(slot) + weight * (sums[1] * logarithm(sums[0]) - sums[2]));
        if (-sums[3] == target.label)
            __stcg(slot + 1, __ldcg(slot + 1) + (a.score_weight ? a.score_weight[of_row] : weight));
    }

    // The rows of a batch. Blocks that sum products come last.
    template <int TEAM> __device__ __forceinline__ void forward(int step) const {
        const int turned = blocks - 1 - block, teams = TEAM == 1 ? tasks : blocks;
        for (int i = TEAM == 1 ? warp * blocks + turned : turned; i < rows_in(step) * a.models;
             i += teams)
            forward<TEAM>(step, i % a.models, i / a.models);
    }

    // The gradient by weights of a chunk, from entries of a feature.
    template <int COUNT>
    __device__ __forceinline__ Vector gradient(int first, int last, int chunk) const {
        Vector sum{};
        for (int e = first; e < last; e += COUNT) {
            Entry entry[COUNT];
            Vector residual[COUNT];
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                entry[i] = e + i < last ? load<Entry>(s.entry + e + i) : Entry{0, -1};
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                residual[i] = entry[i].row < 0 ? Vector{}
                                               : load<Vector>(s.residual + at(entry[i].row, chunk));
#pragma unroll
            for (int i = 0; i < COUNT; ++i) add(sum, residual[i], entry[i].x);
        }
        return sum;
    }

    // Entries of a step as pieces of the same size: a power of two, for which there is memory.
    struct Pieces {
        int first, last, log_size;

        __device__ __forceinline__ Pieces(const Worker &worker, int step)
            : first(__ldcg(worker.s.first + step)), last(__ldcg(worker.s.first + step + 1)),
              log_size(worker.a.log_size) {
            while (count() > worker.a.pieces) ++log_size;
        }
        __device__ __forceinline__ int count() const {
            return first < last ? of(last - 1) + 1 : 0;
        }
        __device__ __forceinline__ int of(int entry) const { return (entry - first) >> log_size; }
        __device__ __forceinline__ int begin(int piece) const {
            return first + (piece << log_size);
        }
    };

    // Sums of residuals, and the step of the intercepts. Of runs that are in several pieces, the
    // gradient of each: the first part is that of a run which began before the piece, the second of
    // one that begins in it and goes on.
    __device__ __forceinline__ void collect(int step) const {
        const int size = rows_in(step);
        for (int c = task; c < all_chunks; c += tasks) {
            const Vector of_all = column_sum(s.residual, size, c);
            if (lane > 0) continue;
            store(s.of_all + c * VECTOR, of_all);
            if (!a.fit_intercept) continue;
            const int model = c / chunks;
            const REAL rate = a.rate[step * size_t(a.models) + model] / size;
            Vector v = load<Vector>(s.bias_velocity + c * VECTOR);
            Vector b = load<Vector>(s.bias + c * VECTOR);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                v.at[j] = a.momentum[model] * v.at[j] - rate * of_all.at[j];
                b.at[j] += v.at[j];
            }
            store(s.bias_velocity + c * VECTOR, v);
            store(s.bias + c * VECTOR, b);
        }
        const Pieces pieces(*this, step);
        for (int i = total - 1 - id; i < pieces.count() * all_chunks; i += total) {
            const int c = i % all_chunks, piece = i / all_chunks;
            const int begin = pieces.begin(piece);
            const int end = piece + 1 < pieces.count() ? pieces.begin(piece + 1) : pieces.last;
            REAL *const to = s.part + at(2 * piece, c);
            const Run left = load<Run>(s.run + __ldcg(s.feature + begin));
            if (left.first < begin)
                store(to, gradient<AHEAD>(begin, left.last < end ? left.last : end, c));
            const Run right = load<Run>(s.run + __ldcg(s.feature + end - 1));
            if (right.last > end && right.first >= begin)
                store(to + at(1, 0), gradient<AHEAD>(right.first, end, c));
        }
    }

    // The gradient by weights of this thread's chunk, from a run.
    __device__ __forceinline__ Vector gradient(Run run, const Pieces &pieces) const {
        const int begin = pieces.of(run.first), end = pieces.of(run.last - 1);
        if (begin == end) return gradient<LESS>(run.first, run.last, q);
        const REAL *const part = s.part + at(2 * begin, q);
        Vector sum = load<Vector>(part + at(1, 0));
#pragma unroll LESS
        for (int i = 1; i <= end - begin; ++i) add(sum, load<Vector>(part + at(2 * i, 0)));
        return sum;
    }

    // This thread's first feature.
    __device__ __forceinline__ int first_feature() const {
        return id < a.stride * all_chunks ? id / all_chunks : a.d;
    }

    // Gradient and step of all weights.
    __device__ __forceinline__ void backward(int step) const {
        const int model = q / chunks;
        const REAL rate = a.rate[step * size_t(a.models) + model];
        const REAL per_row = REAL(1) / rows_in(step);
        const REAL l2 = a.l2[model], momentum = a.momentum[model];
        const Pieces pieces(*this, step);
        const Vector of_all = load<Vector>(s.of_all + at(0, q));
        Vector dot{};
        for (int f = first_feature(); f < a.d; f += a.stride) {
            const size_t of_feature = size_t(model) * a.d + f;
            const Run run = load<Run>(s.run + f);
            REAL *const coef = s.coef + at(f, q), *const velocity = s.velocity + at(f, q);
            Vector w = load<Vector>(coef), v = load<Vector>(velocity), g{};
            const REAL mean = a.mean ? a.mean[of_feature] : REAL(0);
            const REAL unit = a.inverse_scale ? a.inverse_scale[of_feature] : REAL(1);
            const REAL l1 = a.l1[model];
            if (run.first >= pieces.first) g = gradient(run, pieces);
            if (a.mean) add(g, of_all, -mean);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const REAL slope = g.at[j] * per_row + l2 * w.at[j];
                v.at[j] = momentum * v.at[j] - rate * (slope * unit * unit);
                w.at[j] += v.at[j];
                if (l1 > 0) {
                    const REAL clipped = clip(w.at[j], rate * (l1 * unit * unit));
                    w.at[j] -= clipped;
                    v.at[j] -= clipped;
                }
            }
            store(coef, w);
            store(velocity, v);
            if (a.mean) add(dot, w, mean);
        }
        add_products(dot);
    }

    // The products of the first step.
    __device__ __forceinline__ void first_products() const {
        if (!a.mean) return;
        Vector dot{};
        for (int f = first_feature(); f < a.d; f += a.stride)
            add(dot, load<Vector>(s.coef + at(f, q)),
                a.mean[size_t(q / chunks) * a.d + f]);
        add_products(dot);
    }

    // Each thread's weights times the mean, those of a block together where that has all chunks.
    __device__ __forceinline__ void add_products(Vector dot) const {
        if (!a.mean) return;
        if (all_chunks > THREADS) {
            if (id < a.stride * all_chunks)
                store(s.product + at(id / all_chunks, q), dot);
            return;
        }
        Vector *const all = reinterpret_cast<Vector *>(shared_memory);
        all[thread] = dot;
        __syncthreads();
        if (thread >= all_chunks) return;
        for (int other = thread + all_chunks; other < THREADS; other += all_chunks)
            add(dot, all[other]);
        store(s.product + at(block, q), dot);
    }

    // What was learned.
    __device__ __forceinline__ void finish() const {
        for (int i = task; i < (a.d + WARP - 1) / WARP * all_chunks; i += tasks) {
            const int f = i / all_chunks * WARP + lane, c = i % all_chunks, model = c / chunks;
            if (f >= a.d) continue;
            const size_t from = at(f, c);
            const Vector w = load<Vector>(s.coef + from), v = load<Vector>(s.velocity + from);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const int k = c % chunks * VECTOR + j;
                const size_t to = (size_t(model) * a.classes + k) * a.d + f;
                if (k >= a.classes) continue;
                a.new_coef[to] = w.at[j];
                a.new_velocity[to] = v.at[j];
            }
        }
        for (int c = task; c < all_chunks; c += tasks) {
            Vector b = load<Vector>(s.bias + c * VECTOR);
            const Vector v = load<Vector>(s.bias_velocity + c * VECTOR);
            if (a.mean) add(b, column_sum(s.product, a.parts, c), -1);
            if (lane > 0) continue;
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const int k = c % chunks * VECTOR + j;
                if (k >= a.classes) continue;
                a.new_intercept[c / chunks * a.classes + k] = b.at[j];
                a.new_intercept_velocity[c / chunks * a.classes + k] = v.at[j];
            }
        }
        for (int i = task; i < 2 * a.models; i += tasks) {
            double sum = 0;
#pragma unroll 1
            for (int r = lane; r < a.batch; r += WARP)
                sum += __ldcg(s.sums + 2 * (size_t(r) * a.models + i / 2) + i % 2);
            sum = warp_sum(sum);
            if (lane == 0) a.sums[i % 2 * a.models + i / 2] = sum;
        }
    }
};

// Keys to sort entries by: which step, from 1 on, which feature, which entry. Those of rows that
// are not visited stay 0. A row per warp.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) keys_of_entries(
    const int *features, const int *starts, const int *visit, int n, int batch, int d, int low,
    long long *keys, int *place)
{
    const int lane = threadIdx.x % WARP, tasks = gridDim.x * WARPS;
    for (int i = blockIdx.x * WARPS + threadIdx.x / WARP; i < n; i += tasks) {
        const int row = visit[i], last = starts[row + 1];
        for (int e = starts[row] + lane; e < last; e += WARP) {
            keys[e] = (((i / batch + 1ll) * d + features[e]) << low) | e;
            place[e] = i % batch;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) sgd_epoch_of_sparse_rows(
    const REAL *values, const int *features, const int *starts, const int *visit,
    const long long *keys, const int *place, int entries, int low, int n, int batch, int steps,
    int d, int classes, int models, int log_size, int pieces, int chunks, int all_chunks,
    int stride, int parts, const long long *label, const REAL *target, const REAL *weight,
    const REAL *score_weight, int u, const int *column, const REAL *smoothing,
    const REAL *mean, const REAL *inverse_scale, const REAL *rate, const REAL *l2, const REAL *l1,
    const REAL *momentum, int fit_intercept, const REAL *coef, const REAL *velocity,
    const REAL *intercept, const REAL *intercept_velocity, REAL *new_coef, REAL *new_velocity,
    REAL *new_intercept, REAL *new_intercept_velocity, double *sums, unsigned *counter,
    REAL *of_coef, REAL *of_velocity, REAL *residual, REAL *part, REAL *product, REAL *bias,
    REAL *bias_velocity, REAL *dot, REAL *of_all, double *of_rows, Entry *entry, int *feature,
    Run *run, int *first)
{
    const Arguments arguments{
        values, features, starts, visit, keys, place, entries, low, n, batch, steps, d, classes,
        models, log_size, pieces, chunks, all_chunks, stride, parts, label, target, weight,
        score_weight, u, column, smoothing, mean, inverse_scale, rate, l2, l1, momentum,
        fit_intercept, coef, velocity, intercept, intercept_velocity, new_coef, new_velocity,
        new_intercept, new_intercept_velocity, sums, counter};
    const Scratch scratch{of_coef, of_velocity, residual, part, product, bias, bias_velocity, dot,
                          of_all, of_rows, entry, feature, run, first};
    // Each phase has a worker of its own: what that keeps would take registers from the others.
    const auto worker = [&] { return Worker(arguments, scratch); };
    worker().start();
    grid_barrier(counter, 0);
    worker().first_products();
    grid_barrier(counter, 1);
    for (int step = 0; step < steps; ++step) {
        worker().sum_products(step);
        worker().find_runs(step);
        if (chunks <= WARP) worker().forward<1>(step);
        else worker().forward<WARPS>(step);
        grid_barrier(counter, 3 * step + 2);
        worker().collect(step);
        grid_barrier(counter, 3 * step + 3);
        worker().backward(step);
        grid_barrier(counter, 3 * step + 4);
    }
    worker().finish();
}
