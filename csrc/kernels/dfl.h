// SPDX-License-Identifier: Apache-2.0
// The expectation of one side's distribution, for a vector of anchors: what dfl_decode and decode_nms share on the CPU.
#pragma once

#include "simd.h"

namespace fastyolo {
namespace {

// The softmax of one side's logits, unnormalised. Bins are `row` elements apart, anchors are lanes. With Bins known
// the exponentials stay in registers; otherwise they are computed where they are needed.
template <int Bins, class T>
class Distribution {
 public:
  using C = Compute<T>;

  Distribution(const T* logits, int64_t row, int64_t bins) : logits_(logits), row_(row), bins_(bins) {
    max_ = load<C>(logits);
    for (int64_t i = 1; i < count(); ++i) max_ = max(max_, logit(i));
    Vec<C> moment{};
    for (int64_t i = 0; i < count(); ++i) {
      const Vec<C> e = exp_nonpositive(logit(i) - max_);
      if constexpr (Bins > 0) weights_[i] = e;
      sum_ += e;
      moment = fma(e, splat(static_cast<C>(i)), moment);
    }
    expectation_ = moment / sum_;
  }

  Vec<C> expectation() const { return expectation_; }
  Vec<C> sum() const { return sum_; }
  Vec<C> weight(int64_t i) const {
    if constexpr (Bins > 0) {
      return weights_[i];
    } else {
      return exp_nonpositive(logit(i) - max_);
    }
  }

 private:
  int64_t count() const { return Bins > 0 ? Bins : bins_; }
  Vec<C> logit(int64_t i) const { return load<C>(logits_ + i * row_); }

  const T* logits_;
  int64_t row_;
  int64_t bins_;
  Vec<C> max_;
  Vec<C> sum_{};
  Vec<C> expectation_;
  Vec<C> weights_[Bins > 0 ? Bins : 1];
};

}  // namespace
}  // namespace fastyolo
