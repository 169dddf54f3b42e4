// SPDX-License-Identifier: Apache-2.0
// Class maps and a source of boxes to final detections on the GPU: what decode_nms and multiclass_nms share.
//
// Two launches serve the whole batch: the filter (candidates.cuh), then one block per image. That block never sorts the
// image's list: a radix select finds the best chunk of at most 512 keys, one per thread; the chunk is sorted, tested
// against the boxes kept so far (in chains by class), settled (greedy.cuh) and appended, until max_det boxes are kept
// or the candidates run out. Thresholds that are on the device take a third launch, before these, to become bounds.
//
// The list of an image is bounded. If more scores pass than it holds, the block refills it from the maps with the next
// best, part by part: slower, and exactly the same answer.
#pragma once

#include "candidates.cuh"
#include "thresholds.h"

namespace fastyolo {
namespace {

struct NmsLimits {
  int32_t max_det;
  uint32_t max_candidates;
  Bound iou_bound;
  bool class_agnostic;
};

// Candidates at a time, one per thread: who suppresses whom is then 512^2 bits, and the block's 43 KB fit in the shared
// memory that every GPU gives without being asked.
constexpr int kChunk = 512;
constexpr int kChunkWords = kChunk / kWarp;
constexpr int kDigitBits = 12;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kChains = 128;  // kept boxes are chained by label modulo this
constexpr int kLoads = 4;     // that a thread has in flight where it visits keys

struct NmsShared {
  union {  // one after the other
    uint32_t histogram[kDigits];
    uint64_t keys[2][kChunk];
    uint32_t rivals[kChunkWords][kChunk];  // word w of each candidate, see settle_chunk()
  };
  float4 boxes[kChunk];
  int32_t labels[kChunk];
  int32_t chain_heads[kChains];
  ChunkBits<kChunkWords> bits;
  uint32_t warp_sums[kChunk / kWarp];
  uint32_t count;
  int32_t split_digit;
  uint32_t before_split;
};

// The keys of an image, from its list.
struct ListedKeys {
  const uint64_t* keys;
  uint32_t count;

  // f(true, key) for each; f(false, anything) fills up warps.
  template <class F>
  __device__ void visit(const F& f) const {
    for (uint32_t base = 0; base < count; base += kLoads * kChunk) {
      uint64_t loaded[kLoads];
#pragma unroll
      for (uint32_t u = 0; u < kLoads; ++u) {
        const uint32_t i = base + u * kChunk + threadIdx.x;
        loaded[u] = i < count ? keys[i] : 0;
      }
#pragma unroll
      for (uint32_t u = 0; u < kLoads; ++u) {
        const uint32_t first = base + u * kChunk;
        if (first < count) f(first + threadIdx.x < count, loaded[u]);
      }
    }
  }
};

// The keys of an image, from the maps themselves. Only candidates of every class can be more than a list holds.
template <class T>
struct MappedKeys {
  const Scores& scores;
  int image;

  template <class F>
  __device__ void visit(const F& f) const {
    const float bound = scores.bound.read();
    for (int l = 0; l < scores.levels; ++l) {
      const ScoreLevel& level = scores.level[l];
      for (int base = 0; base < level.anchors; base += kChunk) {
        const int anchor = base + static_cast<int>(threadIdx.x);
        const bool inside = anchor < level.anchors;
        const T* data =
            static_cast<const T*>(level.data) + image * level.stride_b + (inside ? level.offset(anchor) : 0);
        const uint32_t index = static_cast<uint32_t>(level.first_anchor + anchor) * scores.classes;
        for (int first = 0; first < scores.classes; first += kLoads) {
          float values[kLoads];
          bool any = false;
#pragma unroll
          for (int u = 0; u < kLoads; ++u) {
            const int label = first + u;
            values[u] = inside && label < scores.classes ? load_float(data + label * level.stride_c) : -kInfinity;
            any |= values[u] > bound;
          }
          if (!__any_sync(kAllLanes, any)) continue;
#pragma unroll
          for (int u = 0; u < kLoads; ++u) {
            const int label = first + u;
            if (label < scores.classes) {
              f(values[u] > bound && scores.filter.allows(label), make_key(values[u], index + label));
            }
          }
        }
      }
    }
  }
};

// Sum of `value` over the threads before this one.
__device__ inline uint32_t block_exclusive_sum(uint32_t value, uint32_t (&warp_sums)[kChunk / kWarp]) {
  const uint32_t sum = warp_inclusive_sum(value);
  if (lane_index() == kWarp - 1) warp_sums[warp_index()] = sum;
  __syncthreads();
  const uint32_t of_warp = warp_sums[lane_index() % (kChunk / kWarp)];  // more lanes than warps: the rest is not used
  const uint32_t of_warps = warp_inclusive_sum(of_warp);
  return __shfl_sync(kAllLanes, of_warps - of_warp, warp_index()) + sum - value;
}

// A key such that at most `limit` keys lie in [it, ceiling), and at least limit / 2 unless there are fewer at all.
// Radix select from the top digit down; it goes deeper only while the digit at the cut holds too many.
template <class Keys>
__device__ uint64_t select_floor(const Keys& keys, uint64_t ceiling, uint32_t limit, NmsShared& shared) {
  uint64_t prefix = 0;
  uint32_t taken = 0;  // keys above those that share the prefix
  for (int high = 64;;) {
    const int low = high > kDigitBits ? high - kDigitBits : 0;
    const uint32_t digit_mask = (1u << (high - low)) - 1;
    for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kChunk) shared.histogram[d] = 0;
    __syncthreads();
    if (threadIdx.x == 0) shared.split_digit = -1;
    keys.visit([&](bool inside, uint64_t key) {
      if (inside && key < ceiling && (high == 64 || (key ^ prefix) >> high == 0)) {
        atomicAdd(&shared.histogram[key >> low & digit_mask], 1u);
      }
    });
    __syncthreads();
    // The digit at which, from the top, the limit is passed.
    constexpr int kPerThread = kDigits / kChunk;
    int digit = kDigits - 1 - static_cast<int>(threadIdx.x) * kPerThread;
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) sum += shared.histogram[digit - i];
    uint32_t before = taken + block_exclusive_sum(sum, shared.warp_sums);
    if (before <= limit && before + sum > limit) {  // at most one thread
      while (before + shared.histogram[digit] <= limit) before += shared.histogram[digit--];
      shared.split_digit = digit;
      shared.before_split = before;
    }
    __syncthreads();
    const int split = shared.split_digit;
    if (split < 0) return prefix;  // all that share the prefix fit
    taken = shared.before_split;
    prefix |= static_cast<uint64_t>(split) << low;
    if (2 * taken >= limit) return prefix + (uint64_t{1} << low);
    high = low;
  }
}

// Copies the keys in [floor, ceiling) to `out`, in any order, and returns how many they are.
template <class Keys>
__device__ uint32_t collect(const Keys& keys, uint64_t floor, uint64_t ceiling, uint64_t* out, NmsShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  keys.visit([&](bool inside, uint64_t key) {
    const bool wanted = inside && key >= floor && key < ceiling;
    const uint32_t slot = claim_slot(wanted, &shared.count);
    if (wanted) out[slot] = key;
  });
  __syncthreads();
  return shared.count;
}

// Bitonic sort, best first: one key per thread, zero where there is none. Partners of the same warp exchange through
// shuffles, others through two buffers in turn, so that one barrier per exchange is enough.
__device__ inline uint64_t sort_chunk(uint32_t size, uint64_t (&keys)[2][kChunk]) {
  const uint32_t thread = threadIdx.x;
  uint64_t key = thread < size ? keys[0][thread] : 0;
  int buffer = 1;
  for (uint32_t run = 2; run < 2 * size; run *= 2) {
    for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
      uint64_t other;
      if (distance < kWarp) {
        other = __shfl_xor_sync(kAllLanes, key, static_cast<int>(distance));
      } else {
        keys[buffer][thread] = key;
        __syncthreads();
        other = keys[buffer][thread ^ distance];
        buffer ^= 1;
      }
      const bool takes_larger = ((thread & run) == 0) == ((thread & distance) == 0);
      key = takes_larger == (key > other) ? key : other;
    }
  }
  return key;
}

// Fills in the rivals of each open candidate among the `size` of an opened chunk. A warp takes 32 candidates and a word
// of rivals at a time, pair after pair of these: with the candidates fixed to the warps, the last would do the most.
__device__ inline void find_rivals(uint32_t size, float iou_bound, NmsShared& shared) {
  const int words = (static_cast<int>(size) + kWarp - 1) / kWarp;
  for (int pair = warp_index(); pair < words * (words + 1) / 2; pair += kChunkWords) {
    int word = 0;  // of the candidates; `w`, of the rivals, is no larger
    int w = pair;
    while (w > word) w -= ++word;
    const int candidate = word * kWarp + lane_index();
    if (!(shared.bits.open[word] >> lane_index() & 1)) continue;
    const float4 box = shared.boxes[candidate];
    const int32_t label = shared.labels[candidate];
    const uint32_t open = shared.bits.open[w];
    uint32_t row = 0;
#pragma unroll 4
    for (int bit = 0; bit < kWarp; ++bit) {
      if (!(open >> bit & 1)) continue;
      const int rival = w * kWarp + bit;
      if (rival < candidate && shared.labels[rival] == label && suppresses(shared.boxes[rival], box, iou_bound)) {
        row |= 1u << bit;
      }
    }
    shared.rivals[w][candidate] = row;
  }
}

// What run-time thresholds mean for scores and for the IoU.
template <class Boxes>
__global__ void bounds_kernel(const float* thresholds, float* bounds) {
  if (threadIdx.x != 0) return;
  const float score = thresholds[0];
  const float iou = thresholds[1];
  const bool numbers = score == score && iou == iou;
  bounds[0] = numbers ? Boxes::score_bound(fminf(fmaxf(score, 0.f), 1.f)) : kInfinity;
  bounds[1] = fminf(fmaxf(iou, 0.f), 1.f);
}

// Boxes gives load(image, anchor), score(value of a key) and score_bound(threshold), which values are compared with.
template <class T, class Boxes>
__global__ void __launch_bounds__(kChunk, 2)
    nms_kernel(const __grid_constant__ Scores scores, const CandidateLists lists, const Boxes boxes,
               const NmsLimits limits, int32_t* chains, const Detections out) {
  __shared__ NmsShared shared;

  const int image = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_row = int64_t{image} * limits.max_det;
  float4* const out_boxes = reinterpret_cast<float4*>(out.boxes) + first_row;
  float* const out_scores = out.scores + first_row;
  int32_t* const out_labels = out.labels + first_row;
  int32_t* const out_indices = out.indices + first_row;
  int32_t* const next_in_chain = chains + first_row;
  uint64_t* const list = lists.keys + int64_t{image} * lists.capacity;

  const float iou_bound = limits.iou_bound.read();
  const uint32_t found = lists.counts[image];
  uint32_t remaining = min(found, limits.max_candidates);
  uint32_t listed = found <= lists.capacity ? found : 0;  // keys in the list
  uint32_t unread = listed;                               // those of them below the ceiling
  uint64_t list_floor = 0;
  uint64_t ceiling = ~uint64_t{0};  // keys from here on are done
  int kept = 0;
  if (thread < kChains) shared.chain_heads[thread] = -1;

  while (kept < limits.max_det && remaining > 0) {
    if (unread == 0) {
      const MappedKeys<T> mapped{scores, image};
      list_floor = select_floor(mapped, ceiling, min(lists.capacity, remaining), shared);
      listed = unread = collect(mapped, list_floor, ceiling, list, shared);
    }
    const ListedKeys keys{list, listed};
    const uint32_t limit = min(static_cast<uint32_t>(kChunk), remaining);
    const uint64_t floor = unread <= limit ? list_floor : select_floor(keys, ceiling, limit, shared);
    const uint32_t size = collect(keys, floor, ceiling, shared.keys[0], shared);
    const uint64_t key = sort_chunk(size, shared.keys);
    ceiling = floor;
    remaining -= size;
    unread -= size;

    const bool present = thread < static_cast<int>(size);
    const auto anchor = static_cast<int>(index_of(key) / static_cast<uint32_t>(scores.classes));
    const auto label = static_cast<int>(index_of(key) % static_cast<uint32_t>(scores.classes));
    const int group = limits.class_agnostic ? 0 : label;
    float4 box = {0.f, 0.f, 0.f, 0.f};
    bool alive = present;
    if (present) {
      box = boxes.load(image, anchor);
      shared.boxes[thread] = box;
      shared.labels[thread] = group;
      for (int row = shared.chain_heads[group % kChains]; alive && row >= 0;) {
        const int next = next_in_chain[row];  // all three loads at once: a chain's time is their latency
        const int32_t kept_label = out_labels[row];
        const float4 kept_box = out_boxes[row];
        const bool rivals = (limits.class_agnostic | (kept_label == label)) & may_intersect(kept_box, box);
        alive = !(rivals && suppresses(kept_box, box, iou_bound));
        row = next;
      }
    }
    open_chunk(alive, shared.bits);
    __syncthreads();
    find_rivals(size, iou_bound, shared);
    __syncthreads();
    const bool stays = settle_chunk(alive, [&](int w) { return shared.rivals[w][thread]; }, shared.bits);
    int staying;
    const int row = kept + kept_rank(shared.bits, staying);
    if (stays && row < limits.max_det) {
      out_boxes[row] = box;
      out_scores[row] = boxes.score(value_of(key));
      out_labels[row] = label;
      out_indices[row] = anchor;
      next_in_chain[row] = atomicExch(&shared.chain_heads[group % kChains], row);
    }
    kept = min(kept + staying, limits.max_det);
  }

  if (thread == 0) out.num_dets[image] = kept;
  for (int row = kept + thread; row < limits.max_det; row += kChunk) {
    out_boxes[row] = {0.f, 0.f, 0.f, 0.f};
    out_scores[row] = 0.f;
    out_labels[row] = -1;
    out_indices[row] = -1;
  }
}

// --- host

// Offsets of the workspace's regions in bytes.
struct DetectionLayout {
  // With one class per anchor a list holds every candidate there can be. With all classes it would be 172 MB for a
  // batch of 32 images of 8400 anchors and 80 classes; this bound makes it 17 MB, and is seldom reached.
  static constexpr int64_t kListedKeys = 65536;

  int64_t capacity;
  int64_t bounds;  // [2] float32, of scores and IoUs, if thresholds are on the device
  int64_t counts;  // [B] uint32
  int64_t keys;    // [B, capacity] uint64
  int64_t chains;  // [B, max_det] int32
  int64_t boxes;   // [B, A, 4] float32, if boxes are decoded
  int64_t bytes;

  DetectionLayout(int64_t batch, int64_t anchors, int64_t classes, const NmsSettings& settings, bool decodes) {
    capacity = anchors;
    if (settings.multi_label) {
      const int64_t all = anchors * classes;
      const int64_t most = anchors > kListedKeys ? anchors : kListedKeys;
      capacity = all < most ? all : most;
    }
    Regions regions;
    bounds = regions.add(2 * 4);  // always: the size must not depend on a pointer that is not known yet
    counts = regions.add(batch * 4);
    keys = regions.add(batch * capacity * 8);
    chains = regions.add(batch * settings.max_det * 4);
    boxes = regions.add(decodes ? batch * anchors * 16 : 0);
    bytes = regions.bytes;
  }
};

// The chain of launches: the bounds if they are not known, the counts to zero, filter, NMS. `scores` comes without a
// bound.
template <class T, class Decoder, class Boxes>
Status detect(Scores scores, const Decoder& decoder, const Boxes& boxes, int64_t batch, const NmsSettings& settings,
              const Detections& out, const DetectionLayout& layout, void* workspace, int64_t workspace_bytes,
              Stream stream) {
  Status status = check_workspace(workspace, workspace_bytes, layout.bytes);
  if (!status.ok()) return status;
  if (!is_aligned(out.boxes, sizeof(float4))) return Status::error("boxes must be aligned to 16 bytes");
  CandidateLists lists;
  lists.counts = region<uint32_t>(workspace, layout.counts);
  lists.keys = region<uint64_t>(workspace, layout.keys);
  lists.capacity = static_cast<uint32_t>(layout.capacity);
  NmsLimits limits;
  limits.max_det = static_cast<int32_t>(settings.max_det);
  limits.max_candidates = static_cast<uint32_t>(settings.max_candidates);
  limits.class_agnostic = settings.class_agnostic;
  float* const bounds = settings.thresholds ? region<float>(workspace, layout.bounds) : nullptr;
  scores.bound = {Boxes::score_bound(settings.score_threshold), bounds};
  limits.iou_bound = {round_down(settings.iou_threshold), bounds ? bounds + 1 : nullptr};

  if (settings.thresholds) {
    status = launch("bounds_kernel", bounds_kernel<Boxes>, 1, kWarp, stream, settings.thresholds, bounds);
    if (!status.ok()) return status;
  }
  status = check_cuda(cudaMemsetAsync(lists.counts, 0, static_cast<size_t>(batch) * 4, stream), "cudaMemsetAsync");
  if (!status.ok()) return status;
  const auto filter = settings.multi_label ? filter_kernel<T, true, Decoder> : filter_kernel<T, false, Decoder>;
  status = launch("filter_kernel", filter, batch * scores.tiles, kFilterThreads, stream, scores, decoder, lists);
  if (!status.ok()) return status;
  return launch("nms_kernel", nms_kernel<T, Boxes>, batch, kChunk, stream, scores, lists, boxes, limits,
                region<int32_t>(workspace, layout.chains), out);
}

}  // namespace
}  // namespace fastyolo
