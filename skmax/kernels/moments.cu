// Weighted sums over rows of their features, less a shift, and of the squares of these, in double
// precision: what skmax.solvers.preconditioner.weighted_sums does for first_two, on dense rows.
//
// A block has some features, one per lane, a part of the rows, of which its warps take one after the
// other, and a column of the weights. What it sums is added up by `total` of common.cu, in a fixed
// order, so that two runs are equal to the last bit.
//
// The build defines
//   DATA  the type of X; half where it is float16
//   REAL  float or double: that of shift and weights, and of what is squared

constexpr int WARP = 32, WARPS = 4;

template <typename T> __device__ inline REAL to_real(T value) { return static_cast<REAL>(value); }
__device__ inline REAL to_real(half value) { return to_float(value); }

extern "C" __global__ void __launch_bounds__(WARP * WARPS) moments(
    const DATA *X,          // rows of d values
    const int *index,       // (n,): which rows; or null: the first n
    int n, int d, int u,
    const REAL *shift,      // (d,), or null
    const REAL *weight,     // (rows of X, u), or null: all 1
    int n_parts,
    double *parts)          // (n_parts, 2, u, d), out
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int tiles = (d + WARP - 1) / WARP, f = blockIdx.x % tiles * WARP + lane;
    const int part = blockIdx.x / tiles % n_parts, column = blockIdx.x / tiles / n_parts;
    const int first = int((long long)n * part / n_parts);
    const int last = int((long long)n * (part + 1) / n_parts);
    const REAL less = shift && f < d ? shift[f] : REAL(0);
    double sum = 0, square = 0;
    if (f < d) {
#pragma unroll 8
        for (int i = first + warp; i < last; i += WARPS) {
            const size_t row = index ? index[i] : i;
            const double x = to_real(X[row * d + f]) - less;
            const double wx = (weight ? double(weight[row * u + column]) : 1.0) * x;
            sum += wx;
            square += wx * x;
        }
    }
    double *shared = reinterpret_cast<double *>(shared_memory);  // (2, WARPS, WARP)
    shared[threadIdx.x] = sum;
    shared[WARPS * WARP + threadIdx.x] = square;
    __syncthreads();
    if (warp >= 2 || f >= d) return;
    double all = 0;
    for (int i = 0; i < WARPS; ++i) all += shared[(warp * WARPS + i) * WARP + lane];
    parts[((size_t(part) * 2 + warp) * u + column) * d + f] = all;
}
