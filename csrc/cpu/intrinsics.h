// The intrinsics of x86, where there are any.
#pragma once

#include "cpu/simd.h"

#if ZX_X86
// (GCC 12 takes the undefined sources of masked instructions in its own header for mistakes.)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
