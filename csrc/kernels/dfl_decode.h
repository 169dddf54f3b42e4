// SPDX-License-Identifier: Apache-2.0
// dfl_decode: distribution focal loss logits to boxes, forward and backward.
#pragma once

#include "common.h"

namespace fastyolo {

// d_side = sum_i i * softmax(logits[side])_i in grid cells; box = ((ax - d0), (ay - d1), (ax + d2), (ay + d3)) *
// stride. With bins == 1 there is no distribution: the logit is the distance (reg_max = 1 heads).
struct DflDecodeParams {
  DType dtype = DType::kFloat32;  // of logits, boxes, grad_boxes and grad_logits
  int64_t batch = 0;              // B
  int64_t anchors = 0;            // A
  int64_t bins = 0;               // R

  const void* logits = nullptr;  // [B, 4R, A], element strides below
  int64_t logits_stride_b = 0;
  int64_t logits_stride_c = 0;
  int64_t logits_stride_a = 0;

  // float32, or float64 when dtype is float64
  const void* anchor_points = nullptr;  // [2, A] contiguous, grid cells
  const void* strides = nullptr;        // [A] contiguous, pixels per cell

  void* boxes = nullptr;  // forward: [B, 4, A] contiguous, xyxy in pixels

  const void* grad_boxes = nullptr;  // backward: [B, 4, A] contiguous
  void* grad_logits = nullptr;       // backward: [B, 4R, A] with the strides below
  int64_t grad_logits_stride_b = 0;
  int64_t grad_logits_stride_c = 0;
  int64_t grad_logits_stride_a = 0;
};

Status check_dfl_decode(const DflDecodeParams& params);

Status dfl_decode(const DflDecodeParams& params, Stream stream);
Status dfl_decode_backward(const DflDecodeParams& params, Stream stream);

Status dfl_decode_cpu(const DflDecodeParams& params, const ParallelFor& parallel_for);
Status dfl_decode_backward_cpu(const DflDecodeParams& params, const ParallelFor& parallel_for);

}  // namespace fastyolo
