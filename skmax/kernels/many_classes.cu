// An epoch of minibatch SGD on a stack of models with many classes, in one cooperative launch: what
// skmax.solvers.sgd.sgd_epoch does, on dense rows. Shapes are those of skmax.problem.
//
// Weights lie in the device's memory, those of all models side by side, padded with zeros: (columns,
// wide), `columns` being a multiple of TILE classes per model and `wide` one of TILE features. A step
// has three phases, which all blocks share and which end with a barrier of the grid:
//   forward   logits, a tile of rows and classes at a time, split over some of the features;
//   softmax   loss and residual, a row of a model per warp;
//   backward  gradient, a tile of classes and features at a time, and the step of its weights.
// Products are those of tensor cores. In float32, these round factors to 11 bits (TF32): a factor is
// the sum of two such numbers, and of the four products the three are taken that matter. The mean
// is taken off X before: tensor cores cut sums off instead of rounding them, which a common part of all
// rows would make worse. All sums are taken in a fixed order, so that two runs are equal to the last
// bit.
//
// The build defines
//   REAL    float or double: weights and arithmetic
//   DATA    the type of X; half where it is float16
//   BLOCKS  of a multiprocessor

typedef DATA Value;
typedef REAL Real;
constexpr int SIZE = sizeof(Value), WORD = sizeof(Real);
constexpr int WARP = 32, THREADS = 128, WARPS = THREADS / WARP;
constexpr int TILE = 64;   // rows, classes or features of a tile
constexpr int DEEP = 32;   // features or rows that are multiplied between two barriers
constexpr int STAGES = 3;  // of these that are in shared memory
constexpr int SMALL = SIZE > 4 ? SIZE : 4;  // bytes of X in a copy that is not of 16
constexpr int FEW = 4;     // classes of a thread where a warp has a row
constexpr Real LOWEST = Real(-3e38);  // below all logits

// From row to row in shared memory, in bytes, so that neighbouring rows are in other banks: of DEEP
// and of TILE values of X, and the same of weights and residuals.
__device__ constexpr int deep_of(int size) {
    return size == 8 ? 320 : size == 4 ? 160 : size == 2 ? 80 : 48;
}
__device__ constexpr int tile_of(int size) {
    return size == 8 ? 544 : size == 4 ? 288 : size == 2 ? 160 : 80;
}
constexpr int DEEP_OF_X = deep_of(SIZE), TILE_OF_X = tile_of(SIZE);
constexpr int DEEP_OF_REALS = deep_of(WORD), TILE_OF_REALS = tile_of(WORD);
constexpr int FORWARD_STAGE = TILE * (DEEP_OF_X + DEEP_OF_REALS) + WORD * DEEP;
constexpr int BACKWARD_STAGE = DEEP * (TILE_OF_X + TILE_OF_REALS);
constexpr int STAGE = FORWARD_STAGE > BACKWARD_STAGE ? FORWARD_STAGE : BACKWARD_STAGE;

// The kernel's arguments; which are null says what there is none of.
struct Arguments {
    const Value *X;                 // rows of d values
    const int *place, *visit;       // (n,): the row of X that is visited when, and of what follows
    int n, batch, d, classes, models;
    int copy;                       // bytes of X that are copied at once: 16, SMALL, or 1
    int splits;                     // parts of the features in the forward phase
    const long long *label;         // (n_samples,), or null: see target
    const Real *target;             // (n_samples, classes), or null
    const Real *weight;             // (n_samples, u), or null: all 1
    const Real *score_weight;       // likewise; or null: as weight
    int u;
    const int *column;              // (models,): a model's weights
    const Real *smoothing;          // (models, classes), or null
    const Real *mean;               // (models, d), or null: zero
    const Real *inverse_scale;      // (models, d), or null: one
    const Real *rate;               // (steps, models)
    const Real *l2, *l1, *momentum; // (models,)
    int fit_intercept;
    const Real *coef, *velocity;    // (models, classes, d)
    const Real *intercept, *intercept_velocity; // (models, classes)
    Real *new_coef, *new_velocity, *new_intercept, *new_intercept_velocity;
    double *sums;                   // (2, models), out: loss and correct
    unsigned *counter;              // 0
    Real *memory;                   // what skmax.kernels.many_classes computes the size of
};

// What all blocks share, cut from one piece.
struct Scratch {
    Real *coef, *velocity;      // (columns, wide)
    Real *bias, *bias_velocity; // (columns,): at the preconditioner's origin
    Real *logits;               // (splits, rows, columns), rows being a multiple of TILE
    Real *residual;             // (rows, columns)
    Value *batch;               // (rows, wide): of X, as it is
    double *sums;               // (blocks * WARPS, 2)
};

struct alignas(2 * WORD) Two {
    Real x, y;
};
struct alignas(16) Four {
    Real x, y, z, w;
};
struct alignas(2 * SIZE) Both {
    Value x, y;
};
__device__ __forceinline__ Real as_real(half value) { return to_float(value); }
template <typename T> __device__ __forceinline__ Real as_real(T value) { return value; }

// Two neighbouring values of X.
__device__ __forceinline__ Two two_of(const char *from) {
    const Both both = *reinterpret_cast<const Both *>(from);
    return {as_real(both.x), as_real(both.y)};
}

// What other blocks may have written, or will read.
__device__ __forceinline__ Four get_four(const float *from) {
    const float4 four = __ldcg(reinterpret_cast<const float4 *>(from));
    return {four.x, four.y, four.z, four.w};
}
__device__ __forceinline__ Four get_four(const double *from) {
    const double2 low = __ldcg(reinterpret_cast<const double2 *>(from));
    const double2 high = __ldcg(reinterpret_cast<const double2 *>(from) + 1);
    return {Real(low.x), Real(low.y), Real(high.x), Real(high.y)};
}
__device__ __forceinline__ void put(float *to, Two two) {
    __stcg(reinterpret_cast<float2 *>(to), make_float2(two.x, two.y));
}
__device__ __forceinline__ void put(double *to, Two two) {
    __stcg(reinterpret_cast<double2 *>(to), make_double2(two.x, two.y));
}
__device__ __forceinline__ void put(float *to, Four four) {
    __stcg(reinterpret_cast<float4 *>(to), make_float4(four.x, four.y, four.z, four.w));
}
__device__ __forceinline__ void put(double *to, Four four) {
    put(to, Two{four.x, four.y});
    put(to + 2, Two{four.z, four.w});
}

// A factor of a product: a number, or the sum of two of TF32, the second of which the product cuts off
// after 11 bits.
template <typename T> struct Factor {
    T value;
    __device__ __forceinline__ void operator=(T x) { value = x; }
};
template <> struct Factor<float> {
    unsigned high, low;
    __device__ __forceinline__ void operator=(float x) {
        high = (bits_of(x) + 0x1000u) & 0xffffe000u;
        low = bits_of(x - from_bits(high));
    }
};

// sum + rest += a b, of 16 x 8 and 8 x 8 factors, as the fragments of a warp.
__device__ __forceinline__ void multiply(float (&sum)[4], float (&rest)[4],
                                         const Factor<float> (&a)[4], const Factor<float> (&b)[2]) {
    const unsigned high[] = {a[0].high, a[1].high, a[2].high, a[3].high};
    const unsigned low[] = {a[0].low, a[1].low, a[2].low, a[3].low};
    multiply_tf32(sum, high, b[0].high, b[1].high);
    multiply_tf32(rest, high, b[0].low, b[1].low);
    multiply_tf32(rest, low, b[0].high, b[1].high);
}
__device__ __forceinline__ void multiply(double (&sum)[4], double (&)[4],
                                         const Factor<double> (&a)[4],
                                         const Factor<double> (&b)[2]) {
    multiply_f64(sum[0], sum[1], a[0].value, b[0].value);
    multiply_f64(sum[2], sum[3], a[1].value, b[0].value);
    multiply_f64(sum[0], sum[1], a[2].value, b[1].value);
    multiply_f64(sum[2], sum[3], a[3].value, b[1].value);
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __noinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __noinline__ double logarithm(double x) { return log(x); }

__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
    return value;
}
__device__ __forceinline__ Real warp_max(Real value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        const Real other = from_lane_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

// What the proximal operator of the L1 penalty takes off a weight.
__device__ __forceinline__ Real clip(Real w, Real threshold) {
    return w > threshold ? threshold : (w < -threshold ? -threshold : w);
}

// A thread at work.
struct Worker {
    const Arguments a;
    const int thread, lane, warp, g, t, block, blocks;
    const int of_model, columns, wide, rows;
    Scratch s;
    char *const shared;
    unsigned turn = 0;

    __device__ __forceinline__ explicit Worker(const Arguments &a)
        : a(a), thread(threadIdx.x), lane(thread % WARP), warp(thread / WARP), g(lane / 4),
          t(lane % 4), block(blockIdx.x), blocks(gridDim.x),
          of_model((a.classes + TILE - 1) / TILE * TILE), columns(a.models * of_model),
          wide((a.d + TILE - 1) / TILE * TILE), rows((a.batch + TILE - 1) / TILE * TILE),
          shared(reinterpret_cast<char *>(shared_memory)) {
        Real *next = a.memory;
        auto take = [&](size_t count) {
            Real *piece = next;
            next += count;
            return piece;
        };
        s.sums = reinterpret_cast<double *>(take(size_t(16 / WORD) * blocks * WARPS));
        s.coef = take(size_t(columns) * wide);
        s.velocity = take(size_t(columns) * wide);
        s.bias = take(columns);
        s.bias_velocity = take(columns);
        s.logits = take(size_t(a.splits) * rows * columns);
        s.residual = take(size_t(rows) * columns);
        s.batch = reinterpret_cast<Value *>(take(size_t(rows) * wide * SIZE / WORD));
    }

    __device__ __forceinline__ void meet() { grid_barrier(a.counter, turn++); }

    __device__ __forceinline__ int rows_in(int step) const {
        const int left = a.n - step * a.batch;
        return left < a.batch ? left : a.batch;
    }

    // Of COUNT rows of X, copies 16 bytes ahead, from feature f on, to places that are STRIDE bytes
    // apart; what is beyond the rows is zero, and all of rows that are below zero.
    template <int COUNT, int STRIDE>
    __device__ __forceinline__ void copy_of_X(char *to, const int (&row)[COUNT], int f) const {
        const int left = (a.d - f) * SIZE, there = left < 0 ? 0 : (left > 16 ? 16 : left);
        if (a.copy == 16) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                copy_ahead<16>(address_of(to + i * STRIDE), from(row[i], f), row[i] < 0 ? 0 : there);
            return;
        }
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const Value *const values = from(row[i], f);
            const int bytes = row[i] < 0 ? 0 : there;
            if (a.copy > 1) {
#pragma unroll
                for (int j = 0; j < 16 / SMALL; ++j)
                    copy_ahead<SMALL>(address_of(to + i * STRIDE + SMALL * j),
                                      values + j * (SMALL / SIZE), SMALL * j < bytes ? SMALL : 0);
            } else {
#pragma unroll
                for (int j = 0; j < 16 / SIZE; ++j)
                    reinterpret_cast<Value *>(to + i * STRIDE)[j] =
                        j * SIZE < bytes ? values[j] : Value{};
            }
        }
    }

    // Where values of a row are, of which none may be read where the row is below zero.
    __device__ __forceinline__ const Value *from(int row, int f) const {
        return a.X + (size_t(row < 0 ? 0 : row) * a.d + f);
    }

    // Weights as they come, a column per warp; intercepts are kept at the preconditioner's origin.
    __device__ __forceinline__ void start() const {
        for (int c = block * WARPS + warp; c < columns; c += blocks * WARPS) {
            const int model = c / of_model, k = c % of_model;
            const size_t row = size_t(model) * a.classes + k, to = size_t(c) * wide;
            Real dot = 0;
            for (int f = lane; f < wide; f += WARP) {
                const bool inside = k < a.classes && f < a.d;
                const Real w = inside ? a.coef[row * a.d + f] : Real(0);
                s.coef[to + f] = w;
                s.velocity[to + f] = inside ? a.velocity[row * a.d + f] : Real(0);
                if (inside && a.mean) dot += w * a.mean[size_t(model) * a.d + f];
            }
            dot = warp_sum(dot);
            if (lane > 0) continue;
            s.bias[c] = k < a.classes ? a.intercept[row] + dot : Real(0);
            s.bias_velocity[c] = k < a.classes ? a.intercept_velocity[row] : Real(0);
        }
    }

    // The rows of X of a tile in the forward phase: those whose values a thread copies.
    struct Rows {
        static constexpr int CHUNKS = DEEP * SIZE / 16, AT_ONCE = THREADS / CHUNKS;
        static constexpr int COUNT = TILE / AT_ONCE;
        int row[COUNT], first, last;  // and the parts of DEEP features
    };

    __device__ __forceinline__ Rows rows_of(int step, int of_rows, int part) const {
        const int size = rows_in(step), deep = (a.d + DEEP - 1) / DEEP;
        Rows rows;
        rows.first = part * deep / a.splits;
        rows.last = (part + 1) * deep / a.splits;
#pragma unroll
        for (int i = 0; i < Rows::COUNT; ++i) {
            const int r = of_rows * TILE + thread / Rows::CHUNKS + i * Rows::AT_ONCE;
            rows.row[i] = r < size ? a.place[step * a.batch + r] : -1;
        }
        return rows;
    }

    __device__ __forceinline__ void fetch_rows(const Rows &rows, int it) const {
        if (it >= rows.last) return;
        char *const stage = shared + (it - rows.first) % STAGES * STAGE;
        const int chunk = thread % Rows::CHUNKS, row = thread / Rows::CHUNKS;
        copy_of_X<Rows::COUNT, Rows::AT_ONCE * DEEP_OF_X>(
            stage + row * DEEP_OF_X + chunk * 16, rows.row, it * DEEP + chunk * (16 / SIZE));
    }

    // Keeps rows for the backward phase, which would take them from everywhere in X once more: a tile
    // in as many parts as there are tiles of classes, each of which has it.
    __device__ __forceinline__ void keep(int of_rows, int it, const char *stage) const {
        const int chunk = thread % Rows::CHUNKS, row = thread / Rows::CHUNKS;
        const char *const from = stage + row * DEEP_OF_X + chunk * 16;
        Value *const to = s.batch + size_t(of_rows * TILE + row) * wide + it * DEEP +
                          chunk * (16 / SIZE);
#pragma unroll
        for (int i = 0; i < Rows::COUNT; ++i) {
            const char *const here = from + i * Rows::AT_ONCE * DEEP_OF_X;
            __stcg(reinterpret_cast<uint4 *>(to + size_t(i) * Rows::AT_ONCE * wide),
                   *reinterpret_cast<const uint4 *>(here));
        }
    }

    // The place of a block's tile in the forward phase, the first of which is that of the block.
    struct Tile {
        int rows, columns, part;
    };
    __device__ __forceinline__ Tile tile(int step, int i) const {
        const int high = (rows_in(step) + TILE - 1) / TILE, across = columns / TILE;
        return {i % high, i / high % across, i / (high * across)};
    }

    // What the forward phase of a step needs of X at first, asked for before other blocks are done.
    __device__ __forceinline__ void look_forward(int step) const {
        const Tile mine = tile(step, block);
        if (mine.part >= a.splits) return;
        const Rows rows = rows_of(step, mine.rows, mine.part);
#pragma unroll
        for (int it = 0; it < STAGES - 1; ++it) fetch_rows(rows, rows.first + it);
    }

    // Logits of TILE rows by TILE classes, as far as some of the features make them; where it has
    // looked forward, the block has its first rows.
    __device__ __forceinline__ void forward(int step, Tile place, bool looked) const {
        const int of_rows = place.rows, of_columns = place.columns, part = place.part;
        const Rows mine = rows_of(step, of_rows, part);
        const int first = mine.first, last = mine.last;
        constexpr int W_CHUNKS = DEEP * WORD / 16, W_ROWS = THREADS / W_CHUNKS;
        constexpr int MEANS = TILE * (DEEP_OF_X + DEEP_OF_REALS);  // of a stage
        const int w_chunk = thread % W_CHUNKS, w_row = thread / W_CHUNKS;
        const Real *const weights =
            s.coef + size_t(of_columns * TILE + w_row) * wide + w_chunk * (16 / WORD);
        const int model = of_columns * TILE / of_model;
        const Real *const mean = a.mean ? a.mean + size_t(model) * a.d : nullptr;
        auto fetch = [&](int it) {
            if (it < last) {
                char *const stage = shared + (it - first) % STAGES * STAGE;
                const Address to = address_of(stage + TILE * DEEP_OF_X + w_row * DEEP_OF_REALS +
                                              w_chunk * 16);
#pragma unroll
                for (int i = 0; i < TILE / W_ROWS; ++i)
                    copy_ahead<16>(to + i * W_ROWS * DEEP_OF_REALS,
                                   weights + size_t(i) * W_ROWS * wide + it * DEEP);
                const int f = it * DEEP + thread;
                if (thread < DEEP && mean)
                    copy_ahead<WORD>(address_of(stage + MEANS + WORD * thread),
                                     f < a.d ? mean + f : mean, f < a.d ? WORD : 0);
            }
            commit_copies();
        };
        Real sum[2][4][4], rest[2][4][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[i][j][c] = rest[i][j][c] = 0;
#pragma unroll
        for (int it = 0; it < STAGES - 1; ++it) {
            if (!looked) fetch_rows(mine, first + it);
            fetch(first + it);
        }
        Real *const plus = reinterpret_cast<Real *>(shared + STAGES * STAGE);  // (TILE,)
        if (thread < TILE) {
            const int c = of_columns * TILE + thread;
            plus[thread] = part == 0 ? __ldcg(s.bias + c) : Real(0);
        }
        const int m = warp / 2 * (TILE / 2), n = warp % 2 * (TILE / 2);
        for (int it = first; it < last; ++it) {
            wait_for_groups<STAGES - 2>();
            __syncthreads();
            fetch_rows(mine, it + STAGES - 1);
            fetch(it + STAGES - 1);
            const char *const stage = shared + (it - first) % STAGES * STAGE;
            if (it % (columns / TILE) == of_columns) keep(of_rows, it, stage);
            // Of eight features, 2 t and 2 t + 1 are the product's t and t + 4, in both factors.
            const char *const x = stage + (m + g) * DEEP_OF_X + 2 * t * SIZE;
            const char *const w = stage + TILE * DEEP_OF_X + (n + g) * DEEP_OF_REALS + 2 * t * WORD;
            const char *const means = stage + MEANS + 2 * t * WORD;
#pragma unroll
            for (int ks = 0; ks < DEEP / 8; ++ks) {
                Factor<Real> of_X[2][4];
                Two u = {0, 0};
                if (mean) u = *reinterpret_cast<const Two *>(means + 8 * ks * WORD);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const char *const here = x + 16 * i * DEEP_OF_X + 8 * ks * SIZE;
                    const Two p = two_of(here), q = two_of(here + 8 * DEEP_OF_X);
                    of_X[i][0] = p.x - u.x;
                    of_X[i][1] = q.x - u.x;
                    of_X[i][2] = p.y - u.y;
                    of_X[i][3] = q.y - u.y;
                }
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const Two p = *reinterpret_cast<const Two *>(w + 8 * j * DEEP_OF_REALS +
                                                                 8 * ks * WORD);
                    Factor<Real> of_W[2];
                    of_W[0] = p.x;
                    of_W[1] = p.y;
#pragma unroll
                    for (int i = 0; i < 2; ++i) multiply(sum[i][j], rest[i][j], of_X[i], of_W);
                }
            }
        }
        const size_t top = size_t(part) * rows + of_rows * TILE + m + g;
        Real *const out = s.logits + top * columns + of_columns * TILE + n + 2 * t;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const Two more = *reinterpret_cast<const Two *>(plus + n + 8 * j + 2 * t);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    put(out + size_t(16 * i + 8 * h) * columns + 8 * j,
                        Two{sum[i][j][2 * h] + rest[i][j][2 * h] + more.x,
                            sum[i][j][2 * h + 1] + rest[i][j][2 * h + 1] + more.y});
        }
        wait_for_groups<0>();
        __syncthreads();
    }

    // What a row should be, class by class.
    struct Target {
        const Real *soft, *smoothing;
        int label;
        Real hard_share;

        __device__ __forceinline__ Real of(int k) const {
            const Real t = soft ? soft[k] : (k == label ? Real(1) : Real(0));
            return smoothing ? hard_share * t + smoothing[k] : t;
        }
    };

    __device__ __forceinline__ Real hard_share(int model) const {
        Real sum = 0;
        if (a.smoothing)
            for (int k = lane; k < a.classes; k += WARP) sum += a.smoothing[model * a.classes + k];
        return 1 - warp_sum(sum);
    }

    // What the warps of a row know together: the sum of the first three, and of the last the largest.
    // Of a single warp, it is what that knows. `turn` changes from call to call.
    template <int TEAM>
    __device__ __forceinline__ void share(Real (&values)[4], int turn) const {
#pragma unroll
        for (int i = 0; i < 3; ++i) values[i] = warp_sum(values[i]);
        values[3] = warp_max(values[3]);
        if (TEAM == 1) return;
        Four *const all = reinterpret_cast<Four *>(shared + STAGES * STAGE) + turn % 2 * WARPS;
        if (lane == 0) all[warp] = {values[0], values[1], values[2], values[3]};
        __syncthreads();
        Four sum = all[0];
#pragma unroll
        for (int other = 1; other < WARPS; ++other) {
            sum.x += all[other].x;
            sum.y += all[other].y;
            sum.z += all[other].z;
            sum.w = all[other].w > sum.w ? all[other].w : sum.w;
        }
        values[0] = sum.x, values[1] = sum.y, values[2] = sum.z, values[3] = sum.w;
    }

    // A row's target; of soft ones, the label is the first of the likeliest classes.
    template <int TEAM>
    __device__ __forceinline__ Target target_of(int model, size_t row, Real hard_share) const {
        Target target{a.target ? a.target + row * a.classes : nullptr,
                      a.smoothing ? a.smoothing + model * a.classes : nullptr,
                      a.label ? int(a.label[row]) : 0, hard_share};
        if (!target.soft) return target;
        const int member = TEAM == 1 ? lane : thread;
        Real most[4] = {0, 0, 0, LOWEST}, first[4] = {0, 0, 0, LOWEST};
        for (int k = member; k < a.classes; k += WARP * TEAM)
            if (target.soft[k] > most[3]) most[3] = target.soft[k], first[3] = -k;
        const Real mine = most[3];
        share<TEAM>(most, 0);
        if (mine != most[3]) first[3] = LOWEST;
        share<TEAM>(first, 1);
        target.label = int(-first[3]);
        return target;
    }

    // Loss and residual of a row, at which TEAM warps work: each thread has every so many-th class,
    // REGISTERS at a time: all, or where they are more, some after the other from memory.
    template <int TEAM, int REGISTERS>
    __device__ __forceinline__ void softmax(int step, int model, int r, Real hard_share,
                                            double &loss, double &correct) const {
        constexpr int MEMBERS = WARP * TEAM;
        const int member = TEAM == 1 ? lane : thread;
        const size_t at = size_t(r) * columns + model * of_model, next = size_t(rows) * columns;
        Real *const logits = s.logits + at, *const residual = s.residual + at;
        if (r >= rows_in(step)) {
            for (int k = member; k < of_model; k += MEMBERS) __stcg(residual + k, Real(0));
            return;
        }
        const size_t row = a.visit[step * a.batch + r];
        const Target target = target_of<TEAM>(model, row, hard_share);
        const bool once = a.classes <= MEMBERS * REGISTERS;
        Real z[REGISTERS], top[4] = {0, 0, 0, LOWEST};
        auto chunk = [&](int from) {  // the logits of some classes
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) {
                const int k = from + member + MEMBERS * i;
                z[i] = k < a.classes ? __ldcg(logits + k) : LOWEST;
            }
        };
        for (int from = 0; from < a.classes; from += MEMBERS * REGISTERS) {
            chunk(from);
            for (int part = 1; part < a.splits; ++part)
#pragma unroll
                for (int i = 0; i < REGISTERS; ++i) {
                    const int k = from + member + MEMBERS * i;
                    if (k < a.classes) z[i] += __ldcg(logits + part * next + k);
                }
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) {
                const int k = from + member + MEMBERS * i;
                if (!once && k < a.classes) __stcg(logits + k, z[i]);
                top[3] = z[i] > top[3] ? z[i] : top[3];
            }
        }
        share<TEAM>(top, 0);
        // Of the exponentials, the targets, these times the logits; and less the first likeliest class.
        Real sums[4] = {0, 0, 0, LOWEST};
        for (int from = 0; from < a.classes; from += MEMBERS * REGISTERS) {
            if (!once) chunk(from);
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) {
                const int k = from + member + MEMBERS * i;
                if (k >= a.classes) continue;
                const Real below = z[i] - top[3], part = target.of(k);
                if (below == 0 && -k > sums[3]) sums[3] = -k;
                if (part != 0) {
                    sums[1] += part;
                    sums[2] += part * below;
                }
                z[i] = exponential(below);
                sums[0] += z[i];
            }
        }
        share<TEAM>(sums, 1);
        const size_t of_row = row * a.u + (a.weight ? a.column[model] : 0);
        const Real weight = a.weight ? a.weight[of_row] : Real(1), factor = 1 / sums[0];
        for (int from = 0; from < a.classes; from += MEMBERS * REGISTERS) {
            if (!once) chunk(from);
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) {
                const int k = from + member + MEMBERS * i;
                if (k >= a.classes) continue;
                const Real p = once ? z[i] : exponential(z[i] - top[3]);
                __stcg(residual + k, weight * (p * factor - target.of(k)));
            }
        }
        for (int k = a.classes + member; k < of_model; k += MEMBERS) __stcg(residual + k, Real(0));
        if (member > 0) return;
        loss += weight * (sums[1] * logarithm(sums[0]) - sums[2]);
        if (-sums[3] == target.label) correct += a.score_weight ? a.score_weight[of_row] : weight;
    }

    // The rows of a batch. Each warp, or each block, has those of a model.
    template <int TEAM, int REGISTERS>
    __device__ __forceinline__ void softmax(int step, double &loss, double &correct) const {
        const int teams = TEAM == 1 ? blocks * WARPS : blocks;
        const int team = TEAM == 1 ? warp * blocks + block : block, model = team % a.models;
        const int stride = (teams - model + a.models - 1) / a.models;
        const Real hard = hard_share(model);
        for (int r = team / a.models; r < (rows_in(step) + DEEP - 1) / DEEP * DEEP; r += stride)
            softmax<TEAM, REGISTERS>(step, model, r, hard, loss, correct);
    }

    // DEEP rows of N features of the batch, for the backward phase.
    template <int N> __device__ __forceinline__ void fetch_batch(int step, int of_features, int it)
        const {
        constexpr int CHUNKS = N * SIZE / 16, AT_ONCE = THREADS / CHUNKS;
        constexpr int COUNT = AT_ONCE < DEEP ? DEEP / AT_ONCE : 1;
        const int chunk = thread % CHUNKS, row = thread / CHUNKS;
        if (it * DEEP >= rows_in(step) || (AT_ONCE > DEEP && row >= DEEP)) return;
        const int f = of_features * N + chunk * (16 / SIZE);
        const bool there = f < (a.d + DEEP - 1) / DEEP * DEEP;
        char *const to = shared + it % STAGES * STAGE + DEEP * TILE_OF_REALS + chunk * 16;
        const Value *const from = s.batch + size_t(it * DEEP + row) * wide + f;
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            copy_ahead<16>(address_of(to + (row + i * AT_ONCE) * TILE_OF_X),
                           from + size_t(i) * AT_ONCE * wide, there ? 16 : 0);
    }

    // As look_forward does, once the rows are kept.
    template <int M, int N> __device__ __forceinline__ void look_backward(int step) const {
        if (block >= columns / M * (wide / N)) return;
#pragma unroll
        for (int it = 0; it < STAGES - 1; ++it) fetch_batch<N>(step, block / (columns / M), it);
    }

    // The gradient of M classes by N features, and the step of these weights.
    template <int M, int N>
    __device__ __forceinline__ void backward(int step, int of_columns, int of_features,
                                             bool looked) const {
        constexpr int I = M / 32, J = N / 32;  // tiles of 16 classes and pairs of tiles of 8 features
        constexpr int R_CHUNKS = M * WORD / 16, R_ROWS = THREADS / R_CHUNKS;
        const int size = rows_in(step), deep = (size + DEEP - 1) / DEEP;
        const int model = of_columns * M / of_model;
        const int r_chunk = thread % R_CHUNKS, r_row = thread / R_CHUNKS;
        const Real *const residual = s.residual + of_columns * M + r_chunk * (16 / WORD);
        auto fetch = [&](int it) {
            if (it < deep) {
                char *const stage = shared + it % STAGES * STAGE;
#pragma unroll
                for (int i = 0; i < (DEEP + R_ROWS - 1) / R_ROWS; ++i) {
                    const int r = r_row + i * R_ROWS;
                    if (R_ROWS <= DEEP || r < DEEP)
                        copy_ahead<16>(address_of(stage + r * TILE_OF_REALS + r_chunk * 16),
                                         residual + size_t(it * DEEP + r) * columns);
                }
            }
            commit_copies();
        };
        Real sum[I][2 * J][4], rest[I][2 * J][4], of_class[I][2];
#pragma unroll
        for (int i = 0; i < I; ++i) {
            of_class[i][0] = of_class[i][1] = 0;
#pragma unroll
            for (int j = 0; j < 2 * J; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[i][j][c] = rest[i][j][c] = 0;
        }
#pragma unroll
        for (int it = 0; it < STAGES - 1; ++it) {
            if (!looked) fetch_batch<N>(step, of_features, it);
            fetch(it);
        }
        const int m = warp / 2 * (M / 2), n = warp % 2 * (N / 2);
        Two u[J];  // means of this thread's features
#pragma unroll
        for (int j = 0; j < J; ++j) {
            const int f = of_features * N + n + 2 * g + 16 * j;
            const Real *const mean = a.mean + size_t(model) * a.d;
            u[j].x = a.mean && f < a.d ? mean[f] : Real(0);
            u[j].y = a.mean && f + 1 < a.d ? mean[f + 1] : Real(0);
        }
        for (int it = 0; it < deep; ++it) {
            wait_for_groups<STAGES - 2>();
            __syncthreads();
            fetch_batch<N>(step, of_features, it + STAGES - 1);
            fetch(it + STAGES - 1);
            const char *const stage = shared + it % STAGES * STAGE;
            // Row g of a product is class 2 g, and row g + 8 class 2 g + 1; column g is feature 2 g in
            // one product and 2 g + 1 in the next.
            const char *const r = stage + t * TILE_OF_REALS + (m + 2 * g) * WORD;
            const char *const x = stage + DEEP * TILE_OF_REALS + t * TILE_OF_X + (n + 2 * g) * SIZE;
#pragma unroll
            for (int ks = 0; ks < DEEP / 8; ++ks) {
                Factor<Real> of_residual[I][4];
#pragma unroll
                for (int i = 0; i < I; ++i) {
                    const char *const here = r + 8 * ks * TILE_OF_REALS + 16 * i * WORD;
                    const Two p = *reinterpret_cast<const Two *>(here);
                    const Two q = *reinterpret_cast<const Two *>(here + 4 * TILE_OF_REALS);
                    if (of_features == 0) {
                        of_class[i][0] += p.x + q.x;
                        of_class[i][1] += p.y + q.y;
                    }
                    of_residual[i][0] = p.x;
                    of_residual[i][1] = p.y;
                    of_residual[i][2] = q.x;
                    of_residual[i][3] = q.y;
                }
#pragma unroll
                for (int j = 0; j < J; ++j) {
                    const char *const here = x + 8 * ks * TILE_OF_X + 16 * j * SIZE;
                    const Two p = two_of(here), q = two_of(here + 4 * TILE_OF_X);
                    Factor<Real> of_X[2][2];
                    of_X[0][0] = p.x - u[j].x;
                    of_X[1][0] = p.y - u[j].y;
                    of_X[0][1] = q.x - u[j].x;
                    of_X[1][1] = q.y - u[j].y;
#pragma unroll
                    for (int i = 0; i < I; ++i)
#pragma unroll
                        for (int c = 0; c < 2; ++c)
                            multiply(sum[i][2 * j + c], rest[i][2 * j + c], of_residual[i], of_X[c]);
                }
            }
        }
        wait_for_groups<0>();
        __syncthreads();
        step_of_weights<M, N>(step, model, of_columns * M + m, of_features * N + n, sum, rest,
                              of_class);
    }

    template <int M, int N>
    __device__ __forceinline__ void step_of_weights(
        int step, int model, int top, int left, Real (&sum)[M / 32][N / 16][4],
        Real (&rest)[M / 32][N / 16][4], Real (&of_class)[M / 32][2]) const {
        const Real rate = a.rate[step * size_t(a.models) + model], per_row = Real(1) / rows_in(step);
        const Real l2 = a.l2[model], l1 = a.l1[model], momentum = a.momentum[model];
        constexpr int AT_ONCE = 2;             // classes
        constexpr bool AHEAD = WORD == 4;      // of doubles, registers have no room
        Real scale[N / 32][4];
#pragma unroll
        for (int j = 0; j < N / 32; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int f = left + 16 * j + 4 * t + c;
                const Real *const known = a.inverse_scale;
                scale[j][c] = f >= a.d ? Real(0) : known ? known[size_t(model) * a.d + f] : Real(1);
            }
#pragma unroll
        for (int from = 0; from < M / 16; from += AT_ONCE) {
            // They are asked for before any is written: they might be the same, for all that the
            // compiler knows.
            Four w[AT_ONCE][N / 32], v[AT_ONCE][N / 32];
            const auto place = [&](int row, int j) {
                return size_t(top + 16 * (row / 2) + 2 * g + row % 2) * wide + left + 4 * t + 16 * j;
            };
#pragma unroll
            for (int one = 0; one < AT_ONCE; ++one)
#pragma unroll
                for (int j = 0; j < N / 32; ++j) {
                    if (!AHEAD) continue;
                    w[one][j] = get_four(s.coef + place(from + one, j));
                    v[one][j] = get_four(s.velocity + place(from + one, j));
                }
#pragma unroll
            for (int one = 0; one < AT_ONCE; ++one) {
                const int i = (from + one) / 2, h = (from + one) % 2;
                Real of_all = of_class[i][h];
                of_all += from_lane_xor(of_all, 1);
                of_all += from_lane_xor(of_all, 2);
                const int c = top + 16 * i + 2 * g + h;
#pragma unroll
                for (int j = 0; j < N / 32; ++j) {
                    if (!AHEAD) {
                        w[one][j] = get_four(s.coef + place(from + one, j));
                        v[one][j] = get_four(s.velocity + place(from + one, j));
                    }
                    auto take = [&](int tile, int column, int q, Real &w, Real &v) {
                        const Real total =
                            sum[i][tile][2 * h + column] + rest[i][tile][2 * h + column];
                        const Real unit = scale[j][q], slope = total * per_row + l2 * w;
                        v = momentum * v - rate * (slope * unit * unit);
                        w += v;
                        if (l1 > 0) {
                            const Real clipped = clip(w, rate * (l1 * unit * unit));
                            w -= clipped;
                            v -= clipped;
                        }
                    };
                    take(2 * j, 0, 0, w[one][j].x, v[one][j].x);
                    take(2 * j + 1, 0, 1, w[one][j].y, v[one][j].y);
                    take(2 * j, 1, 2, w[one][j].z, v[one][j].z);
                    take(2 * j + 1, 1, 3, w[one][j].w, v[one][j].w);
                    put(s.coef + place(from + one, j), w[one][j]);
                    put(s.velocity + place(from + one, j), v[one][j]);
                }
                if (left == 0 && t == 0 && a.fit_intercept) {
                    const Real v = momentum * __ldcg(s.bias_velocity + c) - rate * (of_all * per_row);
                    __stcg(s.bias_velocity + c, v);
                    __stcg(s.bias + c, __ldcg(s.bias + c) + v);
                }
            }
        }
    }

    // What was learned.
    __device__ __forceinline__ void finish() const {
        for (int c = block * WARPS + warp; c < columns; c += blocks * WARPS) {
            const int model = c / of_model, k = c % of_model;
            if (k >= a.classes) continue;
            const size_t row = size_t(model) * a.classes + k, from = size_t(c) * wide;
            Real dot = 0;
            for (int f = lane; f < a.d; f += WARP) {
                const Real w = __ldcg(s.coef + from + f);
                a.new_coef[row * a.d + f] = w;
                a.new_velocity[row * a.d + f] = __ldcg(s.velocity + from + f);
                if (a.mean) dot += w * a.mean[size_t(model) * a.d + f];
            }
            dot = warp_sum(dot);
            if (lane > 0) continue;
            a.new_intercept[row] = __ldcg(s.bias + c) - dot;
            a.new_intercept_velocity[row] = __ldcg(s.bias_velocity + c);
        }
        if (block > 0) return;
        // Of blocks that have rows together, the first warp knows all.
        const int teams = a.classes <= WARP * FEW ? blocks * WARPS : blocks;
        for (int i = thread; i < 2 * a.models; i += THREADS) {
            double sum = 0;
            for (int team = i / 2; team < teams; team += a.models)
                sum += __ldcg(s.sums + 2 * team + i % 2);
            a.sums[i % 2 * a.models + i / 2] = sum;
        }
    }

    template <int M, int N> __device__ __forceinline__ void backward(int step) const {
        const int across = columns / M;
        for (int i = block; i < across * (wide / N); i += blocks)
            backward<M, N>(step, i % across, i / across, i == block);
    }

    __device__ __forceinline__ void run() {
        const int steps = (a.n + a.batch - 1) / a.batch;
        // Tiles are small where blocks would have none.
        const bool narrow = columns / TILE * (wide / TILE) * 2 <= blocks;
        double loss = 0, correct = 0;
        look_forward(0);
        start();
        meet();
        for (int step = 0; step < steps; ++step) {
            for (int i = block; tile(step, i).part < a.splits; i += blocks)
                forward(step, tile(step, i), i == block);
            meet();
            if (narrow) look_backward<32, 32>(step);
            else look_backward<TILE, TILE>(step);
            if (a.classes <= WARP * FEW) softmax<1, FEW>(step, loss, correct);
            else softmax<WARPS, 2 * FEW>(step, loss, correct);
            meet();
            if (narrow) backward<32, 32>(step);
            else backward<TILE, TILE>(step);
            if (step + 1 < steps) look_forward(step + 1);
            meet();
        }
        if (lane == 0) {
            const int slot = warp * blocks + block;
            __stcg(s.sums + 2 * slot, loss);
            __stcg(s.sums + 2 * slot + 1, correct);
        }
        meet();
        finish();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) sgd_epoch_of_many_classes(
    const Value *X, const int *place, const int *visit, int n, int batch, int d, int classes,
    int models, int copy, int splits, const long long *label, const Real *target,
    const Real *weight, const Real *score_weight, int u, const int *column,
    const Real *smoothing, const Real *mean, const Real *inverse_scale, const Real *rate,
    const Real *l2, const Real *l1, const Real *momentum, int fit_intercept, const Real *coef,
    const Real *velocity, const Real *intercept, const Real *intercept_velocity,
    Real *new_coef, Real *new_velocity, Real *new_intercept, Real *new_intercept_velocity,
    double *sums, unsigned *counter, Real *memory)
{
    Worker worker(Arguments{
        X, place, visit, n, batch, d, classes, models, copy, splits, label, target, weight,
        score_weight, u, column, smoothing, mean, inverse_scale, rate, l2, l1, momentum,
        fit_intercept, coef, velocity, intercept, intercept_velocity, new_coef, new_velocity,
        new_intercept, new_intercept_velocity, sums, counter, memory});
    worker.run();
}
