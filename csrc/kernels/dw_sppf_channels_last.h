// SPDX-License-Identifier: Apache-2.0
// dw_sppf of maps in channels_last, forward, in float32 and bfloat16: by whole pixels.
#pragma once

#include "dw_sppf.h"

namespace fastyolo {
namespace FASTYOLO_ISA {

int64_t dw_sppf_pixels_workspace_bytes(const DwSppfParams& params, int num_threads);
Status dw_sppf_pixels(const DwSppfParams& params, const ParallelFor& parallel_for);

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
