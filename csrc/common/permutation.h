// A permutation of [0, size) that is computed, not stored: an epoch is shuffled without O(interactions) memory, and
// sample number s finds its interaction by itself.
//
// A Feistel network over the grid rows x columns, the smallest near-square one that holds `size` cells: a number is
// (left, right) = (x / columns, x % columns), and the rounds add, in turn, a keyed hash of right to left (mod rows) and
// of left to right (mod columns). Each round can be undone, so the whole is a bijection of the grid. The few cells
// beyond `size` (fewer than 2 sqrt(size)) are skipped by walking the cycle (Black and Rogaway, CT-RSA 2002).
#pragma once

#include <cstdint>

#include "philox.h"

namespace zx {

// Eight rounds leave no trace in the statistics of large permutations. Among few cells a round mixes little, so small
// ones take more of them: then every order of 5 items is equally likely to within what 10^5 seeds can tell.
constexpr int kPermutationRounds = 8, kSmallPermutationRounds = 24;
constexpr uint64_t kSmallPermutation = 4096;

struct Permutation {
  uint64_t size;
  uint32_t rows, columns;
  int rounds;
  uint32_t key[2 * kSmallPermutationRounds];
};

ZX_HD uint64_t isqrt64(uint64_t x) {
  uint64_t root = 0;
  for (uint64_t bit = uint64_t{1} << 31; bit != 0; bit >>= 1) {
    const uint64_t next = root | bit;
    if (next * next <= x) root = next;
  }
  return root;
}

// size must be below 2^62. (Writes to where the permutation is kept: a GPU thread would build a copy in slow memory.)
ZX_HD void make_permutation(SampleKey key, uint64_t size, Permutation& p) {
  p.size = size;
  const uint64_t root = isqrt64(size);
  const uint64_t columns = root * root < size ? root + 1 : (root > 0 ? root : 1);
  p.columns = static_cast<uint32_t>(columns);
  p.rows = static_cast<uint32_t>((size + columns - 1) / columns);
  if (p.rows == 0) p.rows = 1;
  p.rounds = size < kSmallPermutation ? kSmallPermutationRounds : kPermutationRounds;
  for (int block = 0; block < p.rounds / 2; ++block) {
    const Draws d = draws(key, static_cast<uint64_t>(block), Stream::kPermutation, 0, 0);
    p.key[4 * block] = static_cast<uint32_t>(d.first);
    p.key[4 * block + 1] = static_cast<uint32_t>(d.first >> 32);
    p.key[4 * block + 2] = static_cast<uint32_t>(d.second);
    p.key[4 * block + 3] = static_cast<uint32_t>(d.second >> 32);
  }
}

// Keyed 32-bit mixing; the constants are MurmurHash3's (Appleby, public domain).
ZX_HD uint32_t permutation_hash(uint32_t x, uint32_t k0, uint32_t k1) {
  x = (x ^ k0) * 0x85EBCA6Bu;
  x = ((x ^ (x >> 15)) + k1) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

// a, b < modulus <= 2^31.
ZX_HD uint32_t add_modulo(uint32_t a, uint32_t b, uint32_t modulus) {
  const uint32_t sum = a + b;
  return sum >= modulus ? sum - modulus : sum;
}

// What a round does to the half that it changes, given the other half, the round's two keys and the size of the first.
ZX_HD uint32_t permutation_round(uint32_t half, uint32_t other, const uint32_t* key, uint32_t size) {
  return add_modulo(half, mulhi32(permutation_hash(other, key[0], key[1]), size), size);
}

// One pass through the network; the result may lie beyond size.
ZX_HD uint64_t permute_cell(const Permutation& p, uint32_t left, uint32_t right) {
  for (int round = 0; round < p.rounds; round += 2) {
    left = permutation_round(left, right, p.key + 2 * round, p.rows);
    right = permutation_round(right, left, p.key + 2 * round + 2, p.columns);
  }
  return static_cast<uint64_t>(left) * p.columns + right;
}

ZX_HD uint64_t permute(const Permutation& p, uint64_t x) {
  do {
    x = permute_cell(p, static_cast<uint32_t>(x / p.columns), static_cast<uint32_t>(x % p.columns));
  } while (x >= p.size);
  return x;
}

// The half before a round, from the half after it.
ZX_HD uint32_t undo_permutation_round(uint32_t half, uint32_t other, const uint32_t* key, uint32_t size) {
  const uint32_t added = mulhi32(permutation_hash(other, key[0], key[1]), size);
  return half >= added ? half - added : half + (size - added);
}

// The number that permute takes to y: the rounds are undone from the last to the first, along the cycle backwards.
ZX_HD uint64_t unpermute(const Permutation& p, uint64_t y) {
  do {
    uint32_t left = static_cast<uint32_t>(y / p.columns), right = static_cast<uint32_t>(y % p.columns);
    for (int round = p.rounds - 2; round >= 0; round -= 2) {
      right = undo_permutation_round(right, left, p.key + 2 * round + 2, p.columns);
      left = undo_permutation_round(left, right, p.key + 2 * round, p.rows);
    }
    y = static_cast<uint64_t>(left) * p.columns + right;
  } while (y >= p.size);
  return y;
}

}  // namespace zx
