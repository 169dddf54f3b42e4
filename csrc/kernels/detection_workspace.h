// SPDX-License-Identifier: Apache-2.0
// How the CPU side of decode_nms and multiclass_nms divides its workspace.
#pragma once

#include <algorithm>

#include "detections.h"

namespace fastyolo {
namespace {

// One region serves one image at a time. With at least as many images as threads, each thread has a region and takes
// images in turn; with fewer, each image has one and its anchors are split between threads.
struct DetectionWorkspace {
  int64_t regions;
  int64_t splits;        // of an image's anchors
  int64_t key_capacity;  // per split

  int64_t keys_offset;   // uint64 [splits, key_capacity]
  int64_t bits_offset;   // uint64 [2, anchor_words]: wanted and decoded anchors
  int64_t boxes_offset;  // float [anchors, 4]
  int64_t heads_offset;  // int32 [groups]
  int64_t blocks_offset;
  int64_t region_bytes;

  int64_t anchor_words;
  int64_t groups;

  static constexpr int64_t kBlockBytes = 384;  // sizeof(KeptBlock<float>)
  static constexpr int64_t kMinShare = 1024;   // anchors: a few microseconds of work, about what waking a thread costs
  static constexpr int64_t kMaxSplits = 64;
  static constexpr int64_t kKeySlack = 64;  // keys appended between two capacity checks

  DetectionWorkspace(int64_t batch, int64_t anchors, int64_t classes, const NmsSettings& s, int num_threads) {
    const int64_t threads = std::max(1, num_threads);
    regions = std::min(std::max<int64_t>(batch, 1), threads);
    const int64_t useful = std::clamp(ceil_div(anchors, kMinShare), int64_t{1}, kMaxSplits);
    splits = std::min(ceil_div(threads, std::max<int64_t>(batch, 1)), useful);
    groups = s.class_agnostic ? 1 : classes;
    anchor_words = ceil_div<int64_t>(anchors, 64);
    const int64_t scores = s.multi_label ? anchors * classes : anchors;
    key_capacity = std::min(scores, 2 * s.max_candidates) + kKeySlack;

    int64_t bytes = 0;
    const auto take = [&bytes](int64_t size) {
      const int64_t offset = bytes;
      bytes += align_up(size);
      return offset;
    };
    keys_offset = take(splits * key_capacity * 8);
    bits_offset = take(2 * anchor_words * 8);
    boxes_offset = take(anchors * 16);
    heads_offset = take(groups * 4);
    blocks_offset = take((ceil_div<int64_t>(s.max_det, 16) + std::min(groups, s.max_det)) * kBlockBytes);
    region_bytes = bytes;
  }

  int64_t bytes() const { return regions * region_bytes; }
};

}  // namespace
}  // namespace fastyolo
