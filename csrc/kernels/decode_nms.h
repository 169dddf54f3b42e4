// SPDX-License-Identifier: Apache-2.0
// decode_nms: raw head maps of a YOLOv8-style detector to final detections.
#pragma once

#include "common.h"
#include "detections.h"

namespace fastyolo {

constexpr int kMaxLevels = 8;

struct HeadMap {
  const void* data = nullptr;  // [B, channels, H, W], element strides below
  int64_t height = 0;
  int64_t width = 0;
  int64_t stride_b = 0;
  int64_t stride_c = 0;
  int64_t stride_h = 0;
  int64_t stride_w = 0;
};

struct DecodeNmsParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;    // B
  int64_t classes = 0;  // C
  int64_t bins = 0;     // R; 1 means the box maps hold distances, not distributions
  int32_t levels = 0;

  HeadMap box_maps[kMaxLevels];     // [B, 4R, H_l, W_l] logits
  HeadMap cls_maps[kMaxLevels];     // [B, C, H_l, W_l] logits
  float strides[kMaxLevels] = {0};  // pixels per cell

  NmsSettings settings;
  Detections out;

  void* workspace = nullptr;  // decode_nms_workspace_bytes(), aligned to kWorkspaceAlignment
  int64_t workspace_bytes = 0;

  int64_t anchors() const {  // A
    int64_t total = 0;
    for (int32_t l = 0; l < levels; ++l) total += box_maps[l].height * box_maps[l].width;
    return total;
  }
};

Status check_decode_nms(const DecodeNmsParams& params);

int64_t decode_nms_workspace_bytes(const DecodeNmsParams& params);
Status decode_nms(const DecodeNmsParams& params, Stream stream);

int64_t decode_nms_cpu_workspace_bytes(const DecodeNmsParams& params, int num_threads);
Status decode_nms_cpu(const DecodeNmsParams& params, const ParallelFor& parallel_for);

}  // namespace fastyolo
