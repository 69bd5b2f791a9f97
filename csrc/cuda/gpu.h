// The one header every kernel includes. Under nvcc it is CUDA; under any other compiler it is the emulator of
// tests/cuda_on_host, which runs the same kernel source on the host, one fiber per CUDA thread.
//
// Three spellings of a kernel differ from plain CUDA, because no macro can give them a meaning on the host:
//   GPU_SHARED(T, name, n)          static shared memory, T name[n]
//   GPU_SHARED_DYN(T, name)         dynamic shared memory, T* name, aligned to 16 bytes
//   GPU_LAUNCH((kernel<T, 4>), grid, block, dynamic_shared_bytes, stream)(arguments...)
// and so do, for the same reason:
//   GPU_LAUNCH_CLUSTER((kernel<T, 4>), grid, block, cluster, dynamic_shared_bytes, stream)(arguments...)
//     the same with clusters of so many blocks, up to 8 (sm_90 and later; ask GPU_HAS_CLUSTERS(kernel, threads, blocks)
//     first). In the kernel: gpu_cluster_rank(), gpu_cluster_size(), gpu_cluster_sync(), and gpu_cluster_peer(p, rank),
//     the address of *p in the shared memory of another block, valid between two calls of gpu_cluster_sync.
//   gpu_load_acquire(p), gpu_store_release(p, v)
//     flags between blocks. A loop that waits for one needs nothing else to let other threads run.
//   gpu_load_relaxed(p), gpu_store_relaxed(p, v)
//     the same for words that are all there is to tell: what was written before does not go with them.
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
// Whether a kernel can be launched in clusters of up to so many blocks of so many threads on the current device.
#define GPU_HAS_CLUSTERS(K, threads, blocks) gpu_has_clusters<GPU_UNPAREN_ K>((threads), (blocks))

using gpuStream = cudaStream_t;

// A launch in clusters; `attribute` has to live as long as the result.
inline cudaLaunchConfig_t gpu_cluster_config(cudaLaunchAttribute& attribute, dim3 grid, dim3 block, unsigned cluster,
                                             size_t shared, cudaStream_t stream) {
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster, attribute.val.clusterDim.y = 1, attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  return config;
}
template <class... Parameters, class... Arguments>
inline cudaError_t gpu_launch_cluster(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster,
                                      size_t shared, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = gpu_cluster_config(attribute, grid, block, cluster, shared, stream);
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
// Of a kernel one answer is kept: its callers always ask for the same numbers.
//
// The code has to have been compiled for sm_90 or later, whatever the device is: a newer one may run what an older
// architecture's PTX became. And all blocks of a cluster have to be resident together, on multiprocessors that are
// neighbours: a small part of a GPU (MIG) may not have so many, and the launch would fail.
template <auto kKernel>
inline bool gpu_has_clusters(unsigned threads, unsigned blocks) {
  static std::atomic<int> known[kGpusRemembered];  // 0: not asked yet, 1: no, 2: yes
  const int device = gpu_current(), slot = device % kGpusRemembered;
  int state = device < kGpusRemembered ? known[slot].load(std::memory_order_relaxed) : 0;
  if (state == 0) {
    const void* const kernel = reinterpret_cast<const void*>(kKernel);
    cudaFuncAttributes attributes;
    int resident = 0;
    if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90) {
      cudaLaunchAttribute attribute;
      const cudaLaunchConfig_t config = gpu_cluster_config(attribute, blocks, threads, blocks, 0, nullptr);
      if (cudaOccupancyMaxActiveClusters(&resident, kernel, &config) != cudaSuccess) resident = 0;
    }
    cudaGetLastError();  // that of a question, which is not the launch's
    state = resident > 0 ? 2 : 1;
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
__device__ __forceinline__ void gpu_store_release(unsigned long long* p, unsigned long long v) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
// (A release waits until everything that the thread has written is there for the whole GPU, an acquire empties the
// multiprocessor's cache: at each look.)
__device__ __forceinline__ unsigned gpu_load_relaxed(const unsigned* p) {
  unsigned v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ void gpu_store_relaxed(unsigned* p, unsigned v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
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
#define GPU_HAS_CLUSTERS(K, threads, blocks) ((void)(threads), (void)(blocks), ::cuemu::has_clusters())
inline int gpu_multiprocessors() { return ::cuemu::multiprocessors(); }
#define GPU_ALLOW_SHARED(K, bytes) ::cuemu::allow_shared(#K, (bytes))

using gpuStream = void*;

#endif
