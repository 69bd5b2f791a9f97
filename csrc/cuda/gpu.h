// The one header every kernel includes. Under nvcc it is CUDA; under any other compiler it is the emulator of
// tests/cuda_on_host, which runs the same kernel source on the host, one fiber per CUDA thread.
//
// Three spellings of a kernel differ from plain CUDA, because no macro can give them a meaning on the host:
//   GPU_SHARED(T, name, n)          static shared memory, T name[n]
//   GPU_SHARED_DYN(T, name)         dynamic shared memory, T* name, aligned to 16 bytes
//   GPU_LAUNCH((kernel<T, 4>), grid, block, dynamic_shared_bytes, stream)(arguments...)
// and so do, for the same reason:
//   GPU_LAUNCH_CLUSTER((kernel<T, 4>), grid, block, cluster, dynamic_shared_bytes, stream)(arguments...)
//     the same with clusters of so many blocks, up to 8 (sm_90 and later; ask GPU_HAS_CLUSTERS(kernel) first). In the
//     kernel: gpu_cluster_rank(), gpu_cluster_size(), gpu_cluster_sync(), and gpu_cluster_peer(p, rank), the address of
//     *p in the shared memory of another block, valid between two calls of gpu_cluster_sync.
//   gpu_load_acquire(p), gpu_store_release(p, v)
//     flags between blocks. A loop that waits for one needs nothing else to let other threads run.
//   GPU_FILL(memory, byte, bytes, stream)
//     cudaMemsetAsync, which counts as a launch.
//   gpu_exp2(x), gpu_reciprocal(x)
//     the device's approximations.
//   gpu_multiprocessors()
//     of the current device.
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

#include <atomic>

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

#define GPU_LAUNCH_CLUSTER(K, grid, block, cluster, smem, stream)                                           \
  [&](auto... arguments_) {                                                                                 \
    return gpu_launch_cluster(GPU_UNPAREN_ K, (grid), (block), (cluster), (smem), (stream), arguments_...); \
  }
#define GPU_FILL(memory, byte, bytes, stream) cudaMemsetAsync((memory), (byte), (bytes), (stream))
// Whether the code of a kernel that runs on the current device was compiled for sm_90 or later: a newer device may run
// what an older architecture's PTX became.
#define GPU_HAS_CLUSTERS(K) gpu_has_clusters<GPU_UNPAREN_ K>()

using gpuStream = cudaStream_t;

template <class... Parameters, class... Arguments>
inline cudaError_t gpu_launch_cluster(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster,
                                      size_t shared, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster, attribute.val.clusterDim.y = 1, attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// 2^x and 1 / x, approximately (csrc/common/math.h says how well); results too small for normal numbers are 0.
__device__ __forceinline__ float gpu_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float gpu_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr int kGpusRemembered = 64;
inline int gpu_current() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}
inline int gpu_multiprocessors() {
  static std::atomic<int> known[kGpusRemembered];
  const int device = gpu_current(), slot = device % kGpusRemembered;
  int count = device < kGpusRemembered ? known[slot].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1) return 1;
    if (device < kGpusRemembered) known[slot].store(count, std::memory_order_relaxed);
  }
  return count;
}
template <auto kKernel>
inline bool gpu_has_clusters() {
  static std::atomic<int> known[kGpusRemembered];  // 0: not asked yet, 1: no, 2: yes
  const int device = gpu_current(), slot = device % kGpusRemembered;
  int state = device < kGpusRemembered ? known[slot].load(std::memory_order_relaxed) : 0;
  if (state == 0) {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kKernel)) != cudaSuccess) return false;
    state = attributes.ptxVersion >= 90 ? 2 : 1;
    if (device < kGpusRemembered) known[slot].store(state, std::memory_order_relaxed);
  }
  return state == 2;
}

// Where there are no clusters, nothing launches a kernel in them.
__device__ __forceinline__ unsigned gpu_cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return __clusterRelativeBlockRank();
#else
  return 0;
#endif
}
__device__ __forceinline__ unsigned gpu_cluster_size() {
#if __CUDA_ARCH__ >= 900
  return __clusterSizeInBlocks();
#else
  return 1;
#endif
}
__device__ __forceinline__ void gpu_cluster_sync() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#endif
}
template <class T>
__device__ __forceinline__ T* gpu_cluster_peer(T* p, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return static_cast<T*>(__cluster_map_shared_rank(p, rank));
#else
  return p;
#endif
}
__device__ __forceinline__ unsigned long long gpu_load_acquire(const unsigned long long* p) {
  unsigned long long v;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ unsigned gpu_load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void gpu_store_release(unsigned long long* p, unsigned long long v) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ void gpu_store_release(unsigned* p, unsigned v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

#else

#include "cuda_emulator.h"

#define GPU_NS host_build
#define GPU_UNPAREN_(...) __VA_ARGS__
#define GPU_LAUNCH(K, grid, block, smem, stream)                                               \
  [&](auto... arguments_) {                                                                    \
    (void)(stream);                                                                            \
    ::cuemu::launch((grid), (block), 1, (smem), #K, [=] { (GPU_UNPAREN_ K)(arguments_...); }); \
  }
#define GPU_LAUNCH_CLUSTER(K, grid, block, cluster, smem, stream)                                      \
  [&](auto... arguments_) {                                                                            \
    (void)(stream);                                                                                    \
    ::cuemu::launch((grid), (block), (cluster), (smem), #K, [=] { (GPU_UNPAREN_ K)(arguments_...); }); \
  }
#define GPU_FILL(memory, byte, bytes, stream) ((void)(stream), ::cuemu::fill((memory), (byte), (bytes)))
#define GPU_HAS_CLUSTERS(K) ::cuemu::has_clusters()
inline int gpu_multiprocessors() { return ::cuemu::multiprocessors(); }
#define GPU_ALLOW_SHARED(K, bytes) ::cuemu::allow_shared(#K, (bytes))

using gpuStream = void*;

#endif
