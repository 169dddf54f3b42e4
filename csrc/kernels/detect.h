// SPDX-License-Identifier: Apache-2.0
// Class maps and a source of boxes to final detections on the CPU: what decode_nms and multiclass_nms share.
#pragma once

#include <atomic>

#include "candidates.h"
#include "thresholds.h"

namespace fastyolo {
namespace {

static_assert(sizeof(KeptBlock<float>) == DetectionWorkspace::kBlockBytes, "the workspace is laid out for this size");

// Candidates whose boxes are decoded and tested before the next ones are even sorted.
constexpr int64_t kFirstChunk = 512;

// A set of anchors; iteration is in ascending order, so that reads of the maps share cache lines.
class AnchorSet {
 public:
  AnchorSet(uint64_t* words, int64_t count) : words_(words), count_(count) { std::fill_n(words, count, uint64_t{0}); }

  bool contains(uint32_t anchor) const { return words_[anchor >> 6] >> (anchor & 63) & 1; }
  void insert(uint32_t anchor) { words_[anchor >> 6] |= uint64_t{1} << (anchor & 63); }

  // Calls f for each member and leaves the set empty.
  template <class F>
  void drain(F&& f) {
    for (int64_t w = 0; w < count_; ++w) {
      for (uint64_t word = words_[w]; word; word &= word - 1) f(w * 64 + __builtin_ctzll(word));
      words_[w] = 0;
    }
  }

 private:
  uint64_t* words_;
  int64_t count_;
};

// The class maps of a batch, and what becomes of them.
struct DetectionTask {
  const HeadMap* cls_maps;  // [B, C, H_l, W_l]
  int32_t levels;
  int64_t batch;
  int64_t anchors;
  int64_t classes;
  float bound;             // on the raw values
  bool values_are_logits;  // or probabilities already
  const NmsSettings* settings;
  const Detections* out;
  char* workspace;
};

// T is the element of the class maps. Boxes(image, AnchorSet& wanted, float* boxes [A, 4]) writes the boxes of the
// wanted anchors and empties the set.
template <class T, class Boxes>
class Detector {
 public:
  Detector(const DetectionTask& task, const Boxes& boxes, int num_threads)
      : task_(task),
        settings_(*task.settings),
        boxes_(boxes),
        layout_(task.batch, task.anchors, task.classes, settings_, num_threads) {}

  void run(const ParallelFor& parallel_for) {
    if (layout_.splits == 1) {
      // Dynamic: images differ in how much they hold. Which thread serves an image does not change its answer.
      std::atomic<int64_t> next{0};
      parallel_for(layout_.regions, 1, [&](int64_t begin, int64_t end) {
        for (int64_t region = begin; region < end; ++region) {
          for (int64_t image = next++; image < task_.batch; image = next++) {
            const int64_t count = filter(image, region, 0);
            suppress(image, region, &count);
          }
        }
      });
      return;
    }
    int64_t counts[kMaxCounts];
    const int64_t step = kMaxCounts / layout_.splits;
    for (int64_t first = 0; first < task_.batch; first += step) {
      const int64_t images = std::min(task_.batch - first, step);
      parallel_for(images * layout_.splits, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t image = first + i / layout_.splits;
          counts[i] = filter(image, image, i % layout_.splits);
        }
      });
      parallel_for(images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) suppress(first + i, first + i, counts + i * layout_.splits);
      });
    }
  }

 private:
  static constexpr int64_t kMaxCounts = 1024;  // images x splits in one go

  template <class P>
  P* at(int64_t region, int64_t offset) const {
    return reinterpret_cast<P*>(task_.workspace + region * layout_.region_bytes + offset);
  }

  uint64_t* keys_of(int64_t region, int64_t split) const {
    return at<uint64_t>(region, layout_.keys_offset) + split * layout_.key_capacity;
  }

  int64_t filter(int64_t image, int64_t region, int64_t split) const {
    CandidateList list(keys_of(region, split), layout_.key_capacity, settings_.max_candidates, task_.bound);
    // Splits begin on whole cache lines of any element type.
    const int64_t share = ceil_div<int64_t>(ceil_div(task_.anchors, layout_.splits), 64) * 64;
    const int64_t first = std::min(split * share, task_.anchors);
    const int64_t last = std::min(first + share, task_.anchors);
    CandidateFilter<T>(task_.cls_maps, task_.levels, image, task_.classes, settings_, list).run(first, last);
    return list.finish();
  }

  // The best max_candidates of all splits, moved together.
  int64_t gather(int64_t region, const int64_t* counts) const {
    uint64_t* keys = keys_of(region, 0);
    int64_t count = counts[0];
    for (int64_t split = 1; split < layout_.splits; ++split) {
      std::memmove(keys + count, keys_of(region, split), static_cast<size_t>(counts[split]) * sizeof(uint64_t));
      count += counts[split];
    }
    if (count > settings_.max_candidates) {
      std::nth_element(keys, keys + settings_.max_candidates, keys + count, Descending{});
      count = settings_.max_candidates;
    }
    return count;
  }

  void suppress(int64_t image, int64_t region, const int64_t* counts) const {
    const int64_t count = gather(region, counts);
    const int64_t max_det = settings_.max_det;
    const auto classes = static_cast<uint32_t>(task_.classes);
    uint64_t* words = at<uint64_t>(region, layout_.bits_offset);
    AnchorSet wanted(words, layout_.anchor_words);
    AnchorSet decoded(words + layout_.anchor_words, layout_.anchor_words);
    float* boxes = at<float>(region, layout_.boxes_offset);
    Greedy<float> greedy(at<int32_t>(region, layout_.heads_offset), layout_.groups,
                         at<KeptBlock<float>>(region, layout_.blocks_offset), round_down(settings_.iou_threshold));
    float* out_boxes = task_.out->boxes + image * max_det * 4;
    float* out_scores = task_.out->scores + image * max_det;
    int32_t* out_labels = task_.out->labels + image * max_det;
    int32_t* out_indices = task_.out->indices + image * max_det;

    int64_t kept = 0;
    BestFirst<uint64_t> chunks(keys_of(region, 0), count, kFirstChunk);
    const uint64_t* first;
    const uint64_t* last;
    while (kept < max_det && chunks.next(first, last)) {
      for (const uint64_t* key = first; key < last; ++key) {
        const uint32_t anchor = index_of(*key) / classes;
        if (decoded.contains(anchor)) continue;
        decoded.insert(anchor);
        wanted.insert(anchor);
      }
      boxes_(image, wanted, boxes);
      for (const uint64_t* key = first; key < last && kept < max_det; ++key) {
        const uint32_t index = index_of(*key);
        const uint32_t anchor = index / classes;
        const auto label = static_cast<int32_t>(index - anchor * classes);
        const float* b = boxes + int64_t{4} * anchor;
        const Box<float> box{b[0], b[1], b[2], b[3]};
        const int32_t group = settings_.class_agnostic ? 0 : label;
        if (greedy.is_suppressed(group, box)) continue;
        greedy.keep(group, box);
        std::memcpy(out_boxes + 4 * kept, b, 4 * sizeof(float));
        const float value = value_of<float>(*key);
        out_scores[kept] = task_.values_are_logits ? 1.f / (1.f + std::exp(-value)) : value;
        out_labels[kept] = label;
        out_indices[kept] = static_cast<int32_t>(anchor);
        ++kept;
      }
    }
    task_.out->num_dets[image] = static_cast<int32_t>(kept);
    std::fill_n(out_boxes + 4 * kept, 4 * (max_det - kept), 0.f);
    std::fill_n(out_scores + kept, max_det - kept, 0.f);
    std::fill_n(out_labels + kept, max_det - kept, -1);
    std::fill_n(out_indices + kept, max_det - kept, -1);
  }

  const DetectionTask& task_;
  const NmsSettings& settings_;
  const Boxes& boxes_;
  DetectionWorkspace layout_;
};

}  // namespace
}  // namespace fastyolo
