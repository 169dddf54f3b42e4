// SPDX-License-Identifier: Apache-2.0
// sppf_pool: three chained max pools of stride 1 and the concatenation of all stages, forward and backward.
#pragma once

#include "feature_map.h"

namespace fastyolo {

constexpr int kSppfStages = 3;
constexpr int64_t kMaxPoolKernel = 15;

// y0 = x; y_i = the largest value of y_{i-1} in a window of K x K, padded with -inf to the same size; out = concat(y0,
// y1, y2, y3) over channels. As in torch.nn.functional.max_pool2d, a NaN wins its window, and the gradient goes to one
// element of it: the first that holds the largest value in row-major order, or the last NaN.
struct SppfPoolParams {
  DType dtype = DType::kFloat32;  // of all tensors
  int64_t batch = 0;              // B
  int64_t channels = 0;           // C
  int64_t height = 0;             // H
  int64_t width = 0;              // W
  int64_t kernel = 5;             // K, odd

  FeatureMap x;  // [B, C, H, W]

  MutableFeatureMap out;  // forward: [B, 4C, H, W]

  FeatureMap grad_out;       // backward: [B, 4C, H, W]
  MutableFeatureMap grad_x;  // backward: [B, C, H, W]

  void* workspace = nullptr;  // as many bytes as the function beside the entry says, aligned to kWorkspaceAlignment
  int64_t workspace_bytes = 0;
};

Status check_sppf_pool(const SppfPoolParams& params);

int64_t sppf_pool_workspace_bytes(const SppfPoolParams& params);
Status sppf_pool(const SppfPoolParams& params, Stream stream);
int64_t sppf_pool_backward_workspace_bytes(const SppfPoolParams& params);
Status sppf_pool_backward(const SppfPoolParams& params, Stream stream);

int64_t sppf_pool_cpu_workspace_bytes(const SppfPoolParams& params, int num_threads);
Status sppf_pool_cpu(const SppfPoolParams& params, const ParallelFor& parallel_for);
int64_t sppf_pool_backward_cpu_workspace_bytes(const SppfPoolParams& params, int num_threads);
Status sppf_pool_backward_cpu(const SppfPoolParams& params, const ParallelFor& parallel_for);

}  // namespace fastyolo
