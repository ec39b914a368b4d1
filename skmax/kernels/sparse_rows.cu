// An epoch of minibatch SGD on a stack of models of sparse rows (CSR), in one cooperative launch: what
// skmax.solvers.sgd.sgd_epoch does. Shapes are those of skmax.problem.
//
// Weights lie in the device's memory, those that belong to a feature side by side, (d, columns): each
// model has a multiple of VECTOR classes, padded with zeros, and a thread has a chunk of VECTOR of them.
// A step has three phases, which all blocks share and which end with a barrier of the grid:
//   forward   logits, loss and residual, a row of a model per warp or block;
//   collect   what sums over many rows have in common: residuals, and of features that many rows of
//             the batch have, the gradient, a piece at a time;
//   backward  gradient and step of all weights, of a chunk of a feature per thread.
// A thread has the same chunk of classes for all its features, of whose weights it sums the product
// with the mean; these sums are summed while the next logits are on their way. All sums are taken in a
// fixed order, so that two runs are equal to the last bit.
//
// Entries are sorted by step and feature before: those of a feature are a run of the step's.
//
// The build defines
//   REAL     float or double: X, weights and arithmetic
//   VECTOR   of classes
//   THREADS  of a block
//   BLOCKS   of a multiprocessor

constexpr int SIZE = sizeof(REAL);
constexpr int WARP = 32, WARPS = THREADS / WARP;
constexpr int AHEAD = 4;  // loads of a thread that are on their way together
constexpr REAL LOWEST = SIZE == 4 ? REAL(-3e38) : REAL(-1e308);

struct alignas(VECTOR * SIZE) Vector {
    REAL at[VECTOR];
};
// A value of X, in the order of the steps.
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
    int n, batch, d, classes, models;
    int piece, pieces;            // entries of a piece, and pieces of a step that there is memory for
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
    char *memory;                 // what skmax.kernels.sparse_rows computes the size of
};

// What all blocks share, cut from one piece.
struct Scratch {
    REAL *coef, *velocity;                   // (d, columns)
    REAL *residual;                          // (batch, columns)
    REAL *part;                              // (pieces, 2, columns): see collect
    REAL *product;                           // (parts, columns): sums of weights times mean
    REAL *bias, *bias_velocity;              // (columns,): at the preconditioner's origin
    REAL *dot;                               // (columns,): the weights' product with the mean
    REAL *of_all;                            // (columns,): sums of residuals
    double *sums;                            // (batch, models, 2): loss and correct
    Entry *entry;                            // (entries,)
    int *feature;                            // (entries,): of these
    Run *run;                                // (d,): the last batch's entries of a feature
    int *first;                              // (steps + 1,): entry of a step
};

// A thread at work.
struct Worker {
    const Arguments a;
    const int thread, lane, warp, block, blocks, steps;
    const int chunks;       // of a model
    const int all_chunks;   // of all models
    const size_t columns;
    const int id, total;    // of threads
    const int task, tasks;  // of warps, of which neighbours are in different blocks
    const int q, stride;    // this thread's chunk, and from one of its features to the next
    const int parts;
    Scratch s;
    unsigned turn = 0;

    __device__ __forceinline__ explicit Worker(const Arguments &a)
        : a(a), thread(threadIdx.x), lane(thread % WARP), warp(thread / WARP), block(blockIdx.x),
          blocks(gridDim.x), steps((a.n + a.batch - 1) / a.batch),
          chunks((a.classes + VECTOR - 1) / VECTOR), all_chunks(a.models * chunks),
          columns(size_t(all_chunks) * VECTOR), id(block * THREADS + thread),
          total(blocks * THREADS), task(warp * blocks + block), tasks(blocks * WARPS),
          q(id % all_chunks), stride(total / all_chunks),
          parts(all_chunks <= THREADS ? blocks : stride) {
        char *next = a.memory;
        take(s.coef, a.d * columns, next);
        take(s.velocity, a.d * columns, next);
        take(s.residual, a.batch * columns, next);
        take(s.part, 2 * a.pieces * columns, next);
        take(s.product, parts * columns, next);
        take(s.bias, columns, next);
        take(s.bias_velocity, columns, next);
        take(s.dot, columns, next);
        take(s.of_all, columns, next);
        take(s.sums, size_t(2) * a.batch * a.models, next);
        take(s.entry, a.entries, next);
        take(s.feature, a.entries, next);
        take(s.run, a.d, next);
        take(s.first, steps + 1, next);
    }

    template <typename T>
    __device__ __forceinline__ static void take(T *&piece, size_t count, char *&next) {
        piece = reinterpret_cast<T *>(next);
        next += (count * sizeof(T) + 15) / 16 * 16;
    }

    __device__ __forceinline__ void meet() { grid_barrier(a.counter, turn++); }

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
            const size_t to = f * columns + c * VECTOR;
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
            const int step = i < a.entries ? step_of(key) : steps;
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
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                const int row = i + WARP * j;
                if (row < count) add(sum, load<Vector>(from + row * columns + chunk * VECTOR));
            }
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
            const Vector dot = column_sum(s.product, parts, c);
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

    // Of a row's entries, what their weights of a chunk add to the logits. Where a warp has the row,
    // there are as many lanes to each entry as it has chunks, and each lane gets the sum.
    template <int TEAM>
    __device__ __forceinline__ Vector products(int first, int last, int model, int from) const {
        const int member = TEAM == 1 ? lane : thread;
        int lanes = WARP * TEAM;
        if (TEAM == 1)
            while (lanes / 2 >= chunks) lanes /= 2;
        const int chunk = from + member % lanes, apart = WARP * TEAM / lanes;
        const REAL *const weights = s.coef + (size_t(model) * chunks + chunk) * VECTOR;
        Vector sum{};
        if (chunk < chunks)
            for (int e = first + member / lanes; e < last; e += AHEAD * apart) {
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) {
                    const int here = e + apart * i;
                    if (here < last)
                        add(sum, load<Vector>(weights + a.features[here] * columns), a.values[here]);
                }
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

    // What the warps of a row know together: the sum of the first three, and of the last the largest.
    // Of a single warp, it is what that knows. `turn` changes from call to call.
    template <int TEAM>
    __device__ __forceinline__ void share(REAL (&values)[4], int turn) const {
#pragma unroll
        for (int i = 0; i < 3; ++i) values[i] = warp_sum(values[i]);
        values[3] = warp_max(values[3]);
        if (TEAM == 1) return;
        REAL(*const all)[4] = reinterpret_cast<REAL(*)[4]>(shared_memory) + turn % 2 * WARPS;
        if (lane < 4) all[warp][lane] = values[lane];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = all[0][i];
        for (int other = 1; other < WARPS; ++other) {
#pragma unroll
            for (int i = 0; i < 3; ++i) values[i] += all[other][i];
            values[3] = all[other][3] > values[3] ? all[other][3] : values[3];
        }
    }

    // A row's target; of soft ones, the label is the first of the likeliest classes.
    template <int TEAM>
    __device__ __forceinline__ Target target_of(int model, size_t row) const {
        Target target{a.target ? a.target + row * a.classes : nullptr,
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

    // Loss and residual of a row, at which TEAM warps work: each thread has every so many-th chunk of
    // classes; where that is more than one, logits are kept where the residual will be.
    template <int TEAM> __device__ __forceinline__ void forward(int step, int model, int r) const {
        constexpr int MEMBERS = WARP * TEAM;
        const int member = TEAM == 1 ? lane : thread;
        const size_t row = a.visit[step * a.batch + r], left = size_t(model) * chunks * VECTOR;
        const int first = a.starts[row], last = a.starts[row + 1];
        REAL *const residual = s.residual + r * columns + left;
        const Target target = target_of<TEAM>(model, row);
        const bool once = TEAM == 1 || chunks <= MEMBERS;
        Vector z{};
        REAL top[4] = {0, 0, 0, LOWEST};
        for (int from = 0; from < chunks; from += MEMBERS) {
            z = products<TEAM>(first, last, model, from);
            if (from == 0) wait_for_products(step);
            const int c = (from + member) * VECTOR;
            if (from + member >= chunks) continue;
            add(z, load<Vector>(s.bias + left + c));
            if (a.mean) add(z, load<Vector>(s.dot + left + c), -1);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                if (c + j >= a.classes) z.at[j] = LOWEST;
                top[3] = z.at[j] > top[3] ? z.at[j] : top[3];
            }
            if (!once) store(residual + c, z);
        }
        share<TEAM>(top, 0);
        // Of the exponentials, the targets, these times the logits; and less the first likeliest class.
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
        const size_t of_row = row * a.u + (a.weight ? a.column[model] : 0);
        const REAL weight = a.weight ? a.weight[of_row] : REAL(1), factor = 1 / sums[0];
        for (int c = member * VECTOR; c < chunks * VECTOR; c += MEMBERS * VECTOR) {
            if (!once) z = load<Vector>(residual + c);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j)
                z.at[j] = c + j < a.classes ? weight * (z.at[j] * factor - target.of(c + j)) : REAL(0);
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
    __device__ __forceinline__ Vector gradient(int first, int last, int chunk) const {
        Vector sum{};
        for (int e = first; e < last; e += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                if (e + i >= last) continue;
                const Entry entry = load<Entry>(s.entry + e + i);
                add(sum, load<Vector>(s.residual + entry.row * columns + chunk * VECTOR), entry.x);
            }
        }
        return sum;
    }

    // Entries of a step as pieces of the same size.
    struct Pieces {
        int first, last, size;

        __device__ __forceinline__ Pieces(const Worker &worker, int step)
            : first(__ldcg(worker.s.first + step)), last(__ldcg(worker.s.first + step + 1)),
              size(max((last - first + worker.a.pieces - 1) / worker.a.pieces, worker.a.piece)) {}
        __device__ __forceinline__ static int max(int x, int y) { return x > y ? x : y; }
        __device__ __forceinline__ int count() const { return (last - first + size - 1) / size; }
        __device__ __forceinline__ int of(int entry) const { return (entry - first) / size; }
    };

    // Sums of residuals, and the step of the intercepts. Of runs that are in several pieces, the
    // gradient of each: the first part is that of a run which began before the piece, the second of one
    // that begins in it and goes on.
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
            const int begin = pieces.first + piece * pieces.size, rest = pieces.last - begin;
            const int end = begin + (rest < pieces.size ? rest : pieces.size);
            REAL *const to = s.part + 2 * piece * columns + c * VECTOR;
            const Run left = load<Run>(s.run + __ldcg(s.feature + begin));
            if (left.first < begin)
                store(to, gradient(begin, left.last < end ? left.last : end, c));
            const Run right = load<Run>(s.run + __ldcg(s.feature + end - 1));
            if (right.last > end && right.first >= begin)
                store(to + columns, gradient(right.first, end, c));
        }
    }

    // The gradient by weights of this thread's chunk, from a run.
    __device__ __forceinline__ Vector gradient(Run run, const Pieces &pieces) const {
        const int begin = pieces.of(run.first), end = pieces.of(run.last - 1);
        if (begin == end) return gradient(run.first, run.last, q);
        const REAL *const part = s.part + 2 * begin * columns + q * VECTOR;
        Vector sum = load<Vector>(part + columns);
        for (int i = 1; i <= end - begin; ++i) add(sum, load<Vector>(part + 2 * i * columns));
        return sum;
    }

    // This thread's first feature.
    __device__ __forceinline__ int first_feature() const {
        return id < stride * all_chunks ? id / all_chunks : a.d;
    }

    // Gradient and step of all weights. A thread's first ones are read before the others have come.
    __device__ __forceinline__ void backward(int step) {
        const int model = q / chunks;
        int f = first_feature();
        Vector w{}, v{};
        REAL *const coef = s.coef + q * VECTOR, *const velocity = s.velocity + q * VECTOR;
        if (f < a.d) {
            w = load<Vector>(coef + f * columns);
            v = load<Vector>(velocity + f * columns);
        }
        meet();
        const REAL rate = a.rate[step * size_t(a.models) + model], per_row = REAL(1) / rows_in(step);
        const REAL l2 = a.l2[model], l1 = a.l1[model], momentum = a.momentum[model];
        const REAL *const mean = a.mean ? a.mean + size_t(model) * a.d : nullptr;
        const REAL *const units = a.inverse_scale ? a.inverse_scale + size_t(model) * a.d : nullptr;
        const Vector of_all = load<Vector>(s.of_all + q * VECTOR);
        const Pieces pieces(*this, step);
        Vector dot{};
        while (f < a.d) {
            const size_t at = f * columns;
            const REAL u = mean ? mean[f] : REAL(0), unit = units ? units[f] : REAL(1);
            const Run run = load<Run>(s.run + f);
            f += stride;
            Vector next_w{}, next_v{};
            if (f < a.d) {
                next_w = load<Vector>(coef + f * columns);
                next_v = load<Vector>(velocity + f * columns);
            }
            Vector g{};
            if (run.first >= pieces.first) g = gradient(run, pieces);
            if (mean) add(g, of_all, -u);
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
            store(coef + at, w);
            store(velocity + at, v);
            if (mean) add(dot, w, u);
            w = next_w;
            v = next_v;
        }
        add_products(dot);
    }

    // The products of the first step.
    __device__ __forceinline__ void first_products() const {
        if (!a.mean) return;
        Vector dot{};
        for (int f = first_feature(); f < a.d; f += stride)
            add(dot, load<Vector>(s.coef + f * columns + q * VECTOR),
                a.mean[size_t(q / chunks) * a.d + f]);
        add_products(dot);
    }

    // Each thread's weights times the mean, those of a block together where that has all chunks.
    __device__ __forceinline__ void add_products(Vector dot) const {
        if (!a.mean) return;
        if (all_chunks > THREADS) {
            if (id < stride * all_chunks)
                store(s.product + id / all_chunks * columns + q * VECTOR, dot);
            return;
        }
        Vector *const all = reinterpret_cast<Vector *>(shared_memory);
        all[thread] = dot;
        __syncthreads();
        if (thread >= all_chunks) return;
        for (int other = thread + all_chunks; other < THREADS; other += all_chunks)
            add(dot, all[other]);
        store(s.product + block * columns + q * VECTOR, dot);
    }

    // What was learned.
    __device__ __forceinline__ void finish() const {
        for (int i = task; i < (a.d + WARP - 1) / WARP * all_chunks; i += tasks) {
            const int f = i / all_chunks * WARP + lane, c = i % all_chunks, model = c / chunks;
            if (f >= a.d) continue;
            const size_t from = f * columns + c * VECTOR;
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
            if (a.mean) add(b, column_sum(s.product, parts, c), -1);
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
            for (int r = lane; r < a.batch; r += WARP)
                sum += __ldcg(s.sums + 2 * (size_t(r) * a.models + i / 2) + i % 2);
            sum = warp_sum(sum);
            if (lane == 0) a.sums[i % 2 * a.models + i / 2] = sum;
        }
    }

    __device__ __forceinline__ void run() {
        start();
        meet();
        first_products();
        meet();
        for (int step = 0; step < steps; ++step) {
            sum_products(step);
            find_runs(step);
            if (chunks <= WARP) forward<1>(step);
            else forward<WARPS>(step);
            meet();
            collect(step);
            backward(step);  // after a barrier of its own
            meet();
        }
        finish();
    }
};

// Keys to sort entries by: which step, from 1 on, which feature, which entry. Those of rows that are
// not visited stay 0. A row per warp.
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
    const long long *keys, const int *place, int entries, int low, int n, int batch, int d,
    int classes, int models, int piece, int pieces, const long long *label, const REAL *target,
    const REAL *weight, const REAL *score_weight, int u, const int *column, const REAL *smoothing,
    const REAL *mean, const REAL *inverse_scale, const REAL *rate, const REAL *l2, const REAL *l1,
    const REAL *momentum, int fit_intercept, const REAL *coef, const REAL *velocity,
    const REAL *intercept, const REAL *intercept_velocity, REAL *new_coef, REAL *new_velocity,
    REAL *new_intercept, REAL *new_intercept_velocity, double *sums, unsigned *counter,
    char *memory)
{
    Worker worker(Arguments{
        values, features, starts, visit, keys, place, entries, low, n, batch, d, classes, models,
        piece, pieces, label, target, weight, score_weight, u, column, smoothing, mean,
        inverse_scale, rate, l2, l1, momentum, fit_intercept, coef, velocity, intercept,
        intercept_velocity, new_coef, new_velocity, new_intercept, new_intercept_velocity, sums,
        counter, memory});
    worker.run();
}
