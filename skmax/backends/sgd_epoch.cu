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
extern __shared__ uint64 shared_memory[];

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
__device__ inline REAL excess(REAL w, REAL threshold) {
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

// What a block keeps in shared memory, cut from one piece. skmax.backends.cupy_dense computes its
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
    for (int j = 0; j < V; ++j) x[j] = to_real(values.value[j]) - (SHIFTED ? shift.value[j] : REAL(0));
}

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, 1) sgd_epoch(
    const DATA *X,               // rows of d values
    const int *place,            // (n,): the row of X that is visited when
    int n, int batch, int d,
    const REAL *shift,           // (d,), or null: none
    const int *label,            // (n,), in the order of the visits; or null
    const REAL *target,          // (n, K), likewise; or null
    const REAL *weight,          // (n, u), likewise; or null: all 1
    const REAL *score_weight,    // (n, u), likewise; or null: as weight
    int u, const int *column,    // (m,): a model's weights
    const REAL *smoothing,       // (m, K), or null: none
    const REAL *mean,            // (m, d), or null: zero
    const REAL *inverse_scale,   // (m, d), or null: one
    const REAL *rate,            // (steps, m)
    const REAL *l2, const REAL *l1, const REAL *momentum, const REAL *settle_rate,  // (m,)
    int settle,                  // rows visited in the whole epoch if it ends here, else 0
    int fit_intercept,
    REAL *coef, REAL *velocity,  // (m, K, d), in and out
    REAL *intercept, REAL *intercept_velocity,  // (m, K), in and out
    REAL *gradient_sum,          // (m, K, d), in and out: the gradients of all steps; null without L1
    double *sums,                // (m, CLUSTER, 2), out: loss and correct
    int slice, int tile, int groups)  // features per block and per tile; parts of a batch, backward
{
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const int rank = blockIdx.x % CLUSTER, model = blockIdx.x / CLUSTER;
    const int models = gridDim.x / CLUSTER;
    const Layout l = lay_out(batch, slice, tile, groups);
    const Shared s = cut(reinterpret_cast<char *>(shared_memory), l);
    const int owned = l.owned, mine = rank * owned;  // rows of a batch
    const int begin = rank * slice;                  // features
    const int width = begin >= d ? 0 : (d - begin < slice ? d - begin : slice);
    const int tiles = (slice + tile - 1) / tile;
    const int steps = (n + batch - 1) / batch;
    auto rows_in = [&](int step) {
        const int left = n - step * batch;
        return left < batch ? left : batch;
    };

    // A step's indices, labels and weights.
    auto fetch_indices = [&](int step) {
        if (step >= steps) return;
        const int first = step * batch, size = rows_in(step), slot = step % 2;
        for (int r = thread; r < size; r += THREADS)
            copy_ahead<sizeof(int)>(s.place + slot * batch + r, place + first + r);
        for (int r = thread; r < owned && mine + r < size; r += THREADS) {
            const size_t row = first + mine + r;
            const int at = slot * owned + r;
            if (label) copy_ahead<sizeof(int)>(s.label + at, label + row);
            if (weight) copy_ahead<sizeof(REAL)>(s.weight + at, weight + row * u + column[model]);
            if (score_weight)
                copy_ahead<sizeof(REAL)>(s.score + at, score_weight + row * u + column[model]);
        }
    };
    // One of a step's tiles, each value by a thread that multiplies its feature later.
    const int quads = tile / V, quad = thread % quads, group = thread / quads;
    const int spread = THREADS / quads;
    auto fetch_tile = [&](int step, int of_slice, int buffer) {
        if (step >= steps) return;
        const int from = of_slice * tile + quad * V, size = rows_in(step);
        if (group >= spread || from >= width) return;
        const int *where = s.place + step % 2 * batch;
        DATA *to = s.rows + buffer * batch * l.stride + quad * V;
#pragma unroll 8
        for (int r = group; r < size; r += spread) {
            const DATA *row = X + size_t(where[r]) * d + begin + from;
#if COPY
            copy_ahead<COPY>(to + r * l.stride, row);
#else
#pragma unroll
            for (int j = 0; j < V; ++j)
                if (from + j < width) to[r * l.stride + j] = row[j];
#endif
        }
    };
    // Products of the weights with the mean; and their sums, which all blocks get.
    auto dot_with_mean = [&]() {
        for (int i = thread; i < slice / V * K; i += THREADS) {
            REAL dot = 0;
#pragma unroll
            for (int j = 0; j < V; ++j) dot += s.coef[i * V + j] * s.mean[i / K * V + j];
            s.dot[i] = dot;
        }
    };
    auto send_at_mean = [&]() {
        for (int k = warp; k < K; k += WARPS) {
            REAL sum = 0;
            for (int q = lane; q < slice / V; q += WARP) sum += s.dot[q * K + k];
            sum = warp_sum(sum);
            if (lane < CLUSTER) in_block(s.at_mean, lane)[rank * K + k] = sum;
        }
    };
    // Products of a class's weights with the mean, summed over the features of all blocks.
    auto from_mean = [&](int k) {
        REAL sum = 0;
        for (int block = 0; block < CLUSTER; ++block) sum += s.at_mean[block * K + k];
        return sum;
    };

    cluster_barrier();  // the other blocks' memory exists once they have begun
    fetch_indices(0);
    fetch_indices(1);
    for (int f = thread; f < slice; f += THREADS) {
        const bool inside = f < width;
        const size_t i = model * size_t(d) + begin + f;
        s.mean[f] = inside && mean ? mean[i] : REAL(0);
        s.inverse_scale[f] = inside && inverse_scale ? inverse_scale[i] : REAL(1);
        s.shift[f] = inside && shift ? shift[begin + f] : REAL(0);
    }
    for (int i = thread; i < 2 * batch * l.stride; i += THREADS) s.rows[i] = {};
    for (int k = warp; k < K; k += WARPS)
        for (int f = lane; f < slice; f += WARP) {
            const size_t i = (model * size_t(K) + k) * d + begin + f;
            s.coef[at(k, f)] = f < width ? coef[i] : REAL(0);
            s.velocity[at(k, f)] = f < width ? velocity[i] : REAL(0);
        }
    wait_for_copies();
    __syncthreads();
    dot_with_mean();
    fetch_tile(0, 0, 0);
    __syncthreads();
    send_at_mean();
    cluster_barrier();
    for (int k = thread; k < K; k += THREADS) {
        s.intercept[k] = intercept[model * K + k] + from_mean(k);
        s.intercept_velocity[k] = intercept_velocity[model * K + k];
    }
    cluster_barrier();  // at_mean may be written again

    const REAL penalty = l2[model], lasso = l1[model], keep = momentum[model];
    double loss_sum = 0, correct_sum = 0;
    int buffer = 0;  // of s.rows: what is worked on
    for (int step = 0; step < steps; ++step) {
        const int first = step * batch, size = rows_in(step);
        const REAL of_step = rate[step * size_t(models) + model];
        // Tiles go 0, 1, ..., and back; the next but one is fetched into the memory of this one.
        auto turn = [&](int next) {
            wait_for_copies();
            __syncthreads();
            if (next < tiles) fetch_tile(step, next, 1 - buffer);
            else if (2 * tiles - 2 - next >= 0) fetch_tile(step, 2 * tiles - 2 - next, 1 - buffer);
            else fetch_tile(step + 1, 0, 1 - buffer);
        };

        // Forward.
        REAL logit[ROWS][SHARE][K];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < SHARE; ++j)
#pragma unroll
                for (int k = 0; k < K; ++k) logit[i][j][k] = 0;
        const int part = thread / l.across, mate = thread % SHARE, own = thread % l.across;
        for (int t = 0; t < tiles; ++t) {
            if (t) buffer = 1 - buffer;
            turn(t + 1);
            if (t == 0) send_at_mean();
            if (part >= l.parts) continue;
            const int left = (slice - t * tile) / V, end = left < quads ? left : quads;
            const DATA *rows[ROWS][SHARE];
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
                for (int j = 0; j < SHARE; ++j) {
                    const int r = own - mate + j + i * THREADS;
                    rows[i][j] = s.rows + (buffer * batch + (r < batch ? r : 0)) * l.stride;
                }
            for (int q = part * SHARE + mate; q < end; q += l.parts * SHARE) {
                const int f = t * tile + q * V;
                const Vector<REAL> minus = *reinterpret_cast<const Vector<REAL> *>(s.shift + f);
                const Vector<REAL> *coefs = reinterpret_cast<const Vector<REAL> *>(s.coef + at(0, f));
                REAL x[ROWS][SHARE][V];
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int j = 0; j < SHARE; ++j) load(x[i][j], rows[i][j] + q * V, minus);
#pragma unroll
                for (int k = 0; k < K; ++k) {
                    const Vector<REAL> w = coefs[k];
#pragma unroll
                    for (int i = 0; i < ROWS; ++i)
#pragma unroll
                        for (int j = 0; j < SHARE; ++j)
#pragma unroll
                            for (int v = 0; v < V; ++v) logit[i][j][k] += x[i][j][v] * w.value[v];
                }
            }
        }
        if (part < l.parts) {
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                // Sums over the threads that share rows; afterwards, each has its own row.
#pragma unroll
                for (int half = SHARE / 2; half > 0; half /= 2)
#pragma unroll
                    for (int j = 0; j < half; ++j)
#pragma unroll
                        for (int k = 0; k < K; ++k) {
                            const REAL low = logit[i][j][k], high = logit[i][j + half][k];
                            const bool upper = mate & half;
                            logit[i][j][k] = (upper ? high : low) + from_lane(upper ? low : high, half);
                        }
                const int r = own + i * THREADS;
                if (r < size) {
                    const int owner = r / owned, source = rank * l.parts + part;
                    REAL *there = in_block(s.part, owner) + source * K * owned + r - owner * owned;
#pragma unroll
                    for (int k = 0; k < K; ++k) there[k * owned] = logit[i][0][k];
                }
            }
        }
        cluster_barrier();

        // Softmax. As many threads as there are blocks share a row, each some of its classes.
        constexpr int OWN = (K + CLUSTER - 1) / CLUSTER;
        const int one = thread % CLUSTER;
        REAL by_intercept[OWN];
#pragma unroll
        for (int i = 0; i < OWN; ++i) by_intercept[i] = 0;
        for (int top = 0; top < owned; top += THREADS / CLUSTER) {
            const int r = top + thread / CLUSTER;
            const bool inside = r < owned && mine + r < size;
            const int here = inside ? r : 0;
            const size_t visit = inside ? first + mine + r : 0;
            int truth = label ? s.label[step % 2 * owned + here] : 0;
            if (!label) {
                REAL most = target[visit * K];
                for (int k = 1; k < K; ++k)
                    if (target[visit * K + k] > most) most = target[visit * K + (truth = k)];
            }
            REAL kept = 1;
            if (smoothing)
                for (int k = 0; k < K; ++k) kept -= smoothing[model * K + k];
            auto wanted = [&](int k) {
                const REAL t = label ? REAL(k == truth) : target[visit * K + k];
                return smoothing ? kept * t + smoothing[model * K + k] : t;
            };
            REAL p[OWN];  // logits, then what they are exponentiated to, then residuals
            REAL largest = LOWEST;
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int k = i * CLUSTER + one;
                p[i] = LOWEST;
                if (k < K) {
                    p[i] = s.intercept[k];
#pragma unroll
                    for (int block = 0; block < CLUSTER; ++block) p[i] -= s.at_mean[block * K + k];
                }
            }
#pragma unroll
            for (int block = 0; block < CLUSTER; ++block)
                for (int part = 0; part < l.parts; ++part)
#pragma unroll
                    for (int i = 0; i < OWN; ++i) {
                        const int k = i * CLUSTER + one;
                        if (k < K) p[i] += s.part[((block * l.parts + part) * K + k) * owned + here];
                    }
#pragma unroll
            for (int i = 0; i < OWN; ++i) largest = p[i] > largest ? p[i] : largest;
#pragma unroll
            for (int mask = 1; mask < CLUSTER; mask *= 2) {
                const REAL other = from_lane(largest, mask);
                largest = other > largest ? other : largest;
            }
            REAL total = 0, certain = 0, hoped = 0;
            REAL predicted = K;  // of equal logits, the first class counts
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int k = i * CLUSTER + one;
                if (k < K) {
                    const REAL t = wanted(k);
                    p[i] -= largest;
                    if (p[i] == 0 && k < predicted) predicted = k;
                    if (t != 0) {
                        certain += t;
                        hoped += t * p[i];
                    }
                    p[i] = exponential(p[i]);
                    total += p[i];
                }
            }
#pragma unroll
            for (int mask = 1; mask < CLUSTER; mask *= 2) {
                total += from_lane(total, mask);
                certain += from_lane(certain, mask);
                hoped += from_lane(hoped, mask);
                const REAL other = from_lane(predicted, mask);
                predicted = other < predicted ? other : predicted;
            }
            if (!inside) continue;
            const REAL w = weight ? s.weight[step % 2 * owned + r] : REAL(1);
            if (one == 0) {
                const REAL score = score_weight ? s.score[step % 2 * owned + r] : w;
                loss_sum += w * (certain * logarithm(total) - hoped);
                correct_sum += predicted == truth ? score : REAL(0);
            }
            const REAL share = 1 / total;
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int k = i * CLUSTER + one;
                if (k < K) {
                    p[i] = w * (p[i] * share - wanted(k));
                    by_intercept[i] += p[i];
#pragma unroll
                    for (int block = 0; block < CLUSTER; ++block)
                        in_block(s.residual, block)[(mine + r) * PADDED + k] = p[i];
                }
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
        cluster_barrier();

        for (int k = warp; k < K; k += WARPS) {
            REAL sum = 0;
            for (int i = lane; i < CLUSTER * WARPS; i += WARP) sum += s.by_intercept[i * K + k];
            sum = warp_sum(sum);
            if (lane == 0) s.of_intercept[k] = sum;
        }
        for (int t = tiles - 1; t >= 0; --t) {
            // Backward.
            if (t < tiles - 1) {
                buffer = 1 - buffer;
                turn(2 * tiles - 1 - t);
            }
            const int from = t * tile;
            if (group < groups && from + quad * V < slice) {
                const Vector<REAL> minus =
                    *reinterpret_cast<const Vector<REAL> *>(s.shift + from + quad * V);
                REAL gradient[K][V];
#pragma unroll
                for (int k = 0; k < K; ++k)
#pragma unroll
                    for (int j = 0; j < V; ++j) gradient[k][j] = 0;
#pragma unroll AT_ONCE
                for (int r = group; r < size; r += groups) {
                    REAL x[V];
                    load(x, s.rows + (buffer * batch + r) * l.stride + quad * V, minus);
                    const REAL *residual = s.residual + r * PADDED;
#pragma unroll
                    for (int k = 0; k < K; ++k)
#pragma unroll
                        for (int j = 0; j < V; ++j) gradient[k][j] += residual[k] * x[j];
                }
                Vector<REAL> *sum = reinterpret_cast<Vector<REAL> *>(s.gradient) + (group * quads + quad) * K;
#pragma unroll
                for (int k = 0; k < K; ++k) {
                    Vector<REAL> out;
#pragma unroll
                    for (int j = 0; j < V; ++j) out.value[j] = gradient[k][j];
                    sum[k] = out;
                }
            }
            __syncthreads();

            // Update. A thread moves a class's weights of V features.
            if (t == 0) fetch_indices(step + 2);
            const REAL per_row = REAL(1) / size;
            const int left = (slice - from) / V, count = (left < quads ? left : quads) * K;
            for (int i = thread; i < count; i += THREADS) {
                const int f = from + i / K * V, k = i % K, here = (from / V) * K + i;
                const REAL of_intercept = s.of_intercept[k];
                REAL g[V];
#pragma unroll
                for (int j = 0; j < V; ++j) g[j] = -of_intercept * s.mean[f + j];
#pragma unroll 8
                for (int part = 0; part < groups; ++part) {
                    const Vector<REAL> of_part =
                        reinterpret_cast<const Vector<REAL> *>(s.gradient)[part * quads * K + i];
#pragma unroll
                    for (int j = 0; j < V; ++j) g[j] += of_part.value[j];
                }
                Vector<REAL> w = reinterpret_cast<Vector<REAL> *>(s.coef)[here];
                Vector<REAL> v = reinterpret_cast<Vector<REAL> *>(s.velocity)[here];
                REAL dot = 0;
#pragma unroll
                for (int j = 0; j < V; ++j) {
                    if (f + j >= width) break;
                    if (gradient_sum) gradient_sum[(model * size_t(K) + k) * d + begin + f + j] += g[j];
                    const REAL scale = s.inverse_scale[f + j];
                    const REAL mean_gradient = g[j] * per_row + penalty * w.value[j];
                    v.value[j] = keep * v.value[j] - of_step * (mean_gradient * scale * scale);
                    w.value[j] += v.value[j];
                    if (lasso > 0) {
                        const REAL taken = excess(w.value[j], of_step * (lasso * scale * scale));
                        w.value[j] -= taken;
                        v.value[j] -= taken;
                    }
                    dot += w.value[j] * s.mean[f + j];
                }
                reinterpret_cast<Vector<REAL> *>(s.coef)[here] = w;
                reinterpret_cast<Vector<REAL> *>(s.velocity)[here] = v;
                s.dot[here] = dot;
                if (f == 0 && fit_intercept) {
                    const REAL by = keep * s.intercept_velocity[k] - of_step * (of_intercept * per_row);
                    s.intercept_velocity[k] = by;
                    s.intercept[k] += by;
                }
            }
        }
        buffer = 1 - buffer;
    }

    // What was learned, to global memory; under L1, after one more step from the mean gradient.
    wait_for_copies();
    __syncthreads();
    for (int k = warp; k < K; k += WARPS)
        for (int f = lane; f < width; f += WARP) {
            const size_t i = (model * size_t(K) + k) * d + begin + f;
            if (settle && lasso > 0) {
                const REAL scale = s.inverse_scale[f], of_end = settle_rate[model];
                REAL w = s.coef[at(k, f)];
                w -= of_end * ((gradient_sum[i] / settle + penalty * w) * scale * scale);
                s.coef[at(k, f)] = w - excess(w, of_end * (lasso * scale * scale));
            }
            coef[i] = s.coef[at(k, f)];
            velocity[i] = s.velocity[at(k, f)];
        }
    __syncthreads();
    dot_with_mean();
    __syncthreads();
    send_at_mean();
    s.sums[2 * thread] = loss_sum;
    s.sums[2 * thread + 1] = correct_sum;
    cluster_barrier();
    for (int k = thread; rank == 0 && k < K; k += THREADS) {
        intercept[model * K + k] = s.intercept[k] - from_mean(k);
        intercept_velocity[model * K + k] = s.intercept_velocity[k];
    }
    if (thread < 2) {
        double sum = 0;
        for (int i = 0; i < THREADS; ++i) sum += s.sums[2 * i + thread];
        sums[(model * CLUSTER + rank) * 2 + thread] = sum;
    }
}
