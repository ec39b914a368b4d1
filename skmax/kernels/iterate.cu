// An iteration of the power method of curvature.cu, with a block per model: adds up, in a fixed
// order, what that gave for parts of the rows, and leaves the next vector. Or it begins.
//
// The build defines
//   REAL     float or double: weights
//   THREADS  threads per block, a power of two

// The sum over the threads of a block, in a fixed order, which all of them get.
__device__ inline double block_sum(double value, double *shared) {
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half_size = THREADS / 2; half_size > 0; half_size /= 2) {
        if (threadIdx.x < half_size) shared[threadIdx.x] += shared[threadIdx.x + half_size];
        __syncthreads();
    }
    return shared[0];
}

extern "C" __global__ void __launch_bounds__(THREADS) iterate(
    int n, int d, int fit_intercept, int is_first, double settled,
    const REAL *mean, const REAL *inverse_scale,  // (m, d), or null
    int n_parts, double *parts,                   // (m, n_parts, d + 1)
    REAL *vector, REAL *offset,                   // (m, d), (m,), out: in the units of X
    int *done, double *value)                     // (m,), in and out
{
    const int model = blockIdx.x;
    if (!is_first && done[model]) return;
    double *shared = reinterpret_cast<double *>(shared_memory);  // (THREADS,)
    double *image = parts + size_t(model) * n_parts * (d + 1);
    const REAL *m = mean ? mean + size_t(model) * d : nullptr;
    const REAL *s = inverse_scale ? inverse_scale + size_t(model) * d : nullptr;
    const double start = 1 / sqrt(double(d + 1)), per_row = 1.0 / n;
    double total = 0, squares = 0;
#pragma unroll 1
    for (int part = 0; part < (is_first ? 0 : n_parts); ++part)
        total += image[size_t(part) * (d + 1) + d] * per_row;
    const double constant = fit_intercept ? (is_first ? start : total) : 0.0;
    for (int f = threadIdx.x; f < d; f += THREADS) {
        double sum = 0;
#pragma unroll 4
        for (int part = 0; part < (is_first ? 0 : n_parts); ++part)
            sum += image[size_t(part) * (d + 1) + f];
        sum = is_first ? start : (sum * per_row - (m ? total * m[f] : 0.0)) * (s ? double(s[f]) : 1.0);
        image[f] = sum;
        squares += sum * sum;
    }
    const double norm = sqrt(block_sum(squares, shared) + constant * constant);
    if (threadIdx.x == 0) {
        const double before = is_first ? 1.0 : value[model];
        value[model] = is_first ? 1.0 : norm;
        const double change = norm < before ? before - norm : norm - before;
        done[model] = !is_first && change <= settled * norm;
    }
    const double per_norm = is_first || !(norm > 0) ? 1.0 : 1 / norm;
    double dot = 0;
    for (int f = threadIdx.x; f < d; f += THREADS) {
        const REAL w = REAL(image[f] * per_norm) * (s ? s[f] : REAL(1));
        vector[size_t(model) * d + f] = w;
        if (m) dot += double(w) * m[f];
    }
    dot = block_sum(dot, shared);
    if (threadIdx.x == 0) offset[model] = REAL(constant * per_norm - dot);
}
