// SPDX-License-Identifier: Apache-2.0
// The scores above the threshold, collected from class maps on the CPU in one pass over them.
//
// Nothing is computed for a score that does not pass: maps hold raw logits and the threshold is turned into a logit
// once. Anchors are contiguous in NCHW maps, so a vector holds kLanes anchors of one class and every load is
// sequential. Best-class mode keeps a running maximum per anchor for a tile of anchors that stays in the first-level
// cache while all class planes stream past it; only the few vectors that hold a survivor are read again to find which
// class it was.
#pragma once

#include "decode_nms.h"
#include "detection_workspace.h"
#include "greedy.h"

namespace fastyolo {
namespace {

// Bounded list of the best candidates seen so far. When it is full the best `limit` stay and the bar rises, so that the
// memory does not depend on how many scores pass the threshold.
class CandidateList {
 public:
  CandidateList(uint64_t* keys, int64_t capacity, int64_t limit, float bound)
      : keys_(keys), capacity_(capacity), limit_(limit), bound_(bound) {}

  // A value must be above this to be a candidate.
  float bound() const { return bound_; }

  // Makes room for kKeySlack more.
  void reserve() {
    if (count_ + DetectionWorkspace::kKeySlack > capacity_) keep_best();
  }

  void append(float value, uint32_t index) {
    const uint64_t key = make_key(value, index);
    if (key > floor_) keys_[count_++] = key;
  }

  // At most `limit` keys, unordered.
  int64_t finish() {
    if (count_ > limit_) keep_best();
    return count_;
  }

 private:
  void keep_best() {
    std::nth_element(keys_, keys_ + limit_ - 1, keys_ + count_, Descending{});
    count_ = limit_;
    floor_ = keys_[limit_ - 1];
    // Equal values with a lower index still count, hence the float just below.
    bound_ = std::max(bound_, std::nextafter(value_of<float>(floor_), -std::numeric_limits<float>::infinity()));
  }

  uint64_t* keys_;
  int64_t capacity_;
  int64_t limit_;
  float bound_;
  uint64_t floor_ = 0;
  int64_t count_ = 0;
};

constexpr int64_t kTileAnchors = 1024;  // 4 KB of running maxima

// Collects candidates from one image's class maps. Indices are anchor * classes + label.
template <class T>
class CandidateFilter {
 public:
  CandidateFilter(const HeadMap* maps, int32_t levels, int64_t image, int64_t classes, const NmsSettings& settings,
                  CandidateList& list)
      : maps_(maps), levels_(levels), image_(image), classes_(classes), settings_(settings), list_(list) {}

  // Anchors [first, last) of the image.
  void run(int64_t first, int64_t last) {
    int64_t level_first = 0;
    for (int32_t l = 0; l < levels_; ++l) {
      const HeadMap& map = maps_[l];
      const int64_t size = map.height * map.width;
      const int64_t begin = std::max(first, level_first) - level_first;
      const int64_t end = std::min(last, level_first + size) - level_first;
      if (begin < end) level(map, level_first, begin, end);
      level_first += size;
    }
  }

 private:
  using Lanes = Vec<float>;
  static constexpr int kWidth = kLanes<float>;

  // Positions [begin, end) of a map whose anchors are numbered from `base`.
  void level(const HeadMap& map, int64_t base, int64_t begin, int64_t end) {
    const T* data = static_cast<const T*>(map.data) + image_ * map.stride_b;
    const bool flat = map.stride_h == map.width * map.stride_w || map.height == 1;
    const int64_t run = flat ? map.height * map.width : map.width;  // positions that one stride reaches
    while (begin < end) {
      const int64_t row = begin / run;
      const int64_t stop = std::min(end, (row + 1) * run);
      const T* from = data + row * map.stride_h + (begin - row * run) * map.stride_w;
      if (map.stride_w == 1 && settings_.multi_label) {
        every_class_planar(from, map.stride_c, base + begin, stop - begin);
      } else if (map.stride_w == 1) {
        best_class_planar(from, map.stride_c, base + begin, stop - begin);
      } else {
        for (int64_t i = 0; i < stop - begin; ++i) anchor(from + i * map.stride_w, map.stride_c, base + begin + i);
      }
      begin = stop;
    }
  }

  void append(float value, int64_t anchor, int64_t label) {
    list_.append(value, static_cast<uint32_t>(anchor * classes_ + label));
  }

  void every_class_planar(const T* plane, int64_t stride_c, int64_t anchor, int64_t count) {
    for (int64_t c = 0; c < classes_; ++c, plane += stride_c) {
      if (!settings_.filter.allows(c)) continue;
      int64_t i = 0;
      for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
        const Lanes bound = splat(list_.bound());
        const uint32_t m0 = greater(load<float>(plane + i), bound);
        const uint32_t m1 = greater(load<float>(plane + i + kWidth), bound);
        const uint32_t m2 = greater(load<float>(plane + i + 2 * kWidth), bound);
        const uint32_t m3 = greater(load<float>(plane + i + 3 * kWidth), bound);
        if (m0 | m1 | m2 | m3) {
          list_.reserve();
          uint64_t mask = m0 | static_cast<uint64_t>(m1) << kWidth | static_cast<uint64_t>(m2) << (2 * kWidth) |
                          static_cast<uint64_t>(m3) << (3 * kWidth);
          for (; mask; mask &= mask - 1) {
            const int64_t j = i + __builtin_ctzll(mask);
            append(convert<float>(plane[j]), anchor + j, c);
          }
        }
      }
      list_.reserve();
      for (; i < count; ++i) {
        const float value = convert<float>(plane[i]);
        if (value > list_.bound()) append(value, anchor + i, c);
      }
    }
  }

  void best_class_planar(const T* data, int64_t stride_c, int64_t anchor, int64_t count) {
    alignas(64) float best[kTileAnchors];
    for (int64_t tile = 0; tile < count; tile += kTileAnchors) {
      const int64_t size = std::min(kTileAnchors, count - tile);
      const int64_t whole = size / kWidth * kWidth;
      const T* from = data + tile;
      running_maximum(from, stride_c, whole, best);
      for (int64_t i = 0; i < whole; i += kWidth) {
        const uint32_t mask = greater(load<float>(best + i), splat(list_.bound()));
        if (mask) resolve(from + i, stride_c, anchor + tile + i, mask);
      }
      for (int64_t i = whole; i < size; ++i) this->anchor(from + i, stride_c, anchor + tile + i);
    }
  }

  // best[i] = max over classes; NaN is passed over, since max keeps its second operand.
  void running_maximum(const T* from, int64_t stride_c, int64_t size, float* best) {
    std::fill_n(best, size, -std::numeric_limits<float>::infinity());
    int64_t c = 0;
    for (; c + 4 <= classes_; c += 4) {
      const T* p0 = from + c * stride_c;
      const T* p1 = p0 + stride_c;
      const T* p2 = p1 + stride_c;
      const T* p3 = p2 + stride_c;
      for (int64_t i = 0; i < size; i += kWidth) {
        Lanes m = load<float>(best + i);
        m = max(load<float>(p0 + i), m);
        m = max(load<float>(p1 + i), m);
        m = max(load<float>(p2 + i), m);
        m = max(load<float>(p3 + i), m);
        store(best + i, m);
      }
    }
    for (; c < classes_; ++c) {
      for (int64_t i = 0; i < size; i += kWidth) {
        store(best + i, max(load<float>(from + c * stride_c + i), load<float>(best + i)));
      }
    }
  }

  // The best class of each anchor in `mask`; the first of equals.
  void resolve(const T* from, int64_t stride_c, int64_t anchor, uint32_t mask) {
    Lanes best = splat(-std::numeric_limits<float>::infinity());
    Vec<int32_t> label{};
    for (int64_t c = 0; c < classes_; ++c) {
      const Lanes value = load<float>(from + c * stride_c);
      const Vec<int32_t> better = value > best;
      best = better ? value : best;
      label = better ? Vec<int32_t>{} + static_cast<int32_t>(c) : label;
    }
    list_.reserve();
    for (; mask; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      if (settings_.filter.allows(label[lane])) append(best[lane], anchor + lane, label[lane]);
    }
  }

  // One anchor, classes `stride_c` apart: channels_last maps, tails and odd strides.
  void anchor(const T* from, int64_t stride_c, int64_t anchor) {
    if (stride_c == 1 && !any_above(from)) return;
    float best = -std::numeric_limits<float>::infinity();
    int64_t label = -1;
    for (int64_t c = 0; c < classes_; ++c) {
      const float value = convert<float>(from[c * stride_c]);
      if (!(value > list_.bound())) continue;
      if (settings_.multi_label) {
        if (!settings_.filter.allows(c)) continue;
        list_.reserve();
        append(value, anchor, c);
      } else if (value > best) {
        best = value;
        label = c;
      }
    }
    if (label >= 0 && settings_.filter.allows(label)) {
      list_.reserve();
      append(best, anchor, label);
    }
  }

  bool any_above(const T* from) const {
    const Lanes bound = splat(list_.bound());
    int64_t c = 0;
    for (; c + kWidth <= classes_; c += kWidth) {
      if (greater(load<float>(from + c), bound)) return true;
    }
    for (; c < classes_; ++c) {
      if (convert<float>(from[c]) > list_.bound()) return true;
    }
    return false;
  }

  const HeadMap* maps_;
  int32_t levels_;
  int64_t image_;
  int64_t classes_;
  const NmsSettings& settings_;
  CandidateList& list_;
};

}  // namespace
}  // namespace fastyolo
