// SPDX-License-Identifier: Apache-2.0
// Thresholds as floats that scores are compared with. Device and host compute them to the same bits: every operation
// below is rounded once by IEEE 754, and where a compiler may fuse a product with an addition, the product is exact.
#pragma once

#include <cmath>

#include "common.h"

namespace fastyolo {
namespace {

// The largest float that is not above the threshold. For every float x, (x > round_down(t)) == (double(x) > t).
FASTYOLO_HOST_DEVICE inline float round_down(double threshold) {
  const float nearest = static_cast<float>(threshold);
  return static_cast<double>(nearest) > threshold ? ::nextafterf(nearest, -HUGE_VALF) : nearest;
}

// log(p / (1 - p)) of a p between 0 and 1, to a few units of the last place. Neither the CPU's logarithm nor the GPU's
// is the correctly rounded one, so that the two may differ; hence the series.
FASTYOLO_HOST_DEVICE inline double logit(double p) {
  constexpr double kSqrt2 = 1.4142135623730951;
  constexpr double kLn2 = 0.6931471805599453;
  constexpr int kTerms = 11;  // the twelfth is below 2^-54
  double q = 1.0 - p;
  int exponent = 0;  // p / (1 - p) = 2^exponent p / q, and p / q comes within sqrt(2) of 1
  for (; p > kSqrt2 * q; ++exponent) q *= 2.0;
  for (; q > kSqrt2 * p; --exponent) p *= 2.0;
  const double s = (p - q) / (p + q);  // log(p / q) = 2 atanh(s) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...), |s| < 0.172
  const double square = s * s;
  double series = 0.0;
  for (int k = kTerms - 1; k >= 0; --k) series = ::fma(series, square, 1.0 / (2 * k + 1));
  return ::fma(static_cast<double>(exponent), kLn2, 2.0 * s * series);
}

// logit(p) rounded down, so that `x > logit_bound(p)` decides exactly sigmoid(x) > p; -inf at 0, +inf at 1.
FASTYOLO_HOST_DEVICE inline float logit_bound(double probability) {
  if (probability <= 0.0) return -HUGE_VALF;
  if (probability >= 1.0) return HUGE_VALF;
  return round_down(logit(probability));
}

}  // namespace
}  // namespace fastyolo
