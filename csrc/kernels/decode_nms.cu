// SPDX-License-Identifier: Apache-2.0
// Head maps to detections on the GPU. The class maps are most of the bytes (43 MB for 32 images of 640x640 pixels, 80
// classes, float16) and are read once; the filter decodes the box of each anchor that has a candidate while its block
// still holds the tile, on all multiprocessors, so that the NMS kernel, one block per image, reads 16 bytes per
// candidate instead of gathering 64 logits. At worst every box is decoded: one read of the box maps.
#include "decode_nms.h"

#include "detect.cuh"
#include "dfl.cuh"
#include "dispatch.h"

namespace fastyolo {
namespace {

template <class T>
struct BoxDecoder {
  static constexpr bool kEnabled = true;

  HeadMap maps[kMaxLevels];   // [B, 4R, H_l, W_l]
  float strides[kMaxLevels];  // pixels per cell
  int32_t first_anchors[kMaxLevels];
  int32_t bins;
  int32_t anchors;
  float* boxes;  // [B, A, 4]

  __device__ void operator()(int image, int level, int anchor, int side) const {
    const HeadMap& map = maps[level];
    const auto width = static_cast<int>(map.width);
    const int row = anchor / width;
    const int column = anchor - row * width;
    const T* data = static_cast<const T*>(map.data) + image * map.stride_b + row * map.stride_h +
                    column * map.stride_w + int64_t{side} * bins * map.stride_c;
    const auto logit = [&](int bin) { return load_float(data + bin * map.stride_c); };
    const float distance = bins == 16 ? decode_distance<16>(bins, logit) : decode_distance<0>(bins, logit);
    const float center = static_cast<float>(side % 2 == 0 ? column : row) + 0.5f;
    const float coordinate = (side < 2 ? center - distance : center + distance) * strides[level];
    boxes[(int64_t{image} * anchors + first_anchors[level] + anchor) * 4 + side] = coordinate;
  }
};

struct DecodedBoxes {
  const float4* boxes;  // [B, A]
  int32_t anchors;

  __device__ float4 load(int image, int anchor) const { return __ldg(boxes + int64_t{image} * anchors + anchor); }
  __device__ static float score(float logit) { return 1.f / (1.f + expf(-logit)); }
  FASTYOLO_HOST_DEVICE static float score_bound(double threshold) { return logit_bound(threshold); }
};

DetectionLayout layout_of(const DecodeNmsParams& p) {
  return DetectionLayout(p.batch, p.anchors(), p.classes, p.settings, /*decodes=*/true);
}

}  // namespace

int64_t decode_nms_workspace_bytes(const DecodeNmsParams& p) { return layout_of(p).bytes; }

Status decode_nms(const DecodeNmsParams& p, Stream stream) {
  const Status status = check_decode_nms(p);
  if (!status.ok() || p.batch == 0) return status;
  const DetectionLayout layout = layout_of(p);
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>(
      "box_maps and cls_maps", p.dtype, [&](auto dtype) {
        using T = Element<dtype.value>;
        const Scores scores = describe_scores<T>(p.cls_maps, p.levels, p.classes, p.settings.filter);
        float* boxes = region<float>(p.workspace, layout.boxes);
        BoxDecoder<T> decoder = {};
        for (int32_t l = 0; l < p.levels; ++l) {
          decoder.maps[l] = p.box_maps[l];
          decoder.strides[l] = p.strides[l];
          decoder.first_anchors[l] = scores.level[l].first_anchor;
        }
        decoder.bins = static_cast<int32_t>(p.bins);
        decoder.anchors = scores.anchors;
        decoder.boxes = boxes;
        const DecodedBoxes decoded{reinterpret_cast<const float4*>(boxes), scores.anchors};
        return detect<T>(scores, decoder, decoded, p.batch, p.settings, p.out, layout, p.workspace, p.workspace_bytes,
                         stream);
      });
}

}  // namespace fastyolo
