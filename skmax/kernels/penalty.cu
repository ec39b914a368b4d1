// The penalties of models: what skmax.objective.summed_penalty does. A block sums a part of a model's
// weights; what all parts give is added up by `total` of common.cu.
//
// The build defines REAL, float or double: the type of a weight.

constexpr int THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS) penalty(
    const REAL *coef,         // (m, size)
    int m, long long size,
    const double *strengths,  // (2, m): sqrt(l2 / 2), by which no square overflows, and l1
    double *parts)            // (parts, m), out
{
    const int model = blockIdx.x % m, n_parts = gridDim.x / m;
    const double root = strengths[model], l1 = strengths[m + model];
    double sum = 0;
    for (long long i = blockIdx.x / m * THREADS + threadIdx.x; i < size; i += n_parts * THREADS) {
        const double w = coef[model * size + i], scaled = w * root;
        sum += scaled * scaled;
        if (l1 > 0) sum += l1 * (w < 0 ? -w : w);
    }
    double *sums = reinterpret_cast<double *>(shared_memory);
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}
