// SPDX-License-Identifier: Apache-2.0
// FastYoloBatchedNMS: boxes [B, N, 4], scores [B, C, N] and optionally thresholds [2] to detections of fixed size.
#include "creators.h"
#include "detections.h"
#include "kernels/batched_nms.h"

namespace fastyolo {
namespace {

struct BatchedNms : NmsFields {
  static constexpr char kName[] = "FastYoloBatchedNMS";
  static constexpr char kInputs[] = "boxes, scores and optionally thresholds";
  static constexpr int32_t kOutputs = kDetectionOutputs;
  static constexpr auto kCheck = check_multiclass_nms;
  static constexpr auto kEntry = multiclass_nms;
  static constexpr auto kWorkspaceBytes = multiclass_nms_workspace_bytes;

  static bool accepts(int32_t inputs) { return inputs == 2 || inputs == 3; }
  static TensorSpec input(int32_t i) {
    constexpr TensorSpec kSpecs[] = {{"boxes", 3, Role::kDense}, {"scores", 3, Role::kDense}, kThresholds};
    return kSpecs[i];
  }
  static TensorSpec output(int32_t i) { return detection_output(i); }
  DimsExprs output_dims(int32_t i, const DimsExprs* inputs, IExprBuilder& expressions) const {
    return detection_dims(i, inputs[0], max_det, expressions);
  }

  Status check_shapes(const Tensors& inputs, int32_t count) const {
    const Tensor boxes = inputs[0];
    Status status = check_shape("boxes", boxes, {kAny, kAny, 4});
    if (status.ok()) status = check_shape("scores", inputs[1], {boxes.size(0), kAny, boxes.size(1)});
    if (status.ok() && count == 3) status = check_shape("thresholds", inputs[2], {2});
    return status.ok() ? check_classes(inputs[1].size(1)) : status;
  }

  MulticlassNmsParams params(const Tensors& inputs, int32_t count) const {
    const Tensor boxes = inputs[0];
    const Tensor scores = inputs[1];
    MulticlassNmsParams params;
    params.dtype = boxes.dtype();
    params.batch = boxes.size(0);
    params.count = boxes.size(1);
    params.classes = scores.size(1);
    params.boxes = boxes.data();
    params.boxes_stride_b = boxes.stride(0);
    params.boxes_stride_n = boxes.stride(1);
    params.boxes_stride_c = boxes.stride(2);
    params.scores = scores.data();
    params.scores_stride_b = scores.stride(0);
    params.scores_stride_c = scores.stride(1);
    params.scores_stride_n = scores.stride(2);
    params.settings = settings(count == 3 ? inputs[2].data<float>() : nullptr);
    return params;
  }
  static void connect(MulticlassNmsParams& params, const Tensors& outputs) { params.out = connect_detections(outputs); }
};

}  // namespace

CreatorInterface* batched_nms_creator() {
  static Creator<BatchedNms> creator;
  return &creator;
}

}  // namespace fastyolo
