// CUDA on a CPU, for kernels that use the primitives below and no others. The threads of a cluster
// are fibers, of which one runs at a time until it has to wait for others; which of those that can
// run goes on is chosen at random. So a kernel that lacks a barrier gives results that change with
// the seed. Copies ahead are made as late as they may be. What is never written is not a number.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define HOST_EMULATION
#define __device__
#define __global__
#define __noinline__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define CLUSTERED

typedef unsigned long long uint64;
using std::size_t;

namespace emulation {

enum Waiting { nothing, warp, block, cluster, forever };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    Waiting waits = nothing;
    int block = 0, thread = 0, exchanges = 0;
    double sent[2] = {0, 0};
    struct Copy {
        void *to;
        const void *from;
        int bytes;
    };
    std::vector<Copy> copies;
};

inline std::vector<Fiber> fibers;
inline std::vector<std::vector<uint64>> memory;
inline ucontext_t scheduler;
inline Fiber *current;
inline const char *error;
inline int first_block, blocks;
inline std::function<void()> body;

inline void wait(Waiting what) {
    current->waits = what;
    swapcontext(&current->context, &scheduler);
}

// Ends a thread, and with it the launch.
inline void fail(const char *words) {
    error = words;
    wait(forever);
}

inline void start() {
    body();
    current->waits = forever;
    swapcontext(&current->context, &scheduler);
}

// Whether all threads that a barrier is for have come to it; if so, they go on.
inline void release(Waiting what, int size) {
    for (size_t first = 0; first < fibers.size(); first += size) {
        bool all = true;
        for (int i = 0; i < size; ++i) all = all && fibers[first + i].waits == what;
        for (int i = 0; all && i < size; ++i) fibers[first + i].waits = nothing;
    }
}

// One cluster, from the beginning to the end of the kernel.
inline void run_cluster(int index, size_t shared_bytes, std::mt19937 &random) {
    first_block = index * CLUSTER;
    fibers = std::vector<Fiber>(CLUSTER * THREADS);
    const size_t words = shared_bytes / 8, guard = 1024;
    memory.assign(CLUSTER, std::vector<uint64>(words + guard, ~0ull));
    for (size_t i = 0; i < fibers.size(); ++i) {
        Fiber &fiber = fibers[i];
        fiber.block = i / THREADS;
        fiber.thread = i % THREADS;
        fiber.stack.resize(1 << 16);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
    }
    std::vector<Fiber *> ready;
    for (;;) {
        release(warp, 32);
        release(block, THREADS);
        release(cluster, CLUSTER * THREADS);
        ready.clear();
        bool finished = true;
        for (Fiber &fiber : fibers) {
            if (fiber.waits == nothing) ready.push_back(&fiber);
            finished = finished && fiber.waits == forever;
        }
        if (finished) {
            for (const auto &piece : memory)
                for (size_t i = words; i < words + guard; ++i)
                    if (piece[i] != ~0ull) error = "Shared memory is too small.";
            return;
        }
        if (ready.empty()) {
            error = "Threads wait at different barriers.";
            return;
        }
        std::shuffle(ready.begin(), ready.end(), random);
        for (Fiber *fiber : ready) {
            current = fiber;
            swapcontext(&scheduler, &fiber->context);
            if (error) return;
        }
    }
}

// What went wrong, or null.
inline const char *launch(int n_blocks, size_t shared_bytes, unsigned seed) {
    std::mt19937 random(seed);
    error = nullptr;
    blocks = n_blocks;
    for (int index = 0; index < n_blocks / CLUSTER && !error; ++index)
        run_cluster(index, shared_bytes, random);
    return error;
}

struct Thread {
    struct { operator int() const { return current->thread; } } x;
};
struct Block {
    struct { operator int() const { return first_block + current->block; } } x;
};
struct Grid {
    struct { operator int() const { return blocks; } } x;
};

}  // namespace emulation

inline emulation::Thread threadIdx;
inline emulation::Block blockIdx;
inline emulation::Grid gridDim;
#define shared_memory (emulation::memory[emulation::current->block].data())

struct half {
    unsigned short bits;
};
inline float to_float(half value) {
    _Float16 number;
    std::memcpy(&number, &value, sizeof number);
    return number;
}

inline void __syncthreads() { emulation::wait(emulation::block); }
inline void cluster_barrier() { emulation::wait(emulation::cluster); }

template <typename T> T *in_block(T *place, int block) {
    auto &all = emulation::memory;
    const auto offset = reinterpret_cast<char *>(place) -
                        reinterpret_cast<char *>(all[emulation::current->block].data());
    return reinterpret_cast<T *>(reinterpret_cast<char *>(all[block].data()) + offset);
}

inline REAL from_lane(REAL value, int lane_mask) {
    emulation::Fiber &mine = *emulation::current;
    const int turn = mine.exchanges++ % 2;
    mine.sent[turn] = value;
    emulation::wait(emulation::warp);
    return (&mine)[(mine.thread ^ lane_mask) - mine.thread].sent[turn];
}

template <int BYTES> void copy_ahead(void *to, const void *from) {
    if (reinterpret_cast<size_t>(to) % BYTES || reinterpret_cast<size_t>(from) % BYTES)
        emulation::fail("A copy to shared memory is not aligned.");
    std::memset(to, 0xff, BYTES);
    emulation::current->copies.push_back({to, from, BYTES});
}
inline void wait_for_copies() {
    for (const auto &copy : emulation::current->copies) std::memcpy(copy.to, copy.from, copy.bytes);
    emulation::current->copies.clear();
}
