// SPDX-License-Identifier: Apache-2.0
// What every device checks before it touches data: sizes, thresholds and limits, one sentence each.
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "batched_nms.h"
#include "decode_nms.h"
#include "dfl_decode.h"
#include "dw_sppf.h"
#include "eca.h"
#include "sppf_pool.h"

namespace fastyolo {

namespace {

using Long = long long;  // for printf

bool is_probability(double value) { return value >= 0.0 && value <= 1.0; }  // false for NaN

// True if the product of the sizes is above kMaxElements, without overflowing on the way.
template <class... Sizes>
bool too_large(Sizes... sizes) {
  for (int64_t size : {static_cast<int64_t>(sizes)...}) {
    if (size == 0) return false;
  }
  int64_t product = 1;
  for (int64_t size : {static_cast<int64_t>(sizes)...}) {
    if (size > kMaxElements / product) return true;
    product *= size;
  }
  return false;
}

// A feature map of `channels` times `factor` channels: the ops that concatenate their stages write four times theirs.
template <class Params>
Status check_map(const Params& p, const char* subject, int64_t factor = 1) {
  if (!too_large(p.batch, factor * p.channels, p.height, p.width)) return Status{};
  return Status::error("%s more than 2^31 - 1 elements (%lldx%lldx%lldx%lld); split the batch", subject, Long{p.batch},
                       Long{factor * p.channels}, Long{p.height}, Long{p.width});
}

Status check_weight_dtype(DType weight, DType map) {
  const bool half = map == DType::kFloat16 || map == DType::kBFloat16;
  if (weight == map || (half && weight == DType::kFloat32)) return Status{};
  return Status::error("weight must be %s%s with x of %s, got %s", half ? "float32 or " : "", name_of(map),
                       name_of(map), name_of(weight));
}

}  // namespace

Status Status::error(const char* format, ...) {
  Status status;
  std::va_list args;
  va_start(args, format);
  std::vsnprintf(status.message, sizeof(status.message), format, args);
  va_end(args);
  return status;
}

Status check_workspace(const void* workspace, int64_t bytes, int64_t needed) {
  if (bytes < needed) {
    return Status::error("workspace must hold %lld bytes, got %lld", static_cast<Long>(needed),
                         static_cast<Long>(bytes));
  }
  if (!is_aligned(workspace, kWorkspaceAlignment)) {
    return Status::error("workspace must be aligned to %lld bytes", static_cast<Long>(kWorkspaceAlignment));
  }
  return Status{};
}

Status check_nms_settings(const NmsSettings& s, int64_t classes) {
  if (!is_probability(s.score_threshold)) {
    return Status::error("score_threshold must be in [0, 1], got %g", s.score_threshold);
  }
  if (!is_probability(s.iou_threshold)) {
    return Status::error("iou_threshold must be in [0, 1], got %g", s.iou_threshold);
  }
  if (s.max_det < 0 || s.max_det > kMaxDetections) {
    return Status::error("max_det must be in [0, %lld], got %lld", Long{kMaxDetections}, Long{s.max_det});
  }
  if (s.max_candidates < 1 || s.max_candidates > kMaxCandidates) {
    return Status::error("max_candidates must be in [1, %lld], got %lld", Long{kMaxCandidates}, Long{s.max_candidates});
  }
  if (s.filter.enabled && classes > kMaxFilteredClasses) {
    return Status::error("classes can filter models of at most %lld classes, this one has %lld",
                         Long{kMaxFilteredClasses}, Long{classes});
  }
  return Status{};
}

Status check_decode_nms(const DecodeNmsParams& p) {
  if (p.levels < 1 || p.levels > kMaxLevels) {
    return Status::error("box_maps must hold 1 to %d levels, got %d", kMaxLevels, p.levels);
  }
  if (p.classes < 1) return Status::error("cls_maps must have at least 1 channel, got %lld", Long{p.classes});
  if (p.bins < 1 || p.bins > kMaxBins) {
    return Status::error("box_maps must have 4 to %lld channels, got %lld", Long{4 * kMaxBins}, Long{4 * p.bins});
  }
  for (int32_t l = 0; l < p.levels; ++l) {
    const HeadMap& box = p.box_maps[l];
    const HeadMap& cls = p.cls_maps[l];
    if (box.height != cls.height || box.width != cls.width) {
      return Status::error("cls_maps[%d] must be %lldx%lld like box_maps[%d], got %lldx%lld", l, Long{box.height},
                           Long{box.width}, l, Long{cls.height}, Long{cls.width});
    }
    if (!(p.strides[l] > 0) || !std::isfinite(p.strides[l])) {
      return Status::error("strides[%d] must be a positive number of pixels, got %g", l, p.strides[l]);
    }
    if (too_large(p.batch, 4 * p.bins, box.height, box.width)) {
      return Status::error("box_maps[%d] has more than 2^31 - 1 elements (%lldx%lldx%lldx%lld); split the batch", l,
                           Long{p.batch}, Long{4 * p.bins}, Long{box.height}, Long{box.width});
    }
    if (too_large(p.batch, p.classes, cls.height, cls.width)) {
      return Status::error("cls_maps[%d] has more than 2^31 - 1 elements (%lldx%lldx%lldx%lld); split the batch", l,
                           Long{p.batch}, Long{p.classes}, Long{cls.height}, Long{cls.width});
    }
  }
  if (too_large(p.anchors(), p.classes)) {
    return Status::error("cls_maps have more than 2^31 - 1 scores per image (%lld anchors x %lld classes)",
                         Long{p.anchors()}, Long{p.classes});
  }
  if (too_large(p.batch, p.settings.max_det, 4)) {
    return Status::error("boxes would have more than 2^31 - 1 elements (batch %lld, max_det %lld); split the batch",
                         Long{p.batch}, Long{p.settings.max_det});
  }
  return check_nms_settings(p.settings, p.classes);
}

Status check_multiclass_nms(const MulticlassNmsParams& p) {
  if (p.classes < 1) return Status::error("scores must have at least 1 class, got %lld", Long{p.classes});
  if (too_large(p.batch, p.classes, p.count)) {
    return Status::error("scores have more than 2^31 - 1 elements (%lldx%lldx%lld); split the batch", Long{p.batch},
                         Long{p.classes}, Long{p.count});
  }
  if (too_large(p.batch, p.count, 4)) {
    return Status::error("boxes have more than 2^31 - 1 elements (%lldx%lldx4); split the batch", Long{p.batch},
                         Long{p.count});
  }
  if (too_large(p.batch, p.settings.max_det, 4)) {
    return Status::error("boxes would have more than 2^31 - 1 elements (batch %lld, max_det %lld); split the batch",
                         Long{p.batch}, Long{p.settings.max_det});
  }
  return check_nms_settings(p.settings, p.classes);
}

Status check_batched_nms(const BatchedNmsParams& p) {
  if (!is_probability(p.iou_threshold)) {
    return Status::error("iou_threshold must be in [0, 1], got %g", p.iou_threshold);
  }
  if (too_large(p.count, 4)) {
    return Status::error("boxes have more than 2^31 - 1 elements (%lldx4)", Long{p.count});
  }
  if (p.max_det < 0) return Status::error("max_det must not be negative, got %lld", Long{p.max_det});
  return Status{};
}

Status check_dfl_decode(const DflDecodeParams& p) {
  if (p.bins < 1 || p.bins > kMaxBins) {
    return Status::error("logits must have 4 to %lld channels, got %lld", Long{4 * kMaxBins}, Long{4 * p.bins});
  }
  if (too_large(p.batch, 4 * p.bins, p.anchors)) {
    return Status::error("logits have more than 2^31 - 1 elements (%lldx%lldx%lld); split the batch", Long{p.batch},
                         Long{4 * p.bins}, Long{p.anchors});
  }
  return Status{};
}

Status check_eca(const EcaParams& p) {
  if (p.taps < 1 || p.taps > kMaxEcaTaps || p.taps % 2 == 0) {
    return Status::error("weight must have an odd number of elements up to %lld, got %lld", Long{kMaxEcaTaps},
                         Long{p.taps});
  }
  const Status status = check_weight_dtype(p.weight_dtype, p.dtype);
  return status.ok() ? check_map(p, "x has") : status;
}

Status parse_activation(const char* name, Activation& activation) {
  constexpr const char* kNames[] = {"identity", "relu", "silu"};  // in the order of the enumeration
  for (int32_t i = 0; i < 3; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    activation = static_cast<Activation>(i);
    return Status{};
  }
  return Status::error("activation must be identity, relu or silu, got %.100s", name);
}

Status check_dw_sppf(const DwSppfParams& p) {
  if (p.kernel != 3 && p.kernel != 5) {
    return Status::error("weight must have kernels of 3x3 or 5x5, got %lldx%lld", Long{p.kernel}, Long{p.kernel});
  }
  if (p.dilation != 1 && p.dilation != 2) {
    return Status::error("dilation must be 1 or 2, got %lld", Long{p.dilation});
  }
  const Status status = check_weight_dtype(p.weight_dtype, p.dtype);
  return status.ok() ? check_map(p, "the result would have", 1 + kDwSppfStages) : status;
}

Status check_sppf_pool(const SppfPoolParams& p) {
  if (p.kernel < 1 || p.kernel > kMaxPoolKernel || p.kernel % 2 == 0) {
    return Status::error("kernel_size must be an odd number up to %lld, got %lld", Long{kMaxPoolKernel},
                         Long{p.kernel});
  }
  return check_map(p, "the result would have", 1 + kSppfStages);
}

}  // namespace fastyolo
