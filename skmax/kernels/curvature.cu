// The largest eigenvalue of the features' second moments, by the power method: what
// skmax.solvers.learning_rate.curvature does, on dense rows. Shapes are those of skmax.problem.
//
// In an iteration, this multiplies each model's vector by the second moments of rows, a part of them
// in each block, and iterate.cu goes on from there. A model whose eigenvalue is known is done.
//
// The build defines
//   DATA     the type of X; half where it is float16
//   REAL     float or double: weights and arithmetic; sums are double
//   THREADS  threads per block, a multiple of 32

constexpr int WARP = 32, WARPS = THREADS / WARP;

template <typename T> __device__ inline REAL to_real(T value) { return static_cast<REAL>(value); }
__device__ inline REAL to_real(half value) { return to_float(value); }

extern "C" __global__ void __launch_bounds__(THREADS) images(
    const DATA *X, const int *index, int n, int d,  // rows of d values, and n of them
    const REAL *shift,                              // (d,), or null
    const REAL *weight, int u, const int *column,   // (rows of X, u), or null; (m,)
    const REAL *vector, const REAL *offset,         // (m, d), (m,)
    const int *done, int n_parts,                   // (m,)
    double *parts)                                  // (m, n_parts, d + 1), out
{
    const int part = blockIdx.x % n_parts, model = blockIdx.x / n_parts;
    if (done[model]) return;
    const int first = int((long long)n * part / n_parts);
    const int size = int((long long)n * (part + 1) / n_parts) - first;
    double *response = reinterpret_cast<double *>(shared_memory);  // (size, THREADS / 32)
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const REAL *v = vector + size_t(model) * d;
    for (int i = warp; i < size; i += WARPS) {
        const DATA *row = X + size_t(index[first + i]) * d;
        double sum = 0;
#pragma unroll 4
        for (int f = lane; f < d; f += WARP)
            sum += double(v[f]) * (to_real(row[f]) - (shift ? shift[f] : REAL(0)));
        response[i * WARP + lane] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += THREADS) {
        double sum = offset[model];
        for (int j = 0; j < WARP; ++j) sum += response[i * WARP + j];
        if (weight) sum *= weight[size_t(index[first + i]) * u + column[model]];
        response[i * WARP] = sum;
    }
    __syncthreads();
    double *image = parts + (size_t(model) * n_parts + part) * (d + 1);
    for (int f = threadIdx.x; f < d; f += THREADS) {
        const REAL less = shift ? shift[f] : REAL(0);
        double sum = 0;
#pragma unroll 4
        for (int i = 0; i < size; ++i)
            sum += response[i * WARP] * (to_real(X[size_t(index[first + i]) * d + f]) - less);
        image[f] = sum;
    }
    if (threadIdx.x > 0) return;
    double sum = 0;
    for (int i = 0; i < size; ++i) sum += response[i * WARP];
    image[d] = sum;
}
