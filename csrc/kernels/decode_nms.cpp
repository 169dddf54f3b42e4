// SPDX-License-Identifier: Apache-2.0
// Head maps to detections on the CPU. The class maps (2.7 MB per 640x640 image at 80 classes) are read once and bound
// the time; the box maps are read only at the anchors that survive, whose distributions are decoded kLanes at a time.
#include "decode_nms.h"

#include "detect.h"
#include "dfl.h"
#include "dispatch.h"
#include "thresholds.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

template <int Bins, class T>
class DflBoxes {
 public:
  explicit DflBoxes(const DecodeNmsParams& params) : p_(params) {}

  void operator()(int64_t image, AnchorSet& wanted, float* boxes) const {
    int64_t pending[kWidth];  // positions in the level
    int count = 0;
    int32_t level = 0;
    int64_t base = 0;  // first anchor of the level
    wanted.drain([&](int64_t anchor) {
      while (anchor >= base + size_of_level(level)) {
        decode(image, level, base, pending, count, boxes);
        count = 0;
        base += size_of_level(level++);
      }
      pending[count++] = anchor - base;
      if (count == kWidth) {
        decode(image, level, base, pending, count, boxes);
        count = 0;
      }
    });
    decode(image, level, base, pending, count, boxes);
  }

 private:
  static constexpr int kWidth = kLanes<float>;
  using Lanes = Vec<float>;

  int64_t size_of_level(int32_t level) const { return p_.box_maps[level].height * p_.box_maps[level].width; }

  void decode(int64_t image, int32_t level, int64_t base, const int64_t* positions, int count, float* boxes) const {
    if (count == 0) return;
    const HeadMap& map = p_.box_maps[level];
    const T* data = static_cast<const T*>(map.data) + image * map.stride_b;
    const int64_t bins = Bins > 0 ? Bins : p_.bins;
    int64_t offset[kWidth];
    float x[kWidth];
    float y[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t position = positions[i < count ? i : 0];
      const int64_t row = position / map.width;
      const int64_t column = position - row * map.width;
      offset[i] = row * map.stride_h + column * map.stride_w;
      x[i] = static_cast<float>(column) + 0.5f;
      y[i] = static_cast<float>(row) + 0.5f;
    }
    Lanes distance[4];
    alignas(64) float tile[kMaxBins * kWidth];
    for (int side = 0; side < 4; ++side) {
      const T* plane = data + side * bins * map.stride_c;
      for (int64_t i = 0; i < bins; ++i, plane += map.stride_c) {
        for (int lane = 0; lane < kWidth; ++lane) tile[i * kWidth + lane] = convert<float>(plane[offset[lane]]);
      }
      distance[side] = bins == 1 ? load<float>(tile) : Distribution<Bins, float>(tile, kWidth, bins).expectation();
    }
    const float stride = p_.strides[level];
    const Lanes x1 = (load<float>(x) - distance[0]) * stride;
    const Lanes y1 = (load<float>(y) - distance[1]) * stride;
    const Lanes x2 = (load<float>(x) + distance[2]) * stride;
    const Lanes y2 = (load<float>(y) + distance[3]) * stride;
    for (int i = 0; i < count; ++i) {
      float* box = boxes + 4 * (base + positions[i]);
      box[0] = x1[i];
      box[1] = y1[i];
      box[2] = x2[i];
      box[3] = y2[i];
    }
  }

  const DecodeNmsParams& p_;
};

}  // namespace

Status decode_nms_cpu(const DecodeNmsParams& p, const ParallelFor& parallel_for) {
  const int64_t needed = decode_nms_cpu_workspace_bytes(p, parallel_for.num_threads());
  if (const Status status = check_workspace(p.workspace, p.workspace_bytes, needed); !status.ok()) return status;
  const DetectionTask task{p.cls_maps,
                           p.levels,
                           p.batch,
                           p.anchors(),
                           p.classes,
                           logit_bound(p.settings.score_threshold),
                           /*values_are_logits=*/true,
                           &p.settings,
                           &p.out,
                           static_cast<char*>(p.workspace)};
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16, DType::kFloat64>(
      "box_maps and cls_maps", p.dtype, [&](auto dtype) {
        using T = Element<dtype.value>;
        return dispatch_int<16, 8>(p.bins, [&](auto bins) {
          const DflBoxes<bins.value, T> boxes(p);
          Detector<T, DflBoxes<bins.value, T>>(task, boxes, parallel_for.num_threads()).run(parallel_for);
          return Status{};
        });
      });
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
