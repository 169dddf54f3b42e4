// SPDX-License-Identifier: Apache-2.0
// Greedy suppression on the GPU: ordered keys, the overlap test, and how a sorted chunk of candidates is settled by one
// block without walking through it one candidate after another.
#pragma once

#include "common.cuh"

namespace fastyolo {
namespace {

// Bits that order as the numbers do: -0 equals 0, NaN is above everything.
__device__ inline uint32_t ordered_bits(float value) {
  if (value != value) return ~0u;
  const uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A score and an index as one integer: a larger key is a better candidate, equal scores order by the lower index, and
// keys of distinct indices differ. So slots may be handed out in any order: what is selected and sorted by key does not
// depend on them.
__device__ inline uint64_t make_key(float value, uint32_t index) {
  return static_cast<uint64_t>(ordered_bits(value)) << 32 | static_cast<uint32_t>(~index);
}

__device__ inline float value_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered >> 31 ? ordered ^ 0x80000000u : ~ordered);
}

__device__ inline uint32_t index_of(uint64_t key) { return ~static_cast<uint32_t>(key); }

// Boxes are (x, y, z, w) = (x1, y1, x2, y2). Whether two may intersect: four comparisons, which reject most pairs and
// the NaN. By & and not &&, which would be branches, with what follows loaded only behind them.
__device__ inline bool may_intersect(const float4& a, const float4& b) {
  return (a.z > b.x) & (b.z > a.x) & (a.w > b.y) & (b.w > a.y);
}

// The arithmetic is torchvision's CPU kernel, rounding for rounding and
// never contracted, so that a pair at the threshold falls on the same side everywhere. The division is reached only by
// pairs that overlap: without an intersection the quotient is zero or NaN, and neither is above the bound.
__device__ inline bool suppresses(const float4& kept, const float4& candidate, float iou_bound) {
  if (!may_intersect(kept, candidate)) return false;
  const float width = fmaxf(0.f, __fsub_rn(fminf(kept.z, candidate.z), fmaxf(kept.x, candidate.x)));
  const float height = fmaxf(0.f, __fsub_rn(fminf(kept.w, candidate.w), fmaxf(kept.y, candidate.y)));
  const float inter = __fmul_rn(width, height);
  if (!(inter > 0.f)) return false;
  const float kept_area = __fmul_rn(__fsub_rn(kept.z, kept.x), __fsub_rn(kept.w, kept.y));
  const float area = __fmul_rn(__fsub_rn(candidate.z, candidate.x), __fsub_rn(candidate.w, candidate.y));
  return __fdiv_rn(inter, __fsub_rn(__fadd_rn(kept_area, area), inter)) > iou_bound;
}

// A chunk of kWords * 32 candidates, best first, one per thread of the block; a bit per candidate.
template <int kWords>
struct ChunkBits {
  static_assert(kWords <= kWarp, "a warp reads all words at once");

  uint32_t open[kWords];  // not decided yet
  uint32_t kept[kWords];
};

// Starts a chunk. The words may be read after the next barrier.
template <int kWords>
__device__ void open_chunk(bool alive, ChunkBits<kWords>& bits) {
  const uint32_t votes = __ballot_sync(kAllLanes, alive);
  if (lane_index() == 0) {
    bits.open[warp_index()] = votes;
    bits.kept[warp_index()] = 0;
  }
}

// Settles an opened chunk and returns whether this thread's candidate stays. rivals(w) has the bits of the candidates
// 32 w .. 32 w + 31 that come before this one and would suppress it, for w up to this thread's warp.
//
// A candidate goes as soon as one of its rivals stays, and stays as soon as all of them are gone: exactly what the
// sequential algorithm does, but all candidates whose rivals are decided go at once. Each round decides the first open
// candidate at least; most boxes overlap few others, so a handful of rounds is the rule.
template <int kWords, class Rivals>
__device__ bool settle_chunk(bool open, const Rivals& rivals, ChunkBits<kWords>& bits) {
  const int warp = warp_index();
  const int lane = lane_index();
  uint32_t words = 0;  // those with rivals that were alive at the start
  for (int w = 0; open && w <= warp; ++w) {
    if (rivals(w) & bits.open[w]) words |= 1u << w;
  }
  bool kept = false;
  bool more = true;
  while (more) {
    bool stays = open;
    bool goes = false;
    if (open) {
      for (uint32_t left = words; left != 0; left &= left - 1) {
        const int w = __ffs(left) - 1;
        const uint32_t row = rivals(w);
        goes |= (row & bits.kept[w]) != 0;
        stays &= (row & (bits.kept[w] | bits.open[w])) == 0;
      }
    }
    __syncthreads();
    const uint32_t staying = __ballot_sync(kAllLanes, stays);
    const uint32_t decided = __ballot_sync(kAllLanes, stays || goes);
    if (lane == 0) {
      bits.kept[warp] |= staying;
      bits.open[warp] &= ~decided;
    }
    kept |= stays;
    open &= !stays && !goes;
    __syncthreads();
    more = __any_sync(kAllLanes, lane < kWords && bits.open[lane < kWords ? lane : 0] != 0);
  }
  return kept;
}

// The position of this thread's candidate among the kept ones of a settled chunk, and how many those are.
template <int kWords>
__device__ int kept_rank(const ChunkBits<kWords>& bits, int& total) {
  const int lane = lane_index();
  const uint32_t count = lane < kWords ? __popc(bits.kept[lane]) : 0;
  const uint32_t sum = warp_inclusive_sum(count);
  total = static_cast<int>(__shfl_sync(kAllLanes, sum, kWarp - 1));
  const uint32_t before = __shfl_sync(kAllLanes, sum - count, warp_index());
  return static_cast<int>(before) + __popc(bits.kept[warp_index()] & lanes_before());
}

}  // namespace
}  // namespace fastyolo
