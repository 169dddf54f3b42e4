// SPDX-License-Identifier: Apache-2.0
#include "kernels/decode_nms.h"

#include "torch/detections.h"

namespace fastyolo {
namespace {

void check_map(const Tensor& map, Name name, const char* shape, const Tensor& first, Name first_name) {
  if (map.dim() != 4) refuse_shape(map, name, shape);
  check_device(map, name, first, first_name);
  check_dtype(map, name, first, first_name);
  check_span(map, name);
}

void check_channels(const Tensor& map, Name name, int64_t batch, int64_t channels) {
  if (map.size(0) != batch || map.size(1) != channels) {
    refuse_shape(map, name, "[" + std::to_string(batch) + ", " + std::to_string(channels) + ", H, W]");
  }
}

HeadMap view_of(const Tensor& map) {
  return {map.const_data_ptr(), map.size(2), map.size(3), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

DetectionTensors decode_nms_op(const std::vector<Tensor>& box_maps, const std::vector<Tensor>& cls_maps,
                               const std::vector<double>& strides, double score_threshold, double iou_threshold,
                               int64_t max_det, int64_t max_candidates, bool multi_label, bool class_agnostic,
                               const ClassIds& class_ids) {
  const size_t levels = box_maps.size();
  if (levels < 1 || levels > kMaxLevels) {
    throw_if_error(Status::error("box_maps must hold 1 to %d levels, got %zu", kMaxLevels, levels));
  }
  if (cls_maps.size() != levels || strides.size() != levels) {
    throw_if_error(Status::error("cls_maps and strides must hold %zu levels like box_maps, got %zu and %zu", levels,
                                 cls_maps.size(), strides.size()));
  }
  const Tensor& first = box_maps[0];
  const Name first_name("box_maps", 0);
  DecodeNmsParams params;
  params.levels = static_cast<int32_t>(levels);
  for (size_t l = 0; l < levels; ++l) {
    const Name box_name("box_maps", l);
    const Name cls_name("cls_maps", l);
    check_map(box_maps[l], box_name, "[B, 4R, H, W]", first, first_name);
    check_map(cls_maps[l], cls_name, "[B, C, H, W]", first, first_name);
    const int64_t bins = bins_of(box_maps[l], box_name);
    if (l == 0) {
      params.dtype = dtype_of(first, first_name);
      params.batch = first.size(0);
      params.bins = bins;
      params.classes = cls_maps[0].size(1);
    }
    check_channels(box_maps[l], box_name, params.batch, 4 * params.bins);
    check_channels(cls_maps[l], cls_name, params.batch, params.classes);
    params.box_maps[l] = view_of(box_maps[l]);
    params.cls_maps[l] = view_of(cls_maps[l]);
    params.strides[l] = static_cast<float>(strides[l]);
  }
  params.settings = make_settings(score_threshold, iou_threshold, max_det, max_candidates, multi_label, class_agnostic,
                                  class_ids, params.classes);
  throw_if_error(check_decode_nms(params));

  const DetectionTensors detections = empty_detections(first, params.batch, max_det);
  params.out = pointers_of(detections);
  run(first, params, decode_nms_cpu_workspace_bytes, decode_nms_cpu, decode_nms_workspace_bytes, decode_nms);
  return detections;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CPU, m) { m.impl("decode_nms", TORCH_BOX(&decode_nms_op)); }
STABLE_TORCH_LIBRARY_IMPL(fastyolo, CUDA, m) { m.impl("decode_nms", TORCH_BOX(&decode_nms_op)); }

}  // namespace fastyolo
