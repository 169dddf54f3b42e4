// SPDX-License-Identifier: Apache-2.0
// The scores above the threshold, collected from class maps on the GPU in one pass over them.
//
// A block takes a tile of anchors and its 8 warps share out the classes. In NCHW maps a lane loads 16 bytes, 8 anchors
// in float16, of 4 classes before it uses the first: 16 KB in flight per block, where the memory of an H100 needs 18 KB
// per multiprocessor to be busy. Nothing is computed for a score that does not pass the bound: maps hold raw logits and
// the threshold was turned into a logit once. What passes becomes a 64-bit key in a list per image; the list's slots
// are claimed with one atomic for a warp, in any order.
#pragma once

#include "decode_nms.h"
#include "detections.h"
#include "greedy.cuh"

namespace fastyolo {
namespace {

enum class Access : int32_t {
  kAnchorVectors,  // 16 bytes are consecutive anchors of one class: NCHW
  kClassVectors,   // 16 bytes are consecutive classes of one anchor: channels_last
  kElements,       // anything else, one element at a time
};

struct ScoreLevel {
  const void* data;  // [B, C, H, W]
  int64_t stride_b;
  int64_t stride_c;
  int64_t stride_h;
  int64_t stride_w;
  int32_t width;
  int32_t anchors;       // H * W
  int32_t first_anchor;  // of the level, in the image
  int32_t first_tile;
  Access access;

  __device__ int64_t offset(int anchor) const {
    const int row = anchor / width;
    return row * stride_h + (anchor - row * width) * stride_w;
  }
};

// What something must be above: known at the launch, or computed by bounds_kernel.
struct Bound {
  float value;
  const float* computed;  // [1], in place of the value; null: none

  __device__ float read() const { return computed ? __ldg(computed) : value; }
};

struct Scores {
  ScoreLevel level[kMaxLevels];
  int32_t levels;
  int32_t classes;
  int32_t anchors;  // of an image
  int32_t tiles;    // of an image
  Bound bound;      // of a candidate's score
  ClassFilter filter;
};

struct CandidateLists {
  uint32_t* counts;  // [B] candidates found, more than the capacity if there were more
  uint64_t* keys;    // [B, capacity], unordered
  uint32_t capacity;
};

constexpr int kFilterThreads = 256;
constexpr int kFilterWarps = kFilterThreads / kWarp;
// Threads that share an anchor's classes in channels_last maps: 64 consecutive bytes, so 8 anchors to a warp.
constexpr int kClassLanes = 4;

// Anchors of a block's tile: a vector per lane, or an anchor per kClassLanes threads.
template <class T>
__host__ __device__ constexpr int tile_anchors(Access access) {
  switch (access) {
    case Access::kAnchorVectors: return kWarp * kVectorElements<T>;
    case Access::kClassVectors: return kFilterThreads / kClassLanes;
    case Access::kElements: return kWarp;
  }
  return 0;
}

template <class T, bool kMultiLabel>
struct FilterShared {
  static constexpr int kMaxAnchors = tile_anchors<T>(Access::kAnchorVectors);
  static constexpr int kMaxWords = kMaxAnchors / kWarp;

  // The best score and class of each anchor among the classes that one warp has read. Column j is the anchor
  // anchor_of(j): lanes write neighbouring columns although each of them holds consecutive anchors.
  uint64_t best[kMultiLabel ? 1 : kFilterWarps][kMultiLabel ? 1 : kMaxAnchors];
  uint32_t alive[kMaxWords];  // a bit per anchor with a candidate
  uint16_t survivors[kMaxAnchors];
};

__device__ inline int column_of(int position, int per_lane) {
  return position % per_lane * kWarp + position / per_lane;
}
__device__ inline int anchor_of(int column, int per_lane) { return column % kWarp * per_lane + column / kWarp; }

// Appends the keys of a warp's hits to an image's list: bit i of a thread's hits stands for key_at(i). One atomic for
// the warp; the slots of a thread follow one another. All lanes must call it.
template <int kBits, class KeyAt>
__device__ void append_hits(uint32_t hits, const CandidateLists& lists, int image, const KeyAt& key_at) {
  const uint32_t count = __popc(hits);
  const uint32_t end = warp_inclusive_sum(count);
  uint32_t slot = 0;
  if (lane_index() == kWarp - 1) slot = atomicAdd(&lists.counts[image], end);
  slot = __shfl_sync(kAllLanes, slot, kWarp - 1) + end - count;
  uint64_t* keys = lists.keys + int64_t{image} * lists.capacity;
#pragma unroll
  for (int i = 0; i < kBits; ++i) {
    if (!(hits >> i & 1)) continue;
    if (slot < lists.capacity) keys[slot] = key_at(i);
    ++slot;
  }
}

// Reads a tile's scores. With kAlongClasses the threads of a block hold kClassLanes to an anchor and take vectors of
// classes in turn; otherwise a lane holds kWidth anchors and the warps take classes in turn. Candidates of every class
// are appended to the image's list; best classes are left in shared.best.
template <class T, int kWidth, bool kAlongClasses, bool kMultiLabel>
__device__ void scan_tile(const Scores& scores, float bound, const ScoreLevel& level, int image, int first,
                          const CandidateLists& lists, FilterShared<T, kMultiLabel>& shared) {
  constexpr int kSteps = kWidth == 1 ? 8 : 4;  // independent loads in flight
  constexpr int kBits = kSteps * kWidth;
  static_assert(kBits <= 32, "a thread's hits are bits of one word");
  constexpr int kSharers = kAlongClasses ? kClassLanes : kFilterWarps;
  constexpr int kBests = kAlongClasses ? 1 : kWidth;

  const int thread = static_cast<int>(threadIdx.x);
  const int turn = kAlongClasses ? thread % kClassLanes : warp_index();
  const int position = kAlongClasses ? thread / kClassLanes : lane_index() * kWidth;
  const int anchor = first + position;
  const bool inside = anchor < level.anchors;
  const T* data = static_cast<const T*>(level.data) + image * level.stride_b + (inside ? level.offset(anchor) : 0);
  const int units = kAlongClasses ? scores.classes / kWidth : scores.classes;
  const int64_t unit_stride = kAlongClasses ? kWidth : level.stride_c;

  [[maybe_unused]] float best[kBests];
  [[maybe_unused]] int label[kBests];
#pragma unroll
  for (int b = 0; b < kBests; ++b) {
    best[b] = -kInfinity;
    label[b] = 0;
  }

  for (int base = 0; base < units; base += kSteps * kSharers) {
    Vector<T, kWidth> lowest;  // never above a bound
#pragma unroll
    for (int v = 0; v < kWidth; ++v) lowest.values[v] = from_float<T>(-kInfinity);
    Raw<T, kWidth> x[kSteps];  // in registers, and unpacked where they are used
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int unit = base + s * kSharers + turn;
      x[s] = to_raw(lowest);
      if (inside && unit < units) x[s] = load_raw<kWidth>(data + unit * unit_stride);
    }
    // Bit or element i is value i % kWidth of vector i / kWidth.
    const auto value_at = [&](int i) { return to_float(from_raw<T, kWidth>(x[i / kWidth]).values[i % kWidth]); };
    const auto label_at = [&](int i) {
      const int unit = base + i / kWidth * kSharers + turn;
      return kAlongClasses ? unit * kWidth + i % kWidth : unit;
    };
    if constexpr (kMultiLabel) {
      uint32_t hits = 0;
#pragma unroll
      for (int i = 0; i < kBits; ++i) hits |= static_cast<uint32_t>(value_at(i) > bound) << i;
      if (scores.filter.enabled) {
        for (uint32_t left = hits; left != 0; left &= left - 1) {
          const int i = __ffs(left) - 1;
          if (!scores.filter.allows(label_at(i))) hits &= ~(1u << i);
        }
      }
      if (!__any_sync(kAllLanes, hits != 0)) continue;
      const uint32_t index = static_cast<uint32_t>(level.first_anchor + anchor) * scores.classes;
      append_hits<kBits>(hits, lists, image, [&](int i) {
        return make_key(value_at(i), index + (kAlongClasses ? 0 : i % kWidth * scores.classes) + label_at(i));
      });
      if (hits != 0) {
        uint32_t anchors = 1;
        if constexpr (!kAlongClasses) {
          for (int s = 1; s < kSteps; ++s) hits |= hits >> (s * kWidth);
          anchors = hits & ((1u << kWidth) - 1);
        }
        atomicOr(&shared.alive[position / kWarp], anchors << position % kWarp);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBits; ++i) {
        const int b = kAlongClasses ? 0 : i % kWidth;
        const float value = value_at(i);
        if (value > best[b]) {  // classes come in ascending order: the first of equals stays
          best[b] = value;
          label[b] = label_at(i);
        }
      }
    }
  }

  if constexpr (!kMultiLabel && kAlongClasses) {
    constexpr int kPerLane = tile_anchors<T>(Access::kClassVectors) / kWarp;
    uint64_t key = make_key(best[0], label[0]);
#pragma unroll
    for (int lanes = 1; lanes < kClassLanes; lanes *= 2) key = max(key, __shfl_xor_sync(kAllLanes, key, lanes));
    if (turn == 0) shared.best[0][column_of(position, kPerLane)] = key;
  } else if constexpr (!kMultiLabel) {
#pragma unroll
    for (int v = 0; v < kWidth; ++v) shared.best[turn][column_of(position + v, kWidth)] = make_key(best[v], label[v]);
  }
}

// Decoder(image, level, anchor, side) writes one side of an anchor's box; the anchor counts within the level.
template <class T, bool kMultiLabel, class Decoder>
__global__ void __launch_bounds__(kFilterThreads, 3)
    filter_kernel(const __grid_constant__ Scores scores, const __grid_constant__ Decoder decoder,
                  const CandidateLists lists) {
  using Shared = FilterShared<T, kMultiLabel>;
  __shared__ Shared shared;

  const int image = static_cast<int>(blockIdx.x) / scores.tiles;
  const int tile = static_cast<int>(blockIdx.x) - image * scores.tiles;
  int l = 0;
  while (l + 1 < scores.levels && tile >= scores.level[l + 1].first_tile) ++l;
  const ScoreLevel& level = scores.level[l];
  const int size = tile_anchors<T>(level.access);
  const int first = (tile - level.first_tile) * size;
  const int thread = static_cast<int>(threadIdx.x);
  const float bound = scores.bound.read();

  if (thread < Shared::kMaxWords) shared.alive[thread] = 0;
  __syncthreads();
  switch (level.access) {
    case Access::kAnchorVectors:
      scan_tile<T, kVectorElements<T>, false, kMultiLabel>(scores, bound, level, image, first, lists, shared);
      break;
    case Access::kClassVectors:
      scan_tile<T, kVectorElements<T>, true, kMultiLabel>(scores, bound, level, image, first, lists, shared);
      break;
    case Access::kElements:
      scan_tile<T, 1, false, kMultiLabel>(scores, bound, level, image, first, lists, shared);
      break;
  }
  __syncthreads();

  if constexpr (!kMultiLabel) {
    if (thread < size) {  // whole warps
      uint64_t key = shared.best[0][thread];
      if (level.access != Access::kClassVectors) {
#pragma unroll
        for (int w = 1; w < kFilterWarps; ++w) key = max(key, shared.best[w][thread]);
      }
      const int position = anchor_of(thread, size / kWarp);
      const auto label = static_cast<int>(index_of(key));
      const float value = value_of(key);
      const bool hit = value > bound && scores.filter.allows(label);
      const uint32_t slot = claim_slot(hit, &lists.counts[image]);
      if (hit) {
        const uint32_t index = static_cast<uint32_t>(level.first_anchor + first + position) * scores.classes + label;
        lists.keys[int64_t{image} * lists.capacity + slot] = make_key(value, index);
        atomicOr(&shared.alive[position / kWarp], 1u << position % kWarp);
      }
    }
    __syncthreads();
  }

  if constexpr (Decoder::kEnabled) {
    // The anchors with a candidate, in order, so that neighbours are decoded by neighbouring lanes.
    int total = 0;
    int before = 0;
#pragma unroll
    for (int w = 0; w < Shared::kMaxWords; ++w) {
      const int count = __popc(shared.alive[w]);
      if (w < warp_index()) before += count;
      total += count;
    }
    if (thread < size) {
      const uint32_t word = shared.alive[warp_index()];
      if (word >> lane_index() & 1) shared.survivors[before + __popc(word & lanes_before())] = thread;
    }
    __syncthreads();
    const int side = warp_index() % 4;
    for (int i = warp_index() / 4 * kWarp + lane_index(); i < total; i += kFilterThreads / 4) {
      decoder(image, l, first + shared.survivors[i], side);
    }
  }
}

// --- host

template <class T>
Access access_of(const HeadMap& map, int64_t classes) {
  constexpr int64_t kWidth = kVectorElements<T>;
  const bool anchors_adjoin = (map.width == 1 || map.stride_w == 1) && (map.height == 1 || map.stride_h == map.width);
  if (!is_aligned(map.data, 16) || map.stride_b % kWidth != 0) return Access::kElements;
  if (anchors_adjoin && map.height * map.width % kWidth == 0 && (classes == 1 || map.stride_c % kWidth == 0)) {
    return Access::kAnchorVectors;
  }
  if (map.stride_c == 1 && classes % kWidth == 0 && map.stride_h % kWidth == 0 && map.stride_w % kWidth == 0) {
    return Access::kClassVectors;
  }
  return Access::kElements;
}

template <class T>
Scores describe_scores(const HeadMap* maps, int32_t levels, int64_t classes, const ClassFilter& filter) {
  Scores scores = {};
  scores.levels = levels;
  scores.classes = static_cast<int32_t>(classes);
  scores.filter = filter;
  for (int32_t l = 0; l < levels; ++l) {
    const HeadMap& map = maps[l];
    ScoreLevel& level = scores.level[l];
    level.data = map.data;
    level.stride_b = map.stride_b;
    level.stride_c = map.stride_c;
    level.stride_h = map.stride_h;
    level.stride_w = map.stride_w;
    level.width = static_cast<int32_t>(map.width);
    level.anchors = static_cast<int32_t>(map.height * map.width);
    level.first_anchor = scores.anchors;
    level.first_tile = scores.tiles;
    level.access = access_of<T>(map, classes);
    scores.anchors += level.anchors;
    scores.tiles += ceil_div(level.anchors, tile_anchors<T>(level.access));
  }
  return scores;
}

}  // namespace
}  // namespace fastyolo
