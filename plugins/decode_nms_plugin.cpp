// SPDX-License-Identifier: Apache-2.0
// FastYoloDecodeNMS: box maps [B, 4R, H_l, W_l] and class maps [B, C, H_l, W_l] of a head's levels, and optionally
// thresholds [2], to detections of fixed size.
#include <cmath>
#include <cstdio>

#include "creators.h"
#include "detections.h"
#include "kernels/decode_nms.h"

namespace fastyolo {
namespace {

// "box_maps[1]"
struct Name {
  char text[24];

  Name(const char* list, int32_t level) { std::snprintf(text, sizeof(text), "%s[%d]", list, static_cast<int>(level)); }
};

struct DecodeNms : NmsFields {
  static constexpr char kName[] = "FastYoloDecodeNMS";
  static constexpr char kInputs[] =
      "as many box maps and then class maps as there are strides, and optionally thresholds";
  static constexpr int32_t kOutputs = kDetectionOutputs;
  static constexpr auto kCheck = check_decode_nms;
  static constexpr auto kEntry = decode_nms;
  static constexpr auto kWorkspaceBytes = decode_nms_workspace_bytes;

  std::vector<float> strides;  // of the levels, pixels per cell; no default

  template <class Self, class F>
  static void visit(Self& self, F&& f) {
    f("strides", self.strides);
    NmsFields::visit(self, f);
  }
  Status check() const {
    if (strides.empty() || strides.size() > kMaxLevels) {
      return Status::error("field strides must hold 1 to %d numbers, one per level, got %zu", kMaxLevels,
                           strides.size());
    }
    for (size_t l = 0; l < strides.size(); ++l) {
      if (std::isfinite(strides[l]) && strides[l] > 0) continue;
      return Status::error("field strides[%zu] must be a positive number of pixels, got %g", l, strides[l]);
    }
    return NmsFields::check();
  }

  int32_t levels() const { return static_cast<int32_t>(strides.size()); }

  bool accepts(int32_t inputs) const { return inputs == 2 * levels() || inputs == 2 * levels() + 1; }
  TensorSpec input(int32_t i) const {
    if (i == 2 * levels()) return kThresholds;
    return {i < levels() ? "box_maps" : "cls_maps", 4, Role::kMap};
  }
  static TensorSpec output(int32_t i) { return detection_output(i); }
  DimsExprs output_dims(int32_t i, const DimsExprs* inputs, IExprBuilder& expressions) const {
    return detection_dims(i, inputs[0], max_det, expressions);
  }

  Status check_shapes(const Tensors& inputs, int32_t count) const {
    const Tensor first = inputs[0];
    const int64_t classes = inputs[levels()].size(1);
    Status status = check_distributions("box_maps[0]", first);
    for (int32_t l = 0; status.ok() && l < levels(); ++l) {
      const Tensor box = inputs[l];
      status = check_shape(Name("box_maps", l).text, box, {first.size(0), first.size(1), kAny, kAny});
      if (!status.ok()) break;
      status = check_shape(Name("cls_maps", l).text, inputs[levels() + l],
                           {first.size(0), classes, box.size(2), box.size(3)});
    }
    if (status.ok() && count > 2 * levels()) status = check_shape("thresholds", inputs[2 * levels()], {2});
    return status.ok() ? check_classes(classes) : status;
  }

  DecodeNmsParams params(const Tensors& inputs, int32_t count) const {
    DecodeNmsParams params;
    params.dtype = inputs[0].dtype();
    params.batch = inputs[0].size(0);
    params.bins = inputs[0].size(1) / 4;
    params.classes = inputs[levels()].size(1);
    params.levels = levels();
    for (int32_t l = 0; l < levels(); ++l) {
      params.box_maps[l] = head_map(inputs[l]);
      params.cls_maps[l] = head_map(inputs[levels() + l]);
      params.strides[l] = strides[l];
    }
    params.settings = settings(count > 2 * levels() ? inputs[2 * levels()].data<float>() : nullptr);
    return params;
  }
  static void connect(DecodeNmsParams& params, const Tensors& outputs) { params.out = connect_detections(outputs); }

  static HeadMap head_map(const Tensor& map) {
    return {map.data(), map.size(2), map.size(3), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
  }
};
static_assert(2 * kMaxLevels + 1 <= kMaxInputs);

}  // namespace

CreatorInterface* decode_nms_creator() {
  static Creator<DecodeNms> creator;
  return &creator;
}

}  // namespace fastyolo
