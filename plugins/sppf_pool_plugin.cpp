// SPDX-License-Identifier: Apache-2.0
// FastYoloSPPF: x [B, C, H, W] to [B, 4C, H, W], the concatenation of x and three chained max pools.
#include "creators.h"
#include "kernels/sppf_pool.h"

namespace fastyolo {
namespace {

struct SppfPool {
  static constexpr char kName[] = "FastYoloSPPF";
  static constexpr char kInputs[] = "x";
  static constexpr int32_t kOutputs = 1;
  static constexpr auto kCheck = check_sppf_pool;
  static constexpr auto kEntry = sppf_pool;
  static constexpr auto kWorkspaceBytes = sppf_pool_workspace_bytes;

  int32_t kernel_size = 5;

  template <class Self, class F>
  static void visit(Self& self, F&& f) {
    f("kernel_size", self.kernel_size);
  }
  Status check() const {
    SppfPoolParams params;
    params.kernel = kernel_size;
    return check_sppf_pool(params);
  }

  static bool accepts(int32_t inputs) { return inputs == 1; }
  static TensorSpec input(int32_t) { return {"x", 4, Role::kMap}; }
  static TensorSpec output(int32_t) { return {"y", 4, Role::kMap}; }
  static DimsExprs output_dims(int32_t, const DimsExprs* inputs, IExprBuilder& expressions) {
    return concatenated_dims(inputs[0], 1 + kSppfStages, expressions);
  }

  static Status check_shapes(const Tensors&, int32_t) { return Status{}; }

  SppfPoolParams params(const Tensors& inputs, int32_t) const {
    SppfPoolParams params = map_params<SppfPoolParams>(inputs[0]);
    params.kernel = kernel_size;
    return params;
  }
  static void connect(SppfPoolParams& params, const Tensors& outputs) {
    params.out = outputs[0].map<MutableFeatureMap>();
  }
};

}  // namespace

CreatorInterface* sppf_pool_creator() {
  static Creator<SppfPool> creator;
  return &creator;
}

}  // namespace fastyolo
