// How the libraries raise an error: as a std::runtime_error whose text is put together without streams.
//
// Where g++ links the C++ library statically, a stream has locale facets of that second copy, whose ids it shares with
// the libstdc++.so.6 that torch has loaded. A number written to such a stream cuts the message off, or ends the
// process. Torch's own check macros write __LINE__ to a stream. So they are replaced here, for torch's headers too:
// include this file before any of them (torch_stable.h does).
#pragma once

#if defined(STD_TORCH_CHECK) || defined(TORCH_ERROR_CODE_CHECK)
#error "include errors.h before torch's headers"
#endif

#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace zx {

inline void append(std::string& text, const char* part) { text += part; }
inline void append(std::string& text, std::string_view part) { text += part; }
template <class Number, std::enable_if_t<std::is_arithmetic_v<Number> || std::is_enum_v<Number>, int> = 0>
void append(std::string& text, Number number) {
  char digits[32];
  if constexpr (std::is_floating_point_v<Number>)
    snprintf(digits, sizeof digits, "%g", static_cast<double>(number));
  else if constexpr (std::is_unsigned_v<Number>)
    snprintf(digits, sizeof digits, "%llu", static_cast<unsigned long long>(number));
  else
    snprintf(digits, sizeof digits, "%lld", static_cast<long long>(number));
  text += digits;
}

template <class... Parts>
[[noreturn]] __attribute__((cold, noinline)) void raise(const Parts&... parts) {
  std::string text;
  (append(text, parts), ...);
  throw std::runtime_error(text);
}

}  // namespace zx

// Blocks as torch's are: its headers put no semicolon after some of them.
#undef STD_TORCH_CHECK
#define STD_TORCH_CHECK(condition, ...)                                                                               \
  {                                                                                                                   \
    if (__builtin_expect(!(condition), 0)) ::zx::raise(__func__, ", ", __FILE__, ":", __LINE__, ", ", ##__VA_ARGS__); \
  }
#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)                                             \
  {                                                                              \
    if (__builtin_expect((call) != TORCH_SUCCESS, 0))                            \
      ::zx::raise(#call, " API call failed at ", __FILE__, ", line ", __LINE__); \
  }

// Python validates what users pass, with the right exception types; these checks guard the ops themselves.
#define ZX_CHECK(condition, ...)                                                      \
  do {                                                                                \
    if (__builtin_expect(!(condition), 0)) ::zx::raise("zerosum_ext: ", __VA_ARGS__); \
  } while (false)
