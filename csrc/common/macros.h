// Qualifiers that let one header serve g++ and nvcc.
#pragma once

#if defined(__CUDACC__)
#define ZX_HD __host__ __device__ __forceinline__
#else
// always_inline, so that a body takes the instruction set of the function that it is used in (cpu/simd.h).
#define ZX_HD inline __attribute__((always_inline))
#endif
