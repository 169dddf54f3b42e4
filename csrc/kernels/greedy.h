// SPDX-License-Identifier: Apache-2.0
// Greedy suppression on the CPU: candidates come in descending order and are tested against the boxes kept so far.
//
// torchvision lets each kept box scan every later candidate: n^2/2 scalar tests through an index array. Here a
// candidate scans the kept boxes of its own group, 16 at a time, and stops at the first that suppresses it; nothing is
// done for candidates after the last box that is wanted. Kept boxes stand in blocks of 16 (structure of arrays),
// chained per group, so that a group's boxes are found without comparing labels and any number of groups costs no more
// than its boxes.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "simd.h"

namespace fastyolo {
namespace {

constexpr int kBlockBoxes = 16;  // a vector of the widest set; narrower sets take it in steps

template <class T>
struct Box {
  T x1, y1, x2, y2;

  T area() const { return (x2 - x1) * (y2 - y1); }
};

template <class T>
struct alignas(64) KeptBlock {
  T x1[kBlockBoxes], y1[kBlockBoxes], x2[kBlockBoxes], y2[kBlockBoxes], area[kBlockBoxes];
  int32_t next;  // the group's previous block, -1 at the end
  int32_t count;
};

// The arithmetic is torchvision's, rounding for rounding (and compiled without contraction), so that a pair at the
// threshold falls on the same side. The division is reached only by pairs that overlap. NaN compares false everywhere:
// such a box neither suppresses nor is suppressed.
template <class T>
bool suppresses(const KeptBlock<T>& kept, const Box<T>& box, T area, T iou_bound) {
  for (int i = 0; i < kBlockBoxes; i += kLanes<T>) {
    const Vec<T> left = max(load<T>(kept.x1 + i), splat(box.x1));
    const Vec<T> right = min(load<T>(kept.x2 + i), splat(box.x2));
    const Vec<T> top = max(load<T>(kept.y1 + i), splat(box.y1));
    const Vec<T> bottom = min(load<T>(kept.y2 + i), splat(box.y2));
    const Vec<T> width = right - left;
    const Vec<T> height = bottom - top;
    const uint32_t overlap = greater(width, Vec<T>{}) & greater(height, Vec<T>{});
    if (overlap) {
      const Vec<T> inter = width * height;
      const Vec<T> iou = inter / (load<T>(kept.area + i) + area - inter);
      if (greater(iou, splat(iou_bound)) & overlap) return true;
    }
  }
  return false;
}

template <class T>
class Greedy {
 public:
  static int64_t max_blocks(int64_t max_keep, int64_t groups) {
    return ceil_div<int64_t>(max_keep, kBlockBoxes) + std::min(groups, max_keep);
  }

  // heads [groups] and blocks [max_blocks(...)] are the caller's.
  Greedy(int32_t* heads, int64_t groups, KeptBlock<T>* blocks, T iou_bound)
      : heads_(heads), blocks_(blocks), iou_bound_(iou_bound) {
    std::fill_n(heads, groups, -1);
  }

  int32_t num_blocks() const { return num_blocks_; }

  // Blocks from `since` on, and the last one before them, which may have been filled further: all boxes kept since
  // num_blocks() was `since`, and a few more.
  bool is_suppressed(int32_t group, const Box<T>& box, int32_t since = 0) const {
    const T area = box.area();
    for (int32_t b = heads_[group]; b >= 0; b = blocks_[b].next) {
      if (suppresses(blocks_[b], box, area, iou_bound_)) return true;
      if (b < since) break;
    }
    return false;
  }

  void keep(int32_t group, const Box<T>& box) {
    int32_t head = heads_[group];
    if (head < 0 || blocks_[head].count == kBlockBoxes) {
      const int32_t fresh = num_blocks_++;
      KeptBlock<T>& block = blocks_[fresh];
      constexpr T kInfinity = std::numeric_limits<T>::infinity();
      std::fill_n(block.x1, 2 * kBlockBoxes, kInfinity);  // x1 and y1: an absent box overlaps nothing
      std::fill_n(block.x2, 2 * kBlockBoxes, -kInfinity);
      std::fill_n(block.area, kBlockBoxes, T{0});
      block.next = head;
      block.count = 0;
      heads_[group] = head = fresh;
    }
    KeptBlock<T>& block = blocks_[head];
    const int32_t i = block.count++;
    block.x1[i] = box.x1;
    block.y1[i] = box.y1;
    block.x2[i] = box.x2;
    block.y2[i] = box.y2;
    block.area[i] = box.area();
  }

 private:
  int32_t* heads_;
  KeptBlock<T>* blocks_;
  T iou_bound_;
  int32_t num_blocks_ = 0;
};

// Scores and indices as one integer: a larger key is a better candidate, and keys of distinct indices differ, so any
// sort and any selection gives the same answer.
template <class T>
struct KeyTraits;
template <>
struct KeyTraits<float> {
  using Bits = uint32_t;
  using Key = uint64_t;
};
template <>
struct KeyTraits<double> {
  using Bits = uint64_t;
  using Key = unsigned __int128;
};
template <class T>
using Key = typename KeyTraits<T>::Key;

// Bits that order as the numbers do: -0 equals 0, NaN is above everything.
template <class T>
typename KeyTraits<T>::Bits ordered_bits(T value) {
  using Bits = typename KeyTraits<T>::Bits;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  if (value != value) return ~Bits{0};
  value += T{0};
  Bits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits & kSign ? ~bits : bits | kSign;
}

template <class T>
Key<T> make_key(T value, uint32_t index) {
  return static_cast<Key<T>>(ordered_bits(value)) << 32 | static_cast<uint32_t>(~index);
}

template <class T>
T value_of(Key<T> key) {
  using Bits = typename KeyTraits<T>::Bits;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  const Bits ordered = static_cast<Bits>(key >> 32);
  const Bits bits = ordered & kSign ? ordered ^ kSign : ~ordered;
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class K>
uint32_t index_of(K key) {
  return ~static_cast<uint32_t>(key);
}

struct Descending {
  template <class K>
  bool operator()(K a, K b) const {
    return a > b;
  }
};

// Sorts keys in the order of their indices from best to worst, in passes over parts of their upper halves from the
// least significant one on, each stable: so ties keep their order. Returns where they are then, `keys` or `scratch`.
inline uint64_t* sort_all(uint64_t* keys, uint64_t* scratch, int64_t count) {
  constexpr int kBits = 11;
  constexpr int kDigits = 1 << kBits;
  constexpr int kPasses = 3;
  if (count < kDigits / 2) {
    std::sort(keys, keys + count, Descending{});
    return keys;
  }
  const auto digit = [](uint64_t key, int pass) { return kDigits - 1 - (key >> (32 + pass * kBits) & (kDigits - 1)); };
  int32_t first[kPasses][kDigits] = {};  // of each digit: the count, then where the next of its keys goes
  for (int64_t i = 0; i < count; ++i) {
    for (int pass = 0; pass < kPasses; ++pass) ++first[pass][digit(keys[i], pass)];
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    int32_t before = 0;
    for (int32_t& next : first[pass]) before += std::exchange(next, before);
    for (int64_t i = 0; i < count; ++i) scratch[first[pass][digit(keys[i], pass)]++] = keys[i];
    std::swap(keys, scratch);
  }
  return keys;
}

// Keys of float64 scores have 96 bits: nine passes would be no gain.
inline unsigned __int128* sort_all(unsigned __int128* keys, unsigned __int128*, int64_t count) {
  std::sort(keys, keys + count, Descending{});
  return keys;
}

// Hands out keys from best to worst in sorted chunks that double in size: early stops leave most of them unsorted, and
// a full run costs about one sort.
template <class K>
class BestFirst {
 public:
  // sorted: whether they are so already.
  BestFirst(K* keys, int64_t count, int64_t first_chunk, bool sorted = false)
      : next_(keys), end_(keys + count), chunk_(sorted ? count : first_chunk), sorted_(sorted) {}

  // The next sorted chunk in [first, last); false when there is none.
  bool next(const K*& first, const K*& last) {
    if (next_ == end_) return false;
    K* const chunk_end = end_ - next_ > chunk_ ? next_ + chunk_ : end_;
    if (chunk_end != end_) std::nth_element(next_, chunk_end, end_, Descending{});
    if (!sorted_) std::sort(next_, chunk_end, Descending{});
    first = next_;
    last = next_ = chunk_end;
    chunk_ *= 2;
    return true;
  }

 private:
  K* next_;
  K* end_;
  int64_t chunk_;
  bool sorted_;
};

}  // namespace
}  // namespace fastyolo
