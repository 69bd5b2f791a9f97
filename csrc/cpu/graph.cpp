// Products with the normalised adjacency matrix of a bipartite graph, whose values are never stored: they are a
// constant of the row times a constant of the column, and which entries a step drops is said by lists that hold the
// others alone.
//
// Nodes are users, then items; row r of the matrix lists r's neighbours by their numbers on the other side.
#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>

#include "checks.h"
#include "common/csr.h"
#include "common/philox.h"
#include "cpu/intrinsics.h"
#include "cpu/parallel.h"
#include "cpu/philox_lanes.h"
#include "cpu/ranges.h"
#include "cpu/rows.h"

namespace zx::cpu {
namespace {

// What a task takes on, in entries; a row costs as much as kRowCost of them.
constexpr int64_t kTaskCost = 1 << 14;
constexpr int64_t kRowCost = 4;
// From this size on a table is read ahead of its use, by so many entries.
constexpr int64_t kFarBytes = 4 << 20;
constexpr int64_t kAhead = 32;

// Calls f(begin, end) for ranges of rows of about equal cost, in parallel. The ranges depend on the matrix alone.
template <class Index, class F>
void for_each_range(const Index* indptr, int64_t rows, const F& f) {
  const auto first_row = [&](int64_t cost) {
    int64_t low = 0, high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (static_cast<int64_t>(indptr[middle]) + kRowCost * middle < cost)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  const int64_t tasks = (static_cast<int64_t>(indptr[rows]) + kRowCost * rows + kTaskCost - 1) / kTaskCost;
  share_blocks(tasks, [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t begin = first_row(task * kTaskCost);
      const int64_t end = task + 1 == tasks ? rows : first_row((task + 1) * kTaskCost);
      if (begin < end) f(begin, end);
    }
  });
}

// Throws if indptr [rows + 1] is not one of a matrix of so many entries.
template <class Index>
void check_indptr(const Index* indptr, int64_t rows, int64_t entries) {
  bool sound = indptr[0] >= 0 && static_cast<int64_t>(indptr[rows]) <= entries;
  for (int64_t r = 0; r < rows; ++r) sound &= indptr[r] <= indptr[r + 1];
  ZX_CHECK(sound, "indptr must ascend from 0 to at most the number of indices");
}

// Whether the entries of rows [begin, end) end within their rows and name one of so many columns.
template <class Index>
struct RowsAreSound {
  ZX_HD static bool run(const Index* first, const Index* last, const Index* indices, int64_t begin, int64_t end,
                        int64_t columns) {
    bool sound = true;
    for (int64_t row = begin; row < end; ++row) sound &= (last[row] >= first[row]) & (last[row] <= first[row + 1]);
    if (!sound) return false;
    // All entries, where there is nothing between rows; else each row's, as what is between them means nothing.
    if (last == first + 1) return AllBelow<Index>::run(indices + first[begin], last[end - 1] - first[begin], columns);
    for (int64_t row = begin; row < end; ++row)
      sound &= AllBelow<Index>::run(indices + first[row], last[row] - first[row], columns);
    return sound;
  }
};

// ---- The product ----------------------------------------------------------------------------------------------------

// The rows of one side: out[r] = factor * row_scale[r] * the sum of column_scale[c] * table[c] over r's neighbours c.
template <class T, class Index>
struct Side {
  const T* table;         // [C, stride] of the other side, with room for whole vectors in each row
  const T* column_scale;  // [C] or null
  const T* row_scale;     // [R] or null
  const Index* begin;     // [R], where the rows begin in indices, and
  const Index* end;       // where they end
  const Index* indices;
  int64_t entries;  // in indices
  int64_t dim, stride;
  T factor;
  T* out;  // [R, dim]
};

// Columns at .. at + 16 kVectors of the rows [begin, end). The sums of two entries run side by side, so that an
// addition need not wait for the one before; where vectors are many enough, they do not wait anyway.
template <int kBytes, int kVectors, bool kScaled, bool kFar, class T, class Index>
ZX_HD void sum_piece(const Side<T, Index>& s, int64_t begin, int64_t end, int64_t at) {
  const T* const table = s.table + at;
  const int64_t stride = s.stride, dim = s.dim;
  const auto add = [&](Lanes<T, kBytes>(&sum)[kVectors], int64_t e) __attribute__((always_inline)) {
    const int64_t column = static_cast<int64_t>(s.indices[e]);
    const T* x = table + column * stride;
    if (kFar) {
      const T* later = table + static_cast<int64_t>(s.indices[std::min(e + kAhead, s.entries - 1)]) * stride;
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(later + v * kRowLanes, 0, 2);
    }
    for (int v = 0; v < kVectors; ++v)
      if (kScaled)
        sum[v].add_scaled(s.column_scale[column], x + v * kRowLanes);
      else
        sum[v].add(x + v * kRowLanes);
  };
  for (int64_t row = begin; row < end; ++row) {
    Lanes<T, kBytes> sum[kVectors], other[kVectors];
    int64_t e = static_cast<int64_t>(s.begin[row]);
    const int64_t last = static_cast<int64_t>(s.end[row]);
    if (kVectors < 4) {
      for (; e + 2 <= last; e += 2) add(sum, e), add(other, e + 1);
      if (e < last) add(sum, e);
    } else {
      for (; e < last; ++e) add(sum, e);
    }
    const T scale = s.row_scale ? s.factor * s.row_scale[row] : s.factor;
    for (int v = 0; v < kVectors; ++v) {
      if (kVectors < 4) sum[v].add(other[v]);
      sum[v].scale(scale);
      const int64_t column = at + v * kRowLanes, place = row * dim + column;
      // A whole vector also where the row ends in it, if what it spills into is still to be written.
      if (column + kRowLanes <= dim || (at == 0 && place + kRowLanes <= end * dim)) {
        sum[v].write(s.out + place);
      } else {
        T rest[kRowLanes];
        sum[v].write(rest);
        for (int64_t l = 0; column + l < dim; ++l) s.out[place + l] = rest[l];
      }
    }
  }
}

template <bool kScaled, bool kFar, class T, class Index>
struct SumNeighbours {
  template <int kBytes>
  ZX_HD static void run(const Side<T, Index>* s, int64_t begin, int64_t end) {
    int64_t at = 0;
    for (; at + 4 * kRowLanes <= s->stride; at += 4 * kRowLanes)
      sum_piece<kBytes, 4, kScaled, kFar>(*s, begin, end, at);
    for (; at + 2 * kRowLanes <= s->stride; at += 2 * kRowLanes)
      sum_piece<kBytes, 2, kScaled, kFar>(*s, begin, end, at);
    for (; at < s->stride; at += kRowLanes) sum_piece<kBytes, 1, kScaled, kFar>(*s, begin, end, at);
  }
};

// Rows of a width that is no multiple of a vector, copied to such a one and scaled on the way. What stands behind a row
// is its successor's beginning: it is added up too, and never written.
template <class T>
struct WidenRows {
  template <int kBytes>
  ZX_HD static void run(const T* x, const T* scale, int64_t rows, int64_t begin, int64_t end, int64_t dim,
                        int64_t stride, T* out) {
    for (int64_t row = begin; row < end; ++row) {
      const T factor = scale ? scale[row] : T(1);
      for (int64_t at = 0; at < stride; at += kRowLanes) {
        const int64_t place = row * dim + at;
        Lanes<T, kBytes> lanes;
        if (place + kRowLanes <= rows * dim) {
          lanes.add_scaled(factor, x + place);
        } else {
          T rest[kRowLanes] = {};
          for (int64_t l = 0; place + l < rows * dim && l < kRowLanes; ++l) rest[l] = x[place + l];
          lanes.add_scaled(factor, static_cast<const T*>(rest));
        }
        lanes.write(out + row * stride + at);
      }
    }
  }
};

// ---- Dropped entries ------------------------------------------------------------------------------------------------

// Two bits an interaction, in the order of the users' rows: the lower one says whether the user's row keeps the item,
// the upper one whether the item's row keeps the user. So small they stay in the cache when items look theirs up.
constexpr int64_t kDrawn = 32;  // interactions in a 64-bit word, from 16 blocks of Philox
constexpr int64_t kPad = 8;     // bytes that may be read behind the last

// The words [begin, end). Interaction e has two words of Philox's block e / 2, the first or the last; below the
// threshold they drop.
struct DrawKept {
  template <int kBytes>
  ZX_HD static void run(uint64_t seed, uint64_t threshold, int64_t begin, int64_t end, uint64_t* kept) {
    using L = Longs<kBytes>;
    using Vector = typename L::Vector;
    const uint64_t purpose = static_cast<uint64_t>(Stream::kNodeDropout) << 24;
    Vector lane;
    for (int l = 0; l < L::kWidth; ++l) lane[l] = static_cast<uint64_t>(l);
    for (int64_t w = begin; w < end; ++w) {
      Vector packed = {};
      for (uint64_t i = 0; i < kDrawn / 2; i += L::kWidth) {
        const Vector block = lane + (static_cast<uint64_t>(w) * (kDrawn / 2) + i);
        Vector c0 = block, c1 = block >> 32, c2 = {}, c3 = Vector{} + purpose;
        philox_vectors<kBytes>(c0, c1, c2, c3, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
        // The sign of the difference: 1 below the threshold.
        const Vector dropped = ((c0 & L::kLow) - threshold) >> 63 | ((c1 & L::kLow) - threshold) >> 63 << 1 |
                               ((c2 & L::kLow) - threshold) >> 63 << 2 | ((c3 & L::kLow) - threshold) >> 63 << 3;
        packed |= dropped << ((lane + i) * 4);
      }
      uint64_t all = 0;
      for (int l = 0; l < L::kWidth; ++l) all |= packed[l];
      kept[w] = ~all;
    }
  }
};

template <class Index>
struct Lists {
  const Index* indptr;   // [users + items + 1]
  const Index* indices;  // [entries]
  const Index* by_item;  // [interactions], the number of each in the order of users
  const uint8_t* kept;   // two bits an interaction
  int64_t num_users, interactions;
  Index *end, *list, *transposed_end, *transposed_list;
};

// What the rows [begin, end) keep, of the matrix and of its transpose: there both sides' decisions change places.
template <class Index>
struct ListKept {
  ZX_HD static void run(const Lists<Index>* p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const bool item = row >= p->num_users;
      int64_t at = static_cast<int64_t>(p->indptr[row]), transposed_at = at;
      const int64_t last = static_cast<int64_t>(p->indptr[row + 1]);
      for (int64_t e = at; e < last; ++e) {
        const int64_t interaction = item ? static_cast<int64_t>(p->by_item[e - p->interactions]) : e;
        const int bits = p->kept[interaction / 4] >> (interaction % 4 * 2);
        // Written in any case, and written over by the next that stays: no branch to mispredict.
        p->list[at] = p->transposed_list[transposed_at] = p->indices[e];
        at += (item ? bits >> 1 : bits) & 1;
        transposed_at += (item ? bits : bits >> 1) & 1;
      }
      p->end[row] = static_cast<Index>(at);
      p->transposed_end[row] = static_cast<Index>(transposed_at);
    }
  }
};

#if ZX_X86
// The same for sixteen entries at a time.
ZX_TARGET_AVX512 void list_kept_avx512(const Lists<int32_t>& p, int64_t begin, int64_t end) {
  const int64_t limit = p.indptr[end];
  // A whole vector also where fewer entries stay, if what it spills into is still to be written.
  const auto write = [&](int32_t* list, int64_t& at, __mmask16 keep, __m512i entries)
                         __attribute__((always_inline, target("arch=x86-64-v4"))) {
                           const __m512i front = _mm512_maskz_compress_epi32(keep, entries);
                           const int count = __builtin_popcount(keep);
                           if (at + 16 <= limit)
                             _mm512_storeu_si512(list + at, front);
                           else
                             _mm512_mask_storeu_epi32(list + at, static_cast<__mmask16>((1u << count) - 1), front);
                           at += count;
                         };
  for (int64_t row = begin; row < end; ++row) {
    int64_t at = p.indptr[row], transposed_at = at;
    const int64_t last = p.indptr[row + 1];
    const bool item = row >= p.num_users;
    for (int64_t e = at; e < last; e += 16) {
      const auto here = static_cast<__mmask16>(last - e >= 16 ? 0xffffu : (1u << (last - e)) - 1);
      const __m512i entries = _mm512_maskz_loadu_epi32(here, p.indices + e);
      __mmask16 users, items;
      if (item) {
        const __m512i interaction = _mm512_maskz_loadu_epi32(here, p.by_item + (e - p.interactions));
        const __m512i words = _mm512_i32gather_epi32(_mm512_srli_epi32(interaction, 4), p.kept, 4);
        const __m512i place = _mm512_slli_epi32(_mm512_and_si512(interaction, _mm512_set1_epi32(15)), 1);
        const __m512i bits = _mm512_srlv_epi32(words, place);
        users = _mm512_mask_test_epi32_mask(here, bits, _mm512_set1_epi32(1));
        items = _mm512_mask_test_epi32_mask(here, bits, _mm512_set1_epi32(2));
        write(p.list, at, items, entries);
        write(p.transposed_list, transposed_at, users, entries);
      } else {
        uint64_t bits;
        __builtin_memcpy(&bits, p.kept + e / 4, sizeof(bits));
        bits >>= e % 4 * 2;
        users = here & static_cast<__mmask16>(_pext_u64(bits, 0x55555555u));
        items = here & static_cast<__mmask16>(_pext_u64(bits, 0xaaaaaaaau));
        write(p.list, at, users, entries);
        write(p.transposed_list, transposed_at, items, entries);
      }
    }
    p.end[row] = static_cast<int32_t>(at);
    p.transposed_end[row] = static_cast<int32_t>(transposed_at);
  }
}
#endif

template <class Index>
void list_kept(const Lists<Index>& lists, int64_t begin, int64_t end) {
#if ZX_X86
  if constexpr (sizeof(Index) == sizeof(int32_t))
    if (isa() == Isa::kAvx512) return list_kept_avx512(lists, begin, end);
#endif
  simd<ListKept<Index>>(&lists, begin, end);
}

}  // namespace

std::tuple<Tensor, Tensor> graph_propagate(const Tensor& users, const Tensor& items, const Tensor& indptr,
                                           std::optional<Tensor> end, const Tensor& indices,
                                           std::optional<Tensor> row_scale, std::optional<Tensor> column_scale,
                                           double factor) {
  const ScalarType dtype = users.scalar_type();
  check_graph_product(users, items, indptr, end, indices, row_scale, column_scale);
  const int64_t num_users = users.size(0), num_items = items.size(0), nodes = num_users + num_items;
  const int64_t dim = users.size(1), stride = (dim + kRowLanes - 1) / kRowLanes * kRowLanes;
  Tensor user_out = new_tensor(users, {num_users, dim}, dtype), item_out = new_tensor(users, {num_items, dim}, dtype);
  if (dim == 0) return {user_out, item_out};
  // Rows that are not whole vectors are widened first: then each is read from the fewest cache lines.
  const bool widen = stride != dim;
  const Tensor wide = new_tensor(users, {widen ? nodes : 0, stride}, dtype);
  dispatch_index(indices.scalar_type(), [&](auto index) {
    const auto call = [&](auto element) {
      using T = decltype(element);
      using Index = decltype(index);
      const T* scale = data_or_null<T>(column_scale);
      if (widen) {
        constexpr int64_t kRows = 1024;
        T* out = data<T>(wide);
        for_each_block((nodes + kRows - 1) / kRows, 4, [&](int64_t block) {
          const int64_t begin = block * kRows, last = std::min(nodes, begin + kRows);
          const int64_t middle = std::clamp(num_users, begin, last);
          simd<WidenRows<T>>(static_cast<const T*>(data<T>(users)), scale, num_users, begin, middle, dim, stride, out);
          simd<WidenRows<T>>(static_cast<const T*>(data<T>(items)), scale ? scale + num_users : nullptr, num_items,
                             middle - num_users, last - num_users, dim, stride, out + num_users * stride);
        });
      }
      const auto side = [&](bool item) {
        const int64_t row = item ? num_users : 0, column = item ? 0 : num_users;
        Side<T, Index> s{};
        s.table = widen ? data<T>(wide) + column * stride : data<T>(item ? users : items);
        s.column_scale = scale && !widen ? scale + column : nullptr;
        s.row_scale = row_scale ? data_or_null<T>(row_scale) + row : nullptr;
        s.begin = data<Index>(indptr) + row;
        s.end = end ? data_or_null<Index>(end) + row : s.begin + 1;
        s.indices = data<Index>(indices), s.entries = indices.size(0);
        s.dim = dim, s.stride = stride, s.factor = static_cast<T>(factor);
        s.out = data<T>(item ? item_out : user_out);
        return s;
      };
      const Side<T, Index> sides[2] = {side(false), side(true)};
      std::atomic<bool> sound{true};
      const auto sum = [&](const Side<T, Index>& s, int64_t columns, int64_t begin, int64_t last) {
        if (begin >= last) return;
        if (!simd<RowsAreSound<Index>>(s.begin, s.end, s.indices, begin, last, columns)) {
          sound = false;
          return;
        }
        const bool far = columns * stride * static_cast<int64_t>(sizeof(T)) > kFarBytes;
        if (s.column_scale)
          far ? simd<SumNeighbours<true, true, T, Index>>(&s, begin, last)
              : simd<SumNeighbours<true, false, T, Index>>(&s, begin, last);
        else
          far ? simd<SumNeighbours<false, true, T, Index>>(&s, begin, last)
              : simd<SumNeighbours<false, false, T, Index>>(&s, begin, last);
      };
      check_indptr(data<Index>(indptr), nodes, indices.size(0));
      for_each_range(data<Index>(indptr), nodes, [&](int64_t begin, int64_t last) {
        const int64_t middle = std::clamp(num_users, begin, last);
        sum(sides[0], num_items, begin, middle);
        sum(sides[1], num_users, middle - num_users, last - num_users);
      });
      ZX_CHECK(sound, "indices must be nodes of the other side, and end must lie within the rows");
    };
    if (dtype == ScalarType::Double)
      call(double{});
    else
      call(float{});
  });
  return {user_out, item_out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> graph_dropout(const Tensor& indptr, const Tensor& indices,
                                                         const Tensor& by_item, int64_t num_users, const Tensor& seed,
                                                         double share) {
  const ScalarType dtype = indices.scalar_type();
  check_graph_dropout(indptr, indices, by_item, num_users, seed, share);
  const int64_t interactions = by_item.numel(), nodes = indptr.numel() - 1;
  dispatch_index(dtype, [&](auto index) {
    using Index = decltype(index);
    const Index *start = data<Index>(indptr), *by = data<Index>(by_item);
    check_indptr(start, nodes, 2 * interactions);
    std::atomic<bool> sound{true};
    for_each_block((interactions + kTaskCost - 1) / kTaskCost, 4, [&](int64_t block) {
      const int64_t begin = block * kTaskCost, n = std::min(interactions - begin, kTaskCost);
      if (!all_below(by + begin, n, interactions)) sound = false;
    });
    ZX_CHECK(sound && start[0] == 0 && static_cast<int64_t>(start[num_users]) == interactions &&
                 static_cast<int64_t>(start[nodes]) == 2 * interactions,
             "by_item must number the interactions, and indptr count them once for users and once for items");
  });
  Tensor end = new_tensor(indptr, {nodes}, dtype), transposed_end = new_tensor(indptr, {nodes}, dtype);
  Tensor list = new_tensor(indptr, {2 * interactions}, dtype);
  Tensor transposed_list = new_tensor(indptr, {2 * interactions}, dtype);
  const int64_t words = (interactions + kDrawn - 1) / kDrawn;
  const Tensor kept = new_tensor(indptr, {words * 8 + kPad}, ScalarType::Byte);
  const uint64_t key = static_cast<uint64_t>(*data<int64_t>(seed));
  const uint64_t threshold = drop_threshold(share);
  constexpr int64_t kWords = kTaskCost / kDrawn;
  for_each_block((words + kWords - 1) / kWords, 1, [&](int64_t block) {
    simd<DrawKept>(key, threshold, block * kWords, std::min(words, (block + 1) * kWords), data<uint64_t>(kept));
  });
  dispatch_index(dtype, [&](auto index) {
    using Index = decltype(index);
    Lists<Index> lists{};
    lists.indptr = data<Index>(indptr), lists.indices = data<Index>(indices), lists.by_item = data<Index>(by_item);
    lists.kept = data<uint8_t>(kept), lists.num_users = num_users, lists.interactions = interactions;
    lists.end = data<Index>(end), lists.transposed_end = data<Index>(transposed_end);
    lists.list = data<Index>(list), lists.transposed_list = data<Index>(transposed_list);
    for_each_range(data<Index>(indptr), nodes, [&](int64_t begin, int64_t last) { list_kept(lists, begin, last); });
  });
  return {end, list, transposed_end, transposed_list};
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("graph_propagate", ZX_BOX(&zx::cpu::graph_propagate));
  m.impl("graph_dropout", ZX_BOX(&zx::cpu::graph_dropout));
}
