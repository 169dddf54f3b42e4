// SPDX-License-Identifier: Apache-2.0
#include "kernels/dw_sppf.h"

#include <optional>
#include <tuple>

#include "torch/feature_map.h"

namespace fastyolo {
namespace {

constexpr int64_t kOutputs = 1 + kDwSppfStages;  // the stages and x itself

// Contiguous parameters, which the kernels' params point into.
struct Parameters {
  Tensor weight;
  std::optional<Tensor> bias;

  Parameters(const Tensor& weight, const std::optional<Tensor>& bias) : weight(as_contiguous(weight)) {
    if (bias) this->bias = as_contiguous(*bias);
  }
};

// What forward and backward share.
DwSppfParams make_params(const Tensor& x, const Parameters& parameters, int64_t dilation,
                         const std::string& activation) {
  DwSppfParams params = params_of<DwSppfParams>(x);
  const Tensor& weight = parameters.weight;
  if (weight.dim() != 4 || weight.size(0) != kDwSppfStages || weight.size(1) != params.channels ||
      weight.size(2) != weight.size(3)) {
    refuse_shape(weight, "weight",
                 "[" + std::to_string(kDwSppfStages) + ", " + std::to_string(params.channels) + ", K, K]");
  }
  check_device(weight, "weight", x, "x");
  params.weight_dtype = dtype_of(weight, "weight");
  params.weight = weight.const_data_ptr();
  params.kernel = weight.size(2);
  params.dilation = dilation;
  throw_if_error(parse_activation(activation.c_str(), params.activation));
  throw_if_error(check_dw_sppf(params));
  if (const std::optional<Tensor>& bias = parameters.bias) {
    check_shape(*bias, "bias", {kDwSppfStages, params.channels});
    check_device(*bias, "bias", x, "x");
    check_dtype(*bias, "bias", weight, "weight");
    params.bias = bias->const_data_ptr();
  }
  return params;
}

Tensor dw_sppf_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t dilation,
                  const std::string& activation) {
  const Parameters parameters(weight, bias);
  DwSppfParams params = make_params(x, parameters, dilation, activation);
  const Tensor out = empty_map_like(x, kOutputs * params.channels);
  params.out = mutable_view_of(out);
  run(x, params, dw_sppf_cpu_workspace_bytes, dw_sppf_cpu, dw_sppf_workspace_bytes, dw_sppf);
  return out;
}

// grad_x, grad_weight, grad_bias (without elements if there is no bias)
std::tuple<Tensor, Tensor, Tensor> dw_sppf_backward_op(const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                                       const std::optional<Tensor>& bias, int64_t dilation,
                                                       const std::string& activation) {
  const Parameters parameters(weight, bias);
  DwSppfParams params = make_params(x, parameters, dilation, activation);
  params.grad_out = gradient_of(grad_out, "grad_out", x, kOutputs * params.channels);
  const Tensor grad_x = empty_map_like(x, params.channels);
  const Tensor grad_weight =
      empty<4>(weight, {kDwSppfStages, params.channels, params.kernel, params.kernel}, dtype_code(weight));
  const Tensor grad_bias = empty<2>(weight, {bias ? kDwSppfStages : 0, params.channels}, dtype_code(weight));
  params.grad_x = mutable_view_of(grad_x);
  params.grad_weight = grad_weight.mutable_data_ptr();
  if (bias) params.grad_bias = grad_bias.mutable_data_ptr();
  run(x, params, dw_sppf_backward_cpu_workspace_bytes, dw_sppf_backward_cpu, dw_sppf_backward_workspace_bytes,
      dw_sppf_backward);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CPU, m) {
  m.impl("dw_sppf", TORCH_BOX(&dw_sppf_op));
  m.impl("dw_sppf_backward", TORCH_BOX(&dw_sppf_backward_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CUDA, m) {
  m.impl("dw_sppf", TORCH_BOX(&dw_sppf_op));
  m.impl("dw_sppf_backward", TORCH_BOX(&dw_sppf_backward_op));
}

}  // namespace fastyolo
