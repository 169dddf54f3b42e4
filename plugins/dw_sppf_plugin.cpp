// SPDX-License-Identifier: Apache-2.0
// FastYoloDWSPPF: x [B, C, H, W], weight [3, C, K, K] and, or without it, bias [3, C] to [B, 4C, H, W], the
// concatenation of x and three chained depthwise convolutions.
#include "creators.h"
#include "kernels/dw_sppf.h"

namespace fastyolo {
namespace {

struct DwSppf {
  static constexpr char kName[] = "FastYoloDWSPPF";
  static constexpr char kInputs[] = "x, weight and optionally bias";
  static constexpr int32_t kOutputs = 1;
  static constexpr auto kCheck = check_dw_sppf;
  static constexpr auto kEntry = dw_sppf;
  static constexpr auto kWorkspaceBytes = dw_sppf_workspace_bytes;

  int32_t dilation = 2;
  std::string activation = "identity";

  template <class Self, class F>
  static void visit(Self& self, F&& f) {
    f("dilation", self.dilation);
    f("activation", self.activation);
  }
  Status check() const {
    DwSppfParams params;
    params.dilation = dilation;
    const Status status = parse_activation(activation.c_str(), params.activation);
    return status.ok() ? check_dw_sppf(params) : status;
  }

  static bool accepts(int32_t inputs) { return inputs == 2 || inputs == 3; }
  static TensorSpec input(int32_t i) {
    constexpr TensorSpec kSpecs[] = {{"x", 4, Role::kMap}, {"weight", 4, Role::kWeights}, {"bias", 2, Role::kWeights}};
    return kSpecs[i];
  }
  static TensorSpec output(int32_t) { return {"y", 4, Role::kMap}; }
  static DimsExprs output_dims(int32_t, const DimsExprs* inputs, IExprBuilder& expressions) {
    return concatenated_dims(inputs[0], 1 + kDwSppfStages, expressions);
  }

  static Status check_shapes(const Tensors& inputs, int32_t count) {
    const int64_t channels = inputs[0].size(1);
    const int64_t kernel = inputs[1].size(2);
    const Status status = check_shape("weight", inputs[1], {kDwSppfStages, channels, kernel, kernel});
    return status.ok() && count == 3 ? check_shape("bias", inputs[2], {kDwSppfStages, channels}) : status;
  }

  DwSppfParams params(const Tensors& inputs, int32_t count) const {
    DwSppfParams params = map_params<DwSppfParams>(inputs[0]);
    params.weight_dtype = inputs[1].dtype();
    params.kernel = inputs[1].size(2);
    params.dilation = dilation;
    (void)parse_activation(activation.c_str(), params.activation);  // check() has
    params.weight = inputs[1].data();
    if (count == 3) params.bias = inputs[2].data();
    return params;
  }
  static void connect(DwSppfParams& params, const Tensors& outputs) {
    params.out = outputs[0].map<MutableFeatureMap>();
  }
};

}  // namespace

CreatorInterface* dw_sppf_creator() {
  static Creator<DwSppf> creator;
  return &creator;
}

}  // namespace fastyolo
