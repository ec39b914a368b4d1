// Which of the instruction sets that were compiled (CMakeLists.txt) can run here, and from which
// sources they were.

#define EXPORT extern "C" __attribute__((visibility("default")))

// The names of the sets that this processor and operating system can run, best first.
EXPORT const char* skmax_instruction_sets() {
#if defined(SKMAX_FOR_X86_64)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return avx512 ? "avx512 avx2 plain" : avx2 ? "avx2 plain" : "plain";
#elif defined(SKMAX_FOR_AARCH64)
    return "neon";
#else
    return "plain";
#endif
}

// The SHA-256 of core.cpp and what is part of it: a library that was built from others must not be
// called.
EXPORT const char* skmax_source() { return SKMAX_SOURCE; }
