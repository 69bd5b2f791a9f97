// Philox (common/philox.h) for many counters at a time, in vectors of numbers of 64 bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/philox.h"
#include "cpu/intrinsics.h"

#if defined(__GNUC__) && !defined(__clang__)
// (Instructions that return a vector are no functions: they have no ABI to warn of.)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace zx::cpu {

#if ZX_X86 && !defined(__clang__)
// (Of one width each: GCC forgets the width of a type that depends on a template's where it is cast to.)
typedef int Ints16 __attribute__((vector_size(16)));
typedef int Ints32 __attribute__((vector_size(32)));
typedef int Ints64 __attribute__((vector_size(64)));
typedef long long Longs64 __attribute__((vector_size(64)));
#endif

// kBytes: of the instruction set that the code is compiled for (cpu/simd.h).
template <int kBytes>
struct Longs {
  typedef uint64_t Vector __attribute__((vector_size(kBytes)));
  static constexpr int kWidth = kBytes / static_cast<int>(sizeof(uint64_t));
  static constexpr uint64_t kLow = 0xffffffffu;

  // (By reference: a function that returns such a vector has an ABI of its own.)
  ZX_HD static void load(Vector& v, const uint64_t* x) { std::memcpy(&v, x, sizeof(Vector)); }
  ZX_HD static void store(uint64_t* out, const Vector& v) { std::memcpy(out, &v, sizeof(Vector)); }

  // The products of the low halves: one instruction. (From a product of masked numbers GCC 12 makes one of 64 bits, in
  // three multiplications, or of shifts and additions where a factor is a constant.)
  ZX_HD static void multiply(Vector& out, const Vector& a, const Vector& b) {
#if ZX_X86 && !defined(__clang__)
    if constexpr (kBytes == 64)
      out = (Vector)__builtin_ia32_pmuludq512_mask((Ints64)a, (Ints64)b, (Longs64){}, static_cast<unsigned char>(-1));
    else if constexpr (kBytes == 32)
      out = (Vector)__builtin_ia32_pmuludq256((Ints32)a, (Ints32)b);
    else
      out = (Vector)__builtin_ia32_pmuludq128((Ints16)a, (Ints16)b);
#else
    out = (a & kLow) * (b & kLow);
#endif
  }

  // mulhi64 of draws and a bound below 2^32.
  ZX_HD static void multiply_high(Vector& out, const Vector& draw, const Vector& bound) {
    Vector low, high;
    multiply(low, draw, bound);
    multiply(high, draw >> 32, bound);
    out = (high + (low >> 32)) >> 32;
  }
};

// philox4x32 of counters, in place, in the low halves of numbers whose high halves are of no account. Rows of draws are
// c0 | c1 << 32 and c2 | c3 << 32.
template <int kBytes>
ZX_HD void philox_vectors(typename Longs<kBytes>::Vector& c0, typename Longs<kBytes>::Vector& c1,
                          typename Longs<kBytes>::Vector& c2, typename Longs<kBytes>::Vector& c3, uint32_t k0,
                          uint32_t k1) {
  using Vector = typename Longs<kBytes>::Vector;
  const Vector multiplier0 = Vector{} + kPhiloxMultiplier0, multiplier1 = Vector{} + kPhiloxMultiplier1;
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    Vector p0, p1;
    Longs<kBytes>::multiply(p0, c0, multiplier0);
    Longs<kBytes>::multiply(p1, c2, multiplier1);
    c0 = (p1 >> 32) ^ c1 ^ static_cast<uint64_t>(k0);
    c2 = (p0 >> 32) ^ c3 ^ static_cast<uint64_t>(k1);
    c1 = p1;
    c3 = p0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}

// The draws of one Philox block for each counter (sample[i], epoch, purpose[i]), i < n; of counters with one sample or
// one purpose the step is 0. Arrays are read and written up to the end of the last vector.
template <int kBytes>
ZX_HD void philox_draws(SampleKey key, const uint64_t* sample, int sample_step, const uint64_t* purpose,
                        int purpose_step, int n, uint64_t* first, uint64_t* second) {
  using L = Longs<kBytes>;
  using Vector = typename L::Vector;
  for (int i = 0; i < n; i += L::kWidth) {
    Vector c0 = Vector{} + sample[0], c2 = Vector{} + static_cast<uint64_t>(key.epoch), c3 = Vector{} + purpose[0];
    if (sample_step != 0) L::load(c0, sample + i);
    if (purpose_step != 0) L::load(c3, purpose + i);
    Vector c1 = c0 >> 32;
    philox_vectors<kBytes>(c0, c1, c2, c3, key.seed_lo, key.seed_hi);
    L::store(first + i, (c0 & L::kLow) | c1 << 32);
    L::store(second + i, (c2 & L::kLow) | c3 << 32);
  }
}

}  // namespace zx::cpu

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
