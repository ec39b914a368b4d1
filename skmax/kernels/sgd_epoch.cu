// An epoch of minibatch SGD on a stack of models, in one launch: what skmax.solvers.sgd.sgd_epoch
// does, on dense rows. Shapes are those of skmax.problem.
//
// CLUSTER blocks train one model; models do not wait for each other. Each block of a cluster has a
// slice of the features, and keeps the weights and velocities of that slice in shared memory for
// the whole epoch. A step has four phases:
//   forward   every block: the part of each row's logits that its features make, sent to the block
//             that owns the row;
//   softmax   the owner: loss and residual of its rows, sent to all blocks;
//   backward  every block: the gradient of its slice, from all rows;
//   update    every block: the step of its slice.
// Only logits and residuals cross between blocks. All sums are taken in a fixed order, so that two
// runs are equal to the last bit.
//
// Batches pass through shared memory in tiles of features: each tile is copied there while the one
// before is worked on. The forward phase takes them in order and the backward phase in the opposite
// order, so that the last one is read once; with a single tile, all of X is.
//
// The build defines
//   REAL     float or double: weights and arithmetic
//   DATA     the type of X; half where it is float16
//   K        classes
//   CLUSTER  blocks per model: 1, or up to 8 from compute capability 9.0 on
//   THREADS  threads per block, a multiple of 32
//   ROWS     rows of a batch per thread in the forward phase
//   SHARE    threads that multiply these and their neighbours' rows together, each some features
//   V        neighbouring features that a thread multiplies at once: 1, 2 or 4
//   SHIFTED  1 where something is subtracted from X
//   COPY     bytes that are copied at once, 4, 8 or 16: what rows, slices and tiles are multiples
//            of; 0 where there is no such number
// and HOST_EMULATION, with definitions of the primitives below, where it is built for a CPU.

#ifndef HOST_EMULATION

typedef unsigned long long uint64;
extern __shared__ __align__(16) uint64 shared_memory[];

struct half {
    unsigned short bits;
};
__device__ inline float to_float(half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

// A barrier for all blocks of a model; what was written to shared memory before is seen after it.
__device__ inline void cluster_barrier() {
#if CLUSTER == 1
    __syncthreads();
#else
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;"
                 ::: "memory");
#endif
}

// The same place in the shared memory of another block of the cluster.
template <typename T> __device__ inline T *in_block(T *place, int block) {
#if CLUSTER == 1
    return place;
#else
    uint64 there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(place), "r"(block));
    return reinterpret_cast<T *>(there);
#endif
}

__device__ inline REAL from_lane(REAL value, int lane_mask) {
    return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

// Copies 4, 8 or 16 bytes to shared memory; they are there after wait_for_copies and a barrier.
template <int BYTES> __device__ inline void copy_ahead(void *to, const void *from) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                 :: "r"(shared), "l"(from), "n"(BYTES) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#if CLUSTER == 1
#define CLUSTERED
#else
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#endif

#endif  // HOST_EMULATION

template <typename T> __device__ inline float to_float(T value) {
    return static_cast<float>(value);
}
__device__ inline REAL to_real(double value) { return static_cast<REAL>(value); }
template <typename T> __device__ inline REAL to_real(T value) {
    return static_cast<REAL>(to_float(value));
}

constexpr int WARP = 32;
constexpr REAL LOWEST = REAL(-3e38);  // below all logits
constexpr int WARPS = THREADS / WARP;
constexpr int PADDED = (K + 3) / 4 * 4;                  // residuals of a row, for wide loads
constexpr int AT_ONCE = K * sizeof(REAL) <= 64 ? 4 : 1;  // rows on their way from shared memory

template <typename T> struct alignas(V * sizeof(T)) Vector {
    T value[V];
};

__device__ inline REAL warp_sum(REAL value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += from_lane(value, mask);
    return value;
}

__device__ inline float exponential(float x) { return expf(x); }
__device__ __noinline__ double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ __noinline__ double logarithm(double x) { return log(x); }

// What the proximal operator of the L1 penalty takes off a weight.
__device__ inline REAL clip(REAL w, REAL threshold) {
    return w > threshold ? threshold : (w < -threshold ? -threshold : w);
}

// Of the features of a block, those that pass through shared memory together; and how threads share
// the rows of a batch in the forward phase: `across` rows at a time, each by `parts` threads.
struct Layout {
    int batch, owned, slice, tile, stride, groups, across, parts;
};

__device__ inline Layout lay_out(int batch, int slice, int tile, int groups) {
    Layout l;
    l.batch = batch;
    l.owned = (batch + CLUSTER - 1) / CLUSTER;
    l.slice = slice;
    l.tile = tile;
    l.stride = tile / V % 2 ? tile : tile + V;  // so that neighbouring rows are in other banks
    l.groups = groups;
    l.across = ROWS > 1 || batch > THREADS - WARP ? THREADS : (batch + WARP - 1) / WARP * WARP;
    l.parts = THREADS / l.across;
    return l;
}

// What a block keeps in shared memory, cut from one piece. skmax.kernels.cuda computes its
// size in the same way.
struct Shared {
    double *sums;                          // (THREADS, 2)
    REAL *coef, *velocity;                 // (slice / V, K, V): see at
    REAL *dot;                             // (slice / V, K): of these weights with the mean
    REAL *mean, *inverse_scale, *shift;    // (slice,)
    REAL *gradient;                        // (groups, tile / V, K, V)
    REAL *residual;                        // (batch, PADDED)
    REAL *part;                            // (CLUSTER * parts, K, owned)
    REAL *intercept, *intercept_velocity;  // (K,)
    REAL *at_mean, *by_intercept;          // (CLUSTER, K), (CLUSTER, WARPS, K)
    REAL *of_intercept;                    // (K,): the sums of by_intercept
    REAL *weight, *score;                  // (2, owned): of this step and the next
    int *label, *place;                    // (2, owned), (2, batch)
    DATA *rows;                            // (2, batch, stride)
};

__device__ inline Shared cut(char *memory, const Layout &l) {
    Shared s;
    size_t used = 0;
    auto take = [&](size_t bytes) {
        char *piece = memory + used;
        used += (bytes + 15) / 16 * 16;
        return piece;
    };
    auto reals = [&](size_t count) { return reinterpret_cast<REAL *>(take(count * sizeof(REAL))); };
    auto ints = [&](size_t count) { return reinterpret_cast<int *>(take(count * sizeof(int))); };
    s.sums = reinterpret_cast<double *>(take(2 * THREADS * sizeof(double)));
    s.coef = reals(K * l.slice);
    s.velocity = reals(K * l.slice);
    s.dot = reals(K * l.slice / V);
    s.mean = reals(l.slice);
    s.inverse_scale = reals(l.slice);
    s.shift = reals(l.slice);
    s.gradient = reals(l.groups * K * l.tile);
    s.residual = reals(l.batch * PADDED);
    s.part = reals(CLUSTER * l.parts * l.owned * K);
    s.intercept = reals(K);
    s.intercept_velocity = reals(K);
    s.at_mean = reals(CLUSTER * K);
    s.by_intercept = reals(CLUSTER * WARPS * K);
    s.of_intercept = reals(K);
    s.weight = reals(2 * l.owned);
    s.score = reals(2 * l.owned);
    s.label = ints(2 * l.owned);
    s.place = ints(2 * l.batch);
    s.rows = reinterpret_cast<DATA *>(take(2 * l.batch * l.stride * sizeof(DATA)));
    return s;
}

// Where a weight is: those that a thread multiplies lie together.
__device__ inline int at(int k, int f) { return f / V * (K * V) + k * V + f % V; }

// V neighbouring values of X, less the shift.
__device__ inline void load(REAL (&x)[V], const DATA *from, const Vector<REAL> &shift) {
    const Vector<DATA> values = *reinterpret_cast<const Vector<DATA> *>(from);
#pragma unroll
    for (int j = 0; j < V; ++j)
        x[j] = to_real(values.value[j]) - (SHIFTED ? shift.value[j] : REAL(0));
}

// The kernel's arguments; which are null says what there is none of.
struct Arguments {
    const DATA *X;               // rows of d values
    const int *place;            // (n,): the row of X that is visited when
    int n, batch, d;
    const REAL *shift;           // (d,), or null
    const uint64 *label;         // (n,), in the order of the visits; or null: see target
    const REAL *target;          // (n, K), likewise; or null
    const REAL *weight;          // (n, u), likewise; or null: all 1
    const REAL *score_weight;    // (n, u), likewise; or null: as weight
    int u;
    const int *column;           // (m,): a model's weights
    const REAL *smoothing;       // (m, K), or null
    const REAL *mean;            // (m, d), or null: zero
    const REAL *inverse_scale;   // (m, d), or null: one
    const REAL *rate;            // (steps, m)
    const REAL *l2, *l1, *momentum;  // (m,)
    int fit_intercept;
    REAL *coef, *velocity;       // (m, K, d), in and out
    REAL *intercept, *intercept_velocity;          // (m, K), in and out
    double *sums;                // (CLUSTER, 2, m), out: loss and correct
};

// A thread of a block at work.
struct Worker {
    const Arguments a;
    const Layout l;
    const Shared s;
    const int thread, lane, warp, rank, model, models, steps;
    const int own_begin;           // the first of the rows of a batch that the block owns
    const int begin, width;        // its features
    const int tiles, quads;        // its tiles, and how often V features are in one
    const int quad, group;         // of a tile's features and a batch's rows, those of this thread
    const REAL l2, l1, momentum;
    double loss = 0, correct = 0;
    int buffer = 0;                // which of s.rows is worked on

    __device__ __forceinline__ Worker(const Arguments &a, const Layout &l)
        : a(a), l(l), s(cut(reinterpret_cast<char *>(shared_memory), l)), thread(threadIdx.x),
          lane(thread % WARP), warp(thread / WARP), rank(blockIdx.x % CLUSTER),
          model(blockIdx.x / CLUSTER), models(gridDim.x / CLUSTER),
          steps((a.n + a.batch - 1) / a.batch), own_begin(rank * l.owned), begin(rank * l.slice),
          width(begin >= a.d ? 0 : (a.d - begin < l.slice ? a.d - begin : l.slice)),
          tiles((l.slice + l.tile - 1) / l.tile), quads(l.tile / V), quad(thread % quads),
          group(thread / quads), l2(a.l2[model]), l1(a.l1[model]),
          momentum(a.momentum[model]) {}

    __device__ __forceinline__ int rows_in(int step) const {
        const int left = a.n - step * l.batch;
        return left < l.batch ? left : l.batch;
    }

    // Where a weight of this block's is in memory that all share.
    __device__ __forceinline__ size_t in_all(int k, int f) const {
        return (model * size_t(K) + k) * a.d + begin + f;
    }

    __device__ __forceinline__ Vector<REAL> *vectors(REAL *values) const {
        return reinterpret_cast<Vector<REAL> *>(values);
    }

    // A step's indices, labels and weights.
    __device__ __forceinline__ void fetch_indices(int step) const {
        if (step >= steps) return;
        const int first = step * l.batch, size = rows_in(step), slot = step % 2;
        for (int r = thread; r < size; r += THREADS)
            copy_ahead<sizeof(int)>(s.place + slot * l.batch + r, a.place + first + r);
        for (int r = thread; r < l.owned && own_begin + r < size; r += THREADS) {
            const size_t row = first + own_begin + r;
            const int here = slot * l.owned + r;
            if (a.label) copy_ahead<sizeof(int)>(s.label + here, a.label + row);  // the lower half
            const size_t i = row * a.u + a.column[model];
            if (a.weight) copy_ahead<sizeof(REAL)>(s.weight + here, a.weight + i);
            if (a.score_weight) copy_ahead<sizeof(REAL)>(s.score + here, a.score_weight + i);
        }
    }

    // One of a step's tiles, each value by a thread that multiplies its feature later.
    __device__ __forceinline__ void fetch_tile(int step, int tile, int to_buffer) const {
        if (step >= steps) return;
        const int from = tile * l.tile + quad * V, size = rows_in(step), spread = THREADS / quads;
        if (group >= spread || from >= width) return;
        const int *where = s.place + step % 2 * l.batch;
        DATA *to = s.rows + to_buffer * l.batch * l.stride + quad * V;
#pragma unroll 8
        for (int r = group; r < size; r += spread) {
            const DATA *row = a.X + size_t(where[r]) * a.d + begin + from;
#if COPY
            copy_ahead<COPY>(to + r * l.stride, row);
#else
#pragma unroll
            for (int j = 0; j < V; ++j)
                if (from + j < width) to[r * l.stride + j] = row[j];
#endif
        }
    }

    // Goes on to the tile that has been fetched, and fetches the one that is next in line: tiles go
    // 0, 1, ..., and back.
    __device__ __forceinline__ void turn(int step, int next) const {
        wait_for_copies();
        __syncthreads();
        const int back = 2 * tiles - 2 - next;
        if (next < tiles) fetch_tile(step, next, 1 - buffer);
        else if (back >= 0) fetch_tile(step, back, 1 - buffer);
        else fetch_tile(step + 1, 0, 1 - buffer);
    }

    __device__ __forceinline__ void dot_with_mean() const {
        for (int i = thread; i < l.slice / V * K; i += THREADS) {
            REAL dot = 0;
#pragma unroll
            for (int j = 0; j < V; ++j) dot += s.coef[i * V + j] * s.mean[i / K * V + j];
            s.dot[i] = dot;
        }
    }

    // Sends the sums of these products to all blocks.
    __device__ __forceinline__ void send_at_mean() const {
        for (int k = warp; k < K; k += WARPS) {
            REAL sum = 0;
            for (int q = lane; q < l.slice / V; q += WARP) sum += s.dot[q * K + k];
            sum = warp_sum(sum);
            if (lane < CLUSTER) in_block(s.at_mean, lane)[rank * K + k] = sum;
        }
    }

    // What the weights of all blocks make of the mean.
    __device__ __forceinline__ REAL from_mean(int k) const {
        REAL sum = 0;
#pragma unroll
        for (int block = 0; block < CLUSTER; ++block) sum += s.at_mean[block * K + k];
        return sum;
    }

    __device__ __forceinline__ void start() const {
        cluster_barrier();  // the other blocks' memory exists once they have begun
        fetch_indices(0);
        fetch_indices(1);
        for (int f = thread; f < l.slice; f += THREADS) {
            const bool inside = f < width;
            const size_t i = model * size_t(a.d) + begin + f;
            s.mean[f] = inside && a.mean ? a.mean[i] : REAL(0);
            s.inverse_scale[f] = inside && a.inverse_scale ? a.inverse_scale[i] : REAL(1);
            s.shift[f] = inside && a.shift ? a.shift[begin + f] : REAL(0);
        }
        // What no row reaches is multiplied by zero, and must be a number.
        for (int i = thread; i < 2 * l.batch * l.stride; i += THREADS) s.rows[i] = {};
        for (int k = warp; k < K; k += WARPS)
            for (int f = lane; f < l.slice; f += WARP) {
                s.coef[at(k, f)] = f < width ? a.coef[in_all(k, f)] : REAL(0);
                s.velocity[at(k, f)] = f < width ? a.velocity[in_all(k, f)] : REAL(0);
            }
        wait_for_copies();
        __syncthreads();
        fetch_tile(0, 0, 0);
        dot_with_mean();
        __syncthreads();
        send_at_mean();
        cluster_barrier();
        for (int k = thread; k < K; k += THREADS) {
            s.intercept[k] = a.intercept[model * K + k] + from_mean(k);
            s.intercept_velocity[k] = a.intercept_velocity[model * K + k];
        }
        cluster_barrier();  // at_mean may be written again
    }

    // What the block's features make of the logits of all rows, sent to the rows' owners.
    __device__ __forceinline__ void forward(int step) {
        REAL logit[ROWS][SHARE][K];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < SHARE; ++j)
#pragma unroll
                for (int k = 0; k < K; ++k) logit[i][j][k] = 0;
        const int part = thread / l.across, own = thread % l.across, mate = thread % SHARE;
        for (int t = 0; t < tiles; ++t) {
            if (t) buffer = 1 - buffer;
            turn(step, t + 1);
            if (t == 0) send_at_mean();
            if (part < l.parts) multiply(logit, t, part, own - mate, mate);
        }
        if (part >= l.parts) return;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            // Sums over the threads that share rows; afterwards, each has its own row.
#pragma unroll
            for (int mask = SHARE / 2; mask > 0; mask /= 2)
#pragma unroll
                for (int j = 0; j < mask; ++j)
#pragma unroll
                    for (int k = 0; k < K; ++k) {
                        const REAL low = logit[i][j][k], high = logit[i][j + mask][k];
                        const bool upper = mate & mask;
                        logit[i][j][k] = (upper ? high : low) + from_lane(upper ? low : high, mask);
                    }
            const int r = own + i * THREADS, owner = r / l.owned;
            if (r < rows_in(step)) {
                REAL *there = in_block(s.part, owner) + (rank * l.parts + part) * K * l.owned;
                there += r - owner * l.owned;
#pragma unroll
                for (int k = 0; k < K; ++k) there[k * l.owned] = logit[i][0][k];
            }
        }
    }

    // Adds the products of a tile and SHARE rows from `top` on, of which each thread takes a share.
    __device__ __forceinline__ void multiply(
        REAL (&logit)[ROWS][SHARE][K], int t, int part, int top, int mate) const {
        const DATA *rows[ROWS][SHARE];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < SHARE; ++j) {
                const int r = top + j + i * THREADS;
                rows[i][j] = s.rows + (buffer * l.batch + (r < l.batch ? r : 0)) * l.stride;
            }
        const int left = (l.slice - t * l.tile) / V, end = left < quads ? left : quads;
        for (int q = part * SHARE + mate; q < end; q += l.parts * SHARE) {
            const int here = t * quads + q;
            const Vector<REAL> shift = vectors(s.shift)[here];
            REAL x[ROWS][SHARE][V];
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
                for (int j = 0; j < SHARE; ++j) load(x[i][j], rows[i][j] + q * V, shift);
#pragma unroll
            for (int k = 0; k < K; ++k) {
                const Vector<REAL> w = vectors(s.coef)[here * K + k];
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int j = 0; j < SHARE; ++j)
#pragma unroll
                        for (int v = 0; v < V; ++v) logit[i][j][k] += x[i][j][v] * w.value[v];
            }
        }
    }

    // The loss of the block's own rows, and its derivatives by their logits, sent to all blocks. As
    // many threads as there are blocks share a row, each some of its classes: one, one + CLUSTER...
    __device__ __forceinline__ void softmax(int step) {
        constexpr int OWN = (K + CLUSTER - 1) / CLUSTER;
        const int one = thread % CLUSTER, size = rows_in(step), slot = step % 2 * l.owned;
        REAL by_intercept[OWN];
#pragma unroll
        for (int i = 0; i < OWN; ++i) by_intercept[i] = 0;
        for (int top = 0; top < l.owned; top += THREADS / CLUSTER) {
            const int r = top + thread / CLUSTER;
            const bool inside = r < l.owned && own_begin + r < size;
            const int here = inside ? r : 0;
            const size_t visit = inside ? step * l.batch + own_begin + r : 0;
            const int truth = a.label ? s.label[slot + here] : likeliest(visit);
            REAL hard_share = 1;
            for (int k = 0; a.smoothing && k < K; ++k) hard_share -= a.smoothing[model * K + k];
            auto target_of = [&](int k) {
                const REAL t = a.label ? REAL(k == truth) : a.target[visit * K + k];
                return a.smoothing ? hard_share * t + a.smoothing[model * K + k] : t;
            };
            REAL p[OWN];  // logits, then what they are exponentiated to, then residuals
            REAL largest = LOWEST;
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int k = i * CLUSTER + one;
                p[i] = k < K ? s.intercept[k] - from_mean(k) : LOWEST;
            }
#pragma unroll CLUSTER
            for (int source = 0; source < CLUSTER * l.parts; ++source)
#pragma unroll
                for (int i = 0; i < OWN; ++i) {
                    const int k = i * CLUSTER + one;
                    if (k < K) p[i] += s.part[(source * K + k) * l.owned + here];
                }
#pragma unroll
            for (int i = 0; i < OWN; ++i) largest = p[i] > largest ? p[i] : largest;
#pragma unroll
            for (int mask = 1; mask < CLUSTER; mask *= 2) {
                const REAL other = from_lane(largest, mask);
                largest = other > largest ? other : largest;
            }
            REAL total = 0, target_sum = 0, target_logit = 0;
            REAL predicted = K;  // of equal logits, the first class counts
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int k = i * CLUSTER + one;
                if (k >= K) continue;
                const REAL t = target_of(k);
                p[i] -= largest;
                if (p[i] == 0 && k < predicted) predicted = k;
                if (t != 0) {
                    target_sum += t;
                    target_logit += t * p[i];
                }
                p[i] = exponential(p[i]);
                total += p[i];
            }
#pragma unroll
            for (int mask = 1; mask < CLUSTER; mask *= 2) {
                total += from_lane(total, mask);
                target_sum += from_lane(target_sum, mask);
                target_logit += from_lane(target_logit, mask);
                const REAL other = from_lane(predicted, mask);
                predicted = other < predicted ? other : predicted;
            }
            if (!inside) continue;
            const REAL w = a.weight ? s.weight[slot + r] : REAL(1);
            if (one == 0) {
                loss += w * (target_sum * logarithm(total) - target_logit);
                if (predicted == truth) correct += a.score_weight ? s.score[slot + r] : w;
            }
            const REAL share = 1 / total;
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int k = i * CLUSTER + one;
                if (k >= K) continue;
                p[i] = w * (p[i] * share - target_of(k));
                by_intercept[i] += p[i];
#pragma unroll
                for (int block = 0; block < CLUSTER; ++block)
                    in_block(s.residual, block)[(own_begin + r) * PADDED + k] = p[i];
            }
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
#pragma unroll
            for (int mask = CLUSTER; mask < WARP; mask *= 2)
                by_intercept[i] += from_lane(by_intercept[i], mask);
            const int k = i * CLUSTER + one;
            for (int block = lane / CLUSTER; k < K && block < CLUSTER; block += WARP / CLUSTER)
                in_block(s.by_intercept, block)[(rank * WARPS + warp) * K + k] = by_intercept[i];
        }
    }

    // The class that a row's target gives most probability.
    __device__ __forceinline__ int likeliest(size_t visit) const {
        int best = 0;
        for (int k = 1; k < K; ++k)
            if (a.target[visit * K + k] > a.target[visit * K + best]) best = k;
        return best;
    }

    __device__ __forceinline__ void sum_by_intercept() const {
        for (int k = warp; k < K; k += WARPS) {
            REAL sum = 0;
            for (int i = lane; i < CLUSTER * WARPS; i += WARP) sum += s.by_intercept[i * K + k];
            sum = warp_sum(sum);
            if (lane == 0) s.of_intercept[k] = sum;
        }
    }

    // The gradient of a tile's weights, in parts: a thread takes V features and some of the rows.
    __device__ __forceinline__ void backward(int step, int t) const {
        if (group >= l.groups || t * l.tile + quad * V >= l.slice) return;
        const int size = rows_in(step);
        const Vector<REAL> shift = vectors(s.shift)[t * quads + quad];
        REAL gradient[K][V];
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) gradient[k][j] = 0;
#pragma unroll AT_ONCE
        for (int r = group; r < size; r += l.groups) {
            REAL x[V];
            load(x, s.rows + (buffer * l.batch + r) * l.stride + quad * V, shift);
            const REAL *residual = s.residual + r * PADDED;
#pragma unroll
            for (int k = 0; k < K; ++k)
#pragma unroll
                for (int j = 0; j < V; ++j) gradient[k][j] += residual[k] * x[j];
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
            Vector<REAL> out;
#pragma unroll
            for (int j = 0; j < V; ++j) out.value[j] = gradient[k][j];
            vectors(s.gradient)[(group * quads + quad) * K + k] = out;
        }
    }

    // The step of a tile's weights: a thread takes a class's of V features.
    __device__ __forceinline__ void update(int step, int t) const {
        const REAL rate = a.rate[step * size_t(models) + model], per_row = REAL(1) / rows_in(step);
        const int left = (l.slice - t * l.tile) / V, count = (left < quads ? left : quads) * K;
        for (int i = thread; i < count; i += THREADS) {
            const int f = t * l.tile + i / K * V, k = i % K, here = t * quads * K + i;
            const REAL of_intercept = s.of_intercept[k];
            REAL g[V];
#pragma unroll
            for (int j = 0; j < V; ++j) g[j] = -of_intercept * s.mean[f + j];
#pragma unroll 8
            for (int part = 0; part < l.groups; ++part) {
                const Vector<REAL> of_part = vectors(s.gradient)[part * quads * K + i];
#pragma unroll
                for (int j = 0; j < V; ++j) g[j] += of_part.value[j];
            }
            Vector<REAL> w = vectors(s.coef)[here], v = vectors(s.velocity)[here];
            REAL dot = 0;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                if (f + j >= width) break;
                const REAL scale = s.inverse_scale[f + j];
                const REAL slope = g[j] * per_row + l2 * w.value[j];
                v.value[j] = momentum * v.value[j] - rate * (slope * scale * scale);
                w.value[j] += v.value[j];
                if (l1 > 0) {
                    const REAL clipped = clip(w.value[j], rate * (l1 * scale * scale));
                    w.value[j] -= clipped;
                    v.value[j] -= clipped;
                }
                dot += w.value[j] * s.mean[f + j];
            }
            vectors(s.coef)[here] = w;
            vectors(s.velocity)[here] = v;
            s.dot[here] = dot;
            if (f == 0 && a.fit_intercept) {
                const REAL by = momentum * s.intercept_velocity[k] - rate * (of_intercept * per_row);
                s.intercept_velocity[k] = by;
                s.intercept[k] += by;
            }
        }
    }

    // What was learned, to memory that all share.
    __device__ __forceinline__ void finish() const {
        wait_for_copies();
        __syncthreads();
        for (int k = warp; k < K; k += WARPS)
            for (int f = lane; f < width; f += WARP) {
                a.coef[in_all(k, f)] = s.coef[at(k, f)];
                a.velocity[in_all(k, f)] = s.velocity[at(k, f)];
            }
        s.sums[2 * thread] = loss;
        s.sums[2 * thread + 1] = correct;
        __syncthreads();
        dot_with_mean();
        __syncthreads();
        send_at_mean();
        cluster_barrier();
        for (int k = thread; rank == 0 && k < K; k += THREADS) {
            a.intercept[model * K + k] = s.intercept[k] - from_mean(k);
            a.intercept_velocity[model * K + k] = s.intercept_velocity[k];
        }
        if (thread < 2) {
            double sum = 0;
            for (int i = 0; i < THREADS; ++i) sum += s.sums[2 * i + thread];
            a.sums[(rank * 2 + thread) * models + model] = sum;
        }
    }
};

// Arguments as `Arguments` has them; then features per block and per tile, and the parts in which a
// gradient is summed.
extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, 1) sgd_epoch(
    const DATA *X, const int *place, int n, int batch, int d, const REAL *shift, const uint64 *label,
    const REAL *target, const REAL *weight, const REAL *score_weight, int u, const int *column,
    const REAL *smoothing, const REAL *mean, const REAL *inverse_scale, const REAL *rate,
    const REAL *l2, const REAL *l1, const REAL *momentum, int fit_intercept, REAL *coef,
    REAL *velocity, REAL *intercept, REAL *intercept_velocity, double *sums, int slice, int tile,
    int groups)
{
    const Arguments arguments{
        X, place, n, batch, d, shift, label, target, weight, score_weight, u, column, smoothing,
        mean, inverse_scale, rate, l2, l1, momentum, fit_intercept, coef, velocity, intercept,
        intercept_velocity, sums};
    Worker worker(arguments, lay_out(batch, slice, tile, groups));
    worker.start();
    for (int step = 0; step < worker.steps; ++step) {
        worker.forward(step);
        cluster_barrier();
        worker.softmax(step);
        cluster_barrier();
        worker.sum_by_intercept();
        for (int t = worker.tiles - 1; t >= 0; --t) {
            if (t < worker.tiles - 1) {
                worker.buffer = 1 - worker.buffer;
                worker.turn(step, 2 * worker.tiles - 1 - t);
            }
            worker.backward(step, t);
            __syncthreads();
            if (t == 0) worker.fetch_indices(step + 2);
            worker.update(step, t);
        }
        worker.buffer = 1 - worker.buffer;
    }
    worker.finish();
}
