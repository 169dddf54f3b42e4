// SPDX-License-Identifier: Apache-2.0
// Settings and outputs that decode_nms and multiclass_nms share.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "kernels/detections.h"
#include "torch/tensor.h"

namespace fastyolo {

using ClassIds = std::optional<std::vector<int64_t>>;

inline NmsSettings make_settings(double score_threshold, double iou_threshold, int64_t max_det, int64_t max_candidates,
                                 bool multi_label, bool class_agnostic, const ClassIds& class_ids, int64_t classes) {
  NmsSettings settings;
  settings.score_threshold = score_threshold;
  settings.iou_threshold = iou_threshold;
  settings.max_det = max_det;
  settings.max_candidates = max_candidates;
  settings.multi_label = multi_label;
  settings.class_agnostic = class_agnostic;
  settings.filter.enabled = class_ids.has_value();
  throw_if_error(check_nms_settings(settings, classes));
  if (!class_ids) return settings;
  for (size_t i = 0; i < class_ids->size(); ++i) {
    const int64_t id = (*class_ids)[i];
    if (id < 0 || id >= classes) {
      throw std::runtime_error(Name("classes", i).text() + " must be in [0, " + std::to_string(classes) + "), got " +
                               std::to_string(id));
    }
    settings.filter.words[id >> 5] |= uint32_t{1} << (id & 31);
  }
  return settings;
}

// num_dets, boxes, scores, labels, indices
using DetectionTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

inline DetectionTensors empty_detections(const Tensor& like, int64_t batch, int64_t max_det) {
  const int32_t float32 = aoti_torch_dtype_float32();
  const int32_t int32 = aoti_torch_dtype_int32();
  return {empty<1>(like, {batch}, int32), empty<3>(like, {batch, max_det, 4}, float32),
          empty<2>(like, {batch, max_det}, float32), empty<2>(like, {batch, max_det}, int32),
          empty<2>(like, {batch, max_det}, int32)};
}

inline Detections pointers_of(const DetectionTensors& tensors) {
  Detections out;
  out.num_dets = static_cast<int32_t*>(std::get<0>(tensors).mutable_data_ptr());
  out.boxes = static_cast<float*>(std::get<1>(tensors).mutable_data_ptr());
  out.scores = static_cast<float*>(std::get<2>(tensors).mutable_data_ptr());
  out.labels = static_cast<int32_t*>(std::get<3>(tensors).mutable_data_ptr());
  out.indices = static_cast<int32_t*>(std::get<4>(tensors).mutable_data_ptr());
  return out;
}

}  // namespace fastyolo
