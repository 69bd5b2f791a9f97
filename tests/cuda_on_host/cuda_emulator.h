// Runs CUDA C++ kernel source on the host, one fiber per CUDA thread. csrc/cuda/gpu.h includes this file
// wherever the compiler is not nvcc.
//
// Everything here only reads the emulator's state, so it may be compiled with any -fsanitize flag. The
// scheduler is cuda_emulator.cpp, which is compiled without.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

// ------------------------------------------------------------------------------------------------ vector
// types

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
// The alignments are CUDA's: UBSan reports a vector load from an address that the hardware would refuse.
#define CUEMU_VECTOR(T, N)                                                   \
  struct alignas(2 * sizeof(T)) N##2 { T x, y; };                            \
  struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; }; \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                       \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUEMU_VECTOR(float, float)
CUEMU_VECTOR(double, double)
CUEMU_VECTOR(int, int)
CUEMU_VECTOR(unsigned, uint)
CUEMU_VECTOR(long long, longlong)
CUEMU_VECTOR(unsigned long long, ulonglong)

// ------------------------------------------------------------------------------------------------ the runner

namespace cuemu {

enum Op : int {
  SHFL_IDX,
  SHFL_UP,
  SHFL_DOWN,
  SHFL_XOR,
  BALLOT,
  ANY,
  ALL,
  MATCH_ANY,
  SYNCWARP,
  RED_ADD,
  RED_MIN,
  RED_MAX,
  RED_AND,
  RED_OR,
  RED_XOR
};
enum BarrierOp : int { BAR_SYNC, BAR_COUNT, BAR_AND, BAR_OR };

// Where in the kernel's source something happened.
struct Site {
  const char* file;
  int line;
};

// What a kernel may see of the thread it runs in. Written by cuda_emulator.cpp alone.
struct Self {
  uint3 tid, bid;
  dim3 bdim, gdim;
  int lane;
  unsigned cluster_rank, cluster_size;  // of the block in its cluster
};
extern thread_local Self* self;

uint64_t collective(Op op, unsigned mask, uint64_t value, int arg, int width, Site where);
int barrier(BarrierOp op, int pred, Site where);
bool maybe_yield();  // a preemption point, at each atomic; true after the thread's first fence
void fence();
void spin(const void* waits_for, Site where);            // another thread runs; for loops that wait for a value
void cluster_barrier(Site where);                        // of all threads of a cluster of blocks
void* cluster_peer(void* p, unsigned rank, Site where);  // the same place in the shared memory of another block
void* shared_static(const void* key, size_t bytes);      // one per block and declaration
void* shared_dynamic();
[[noreturn]] void fail(const char* what, Site where);  // ends the launch with an exception
int64_t threads_run();                                 // CUDA threads run so far, over all launches

// What would be a node of a CUDA graph: a launch, or a memset (then kernel is "memset").
struct Node {
  const char* kernel;
  dim3 grid, block;
  unsigned cluster;
  size_t shared;
};
// The nodes since the last call of forget_nodes. Only this many are kept, all are counted.
constexpr size_t kNodesKept = 4096;
struct Nodes {
  int64_t count;
  const Node* first;  // min(count, kNodesKept) of them
};
Nodes nodes();
void forget_nodes();
void fill(void* memory, int byte, size_t bytes);  // cudaMemsetAsync

// What the device is said to be: CUEMU_SMS multiprocessors (4), with clusters unless CUEMU_CLUSTERS is 0.
int multiprocessors();
bool has_clusters();

// What cudaFuncSetAttribute does: a kernel may have more than 48 KiB of dynamic shared memory only after
// this.
void allow_shared(const char* kernel, size_t bytes);
void launch_impl(dim3 grid, dim3 block, unsigned cluster, size_t smem, void (*fn)(void*), void* arg,
                 const char* kernel);
// cluster: so many blocks, neighbours along x, are in flight together and see each other's shared memory.
template <class F>
void launch(dim3 grid, dim3 block, unsigned cluster, size_t smem, const char* kernel, F f) {
  launch_impl(grid, block, cluster, smem, [](void* p) { (*static_cast<F*>(p))(); }, &f, kernel);
}

template <class T>
inline uint64_t bits(T v) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t r = 0;
  std::memcpy(&r, &v, sizeof v);
  return r;
}
template <class T>
inline T unbits(uint64_t r) {
  T v;
  std::memcpy(&v, &r, sizeof v);
  return v;
}
template <class T>
struct identity {
  using type = T;
};
template <class T>
using identity_t = typename identity<T>::type;  // keeps a parameter out of template deduction

}  // namespace cuemu

// The line of the call, as a default argument: what the emulator's messages name.
#define CUEMU_AT const char *f_ = __builtin_FILE(), int l_ = __builtin_LINE()
#define CUEMU_SITE \
  ::cuemu::Site { f_, l_ }

// ------------------------------------------------------------------------------------------------ language

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define threadIdx (::cuemu::self->tid)
#define blockIdx (::cuemu::self->bid)
#define blockDim (::cuemu::self->bdim)
#define gridDim (::cuemu::self->gdim)
#define warpSize 32
// __shared__ has no equivalent that gives each block fresh storage; these stand in for it. The lambda's
// static is a distinct address for each place in the source.
#define GPU_SHARED(T, name, n)                        \
  T(&name)                                            \
  [n] = *static_cast<T(*)[n]>(::cuemu::shared_static( \
      []() -> const void* {                           \
        static char key;                              \
        return &key;                                  \
      }(),                                            \
      sizeof(T[n])))
#define GPU_SHARED_DYN(T, name) T* name = static_cast<T*>(::cuemu::shared_dynamic())

// ------------------------------------------------------------------------------------------------ barriers,
// fences

inline void __syncthreads(CUEMU_AT) { ::cuemu::barrier(::cuemu::BAR_SYNC, 0, CUEMU_SITE); }
inline int __syncthreads_count(int p, CUEMU_AT) { return ::cuemu::barrier(::cuemu::BAR_COUNT, p, CUEMU_SITE); }
inline int __syncthreads_and(int p, CUEMU_AT) { return ::cuemu::barrier(::cuemu::BAR_AND, p, CUEMU_SITE); }
inline int __syncthreads_or(int p, CUEMU_AT) { return ::cuemu::barrier(::cuemu::BAR_OR, p, CUEMU_SITE); }
inline void __syncwarp(unsigned m = 0xffffffffu, CUEMU_AT) {
  ::cuemu::collective(::cuemu::SYNCWARP, m, 0, 0, 32, CUEMU_SITE);
}
// From here on the thread's atomics order its plain accesses (what a fence followed by an atomic does).
inline void __threadfence() { ::cuemu::fence(); }
inline void __threadfence_block() { ::cuemu::fence(); }

inline void __nanosleep(unsigned, CUEMU_AT) { ::cuemu::spin(nullptr, CUEMU_SITE); }

// What csrc/cuda/gpu.h makes of clusters, flags and the device's properties.
inline unsigned gpu_cluster_rank() { return ::cuemu::self->cluster_rank; }
inline unsigned gpu_cluster_size() { return ::cuemu::self->cluster_size; }
inline void gpu_cluster_sync(CUEMU_AT) { ::cuemu::cluster_barrier(CUEMU_SITE); }
template <class T>
inline T* gpu_cluster_peer(T* p, unsigned rank, CUEMU_AT) {
  return static_cast<T*>(::cuemu::cluster_peer(p, rank, CUEMU_SITE));
}
// A load that sees all that was written before the store it reads from. Another thread runs first: what waits for a
// value, waits for ever otherwise.
template <class T>
inline T gpu_load_acquire(const T* p, CUEMU_AT) {
  ::cuemu::spin(p, CUEMU_SITE);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
template <class T>
inline void gpu_store_release(T* p, ::cuemu::identity_t<T> v) {
  ::cuemu::maybe_yield();
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
// The same of a word alone, with which nothing else is seen: ThreadSanitizer finds who relies on more.
template <class T>
inline T gpu_load_relaxed(const T* p, CUEMU_AT) {
  ::cuemu::spin(p, CUEMU_SITE);
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
template <class T>
inline void gpu_store_relaxed(T* p, ::cuemu::identity_t<T> v) {
  ::cuemu::maybe_yield();
  __atomic_store_n(p, v, __ATOMIC_RELAXED);
}

// ------------------------------------------------------------------------------------------------ warp
// collectives

#define CUEMU_SHUFFLE(NAME, OP, ARG)                                                                             \
  template <class T>                                                                                             \
  inline T NAME(unsigned m, T v, ARG a, int width = 32, CUEMU_AT) {                                              \
    return ::cuemu::unbits<T>(::cuemu::collective(::cuemu::OP, m, ::cuemu::bits(v), int(a), width, CUEMU_SITE)); \
  }
CUEMU_SHUFFLE(__shfl_sync, SHFL_IDX, int)
CUEMU_SHUFFLE(__shfl_up_sync, SHFL_UP, unsigned)
CUEMU_SHUFFLE(__shfl_down_sync, SHFL_DOWN, unsigned)
CUEMU_SHUFFLE(__shfl_xor_sync, SHFL_XOR, int)
#define CUEMU_VOTE(NAME, OP, R)                                               \
  inline R NAME(unsigned m, int p, CUEMU_AT) {                                \
    return R(::cuemu::collective(::cuemu::OP, m, p != 0, 0, 32, CUEMU_SITE)); \
  }
CUEMU_VOTE(__ballot_sync, BALLOT, unsigned)
CUEMU_VOTE(__any_sync, ANY, int)
CUEMU_VOTE(__all_sync, ALL, int)
template <class T>
inline unsigned __match_any_sync(unsigned m, T v, CUEMU_AT) {
  return unsigned(::cuemu::collective(::cuemu::MATCH_ANY, m, ::cuemu::bits(v), 0, 32, CUEMU_SITE));
}
#define CUEMU_REDUCE(NAME, OP)                                                  \
  inline unsigned NAME(unsigned m, unsigned v, CUEMU_AT) {                      \
    return unsigned(::cuemu::collective(::cuemu::OP, m, v, 0, 32, CUEMU_SITE)); \
  }
CUEMU_REDUCE(__reduce_add_sync, RED_ADD)
CUEMU_REDUCE(__reduce_min_sync, RED_MIN)
CUEMU_REDUCE(__reduce_max_sync, RED_MAX)
CUEMU_REDUCE(__reduce_and_sync, RED_AND)
CUEMU_REDUCE(__reduce_or_sync, RED_OR)
CUEMU_REDUCE(__reduce_xor_sync, RED_XOR)
// The least the hardware promises: no other lane is known to be with this one.
inline unsigned __activemask() { return 1u << ::cuemu::self->lane; }

// ------------------------------------------------------------------------------------------------ atomics

namespace cuemu {
// A relaxed read-modify-write, as CUDA's atomics are; ordering only after a fence.
template <class T, class F>
inline T rmw(T* p, F f) {
  const bool fenced = maybe_yield();
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  Word* word = reinterpret_cast<Word*>(p);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    T before;
    std::memcpy(&before, &old, sizeof before);
    const T after = f(before);
    Word desired;
    std::memcpy(&desired, &after, sizeof after);
    const bool done = fenced
                          ? __atomic_compare_exchange_n(word, &old, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
                          : __atomic_compare_exchange_n(word, &old, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    if (done) return before;
  }
}
}  // namespace cuemu
#define CUEMU_ATOMIC(NAME, EXPRESSION)                            \
  template <class T>                                              \
  inline T NAME(T* p, ::cuemu::identity_t<T> v) {                 \
    return ::cuemu::rmw(p, [=](T old) { return T(EXPRESSION); }); \
  }
CUEMU_ATOMIC(atomicAdd, old + v)
CUEMU_ATOMIC(atomicSub, old - v)
CUEMU_ATOMIC(atomicMax, old < v ? v : old)
CUEMU_ATOMIC(atomicMin, v < old ? v : old)
CUEMU_ATOMIC(atomicOr, old | v)
CUEMU_ATOMIC(atomicAnd, old& v)
CUEMU_ATOMIC(atomicXor, old ^ v)
CUEMU_ATOMIC(atomicExch, ((void)old, v))
template <class T>
inline T atomicCAS(T* p, ::cuemu::identity_t<T> compare, ::cuemu::identity_t<T> v) {
  return ::cuemu::rmw(p, [=](T old) { return old == compare ? T(v) : old; });
}
// sm_90 and later: four independent float atomics in one instruction, at an address aligned to 16 bytes.
inline float4 atomicAdd(float4* p, float4 v) {
  if (reinterpret_cast<uintptr_t>(p) % 16) ::cuemu::fail("atomicAdd(float4*) at a misaligned address", {});
  float* q = &p->x;
  return {atomicAdd(q, v.x), atomicAdd(q + 1, v.y), atomicAdd(q + 2, v.z), atomicAdd(q + 3, v.w)};
}

// ------------------------------------------------------------------------------------------------ intrinsics

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, ::cuemu::identity_t<T> v) {
  *p = v;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64); }
inline int __float_as_int(float v) { return ::cuemu::unbits<int>(::cuemu::bits(v)); }
inline float __int_as_float(int v) { return ::cuemu::unbits<float>(::cuemu::bits(v)); }
inline unsigned __float_as_uint(float v) { return ::cuemu::unbits<unsigned>(::cuemu::bits(v)); }
inline float __uint_as_float(unsigned v) { return ::cuemu::unbits<float>(::cuemu::bits(v)); }
// The approximate functions err on the host as PTX allows them to on the device (ex2.approx.ftz, rcp.approx.ftz).
// CUEMU_ULP says how: 0 correctly rounded; 1 (or -1) by the largest error up (or down); 2 by a different one for each
// argument.
#define ZX_DEVICE_FUNCTIONS  // csrc/common/math.h takes them
namespace cuemu {
float perturbed(float exact, double largest_ulp, float argument);
}
inline float gpu_flushed(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }
inline float gpu_exp2(float x) {
  // A relative error of 2^-22 is between 2 and 4 units in the last place.
  const float exact = float(std::exp2(double(x)));
  int exponent;
  const double mantissa = std::frexp(exact, &exponent);
  return gpu_flushed(::cuemu::perturbed(exact, 4 * mantissa, x));
}
inline float gpu_reciprocal(float x) {
  return gpu_flushed(::cuemu::perturbed(float(1 / double(gpu_flushed(x))), 1, x));
}
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
template <class T>
inline T min(T a, ::cuemu::identity_t<T> b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, ::cuemu::identity_t<T> b) {
  return a < b ? b : a;
}

// ------------------------------------------------------------------------------------------------ 16-bit
// floats

// Storage types with CUDA's names and its conversions (round to nearest even). Arithmetic is the kernels' own
// business: they convert to float first.
struct __half {
  uint16_t x;
};
struct __nv_bfloat16 {
  uint16_t x;
};
inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float(unsigned(h.x) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const unsigned u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // NaN, as the device makes it
  return {uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
inline float __half2float(__half h) {
  const unsigned sign = unsigned(h.x & 0x8000) << 16, rest = h.x & 0x7fff;
  if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ff) << 13);  // infinite or NaN
  // 2^112 moves the exponent's bias from 15 to 127, subnormals included; the product is exact.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}
inline __half __float2half_rn(float f) {
  const unsigned u = __float_as_uint(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};                    // NaN, as the device makes it
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 and beyond round to infinity
  if (magnitude < 0x38800000u) {                                   // below 2^-14: a subnormal half
    const float scaled = __uint_as_float(magnitude) * 0x1p24f;     // exact, in units of the last place
    return {uint16_t(sign | unsigned(std::nearbyint(scaled)))};
  }
  const unsigned rebased = magnitude - (112u << 23);
  return {uint16_t(sign | (rebased + 0xfffu + (rebased >> 13 & 1)) >> 13)};
}
