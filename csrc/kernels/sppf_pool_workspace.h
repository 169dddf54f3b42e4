// SPDX-License-Identifier: Apache-2.0
// How sppf_pool divides its work and its workspace on the CPU.
#pragma once

#include <algorithm>

#include "pixel_parts.h"
#include "sppf_pool.h"

namespace fastyolo {
namespace {

constexpr int64_t kPoolGrainElements = 1 << 12;  // of x: ~5 us of work, less is not worth a thread

// Forward, by pixels.
struct SppfPoolPixels : PixelParts {
  int64_t rows;  // of a slot: of x and the stages, and of each stage's input the maxima along a window's rows
  int64_t row;   // elements of a row with its padding
  int64_t slot_bytes;

  SppfPoolPixels(const SppfPoolParams& p, int num_threads)
      : PixelParts(p, 1 + kSppfStages, rows_of(p) * width_of(p) * kUnit * kElementBytes, kPoolGrainElements,
                   num_threads),
        rows(rows_of(p)),
        row(width_of(p) * channels),
        slot_bytes(align_up(rows * row * kElementBytes)) {}

  int64_t bytes() const { return slots * slot_bytes; }

 private:
  static constexpr int64_t kElementBytes = sizeof(float);

  static int64_t rows_of(const SppfPoolParams& p) { return 1 + kSppfStages * (1 + p.kernel); }
  static int64_t width_of(const SppfPoolParams& p) { return p.width + p.kernel - 1; }
};

// One region serves one thread at a time, which takes tiles of an image's planes in turn.
struct SppfPoolWorkspace {
  static constexpr int64_t kMaxVectorBytes = 64;

  int64_t regions;
  int64_t buffers;       // per region: the stage and its row maxima; in backward two choices of each stage as well
  int64_t buffer_bytes;  // a tile with its padding
  int64_t bytes;

  SppfPoolWorkspace(const SppfPoolParams& p, bool backward, int num_threads) {
    const int64_t element_bytes = p.dtype == DType::kFloat64 ? 8 : 4;
    const int64_t max_lanes = kMaxVectorBytes / element_bytes;
    const int64_t max_cell = p.x.stride_c == 1 ? max_lanes : 1;
    regions = std::clamp<int64_t>(p.batch * p.channels * p.height * p.width / kPoolGrainElements, 1,
                                  std::max(1, num_threads));
    buffers = backward ? 2 + 2 * kSppfStages : 2;
    buffer_bytes = align_up(elements(p, max_cell, max_lanes) * element_bytes);
    bytes = regions * buffers * buffer_bytes;
  }

  // Rows with their gaps, a gap before the first one, and what vectors reach beyond the last one.
  static int64_t elements(const SppfPoolParams& p, int64_t cell, int64_t lanes) {
    const int64_t gap = p.kernel / 2 * cell;
    return p.height * (p.width * cell + gap) + 2 * gap + 2 * lanes;
  }
};

}  // namespace
}  // namespace fastyolo
