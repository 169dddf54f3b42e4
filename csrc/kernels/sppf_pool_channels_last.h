// SPDX-License-Identifier: Apache-2.0
// sppf_pool of maps in channels_last, forward, in float32 and bfloat16: by whole pixels.
#pragma once

#include "sppf_pool.h"

namespace fastyolo {
namespace FASTYOLO_ISA {

Status sppf_pool_pixels(const SppfPoolParams& params, const ParallelFor& parallel_for);

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
