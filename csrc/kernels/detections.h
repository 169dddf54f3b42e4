// SPDX-License-Identifier: Apache-2.0
// Settings and outputs that decode_nms and multiclass_nms share.
#pragma once

#include "common.h"

namespace fastyolo {

constexpr int64_t kMaxDetections = 65536;
constexpr int64_t kMaxCandidates = int64_t{1} << 20;
constexpr int64_t kMaxFilteredClasses = 8192;  // the filter travels by value in a kernel's 4 KB of parameters

// Which classes may be reported, as a bit set.
struct ClassFilter {
  bool enabled = false;
  uint32_t words[kMaxFilteredClasses / 32] = {0};

  FASTYOLO_HOST_DEVICE bool allows(int64_t label) const {
    return !enabled || ((words[label >> 5] >> (label & 31)) & 1u);
  }
};

// Greedy non-maximum suppression over the best `max_candidates` scores above `score_threshold`, ties by the lower
// anchor and then the lower class; a candidate goes when its IoU with a kept box of its class (of any class if
// class_agnostic) is above iou_threshold; the best max_det stay.
struct NmsSettings {
  double score_threshold = 0.25;  // in [0, 1]; a score must be above it, and not NaN
  double iou_threshold = 0.7;     // in [0, 1]
  // CUDA only: [2] on the device, score and IoU, in place of the two above and with the same results to the bit. What
  // is outside of [0, 1] counts as its nearer end; if either is NaN, nothing is reported.
  const float* thresholds = nullptr;
  int64_t max_det = 300;           // 0 .. kMaxDetections
  int64_t max_candidates = 30000;  // 1 .. kMaxCandidates
  bool multi_label = false;        // false: an anchor is a candidate for its best class only
  bool class_agnostic = false;
  ClassFilter filter;  // applied after the best class is chosen, before max_candidates
};

struct Detections {
  int32_t* num_dets = nullptr;  // [B]
  float* boxes = nullptr;       // [B, max_det, 4] xyxy in pixels, 16-byte aligned on CUDA; 0 past num_dets
  float* scores = nullptr;      // [B, max_det], descending; 0 past num_dets
  int32_t* labels = nullptr;    // [B, max_det]; -1 past num_dets
  int32_t* indices = nullptr;   // [B, max_det] anchor of each detection; -1 past num_dets
};

Status check_nms_settings(const NmsSettings& settings, int64_t classes);

}  // namespace fastyolo
