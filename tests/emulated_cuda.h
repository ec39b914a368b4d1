// CUDA on a CPU, for kernels that use the primitives below and no others. The threads of a cluster,
// or of all blocks of a cooperative launch, are fibers, of which one runs at a time until it has to
// wait for others; which of those that can run goes on is chosen at random. So a kernel that lacks a
// barrier gives results that change with the seed. Copies ahead are made as late as they may be, what
// is sent to other blocks comes at random times. What is never written is not a number.

#undef _FORTIFY_SOURCE  // which takes jumps from stack to stack for errors
#include <setjmp.h>
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
#define __cluster_dims__(...)
#define CLUSTERED

typedef unsigned long long uint64;
using std::size_t;
struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
struct double2 {
    double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
typedef char *Address;

namespace emulation {

enum Waiting { nothing, warp, block, cluster, forever };
struct Copy {
    void *to;
    const void *from;
    int bytes, zeros;
    void make() const {
        std::memcpy(to, from, bytes);
        std::memset(static_cast<char *>(to) + bytes, 0, zeros);
    }
};
struct Fiber {
    ucontext_t context;  // to begin in
    jmp_buf place;       // to go on from
    bool begun = false;
    std::vector<char> stack;
    Waiting waits = nothing;
    int block = 0, thread = 0, exchanges = 0, flags = 0;
    unsigned sent[2][12];
    int flag[2];
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> copies;
};
struct Flight {
    char *to;
    unsigned value[4];
    int bytes;
    char *barrier;
    void land() const;
};

inline std::vector<Fiber> fibers;
inline std::vector<std::vector<uint64>> memory;
inline std::vector<Flight> flights;
inline jmp_buf scheduler;
inline Fiber *current;
inline const char *error;
inline int first_block, blocks, threads, cluster_size;
inline std::function<void()> body;

// Jumps are 10 times as fast as contexts, which a fiber needs to begin.
inline void give_way() {
    if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}
__attribute__((noinline)) inline void go_on() {
    if (_setjmp(scheduler)) return;
    if (current->begun) _longjmp(current->place, 1);
    current->begun = true;
    setcontext(&current->context);
}

inline void wait(Waiting what) {
    current->waits = what;
    give_way();
}

// Ends a thread, and with it the launch.
inline void fail(const char *words) {
    error = words;
    wait(forever);
}

inline void start() {
    body();
    wait(forever);
}

// Whether all threads that a barrier is for have come to it; if so, they go on.
inline void release(Waiting what, int size) {
    for (size_t first = 0; first < fibers.size(); first += size) {
        bool all = true;
        for (int i = 0; i < size && all; ++i) all = fibers[first + i].waits == what;
        for (int i = 0; all && i < size; ++i) fibers[first + i].waits = nothing;
    }
}

// Of what is on its way to other blocks, some comes.
inline void land_some(std::mt19937 &random) {
    for (size_t i = 0; i < flights.size();) {
        if (random() % 4) {
            ++i;
            continue;
        }
        flights[i].land();
        flights[i] = flights.back();
        flights.pop_back();
    }
}

// One cluster, from the beginning to the end of the kernel.
inline void run_cluster(int first, size_t shared_bytes, std::mt19937 &random) {
    first_block = first;
    fibers = std::vector<Fiber>(cluster_size * threads);
    const size_t words = (shared_bytes + 7) / 8, guard = 1024;
    memory.assign(cluster_size, std::vector<uint64>(words + guard, ~0ull));
    for (size_t i = 0; i < fibers.size(); ++i) {
        Fiber &fiber = fibers[i];
        fiber.block = i / threads;
        fiber.thread = i % threads;
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
        release(block, threads);
        release(cluster, cluster_size * threads);
        land_some(random);
        ready.clear();
        bool finished = true;
        for (Fiber &fiber : fibers) {
            if (fiber.waits == nothing) ready.push_back(&fiber);
            finished = finished && fiber.waits == forever;
        }
        if (finished) {
            if (!flights.empty()) error = "A block ended before what was sent to it came.";
            flights.clear();
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
            go_on();
            if (error) return;
        }
    }
}

// What went wrong, or null. Blocks of a cooperative launch are one cluster.
inline const char *
launch(int n_blocks, int per_cluster, int n_threads, size_t shared_bytes, unsigned seed) {
    std::mt19937 random(seed);
    error = nullptr;
    blocks = n_blocks;
    threads = n_threads;
    cluster_size = per_cluster;
    for (int first = 0; first < n_blocks && !error; first += per_cluster)
        run_cluster(first, shared_bytes, random);
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

// What the lanes of a warp tell each other: what this one says, and once all have, what another said.
inline void say(const void *words, int bytes) {
    Fiber &mine = *current;
    std::memcpy(mine.sent[mine.exchanges++ % 2], words, bytes);
    wait(warp);
}
inline const unsigned *said_by(int lane) {
    Fiber &mine = *current;
    return (&mine)[lane - mine.thread % 32].sent[(mine.exchanges + 1) % 2];
}
template <typename T> T from(T value, int lane) {
    say(&value, sizeof value);
    std::memcpy(&value, said_by(lane), sizeof value);
    return value;
}

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
inline half to_half(float value) {
    const _Float16 number = value;
    half result;
    std::memcpy(&result, &number, sizeof number);
    return result;
}

inline void __syncthreads() { emulation::wait(emulation::block); }
inline void __syncwarp() { emulation::wait(emulation::warp); }
inline int __syncthreads_or(int flag) {
    emulation::Fiber &mine = *emulation::current;
    const int turn = mine.flags++ % 2;
    mine.flag[turn] = flag;
    __syncthreads();
    int any = 0;
    for (int i = 0; i < emulation::threads; ++i) any |= (&mine)[i - mine.thread].flag[turn];
    return any;
}
inline void cluster_barrier() { emulation::wait(emulation::cluster); }
inline void meet_cluster() { emulation::wait(emulation::cluster); }
inline void grid_barrier(unsigned *, unsigned) { emulation::wait(emulation::cluster); }
inline int anew(int value) { return value; }
inline void arrive(unsigned *counter) { ++*counter; }
inline void wait_for(const unsigned *counter, unsigned target) {
    for (int i = 0; static_cast<int>(*counter - target) < 0; ++i) {
        if (i > 1000000) emulation::fail("Not all have arrived.");
        emulation::give_way();
    }
}

template <typename T> T *in_block(T *place, int block) {
    auto &all = emulation::memory;
    const auto offset = reinterpret_cast<char *>(place) -
                        reinterpret_cast<char *>(all[emulation::current->block].data());
    return reinterpret_cast<T *>(reinterpret_cast<char *>(all[block].data()) + offset);
}

template <typename T> T from_lane(T value, int mask) {
    return emulation::from(value, (emulation::current->thread % 32) ^ mask);
}
template <typename T> T from_lane_xor(T value, int mask) { return from_lane(value, mask); }
inline float from_lane_at(float value, int lane) { return emulation::from(value, lane); }

inline Address address_of(const void *place) {
    return static_cast<char *>(const_cast<void *>(place));
}
template <int SIZE> void copy_ahead(void *to, const void *from, int bytes = SIZE) {
    if (reinterpret_cast<size_t>(to) % SIZE || (bytes && reinterpret_cast<size_t>(from) % SIZE))
        emulation::fail("A copy to shared memory is not aligned.");
    std::memset(to, 0xff, SIZE);
    emulation::current->copies.push_back({to, from, bytes, SIZE - bytes});
}
template <int SIZE> void copy_ahead_if(bool wanted, void *to, const void *from) {
    if (wanted) copy_ahead<SIZE>(to, from);
}
inline void commit_copies() {
    emulation::Fiber &mine = *emulation::current;
    mine.groups.push_back(mine.copies);
    mine.copies.clear();
}
template <int N> void wait_for_groups() {
    auto &groups = emulation::current->groups;
    while (groups.size() > N) {
        for (const auto &copy : groups.front()) copy.make();
        groups.erase(groups.begin());
    }
}
inline void wait_for_copies() {
    commit_copies();
    wait_for_groups<0>();
}

struct Count {
    int missing;
    short phase, expected;
    void check() {
        if (expected && missing == 0) {
            phase ^= 1;
            expected = 0;
        }
    }
};
inline void start_counting(Address barrier) {
    *reinterpret_cast<Count *>(barrier) = {0, 0, 0};
}
inline void expect_bytes(Address barrier, int bytes) {
    auto count = reinterpret_cast<Count *>(barrier);
    if (count->expected) emulation::fail("Bytes are expected twice at a time.");
    count->missing += bytes;
    count->expected = 1;
    count->check();
}
inline void wait_for_bytes(Address barrier, int parity) {
    auto count = reinterpret_cast<Count *>(barrier);
    for (int i = 0; count->phase == parity; ++i) {
        if (i > 1000000) emulation::fail("Bytes never came.");
        emulation::give_way();
    }
}
inline void emulation::Flight::land() const {
    std::memcpy(to, value, bytes);
    auto count = reinterpret_cast<Count *>(barrier);
    count->missing -= bytes;
    count->check();
}
inline void send(Address to, float x, float y, Address barrier) {
    if (reinterpret_cast<size_t>(to) % 8) emulation::fail("What is sent is not aligned.");
    emulation::Flight flight{to, {}, 8, barrier};
    const float both[] = {x, y};
    std::memcpy(flight.value, both, 8);
    emulation::flights.push_back(flight);
}
inline void send(Address to, uint4 v, Address barrier) {
    if (reinterpret_cast<size_t>(to) % 16) emulation::fail("What is sent is not aligned.");
    emulation::flights.push_back({to, {v.x, v.y, v.z, v.w}, 16, barrier});
}

inline void store(Address to, float value) { std::memcpy(to, &value, sizeof value); }
inline void store(Address to, double value) { std::memcpy(to, &value, sizeof value); }

inline unsigned bits_of(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float from_bits(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void multiply_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned mine[] = {a[0], a[1], a[2], a[3], b0, b1};
    emulation::say(mine, sizeof mine);
    const int lane = emulation::current->thread % 32, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        double sum = c[i];
        for (int k = 0; k < 8; ++k) {
            const unsigned x = emulation::said_by(row % 8 * 4 + k % 4)[row / 8 + 2 * (k / 4)];
            const unsigned w = emulation::said_by(column * 4 + k % 4)[4 + k / 4];
            sum += double(from_bits(x & 0xffffe000u)) * from_bits(w & 0xffffe000u);
        }
        c[i] = float(sum);  // which tensor cores cut off
        if (std::fabs(c[i]) > std::fabs(sum)) c[i] = std::nextafter(c[i], 0.f);
    }
}
inline void multiply_f64(double &c0, double &c1, double a, double b) {
    const double mine[] = {a, b};
    emulation::say(mine, sizeof mine);
    const int lane = emulation::current->thread % 32, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
        double &c = i ? c1 : c0;
        for (int k = 0; k < 4; ++k) {
            double x[2], w[2];
            std::memcpy(x, emulation::said_by(g * 4 + k), sizeof x);
            std::memcpy(w, emulation::said_by((2 * t + i) * 4 + k), sizeof w);
            c += x[0] * w[1];
        }
    }
}
inline void load_matrices(unsigned (&r)[4], Address row) {
    if (reinterpret_cast<size_t>(row) % 16) emulation::fail("A row of a matrix is not aligned.");
    emulation::say(&row, sizeof row);
    const int lane = emulation::current->thread % 32;
    for (int i = 0; i < 4; ++i) {
        Address there;
        std::memcpy(&there, emulation::said_by(8 * i + lane / 4), sizeof there);
        std::memcpy(&r[i], there + 4 * (lane % 4), 4);
    }
}
inline void multiply_u8s8(int (&c)[4], const unsigned *a, unsigned b0, unsigned b1) {
    const unsigned mine[] = {a[0], a[1], a[2], a[3], b0, b1};
    emulation::say(mine, sizeof mine);
    const int lane = emulation::current->thread % 32, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (int k = 0; k < 32; ++k) {
            const unsigned *x = emulation::said_by(row % 8 * 4 + k % 16 / 4);
            const unsigned *w = emulation::said_by(column * 4 + k % 16 / 4);
            const int of_x = x[row / 8 + 2 * (k / 16)] >> (8 * (k % 4)) & 255;
            c[i] += of_x * static_cast<signed char>(w[4 + k / 16] >> (8 * (k % 4)) & 255);
        }
    }
}
inline const unsigned char *element(const unsigned char *first, int i, int bytes) {
    return first + size_t(i) * bytes;
}
inline void forget(int &) {}
inline unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) {
    const uint64 both = uint64(a) | uint64(b) << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
        result |= unsigned(both >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    return result;
}
inline float to_float(int i) { return static_cast<float>(i); }
inline int to_int(float f) {
    if (!(std::fabs(f) < 2147483648.f)) return f > 0 ? 2147483647 : f < 0 ? -2147483647 - 1 : 0;
    return static_cast<int>(std::nearbyint(f));
}
inline float power_of_two(int e) { return std::ldexp(1.f, e); }
inline float __fdividef(float a, float b) { return a / b; }
template <typename T> T __ldcg(const T *place) { return *place; }
template <typename T> void __stcg(T *place, T value) { *place = value; }
