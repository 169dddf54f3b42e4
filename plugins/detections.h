// SPDX-License-Identifier: Apache-2.0
// Fields and outputs that FastYoloDecodeNMS and FastYoloBatchedNMS share.
#pragma once

#include <algorithm>

#include "kernels/detections.h"
#include "plugin.h"

namespace fastyolo {

struct NmsFields {
  float score_threshold = 0.25f;
  float iou_threshold = 0.7f;
  int32_t max_det = 300;
  int32_t max_candidates = 30000;
  int32_t multi_label = 0;       // 0 or 1: ONNX has no bool attributes
  int32_t class_agnostic = 0;    // 0 or 1
  std::vector<int32_t> classes;  // none: all

  template <class Self, class F>
  static void visit(Self& self, F&& f) {
    f("score_threshold", self.score_threshold);
    f("iou_threshold", self.iou_threshold);
    f("max_det", self.max_det);
    f("max_candidates", self.max_candidates);
    f("multi_label", self.multi_label);
    f("class_agnostic", self.class_agnostic);
    f("classes", self.classes);
  }

  Status check() const {
    for (const auto& [name, value] : {std::pair{"multi_label", multi_label}, {"class_agnostic", class_agnostic}}) {
      if (value != 0 && value != 1) return Status::error("field %s must be 0 or 1, got %d", name, value);
    }
    const Status status = check_classes(kMaxFilteredClasses);
    return status.ok() ? check_nms_settings(settings(nullptr), 1) : status;
  }

  // Of a model that has so many.
  Status check_classes(int64_t count) const {
    for (size_t i = 0; i < classes.size(); ++i) {
      if (classes[i] >= 0 && classes[i] < count) continue;
      return Status::error("field classes[%zu] must be in [0, %lld), got %d", i, static_cast<long long>(count),
                           classes[i]);
    }
    return Status{};
  }

  NmsSettings settings(const float* thresholds) const {
    NmsSettings settings;
    settings.score_threshold = score_threshold;
    settings.iou_threshold = iou_threshold;
    settings.thresholds = thresholds;
    settings.max_det = max_det;
    settings.max_candidates = max_candidates;
    settings.multi_label = multi_label != 0;
    settings.class_agnostic = class_agnostic != 0;
    settings.filter.enabled = !classes.empty();
    for (const int32_t id : classes) settings.filter.words[id / 32] |= uint32_t{1} << id % 32;
    return settings;
  }
};

constexpr int32_t kDetectionOutputs = 5;
constexpr TensorSpec kThresholds = {"thresholds", 1, Role::kFloat32};

inline TensorSpec detection_output(int32_t i) {
  constexpr TensorSpec kSpecs[kDetectionOutputs] = {{"num_dets", 1, Role::kInt32},
                                                    {"boxes", 3, Role::kFloat32},
                                                    {"scores", 2, Role::kFloat32},
                                                    {"labels", 2, Role::kInt32},
                                                    {"indices", 2, Role::kInt32}};
  return kSpecs[i];
}

// [B], [B, max_det, 4] or [B, max_det], whatever is found.
inline DimsExprs detection_dims(int32_t output, const DimsExprs& first_input, int32_t max_det,
                                IExprBuilder& expressions) {
  DimsExprs dims{};
  dims.nbDims = detection_output(output).rank;
  dims.d[0] = first_input.d[0];
  if (dims.nbDims > 1) dims.d[1] = expressions.constant(max_det);
  if (dims.nbDims > 2) dims.d[2] = expressions.constant(4);
  return dims;
}

inline Detections connect_detections(const Tensors& outputs) {
  return {outputs[0].data<int32_t>(), outputs[1].data<float>(), outputs[2].data<float>(), outputs[3].data<int32_t>(),
          outputs[4].data<int32_t>()};
}

}  // namespace fastyolo
