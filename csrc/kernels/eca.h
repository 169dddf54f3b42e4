// SPDX-License-Identifier: Apache-2.0
// eca: efficient channel attention, forward and backward.
#pragma once

#include "feature_map.h"

namespace fastyolo {

constexpr int64_t kMaxEcaTaps = 31;

// m[b, c] = mean of x[b, c]; z[b, c] = sum_j weight[j] * m[b, c + j - k / 2], zero beyond the channels;
// y = x * sigmoid(z).
struct EcaParams {
  DType dtype = DType::kFloat32;         // of x, y, grad_y and grad_x
  DType weight_dtype = DType::kFloat32;  // of weight and grad_weight: dtype, or float32 beside a half-precision x
  int64_t batch = 0;                     // B
  int64_t channels = 0;                  // C
  int64_t height = 0;                    // H
  int64_t width = 0;                     // W
  int64_t taps = 0;                      // k, odd

  FeatureMap x;                  // [B, C, H, W]
  const void* weight = nullptr;  // [k] contiguous

  MutableFeatureMap y;  // forward: [B, C, H, W]

  FeatureMap grad_y;            // backward: [B, C, H, W]
  MutableFeatureMap grad_x;     // backward: [B, C, H, W]
  void* grad_weight = nullptr;  // backward: [k] contiguous

  void* workspace = nullptr;  // as many bytes as the function beside the entry says, aligned to kWorkspaceAlignment
  int64_t workspace_bytes = 0;
};

Status check_eca(const EcaParams& params);

int64_t eca_workspace_bytes(const EcaParams& params);
Status eca(const EcaParams& params, Stream stream);
int64_t eca_backward_workspace_bytes(const EcaParams& params);
Status eca_backward(const EcaParams& params, Stream stream);

int64_t eca_cpu_workspace_bytes(const EcaParams& params, int num_threads);
Status eca_cpu(const EcaParams& params, const ParallelFor& parallel_for);
int64_t eca_backward_cpu_workspace_bytes(const EcaParams& params, int num_threads);
Status eca_backward_cpu(const EcaParams& params, const ParallelFor& parallel_for);

}  // namespace fastyolo
