// SPDX-License-Identifier: Apache-2.0
// FastYoloDFLDecode: logits [B, 4R, A], anchor_points [2, A] and strides [A] to boxes [B, 4, A].
#include "creators.h"
#include "kernels/dfl_decode.h"

namespace fastyolo {
namespace {

struct DflDecode {
  static constexpr char kName[] = "FastYoloDFLDecode";
  static constexpr char kInputs[] = "logits, anchor_points and strides";
  static constexpr int32_t kOutputs = 1;
  static constexpr auto kCheck = check_dfl_decode;
  static constexpr auto kEntry = dfl_decode;
  static constexpr std::nullptr_t kWorkspaceBytes = nullptr;

  template <class Self, class F>
  static void visit(Self&, F&&) {}
  Status check() const { return Status{}; }

  static bool accepts(int32_t inputs) { return inputs == 3; }
  static TensorSpec input(int32_t i) {
    constexpr TensorSpec kSpecs[] = {
        {"logits", 3, Role::kDense}, {"anchor_points", 2, Role::kFloat32}, {"strides", 1, Role::kFloat32}};
    return kSpecs[i];
  }
  static TensorSpec output(int32_t) { return {"boxes", 3, Role::kDense}; }
  static DimsExprs output_dims(int32_t, const DimsExprs* inputs, IExprBuilder& expressions) {
    DimsExprs dims = inputs[0];
    dims.d[1] = expressions.constant(4);
    return dims;
  }

  static Status check_shapes(const Tensors& inputs, int32_t) {
    const int64_t anchors = inputs[0].size(2);
    Status status = check_distributions("logits", inputs[0]);
    if (status.ok()) status = check_shape("anchor_points", inputs[1], {2, anchors});
    return status.ok() ? check_shape("strides", inputs[2], {anchors}) : status;
  }

  static DflDecodeParams params(const Tensors& inputs, int32_t) {
    const Tensor logits = inputs[0];
    DflDecodeParams params;
    params.dtype = logits.dtype();
    params.batch = logits.size(0);
    params.bins = logits.size(1) / 4;
    params.anchors = logits.size(2);
    params.logits = logits.data();
    params.logits_stride_b = logits.stride(0);
    params.logits_stride_c = logits.stride(1);
    params.logits_stride_a = logits.stride(2);
    params.anchor_points = inputs[1].data();
    params.strides = inputs[2].data();
    return params;
  }
  static void connect(DflDecodeParams& params, const Tensors& outputs) { params.boxes = outputs[0].data(); }
};

}  // namespace

CreatorInterface* dfl_decode_creator() {
  static Creator<DflDecode> creator;
  return &creator;
}

}  // namespace fastyolo
