// Walker's alias method (Walker 1977, Vose 1991) over integers. There are 2^bits slots, bits <= 31, and every slot is
// worth 2^31 units of probability. A slot keeps its first `threshold` units for its own item and gives the others to
// its alias. One 64-bit draw chooses slot and unit by plain shifts, so that item i is drawn with probability exactly
// weight[i] / 2^(bits + 31). The table is made in Python (zerosum_ext/data/sampling.py), once, on the CPU.
#pragma once

#include <cstdint>

#include "csr.h"
#include "philox.h"

namespace zx {

constexpr int kAliasUnitBits = 31;

// Slot: threshold << 32 | alias.
ZX_HD int64_t alias_item(const uint64_t* slots, int bits, uint64_t draw) {
  const uint64_t index = bits > 0 ? draw >> (64 - bits) : 0;
  const uint64_t unit = (draw << bits) >> (64 - kAliasUnitBits);
  const uint64_t slot = slots[index];
  return static_cast<int64_t>(unit < (slot >> 32) ? index : (slot & 0xffffffffu));
}

}  // namespace zx
