// What lies between the two products with X of a full pass: logits become, in place, the derivatives
// of the loss by them. The loss, the weight of the rows that are classified rightly, and these
// derivatives are summed over the rows that a block sees, always in the same order.
//
// A block serves one model. In it, `lanes` neighbours of a warp share a row, and a group of those
// serves every so many rows; logits are read several times, but from the first-level cache. Built with
// REAL, the type of logits. After the source of primitives.cuh.

#ifndef HOST_EMULATION
template <typename T> __device__ inline T from_lane(T value, int mask) {
    return __shfl_xor_sync(~0u, value, mask);
}
#endif

template <typename T> __device__ inline T sum_of_lanes(T value, int lanes) {
    for (int mask = lanes / 2; mask > 0; mask /= 2) value += from_lane(value, mask);
    return value;
}

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

extern "C" __global__ void __launch_bounds__(256, 4) residual(
    REAL *logits,             // (n, m, k), without the intercepts
    int n,                    // rows
    int m, int k,             // models, classes
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
    double *sums              // (blocks per model, k + 2, m): derivatives, loss, right
) {
    const int model = blockIdx.x % m, part = blockIdx.x / m, parts = gridDim.x / m;
    const int thread = threadIdx.x, lane = thread % lanes, group = thread / lanes;
    double *const all = reinterpret_cast<double *>(shared_memory);
    double *const mine = all + size_t(group) * (k + 2);
    intercept += size_t(model) * k;
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
        REAL *const z = logits + (size_t(i) * m + model) * k;
        const REAL *const probable = target ? target + size_t(row) * k : nullptr;

        Top top = {z[lane] + intercept[lane], lane};
        for (int c = lane + lanes; c < k; c += lanes) top.see(z[c] + intercept[c], c);
        top.meet(lanes);
        const auto below = [&](int c) {
            const REAL logit = z[c] + intercept[c];
            return logit == top.value ? REAL(0) : logit - top.value;  // inf - inf is no number
        };
        REAL total = 0;
        for (int c = lane; c < k; c += lanes) total += exp(below(c));
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
        REAL loss = 0;
        for (int c = lane; c < k; c += lanes) {
            REAL share = target ? probable[c] : REAL(c == truth);
            if (smoothing) share = hard * share + smoothing[c];
            const REAL log_probability = below(c) - log_total;
            const REAL derivative = (exp(log_probability) - share) * factor;
            loss -= share * log_probability;
            if (within) {
                z[c] = derivative;
                mine[c] += derivative;
            }
        }
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
