// SPDX-License-Identifier: Apache-2.0
#include "kernels/batched_nms.h"

#include <algorithm>

#include "torch/detections.h"

namespace fastyolo {
namespace {

// keep, num_keep
std::tuple<Tensor, Tensor> batched_nms_op(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                                          double iou_threshold, std::optional<int64_t> max_det) {
  if (boxes.dim() != 2 || boxes.size(1) != 4) refuse_shape(boxes, "boxes", "[N, 4]");
  BatchedNmsParams params;
  params.dtype = dtype_of(boxes, "boxes");
  params.count = boxes.size(0);
  params.iou_threshold = iou_threshold;
  params.max_det = std::min(max_det.value_or(params.count), params.count);
  throw_if_error(check_batched_nms(params));

  check_shape(scores, "scores", {params.count});
  check_device(scores, "scores", boxes, "boxes");
  check_dtype(scores, "scores", boxes, "boxes");
  const Tensor dense_boxes = as_contiguous(boxes);
  const Tensor dense_scores = as_contiguous(scores);
  std::optional<Tensor> dense_idxs;
  params.boxes = dense_boxes.const_data_ptr();
  params.scores = dense_scores.const_data_ptr();
  if (idxs) {
    check_shape(*idxs, "idxs", {params.count});
    check_device(*idxs, "idxs", boxes, "boxes");
    if (idxs->scalar_type() != ScalarType::Long) {
      throw std::runtime_error("idxs must be int64, got " + dtype_text(*idxs));
    }
    dense_idxs = as_contiguous(*idxs);
    params.idxs = static_cast<const int64_t*>(dense_idxs->const_data_ptr());
  }

  const Tensor keep = empty<1>(boxes, {params.count}, aoti_torch_dtype_int64());
  const Tensor num_keep = empty<1>(boxes, {1}, aoti_torch_dtype_int32());
  params.keep = static_cast<int64_t*>(keep.mutable_data_ptr());
  params.num_keep = static_cast<int32_t*>(num_keep.mutable_data_ptr());
  run(boxes, params, batched_nms_cpu_workspace_bytes, batched_nms_cpu, batched_nms_workspace_bytes, batched_nms);
  return {keep, num_keep};
}

DetectionTensors multiclass_nms_op(const Tensor& boxes, const Tensor& scores, double score_threshold,
                                   double iou_threshold, int64_t max_det, int64_t max_candidates, bool multi_label,
                                   bool class_agnostic, const ClassIds& class_ids) {
  if (boxes.dim() != 3 || boxes.size(2) != 4) refuse_shape(boxes, "boxes", "[B, N, 4]");
  if (scores.dim() != 3 || scores.size(0) != boxes.size(0) || scores.size(2) != boxes.size(1)) {
    refuse_shape(scores, "scores", "[" + std::to_string(boxes.size(0)) + ", C, " + std::to_string(boxes.size(1)) + "]");
  }
  check_device(scores, "scores", boxes, "boxes");
  check_dtype(scores, "scores", boxes, "boxes");
  check_span(boxes, "boxes");
  check_span(scores, "scores");

  MulticlassNmsParams params;
  params.dtype = dtype_of(boxes, "boxes");
  params.batch = boxes.size(0);
  params.count = boxes.size(1);
  params.classes = scores.size(1);
  params.boxes = boxes.const_data_ptr();
  params.boxes_stride_b = boxes.stride(0);
  params.boxes_stride_n = boxes.stride(1);
  params.boxes_stride_c = boxes.stride(2);
  params.scores = scores.const_data_ptr();
  params.scores_stride_b = scores.stride(0);
  params.scores_stride_c = scores.stride(1);
  params.scores_stride_n = scores.stride(2);
  params.settings = make_settings(score_threshold, iou_threshold, max_det, max_candidates, multi_label, class_agnostic,
                                  class_ids, params.classes);
  throw_if_error(check_multiclass_nms(params));

  const DetectionTensors detections = empty_detections(boxes, params.batch, max_det);
  params.out = pointers_of(detections);
  run(boxes, params, multiclass_nms_cpu_workspace_bytes, multiclass_nms_cpu, multiclass_nms_workspace_bytes,
      multiclass_nms);
  return detections;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CPU, m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_op));
  m.impl("multiclass_nms", TORCH_BOX(&multiclass_nms_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CUDA, m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_op));
  m.impl("multiclass_nms", TORCH_BOX(&multiclass_nms_op));
}

}  // namespace fastyolo
