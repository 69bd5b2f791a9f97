// Ids of a column of text by number: integers where each field is the only spelling of one, else text. Columns come as
// Arrow keeps them, in chunks of characters with the offset of each field.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/slices.h"
#include "torch_stable.h"

namespace zx::cpu {
namespace {

constexpr int64_t kLargest = INT64_C(1) << 31;  // rows must be below
constexpr int64_t kBatch = 32;                  // fields whose places in a table are fetched together
constexpr int64_t kRowsPerBlock = 1 << 16;

inline uint64_t load8(const char* at) {
  uint64_t word;
  std::memcpy(&word, at, 8);
  return word;
}

inline uint32_t load4(const char* at) {
  uint32_t word;
  std::memcpy(&word, at, 4);
  return word;
}

// ---- the columns

// A chunk of a column: field i is characters[offsets[i] .. offsets[i + 1]).
template <class Offset>
struct Chunk {
  const char* characters;
  int64_t bytes;
  const Offset* offsets;
  int64_t rows, first;  // first: the row of the column that is its first

  // Calls f(row of the column, field, its length). Offsets that do not ascend or lead out are an error.
  template <class F>
  void each(int64_t begin, int64_t end, const F& f) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = offsets[i], to = offsets[i + 1];
      ZX_CHECK(from >= 0 && from <= to && to <= bytes, "offsets must ascend from 0 to ", bytes, ", got ", from, " and ",
               to, " at position ", i);
      f(first + i, characters + from, to - from);
    }
  }
};

template <class Offset>
using Column = std::vector<Chunk<Offset>>;

template <class Offset>
int64_t rows_of(const Column<Offset>& column) {
  return column.empty() ? 0 : column.back().first + column.back().rows;
}

template <class Offset>
Column<Offset> column_of(const std::vector<Tensor>& characters, const std::vector<Tensor>& offsets) {
  Column<Offset> column;
  int64_t rows = 0;
  for (size_t c = 0; c < characters.size(); ++c) {
    ZX_CHECK(offsets[c].numel() >= 1, "offsets must have one number more than a chunk has fields, got none");
    const int64_t count = offsets[c].numel() - 1;
    column.push_back(
        {data<const char>(characters[c]), characters[c].numel(), data<const Offset>(offsets[c]), count, rows});
    rows += count;
    ZX_CHECK(rows < kLargest, "the number of fields must be below 2^31");
  }
  return column;
}

// ---- integers

// Reads a field that is the only spelling of an int64; false if it is none. `left`: bytes that may be read at the
// field.
inline bool read_integer(const char* field, int64_t length, int64_t left, int64_t& value) {
  const bool negative = length > 1 && *field == '-';
  field += negative;
  length -= negative;
  left -= negative;
  if (length < 1 || length > 19 || (*field == '0' && (length > 1 || negative))) return false;
  uint64_t sum = 0;
  if (length <= 8 && left >= 8) {  // all digits at once
    const int shift = static_cast<int>(64 - 8 * length);
    uint64_t digits = load8(field) << shift;
    if (shift) digits |= UINT64_C(0x3030303030303030) >> (64 - shift);  // zeros in front
    constexpr uint64_t kHigh = UINT64_C(0xF0F0F0F0F0F0F0F0);
    if (((digits & kHigh) | (((digits + UINT64_C(0x0606060606060606)) & kHigh) >> 4)) != UINT64_C(0x3333333333333333))
      return false;
    digits -= UINT64_C(0x3030303030303030);
    digits = digits * 10 + (digits >> 8);  // pairs of digits in every other byte
    constexpr uint64_t kPair = UINT64_C(0x000000FF000000FF);
    sum = ((digits & kPair) * (100 + (UINT64_C(1000000) << 32)) +
           ((digits >> 16) & kPair) * (1 + (UINT64_C(10000) << 32))) >>
          32;
    sum &= UINT32_MAX;
  } else {
    for (int64_t i = 0; i < length; ++i) {
      const unsigned digit = static_cast<unsigned char>(field[i]) - unsigned{'0'};
      if (digit > 9) return false;
      sum = sum * 10 + digit;
    }
    if (sum > static_cast<uint64_t>(INT64_MAX) + negative) return false;
  }
  value = static_cast<int64_t>(negative ? 0 - sum : sum);
  return true;
}

struct Parsed {
  int64_t failed = -1;  // the first field that is no integer, or that does not fit the type
  bool fits = true;
  int64_t low = INT64_MAX, high = INT64_MIN;
};

template <class Offset, class Value>
Parsed parse(const Column<Offset>& column, Value* values) {
  std::vector<Parsed> parts(column.size());
  std::atomic<int64_t> failed{INT64_MAX};  // the first chunk that has a field that is no integer
  for_each_block(static_cast<int64_t>(column.size()), 1, [&](int64_t c) {
    if (failed.load(std::memory_order_relaxed) < c) return;
    const Chunk<Offset>& chunk = column[c];
    const char* const end = chunk.characters + chunk.bytes;
    Parsed part;
    int64_t at = 0;
    bool good = true;
    constexpr int64_t kStep = 1 << 16;
    Watch watch;  // one chunk may hold the whole column
    for (; at < chunk.rows && good; at += kStep) {
      if (watch.stop()) watch.raise_if_stopped();
      chunk.each(at, std::min(at + kStep, chunk.rows), [&](int64_t row, const char* field, int64_t length) {
        int64_t value = 0;
        if (!read_integer(field, length, end - field, value)) {
          if (good) part.failed = row;
          good = false;
          return;
        }
        part.low = std::min(part.low, value);
        part.high = std::max(part.high, value);
        values[row] = static_cast<Value>(value);
      });
    }
    part.fits = part.low >= std::numeric_limits<Value>::min() && part.high <= std::numeric_limits<Value>::max();
    if (part.low > part.high) part.fits = true;  // no field at all
    if (!good)
      for (int64_t before = failed.load(); c < before && !failed.compare_exchange_weak(before, c);) {
      }
    parts[c] = part;
  });
  Parsed all;
  for (const Parsed& part : parts) {
    if (part.failed >= 0 && all.failed < 0) all.failed = part.failed;
    all.fits = all.fits && part.fits;
    all.low = std::min(all.low, part.low);
    all.high = std::max(all.high, part.high);
  }
  return all;
}

// Places of a table by hash: the 32 bits of a hash and what it stands for, 0 where there is nothing.
class Places {
 public:
  struct Place {
    uint32_t tag, what;
  };

  Places() : places_(size_t{1} << bits_) {}

  void fetch(uint32_t tag) const { __builtin_prefetch(&places_[tag >> (32 - bits_)]); }

  // What same(what) holds for, or what add() makes.
  template <class Same, class Add>
  uint32_t find(uint32_t tag, const Same& same, const Add& add) {
    const size_t mask = places_.size() - 1;
    size_t at = tag >> (32 - bits_);
    for (; places_[at].what; at = (at + 1) & mask)
      if (places_[at].tag == tag && same(places_[at].what)) return places_[at].what;
    const uint32_t what = add();
    places_[at] = {tag, what};
    if (2 * ++count_ > static_cast<int64_t>(places_.size())) grow();
    return what;
  }

  // The first candidate, to be fetched before it is compared; 0 if there is none.
  uint32_t peek(uint32_t tag) const {
    const Place& place = places_[tag >> (32 - bits_)];
    return place.tag == tag ? place.what : 0;
  }

 private:
  void grow() {
    ZX_CHECK(bits_ < 32, "there are too many distinct ids");
    bits_ += bits_ < 28 ? 2 : 1;
    std::vector<Place> before(size_t{1} << bits_);
    before.swap(places_);
    const size_t mask = places_.size() - 1;
    for (const Place& place : before) {
      if (!place.what) continue;
      size_t at = place.tag >> (32 - bits_);
      while (places_[at].what) at = (at + 1) & mask;
      places_[at] = place;
    }
  }

  int bits_ = 12;
  int64_t count_ = 0;
  std::vector<Place> places_;
};

// A hash whose collisions cannot be planned: the seed differs from call to call. Codes do not depend on it, as they are
// ranks.
class Hash {
 public:
  Hash() {
    std::random_device device;
    for (uint64_t& seed : seeds_) seed = (static_cast<uint64_t>(device()) << 32 | device()) | 1;
  }
  uint64_t mix(uint64_t a, uint64_t b) const {
    __extension__ typedef unsigned __int128 uint128;
    const uint128 product = static_cast<uint128>(a ^ seeds_[0]) * (b ^ seeds_[1]);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
  uint32_t of_number(int64_t value) const {
    return static_cast<uint32_t>(mix(static_cast<uint64_t>(value), seeds_[2]) >> 32);
  }
  uint32_t of_text(const char* text, int64_t length) const {
    uint64_t first = 0, last = 0, sum = static_cast<uint64_t>(length) * seeds_[2];
    int64_t at = 0;
    for (; at + 16 < length; at += 16) sum = mix(sum ^ load8(text + at), load8(text + at + 8));
    const char* const rest = text + at;
    const int64_t left = length - at;
    if (left >= 8) {
      first = load8(rest);
      last = load8(rest + left - 8);
    } else if (left >= 4) {
      first = load4(rest);
      last = load4(rest + left - 4);
    } else if (left > 0) {
      const auto byte = [&](int64_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(rest[i])); };
      first = byte(0) << 16 | byte(left / 2) << 8 | byte(left - 1);
    }
    return static_cast<uint32_t>(mix(mix(sum ^ first, last), seeds_[3]) >> 32);
  }

 private:
  std::array<uint64_t, 4> seeds_;
};

// Ranks of values in a table of all numbers from low to high, in place of the values.
template <class Value>
Tensor rank_by_table(const Tensor& like, const Value* values, int32_t* codes, int64_t n, int64_t low, int64_t high) {
  std::vector<int32_t> rank(static_cast<size_t>(high - low + 1), -1);
  in_slices(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rank[values[i] - low] = 0;
  });
  int64_t count = 0;
  for (int32_t& r : rank)
    if (r == 0) r = static_cast<int32_t>(count++);
  Tensor words = new_tensor(like, {count}, ScalarType::Long);
  int64_t* word = data<int64_t>(words);
  for (int64_t v = 0; v <= high - low; ++v)
    if (rank[v] >= 0) word[rank[v]] = low + v;
  for_each_block((n + kRowsPerBlock - 1) / kRowsPerBlock, 4, [&](int64_t block) {
    for (int64_t i = block * kRowsPerBlock; i < std::min(n, (block + 1) * kRowsPerBlock); ++i)
      codes[i] = rank[values[i] - low];
  });
  return words;
}

void map_codes(int32_t* codes, int64_t n, const std::vector<int32_t>& rank) {
  for_each_block((n + kRowsPerBlock - 1) / kRowsPerBlock, 4, [&](int64_t block) {
    for (int64_t i = block * kRowsPerBlock; i < std::min(n, (block + 1) * kRowsPerBlock); ++i)
      codes[i] = rank[codes[i]];
  });
}

// Ranks of values that are far apart.
template <class Value>
Tensor rank_by_hash(const Tensor& like, const Value* values, int32_t* codes, int64_t n) {
  const Hash hash;
  Places places;
  std::vector<std::pair<int64_t, int32_t>> distinct;
  std::array<uint32_t, kBatch> tags;
  const auto batch = [&](int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; ++i) places.fetch(tags[i] = hash.of_number(values[begin + i]));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t value = values[begin + i];
      const uint32_t what = places.find(
          tags[i], [&](uint32_t w) { return distinct[w - 1].first == value; },
          [&] {
            distinct.emplace_back(value, static_cast<int32_t>(distinct.size()));
            return static_cast<uint32_t>(distinct.size());
          });
      codes[begin + i] = static_cast<int32_t>(what - 1);
    }
  };
  in_slices(n, [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += kBatch) batch(begin, std::min(kBatch, end - begin));
  });
  sort_watched(distinct.begin(), distinct.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  Tensor words = new_tensor(like, {static_cast<int64_t>(distinct.size())}, ScalarType::Long);
  std::vector<int32_t> rank(distinct.size());
  in_slices(static_cast<int64_t>(distinct.size()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      data<int64_t>(words)[r] = distinct[r].first;
      rank[distinct[r].second] = static_cast<int32_t>(r);
    }
  });
  map_codes(codes, n, rank);
  return words;
}

template <class Value>
Tensor rank_values(const Tensor& like, const Value* values, int32_t* codes, int64_t n, const Parsed& parsed) {
  if (n == 0) return new_tensor(like, {0}, ScalarType::Long);
  const uint64_t width = static_cast<uint64_t>(parsed.high) - static_cast<uint64_t>(parsed.low);
  if (width < static_cast<uint64_t>(4 * n + 1'000'000))
    return rank_by_table(like, values, codes, n, parsed.low, parsed.high);
  return rank_by_hash(like, values, codes, n);
}

using Integers = std::tuple<Tensor, Tensor, Tensor>;

template <class Offset>
Integers number_integers(const Tensor& like, const Column<Offset>& column) {
  const int64_t n = rows_of(column);
  Tensor codes = new_tensor(like, {n}, ScalarType::Int);
  Tensor failed = new_tensor(like, {1}, ScalarType::Long);
  int32_t* code = data<int32_t>(codes);
  Parsed parsed = parse(column, code);
  *data<int64_t>(failed) = parsed.failed;
  if (parsed.failed >= 0) return {codes, new_tensor(like, {0}, ScalarType::Long), failed};
  if (parsed.fits) return {codes, rank_values(like, code, code, n, parsed), failed};
  Tensor wide = new_tensor(like, {n}, ScalarType::Long);
  parsed = parse(column, data<int64_t>(wide));
  return {codes, rank_values(like, data<int64_t>(wide), code, n, parsed), failed};
}

// ---- text

inline bool same_text(const char* a, const char* b, int64_t length) {
  int64_t at = 0;
  if (length >= 8) {
    for (; at + 8 < length; at += 8)
      if (load8(a + at) != load8(b + at)) return false;
    return load8(a + length - 8) == load8(b + length - 8);
  }
  if (length >= 4) return load4(a) == load4(b) && load4(a + length - 4) == load4(b + length - 4);
  for (; at < length; ++at)
    if (a[at] != b[at]) return false;
  return true;
}

// Distinct texts one after another, each with its number and length in front, on boundaries of eight bytes.
class Texts {
 public:
  struct Head {
    uint32_t number, length;
  };

  Head head(uint32_t where) const {
    Head head;
    std::memcpy(&head, &words_[where], sizeof head);
    return head;
  }
  const char* text(uint32_t where) const { return reinterpret_cast<const char*>(&words_[where + size_t{1}]); }
  void fetch(uint32_t where) const { __builtin_prefetch(&words_[where]); }
  bool same(uint32_t where, const char* other, int64_t length) const {
    return head(where).length == length && same_text(text(where), other, length);
  }
  uint32_t add(const char* text, int64_t length) {
    const size_t where = words_.size();
    ZX_CHECK(where + static_cast<size_t>(length) / 8 + 2 < UINT32_MAX, "the distinct ids have more than 32 GB");
    words_.resize(where + 1 + (static_cast<size_t>(length) + 7) / 8);
    const Head head{static_cast<uint32_t>(where_.size()), static_cast<uint32_t>(length)};
    std::memcpy(&words_[where], &head, sizeof head);
    if (length) std::memcpy(&words_[where + 1], text, static_cast<size_t>(length));
    where_.push_back(static_cast<uint32_t>(where));
    bytes_ += length;
    return static_cast<uint32_t>(where);
  }
  int64_t count() const { return static_cast<int64_t>(where_.size()); }
  int64_t bytes() const { return bytes_; }

  // Their places in the order of their bytes.
  std::vector<uint32_t> sorted() const {
    size_t common = SIZE_MAX;  // bytes that all begin with
    for (const uint32_t where : where_) {
      const char *first = text(where_[0]), *other = text(where);
      size_t same = 0, most = std::min({common, size_t{head(where).length}, size_t{head(where_[0]).length}});
      while (same < most && first[same] == other[same]) ++same;
      common = same;
    }
    std::vector<std::pair<uint64_t, uint32_t>> order;
    order.reserve(where_.size());
    in_slices(count(), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const uint32_t where = where_[n];
        uint64_t key = 0;
        const size_t length = head(where).length;
        for (size_t i = 0; i < 8; ++i)
          key = key << 8 | (common + i < length ? static_cast<unsigned char>(text(where)[common + i]) : 0u);
        order.emplace_back(key, where);
      }
    });
    sort_watched(order.begin(), order.end(), [&](const auto& a, const auto& b) {
      if (a.first != b.first) return a.first < b.first;
      const size_t mine = head(a.second).length, others = head(b.second).length;
      const int difference = std::memcmp(text(a.second), text(b.second), std::min(mine, others));
      return difference ? difference < 0 : mine < others;
    });
    std::vector<uint32_t> places;
    places.reserve(order.size());
    for (const auto& one : order) places.push_back(one.second);
    return places;
  }

 private:
  std::vector<uint64_t> words_ = {0};  // so that no text is at 0
  std::vector<uint32_t> where_;
  int64_t bytes_ = 0;
};

using Words = std::tuple<Tensor, Tensor, Tensor>;

template <class Offset>
Words number_text(const Tensor& like, const Column<Offset>& column) {
  const int64_t n = rows_of(column);
  Tensor codes = new_tensor(like, {n}, ScalarType::Int);
  int32_t* code = data<int32_t>(codes);
  const Hash hash;
  Places places;
  Texts texts;
  struct Field {
    const char* text;
    int64_t length;
    uint32_t tag;
  };
  std::array<Field, kBatch> fields;
  const auto batch = [&](const Chunk<Offset>& chunk, int64_t begin, int64_t count) {
    Field* field = fields.data();
    chunk.each(begin, begin + count, [&](int64_t, const char* text, int64_t length) {
      ZX_CHECK(length < kLargest, "an id must have fewer than 2^31 bytes");
      *field = {text, length, hash.of_text(text, length)};
      places.fetch(field++->tag);
    });
    for (int64_t i = 0; i < count; ++i) texts.fetch(places.peek(fields[i].tag));
    for (int64_t i = 0; i < count; ++i) {
      const Field& f = fields[i];
      const uint32_t where = places.find(
          f.tag, [&](uint32_t w) { return texts.same(w, f.text, f.length); },
          [&] { return texts.add(f.text, f.length); });
      code[chunk.first + begin + i] = static_cast<int32_t>(texts.head(where).number);
    }
  };
  for (const Chunk<Offset>& chunk : column)
    in_slices(chunk.rows, [&](int64_t begin, int64_t end) {
      for (; begin < end; begin += kBatch) batch(chunk, begin, std::min(kBatch, end - begin));
    });

  const std::vector<uint32_t> order = texts.sorted();
  std::vector<int32_t> rank(order.size());
  Tensor characters = new_tensor(like, {texts.bytes()}, ScalarType::Byte);
  Tensor offsets = new_tensor(like, {texts.count() + 1}, ScalarType::Long);
  int64_t at = 0;
  data<int64_t>(offsets)[0] = 0;
  in_slices(texts.count(), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Texts::Head head = texts.head(order[r]);
      rank[head.number] = static_cast<int32_t>(r);
      if (head.length) std::memcpy(data<char>(characters) + at, texts.text(order[r]), head.length);
      data<int64_t>(offsets)[r + 1] = at += head.length;
    }
  });
  map_codes(code, n, rank);
  return {codes, characters, offsets};
}

// ---- the ops

// Calls f(column) with the type of its offsets.
template <class F>
auto with_column(const std::vector<Tensor>& characters, const std::vector<Tensor>& offsets, const F& f) {
  ZX_CHECK(!characters.empty() && characters.size() == offsets.size(),
           "characters and offsets must be lists of one length, with a chunk at least");
  const ScalarType dtype = offsets[0].scalar_type();
  for (size_t c = 0; c < characters.size(); ++c)
    ZX_CHECK(characters[c].dim() == 1 && characters[c].is_contiguous() &&
                 characters[c].scalar_type() == ScalarType::Byte && offsets[c].dim() == 1 &&
                 offsets[c].is_contiguous() && offsets[c].scalar_type() == dtype,
             "characters and offsets must be contiguous vectors, of uint8 and of one dtype");
  return dispatch_index(dtype, [&](auto zero) { return f(column_of<decltype(zero)>(characters, offsets)); });
}

Integers integer_ids(const std::vector<Tensor>& characters, const std::vector<Tensor>& offsets) {
  return with_column(characters, offsets, [&](const auto& column) { return number_integers(characters[0], column); });
}

Words text_ids(const std::vector<Tensor>& characters, const std::vector<Tensor>& offsets) {
  return with_column(characters, offsets, [&](const auto& column) { return number_text(characters[0], column); });
}

}  // namespace
}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("integer_ids", ZX_BOX(&zx::cpu::integer_ids));
  m.impl("text_ids", ZX_BOX(&zx::cpu::text_ids));
}
