// What kernels with tensor cores ask of a CUDA device, from compute capability 8.0 on. Where they are
// built for a CPU (HOST_EMULATION), tests/emulated_cuda.h has the same.

#ifndef HOST_EMULATION

typedef unsigned long long uint64;
typedef unsigned Address;  // of shared memory, of any block of the cluster
extern __shared__ __align__(128) uint64 shared_memory[];

struct half {
    unsigned short bits;
};
__device__ inline float to_float(half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

__device__ inline Address address_of(const void *place) {
    return static_cast<Address>(__cvta_generic_to_shared(place));
}

// Copies ahead to shared memory of 4, 8 or 16 bytes, of which the first `bytes` are read and the
// others are zero; they come in groups.
template <int SIZE> __device__ inline void copy_ahead(Address to, const void *from, int bytes = SIZE) {
    if (SIZE == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(SIZE),
                     "r"(bytes) : "memory");
}
// The same of all bytes, without a branch.
template <int SIZE>
__device__ inline void copy_ahead_if(bool wanted, Address to, const void *from) {
    if (SIZE == 16)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; "
                     "@p cp.async.cg.shared.global [%0], [%1], 16;}"
                     ::"r"(to), "l"(from), "r"(unsigned(wanted)) : "memory");
    else
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; "
                     "@p cp.async.ca.shared.global [%0], [%1], %3;}"
                     ::"r"(to), "l"(from), "r"(unsigned(wanted)), "n"(SIZE) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N groups are on their way.
template <int N> __device__ inline void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ inline unsigned bits_of(float value) { return __float_as_uint(value); }
__device__ inline float from_bits(unsigned bits) { return __uint_as_float(bits); }
template <typename T> __device__ inline T from_lane_xor(T value, int mask) {
    return __shfl_xor_sync(~0u, value, mask);
}

// c += a b, of 16 x 8 and 8 x 8 numbers, as the fragments of a warp.
__device__ inline void multiply_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of doubles: of 8 x 4 and 4 x 8.
__device__ inline void multiply_f64(double &c0, double &c1, double a, double b) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+d"(c0), "+d"(c1) : "d"(a), "d"(b));
}

// A number that the compiler takes for a new one: what was computed from it before is not kept.
__device__ inline int anew(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// Counts one more, after what this thread has written, or has seen others of its block write.
__device__ inline void arrive(unsigned *counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
// Waits until so many have been counted.
__device__ inline void wait_for(const unsigned *counter, unsigned target) {
    unsigned seen;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while (static_cast<int>(seen - target) < 0);
}
// A barrier for all blocks of a cooperative launch, which has met it `turn` times before.
__device__ inline void grid_barrier(unsigned *counter, unsigned turn) {
    __syncthreads();
    if (threadIdx.x == 0) {
        arrive(counter);
        wait_for(counter, (turn + 1) * gridDim.x);
    }
    __syncthreads();
}

#if __CUDA_ARCH__ >= 900

// The same place in the shared memory of another block of the cluster.
__device__ inline Address in_block(Address place, int block) {
    Address there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(place), "r"(block));
    return there;
}
// Barriers in shared memory that count bytes: what `send` sends is there once all have come.
__device__ inline void start_counting(Address barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;"
                 ::"r"(barrier) : "memory");
}
__device__ inline void expect_bytes(Address barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ inline void wait_for_bytes(Address barrier, int parity) {
    unsigned done;
    do asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                    "selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    while (!done);
}
__device__ inline void send(Address to, float x, float y, Address barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];"
                 ::"r"(to), "f"(x), "f"(y), "r"(barrier) : "memory");
}
__device__ inline void send(Address to, uint4 v, Address barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, "
                 "[%5];" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier) : "memory");
}
// Writes to the memory of any block; after meet_cluster, it is seen.
__device__ inline void store(Address to, float value) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}
__device__ inline void store(Address to, double value) {
    asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(to), "d"(value) : "memory");
}
__device__ inline void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;"
                 ::: "memory");
}

#endif

__device__ inline void load_matrices(unsigned (&r)[4], Address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
// c += a b, of 16 x 32 bytes without and 32 x 8 bytes with signs.
__device__ inline void multiply_u8s8(int (&c)[4], const unsigned *a, unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The place of one of some elements of so many bytes.
__device__ inline const unsigned char *element(const unsigned char *first, int i, int bytes) {
    const unsigned char *there;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(there) : "r"(i), "r"(bytes), "l"(first));
    return there;
}
// Whatever the compiler knows of a number, it knows no more.
__device__ inline void forget(int &number) { asm volatile("" : "+r"(number)); }
__device__ inline unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) {
    return __byte_perm(a, b, selector);
}
__device__ inline float from_lane_at(float value, int lane) { return __shfl_sync(~0u, value, lane); }
__device__ inline float to_float(int i) { return __int2float_rn(i); }
__device__ inline int to_int(float f) { return __float2int_rn(f); }
__device__ inline float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

#endif  // HOST_EMULATION
