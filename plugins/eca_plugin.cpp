// SPDX-License-Identifier: Apache-2.0
// FastYoloECA: x [B, C, H, W] and weight [k] to y [B, C, H, W].
#include "creators.h"
#include "kernels/eca.h"

namespace fastyolo {
namespace {

struct Eca {
  static constexpr char kName[] = "FastYoloECA";
  static constexpr char kInputs[] = "x and weight";
  static constexpr int32_t kOutputs = 1;
  static constexpr auto kCheck = check_eca;
  static constexpr auto kEntry = eca;
  static constexpr auto kWorkspaceBytes = eca_workspace_bytes;

  template <class Self, class F>
  static void visit(Self&, F&&) {}
  Status check() const { return Status{}; }

  static bool accepts(int32_t inputs) { return inputs == 2; }
  static TensorSpec input(int32_t i) {
    return i == 0 ? TensorSpec{"x", 4, Role::kMap} : TensorSpec{"weight", 1, Role::kWeights};
  }
  static TensorSpec output(int32_t) { return {"y", 4, Role::kMap}; }
  static DimsExprs output_dims(int32_t, const DimsExprs* inputs, IExprBuilder&) { return inputs[0]; }

  static Status check_shapes(const Tensors&, int32_t) { return Status{}; }

  static EcaParams params(const Tensors& inputs, int32_t) {
    EcaParams params = map_params<EcaParams>(inputs[0]);
    params.weight_dtype = inputs[1].dtype();
    params.taps = inputs[1].size(0);
    params.weight = inputs[1].data();
    return params;
  }
  static void connect(EcaParams& params, const Tensors& outputs) { params.y = outputs[0].map<MutableFeatureMap>(); }
};

}  // namespace

CreatorInterface* eca_creator() {
  static Creator<Eca> creator;
  return &creator;
}

}  // namespace fastyolo
