// Planted bugs: kernels that are wrong in the ways kernels usually are, to show what the emulator catches,
// alone and under each sanitizer. `bugs NAME` exits with 0 if nothing was noticed, 3 if the emulator
// complained, 4 if the result was wrong; a sanitizer ends the program with a status of its own. Which build
// must catch which bug is the table in sanitize.py.
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/gpu.h"

namespace {
inline namespace GPU_NS {

constexpr unsigned kFull = 0xffffffffu;

template <int kThreads>
__device__ float block_sum(float v) {
  GPU_SHARED(float, partial, kThreads / 32);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(kFull, v, offset);
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  if (warp == 0) {
    v = lane < kThreads / 32 ? partial[lane] : 0.f;
    for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(kFull, v, offset);
  }
  return v;
}

// The guard lets one thread past the end.
__global__ void tail_guard(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i < n ? i : 0] += x[i] * 0.f;
}
// The shared array is one too short.
__global__ void short_shared(const float* x, float* y) {
  GPU_SHARED(float, s, 63);
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
// No barrier between the write and the mirrored read.
__global__ void no_barrier(const float* x, float* y) {
  GPU_SHARED(float, s, 64);
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[63 - threadIdx.x];
}
// No barrier, and reads the lower neighbour: hidden as long as threads run in order.
__global__ void no_barrier_neighbour(const float* x, float* y) {
  GPU_SHARED(float, s, 64);
  const int t = threadIdx.x;
  s[t] = x[t];
  y[t] = t ? s[t - 1] : 0;
}
// A scatter without atomics, between blocks.
__global__ void plain_scatter(const float* x, float* y) {
  y[threadIdx.x % 8] += x[blockIdx.x * blockDim.x + threadIdx.x];
}
// A float4 load from a row that does not start at 16 bytes.
__global__ void misaligned(const float* x, float* y, int d) {
  const float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x * d);
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
// A barrier in a divergent branch.
__global__ void divergent_barrier(float* y) {
  if (threadIdx.x < 16) {
    y[threadIdx.x] = 1;
    __syncthreads();
  } else {
    y[threadIdx.x] = 2;
  }
}
// A full-mask shuffle in a divergent branch.
__global__ void divergent_shuffle(float* y) {
  float v = threadIdx.x;
  if ((threadIdx.x & 31) < 16) v += __shfl_xor_sync(kFull, v, 1);
  y[threadIdx.x] = v;
}
// A shuffle that reads a lane outside its mask.
__global__ void bad_mask(float* y) {
  float v = threadIdx.x;
  if (threadIdx.x < 8) v = __shfl_sync(0xffu, v, 9);
  y[threadIdx.x] = v;
}
// Some threads leave before the block's barrier.
__global__ void early_exit(const float* x, float* y, int n) {
  GPU_SHARED(float, s, 64);
  const int t = threadIdx.x;
  if (t >= n) return;
  s[t] = x[t];
  __syncthreads();
  y[t] = s[(t + 1) % n];
}
// Reads shared memory that nobody wrote.
__global__ void unwritten_shared(float* y) {
  GPU_SHARED(float, s, 64);
  if (threadIdx.x < 60) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
// The block's scratch is written again while the first sum is still read.
__global__ void reused_scratch(const float* x, float* y) {
  const float a = block_sum<64>(x[threadIdx.x]);
  const float b = block_sum<64>(x[threadIdx.x] * 2);
  if (threadIdx.x == 0) {
    y[0] = a;
    y[1] = b;
  }
}
// Lanes of a warp rely on running in step.
__global__ void warp_in_step(const float* x, float* y) {
  GPU_SHARED(float, s, 32);
  const int t = threadIdx.x;
  s[t] = x[t];
  if (t < 16) s[t] += s[t + 16];
  y[t] = s[t];
}
// 32-bit index arithmetic.
__global__ void index_overflow(const int* id, float* y, int d) {
  const int offset = id[threadIdx.x] * d;
  y[threadIdx.x] = float(offset != 0);
}
// Uses more dynamic shared memory than the launch gives.
__global__ void small_dynamic(float* y, int n) {
  GPU_SHARED_DYN(float, s);
  for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
// The last block adds up partial sums that it reads plainly, with no fence.
__global__ void last_block_unfenced(const float* x, float* partial, unsigned* counter, float* y) {
  GPU_SHARED(bool, last, 1);
  const float a = block_sum<64>(x[blockIdx.x * 64 + threadIdx.x]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = a;
    last[0] = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
    y[0] = sum;
  }
}
// A cluster's block writes into another one that may not have begun.
__global__ void cluster_unsynced(const float* x, float* y) {
  GPU_SHARED(float, s, 64);
  s[threadIdx.x] = 0;
  gpu_cluster_peer(s, 1 - gpu_cluster_rank())[threadIdx.x] = x[threadIdx.x];
  gpu_cluster_sync();
  y[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x];
}
// A cluster's block leaves while the other still reads its shared memory.
__global__ void cluster_early_exit(const float* x, float* y) {
  GPU_SHARED(float, s, 64);
  s[threadIdx.x] = x[threadIdx.x];
  gpu_cluster_sync();
  if (gpu_cluster_rank() != 0) return;
  const float* peer = gpu_cluster_peer(s, 1);
  __syncthreads();
  y[threadIdx.x] = peer[63 - threadIdx.x];
}
// Between a cluster's write and its read there is only the block's barrier.
__global__ void cluster_block_barrier(const float* x, float* y) {
  GPU_SHARED(float, s, 64);
  s[threadIdx.x] = 0;
  gpu_cluster_sync();
  gpu_cluster_peer(s, 1 - gpu_cluster_rank())[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[blockIdx.x * 64 + threadIdx.x] = s[63 - threadIdx.x];
  gpu_cluster_sync();
}
// Blocks walk the tiles in strides, and the guard takes the last one, a part of a tile, for none.
__global__ void lost_tile(const float* x, float* partial, int n, int tile) {
  for (int i = blockIdx.x; i < n / tile; i += gridDim.x) {
    const float a = block_sum<64>(x[i * tile + threadIdx.x]);
    if (threadIdx.x == 0) partial[i] = a;
    __syncthreads();
  }
}
// The flag is up before what it announces is there.
__global__ void early_flag(const float* x, float* partial, unsigned* flags, float* y) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) {
      gpu_store_release(flags, 1u);
      partial[0] = x[0];
    }
    return;
  }
  if (threadIdx.x != 0) return;
  while (gpu_load_acquire(flags) == 0) {
  }
  y[0] = partial[0];
}
// The flag is up afterwards, but nothing else need be seen with it.
__global__ void relaxed_flag(const float* x, float* partial, unsigned* flags, float* y) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) {
      partial[0] = x[0];
      gpu_store_relaxed(flags, 1u);
    }
    return;
  }
  if (threadIdx.x != 0) return;
  while (gpu_load_relaxed(flags) == 0) {
  }
  y[0] = partial[0];
}
// A block waits for a flag that nobody raises.
__global__ void lost_flag(unsigned* flags, float* y) {
  while (gpu_load_acquire(flags + 1) == 0) {
  }
  y[0] = 1;
}
// Right, at the largest block there is: the control, which nothing may complain about.
__global__ void control(const float* x, float* y) {
  const float a = block_sum<1024>(x[threadIdx.x]);
  if (threadIdx.x == 0) y[0] = a;
}

}  // namespace GPU_NS
}  // namespace

int main(int argc, char** argv) {
  std::vector<float> x_(1024), y_(1024, -1), hundred(100, 1), out(100, 0), partial(16, 0);
  std::vector<int> ids(64, 40000000);
  unsigned counter = 0, flags[2] = {};
  for (int i = 0; i < 1024; ++i) x_[i] = float(i % 17) + 1;
  float *x = x_.data(), *y = y_.data();
  gpuStream s = nullptr;
  auto sum = [&](int n) {
    float total = 0;
    for (int i = 0; i < n; ++i) total += x[i];
    return total;
  };
  auto all = [](int n, auto holds) {
    bool ok = true;
    for (int i = 0; i < n; ++i) ok &= holds(i);
    return ok;
  };
  // Each returns whether the result is right.
  const std::map<std::string, std::function<bool()>> cases = {
      {"tail_guard",
       [&] {
         GPU_LAUNCH((tail_guard), 2, 64, 0, s)(hundred.data(), out.data(), 100);
         return true;
       }},
      {"short_shared",
       [&] {
         GPU_LAUNCH((short_shared), 1, 64, 0, s)(x, y);
         return all(64, [&](int i) { return y[i] == x[i]; });
       }},
      {"no_barrier",
       [&] {
         GPU_LAUNCH((no_barrier), 1, 64, 0, s)(x, y);
         return all(64, [&](int i) { return y[i] == x[63 - i]; });
       }},
      {"no_barrier_neighbour",
       [&] {
         GPU_LAUNCH((no_barrier_neighbour), 1, 64, 0, s)(x, y);
         return all(63, [&](int i) { return y[i + 1] == x[i]; });
       }},
      {"plain_scatter",
       [&] {
         for (int i = 0; i < 8; ++i) y[i] = 0;
         GPU_LAUNCH((plain_scatter), 4, 64, 0, s)(x, y);
         float total = 0;
         for (int i = 0; i < 8; ++i) total += y[i];
         return total == sum(256);
       }},
      {"misaligned",
       [&] {
         GPU_LAUNCH((misaligned), 1, 32, 0, s)(x, y, 6);
         return true;
       }},
      {"divergent_barrier",
       [&] {
         GPU_LAUNCH((divergent_barrier), 1, 64, 0, s)(y);
         return true;
       }},
      {"divergent_shuffle",
       [&] {
         GPU_LAUNCH((divergent_shuffle), 1, 64, 0, s)(y);
         return true;
       }},
      {"bad_mask",
       [&] {
         GPU_LAUNCH((bad_mask), 1, 32, 0, s)(y);
         return true;
       }},
      {"early_exit",
       [&] {
         GPU_LAUNCH((early_exit), 1, 64, 0, s)(x, y, 50);
         return all(50, [&](int i) { return y[i] == x[(i + 1) % 50]; });
       }},
      {"unwritten_shared",
       [&] {
         GPU_LAUNCH((unwritten_shared), 1, 64, 0, s)(y);
         return all(64, [&](int i) { return !std::isnan(y[i]); });
       }},
      {"reused_scratch",
       [&] {
         GPU_LAUNCH((reused_scratch), 1, 64, 0, s)(x, y);
         return y[0] == sum(64) && y[1] == 2 * sum(64);
       }},
      {"warp_in_step",
       [&] {
         GPU_LAUNCH((warp_in_step), 1, 32, 0, s)(x, y);
         return all(16, [&](int i) { return y[i] == x[i] + x[i + 16]; });
       }},
      {"index_overflow",
       [&] {
         GPU_LAUNCH((index_overflow), 1, 64, 0, s)(ids.data(), y, 64);
         return true;
       }},
      {"small_dynamic",
       [&] {
         GPU_LAUNCH((small_dynamic), 1, 64, 70 * 4, s)(y, 72);
         return true;
       }},
      {"large_dynamic",  // the launcher does not ask for more than 48 KiB
       [&] {
         GPU_LAUNCH((small_dynamic), 1, 64, 50 * 1024, s)(y, 64);
         return true;
       }},
      {"last_block_unfenced",
       [&] {
         GPU_LAUNCH((last_block_unfenced), 16, 64, 0, s)(x, partial.data(), &counter, y);
         return y[0] == sum(1024);
       }},
      {"cluster_unsynced",
       [&] {
         GPU_LAUNCH_CLUSTER((cluster_unsynced), 2, 64, 2, 0, s)(x, y);
         return all(128, [&](int i) { return y[i] == x[i % 64]; });
       }},
      {"cluster_early_exit",
       [&] {
         GPU_LAUNCH_CLUSTER((cluster_early_exit), 2, 64, 2, 0, s)(x, y);
         return all(64, [&](int i) { return y[i] == x[63 - i]; });
       }},
      {"cluster_block_barrier",
       [&] {
         GPU_LAUNCH_CLUSTER((cluster_block_barrier), 2, 64, 2, 0, s)(x, y);
         return all(128, [&](int i) { return y[i] == x[63 - i % 64]; });
       }},
      {"lost_tile",
       [&] {
         GPU_LAUNCH((lost_tile), 2, 64, 0, s)(x, partial.data(), 1000, 64);
         float total = 0;
         for (int i = 0; i < 16; ++i) total += partial[i];
         return total == sum(1000);
       }},
      {"early_flag",
       [&] {
         GPU_LAUNCH((early_flag), 2, 32, 0, s)(x, partial.data(), flags, y);
         return y[0] == x[0];
       }},
      {"relaxed_flag",
       [&] {
         GPU_LAUNCH((relaxed_flag), 2, 32, 0, s)(x, partial.data(), flags, y);
         return y[0] == x[0];
       }},
      {"lost_flag",
       [&] {
         GPU_LAUNCH((lost_flag), 1, 32, 0, s)(flags, y);
         return true;
       }},
      {"control",
       [&] {
         GPU_LAUNCH((control), 1, 1024, 0, s)(x, y);
         return y[0] == sum(1024);
       }},
  };
  const auto found = cases.find(argc == 2 ? argv[1] : "");
  if (found == cases.end()) {
    for (const auto& c : cases) printf("%s\n", c.first.c_str());
    return argc == 2 ? 2 : 0;
  }
  try {
    if (found->second()) return 0;
  } catch (const std::exception& e) {
    printf("%s\n", e.what());
    return 3;
  }
  printf("wrong result\n");
  return 4;
}
