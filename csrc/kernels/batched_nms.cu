// SPDX-License-Identifier: Apache-2.0
// NMS over given boxes on the GPU: multiclass_nms (a batch with fixed-size outputs, detect.cuh) and batched_nms (one
// list of up to hundreds of thousands of boxes, any groups, torchvision's answers).
//
// batched_nms sorts all scores once and walks through the candidates in chunks of 1024. Which candidates of a chunk
// would suppress which others of it does not depend on what was kept, so one grid finds that for all chunks in advance:
// 128 bytes per box, where the usual n^2 mask takes n / 8. Then there is one launch per chunk. Its blocks test all
// remaining candidates against the boxes that the chunk before kept; the last block to finish among those that hold the
// chunk's own candidates settles it (greedy.cuh). The launches for a given N are fixed, as a CUDA graph needs; once
// max_det boxes are kept, the remaining ones return at once.
#include "batched_nms.h"

#include "cub.cuh"
#include "detect.cuh"
#include "dispatch.h"

namespace fastyolo {
namespace {

// --- batched_nms

constexpr int kThreads = 256;
constexpr int kStepThreads = 1024;
constexpr int kStepChunk = kStepThreads;  // candidates of a chunk, one per thread when it is settled
constexpr int kStepWords = kStepChunk / kWarp;
// Candidates that a block of the step kernel tests: its warps are 4 groups of 32 candidates times 8 slices of the kept
// boxes, so that the longest loop is 128 boxes.
constexpr int kStepCandidates = 128;
constexpr int kStepGroups = kStepCandidates / kWarp;
constexpr int kSlices = kStepThreads / kStepCandidates;
constexpr int kTests = 4;  // of a thread, between two looks at their answer

// What is known when a chunk has been settled.
struct Progress {
  int32_t fresh;     // boxes that this chunk kept
  int32_t total;     // boxes kept so far, at most max_det
  uint32_t arrived;  // blocks that have tested the chunk's candidates
};

// Candidates by descending score, and what becomes of them.
struct Candidates {
  int32_t count;
  float iou_bound;
  const uint32_t* order;  // [N] index of each in the input
  float4* boxes;          // [N]
  int64_t* groups;        // [N]; null: one group
  uint8_t* removed;       // [N] suppressed by a kept box of an earlier chunk
  uint32_t* rivals;       // [chunks, kStepWords, kStepChunk], see settle_chunk()

  __device__ int64_t group(int i) const { return groups ? groups[i] : 0; }
  __device__ uint32_t* rival_word(int chunk, int word, int candidate) const {
    return rivals + (int64_t{chunk} * kStepWords + word) * kStepChunk + candidate;
  }
};

struct Kept {
  float4* boxes;       // [2, kStepChunk] the fresh boxes of this chunk and of the one before
  int64_t* groups;     // [2, kStepChunk]; null: one group
  Progress* progress;  // [1 + chunks], [0] before the first chunk
  int64_t* keep;       // [N]
  int32_t* num_keep;   // [1]
  int32_t max_det;
};

template <class T>
__global__ void __launch_bounds__(kThreads) key_kernel(const T* scores, int count, uint32_t* keys, uint32_t* indices) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= static_cast<uint32_t>(count)) return;
  keys[i] = ordered_bits(load_float(scores + i));
  indices[i] = i;
}

template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const T* boxes, const int64_t* idxs, const Candidates c) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= static_cast<uint32_t>(c.count)) return;
  const uint32_t index = c.order[i];
  const T* box = boxes + int64_t{4} * index;
  c.boxes[i] = {load_float(box), load_float(box + 1), load_float(box + 2), load_float(box + 3)};
  if (c.groups) c.groups[i] = idxs[index];
  c.removed[i] = 0;
}

// A block finds the rivals of 32 candidates, one per lane; its warps take the words of 32 possible rivals in turn.
__global__ void __launch_bounds__(kThreads) rival_kernel(const Candidates c) {
  const int chunk = static_cast<int>(blockIdx.x) / kStepWords;
  const int own_word = static_cast<int>(blockIdx.x) % kStepWords;
  const int i = static_cast<int>(blockIdx.x) * kWarp + lane_index();
  if (i >= c.count) return;
  const float4 box = c.boxes[i];
  const int64_t group = c.group(i);
  for (int w = warp_index(); w <= own_word; w += kThreads / kWarp) {
    const int first = chunk * kStepChunk + w * kWarp;
    const int size = min(kWarp, i - first);  // rivals come before
    uint32_t row = 0;
    for (int bit = 0; bit < size; ++bit) {
      if (c.group(first + bit) == group && suppresses(c.boxes[first + bit], box, c.iou_bound)) row |= 1u << bit;
    }
    *c.rival_word(chunk, w, own_word * kWarp + lane_index()) = row;
  }
}

__global__ void __launch_bounds__(kStepThreads, 1) step_kernel(const Candidates c, const Kept kept, int chunk) {
  __shared__ uint32_t suppressed[kStepGroups];
  __shared__ ChunkBits<kStepWords> bits;
  __shared__ bool is_last;

  const int thread = static_cast<int>(threadIdx.x);
  const int before = kept.progress[chunk].total;
  Progress& progress = kept.progress[chunk + 1];
  if (before >= kept.max_det) {
    if (blockIdx.x == 0 && thread == 0) progress.total = before;
    return;
  }

  // Test against the boxes that the last chunk kept.
  const int first = chunk * kStepChunk;
  const int lanes = warp_index() % kStepGroups;
  const int slice = warp_index() / kStepGroups;
  const int i = first + static_cast<int>(blockIdx.x) * kStepCandidates + lanes * kWarp + lane_index();
  if (thread < kStepGroups) suppressed[thread] = 0;
  __syncthreads();
  bool hit = false;
  if (i < c.count && !c.removed[i]) {
    const float4 box = c.boxes[i];
    const int64_t group = c.group(i);
    const int fresh = kept.progress[chunk].fresh;
    const int row = (chunk + 1) % 2 * kStepChunk;
    for (int j = slice; j < fresh && !hit; j += kTests * kSlices) {
#pragma unroll
      for (int u = 0; u < kTests; ++u) {
        const int k =
            row + min(j + u * kSlices, fresh - 1);  // beyond the end the last one again, which changes nothing
        const float4 other = kept.boxes[k];
        if (kept.groups && kept.groups[k] != group) continue;
        if (suppresses(other, box, c.iou_bound)) hit = true;
      }
    }
  }
  const uint32_t hits = __ballot_sync(kAllLanes, hit);
  if (lane_index() == 0 && hits != 0) atomicOr(&suppressed[lanes], hits);
  __syncthreads();
  if (slice == 0 && (suppressed[lanes] >> lane_index() & 1)) c.removed[i] = 1;

  // The last block of those that hold this chunk's candidates goes on.
  const int size = min(kStepChunk, c.count - first);
  const int blocks = (size + kStepCandidates - 1) / kStepCandidates;
  if (static_cast<int>(blockIdx.x) >= blocks) return;
  __syncthreads();
  if (thread == 0) {
    __threadfence();  // what this block removed is visible before its arrival is,
    is_last = atomicAdd(&progress.arrived, 1u) == static_cast<uint32_t>(blocks - 1);
    __threadfence();  // and the last one sees what the others removed
  }
  __syncthreads();
  if (!is_last) return;

  const bool alive = thread < size && !c.removed[first + thread];
  open_chunk(alive, bits);
  __syncthreads();
  const bool stays = settle_chunk(alive, [&](int w) { return *c.rival_word(chunk, w, thread); }, bits);
  int fresh;
  const int rank = kept_rank(bits, fresh);
  if (stays) {
    const int row = chunk % 2 * kStepChunk + rank;
    kept.boxes[row] = c.boxes[first + thread];
    if (kept.groups) kept.groups[row] = c.groups[first + thread];
    if (before + rank < kept.max_det) kept.keep[before + rank] = c.order[first + thread];
  }
  if (thread == 0) {
    const int total = min(before + fresh, kept.max_det);
    progress.fresh = fresh;
    progress.total = total;
    *kept.num_keep = total;
  }
}

// Offsets of the workspace's regions in bytes.
struct BatchedLayout {
  int64_t chunks;
  int64_t keys;         // [2, N] uint32: before and after the sort
  int64_t indices;      // [2, N] uint32
  int64_t boxes;        // [N] float4
  int64_t groups;       // [N] int64, if there are groups
  int64_t removed;      // [N] uint8
  int64_t rivals;       // [chunks, kStepWords, kStepChunk] uint32
  int64_t kept_boxes;   // [2, kStepChunk] float4
  int64_t kept_groups;  // [2, kStepChunk] int64, if there are groups
  int64_t progress;     // [1 + chunks]
  int64_t scratch;      // of the sort
  int64_t scratch_bytes;
  int64_t bytes;

  BatchedLayout(int64_t count, bool grouped) {
    chunks = ceil_div<int64_t>(count, kStepChunk);
    Regions regions;
    keys = regions.add(count * 2 * 4);
    indices = regions.add(count * 2 * 4);
    boxes = regions.add(count * 16);
    groups = regions.add(grouped ? count * 8 : 0);
    removed = regions.add(count);
    rivals = regions.add(chunks * kStepWords * kStepChunk * 4);
    kept_boxes = regions.add(2 * kStepChunk * 16);
    kept_groups = regions.add(grouped ? 2 * kStepChunk * 8 : 0);
    progress = regions.add((1 + chunks) * static_cast<int64_t>(sizeof(Progress)));
    scratch_bytes = sort_scratch_bytes(count);
    scratch = regions.add(scratch_bytes);
    bytes = regions.bytes;
  }
};

template <class T>
Status run_batched_nms(const BatchedNmsParams& p, int64_t max_det, const BatchedLayout& layout, Stream stream) {
  uint32_t* keys = region<uint32_t>(p.workspace, layout.keys);
  uint32_t* indices = region<uint32_t>(p.workspace, layout.indices);

  Candidates candidates = {};
  candidates.count = static_cast<int32_t>(p.count);
  candidates.iou_bound = round_down(p.iou_threshold);
  candidates.order = indices + p.count;
  candidates.boxes = region<float4>(p.workspace, layout.boxes);
  candidates.groups = p.idxs ? region<int64_t>(p.workspace, layout.groups) : nullptr;
  candidates.removed = region<uint8_t>(p.workspace, layout.removed);
  candidates.rivals = region<uint32_t>(p.workspace, layout.rivals);

  Kept kept = {};
  kept.boxes = region<float4>(p.workspace, layout.kept_boxes);
  kept.groups = p.idxs ? region<int64_t>(p.workspace, layout.kept_groups) : nullptr;
  kept.progress = region<Progress>(p.workspace, layout.progress);
  kept.keep = p.keep;
  kept.num_keep = p.num_keep;
  kept.max_det = static_cast<int32_t>(max_det);

  const int64_t blocks = ceil_div<int64_t>(p.count, kThreads);
  const size_t progress_bytes = static_cast<size_t>(1 + layout.chunks) * sizeof(Progress);
  Status status = check_cuda(cudaMemsetAsync(kept.progress, 0, progress_bytes, stream), "cudaMemsetAsync");
  if (!status.ok()) return status;
  status = launch("key_kernel", key_kernel<T>, blocks, kThreads, stream, static_cast<const T*>(p.scores),
                  candidates.count, keys, indices);
  if (!status.ok()) return status;
  status = sort_descending(region<void>(p.workspace, layout.scratch), layout.scratch_bytes, keys, keys + p.count,
                           indices, indices + p.count, p.count, stream);
  if (!status.ok()) return status;
  status = launch("gather_kernel", gather_kernel<T>, blocks, kThreads, stream, static_cast<const T*>(p.boxes), p.idxs,
                  candidates);
  if (!status.ok()) return status;
  status = launch("rival_kernel", rival_kernel, ceil_div<int64_t>(p.count, kWarp), kThreads, stream, candidates);
  for (int64_t chunk = 0; chunk < layout.chunks && status.ok(); ++chunk) {
    status = launch("step_kernel", step_kernel, ceil_div<int64_t>(p.count - chunk * kStepChunk, kStepCandidates),
                    kStepThreads, stream, candidates, kept, static_cast<int>(chunk));
  }
  return status;
}

// --- multiclass_nms

struct NoDecoder {
  static constexpr bool kEnabled = false;
};

template <class T>
struct GivenBoxes {
  const T* boxes;  // [B, N, 4]
  int64_t stride_b;
  int64_t stride_n;
  int64_t stride_c;

  __device__ float4 load(int image, int i) const {
    const T* box = boxes + image * stride_b + i * stride_n;
    return {load_float(box), load_float(box + stride_c), load_float(box + 2 * stride_c),
            load_float(box + 3 * stride_c)};
  }
  __device__ static float score(float probability) { return probability; }
  FASTYOLO_HOST_DEVICE static float score_bound(double threshold) { return round_down(threshold); }
};

DetectionLayout layout_of(const MulticlassNmsParams& p) {
  return DetectionLayout(p.batch, p.count, p.classes, p.settings, /*decodes=*/false);
}

}  // namespace

int64_t batched_nms_workspace_bytes(const BatchedNmsParams& p) {
  return p.count == 0 ? 0 : BatchedLayout(p.count, p.idxs != nullptr).bytes;
}

Status batched_nms(const BatchedNmsParams& p, Stream stream) {
  Status status = check_batched_nms(p);
  if (!status.ok()) return status;
  // What the kernels leave out: no box kept, and -1 (all bits set) past the kept ones.
  status = check_cuda(cudaMemsetAsync(p.num_keep, 0, sizeof(int32_t), stream), "cudaMemsetAsync");
  if (!status.ok() || p.count == 0) return status;
  status = check_cuda(cudaMemsetAsync(p.keep, 0xff, static_cast<size_t>(p.count) * 8, stream), "cudaMemsetAsync");
  const int64_t max_det = p.max_det < p.count ? p.max_det : p.count;
  if (!status.ok() || max_det == 0) return status;
  const BatchedLayout layout(p.count, p.idxs != nullptr);
  status = check_workspace(p.workspace, p.workspace_bytes, layout.bytes);
  if (!status.ok()) return status;
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>(
      "boxes and scores", p.dtype,
      [&](auto dtype) { return run_batched_nms<Element<dtype.value>>(p, max_det, layout, stream); });
}

int64_t multiclass_nms_workspace_bytes(const MulticlassNmsParams& p) { return layout_of(p).bytes; }

Status multiclass_nms(const MulticlassNmsParams& p, Stream stream) {
  const Status status = check_multiclass_nms(p);
  if (!status.ok() || p.batch == 0) return status;
  HeadMap map;  // scores as one level of one row
  map.data = p.scores;
  map.height = 1;
  map.width = p.count;
  map.stride_b = p.scores_stride_b;
  map.stride_c = p.scores_stride_c;
  map.stride_w = p.scores_stride_n;
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>(
      "boxes and scores", p.dtype, [&](auto dtype) {
        using T = Element<dtype.value>;
        const Scores scores = describe_scores<T>(&map, 1, p.classes, p.settings.filter);
        const GivenBoxes<T> boxes = {static_cast<const T*>(p.boxes), p.boxes_stride_b, p.boxes_stride_n,
                                     p.boxes_stride_c};
        return detect<T>(scores, NoDecoder{}, boxes, p.batch, p.settings, p.out, layout_of(p), p.workspace,
                         p.workspace_bytes, stream);
      });
}

}  // namespace fastyolo
