// SPDX-License-Identifier: Apache-2.0
// dw_sppf: three chained depthwise convolutions and the concatenation of all stages, forward and backward.
#pragma once

#include "feature_map.h"

namespace fastyolo {

constexpr int kDwSppfStages = 3;

enum class Activation : int32_t { kIdentity, kRelu, kSilu };

// y0 = x; z_i = depthwise(y_{i-1}, weight[i-1]) + bias[i-1], zero-padded to the same size; y_i = activation(z_i);
// out = concat(y0, y1, y2, y3) over channels. The stages pass each other unrounded values.
struct DwSppfParams {
  DType dtype = DType::kFloat32;         // of x, out, grad_out and grad_x
  DType weight_dtype = DType::kFloat32;  // of weight, bias and their gradients: dtype, or float32 beside half precision
  int64_t batch = 0;                     // B
  int64_t channels = 0;                  // C
  int64_t height = 0;                    // H
  int64_t width = 0;                     // W
  int64_t kernel = 3;                    // K: 3 or 5
  int64_t dilation = 2;                  // 1 or 2
  Activation activation = Activation::kIdentity;

  FeatureMap x;                  // [B, C, H, W]
  const void* weight = nullptr;  // [3, C, K, K] contiguous
  const void* bias = nullptr;    // [3, C] contiguous, or null

  MutableFeatureMap out;  // forward: [B, 4C, H, W]

  FeatureMap grad_out;          // backward: [B, 4C, H, W]
  MutableFeatureMap grad_x;     // backward: [B, C, H, W]
  void* grad_weight = nullptr;  // backward: [3, C, K, K] contiguous
  void* grad_bias = nullptr;    // backward: [3, C] contiguous, null exactly if bias is

  void* workspace = nullptr;  // as many bytes as the function beside the entry says, aligned to kWorkspaceAlignment
  int64_t workspace_bytes = 0;
};

Status parse_activation(const char* name, Activation& activation);
Status check_dw_sppf(const DwSppfParams& params);

int64_t dw_sppf_workspace_bytes(const DwSppfParams& params);
Status dw_sppf(const DwSppfParams& params, Stream stream);
int64_t dw_sppf_backward_workspace_bytes(const DwSppfParams& params);
Status dw_sppf_backward(const DwSppfParams& params, Stream stream);

int64_t dw_sppf_cpu_workspace_bytes(const DwSppfParams& params, int num_threads);
Status dw_sppf_cpu(const DwSppfParams& params, const ParallelFor& parallel_for);
int64_t dw_sppf_backward_cpu_workspace_bytes(const DwSppfParams& params, int num_threads);
Status dw_sppf_backward_cpu(const DwSppfParams& params, const ParallelFor& parallel_for);

}  // namespace fastyolo
