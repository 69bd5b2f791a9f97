// Sums and maxima over neighbouring threads, in an order that is always the same: so are the bits of the result.
#pragma once

#include "cuda/types.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};
struct Smaller {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Combines v over groups of `width` lanes (a power of two up to 32); every lane gets the result. All lanes of the warp
// must be here.
template <class Combine, class T>
__device__ __forceinline__ T warp_combine(T v, int width, Combine combine) {
  for (int offset = width >> 1; offset > 0; offset >>= 1) v = combine(v, __shfl_xor_sync(kFullWarp, v, offset));
  return v;
}

// The same over the whole block of kThreads, all of which must be here.
template <int kThreads, class Combine, class T>
__device__ __forceinline__ T block_combine(T v, Combine combine) {
  constexpr int kWarps = kThreads / kWarp;
  GPU_SHARED(T, scratch, kWarps);
  v = warp_combine(v, kWarp, combine);
  __syncthreads();  // the scratch of a call before may still be read
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  T result = scratch[0];
  for (int w = 1; w < kWarps; ++w) result = combine(result, scratch[w]);
  return result;
}

// The sum over the whole block of kThreads, for its first thread alone: the others need not wait for it.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum_first(T v) {
  constexpr int kWarps = kThreads / kWarp;
  GPU_SHARED(T, scratch, kWarps);
  v = warp_combine(v, kWarp, Add{});
  __syncthreads();  // the scratch of a call before may still be read
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    v = scratch[0];
    for (int w = 1; w < kWarps; ++w) v += scratch[w];
  }
  return v;
}

// Over a group of `width` threads: part of a warp, or the whole block.
template <int kThreads, class Combine, class T>
__device__ __forceinline__ T group_combine(T v, int width, Combine combine) {
  return width <= kWarp ? warp_combine(v, width, combine) : block_combine<kThreads>(v, combine);
}

}  // namespace GPU_NS
}  // namespace zx
