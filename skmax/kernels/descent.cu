// What an iteration of L-BFGS does with weights and gradients besides the pass over the rows. Vectors
// of models are (m, k, d + 1) in the coordinates of the preconditioner, the intercept last; `size` is
// k (d + 1). Sums are in double precision and in a fixed order; those over the blocks of a model are
// added up by `total` of common.cu.
//
// The build defines REAL, float or double: that of the data. After the source of primitives.cuh.

constexpr int WARP = 32, WARPS = 4, THREADS = WARP * WARPS, MOST = 10;

__device__ inline double sum_of_warp(double value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
    return value;
}

// Sums over the threads of a block, of which the first `count` are written, `stride` apart.
template <int N>
__device__ inline void write_sums(const double (&values)[N], int count, double *to, int stride) {
    double *const shared = reinterpret_cast<double *>(shared_memory);  // (WARPS, N)
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const double sum = sum_of_warp(values[i]);
        if (lane == 0) shared[warp * N + i] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += THREADS) {
        double sum = 0;
        for (int other = 0; other < WARPS; ++other) sum += shared[other * N + i];
        to[size_t(i) * stride] = sum;
    }
}

// A class of a model, which a warp has, and the units of its features.
struct Row {
    int place, model, lane;
    const REAL *units, *mean;

    __device__ Row(const REAL *units, const REAL *mean, int k, int d)
        : place(blockIdx.x * WARPS + threadIdx.x / WARP), model(place / k),
          lane(threadIdx.x % WARP), units(units ? units + size_t(model) * d : nullptr),
          mean(mean ? mean + size_t(model) * d : nullptr) {}
    __device__ double unit(int f) const { return units ? double(units[f]) : 1.0; }
    __device__ double origin(int f) const { return mean ? double(mean[f]) * unit(f) : 0.0; }
};

// Weights as the loss of rows sees them.
extern "C" __global__ void __launch_bounds__(THREADS) state(
    const double *weights, // (m, k, d + 1)
    const REAL *units,     // (m, d), or null: all 1
    const REAL *mean,      // (m, d), or null: all 0
    int m, int k, int d,
    REAL *coef, REAL *intercept) // (m, k, d) and (m, k), out
{
    const Row row(units, mean, k, d);
    if (row.place >= m * k) return;
    weights += size_t(row.place) * (d + 1);
    coef += size_t(row.place) * d;
    double sum = 0;
    for (int f = row.lane; f < d; f += WARP) {
        coef[f] = REAL(weights[f] * row.unit(f));
        sum += weights[f] * row.origin(f);
    }
    sum = sum_of_warp(sum);
    if (row.lane == 0) intercept[row.place] = REAL(weights[d] - sum);
}

// The gradient of the objective less its L1 term, from sums over the rows; means and penalties.
extern "C" __global__ void __launch_bounds__(THREADS) gradient(
    const double *weights, // (m, k, d + 1)
    const REAL *units, const REAL *mean,
    const double *loss, const double *correct, // (m)
    const double *by_coef,                     // (m, k, d)
    const double *by_intercept,                // (k, m)
    const double *strengths,                   // (2, m): l2, l1
    double n,                                  // rows
    int m, int k, int d, int fit_intercept,
    double *result, // (m, k, d + 1), out
    double *values) // loss and accuracy (m), then L2 times 2 and L1 by classes (m, k), out
{
    const Row row(units, mean, k, d);
    const int c = row.place % k;
    if (row.place >= m * k) return;
    const double by_origin = by_intercept[size_t(c) * m + row.model] / n;
    const double l2 = strengths[row.model], l1 = strengths[m + row.model];
    weights += size_t(row.place) * (d + 1);
    result += size_t(row.place) * (d + 1);
    by_coef += size_t(row.place) * d;
    double ridge = 0, lasso = 0;
    for (int f = row.lane; f < d; f += WARP) {
        const double w = weights[f], unit = row.unit(f), of_penalty = l2 * unit * unit * w;
        result[f] = of_penalty + (by_coef[f] / n * unit - by_origin * row.origin(f));
        ridge += of_penalty * w;
        if (l1 > 0) lasso += (w < 0 ? -w : w) * (l1 * unit);
    }
    ridge = sum_of_warp(ridge);
    lasso = sum_of_warp(lasso);
    if (row.lane) return;
    result[d] = fit_intercept ? by_origin : 0.0;
    if (c == 0) {
        values[row.model] = loss[row.model] / n;
        values[m + row.model] = correct[row.model] / n;
    }
    values[2 * m + row.place] = ridge;
    values[2 * m + m * k + row.place] = lasso;
}

// Less their mean over the classes, in place.
extern "C" __global__ void __launch_bounds__(THREADS) centered(
    REAL *values,               // (m, r, k, p)
    const unsigned char *known, // (m, k): 0 where a class takes no part; or null
    int r, int k, int p)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int tiles = (p + WARP - 1) / WARP, column = blockIdx.x % tiles * WARP + lane;
    const int stack = blockIdx.x / tiles;
    if (known) known += size_t(stack / r) * k;
    values += size_t(stack) * k * p + column;
    const bool within = column < p;
    double sum = 0;
    int count = 0;
#pragma unroll 4
    for (int c = warp; c < k; c += WARPS)
        if (!known || known[c]) {
            ++count;
            if (within) sum += values[size_t(c) * p];
        }
    double *const sums = reinterpret_cast<double *>(shared_memory);  // (2, WARPS, WARP)
    sums[threadIdx.x] = sum;
    sums[THREADS + threadIdx.x] = count;
    __syncthreads();
    double total = 0, of_all = 0;
    for (int other = 0; other < WARPS; ++other) {
        total += sums[other * WARP + lane];
        of_all += sums[THREADS + other * WARP + lane];
    }
    const REAL mean = REAL(total / of_all);
#pragma unroll 4
    for (int c = warp; c < k; c += WARPS)
        if (within && (!known || known[c])) values[size_t(c) * p] -= mean;
}

// The inner products that skmax.duality is made of, by classes.
extern "C" __global__ void __launch_bounds__(THREADS) bounds(
    const double *weights, const double *gradient, // (m, k, d + 1)
    const double *l2,                              // (m, d)
    const double *class_sums, const double *mean,  // (m, k, d) and (m, d), or null: 0
    int m, int k, int d,
    double *products) // (10, m, k), out
{
    const Row row(nullptr, nullptr, k, d);
    if (row.place >= m * k) return;
    const double *const w = weights + size_t(row.place) * (d + 1);
    const double *const g = gradient + size_t(row.place) * (d + 1);
    l2 += size_t(row.model) * d;
    double sums[8] = {};
    for (int f = row.lane; f < d; f += WARP) {
        const double inverse = l2[f] > 0 ? 1 / l2[f] : 0.0;
        const double ww = w[f] * w[f], gg = g[f] * g[f];
        sums[0] += g[f] * w[f];
        sums[1] += ww;
        sums[2] += gg;
        sums[3] += ww * l2[f];
        sums[4] += gg * inverse;
        if (class_sums) {
            const double s = class_sums[size_t(row.place) * d + f];
            const double average = mean[size_t(row.model) * d + f];
            sums[5] += w[f] * s;
            sums[6] += g[f] * s * inverse;
            sums[7] += g[f] * (average * inverse) - w[f] * average;
        }
    }
    const size_t stride = size_t(m) * k;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const double sum = sum_of_warp(sums[i]);
        if (row.lane == 0) products[i * stride + row.place] = sum;
    }
    if (row.lane) return;
    products[8 * stride + row.place] = w[d];
    products[9 * stride + row.place] = g[d];
}

// A block's model, and the part of its vectors that a block has.
struct Part {
    int model, first, stride, index;

    __device__ explicit Part(int m)
        : model(blockIdx.x % m), first(blockIdx.x / m * THREADS + threadIdx.x),
          stride(gridDim.x / m * THREADS), index(blockIdx.x / m) {}
};

// Keeps a pair at its place. The product of both; and those of each of the n steps with the change and
// with the gradient.
extern "C" __global__ void __launch_bounds__(THREADS) remember(
    const double *step, const double *change, const double *gradient, // (m, size)
    REAL *steps, REAL *changes,                                       // (m, most, size)
    int m, int most, int n, int place, int size,
    double *parts) // (parts, 2 n + 1, m), out
{
    const Part part(m);
    const size_t offset = size_t(part.model) * size;
    steps += size_t(part.model) * most * size;
    changes += size_t(part.model) * most * size;
    double sums[2 * MOST + 1] = {};
#pragma unroll 1
    for (int i = part.first; i < size; i += part.stride) {
        const double s = step[offset + i], y = change[offset + i], g = gradient[offset + i];
        const REAL kept = REAL(s), changed = REAL(y);
        steps[size_t(place) * size + i] = kept;
        changes[size_t(place) * size + i] = changed;
        sums[0] += s * y;
#pragma unroll
        for (int j = 0; j < MOST; ++j)
            if (j < n) {
                const double row = j == place ? kept : steps[size_t(j) * size + i];
                sums[2 * j + 1] += row * changed;
                sums[2 * j + 2] += row * g;
            }
    }
    write_sums(sums, 2 * n + 1, parts + size_t(part.index) * (2 * n + 1) * m + part.model, m);
}

// The gradient less the n changes times alpha; and behind it the newest change, if that is wanted.
extern "C" __global__ void __launch_bounds__(THREADS) rest(
    const double *gradient, // (m, size)
    const REAL *changes,    // (m, most, size)
    const double *alpha,    // (m, n)
    int m, int most, int n, int newest, int size,
    REAL *vectors) // (m, 1 or 2, size), out
{
    const Part part(m);
    changes += size_t(part.model) * most * size;
    REAL *const to = vectors + size_t(part.model) * (newest < 0 ? 1 : 2) * size;
#pragma unroll 1
    for (int i = part.first; i < size; i += part.stride) {
        double sum = gradient[size_t(part.model) * size + i];
#pragma unroll
        for (int j = 0; j < MOST; ++j)
            if (j < n) sum -= alpha[part.model * n + j] * changes[size_t(j) * size + i];
        to[i] = REAL(sum);
        if (newest >= 0) to[size_t(size) + i] = changes[size_t(newest) * size + i];
    }
}

// Products of what the first guess makes of `rest` with the gradient, of what it makes of the newest
// change with that, if it is wanted, and of the former with the n changes.
extern "C" __global__ void __launch_bounds__(THREADS) products(
    const REAL *guess,      // (m, 1 or 2, size)
    const double *gradient, // (m, size)
    const REAL *changes,    // (m, most, size)
    int m, int most, int n, int newest, int size,
    double *parts) // (parts, n + 2, m), out
{
    const Part part(m);
    changes += size_t(part.model) * most * size;
    guess += size_t(part.model) * (newest < 0 ? 1 : 2) * size;
    double sums[MOST + 2] = {};
#pragma unroll 1
    for (int i = part.first; i < size; i += part.stride) {
        const double z = guess[i];
        sums[0] += z * gradient[size_t(part.model) * size + i];
        if (newest >= 0)
            sums[1] += double(guess[size_t(size) + i]) * changes[size_t(newest) * size + i];
#pragma unroll
        for (int j = 0; j < MOST; ++j)
            if (j < n) sums[j + 2] += z * changes[size_t(j) * size + i];
    }
    write_sums(sums, n + 2, parts + size_t(part.index) * (n + 2) * m + part.model, m);
}

// The first guess and the n steps, times weights.
extern "C" __global__ void __launch_bounds__(THREADS) combined(
    const REAL *guess,     // (m, r, size), of which the first is meant
    const REAL *steps,     // (m, most, size)
    const double *weights, // (m, n + 1)
    int m, int most, int n, int r, int size,
    double *direction) // (m, size), out
{
    const Part part(m);
    steps += size_t(part.model) * most * size;
    guess += size_t(part.model) * r * size;
    weights += part.model * (n + 1);
#pragma unroll 1
    for (int i = part.first; i < size; i += part.stride) {
        double sum = weights[0] * guess[i];
#pragma unroll
        for (int j = 0; j < MOST; ++j)
            if (j < n) sum += weights[j + 1] * steps[size_t(j) * size + i];
        direction[size_t(part.model) * size + i] = sum;
    }
}

// Curvatures of the loss by the logits of rows, p (1 - p) times a factor and the row's weight, in the
// place of these. A warp has a row of a model.
extern "C" __global__ void __launch_bounds__(THREADS) curvatures(
    REAL *logits,           // (n, m, k), without the intercepts
    const REAL *intercept,  // (m, k)
    const double *factor,   // (m)
    const long long *index, // (n) which rows of the data these are, or null:
    long long first,        // those from here on
    const REAL *weight,     // (n_samples, u), or null: 1
    const int *column,      // (m) of the weights
    int n, int m, int k, int u)
{
    const int lane = threadIdx.x % WARP;
    const long long place = (long long)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (place >= (long long)n * m) return;
    const int i = int(place / m), model = int(place % m);
    const long long row = index ? index[i] : first + i;
    REAL *const z = logits + place * k;
    intercept += size_t(model) * k;
    REAL top = z[0] + intercept[0];
    for (int c = lane; c < k; c += WARP) {
        const REAL logit = z[c] + intercept[c];
        if (logit > top) top = logit;
    }
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        const REAL other = from_lane_xor(top, mask);
        if (other > top) top = other;
    }
    const auto share = [&](int c) {
        const REAL logit = z[c] + intercept[c];
        return exp(logit == top ? REAL(0) : logit - top);  // inf - inf is no number
    };
    double total = 0;
    for (int c = lane; c < k; c += WARP) total += share(c);
    total = sum_of_warp(total);
    const REAL times = REAL(factor[model] * (weight ? double(weight[row * u + column[model]]) : 1.0));
    for (int c = lane; c < k; c += WARP) {
        const REAL p = REAL(share(c) / total);
        z[c] = p * (1 - p) * times;
    }
}
