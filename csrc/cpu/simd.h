// One kernel body, three instruction sets, chosen at run time.
//
// A kernel is a struct with a static always_inline `run`. simd<Kernel>(args...) calls it inside a function
// compiled for AVX-512, AVX2 + FMA or the baseline of the build, whichever the processor has. A `run` that is a
// template of one int gets the bytes of that instruction set's vector registers.
// ZEROSUM_EXT_ISA=avx512 | avx2 | baseline forces one that the processor can run; tests and benchmarks use
// it.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/macros.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define ZX_X86 1
#else
#define ZX_X86 0
#endif

namespace zx::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

inline Isa detect_isa() {
  Isa best = Isa::kBaseline;
#if ZX_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    best = Isa::kAvx2;
  if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = Isa::kAvx512;
#endif
  if (const char* forced = std::getenv("ZEROSUM_EXT_ISA")) {
    if (std::strcmp(forced, "baseline") == 0) return Isa::kBaseline;
    if (std::strcmp(forced, "avx2") == 0 && best == Isa::kAvx512) return Isa::kAvx2;
  }
  return best;
}

// Read once per process.
inline Isa isa() {
  static const Isa chosen = detect_isa();
  return chosen;
}

// Whether AVX-512 is in use and has dot products of integers.
inline bool has_vnni() {
#if ZX_X86
  return isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

inline const char* isa_name() {
  switch (isa()) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

// Whether a kernel's `run` wants to know the bytes of a vector register.
template <class Kernel, class = void>
struct TakesWidth : std::false_type {};
template <class Kernel>
struct TakesWidth<Kernel, std::void_t<decltype(&Kernel::template run<16>)>> : std::true_type {};

template <class Kernel, int kBytes, class... Args>
ZX_HD auto run_in(const Args&... args) {
  if constexpr (TakesWidth<Kernel>::value)
    return Kernel::template run<kBytes>(args...);
  else
    return Kernel::run(args...);
}

#if ZX_X86
// PREFETCHW does nothing on the few of these processors that lack it.
#define ZX_TARGET_AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512,prfchw")))
#define ZX_TARGET_AVX2 __attribute__((target("arch=x86-64-v3,prfchw")))
template <class Kernel, class... Args>
ZX_TARGET_AVX512 __attribute__((noinline)) auto run_avx512(Args... args) {
  return run_in<Kernel, 64>(args...);
}
template <class Kernel, class... Args>
ZX_TARGET_AVX2 __attribute__((noinline)) auto run_avx2(Args... args) {
  return run_in<Kernel, 32>(args...);
}
#endif
template <class Kernel, class... Args>
__attribute__((noinline)) auto run_baseline(Args... args) {
  return run_in<Kernel, 16>(args...);
}

template <class Kernel, class... Args>
inline auto simd(Args... args) {
#if ZX_X86
  switch (isa()) {
    case Isa::kAvx512:
      return run_avx512<Kernel>(args...);
    case Isa::kAvx2:
      return run_avx2<Kernel>(args...);
    default:
      break;
  }
#endif
  return run_baseline<Kernel>(args...);
}

}  // namespace zx::cpu
