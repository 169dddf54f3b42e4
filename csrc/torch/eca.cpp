// SPDX-License-Identifier: Apache-2.0
#include "kernels/eca.h"

#include <tuple>

#include "torch/feature_map.h"

namespace fastyolo {
namespace {

// What forward and backward share; `weight` is contiguous and outlives the params.
EcaParams make_params(const Tensor& x, const Tensor& weight) {
  EcaParams params = params_of<EcaParams>(x);
  if (weight.dim() != 1) refuse_shape(weight, "weight", "[k]");
  check_device(weight, "weight", x, "x");
  params.weight_dtype = dtype_of(weight, "weight");
  params.weight = weight.const_data_ptr();
  params.taps = weight.size(0);
  throw_if_error(check_eca(params));
  return params;
}

Tensor eca_op(const Tensor& x, const Tensor& weight) {
  const Tensor dense_weight = as_contiguous(weight);
  EcaParams params = make_params(x, dense_weight);
  const Tensor y = empty_map_like(x, params.channels);
  params.y = mutable_view_of(y);
  run(x, params, eca_cpu_workspace_bytes, eca_cpu, eca_workspace_bytes, eca);
  return y;
}

// grad_x, grad_weight
std::tuple<Tensor, Tensor> eca_backward_op(const Tensor& grad_y, const Tensor& x, const Tensor& weight) {
  const Tensor dense_weight = as_contiguous(weight);
  EcaParams params = make_params(x, dense_weight);
  params.grad_y = gradient_of(grad_y, "grad_y", x, params.channels);
  const Tensor grad_x = empty_map_like(x, params.channels);
  const Tensor grad_weight = empty<1>(weight, {params.taps}, dtype_code(weight));
  params.grad_x = mutable_view_of(grad_x);
  params.grad_weight = grad_weight.mutable_data_ptr();
  run(x, params, eca_backward_cpu_workspace_bytes, eca_backward_cpu, eca_backward_workspace_bytes, eca_backward);
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CPU, m) {
  m.impl("eca", TORCH_BOX(&eca_op));
  m.impl("eca_backward", TORCH_BOX(&eca_backward_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CUDA, m) {
  m.impl("eca", TORCH_BOX(&eca_op));
  m.impl("eca_backward", TORCH_BOX(&eca_backward_op));
}

}  // namespace fastyolo
