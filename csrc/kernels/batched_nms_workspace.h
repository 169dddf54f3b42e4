// SPDX-License-Identifier: Apache-2.0
// How the CPU side of batched_nms divides its workspace.
#pragma once

#include <algorithm>

#include "common.h"

namespace fastyolo {
namespace {

struct BatchedNmsWorkspace {
  int64_t keys_offset;         // Key<T> [N]: 8 bytes for float32, 16 for float64
  int64_t scratch_offset;      // Key<float> [N], to sort all of them, if max_det is no limit
  int64_t blocks_offset;       // KeptBlock<T>: 384 or 704 bytes
  int64_t heads_offset;        // int32 [groups], or with a grid [groups, cells], of which there are at most kept / 64
  int64_t dead_offset;         // uint8 [1024], or [N] if max_det is no limit
  int64_t cell_slots_offset;   // int32 [groups, cells], with a grid only, as the two below
  int64_t cells_used_offset;   // int32 [groups]
  int64_t cell_bounds_offset;  // CellBounds<T> [groups, cells / 16]
  int64_t group_offset;        // int32 [N], with groups only, as the five below; three of them if max_det is no limit
  int64_t group_first_offset;  // int32 [groups + 1]
  int64_t members_offset;      // uint32 [N]
  int64_t places_offset;       // int32 [N]
  int64_t slot_idx_offset;     // int64 [slots]
  int64_t slot_group_offset;   // int32 [slots]
  int64_t slots = 1;           // a power of two, at least 2 N
  int64_t bytes = 0;

  static constexpr int64_t block_bytes(int64_t element_bytes) { return align_to_line(80 * element_bytes + 8); }
  static constexpr int64_t align_to_line(int64_t bytes) { return ceil_div<int64_t>(bytes, 64) * 64; }

  BatchedNmsWorkspace(int64_t count, int64_t max_det, bool grouped, int64_t element_bytes) {
    const auto take = [this](int64_t size) {
      const int64_t offset = bytes;
      bytes += align_up(size);
      return offset;
    };
    const int64_t kept = std::min(count, max_det);
    const int64_t groups = grouped ? count : 1;
    keys_offset = take(count * 2 * element_bytes);
    const int64_t unlimited = max_det < count ? 0 : count;  // elements of what only such calls need
    scratch_offset = take(element_bytes == 8 ? 0 : unlimited * 2 * element_bytes);
    const int64_t cells = kept / 64;
    const int64_t chains = std::max(groups, cells);
    blocks_offset = take((ceil_div<int64_t>(kept, 16) + std::min(chains, kept)) * block_bytes(element_bytes));
    heads_offset = take(chains * 4);
    dead_offset = take(std::max(unlimited, int64_t{1024}));
    cell_slots_offset = take(cells * 4);
    cells_used_offset = take(cells * 4);
    cell_bounds_offset = take(cells * 4 * element_bytes);
    group_offset = group_first_offset = members_offset = places_offset = slot_idx_offset = slot_group_offset = bytes;
    if (grouped) {
      while (slots < 2 * count) slots *= 2;
      group_offset = take(count * 4);
      group_first_offset = take((unlimited + 1) * 4);
      members_offset = take(unlimited * 4);
      places_offset = take(unlimited * 4);
      slot_idx_offset = take(slots * 8);
      slot_group_offset = take(slots * 4);
    }
  }
};

}  // namespace
}  // namespace fastyolo
