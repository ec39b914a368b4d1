// What other kernels need done before or after, whatever their types.

constexpr int THREADS = 128;

// Rows of an array at some indices: `from` has rows of so many words, `to` gets n of them.
template <typename Word>
__device__ inline void take(const Word *from, const int *index, int n, int words, Word *to) {
    const size_t count = size_t(n) * words, stride = size_t(gridDim.x) * THREADS;
    for (size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += stride)
        to[i] = from[size_t(index[i / words]) * words + i % words];
}

#define TAKE(BYTES, WORD)                                                                           \
    extern "C" __global__ void take_##BYTES(const WORD *from, const int *index, int n, int words,   \
                                            WORD *to) {                                             \
        take(from, index, n, words, to);                                                            \
    }
TAKE(1, unsigned char)
TAKE(2, unsigned short)
TAKE(4, unsigned)
TAKE(8, unsigned long long)
TAKE(16, uint4)

// Sums over the first axis of parts (n, size), in their order.
template <typename Part>
__device__ inline void total(const Part *parts, int n, int size, double *sums) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < size; i += gridDim.x * THREADS) {
        double sum = 0;
        for (int part = 0; part < n; ++part) sum += parts[size_t(part) * size + i];
        sums[i] = sum;
    }
}

extern "C" __global__ void total_4(const float *parts, int n, int size, double *sums) {
    total(parts, n, size, sums);
}
extern "C" __global__ void total_8(const double *parts, int n, int size, double *sums) {
    total(parts, n, size, sums);
}
