// Lists of negatives that samples share. csrc/cpu/shared_samples.h says what samples share and how lists are drawn.
#pragma once

#include <cstdint>

#include "macros.h"

namespace zx {

constexpr int64_t kMostShared = 4096;  // samples of a list

// The place of a list that a slot has: the first one from its own on and around the end that is not held. (The user
// has not all of them; else this ends as well.)
template <class Held, class Int>
ZX_HD Int place_of(const Held* held, Int k, Int slot) {
  Int place = slot;
  for (Int tries = 1; held[place] && tries < k; ++tries) place = place + 1 == k ? 0 : place + 1;
  return place;
}

}  // namespace zx
