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
// The build defines
//   REAL     float or double: weights and arithmetic
//   DATA     the type of X; half where it is float16
//   K        classes
//   CLUSTER  blocks per model: 1, or up to 8 from compute capability 9.0 on
//   THREADS  threads per block, a multiple of 32
//   ROWS     rows of X that a warp multiplies at once
//   V        neighbouring features that a thread multiplies at once: 1, 2 or 4
//   ALIGNED  1 where rows and slices of X begin at multiples of 4 bytes and of V values
//   STAGED   1 where the slice of a batch is copied to shared memory one step ahead; needs ALIGNED
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

// Copies 4 or 8 bytes to shared memory; they are there after wait_for_copies and a barrier.
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
constexpr int WARPS = THREADS / WARP;
constexpr int CHUNK = WARP * V;          // features that a warp multiplies at once
constexpr int PADDED = (K + 3) / 4 * 4;  // residuals of a row, for wide loads
constexpr int AT_ONCE = K * sizeof(REAL) <= 64 ? 4 : 1;  // rows on their way from memory

template <int N> struct alignas(N * sizeof(DATA)) Vector {
    DATA value[N];
};
struct alignas(V * sizeof(REAL)) RealVector {
    REAL value[V];
};

// Sums over the lanes of a warp of N values each. Afterwards a lane holds the sums of the `held`
// values from `first` on; N - 1 exchanges or a few more do it, not 5 N.
template <int N> __device__ inline void reduce(REAL (&value)[N], int lane, int &first, int &held) {
    first = 0;
    held = N;
    int size = N;
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        const int lower = (size + 1) / 2;
        const bool upper = lane & mask;
#pragma unroll
        for (int i = 0; i < (N + 1) / 2; ++i) {
            if (i < lower) {
                const REAL low = value[i];
                const REAL high = i + lower < size ? value[i + lower < N ? i + lower : 0] : REAL(0);
                value[i] = (upper ? high : low) + from_lane(upper ? low : high, mask);
            }
        }
        first += upper ? lower : 0;
        held = upper ? held - lower : (held < lower ? held : lower);
        size = lower;
    }
}

__device__ inline REAL warp_sum(REAL value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += from_lane(value, mask);
    return value;
}

__device__ inline REAL exponential(float x) { return expf(x); }
__device__ inline REAL exponential(double x) { return exp(x); }
__device__ inline REAL logarithm(float x) { return logf(x); }
__device__ inline REAL logarithm(double x) { return log(x); }

// The proximal operator of the L1 penalty.
__device__ inline REAL shrunk(REAL w, REAL threshold) {
    return w - (w > threshold ? threshold : (w < -threshold ? -threshold : w));
}

// What a block keeps in shared memory, cut from one piece. skmax.backends.cupy_dense computes its
// size in the same way.
struct Shared {
    double *sums;                                       // (THREADS, 2)
    REAL *coef, *velocity;                              // (K, slice)
    REAL *gradient;                                     // (groups, K, slice)
    REAL *mean, *inverse_scale, *shift;                 // (slice,)
    REAL *residual;                                     // (batch, PADDED)
    REAL *part;                                         // (CLUSTER, owned, K)
    REAL *intercept, *intercept_velocity;               // (K,)
    REAL *at_mean, *by_intercept;                       // (CLUSTER, K), (CLUSTER, WARPS, K)
    REAL *weight, *score;                               // (2, owned): of this step and the next
    int *label, *place;                                 // (2, owned), (2, batch)
    DATA *tile;                                         // (2, batch, slice)
};

__device__ inline Shared cut(char *memory, int batch, int owned, int slice, int groups) {
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
    s.coef = reals(K * slice);
    s.velocity = reals(K * slice);
    s.gradient = reals(groups * K * slice);
    s.mean = reals(slice);
    s.inverse_scale = reals(slice);
    s.shift = reals(slice);
    s.residual = reals(batch * PADDED);
    s.part = reals(CLUSTER * owned * K);
    s.intercept = reals(K);
    s.intercept_velocity = reals(K);
    s.at_mean = reals(CLUSTER * K);
    s.by_intercept = reals(CLUSTER * WARPS * K);
    s.weight = reals(2 * owned);
    s.score = reals(2 * owned);
    s.label = ints(2 * owned);
    s.place = ints(2 * batch);
    s.tile = reinterpret_cast<DATA *>(take(STAGED ? 2 * batch * slice * sizeof(DATA) : 0));
    return s;
}

// V neighbouring values of X from feature `f` on, less the shift; zero beyond `width`.
__device__ inline void load(REAL (&x)[V], const DATA *row, const REAL *shift, int f, int width) {
#if ALIGNED
    if (f < width) {
        const Vector<V> values = *reinterpret_cast<const Vector<V> *>(row + f);
#pragma unroll
        for (int j = 0; j < V; ++j) x[j] = to_real(values.value[j]) - shift[f + j];
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) x[j] = 0;
    }
#else
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = f + j < width ? to_real(row[f + j]) - shift[f + j] : REAL(0);
#endif
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
    int slice, int groups)       // features per block; parts of a batch in the backward product
{
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const int rank = blockIdx.x % CLUSTER, model = blockIdx.x / CLUSTER;
    const int models = gridDim.x / CLUSTER;
    const int owned = (batch + CLUSTER - 1) / CLUSTER, mine = rank * owned;
    const int begin = rank * slice;
    const int width = begin >= d ? 0 : (d - begin < slice ? d - begin : slice);
    const Shared s = cut(reinterpret_cast<char *>(shared_memory), batch, owned, slice, groups);

    // This step's and the next step's indices, labels and weights; then the next one's rows of X.
    auto fetch_indices = [&](int step) {
        const int first = step * batch, size = first >= n ? 0 : (n - first < batch ? n - first : batch);
        const int half = step % 2 * owned;
        for (int r = thread; r < size; r += THREADS)
            copy_ahead<sizeof(int)>(s.place + step % 2 * batch + r, place + first + r);
        for (int r = thread; r < owned && mine + r < size; r += THREADS) {
            const size_t row = first + mine + r;
            if (label) copy_ahead<sizeof(int)>(s.label + half + r, label + row);
            if (weight) copy_ahead<sizeof(REAL)>(s.weight + half + r, weight + row * u + column[model]);
            if (score_weight)
                copy_ahead<sizeof(REAL)>(s.score + half + r, score_weight + row * u + column[model]);
        }
    };
    auto fetch_tile = [&](int step) {
#if STAGED
        const int first = step * batch, size = first >= n ? 0 : (n - first < batch ? n - first : batch);
        const int words = width * sizeof(DATA) / 4;
        for (int i = thread; i < size * words; i += THREADS) {
            const int r = i / words, word = i % words;
            const int at = step % 2 * batch + r;
            const DATA *row = X + static_cast<size_t>(s.place[at]) * d + begin;
            copy_ahead<4>(reinterpret_cast<char *>(s.tile + at * slice) + 4 * word,
                          reinterpret_cast<const char *>(row) + 4 * word);
        }
#endif
    };
    auto row_of = [&](int step, int r) -> const DATA * {
#if STAGED
        return s.tile + (step % 2 * batch + r) * slice;
#else
        return X + static_cast<size_t>(s.place[step % 2 * batch + r]) * d + begin;
#endif
    };
    // Products of a class's weights with the mean, summed over the features of all blocks.
    auto from_mean = [&](int k) {
        REAL sum = 0;
        for (int block = 0; block < CLUSTER; ++block) sum += s.at_mean[block * K + k];
        return sum;
    };

    cluster_barrier();  // the other blocks' memory exists once they have begun
    fetch_indices(0);
    for (int f = thread; f < slice; f += THREADS) {
        const bool inside = f < width;
        const size_t feature = begin + f;
        s.mean[f] = inside && mean ? mean[model * size_t(d) + feature] : REAL(0);
        s.inverse_scale[f] = inside && inverse_scale ? inverse_scale[model * size_t(d) + feature] : REAL(1);
        s.shift[f] = inside && shift ? shift[feature] : REAL(0);
    }
    for (int k = warp; k < K; k += WARPS) {
        REAL dot = 0;
        for (int f = lane; f < slice; f += WARP) {
            const size_t i = (model * size_t(K) + k) * d + begin + f;
            const REAL w = f < width ? coef[i] : REAL(0);
            s.coef[k * slice + f] = w;
            s.velocity[k * slice + f] = f < width ? velocity[i] : REAL(0);
            if (f < width && mean) dot += w * mean[model * size_t(d) + begin + f];
        }
        dot = warp_sum(dot);
        if (lane < CLUSTER) in_block(s.at_mean, lane)[rank * K + k] = dot;
    }
    wait_for_copies();
    cluster_barrier();
    for (int k = thread; k < K; k += THREADS) {
        s.intercept[k] = intercept[model * K + k] + from_mean(k);
        s.intercept_velocity[k] = intercept_velocity[model * K + k];
    }
    fetch_tile(0);
    fetch_indices(1);
    wait_for_copies();
    cluster_barrier();

    const REAL penalty = l2[model], lasso = l1[model], keep = momentum[model];
    const int chunks = (width + CHUNK - 1) / CHUNK;
    double loss_sum = 0, correct_sum = 0;
    const int steps = (n + batch - 1) / batch;
    for (int step = 0; step < steps; ++step) {
        const int first = step * batch, size = n - first < batch ? n - first : batch;
        const REAL of_step = rate[step * size_t(models) + model];
        fetch_tile(step + 1);

        // Forward.
        for (int top = warp * ROWS; top < size; top += WARPS * ROWS) {
            REAL logit[ROWS * K];
#pragma unroll
            for (int i = 0; i < ROWS * K; ++i) logit[i] = 0;
            const DATA *row[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) row[r] = row_of(step, top + r < size ? top + r : top);
            for (int f = lane * V; f < chunks * CHUNK; f += CHUNK) {
                REAL x[ROWS][V];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) load(x[r], row[r], s.shift, f, width);
                if (f < slice) {
#pragma unroll
                    for (int k = 0; k < K; ++k) {
                        const RealVector w = *reinterpret_cast<const RealVector *>(s.coef + k * slice + f);
#pragma unroll
                        for (int r = 0; r < ROWS; ++r)
#pragma unroll
                            for (int j = 0; j < V; ++j) logit[r * K + k] += x[r][j] * w.value[j];
                    }
                }
            }
            int held_from, held;
            reduce<ROWS * K>(logit, lane, held_from, held);
            constexpr int MOST = (ROWS * K + WARP - 1) / WARP;
#pragma unroll
            for (int i = 0; i < MOST; ++i) {
                const int r = top + (held_from + i) / K, k = (held_from + i) % K;
                if (i < held && r < size) {
                    const int owner = r / owned;
                    REAL *parts = in_block(s.part, owner) + (rank * owned + r - owner * owned) * K;
                    parts[k] = logit[i] - s.at_mean[rank * K + k];
                }
            }
        }
        cluster_barrier();

        // Softmax.
        REAL by_intercept[K];
#pragma unroll
        for (int k = 0; k < K; ++k) by_intercept[k] = 0;
        for (int r = thread; r < owned && mine + r < size; r += THREADS) {
            const size_t visit = first + mine + r;
            int truth = label ? s.label[step % 2 * owned + r] : 0;
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
            REAL p[K];  // logits, then what they are exponentiated to, then residuals
            REAL top = 0;
#pragma unroll
            for (int k = 0; k < K; ++k) {
                p[k] = s.intercept[k];
                for (int block = 0; block < CLUSTER; ++block)
                    p[k] += s.part[(block * owned + r) * K + k];
                top = k == 0 || p[k] > top ? p[k] : top;
            }
            REAL total = 0, certain = 0, logit = 0;
            int predicted = -1;  // of equal logits, the first class counts
#pragma unroll
            for (int k = 0; k < K; ++k) {
                const REAL t = wanted(k);
                p[k] -= top;
                if (predicted < 0 && p[k] == 0) predicted = k;
                if (t != 0) {
                    certain += t;
                    logit += t * p[k];
                }
                p[k] = exponential(p[k]);
                total += p[k];
            }
            const REAL w = weight ? s.weight[step % 2 * owned + r] : REAL(1);
            const REAL score = score_weight ? s.score[step % 2 * owned + r] : w;
            loss_sum += w * (certain * logarithm(total) - logit);
            correct_sum += predicted == truth ? score : REAL(0);
#pragma unroll
            for (int k = 0; k < K; ++k) {
                p[k] = w * (p[k] / total - wanted(k));
                by_intercept[k] += p[k];
            }
            for (int block = 0; block < CLUSTER; ++block) {
                REAL *there = in_block(s.residual, block) + (mine + r) * PADDED;
#pragma unroll
                for (int k = 0; k < K; ++k) there[k] = p[k];
            }
        }
        {
            int held_from, held;
            reduce<K>(by_intercept, lane, held_from, held);
            constexpr int MOST = (K + WARP - 1) / WARP;
            for (int block = 0; block < CLUSTER; ++block)
#pragma unroll
                for (int i = 0; i < MOST; ++i)
                    if (i < held)
                        in_block(s.by_intercept, block)[(rank * WARPS + warp) * K + held_from + i] =
                            by_intercept[i];
        }
        cluster_barrier();

        // Backward.
        for (int task = warp; task < chunks * groups; task += WARPS) {
            const int group = task / chunks, f = task % chunks * CHUNK + lane * V;
            REAL gradient[K][V];
#pragma unroll
            for (int k = 0; k < K; ++k)
#pragma unroll
                for (int j = 0; j < V; ++j) gradient[k][j] = 0;
#pragma unroll AT_ONCE
            for (int r = group; r < size; r += groups) {
                REAL x[V];
                load(x, row_of(step, r), s.shift, f, width);
                const REAL *residual = s.residual + r * PADDED;
#pragma unroll
                for (int k = 0; k < K; ++k)
#pragma unroll
                    for (int j = 0; j < V; ++j) gradient[k][j] += residual[k] * x[j];
            }
            if (f < slice) {
#pragma unroll
                for (int k = 0; k < K; ++k) {
                    RealVector out;
#pragma unroll
                    for (int j = 0; j < V; ++j) out.value[j] = gradient[k][j];
                    *reinterpret_cast<RealVector *>(s.gradient + (group * K + k) * slice + f) = out;
                }
            }
        }
        __syncthreads();

        // Update.
        fetch_indices(step + 2);
        for (int k = warp; k < K; k += WARPS) {
            REAL of_intercept = 0;
            for (int i = lane; i < CLUSTER * WARPS; i += WARP) of_intercept += s.by_intercept[i * K + k];
            of_intercept = warp_sum(of_intercept);
            REAL dot = 0;
            for (int f = lane; f < width; f += WARP) {
                REAL g = 0;
                for (int group = 0; group < groups; ++group) g += s.gradient[(group * K + k) * slice + f];
                g -= of_intercept * s.mean[f];
                if (gradient_sum) gradient_sum[(model * size_t(K) + k) * d + begin + f] += g;
                const REAL before = s.coef[k * slice + f], scale = s.inverse_scale[f];
                const REAL descent = of_step * ((g / size + penalty * before) * scale * scale);
                REAL v = keep * s.velocity[k * slice + f] - descent;
                REAL w = before + v;
                if (lasso > 0) {
                    w = shrunk(w, of_step * (lasso * scale * scale));
                    v = w - before;
                }
                s.coef[k * slice + f] = w;
                s.velocity[k * slice + f] = v;
                dot += w * s.mean[f];
            }
            dot = warp_sum(dot);
            if (lane == 0) {
                s.at_mean[rank * K + k] = dot;
                if (fit_intercept) {
                    const REAL v = keep * s.intercept_velocity[k] - of_step * (of_intercept / size);
                    s.intercept_velocity[k] = v;
                    s.intercept[k] += v;
                }
            }
        }
        wait_for_copies();
        __syncthreads();
    }

    // What was learned, to global memory; under L1, after one more step from the mean gradient.
    for (int k = warp; k < K; k += WARPS) {
        REAL dot = 0;
        for (int f = lane; f < width; f += WARP) {
            const size_t i = (model * size_t(K) + k) * d + begin + f;
            REAL w = s.coef[k * slice + f];
            if (settle && lasso > 0) {
                const REAL scale = s.inverse_scale[f], of_end = settle_rate[model];
                w -= of_end * ((gradient_sum[i] / settle + penalty * w) * scale * scale);
                w = shrunk(w, of_end * (lasso * scale * scale));
            }
            coef[i] = w;
            velocity[i] = s.velocity[k * slice + f];
            dot += w * s.mean[f];
        }
        dot = warp_sum(dot);
        if (lane < CLUSTER) in_block(s.at_mean, lane)[rank * K + k] = dot;
    }
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
