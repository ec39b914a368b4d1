// An epoch of minibatch SGD on a stack of models with few classes, in one launch, with products on
// tensor cores: what skmax.solvers.sgd.sgd_epoch does, on dense rows. Shapes are those of
// skmax.problem. For devices with clusters, from compute capability 9.0 on.
//
// CLUSTER blocks train one model; models do not wait for each other. Each block of a cluster has a
// slice of the features, and keeps its weights and velocities in registers for the whole epoch, in
// the layout of the products that give their gradient. A step:
//   forward   every block: the part of each row's logits that its features make, sent to the block
//             that owns the row;
//   softmax   the owner: loss and residual of its rows, sent to all blocks;
//   backward  every block: the gradient of its slice, from all rows, and the step.
// Who receives counts the bytes that come; no barrier of the cluster is in the loop. Nothing is
// overwritten before it was read: logits of the next step are sent by who has all residuals of this
// one, which their owner sends after it has read the logits; likewise the other way round.
//
// All sums are taken in a fixed order, so that two runs are equal to the last bit.
//
// Where X has bytes, these are multiplied as they are, by weights and residuals that are fixed-
// point numbers of four signed bytes, so that sums are exact. The unit of the weights is a power of
// two, which grows with the largest weight of the block. Other values, less their mean, are taken for
// sums of two numbers of tf32, and so are weights and residuals; the product of both small parts is
// left out.
//
// Classes come in tiles of 8, whose columns a product has; CLASSES % 8 may be 2, and these two have
// one tile for all their parts.
//
// The build defines
//   DATA_BYTES  bytes of a value of X: 1, 2 (float16) or 4 (float32)
//   CLASSES     the most classes: 2, 10, or a multiple of 8
//   CLUSTER     blocks per model: 8 or 16
//   PER         features of a lane: 2, or 4 for bytes
//   GROUPS      how often a warp has those of its lanes

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int ROWS = 256;  // the most of a batch
constexpr bool BYTES = DATA_BYTES == 1;
constexpr int TILES = CLASSES / 8, REST = CLASSES % 8 ? 1 : 0;
constexpr int PASSES = TILES ? TILES : 1;  // through the classes
constexpr int OWN = 2 * (TILES + REST);    // of a row's classes, those of a lane
constexpr int HALVES = PER / 2;            // a product has two features of a lane
// Of the 8 times PER features that a product has, the last PER are for the sums of the residuals.
constexpr int GROUP = 7 * PER;
constexpr int SLICE = WARPS * GROUPS * GROUP;
constexpr int DEPTH = BYTES ? 32 : 8;
constexpr int FORWARD = (SLICE + DEPTH - 1) / DEPTH;
// Of these steps, those for which there are registers at a time.
constexpr int UNROLLED = BYTES ? (TILES > 1 ? 1 : 2) : 4;
// Bytes of a row in shared memory, so that neighbours are in other banks; of float32 with many
// classes, two of them share one, since there is no more memory.
constexpr int PADDED = SLICE + (DATA_BYTES == 4 && TILES > 2 ? 12 : 16);
constexpr int STRIDE = BYTES ? ((SLICE + 15) / 16 | 1) * 16 : PADDED * DATA_BYTES;
// Whether products of small parts have sums of their own in a gradient, and tiles of rows take
// turns, so that a product follows those that it does not wait for.
constexpr bool APART = DATA_BYTES == 4 && TILES <= 1;
// Tiles of weights and of residuals. Of many classes, whole residuals are sent, and taken apart
// late.
constexpr bool LATE = !BYTES && TILES > 2;
constexpr int PARTS = BYTES ? 4 : 2, SENT = LATE ? 1 : PARTS;
// Whether operands of the backward products wait in registers for the residuals.
constexpr bool AHEAD = BYTES && GROUPS == 1 && TILES <= 2;
constexpr int WEIGHTS = PARTS * TILES + REST, RESIDUALS = SENT * TILES + REST;
constexpr int WORDS = (BYTES ? 32 : 128) * RESIDUALS;  // of 16 rows' residuals
constexpr int OWNED = ROWS / CLUSTER;                  // the most rows of a block
constexpr int ROUNDS = (OWNED + 31) / 32;              // in which a block sees its rows
constexpr int SOURCE = OWNED * CLASSES;                // logits that each block sends to an owner
constexpr int LEAST = -80;                             // where fixed-point numbers end
static_assert(DATA_BYTES == 1 || DATA_BYTES == 2 || DATA_BYTES == 4, "");
static_assert((OWNED == 16 || OWNED == 32) && (BYTES || (PER == 2 && GROUPS == 1)), "");

// Rows come in chunks of up to 16 bytes; the threads that share a row, of which each copies one.
template <int COPY> struct Chunks {
    static constexpr int count = SLICE * DATA_BYTES / COPY;
    static constexpr int across = count <= 8 ? 8 : count <= 16 ? 16 : count <= 32 ? 32 : 64;
};
constexpr int MOST = SLICE * DATA_BYTES % 16 ? 8 : 16;
constexpr int CHUNKS = Chunks<MOST>::count, ACROSS = Chunks<MOST>::across;
constexpr int MINE = ROWS / (THREADS / ACROSS);  // rows of which a thread has a chunk
// Whether rows come among the products. Where operands wait for nothing, there is time later.
constexpr bool AMONG = BYTES;
// Threads with the same chunk, and how many rows that follow each other each of them has; rows that
// a thread asks for in a step of the products.
constexpr int TEAMS = THREADS / ACROSS, RUN = BYTES ? 1 : 4;
constexpr int AT_ONCE = ((MINE + FORWARD - 1) / FORWARD + RUN - 1) / RUN * RUN;

// Where what is in the memory of a block, in bytes. skmax.kernels.few_classes computes `total` too.
struct Layout {
    static constexpr int rows = 0;                                     // (2, ROWS, STRIDE)
    static constexpr int weights = rows + 2 * ROWS * STRIDE + 128;     // which products may read
    static constexpr int residuals = weights + FORWARD * WEIGHTS * 256;
    static constexpr int logits = residuals + ROWS / 16 * WORDS * 4;   // (CLUSTER, SOURCE)
    static constexpr int place = logits + CLUSTER * SOURCE * 4;        // (2, ROWS)
    static constexpr int visit = place + 2 * ROWS * 4;                 // (2, ROWS)
    static constexpr int at_mean = visit + 2 * ROWS * 4;               // (WARPS, CLASSES)
    static constexpr int of_blocks = at_mean + WARPS * CLASSES * 4;    // (CLUSTER, CLASSES)
    static constexpr int smoothing = of_blocks + CLUSTER * CLASSES * 4;
    static constexpr int intercept = smoothing + (CLASSES + 3) / 4 * 16;  // of the mean
    static constexpr int speed = intercept + (CLASSES + 3) / 4 * 16;      // of the intercept
    static constexpr int heaviest = speed + (CLASSES + 3) / 4 * 16;       // (2, WARPS)
    static constexpr int sums = heaviest + 2 * WARPS * 4;              // (THREADS, 2)
    static constexpr int of_all = sums + THREADS * 16;                 // (CLUSTER, 2)
    static constexpr int mean = of_all + CLUSTER * 16;                 // (SLICE,)
    static constexpr int unit = mean + SLICE * 4;
    static constexpr int truth = unit + SLICE * 4;                     // (2, OWNED)
    static constexpr int weight = truth + 2 * OWNED * 4;               // (2, OWNED)
    static constexpr int rate = weight + 2 * OWNED * 4;                // (2,)
    static constexpr int barriers = rate + 16;
    static constexpr int total = barriers + 16;
};
static_assert(Layout::mean % 16 == 0 && Layout::place % 16 == 0, "");

// The kernel's arguments; which are null says what there is none of.
struct Arguments {
    const unsigned char *X;     // rows of d values
    const int *place;           // (n,): the row of X that is visited when
    const int *visit;           // (n,): that of what follows; or null: the same
    int n, batch, d, classes;
    int copy;                   // bytes that are copied at once: 4, 8 or 16
    const int *label;           // (rows, label_words), of which the first counts; or null
    int label_words;
    const float *target;        // (rows, classes), or null
    const float *weight;        // (rows, u), or null: all 1
    const float *score_weight;  // (rows, u), or null: as weight
    int u;
    const float *smoothing;      // (m, classes), or null
    const float *mean;           // (m, d), or null: zero
    const float *inverse_scale;  // (m, d), or null: one
    const float *numbers;        // (steps + 4, m): rates, l2, l1, momenta, bits of `column`
    int steps, first;            // those of the whole epoch, and the first one here
    int fit_intercept;
    const float *coef, *velocity, *intercept, *intercept_velocity;  // (m, classes, d), (m, classes)
    float *new_coef, *new_velocity, *new_intercept, *new_intercept_velocity;
    double *sums;                // (2, m): loss and correct, to which what is no first step adds
};

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline float logarithm(float x) { return logf(x); }

// What the proximal operator of the L1 penalty takes off a weight.
__device__ inline float clip(float w, float threshold) {
    return w > threshold ? threshold : (w < -threshold ? -threshold : w);
}

// The digits of a fixed-point number, signed bytes.
__device__ inline unsigned digits_of(float scaled) {
    return (static_cast<unsigned>(to_int(scaled)) + 0x80808080u) ^ 0x80808080u;
}

// A number as the sum of two of tf32, of which the product takes the first 11 bits.
__device__ inline void split(float x, unsigned &high, unsigned &low) {
    high = (bits_of(x) + 0x1000u) & 0xffffe000u;
    low = bits_of(x - from_bits(high));
}

// Two neighbouring values of X.
__device__ inline float2 load(const unsigned char *from) {
    if (DATA_BYTES == 4) return *reinterpret_cast<const float2 *>(from);
    const unsigned both = *reinterpret_cast<const unsigned *>(from);
    const half first{static_cast<unsigned short>(both)};
    const half second{static_cast<unsigned short>(both >> 16)};
    return make_float2(to_float(first), to_float(second));
}

// A thread of a block at work. PLAIN says that batches have more than half of the most rows that
// there may be, all of which it then multiplies, and that there are labels, no smoothing, no L1
// penalty, no weights of their own for the score, and the largest copies; then WEIGHTED says whether
// rows have weights.
template <bool PLAIN, bool WEIGHTED> struct Worker {
    const Arguments a;
    unsigned char *const memory;
    const Address base, logits_came, residuals_came;
    // Of a product, lane 4 g + t has rows g and g + 8 and columns 2 t and 2 t + 1. Where it gives a
    // gradient, features are its rows.
    int thread, lane, warp, g, t;
    const int rank, model, models, steps;
    const bool works;  // whether the lane has features
    const int width;   // the features of the block
    // Tiles of 16 rows: of a batch, the most of a block as a power of two, and those of this block.
    const int tiles, shift, owned;
    const float l2, l1, momentum;
    const int column;
    float w[GROUPS][HALVES][PASSES][4], v[GROUPS][HALVES][PASSES][4];
    float w_rest[GROUPS][HALVES], v_rest[GROUPS][HALVES];  // of one of the last two classes
    float hard_share = 1, poison = 0, weight_ahead = 0;
    int scale = 60;  // the weights' unit is 2^-scale
    double loss = 0, correct = 0;
    // In the plain case, all threads have the intercepts of their classes, and their velocities.
    static constexpr bool KEPT = PLAIN;
    float kept[OWN], kept_speed[OWN];

    template <typename T> __device__ __forceinline__ T *at(int place) const {
        return reinterpret_cast<T *>(memory + place);
    }

    __device__ __forceinline__ Worker(const Arguments &a)
        : a(a), memory(reinterpret_cast<unsigned char *>(shared_memory)), base(address_of(memory)),
          logits_came(base + Layout::barriers), residuals_came(base + Layout::barriers + 8),
          thread(threadIdx.x), lane(thread % 32), warp(thread / 32), g(lane / 4), t(lane % 4),
          rank(blockIdx.x % CLUSTER), model(blockIdx.x / CLUSTER), models(gridDim.x / CLUSTER),
          steps((a.n + a.batch - 1) / a.batch), works(g < 7),
          width(between(0, a.d - rank * SLICE, SLICE)),
          tiles(PLAIN ? ROWS / 16 : (a.batch + 15) / 16),
          shift(OWNED > 16 && tiles > CLUSTER ? 1 : 0),
          owned(PLAIN ? OWNED / 16 : between(0, tiles - (rank << shift), 1 << shift)),
          l2(number(0)), l1(number(1)), momentum(number(2)),
          column(static_cast<int>(bits_of(number(3)))) {}

    __device__ __forceinline__ float number(int i) const {
        return a.numbers[size_t(a.steps + i) * models + model];
    }
    __device__ __forceinline__ int rows_in(int step) const {
        const int left = a.n - step * a.batch;
        return left < a.batch ? left : a.batch;
    }
    __device__ __forceinline__ bool weighted() const { return PLAIN ? WEIGHTED : a.weight != nullptr; }
    __device__ __forceinline__ bool smoothed() const { return !PLAIN && a.smoothing; }
    // The class that is the j-th of a lane.
    __device__ __forceinline__ int class_of(int j) const {
        return j < 2 * TILES ? j / 2 * 8 + 2 * t + j % 2 : 8 * TILES + j % 2;
    }
    // Of numbers that features have, those of a lane; and of a lane that has none, zeros.
    template <int N> __device__ __forceinline__ void
    pick(float (&values)[N], int place, int f) const {
        // Lanes without features read what lies behind, and none of it counts.
        struct alignas(4 * N) Several {
            float value[N];
        };
        const Several several = *at<Several>(place + 4 * f);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] = works ? several.value[i] : 0.f;
    }
    // Whether the lane speaks for the j-th of its classes: all lanes of a row have the last two.
    __device__ __forceinline__ bool speaks(int j) const { return j < 2 * TILES || t == 0; }
    // The first of a lane's features in a group, and the first of those of the last two classes.
    __device__ __forceinline__ int feature(int q) const {
        return (warp + WARPS * q) * GROUP + PER * g;
    }
    __device__ __forceinline__ int feature_of_rest(int q) const {
        return feature(q) + (HALVES == 2 ? 2 * (t >> 1) : t >> 1);
    }
    __device__ __forceinline__ bool is_mine(int k, int f) const {
        return works && f < width && k < a.classes;
    }
    __device__ __forceinline__ size_t in_all(int k, int f) const {
        return (size_t(model) * a.classes + k) * a.d + rank * SLICE + f;
    }

    __device__ static __forceinline__ int between(int least, int value, int most) {
        return value < least ? least : value > most ? most : value;
    }

    // Loads

    __device__ __forceinline__ void fetch_indices(int step) const {
        if (step >= steps) return;
        fetch_numbers(step, Layout::place, a.place);
        if (a.visit) fetch_numbers(step, Layout::visit, a.visit);
    }
    __device__ __forceinline__ void fetch_numbers(int step, int place, const int *numbers) const {
        const int size = rows_in(step);
        const Address to = base + place + (step % 2 * ROWS + thread) * 4;
        const int *const from = numbers + step * a.batch + thread;
#pragma unroll
        for (int i = 0; i < ROWS; i += THREADS)
            if (thread + i < size) copy_ahead<4>(to + i * 4, from + i);
    }
    __device__ __forceinline__ const int *visits(int step) const {
        return at<int>(a.visit ? Layout::visit : Layout::place) + step % 2 * ROWS;
    }
    template <int COPY> __device__ __forceinline__ void fetch_by(int step) const {
        constexpr int CHUNKS = Chunks<COPY>::count, ACROSS = Chunks<COPY>::across;
        const int chunk = thread % ACROSS, size = rows_in(step);
        if (chunk >= CHUNKS || chunk * COPY >= width * DATA_BYTES) return;
        const unsigned char *const from = a.X + size_t(rank) * SLICE * DATA_BYTES + chunk * COPY;
        const Address to = base + Layout::rows + step % 2 * (ROWS * STRIDE) + chunk * COPY;
        const int *const place = at<int>(Layout::place) + step % 2 * ROWS;
        const int row_bytes = a.d * DATA_BYTES;
#pragma unroll 1
        for (int r = thread / ACROSS; r < size; r += THREADS / ACROSS)
            copy_ahead<COPY>(to + r * STRIDE, element(from, place[r], row_bytes));
    }
    // The same in the largest chunks, bit by bit while products are computed; of a whole batch, but
    // in the plain case.
    struct Fetch {
        const unsigned char *from;
        const int *place;
        Address to;
        int row_bytes;
        int rows;  // of the batch, from the thread's first one on; or none, if others copy them
        bool all;  // whether it is done so
    };
    __device__ __forceinline__ Fetch fetch_of(int step) const {
        const int chunk = thread % ACROSS, row = thread / ACROSS * RUN;
        Fetch fetch;
        fetch.all = step < steps && (PLAIN || (rows_in(step) == ROWS && a.copy == MOST));
        const bool here = fetch.all && chunk < CHUNKS && chunk * MOST < width * DATA_BYTES;
        fetch.rows = here ? rows_in(step) - row : 0;
        fetch.from = a.X + size_t(rank) * SLICE * DATA_BYTES + chunk * MOST;
        fetch.place = at<int>(Layout::place) + step % 2 * ROWS + row;
        fetch.row_bytes = a.d * DATA_BYTES;
        forget(fetch.row_bytes);  // or it would be loaded for each row
        fetch.to = base + Layout::rows + (step % 2 * ROWS + row) * STRIDE + chunk * MOST;
        return fetch;
    }
    // Which row is the j-th that a thread asks for in a step of the products, beyond its first one.
    __device__ static __forceinline__ int row_asked_for(int ks, int j) {
        return (ks * (AT_ONCE / RUN) + j / RUN) * (RUN * TEAMS) + j % RUN;
    }
    // Where those rows are that a step of the forward products asks for.
    struct Places {
        int of_row[AT_ONCE];
    };
    struct alignas(16) Four {
        int value[4];
    };
    __device__ __forceinline__ void
    look_up(Places &places, const Fetch &fetch, int ks) const {
#pragma unroll
        for (int j = 0; j < AT_ONCE; j += 4) {
            if (AT_ONCE * FORWARD > MINE && ks * AT_ONCE + j >= MINE) break;
            const Four four =
                *reinterpret_cast<const Four *>(fetch.place + row_asked_for(ks, j));
#pragma unroll
            for (int i = 0; i < 4; ++i) places.of_row[(j + i) % AT_ONCE] = four.value[i];
        }
    }
    // What falls to one of `parts` parts of a step of the forward products.
    __device__ __forceinline__ void
    fetch_part(const Fetch &fetch, const Places &places, int ks, int i, int parts) const {
#pragma unroll
        for (int j = i * AT_ONCE / parts; j < (i + 1) * AT_ONCE / parts; ++j) {
            const int row = row_asked_for(ks, j);
            if (AT_ONCE * FORWARD > MINE && ks * AT_ONCE + j >= MINE) break;
            const int place = AMONG ? fetch.place[row] : places.of_row[j];
            copy_ahead_if<MOST>(row < fetch.rows, fetch.to + row * STRIDE,
                                element(fetch.from, place, fetch.row_bytes));
        }
    }
    // Rows of a step, of which those beyond the last stay what they were.
    __device__ __forceinline__ void fetch(int step) const {
        if (step >= steps) return;
        if (PLAIN || a.copy == 16) fetch_by<MOST>(step);
        else if (a.copy == 8) fetch_by<8>(step);
        else fetch_by<4>(step);
    }
    // The labels and weights of the block's rows of a step, and its rate.
    __device__ __forceinline__ void fetch_labels(int step) const {
        const int of_batch = (rank << shift) * 16 + thread;
        if (step >= steps) return;
        if (thread < OWNED && of_batch < rows_in(step)) {
            const int here = (step % 2 * OWNED + thread) * 4, visit = visits(step)[of_batch];
            copy_ahead<4>(base + Layout::truth + here, a.label + size_t(visit) * a.label_words);
            if (WEIGHTED)
                copy_ahead<4>(base + Layout::weight + here, a.weight + size_t(visit) * a.u + column);
        }
        if (thread == THREADS - 1)
            copy_ahead<4>(base + Layout::rate + step % 2 * 4,
                          a.numbers + size_t(a.first + step) * models + model);
    }
    // The largest weight that this thread sees of a step's rows, which says what the unit of its
    // residuals is.
    __device__ __forceinline__ void weigh(int step) {
        if (!BYTES || !weighted() || step >= steps) return;
        const int size = rows_in(step), *const visit = visits(step);
        weight_ahead = 0;
#pragma unroll
        for (int r = thread; r < ROWS; r += THREADS)
            if (r < size)
                weight_ahead = fmaxf(weight_ahead, a.weight[size_t(visit[r]) * a.u + column]);
    }
    __device__ __forceinline__ void note_weight(int step) const {
        if (!BYTES || !weighted()) return;
        float most = weight_ahead;
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, from_lane_xor(most, mask));
        if (lane == 0) at<float>(Layout::heaviest)[step % 2 * WARPS + warp] = most;
    }
    // Residuals are less than two to the power of this.
    __device__ __forceinline__ int size_of_residuals(int step) const {
        if (!BYTES || !weighted()) return 0;
        const float *const heaviest = at<float>(Layout::heaviest) + step % 2 * WARPS;
        float most = heaviest[0];
#pragma unroll
        for (int i = 1; i < WARPS; ++i) most = fmaxf(most, heaviest[i]);
        const int size = static_cast<int>(bits_of(most) >> 23) - 126;
        return size < -60 ? -60 : size > 60 ? 60 : size;
    }

    // Weights

    __device__ __forceinline__ void load_weights() {
        for (int f = thread; f < SLICE; f += THREADS) {
            const size_t here = size_t(model) * a.d + rank * SLICE + f;
            at<float>(Layout::mean)[f] = a.mean && f < width ? a.mean[here] : 0.f;
            at<float>(Layout::unit)[f] = a.inverse_scale && f < width ? a.inverse_scale[here] : 1.f;
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < GROUPS; ++q)
#pragma unroll
            for (int i = 0; i < HALVES; ++i) {
#pragma unroll
                for (int c = 0; c < TILES; ++c)
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const int f = feature(q) + 2 * i + j / 2, k = 8 * c + 2 * t + j % 2;
                        w[q][i][c][j] = is_mine(k, f) ? a.coef[in_all(k, f)] : 0.f;
                        v[q][i][c][j] = is_mine(k, f) ? a.velocity[in_all(k, f)] : 0.f;
                    }
                if (!REST) continue;
                const int f = feature_of_rest(q) + i, k = 8 * TILES + t % 2;
                w_rest[q][i] = is_mine(k, f) ? a.coef[in_all(k, f)] : 0.f;
                v_rest[q][i] = is_mine(k, f) ? a.velocity[in_all(k, f)] : 0.f;
            }
    }
    __device__ __forceinline__ void store_weights() const {
#pragma unroll
        for (int q = 0; q < GROUPS; ++q)
#pragma unroll
            for (int i = 0; i < HALVES; ++i) {
#pragma unroll
                for (int c = 0; c < TILES; ++c)
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const int f = feature(q) + 2 * i + j / 2, k = 8 * c + 2 * t + j % 2;
                        if (!is_mine(k, f)) continue;
                        a.new_coef[in_all(k, f)] = w[q][i][c][j];
                        a.new_velocity[in_all(k, f)] = v[q][i][c][j];
                    }
                const int f = feature_of_rest(q) + i, k = 8 * TILES + t % 2;
                if (!REST || !is_mine(k, f)) continue;
                a.new_coef[in_all(k, f)] = w_rest[q][i];
                a.new_velocity[in_all(k, f)] = v_rest[q][i];
            }
    }

    // Weights to shared memory, as products take them. Whether any has no place among the numbers
    // of that scale.
    __device__ __forceinline__ bool publish() const {
        bool over = false;
        if (!works) return over;
#pragma unroll
        for (int q = 0; q < GROUPS; ++q) {
            if (BYTES) publish_bytes(q, over);
            else publish_floats(q);
        }
        return over;
    }
    __device__ __forceinline__ void publish_bytes(int q, bool &over) const {
        const float up = power_of_two(scale), most = power_of_two(30 - scale);
        const int f = feature(q), e = feature_of_rest(q);
        unsigned *const words = at<unsigned>(Layout::weights);
        unsigned *const to =
            words + (f / 32 * WEIGHTS * 32 + f % 16 / 4) * 2 + f % 32 / 16 + 16 * t;
#pragma unroll
        for (int c = 0; c < TILES; ++c)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                unsigned u[4] = {0, 0, 0, 0};
#pragma unroll
                for (int i = 0; i < PER; ++i) {
                    const float x = w[q][i / 2][c][2 * (i % 2) + j];
                    over = over || !(fabsf(x) < most);
                    u[i] = digits_of(x * up);
                }
                const unsigned p0 = permute_bytes(u[0], u[1], 0x5140);
                const unsigned p1 = permute_bytes(u[0], u[1], 0x7362);
                const unsigned p2 = permute_bytes(u[2], u[3], 0x5140);
                const unsigned p3 = permute_bytes(u[2], u[3], 0x7362);
                const unsigned digits[4] = {
                    permute_bytes(p0, p2, 0x5410), permute_bytes(p0, p2, 0x7632),
                    permute_bytes(p1, p3, 0x5410), permute_bytes(p1, p3, 0x7632)};
#pragma unroll
                for (int digit = 0; digit < 4; ++digit) {
                    unsigned *const there = to + (4 * c + digit) * 64 + j * 8;
                    if (PER == 4) *there = digits[digit];
                    else
                        reinterpret_cast<unsigned short *>(there)[f % 4 / 2] =
                            static_cast<unsigned short>(digits[digit]);
                }
            }
        if (!REST) return;
        unsigned u[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < HALVES; ++i) {
            over = over || !(fabsf(w_rest[q][i]) < most);
            u[i] = digits_of(w_rest[q][i] * up);
        }
        const int word = ((e / 32 * WEIGHTS + 4 * TILES) * 32 + e % 16 / 4) * 2 + e % 32 / 16;
        unsigned char *const far =
            reinterpret_cast<unsigned char *>(words + word) + t % 2 * 32 + e % 4;
        const unsigned p0 = permute_bytes(u[0], u[1], 0x5140);
        const unsigned p1 = permute_bytes(u[0], u[1], 0x7362);
#pragma unroll
        for (int digit = 0; digit < 4; ++digit) {
            const unsigned pair = (digit < 2 ? p0 : p1) >> (16 * (digit % 2));
            unsigned char *const there = far + digit * 64;
            if (HALVES == 2)
                *reinterpret_cast<unsigned short *>(there) = static_cast<unsigned short>(pair);
            else *there = static_cast<unsigned char>(pair);
        }
    }
    __device__ __forceinline__ void publish_floats(int q) const {
        unsigned *const words = at<unsigned>(Layout::weights);
        auto put = [&](int tile, int of_tile, int f, unsigned value) {
            words[((f / 8 * WEIGHTS + tile) * 32 + of_tile * 4 + f % 8 / 2) * 2 + f % 2] = value;
        };
        unsigned high, low;
#pragma unroll
        for (int c = 0; c < TILES; ++c)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                split(w[q][0][c][j], high, low);
                put(2 * c, 2 * t + j % 2, feature(q) + j / 2, high);
                put(2 * c + 1, 2 * t + j % 2, feature(q) + j / 2, low);
            }
        if (!REST) return;
        split(w_rest[q][0], high, low);
        put(2 * TILES, t % 2, feature_of_rest(q), high);
        put(2 * TILES, 2 + t % 2, feature_of_rest(q), low);
    }

    // What the weights make of the mean, of each warp.
    __device__ __forceinline__ void meet_mean() const {
        float *const to = at<float>(Layout::at_mean) + warp * CLASSES;
        float sum[PASSES][2] = {}, of_rest = 0;
#pragma unroll
        for (int q = 0; q < GROUPS; ++q) {
            float mean[PER], mean_of_rest[HALVES];
            pick(mean, Layout::mean, feature(q));
#pragma unroll
            for (int c = 0; c < TILES; ++c)
#pragma unroll
                for (int i = 0; i < HALVES; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        sum[c][j % 2] += w[q][i][c][j] * mean[2 * i + j / 2];
            if (!REST) continue;
            pick(mean_of_rest, Layout::mean, feature_of_rest(q));
#pragma unroll
            for (int i = 0; i < HALVES; ++i) of_rest += w_rest[q][i] * mean_of_rest[i];
        }
        if (REST) of_rest += from_lane_xor(of_rest, 2);
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
#pragma unroll
            for (int c = 0; c < TILES; ++c)
#pragma unroll
                for (int j = 0; j < 2; ++j) sum[c][j] += from_lane_xor(sum[c][j], mask);
            if (REST) of_rest += from_lane_xor(of_rest, mask);
        }
        if (g) return;
#pragma unroll
        for (int c = 0; c < TILES; ++c)
#pragma unroll
            for (int j = 0; j < 2; ++j) to[8 * c + 2 * t + j] = sum[c][j];
        if (REST && t < 2) to[8 * TILES + t] = of_rest;
    }
    __device__ __forceinline__ float at_mean(int k) const {
        const float *const from = at<float>(Layout::at_mean) + k;
        return (from[0] + from[CLASSES]) + (from[2 * CLASSES] + from[3 * CLASSES]);
    }
    // That of logits: floats are less their mean, since tensor cores cut sums off instead of rounding
    // them, which a common part of all rows would make worse.
    __device__ __forceinline__ float from_mean(int k) const { return BYTES ? at_mean(k) : 0.f; }

    // All that the next step needs.
    __device__ __forceinline__ void publish_all(int next) {
        bool over = publish();
        meet_mean();
        note_weight(next);
        wait_for_groups<0>();
        if (!BYTES) {
            __syncthreads();
            return;
        }
        int any = __syncthreads_or(over);
        for (; BYTES && any && scale > LEAST; any = __syncthreads_or(over)) {
            scale -= 2;
            over = publish();
        }
        // No fixed-point number says that a weight is not a number.
        poison = any ? from_bits(0x7fc00000u) : 0.f;
    }

    // The beginning and the end

    __device__ __forceinline__ void start() {
        for (int i = thread; i < Layout::total / 4; i += THREADS) at<unsigned>(0)[i] = 0;
        __syncthreads();
        if (thread == 0) {
            start_counting(logits_came);
            start_counting(residuals_came);
        }
        fetch_indices(0);
        fetch_indices(1);
        commit_copies();
        load_weights();
        meet_mean();
        wait_for_groups<0>();
        __syncthreads();
        fetch(0);
        if (KEPT) fetch_labels(0);
        commit_copies();
        weigh(0);
        meet_cluster();  // the other blocks' memory exists once they have begun
        send_at_mean();
        for (int k = thread; smoothed() && k < a.classes; k += THREADS)
            at<float>(Layout::smoothing)[k] = a.smoothing[model * a.classes + k];
        meet_cluster();
        for (int k = 0; smoothed() && k < a.classes; ++k)
            hard_share -= at<float>(Layout::smoothing)[k];
        for (int k = thread; k < CLASSES; k += THREADS) {
            const int here = model * a.classes + k;
            // What is no class has no probability.
            at<float>(Layout::intercept)[k] =
                k < a.classes ? a.intercept[here] + of_blocks(k) : -INFINITE;
            at<float>(Layout::speed)[k] = k < a.classes ? a.intercept_velocity[here] : 0.f;
        }
        publish_all(0);
#pragma unroll
        for (int j = 0; KEPT && j < OWN; ++j) {
            kept[j] = at<float>(Layout::intercept)[class_of(j)];
            kept_speed[j] = at<float>(Layout::speed)[class_of(j)];
        }
    }
    static constexpr float INFINITE = 3e38f;

    // What the block's weights make of the mean, to all blocks.
    __device__ __forceinline__ void send_at_mean() const {
        for (int i = thread; i < CLUSTER * CLASSES; i += THREADS) {
            const int block = i / CLASSES, k = i % CLASSES;
            const Address there = base + Layout::of_blocks + (rank * CLASSES + k) * 4;
            store(in_block(there, block), at_mean(k));
        }
    }
    __device__ __forceinline__ float of_blocks(int k) const {
        float sum = 0;
        for (int block = 0; block < CLUSTER; ++block)
            sum += at<float>(Layout::of_blocks)[block * CLASSES + k];
        return sum;
    }

    // What was learned, to memory that all share.
    __device__ __forceinline__ void finish() const {
        store_weights();
        if (KEPT && warp == 0 && g == 0)
#pragma unroll
            for (int j = 0; j < OWN; ++j)
                if (speaks(j)) {
                    at<float>(Layout::intercept)[class_of(j)] = kept[j];
                    at<float>(Layout::speed)[class_of(j)] = kept_speed[j];
                }
        meet_mean();
        double *const of_threads = at<double>(Layout::sums);
        of_threads[2 * thread] = loss;
        of_threads[2 * thread + 1] = correct;
        __syncthreads();
        send_at_mean();
        if (thread < 2) {
            double sum = 0;
            for (int i = 0; i < THREADS; ++i) sum += of_threads[2 * i + thread];
            store(in_block(base + Layout::of_all + (2 * rank + thread) * 8, 0), sum);
        }
        meet_cluster();
        if (rank) return;
        for (int k = thread; k < a.classes; k += THREADS) {
            const int here = model * a.classes + k;
            a.new_intercept[here] = at<float>(Layout::intercept)[k] - of_blocks(k);
            a.new_intercept_velocity[here] = at<float>(Layout::speed)[k];
        }
        if (thread < 2) {
            double sum = a.first ? a.sums[thread * models + model] : 0;
            for (int block = 0; block < CLUSTER; ++block)
                sum += at<double>(Layout::of_all)[2 * block + thread];
            a.sums[thread * models + model] = sum;
        }
    }

    // Steps

    __device__ __forceinline__ void
    send_tile(int c, int i, const float (&z)[4], const float (&less)[2]) const {
        const int tile = warp + WARPS * i, owner = tile >> shift;
        if (!PLAIN && tile >= tiles) return;
        const Address came = in_block(logits_came, owner);
        const int row = (tile & (1 << shift) - 1) * 16 + g;
        const Address there = in_block(base + Layout::logits, owner) +
                              (rank * SOURCE + (c * OWNED + row) * 8 + 2 * t) * 4;
        send(there, z[0] - less[0], z[1] - less[1], came);
        send(there + 8 * 32, z[2] - less[0], z[3] - less[1], came);
    }
    // The logits that this block's features make of N tiles of rows per warp, sent to their owners.
    template <int N> __device__ __forceinline__ void forward(int step, const Fetch &fetch) const {
#pragma unroll
        for (int c = 0; c < PASSES; ++c) {
            float z[N][4], rest[4][4];
            if (BYTES) multiply_bytes<N>(step, c, fetch, z, rest);
            else multiply_floats<N>(step, c, fetch, z, rest);
            if (TILES) {
                const float less[2] = {from_mean(8 * c + 2 * t) - poison,
                                       from_mean(8 * c + 2 * t + 1) - poison};
#pragma unroll
                for (int i = 0; i < N; ++i) send_tile(c, i, z[i], less);
            }
            if (REST && c == 0) send_rest<N>(rest);
        }
    }
    // Of the last two classes, each lane has a part of all rows, and gets the sums of one tile.
    template <int N> __device__ __forceinline__ void send_rest(float (&part)[4][4]) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float keep = t & 2 ? part[i + 2][j] : part[i][j];
                const float give = t & 2 ? part[i][j] : part[i + 2][j];
                part[i][j] = keep + from_lane_xor(give, 2);
            }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float keep = t & 1 ? part[1][j] : part[0][j];
            const float give = t & 1 ? part[0][j] : part[1][j];
            part[0][j] = keep + from_lane_xor(give, 1);
        }
        const float less[2] = {from_mean(8 * TILES) - poison, from_mean(8 * TILES + 1) - poison};
        const int tile = warp + WARPS * t, owner = tile >> shift;
        if (t >= N || (!PLAIN && tile >= tiles)) return;
        const Address came = in_block(logits_came, owner);
        const int row = (tile & (1 << shift) - 1) * 16 + g;
        const Address there = in_block(base + Layout::logits, owner) +
                              (rank * SOURCE + OWNED * 8 * TILES + row * 2) * 4;
        send(there, part[0][0] - less[0], part[0][1] - less[1], came);
        send(there + 8 * 8, part[0][2] - less[0], part[0][3] - less[1], came);
    }
    template <int N>
    __device__ __forceinline__ void
    multiply_bytes(int step, int c, const Fetch &fetch, float (&z)[N][4],
                   float (&rest)[4][4]) const {
        constexpr int DIGITS = TILES ? 4 : 0;
        const bool with_rest = REST && c == 0;
        int sum[N][DIGITS + REST][4];
#pragma unroll
        for (int i = 0; i < N; ++i)
#pragma unroll
            for (int digit = 0; digit < DIGITS + REST; ++digit)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][digit][j] = 0;
        const Address rows = base + Layout::rows + step % 2 * (ROWS * STRIDE) +
                             (16 * warp + lane % 16) * STRIDE + lane / 16 * 16;
        const uint2 *const weights = at<uint2>(Layout::weights) + lane;
#pragma unroll UNROLLED
        for (int ks = 0; ks < FORWARD; ++ks) {
            uint2 f[DIGITS + REST];
#pragma unroll
            for (int digit = 0; digit < DIGITS; ++digit)
                f[digit] = weights[(ks * WEIGHTS + 4 * c + digit) * 32];
            if (with_rest) f[DIGITS + REST - 1] = weights[(ks * WEIGHTS + 4 * TILES) * 32];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                unsigned x[4];
                load_matrices(x, rows + i * (16 * WARPS * STRIDE) + ks * 32);
#pragma unroll
                for (int digit = 0; digit < DIGITS; ++digit)
                    multiply_u8s8(sum[i][digit], x, f[digit].x, f[digit].y);
                if (with_rest)
                    multiply_u8s8(sum[i][DIGITS + REST - 1], x, f[DIGITS + REST - 1].x,
                                  f[DIGITS + REST - 1].y);
                if (N == 4 && c == 0) fetch_part(fetch, Places(), ks, i, N);
            }
        }
        const float down = power_of_two(-scale), high_down = power_of_two(16 - scale);
        const float digit_down = power_of_two(8 * t - scale);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                rest[i][j] = 0;
                if (i >= N) continue;
                if (TILES) z[i % N][j] = join(sum[i % N], j, high_down, down);
                if (with_rest) rest[i][j] = to_float(sum[i % N][DIGITS + REST - 1][j]) * digit_down;
            }
    }
    // The number that four sums of digits are; nothing overflows with 256 terms.
    template <int N>
    __device__ __forceinline__ float
    join(const int (&sum)[N][4], int j, float high_down, float down) const {
        const float high = to_float(sum[3 % N][j] * 256 + sum[2 % N][j]);
        const float low = to_float(sum[1 % N][j] * 256 + sum[0][j]);
        return high * high_down + low * down;
    }
    template <int N>
    __device__ __forceinline__ void
    multiply_floats(int step, int c, const Fetch &fetch, float (&z)[N][4],
                    float (&rest)[4][4]) const {
        const bool with_rest = REST && c == 0;
        constexpr int PAIR = APART && N > 1 ? 2 : 1;
        float low[N][4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) rest[i][j] = z[i % N][j] = low[i % N][j] = 0;
        const unsigned char *const rows =
            memory + Layout::rows + step % 2 * (ROWS * STRIDE) + (16 * warp + g) * STRIDE;
        const uint2 *const weights = at<uint2>(Layout::weights) + lane;
#pragma unroll PLAIN && TILES <= 1 ? FORWARD : UNROLLED
        for (int ks = 0; ks < FORWARD; ++ks) {
            uint2 f[3] = {};
            if (TILES) {
                f[0] = weights[(ks * WEIGHTS + 2 * c) * 32];
                f[1] = weights[(ks * WEIGHTS + 2 * c + 1) * 32];
            }
            if (with_rest) f[2] = weights[(ks * WEIGHTS + 2 * TILES) * 32];
            const float2 u = *reinterpret_cast<const float2 *>(
                at<float>(Layout::mean) + ks * 8 + 2 * t);
#pragma unroll
            for (int i = 0; i < N; i += PAIR) {
                Parts parts[PAIR];
#pragma unroll
                for (int j = 0; j < PAIR; ++j) {
                    const unsigned char *const row =
                        rows + (i + j) * (16 * WARPS * STRIDE) + (ks * 8 + 2 * t) * DATA_BYTES;
                    const float2 p = load(row), q = load(row + 8 * STRIDE);
                    parts[j] = Parts(p.x - u.x, q.x - u.x, p.y - u.y, q.y - u.y);
                    multiply_high(parts[j], f, z[i + j], low[i + j], rest[i + j], with_rest);
                }
#pragma unroll
                for (int j = 0; j < PAIR; ++j) {
                    multiply_low(parts[j], f, low[i + j], rest[i + j], with_rest);
                    if (AMONG && N == 4 && c == 0) fetch_part(fetch, Places(), ks, i + j, N);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < N; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) z[i][j] += low[i][j];
    }
    // Four values, and what they are more than numbers of tf32.
    struct Parts {
        unsigned high[4], low[4];
        __device__ __forceinline__ Parts() {}
        __device__ __forceinline__ Parts(float x0, float x1, float x2, float x3) {
            const float x[4] = {x0, x1, x2, x3};
#pragma unroll
            for (int j = 0; j < 4; ++j) split(x[j], high[j], low[j]);
        }
    };
    // Adds the products of four values and the large and the small part of numbers of 8 classes,
    // and those of all parts of the last two classes: first what their large parts give.
    __device__ __forceinline__ void
    multiply_high(const Parts &x, const uint2 (&f)[3], float (&large)[4], float (&small)[4],
                  float (&rest)[4], bool with_rest) const {
        if (TILES) {
            multiply_tf32(large, x.high, f[0].x, f[0].y);
            multiply_tf32(small, x.high, f[1].x, f[1].y);
        }
        if (with_rest) multiply_tf32(rest, x.high, f[2].x, f[2].y);
    }
    __device__ __forceinline__ void
    multiply_low(const Parts &x, const uint2 (&f)[3], float (&small)[4], float (&rest)[4],
                 bool with_rest) const {
        if (TILES) multiply_tf32(small, x.low, f[0].x, f[0].y);
        if (with_rest) multiply_tf32(rest, x.low, f[2].x, f[2].y);
    }

    // The features of this lane, of 32 rows, as a product that gives a gradient takes bytes: row
    // 16 i + 8 (j / 2) + 2 t + j % 2 of them is byte j of operand i.
    __device__ __forceinline__ void
    operands(unsigned (&x)[HALVES][4], int step, int q, int ks) const {
        const unsigned char *const rows =
            memory + Layout::rows + step % 2 * (ROWS * STRIDE) + 2 * t * STRIDE + feature(q);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const unsigned char *const from = rows + (32 * ks + 16 * i) * STRIDE;
            unsigned r[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const unsigned char *const row = from + (j / 2 * 8 + j % 2) * STRIDE;
                r[j] = PER == 4 ? *reinterpret_cast<const unsigned *>(row)
                                : *reinterpret_cast<const unsigned short *>(row);
            }
            const unsigned p0 = permute_bytes(r[0], r[1], 0x5140);
            const unsigned p1 = permute_bytes(r[2], r[3], 0x5140);
            x[0][2 * i] = works ? permute_bytes(p0, p1, 0x5410) : 0x01010101u;
            x[0][2 * i + 1] = permute_bytes(p0, p1, 0x7632);
            if (PER == 2) continue;
            const unsigned p2 = permute_bytes(r[0], r[1], 0x7362);
            const unsigned p3 = permute_bytes(r[2], r[3], 0x7362);
            x[HALVES - 1][2 * i] = permute_bytes(p2, p3, 0x5410);
            x[HALVES - 1][2 * i + 1] = permute_bytes(p2, p3, 0x7632);
        }
    }
    // Whether the rows of a batch end before so many times 32, about; beyond are no residuals.
    __device__ __forceinline__ bool end_before(int ks) const {
        return PLAIN ? false : ks >= 4 ? tiles <= 8 : ks >= 2 && tiles <= 4;
    }

    // What is known of a row before its logits are.
    struct Row {
        int truth, visit;
        float weight, score;
    };
    __device__ __forceinline__ Row row_of(int step, int round) const {
        const int r = thread / 4 + 32 * round, of_batch = (rank << shift) * 16 + r;
        Row row{-1, 0, 0.f, 0.f};
        if (r >= 16 * owned || of_batch >= rows_in(step)) return row;
        if (KEPT) {
            row.truth = at<int>(Layout::truth)[step % 2 * OWNED + r];
            row.weight = WEIGHTED ? at<float>(Layout::weight)[step % 2 * OWNED + r] : 1.f;
            row.score = row.weight;
            return row;
        }
        row.visit = visits(step)[of_batch];
        const size_t of_label = size_t(row.visit) * a.label_words;
        row.truth = PLAIN || a.label ? a.label[of_label] : likeliest(row.visit);
        const size_t here = size_t(row.visit) * a.u + column;
        row.weight = weighted() ? a.weight[here] : 1.f;
        row.score = !PLAIN && a.score_weight ? a.score_weight[here] : row.weight;
        return row;
    }
    // The class that a row's target gives most probability.
    __device__ __forceinline__ int likeliest(int visit) const {
        const float *const target = a.target + size_t(visit) * a.classes;
        int best = 0;
        for (int k = 1; k < a.classes; ++k)
            if (target[k] > target[best]) best = k;
        return best;
    }
    __device__ __forceinline__ float target_of(const Row &row, int k) const {
        float target = k == row.truth ? 1.f : 0.f;
        if (!PLAIN && a.target)
            target = k < a.classes ? a.target[size_t(row.visit) * a.classes + k] : 0.f;
        return smoothed() ? hard_share * target + at<float>(Layout::smoothing)[k] : target;
    }

    // The residuals of one round of the block's rows, and what their loss needs: four lanes share a
    // row.
    struct Outcome {
        float below[OWN], target[OWN], total;
    };
    __device__ __forceinline__ void
    softmax(Outcome &outcome, const Row &row, int round, int size) const {
        const int r = thread / 4 + 32 * round;
        const float *const logits = at<float>(Layout::logits) + r * 8 + 2 * t;
        const float *const rest = at<float>(Layout::logits) + OWNED * 8 * TILES + r * 2;
        float y[OWN];
#pragma unroll
        for (int j = 0; j < OWN; ++j)
            y[j] = KEPT ? kept[j] : at<float>(Layout::intercept)[class_of(j)];
#pragma unroll
        for (int source = 0; source < CLUSTER; ++source)
#pragma unroll
            for (int c = 0; c < TILES + REST; ++c) {
                const float2 both = *reinterpret_cast<const float2 *>(
                    (c < TILES ? logits + c * OWNED * 8 : rest) + source * SOURCE);
                y[2 * c] += both.x;
                y[2 * c + 1] += both.y;
            }
        float top = y[0];
#pragma unroll
        for (int j = 1; j < OWN; ++j) top = fmaxf(top, y[j]);
        top = fmaxf(top, from_lane_xor(top, 1));
        top = fmaxf(top, from_lane_xor(top, 2));
        float p[OWN], total = 0;
#pragma unroll
        for (int j = 0; j < OWN; ++j) {
            outcome.below[j] = y[j] - top;
            p[j] = exponential(outcome.below[j]);
        }
#pragma unroll
        for (int j = 0; j < 2 * TILES; ++j) total += p[j];
        if (TILES) {
            total += from_lane_xor(total, 1);
            total += from_lane_xor(total, 2);
        }
        if (REST) total += p[OWN - 2] + p[OWN - 1];
        outcome.total = total;
        const float one_of = __fdividef(1.f, total);
        const bool inside = row.truth >= 0;
#pragma unroll
        for (int j = 0; j < OWN; ++j) outcome.target[j] = class_of(j) == row.truth ? 1.f : 0.f;
        if (!PLAIN && (a.target || a.smoothing))
#pragma unroll
            for (int j = 0; j < OWN; ++j)
                outcome.target[j] = inside ? target_of(row, class_of(j)) : 0.f;
#pragma unroll
        for (int j = 0; j < OWN; ++j)
            p[j] = inside ? row.weight * (p[j] * one_of - outcome.target[j]) : 0.f;
        const int of_batch = (rank << shift) * 16 + r;
        if (BYTES) put_bytes(p, of_batch, size);
        else put_floats(p, of_batch);
    }
    __device__ __forceinline__ void put_bytes(const float (&p)[OWN], int row, int size) const {
        const float up = power_of_two(30 - size);
        unsigned char *const to =
            memory + Layout::residuals + row / 16 * (WORDS * 4) +
            (row >> 1 & 3) * 4 + (row >> 3 & 1) * 2 + (row & 1) + t * 32;
#pragma unroll
        for (int j = 0; j < 2 * TILES; ++j) {
            const unsigned u = digits_of(p[j] * up);
#pragma unroll
            for (int digit = 0; digit < 4; ++digit)
                to[(j / 2 * 4 + digit) * 128 + j % 2 * 16] =
                    static_cast<unsigned char>(u >> (8 * digit));
        }
        if (!REST || t >= 2) return;
        const unsigned u = digits_of((t ? p[OWN - 1] : p[OWN - 2]) * up);
#pragma unroll
        for (int digit = 0; digit < 4; ++digit)
            to[4 * TILES * 128 + digit * 32 - t * 16] =
                static_cast<unsigned char>(u >> (8 * digit));
    }
    __device__ __forceinline__ void put_floats(const float (&p)[OWN], int row) const {
        unsigned *const to = at<unsigned>(Layout::residuals) +
                             (row / 8 * RESIDUALS * 32 + row % 4) * 2 + row % 8 / 4 + t * 16;
        unsigned high, low;
#pragma unroll
        for (int j = 0; j < 2 * TILES; ++j) {
            unsigned *const there = to + j / 2 * SENT * 64 + j % 2 * 8;
            split(p[j], high, low);
            there[0] = LATE ? bits_of(p[j]) : high;
            if (!LATE) there[64] = low;
        }
        if (!REST || t >= 2) return;
        split(t ? p[OWN - 1] : p[OWN - 2], high, low);
        to[SENT * TILES * 64 - t * 8] = high;
        to[SENT * TILES * 64 - t * 8 + 16] = low;
    }

    __device__ __forceinline__ void send_residuals() const {
        // Each thread has vectors, and sends them to some of the other blocks.
        constexpr int VECTORS = OWNED / 16 * WORDS / 4;
        constexpr int SIZE = VECTORS < THREADS ? VECTORS : THREADS, SHARES = THREADS / SIZE;
        constexpr int EACH = (CLUSTER - 1 + SHARES - 1) / SHARES;
        const int count = owned * (WORDS / 4), first = rank << shift, team = thread / SIZE;
        const int begin = first * (WORDS / 4) + thread % SIZE;
        const uint4 *const from = at<uint4>(Layout::residuals) + begin;
        const Address own = base + Layout::residuals + begin * 16;
#pragma unroll
        for (int i = 0; i < VECTORS; i += SIZE) {
            if (team >= SHARES || thread % SIZE + i >= count) break;
            const uint4 vector = from[i];
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const int other = team * EACH + j, there = (rank + 1 + other) % CLUSTER;
                if (SHARES * EACH == CLUSTER - 1 || other < CLUSTER - 1)
                    send(in_block(own, there) + i * 16, vector, in_block(residuals_came, there));
            }
        }
    }

    __device__ __forceinline__ void add_loss(const Outcome &outcome, const Row &row) {
        float best = CLASSES, sum = 0;
        const float of_all = logarithm(outcome.total);
#pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const float k = to_float(class_of(j));
            if (outcome.below[j] == 0) best = fminf(best, k);
            const bool counts = outcome.target[j] != 0 && speaks(j);
            sum += counts ? outcome.target[j] * (of_all - outcome.below[j]) : 0.f;
        }
        best = fminf(best, from_lane_xor(best, 1));
        best = fminf(best, from_lane_xor(best, 2));
        if (row.truth < 0) return;
        loss += row.weight * sum;
        if (t == 0 && best == row.truth) correct += row.score;
    }

    // What is left of a feature's mean in the products that give its gradient. Of floats, as for the
    // logits, nothing, but where the mean is small beside the scale. There most values may be zero,
    // and what these made of the mean would be cut off beside the few others.
    __device__ __forceinline__ static float mean_left(float mean, float unit) {
        return BYTES || fabsf(mean) * unit < 1.f ? mean : 0.f;
    }

    // The gradient of 8 classes by the features of a group, and of the last two.
    __device__ __forceinline__ void
    gradient_of_bytes(int step, int q, int c, int size,
                      const unsigned (&ahead)[ROWS / 32][HALVES][4], float (&y)[HALVES][4],
                      float (&rest)[HALVES][4]) const {
        constexpr int DIGITS = TILES ? 4 : 0;
        const bool with_rest = REST && c == 0;
        int sum[HALVES][DIGITS + REST][4];
#pragma unroll
        for (int i = 0; i < HALVES; ++i)
#pragma unroll
            for (int digit = 0; digit < DIGITS + REST; ++digit)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][digit][j] = 0;
        const unsigned *const residuals = at<unsigned>(Layout::residuals) + lane;
#pragma unroll
        for (int ks = 0; ks < ROWS / 32; ++ks) {
            if (end_before(ks)) break;
            unsigned here[HALVES][4];
            if (!AHEAD) operands(here, step, q, ks);
#pragma unroll
            for (int digit = 0; digit < DIGITS + REST; ++digit) {
                if (digit == DIGITS && !with_rest) continue;
                const unsigned *const from =
                    residuals + 2 * ks * WORDS + (digit < DIGITS ? 4 * c + digit : 4 * TILES) * 32;
                const unsigned f0 = from[0], f1 = from[WORDS];
#pragma unroll
                for (int i = 0; i < HALVES; ++i)
                    multiply_u8s8(sum[i][digit], AHEAD ? ahead[ks][i] : here[i], f0, f1);
            }
        }
        const float high_down = power_of_two(size - 14), down = power_of_two(size - 30);
        const float digit_down = power_of_two(8 * t - 30 + size);
#pragma unroll
        for (int i = 0; i < HALVES; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (TILES) y[i][j] = join(sum[i], j, high_down, down);
                if (with_rest) rest[i][j] = to_float(sum[i][DIGITS + REST - 1][j]) * digit_down;
            }
    }
    __device__ __forceinline__ void
    gradient_of_floats(int step, int c, float (&y)[HALVES][4], float (&rest)[HALVES][4]) const {
        const bool with_rest = REST && c == 0;
        float low[1 + APART][4], more[1 + APART][4];  // sums, and those of the rest
#pragma unroll
        for (int j = 0; j < 4; ++j)
            y[0][j] = low[0][j] = low[APART][j] = more[0][j] = more[APART][j] = 0;
        const unsigned char *const rows = memory + Layout::rows + step % 2 * (ROWS * STRIDE) +
                                          t * STRIDE + (works ? feature(0) : 0) * DATA_BYTES;
        const uint2 *const residuals = at<uint2>(Layout::residuals) + lane;
        const int end = (tiles + 1) / 2 * 4;
        float u[PER], unit[PER];
        pick(u, Layout::mean, feature(0));
        pick(unit, Layout::unit, feature(0));
#pragma unroll
        for (int f = 0; f < PER; ++f) u[f] -= mean_left(u[f], unit[f]);
#pragma unroll APART ? 8 : 4
        for (int ks = 0; ks < end; ++ks) {
            float2 p = load(rows + 8 * ks * STRIDE), r = load(rows + (8 * ks + 4) * STRIDE);
            p = works ? make_float2(p.x - u[0], p.y - u[1]) : make_float2(1.f, 0.f);
            r = works ? make_float2(r.x - u[0], r.y - u[1]) : make_float2(1.f, 0.f);
            uint2 f[3] = {};
            const uint2 *const from = residuals + (ks * RESIDUALS + SENT * c) * 32;
            if (TILES) f[0] = from[0];
            if (TILES && !LATE) f[1] = from[32];
            if (LATE) {
                const uint2 both = f[0];
                split(from_bits(both.x), f[0].x, f[1].x);
                split(from_bits(both.y), f[0].y, f[1].y);
            }
            if (with_rest) f[2] = residuals[(ks * RESIDUALS + SENT * TILES) * 32];
            const Parts parts(p.x, p.y, r.x, r.y);
            multiply_high(parts, f, y[0], low[0], more[0], with_rest);
            multiply_low(parts, f, low[APART], more[APART], with_rest);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            y[0][j] += APART ? low[0][j] + low[APART][j] : low[0][j];
            rest[0][j] = APART ? more[0][j] + more[APART][j] : more[0][j];
        }
    }
    // Of the last two classes, each lane has a part of all of its features, and gets the sums of
    // its own.
    __device__ __forceinline__ void
    own_of_rest(const float (&rest)[HALVES][4], float (&own)[HALVES]) const {
        if (HALVES == 2) {
            float part[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float keep = t & 2 ? rest[HALVES - 1][j] : rest[0][j];
                const float give = t & 2 ? rest[0][j] : rest[HALVES - 1][j];
                part[j] = keep + from_lane_xor(give, 2);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float keep = t & 1 ? part[2 * j + 1] : part[2 * j];
                const float give = t & 1 ? part[2 * j] : part[2 * j + 1];
                own[j % HALVES] = keep + from_lane_xor(give, 1);
            }
        } else {
            float part[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float keep = t & 2 ? rest[0][2 + j] : rest[0][j];
                const float give = t & 2 ? rest[0][j] : rest[0][2 + j];
                part[j] = keep + from_lane_xor(give, 2);
            }
            const float keep = t & 1 ? part[1] : part[0], give = t & 1 ? part[0] : part[1];
            own[0] = keep + from_lane_xor(give, 1);
        }
    }

    __device__ __forceinline__ void
    move(float &weight, float &speed, float slope, float unit, float rate) const {
        speed = momentum * speed - rate * ((slope + l2 * weight) * unit * unit);
        weight += speed;
        if (!PLAIN && l1 > 0) {
            const float clipped = clip(weight, rate * (l1 * unit * unit));
            weight -= clipped;
            speed -= clipped;
        }
    }
    // The means and units of a lane's features, where they are loaded before residuals come.
    static constexpr bool IN_TIME = PLAIN && GROUPS == 1;
    struct Known {
        float mean[PER], unit[PER], mean_of_rest[HALVES], unit_of_rest[HALVES];
    };
    __device__ __forceinline__ void
    backward(int step, float rate, int size, const unsigned (&ahead)[ROWS / 32][HALVES][4],
             const Known &known) {
        const float per_row = __fdividef(1.f, to_float(rows_in(step)));
        float of_class[OWN] = {};  // sums of residuals, from the lanes whose first feature is 1
#pragma unroll
        for (int q = 0; q < GROUPS; ++q)
#pragma unroll
            for (int c = 0; c < PASSES; ++c) {
                float y[HALVES][4], rest[HALVES][4], own[HALVES];
                if (BYTES) gradient_of_bytes(step, q, c, size, ahead, y, rest);
                else gradient_of_floats(step, c, y, rest);
                if (TILES) {
#pragma unroll
                    for (int j = 0; q == 0 && j < 2; ++j)
                        of_class[2 * c + j] = from_lane_at(y[0][j], 28 + t);
                    float mean[PER], unit[PER];
#pragma unroll
                    for (int f = 0; IN_TIME && f < PER; ++f) {
                        mean[f] = known.mean[f];
                        unit[f] = known.unit[f];
                    }
                    if (!IN_TIME) {
                        pick(mean, Layout::mean, feature(q));
                        pick(unit, Layout::unit, feature(q));
                    }
#pragma unroll
                    for (int i = 0; i < HALVES; ++i)
#pragma unroll
                        for (int j = 0; j < 4; ++j) {
                            const int f = 2 * i + j / 2;
                            const float less =
                                of_class[2 * c + j % 2] * mean_left(mean[f], unit[f]);
                            const float slope = y[i][j] - less;
                            move(w[q][i][c][j], v[q][i][c][j], slope * per_row, unit[f], rate);
                        }
                }
                if (!REST || c) continue;
                own_of_rest(rest, own);
#pragma unroll
                for (int j = 0; q == 0 && j < 2; ++j)
                    of_class[2 * TILES + j] = from_lane_at(own[0], 28 + j);
                const float of_own = t % 2 ? of_class[OWN - 1] : of_class[OWN - 2];
                float mean[HALVES], unit[HALVES];
#pragma unroll
                for (int i = 0; IN_TIME && i < HALVES; ++i) {
                    mean[i] = known.mean_of_rest[i];
                    unit[i] = known.unit_of_rest[i];
                }
                if (!IN_TIME) {
                    pick(mean, Layout::mean, feature_of_rest(q));
                    pick(unit, Layout::unit, feature_of_rest(q));
                }
#pragma unroll
                for (int i = 0; i < HALVES; ++i)
                    move(w_rest[q][i], v_rest[q][i],
                         (own[i] - of_own * mean_left(mean[i], unit[i])) * per_row, unit[i], rate);
            }
        if (KEPT) {
#pragma unroll
            for (int j = 0; j < OWN; ++j) {
                const float speed = momentum * kept_speed[j] - rate * (of_class[j] * per_row);
                kept_speed[j] = a.fit_intercept ? speed : kept_speed[j];
                kept[j] = a.fit_intercept ? kept[j] + speed : kept[j];
            }
            return;
        }
        if (!a.fit_intercept || warp || g) return;
        float speed[OWN], intercept[OWN];
#pragma unroll
        for (int j = 0; j < OWN; ++j) {
            speed[j] = at<float>(Layout::speed)[class_of(j)];
            intercept[j] = at<float>(Layout::intercept)[class_of(j)];
        }
#pragma unroll
        for (int j = 0; j < OWN; ++j) {
            if (!speaks(j)) continue;
            speed[j] = momentum * speed[j] - rate * (of_class[j] * per_row);
            at<float>(Layout::speed)[class_of(j)] = speed[j];
            at<float>(Layout::intercept)[class_of(j)] = intercept[j] + speed[j];
        }
    }

    // What the barriers of a step wait for.
    __device__ __forceinline__ void expect() const {
        if (thread) return;
        expect_bytes(logits_came, CLUSTER * owned * 16 * CLASSES * 4);
        expect_bytes(residuals_came, (tiles - owned) * WORDS * 4);
    }
    __device__ __forceinline__ float rate_of(int step) const {
        return a.numbers[size_t(a.first + step) * models + model];
    }

    __device__ __forceinline__ void run(int step) {
        if (!KEPT) expect();
        float rate = KEPT ? 0.f : rate_of(step);
        const int size = size_of_residuals(step);
        Row row[ROUNDS];
#pragma unroll
        for (int i = 0; !KEPT && i < ROUNDS; ++i) row[i] = row_of(step, i);
        if (PER == 4) forget(thread);  // or what follows from it fills the registers for all steps
        lane = thread % 32;
        warp = thread / 32;
        g = lane / 4;
        t = lane % 4;
        const Fetch early = fetch_of(step + 1);
        if (PLAIN || tiles > 8) forward<4>(step, early);
        else if (tiles > 4) forward<2>(step, early);
        else forward<1>(step, early);
        // While logits travel: the operands of the backward products, and the next rows.
        Places places[FORWARD];
#pragma unroll
        for (int ks = 0; !AMONG && ks < FORWARD; ++ks) look_up(places[ks], early, ks);
        if (KEPT) {
            expect();
            fetch_labels(step + 1);
            rate = at<float>(Layout::rate)[step % 2];
#pragma unroll
            for (int i = 0; i < ROUNDS; ++i) row[i] = row_of(step, i);
        }
        unsigned ahead[ROWS / 32][HALVES][4];
        if (AHEAD) {
            if (PLAIN || tiles > 8) {
#pragma unroll
                for (int ks = 0; ks < 8; ++ks) operands(ahead[ks], step, 0, ks);
            } else {
#pragma unroll
                for (int ks = 0; ks < 4; ++ks)
                    if (2 * ks < tiles) operands(ahead[ks], step, 0, ks);
            }
        }
        if (!early.all) fetch(step + 1);
        else
#pragma unroll
            for (int ks = 0; !AMONG && ks < FORWARD; ++ks)
                fetch_part(early, places[ks], ks, 0, 1);
        weigh(step + 1);
        wait_for_bytes(logits_came, step % 2);
        Outcome outcome[ROUNDS];
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i)
            if (8 * warp + 32 * i < 16 * owned) softmax(outcome[i], row[i], i, size);
        __syncthreads();
        send_residuals();
        fetch_indices(step + 2);  // where those of this step were, which no thread needs any more
        commit_copies();
        // While residuals travel: loss and accuracy.
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i)
            if (8 * warp + 32 * i < 16 * owned) add_loss(outcome[i], row[i]);
        Known known;
        if (IN_TIME) {
            pick(known.mean, Layout::mean, feature(0));
            pick(known.unit, Layout::unit, feature(0));
            pick(known.mean_of_rest, Layout::mean, feature_of_rest(0));
            pick(known.unit_of_rest, Layout::unit, feature_of_rest(0));
        }
        wait_for_bytes(residuals_came, step % 2);
        backward(step, rate, size, ahead, known);
        publish_all(step + 1);
    }
};

// Elsewhere there are no registers for it.
constexpr bool SPECIAL = TILES <= 1 && GROUPS == 1;
template <bool PLAIN, bool WEIGHTED>
__device__ __forceinline__ void work(const Arguments &arguments) {
    Worker<PLAIN, WEIGHTED> worker(arguments);
    worker.start();
    for (int step = 0; step < worker.steps; ++step) worker.run(step);
    worker.finish();
}

// Arguments as `Arguments` has them.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    few_classes(
    const unsigned char *X, const int *place, const int *visit, int n, int batch, int d,
    int classes, int copy, const int *label, int label_words, const float *target,
    const float *weight, const float *score_weight, int u, const float *smoothing,
    const float *mean, const float *inverse_scale, const float *numbers, int steps, int first,
    int fit_intercept, const float *coef, const float *velocity, const float *intercept,
    const float *intercept_velocity, float *new_coef, float *new_velocity, float *new_intercept,
    float *new_intercept_velocity, double *sums)
{
    const Arguments arguments{
        X, place, visit, n, batch, d, classes, copy, label, label_words, target, weight,
        score_weight, u, smoothing, mean, inverse_scale, numbers, steps, first, fit_intercept, coef,
        velocity, intercept, intercept_velocity, new_coef, new_velocity, new_intercept,
        new_intercept_velocity, sums};
    const int models = gridDim.x / CLUSTER, model = blockIdx.x / CLUSTER;
    const bool plain = SPECIAL && batch > ROWS / 2 && label && !score_weight && !smoothing &&
                       copy == MOST &&
                       numbers[size_t(steps + 1) * models + model] == 0;  // no L1 penalty
    if (plain && weight) work<SPECIAL, SPECIAL>(arguments);
    else if (plain) work<SPECIAL, false>(arguments);
    else work<false, false>(arguments);
}
