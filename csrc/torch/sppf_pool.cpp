// SPDX-License-Identifier: Apache-2.0
#include "kernels/sppf_pool.h"

#include "torch/feature_map.h"

namespace fastyolo {
namespace {

// What forward and backward share.
SppfPoolParams make_params(const Tensor& x, int64_t kernel) {
  SppfPoolParams params = params_of<SppfPoolParams>(x);
  params.kernel = kernel;
  throw_if_error(check_sppf_pool(params));
  return params;
}

Tensor sppf_pool_op(const Tensor& x, int64_t kernel) {
  SppfPoolParams params = make_params(x, kernel);
  const Tensor out = empty_map_like(x, (1 + kSppfStages) * params.channels);
  params.out = mutable_view_of(out);
  run(x, params, sppf_pool_cpu_workspace_bytes, sppf_pool_cpu, sppf_pool_workspace_bytes, sppf_pool);
  return out;
}

Tensor sppf_pool_backward_op(const Tensor& grad_out, const Tensor& x, int64_t kernel) {
  SppfPoolParams params = make_params(x, kernel);
  params.grad_out = gradient_of(grad_out, "grad_out", x, (1 + kSppfStages) * params.channels);
  const Tensor grad_x = empty_map_like(x, params.channels);
  params.grad_x = mutable_view_of(grad_x);
  run(x, params, sppf_pool_backward_cpu_workspace_bytes, sppf_pool_backward_cpu, sppf_pool_backward_workspace_bytes,
      sppf_pool_backward);
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CPU, m) {
  m.impl("sppf_pool", TORCH_BOX(&sppf_pool_op));
  m.impl("sppf_pool_backward", TORCH_BOX(&sppf_pool_backward_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CUDA, m) {
  m.impl("sppf_pool", TORCH_BOX(&sppf_pool_op));
  m.impl("sppf_pool_backward", TORCH_BOX(&sppf_pool_backward_op));
}

}  // namespace fastyolo
