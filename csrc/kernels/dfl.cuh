// SPDX-License-Identifier: Apache-2.0
// The distribution of one side's distance: what dfl_decode and decode_nms share on the GPU.
#pragma once

#include "common.cuh"

namespace fastyolo {
namespace {

// The softmax of one side's logits and its expectation, in float32. logit(i) gives bin i. With kBins known the weights
// stay in registers; with kBins == 0 they are computed again from the logits where they are needed, so that no number
// of bins needs local memory.
template <int kBins, class Logit>
class Distribution {
 public:
  __device__ Distribution(int bins, const Logit& logit) : bins_(bins), logit_(logit) {
#pragma unroll
    for (int i = 0; i < count(); ++i) max_ = fmaxf(max_, logit(i));
    float sum = 0.f;
    float moment = 0.f;
#pragma unroll
    for (int i = 0; i < count(); ++i) {
      const float w = exponential(logit(i));
      if constexpr (kBins > 0) weights_[i] = w;
      sum += w;
      moment += static_cast<float>(i) * w;
    }
    scale_ = 1.f / sum;
    expectation_ = moment * scale_;
  }

  __device__ float expectation() const { return expectation_; }

  // The gradient of logit i for the gradient of the expectation.
  __device__ float grad_logit(int i, float grad_expectation) const {
    float weight;
    if constexpr (kBins > 0) {
      weight = weights_[i];
    } else {
      weight = exponential(logit_(i));
    }
    return weight * scale_ * (static_cast<float>(i) - expectation_) * grad_expectation;
  }

 private:
  __device__ int count() const { return kBins > 0 ? kBins : bins_; }
  __device__ float exponential(float x) const { return exp2f((x - max_) * 1.44269504088896341f); }  // log2(e)

  int bins_;
  Logit logit_;
  float max_ = -kInfinity;
  float scale_;
  float expectation_;
  float weights_[kBins > 0 ? kBins : 1];
};

// The distance of one side in grid cells. With one bin there is no distribution: the logit is the distance.
template <int kBins, class Logit>
__device__ float decode_distance(int bins, const Logit& logit) {
  if (kBins == 0 && bins == 1) return logit(0);
  return Distribution<kBins, Logit>(bins, logit).expectation();
}

}  // namespace
}  // namespace fastyolo
