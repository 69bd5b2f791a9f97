// Elementary functions that losses are made of: right for every finite argument, and free of branches so that
// a loop over them becomes SIMD code.
//
// float: polynomials after range reduction, about 1 ulp (tests/test_losses.py holds them to 1e-6 over
// 0..1e4), the same on CPU and GPU, so that what is tested on one holds on the other but for fused multiply-adds.
// double: the C library, or CUDA's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace zx {

// x <= 0 (NaN stays NaN) as k * ln 2 + r with |r| <= ln(2)/2, and 2^k. Below -87 exp(x) is subnormal and
// counted as 2^-126, about 1e-38.
struct ExpParts {
  float scale, r;
};
ZX_HD ExpParts exp_parts(float x) {
  // max(x, -87) in integers, which compilers leave as it is: from a comparison of floats GCC makes a second computation
  // for the constant. As unsigned numbers negative floats grow with their size. NaN, the largest of them, is turned
  // round to below all others before the minimum is taken.
  const uint32_t above_infinity = 0x7fffffu, limit = 0xc2ae0000u + above_infinity;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += above_infinity;
  bits = (bits < limit ? bits : limit) - above_infinity;
  std::memcpy(&x, &bits, sizeof bits);
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits of the sum, from where a
  // shift puts it into the exponent of 2^k.
  const float magic = 12582912.0f;
  const float shifted = x * 1.44269504088896341f + magic;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127u << 23);
  ExpParts out;
  std::memcpy(&out.scale, &bits, sizeof bits);
  const float k = shifted - magic;
  out.r = (x - k * 0.693145751953125f) - k * 1.42860682030941723e-6f;
  return out;
}

// expm1 on [-ln(2)/2, ln(2)/2] as r + r^2 q(r), q the polynomial with the least largest relative error, 1.7e-8.
ZX_HD float expm1_reduced(float r) {
  float q = 1.388251644e-3f;
  q = q * r + 8.366520623e-3f;
  q = q * r + 4.166719992e-2f;
  q = q * r + 1.666654362e-1f;
  q = q * r + 4.999999815e-1f;
  return (q * r) * r + r;
}

// exp(x) - 1 for x <= 0, with full relative precision near 0.
ZX_HD float expm1_nonpositive(float x) {
  const ExpParts e = exp_parts(x);
  return e.scale * expm1_reduced(e.r) + (e.scale - 1.0f);
}

// exp(x) for x <= 0; results below 2^-125 become about 1e-38, never 0 and never negative.
ZX_HD float exp_nonpositive(float x) {
  const ExpParts e = exp_parts(x);
  return e.scale * expm1_reduced(e.r) + e.scale;
}

// log(1 + x) for x in [0, 1] as x + x^2 q(x), q the polynomial with the least largest relative error, 3.3e-8. (A
// division, as in 2 atanh(x / (2 + x)), costs more than the four terms it saves.)
ZX_HD float log1p_unit(float x) {
  float q = 5.36484271e-3f;
  q = q * x - 3.00658680e-2f;
  q = q * x + 7.92046636e-2f;
  q = q * x - 1.37538135e-1f;
  q = q * x + 1.91536605e-1f;
  q = q * x - 2.48571649e-1f;
  q = q * x + 3.33213240e-1f;
  q = q * x - 4.99996483e-1f;
  return x + (x * x) * q;
}

// log(1 - x / 2) for x in [0, 1] as -x / 2 - x^2 q(x), likewise to 2.4e-8.
ZX_HD float log1m_half(float x) {
  float q = 2.76279123e-3f;
  q = q * x - 6.40465785e-3f;
  q = q * x + 9.44309495e-3f;
  q = q * x - 2.82739406e-3f;
  q = q * x + 8.24034866e-3f;
  q = q * x + 1.52301611e-2f;
  q = q * x + 4.17040139e-2f;
  q = q * x + 1.24998808e-1f;
  return -0.5f * x - (x * x) * q;
}

ZX_HD double expm1_nonpositive(double x) { return ::expm1(x); }
ZX_HD double exp_nonpositive(double x) { return ::exp(x); }
ZX_HD double log1p_unit(double x) { return ::log1p(x); }
ZX_HD double log1m_half(double x) { return ::log1p(-0.5 * x); }

// log(x) for x >= 1 (infinity and NaN stay what they are): k ln 2 + log(m) with x = 2^k m, 1 <= m < 2. Neither term is
// negative, so that nothing cancels.
ZX_HD float log_(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const float k = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  bits = (bits & 0x7fffffu) | 0x3f800000u;
  float m;
  std::memcpy(&m, &bits, sizeof m);
  const float value = k * 0.693147180559945309f + log1p_unit(m - 1.0f);
  return x <= 3.402823466e38f ? value : x;
}
ZX_HD double log_(double x) { return ::log(x); }

// One bit operation, where x < 0 ? -x : x is a comparison and two more.
ZX_HD float abs_(float x) { return ::fabsf(x); }
ZX_HD double abs_(double x) { return ::fabs(x); }

ZX_HD float sqrt_(float x) { return ::sqrtf(x); }
ZX_HD double sqrt_(double x) { return ::sqrt(x); }

ZX_HD float copysign_(float x, float sign) { return ::copysignf(x, sign); }
ZX_HD double copysign_(double x, double sign) { return ::copysign(x, sign); }

// A value and its derivative.
template <class T>
struct Dual {
  T value, slope;
};

// What the device has faster. e^x for x <= 0 as 2^(x log2 e): the device's 2^y errs by 2^-22 at most, the rounded
// product by as much as |x| / 2^24, so that e^x is right within 2.4e-7; below 2^-126 it is 0. A quotient as x (1 / y),
// whose second factor is within 1 unit in the last place (PTX ISA, ex2.approx.ftz and rcp.approx.ftz). On the CPU both
// are what they are elsewhere here. tests/test_cuda_pair_loss.py holds losses to their bound with the largest errors
// that the device may make.
#if defined(__CUDA_ARCH__) || defined(ZX_DEVICE_FUNCTIONS)
#define ZX_ON_DEVICE
ZX_HD float quick_exp(float x) { return gpu_exp2(x * 1.44269504088896341f); }
ZX_HD float quick_quotient(float x, float y) { return x * gpu_reciprocal(y); }
#else
ZX_HD float quick_exp(float x) { return exp_nonpositive(x); }
ZX_HD float quick_quotient(float x, float y) { return x / y; }
#endif
ZX_HD double quick_exp(double x) { return exp_nonpositive(x); }
ZX_HD double quick_quotient(double x, double y) { return x / y; }

// sp(x) = log(1 + e^x) = max(x, 0) + log1p(e^-|x|) and sp'(x) = s(x).
template <class T>
ZX_HD Dual<T> softplus(T x) {
  const T t = quick_exp(-abs_(x));
  const T numerator = x < T(0) ? t : T(1);
  return {(x > T(0) ? x : T(0)) + log1p_unit(t), quick_quotient(numerator, T(1) + t)};
}

// sp(x), sp(-x), s(x) and s(-x) from one exponential and one logarithm.
template <class T>
struct Logistic {
  T sp, sp_minus, s, s_minus;
};
template <class T>
ZX_HD Logistic<T> logistic(T x) {
  const T t = exp_nonpositive(-abs_(x));
  const T l = log1p_unit(t), r = quick_quotient(T(1), T(1) + t), q = t * r;
  return {(x > T(0) ? x : T(0)) + l, (x < T(0) ? -x : T(0)) + l, x < T(0) ? q : r, x < T(0) ? r : q};
}

// rho(x) = -log(1 - tanh|x|) = 2|x| + log1p(expm1(-2|x|)/2) and rho'(x) = 2 s(2|x|) sign(x), 0 at 0 [RCS22
// eq. 7].
template <class T>
ZX_HD Dual<T> rho(T x) {
  const T y = abs_(x);
  const T e = expm1_nonpositive(T(-2) * y);
  const T slope = quick_quotient(T(2), T(2) + e);
#ifdef ZX_ON_DEVICE  // the same number in fewer instructions
  return {T(2) * y + log1m_half(-e), x == T(0) ? x : copysign_(slope, x)};
#else
  return {T(2) * y + log1m_half(-e), x > T(0) ? slope : (x < T(0) ? -slope : x * T(0))};
#endif
}

}  // namespace zx
