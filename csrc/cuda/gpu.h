// The one header every kernel includes. Under nvcc it is CUDA; under any other compiler it is the emulator of
// tests/cuda_on_host, which runs the same kernel source on the host, one fiber per CUDA thread.
//
// Three spellings of a kernel differ from plain CUDA, because no macro can give them a meaning on the host:
//   GPU_SHARED(T, name, n)          static shared memory, T name[n]
//   GPU_SHARED_DYN(T, name)         dynamic shared memory, T* name, aligned to 16 bytes
//   GPU_LAUNCH((kernel<T, 4>), grid, block, dynamic_shared_bytes, stream)(arguments...)
// Kernels and launchers live in `inline namespace GPU_NS`, so that one process may hold both builds without
// the linker taking the symbols of one for those of the other.
//
// Keep torch's headers out of everything that includes this file: nvcc needs a second for the kernels alone
// and half a minute with torch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GPU_NS cuda_build
#define GPU_SHARED(T, name, n) __shared__ T name[n]
#define GPU_SHARED_DYN(T, name)                                 \
  extern __shared__ __align__(16) unsigned char gpu_dynamic_[]; \
  T* name = reinterpret_cast<T*>(gpu_dynamic_)
#define GPU_UNPAREN_(...) __VA_ARGS__
#define GPU_LAUNCH(K, grid, block, smem, stream) GPU_UNPAREN_ K<<<(grid), (block), (smem), (stream)>>>
// Allows a kernel more dynamic shared memory than the 48 KiB every device grants unasked.
#define GPU_ALLOW_SHARED(K, bytes) \
  cudaFuncSetAttribute(GPU_UNPAREN_ K, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes))

using gpuStream = cudaStream_t;

#else

#include "cuda_emulator.h"

#define GPU_NS host_build
#define GPU_UNPAREN_(...) __VA_ARGS__
#define GPU_LAUNCH(K, grid, block, smem, stream)                                            \
  [&](auto... arguments_) {                                                                 \
    (void)(stream);                                                                         \
    ::cuemu::launch((grid), (block), (smem), #K, [=] { (GPU_UNPAREN_ K)(arguments_...); }); \
  }
#define GPU_ALLOW_SHARED(K, bytes) ::cuemu::allow_shared(#K, (bytes))

using gpuStream = void*;

#endif
