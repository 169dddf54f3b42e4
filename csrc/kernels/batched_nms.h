// SPDX-License-Identifier: Apache-2.0
// batched_nms: greedy NMS over one list of boxes, per group, with torchvision's results.
// multiclass_nms: the same over [B, N] boxes and [B, C, N] scores with fixed-size outputs.
#pragma once

#include "common.h"
#include "detections.h"

namespace fastyolo {

struct BatchedNmsParams {
  DType dtype = DType::kFloat32;  // of boxes and scores
  int64_t count = 0;              // N

  const void* boxes = nullptr;    // [N, 4] contiguous, xyxy
  const void* scores = nullptr;   // [N]
  const int64_t* idxs = nullptr;  // [N] group of each box, any values; null: one group
  double iou_threshold = 0.5;
  int64_t max_det = 0;  // stop after this many, 0 .. count

  int64_t* keep = nullptr;      // [N]: kept indices by descending score, then -1
  int32_t* num_keep = nullptr;  // [1]

  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

Status check_batched_nms(const BatchedNmsParams& params);

int64_t batched_nms_workspace_bytes(const BatchedNmsParams& params);
Status batched_nms(const BatchedNmsParams& params, Stream stream);

int64_t batched_nms_cpu_workspace_bytes(const BatchedNmsParams& params, int num_threads);
Status batched_nms_cpu(const BatchedNmsParams& params, const ParallelFor& parallel_for);

struct MulticlassNmsParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;    // B
  int64_t count = 0;    // N
  int64_t classes = 0;  // C

  const void* boxes = nullptr;  // [B, N, 4] xyxy in pixels, element strides below
  int64_t boxes_stride_b = 0;
  int64_t boxes_stride_n = 0;
  int64_t boxes_stride_c = 0;
  const void* scores = nullptr;  // [B, C, N] probabilities, element strides below
  int64_t scores_stride_b = 0;
  int64_t scores_stride_c = 0;
  int64_t scores_stride_n = 0;

  NmsSettings settings;
  Detections out;  // indices are box indices in [0, N)

  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

Status check_multiclass_nms(const MulticlassNmsParams& params);

int64_t multiclass_nms_workspace_bytes(const MulticlassNmsParams& params);
Status multiclass_nms(const MulticlassNmsParams& params, Stream stream);

int64_t multiclass_nms_cpu_workspace_bytes(const MulticlassNmsParams& params, int num_threads);
Status multiclass_nms_cpu(const MulticlassNmsParams& params, const ParallelFor& parallel_for);

}  // namespace fastyolo
