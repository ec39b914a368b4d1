// What products of float32 matrices by tensor cores need: each factor is the sum of an upper and a
// lower half (see halves.cuh), which have 22 bits together, as long as a number is not 2^17 times
// smaller than the largest one beside it. Powers of two, one per feature and one per class, bring the
// largest to between 2^14 and 2^15. After the sources of primitives.cuh and halves.cuh; DATA is the
// type of X, where that is defined.

constexpr int WARP = 32, WARPS = 4, LARGEST = 15, MOST = 126;
constexpr float BOUND = 65504;

// The power of two that brings what is at most so large there: 0 for what is zero or no number.
__device__ inline int exponent_for(float largest) {
    if (!(largest > 0) || !(largest <= 3.4e38f)) return 0;
    int exponent;
    frexpf(largest, &exponent);  // largest < 2^exponent
    const int wanted = LARGEST - exponent;
    return wanted > MOST ? MOST : wanted < -MOST ? -MOST : wanted;
}

#ifdef DATA

__device__ inline float to_real(half value) { return to_float(value); }
template <typename T> __device__ inline float to_real(T value) { return static_cast<float>(value); }

// The largest modulus of each feature in parts of the rows that have a weight.
extern "C" __global__ void __launch_bounds__(WARP * WARPS) largest(
    const DATA *X,           // rows of d values
    const long long *index,  // (n) which of them, or null:
    long long start,         // those from here on
    int n, int d,
    const float *shift,      // (d,), or null
    const float *weight,     // (rows of X, u), or null: all have one
    int u,
    int n_parts,
    float *parts)            // (n_parts, d), out
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int tiles = (d + WARP - 1) / WARP, f = blockIdx.x % tiles * WARP + lane;
    const int part = blockIdx.x / tiles;
    const int first = int((long long)n * part / n_parts);
    const int last = int((long long)n * (part + 1) / n_parts);
    const float less = shift && f < d ? shift[f] : 0.0f;
    float top = 0;
    if (f < d) {
#pragma unroll 8
        for (int i = first + warp; i < last; i += WARPS) {
            const size_t row = index ? index[i] : start + i;
            const float x = fabsf(to_real(X[row * d + f]) - less);
            bool counts = !weight;
            if (weight)
                for (int j = 0; j < u; ++j) counts |= weight[row * u + j] > 0;
            top = counts && x > top ? x : top;
        }
    }
    float *const shared = reinterpret_cast<float *>(shared_memory);  // (WARPS, WARP)
    shared[threadIdx.x] = top;
    __syncthreads();
    if (warp > 0 || f >= d) return;
    for (int i = 1; i < WARPS; ++i) top = fmaxf(top, shared[i * WARP + lane]);
    parts[size_t(part) * d + f] = top;
}

// So many neighbours of a row, for loads and stores of all at once.
constexpr int TOGETHER = 4;
template <typename T> struct alignas(TOGETHER * sizeof(T)) Neighbours {
    T value[TOGETHER];
};

// Rows of X as halves, a warp for each.
extern "C" __global__ void __launch_bounds__(WARP * WARPS) halve_rows(
    const DATA *X,            // rows of d values
    const long long *index,   // (n) which of them, or null:
    long long first,          // those from here on
    int n, int d, int width,
    const float *shift,       // (d,), or null
    const int *exponent,      // (d,)
    int n_halves,             // 1: all that there is to a value is in its upper half
    half *halves)             // (n, n_halves, width), out: zero beside the features
{
    const int lane = threadIdx.x % WARP, warps = gridDim.x * WARPS;
    const auto scaled = [&](DATA value, float less, int power) {
        const float x = (to_real(value) - less) * power_of_two(power);
        // A row without a weight may be larger than a half can be.
        return x > BOUND ? BOUND : x < -BOUND ? -BOUND : x;
    };
    const bool aligned = size_t(X) % sizeof(Neighbours<DATA>) == 0 && d % TOGETHER == 0;
    for (int i = blockIdx.x * WARPS + threadIdx.x / WARP; i < n; i += warps) {
        const DATA *const row = X + size_t(index ? index[i] : first + i) * d;
        half *const upper = halves + size_t(i) * n_halves * width, *const lower = upper + width;
        if (aligned) {
#pragma unroll 4
            for (int f = TOGETHER * lane; f < d; f += TOGETHER * WARP) {
                const auto from = *reinterpret_cast<const Neighbours<DATA> *>(row + f);
                const auto powers = *reinterpret_cast<const Neighbours<int> *>(exponent + f);
                Neighbours<float> less = {};
                if (shift) less = *reinterpret_cast<const Neighbours<float> *>(shift + f);
                Neighbours<half> high, low;
#pragma unroll
                for (int j = 0; j < TOGETHER; ++j) {
                    const float x = scaled(from.value[j], less.value[j], powers.value[j]);
                    high.value[j] = upper_half(x);
                    low.value[j] = lower_half(x);
                }
                *reinterpret_cast<Neighbours<half> *>(upper + f) = high;
                if (n_halves > 1) *reinterpret_cast<Neighbours<half> *>(lower + f) = low;
            }
        } else {
#pragma unroll 4
            for (int f = lane; f < d; f += WARP) {
                const float x = scaled(row[f], shift ? shift[f] : 0.0f, exponent[f]);
                upper[f] = upper_half(x);
                if (n_halves > 1) lower[f] = lower_half(x);
            }
        }
        for (int f = d + lane; f < width; f += WARP) {
            upper[f] = half{0};
            if (n_halves > 1) lower[f] = half{0};
        }
    }
}

#else

// The exponents of features from these.
extern "C" __global__ void exponents(const float *parts, int n_parts, int d, int *exponent) {
    const int f = blockIdx.x * WARP * WARPS + threadIdx.x;
    if (f >= d) return;
    float top = 0;
    for (int part = 0; part < n_parts; ++part) top = fmaxf(top, parts[size_t(part) * d + f]);
    exponent[f] = exponent_for(top);
}

// The weights of classes as halves, the lower ones first, and what their logits are to be multiplied
// with: a block for each class.
extern "C" __global__ void __launch_bounds__(WARP * WARPS) halve_weights(
    const float *coef,        // (classes, d)
    int classes, int d, int width,
    const int *exponent,      // (d,), of the features
    float *scale,             // (classes,), out
    half *halves)             // (blocks, 2, width), out: zero beside the classes and features
{
    const int c = blockIdx.x, thread = threadIdx.x, threads = WARP * WARPS;
    half *const to = halves + size_t(c) * 2 * width;
    if (c >= classes) {
        for (int f = thread; f < 2 * width; f += threads) to[f] = half{0};
        return;
    }
    coef += size_t(c) * d;
    // Powers of two take no digits, but may lead out of the range: of what is largest, they are known.
    int *const shared = reinterpret_cast<int *>(shared_memory);  // (threads,)
    int most = -(1 << 20);
    for (int f = thread; f < d; f += threads) {
        int of_value;
        frexpf(coef[f], &of_value);
        if (coef[f] != 0 && of_value - exponent[f] > most) most = of_value - exponent[f];
    }
    shared[thread] = most;
    __syncthreads();
    for (int i = 0; i < threads; ++i) most = shared[i] > most ? shared[i] : most;
    int wanted = most == -(1 << 20) ? 0 : LARGEST - most;
    wanted = wanted > MOST ? MOST : wanted < -MOST ? -MOST : wanted;
    for (int f = thread; f < width; f += threads) {
        const float w = f < d ? ldexpf(coef[f], wanted - exponent[f]) : 0.0f;
        to[f] = lower_half(w);
        to[width + f] = upper_half(w);
    }
    if (thread == 0) scale[c] = ldexpf(1.0f, -wanted);
}

// Sums over the first axis of products with halves, in its order, as they are without any scales.
extern "C" __global__ void __launch_bounds__(WARP * WARPS) total(
    const float *parts,       // (n_parts, rows, width)
    int n_parts, int rows, int width,
    int classes, int d,
    const int *exponent,      // (d,), of the features
    double unit,              // what they are to be divided by, too
    double *sums)             // (classes, d), out
{
    const size_t size = size_t(rows) * width;
    const int threads = gridDim.x * WARP * WARPS, count = classes * d;
    for (int i = blockIdx.x * WARP * WARPS + threadIdx.x; i < count; i += threads) {
        const int c = i / d, f = i % d;
        double sum = 0;
        for (int part = 0; part < n_parts; ++part) sum += parts[part * size + size_t(c) * width + f];
        sums[i] = ldexp(sum, -exponent[f]) / unit;
    }
}

#endif
