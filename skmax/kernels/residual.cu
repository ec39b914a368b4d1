// What lies between the two products with X of a full pass: logits become the derivatives of the loss
// by them. The loss, the weight of the rows that are classified rightly, and these derivatives are
// summed over the rows that a block sees, always in the same order.
//
// A block serves one model. In it, `lanes` neighbours of a warp share a row, and a group of those
// serves every so many rows. After the sources of primitives.cuh and halves.cuh. The build defines
//
//   REAL    the type of logits
//   HELD    the most logits that a lane has of a row, which it keeps in registers: with more than 4,
//           rows have a whole warp; 0: they are more, and are read several times, but from the
//           first-level cache
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

// Calls a function with each class of a lane, and the number that it has among them. Where a lane
// holds its logits, there may be classes beyond the last: a branch would make each wait for the last.
template <typename Function>
__device__ inline void for_each(int lane, int lanes, int k, const Function &function) {
#if HELD
#pragma unroll
    for (int j = 0; j < HELD; ++j) function(lane + j * lanes, j);
#else
    for (int c = lane; c < k; c += lanes) function(c, 0);
#endif
}

#if HELD
// Adds what a lane holds to sums in shared memory, several at a time.
__device__ inline void add_up(const REAL (&held)[HELD], double *sums, int lane, int lanes, int k) {
    constexpr int AT_ONCE = HELD < 8 ? HELD : 8;
#pragma unroll
    for (int first = 0; first < HELD; first += AT_ONCE) {
        double values[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            const int c = lane + (first + j) * lanes;
            values[j] = c < k ? sums[c] + held[first + j] : 0;
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            const int c = lane + (first + j) * lanes;
            if (c < k) sums[c] = values[j];
        }
    }
}
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
    if (HELD > 4) lanes = 32;  // then the compiler knows where things are
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
    double loss_sum = 0, right_sum = 0;

    for (int start = part * groups; start < n; start += parts * groups) {
        const bool within = start + group < n;
        const int i = within ? start + group : n - 1;  // the lanes of a warp stay together
        const long long row = index ? index[i] : first + i;
        REAL *const z = logits + size_t(i) * width + size_t(model) * k;
        const REAL *const probable = target ? target + size_t(row) * k : nullptr;
#if HELD
        REAL held[HELD];  // beyond the last class, what has no probability
        for_each(lane, lanes, k, [&](int c, int j) { held[j] = c < k ? z[c] : LEAST; });
#if HALVES
        for_each(lane, lanes, k, [&](int c, int j) { if (c < k) held[j] *= scale[c]; });
#endif
        for_each(lane, lanes, k, [&](int c, int j) { if (c < k) held[j] += intercept[c]; });
        const auto logit = [&](int, int j) { return held[j]; };
#elif HALVES
        const auto logit = [&](int c, int) { return z[c] * scale[c] + intercept[c]; };
#else
        const auto logit = [&](int c, int) { return z[c] + intercept[c]; };
#endif
        Top top = {logit(lane, 0), lane};
        for_each(lane, lanes, k, [&](int c, int j) { top.see(logit(c, j), c); });
        top.meet(lanes);
        const auto below = [&](int c, int j) {
            const REAL value = logit(c, j);
            return value == top.value ? REAL(0) : value - top.value;  // inf - inf is no number
        };
        REAL total = 0;
        for_each(lane, lanes, k, [&](int c, int j) { total += exp(below(c, j)); });
        const REAL log_total = log(sum_of_lanes(total, lanes));

        int truth;
        if (target) {
            Top likeliest = {probable[lane], lane};
            for (int c = lane + lanes; c < k; c += lanes) likeliest.see(probable[c], c);
            likeliest.meet(lanes);
            truth = likeliest.place;
        } else {
            truth = int(label[row]);
        }
        const size_t place = size_t(row) * u + column[model];
        const REAL factor = weight ? weight[place] : REAL(1);
#if HALVES
        half *const upper = halves + size_t(i) * 2 * width + size_t(model) * k;
        half *const lower = upper + width;
#endif
        const auto store = [&](int c, REAL derivative) {
#if HALVES
            if (!halves) return;
            upper[c] = upper_half(derivative * unit);
            lower[c] = lower_half(derivative * unit);
#else
            z[c] = derivative;
#endif
        };
        REAL loss = 0;
        const auto derive = [&](int c, int j, REAL share) {
            const REAL log_probability = below(c, j) - log_total;
            const REAL derivative = (exp(log_probability) - share) * factor;
            if (c < k) loss -= share * log_probability;
#if HELD
            held[j] = derivative;
#else
            if (within) {
                store(c, derivative);
                mine[c] += derivative;
            }
#endif
        };
        if (target || smoothing)
            for_each(lane, lanes, k, [&](int c, int j) {
                REAL share = c >= k ? REAL(0) : target ? probable[c] : REAL(c == truth);
                if (smoothing && c < k) share = hard * share + smoothing[c];
                derive(c, j, share);
            });
        else
            for_each(lane, lanes, k, [&](int c, int j) { derive(c, j, REAL(c == truth)); });
#if HELD
        if (within) {
            for_each(lane, lanes, k, [&](int c, int j) { if (c < k) store(c, held[j]); });
            add_up(held, mine, lane, lanes, k);
        }
#endif
#if HALVES
        if (within && halves && model == m - 1)
            for (int c = k + lane; c < width - model * k; c += lanes) upper[c] = lower[c] = half{0};
#endif
        loss = sum_of_lanes(loss, lanes) * factor;
        if (within) {
            loss_sum += loss;
            if (top.place == truth) right_sum += score_weight ? score_weight[place] : factor;
        }
    }
    if (lane == 0) {
        mine[k] = loss_sum;
        mine[k + 1] = right_sum;
    }
    __syncthreads();
    for (int c = thread; c < k + 2; c += lanes * groups) {
        double total = 0;
        for (int other = 0; other < groups; ++other) total += all[size_t(other) * (k + 2) + c];
        sums[(size_t(part) * (k + 2) + c) * m + model] = total;
    }
}
