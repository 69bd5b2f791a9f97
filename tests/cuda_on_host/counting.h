// The bytes that kernels move: see counting.cpp. In every other build there is nothing to count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace counting {

struct Bytes {
  int64_t loaded = 0, stored = 0;                  // what instructions ask for
  int64_t sectors_loaded = 0, sectors_stored = 0;  // of 32 bytes, each counted once a launch
  int64_t loads = 0, warp_loads = 0;               // by threads; by the busiest thread of each warp
};

// The device's memory from here on: (address, bytes).
void watch(const std::vector<std::pair<const void*, size_t>>& memory);
void new_launch();
void filled(const void* p, size_t bytes);  // by a memset
Bytes bytes();
void forget();

}  // namespace counting
