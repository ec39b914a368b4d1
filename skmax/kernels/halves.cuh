// Two numbers of 16 bits whose sum is a float: what it is rounded to, and what is left, rounded. After
// the source of primitives.cuh.

#ifndef HOST_EMULATION
__device__ inline half to_half(float value) {
    half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
#endif

__device__ inline half upper_half(float value) { return to_half(value); }
__device__ inline half lower_half(float value) { return to_half(value - to_float(to_half(value))); }
