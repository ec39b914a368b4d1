// What lies between the two products with X of a full pass: logits become the derivatives of the loss
// by them. The loss, the weight of the rows that are classified rightly, and these derivatives are
// summed over the rows that a block sees, always in the same order.
//
// A block serves one model. In it, `lanes` neighbours of a warp share a row, and a group of those
// serves every so many rows. After the sources of primitives.cuh and halves.cuh. The build defines
//
//   REAL    the type of logits
//   HELD    the most logits that a lane has of a row, which it keeps in registers, if targets are
//           labels: with more than 4, rows have a whole warp; 0: they are more, or doubles, and are
//           read several times, but from the first-level cache
//   HALVES  1: logits have scales, and derivatives are written, if they are wanted, as sums of two
//           numbers of 16 bits, see halves.cu; else 0, and they take the place of the logits

#ifndef HOST_EMULATION
template <typename T> __device__ inline T from_lane(T value, int mask) {
    return __shfl_xor_sync(~0u, value, mask);
}
#endif

template <typename T> __device__ inline T sum_of_lanes(T value, int lanes) {
    for (int mask = lanes / 2; mask > 0; mask /= 2) value += from_lane(value, mask);
    return value;
}

// Less than any logit.
constexpr REAL LEAST = -3e38;

// The largest of values and the first place where it is.
struct Top {
    REAL value;
    int place;

    __device__ void see(REAL other, int there) {
        if (other > value || (other == value && there < place)) {
            value = other;
            place = there;
        }
    }
    __device__ void meet(int lanes) {
        for (int mask = lanes / 2; mask > 0; mask /= 2) {
            const REAL other = from_lane(value, mask);
            see(other, from_lane(place, mask));
        }
    }
};

// A logit of a product and the numbers of its class.
__device__ inline REAL made(REAL product, const REAL *scale, const REAL *intercept, int c) {
    return HALVES ? fma(product, scale[c], intercept[c]) : product + intercept[c];
}

#if HELD
// Adds what a lane has summed of its classes, which are `lanes` apart, to what is in shared memory,
// several at a time; those from `left` on do not count.
__device__ inline void add_up(REAL (&summed)[HELD], double *sums, int lanes, int left) {
    constexpr int AT_ONCE = HELD < 8 ? HELD : 8;
#pragma unroll
    for (int first = 0; first < HELD; first += AT_ONCE) {
        double values[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j)
            values[j] = (first + j) * lanes < left ? sums[(first + j) * lanes] : 0;
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            if ((first + j) * lanes < left) sums[(first + j) * lanes] = values[j] + summed[first + j];
            summed[first + j] = 0;
        }
    }
}
// Rows whose derivatives are summed in their own precision first.
constexpr int SUMMED = 16;
#endif

extern "C" __global__ void __launch_bounds__(256, HELD > 4 || sizeof(REAL) > 4 ? 2 : 4) residual(
    REAL *logits,             // (n, width), of which the first m k columns count, without intercepts
    int n, int width,         // rows
    int m, int k,             // models, classes
    const REAL *scale,        // (m, k) that logits are to be multiplied with, if HALVES
    const REAL *intercept,    // (m, k)
    const long long *index,   // (n) which rows of the data these are, or null:
    long long first,          // those from here on
    const long long *label,   // (n_samples) classes, or null: there are
    const REAL *target,       // (n_samples, k) probabilities
    const REAL *weight,       // (n_samples, u), or null: 1
    const REAL *score_weight, // the same, or null: `weight`
    int u,
    const int *column,        // (m) of the weights
    const REAL *smoothing,    // (m, k), or null
    int lanes, int groups,    // threads per row, rows at a time
    half *halves,             // (n, 2, width) derivatives times `unit`, if HALVES, or null
    REAL unit,
    double *sums              // (blocks per model, k + 2, m): derivatives, loss, right
) {
    const int model = blockIdx.x % m, part = blockIdx.x / m, parts = gridDim.x / m;
    if (HELD > 4) lanes = 32;  // which the compiler then knows
    const int thread = threadIdx.x, lane = thread % lanes, group = thread / lanes;
    double *const all = reinterpret_cast<double *>(shared_memory);
    double *const mine = all + size_t(group) * (k + 2);
    intercept += size_t(model) * k;
    if (HALVES) scale += size_t(model) * k;
    REAL hard = 1;
    if (smoothing) {
        smoothing += size_t(model) * k;
        REAL soft = 0;
        for (int c = lane; c < k; c += lanes) soft += smoothing[c];
        hard -= sum_of_lanes(soft, lanes);
    }
    for (int c = lane; c < k; c += lanes) mine[c] = 0;
    if (lane == 0) mine[k] = mine[k + 1] = 0;
#if HELD
    REAL summed[HELD] = {};
    int n_summed = 0;
    const int left = k - lane;
    const REAL *const own_scale = scale + lane, *const own_intercept = intercept + lane;
#endif

    for (int start = part * groups; start < n; start += parts * groups) {
        const bool within = start + group < n;
        if (HELD > 4 && !within) break;  // a whole warp
        const int i = within ? start + group : n - 1;  // the lanes of a warp stay together
        const long long row = index ? index[i] : first + i;
        REAL *const z = logits + size_t(i) * width + size_t(model) * k;
        const size_t place = size_t(row) * u + column[model];
        const REAL factor = weight ? weight[place] : REAL(1);
        const auto logit = [&](int c) { return made(z[c], scale, intercept, c); };
#if HALVES
        half *const upper = halves + size_t(i) * 2 * width + size_t(model) * k;
        half *const lower = upper + width;
#endif
        const auto store = [&](int first, int c, REAL derivative) {
#if HALVES
            const half high = upper_half(derivative * unit), low = lower_half(derivative * unit);
            (upper + first)[c] = high;
            (lower + first)[c] = low;
#else
            (z + first)[c] = derivative;
#endif
        };
        const bool stored = !HALVES || halves;

        Top top;
        REAL total = 0, loss = 0;
        int truth;
#if HELD
        const bool is_held = !target && !smoothing;
        if (is_held) {
            // From the lane's first class on. Beyond the last one is what has no probability.
            const REAL *const from = z + lane;
            REAL held[HELD];
#pragma unroll
            for (int j = 0; j < HELD; ++j) held[j] = j * lanes < left ? from[j * lanes] : REAL(0);
#pragma unroll
            for (int j = 0; j < HELD; ++j)
                held[j] = j * lanes < left ? made(held[j], own_scale, own_intercept, j * lanes) : LEAST;
            truth = int(label[row]);
            const REAL of_truth = logit(truth);  // before lanes meet, after which one may write it
            top = {held[0], k};
#pragma unroll
            for (int j = 1; j < HELD; ++j) top.value = fmax(top.value, held[j]);
            for (int mask = lanes / 2; mask > 0; mask /= 2)
                top.value = fmax(top.value, from_lane(top.value, mask));
#pragma unroll
            for (int j = HELD - 1; j >= 0; --j) {
                const bool is_top = held[j] == top.value;  // inf - inf is no number
                top.place = is_top ? lane + j * lanes : top.place;
                held[j] = exp(is_top ? REAL(0) : held[j] - top.value);
                total += held[j];
            }
            top.meet(lanes);
            total = sum_of_lanes(total, lanes);
            loss = log(total) - (of_truth == top.value ? REAL(0) : of_truth - top.value);
            const REAL share = factor / total;
#pragma unroll
            for (int j = 0; j < HELD; ++j) {
                held[j] *= share;
                if (lane + j * lanes == truth) held[j] -= factor;
                summed[j] += within ? held[j] : REAL(0);
            }
            // Of the last model, also what is beside the classes: zero.
            const int end = HALVES && model == m - 1 ? width - model * k - lane : left;
            if (within && stored) {
#pragma unroll
                for (int j = 0; j < HELD; ++j)
                    if (j * lanes < end) store(lane, j * lanes, held[j]);
            }
            if (++n_summed == SUMMED) {
                add_up(summed, mine + lane, lanes, left);
                n_summed = 0;
            }
        }
#else
        constexpr bool is_held = false;
#endif
        if (!is_held) {
            const REAL *const probable = target + size_t(row) * k;  // if there is any
            top = {logit(lane), lane};
#pragma unroll 1
            for (int c = lane; c < k; c += lanes) top.see(logit(c), c);
            top.meet(lanes);
            const auto below = [&](int c) {
                const REAL value = logit(c);
                return value == top.value ? REAL(0) : value - top.value;  // inf - inf is no number
            };
#pragma unroll 1
            for (int c = lane; c < k; c += lanes) total += exp(below(c));
            const REAL log_total = log(sum_of_lanes(total, lanes));
            if (target) {
                Top likeliest = {probable[lane], lane};
                for (int c = lane + lanes; c < k; c += lanes) likeliest.see(probable[c], c);
                likeliest.meet(lanes);
                truth = likeliest.place;
            } else {
                truth = int(label[row]);
            }
#pragma unroll 1
            for (int c = lane; c < k; c += lanes) {
                REAL share = target ? probable[c] : REAL(c == truth);
                if (smoothing) share = hard * share + smoothing[c];
                const REAL log_probability = below(c) - log_total;
                const REAL derivative = (exp(log_probability) - share) * factor;
                loss -= share * log_probability;
                if (within) {
                    if (stored) store(0, c, derivative);
                    mine[c] += derivative;
                }
            }
            loss = sum_of_lanes(loss, lanes);
#if HALVES
            if (within && halves && model == m - 1)
                for (int c = k + lane; c < width - model * k; c += lanes)
                    upper[c] = lower[c] = half{0};
#endif
        }
        if (within && lane == 0) {
            mine[k] += loss * factor;
            if (top.place == truth) mine[k + 1] += score_weight ? score_weight[place] : factor;
        }
    }
#if HELD
    add_up(summed, mine + lane, lanes, left);
#endif
    __syncthreads();
    for (int c = thread; c < k + 2; c += lanes * groups) {
        double total = 0;
        for (int other = 0; other < groups; ++other) total += all[size_t(other) * (k + 2) + c];
        sums[(size_t(part) * (k + 2) + c) * m + model] = total;
    }
}
