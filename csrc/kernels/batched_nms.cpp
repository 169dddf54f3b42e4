// SPDX-License-Identifier: Apache-2.0
// NMS over given boxes on the CPU: batched_nms (one list, any groups, torchvision's answers) and multiclass_nms (a
// batch with fixed-size outputs). The work is in greedy.h: each candidate against the kept boxes of its group, or where
// there may be thousands (greedy_grid.h) against those near it. Candidates come in the order of all scores, since
// max_det counts all groups; where it is no limit, short lists of many groups go one after the other.
#include "batched_nms.h"

#include "batched_nms_workspace.h"
#include "detect.h"
#include "dispatch.h"
#include "greedy_grid.h"
#include "thresholds.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

// Candidates that are tested against the boxes kept so far in one parallel step.
constexpr int64_t kStep = 1024;
// Below this many tests of 16 boxes (~10 ns each) a step is not worth waking threads for: on a busy machine that costs
// a time slice.
constexpr int64_t kParallelTests = 100000;
// Candidates in short lists that are worth a thread, ~100 us.
constexpr int64_t kGroupGrain = 1 << 11;

// Numbers the groups 0, 1, ... in order of first appearance: an open-addressing table of twice the size.
int64_t number_groups(const int64_t* idxs, int64_t count, int64_t* slot_idx, int32_t* slot_group, int64_t slots,
                      int32_t* group) {
  std::fill_n(slot_group, slots, -1);
  int32_t groups = 0;
  for (int64_t i = 0; i < count; ++i) {
    // Fibonacci hashing: the multiplier is 2^64 divided by the golden ratio.
    const uint64_t hash = static_cast<uint64_t>(idxs[i]) * 0x9e3779b97f4a7c15u;
    int64_t slot = static_cast<int64_t>(hash >> 32) & (slots - 1);
    while (slot_group[slot] >= 0 && slot_idx[slot] != idxs[i]) slot = (slot + 1) & (slots - 1);
    if (slot_group[slot] < 0) {
      slot_idx[slot] = idxs[i];
      slot_group[slot] = groups++;
    }
    group[i] = slot_group[slot];
  }
  return groups;
}

template <class V>
V* at(const BatchedNmsParams& p, int64_t offset) {
  return reinterpret_cast<V*>(static_cast<char*>(p.workspace) + offset);
}

// The boxes as the kernel takes them.
template <class T>
struct Boxes {
  using C = Compute<T>;

  const T* coordinates;
  const int32_t* group;

  Box<C> operator[](uint32_t i) const {
    const T* b = coordinates + int64_t{4} * i;
    return {convert<C>(b[0]), convert<C>(b[1]), convert<C>(b[2]), convert<C>(b[3])};
  }
  int32_t group_of(uint32_t i) const { return group ? group[i] : 0; }
};

// Keeps what max_det does not limit, in short lists: each group's boxes one after the other, so that what is kept of it
// stays in the first-level cache, and groups do not wait for each other. keys: all, sorted.
template <class T>
void suppress_by_groups(const BatchedNmsParams& p, const Boxes<T>& boxes, int64_t groups, const Key<Compute<T>>* keys,
                        Compute<T> bound, const BatchedNmsWorkspace& layout, const ParallelFor& parallel_for) {
  using C = Compute<T>;
  auto* blocks = at<KeptBlock<C>>(p, layout.blocks_offset);
  auto* heads = at<int32_t>(p, layout.heads_offset);
  auto* dead = at<uint8_t>(p, layout.dead_offset);
  auto* first = at<int32_t>(p, layout.group_first_offset);
  auto* members = at<uint32_t>(p, layout.members_offset);
  auto* places = at<int32_t>(p, layout.places_offset);
  std::fill_n(first, groups + 1, 0);
  for (int64_t i = 0; i < p.count; ++i) ++first[boxes.group[i] + 1];
  for (int64_t g = 0; g < groups; ++g) first[g + 1] += first[g];
  int32_t* const next = heads;
  std::copy_n(first, groups, next);
  for (int64_t r = 0; r < p.count; ++r) {
    const uint32_t index = index_of(keys[r]);
    places[r] = next[boxes.group_of(index)]++;
    members[places[r]] = index;
  }

  parallel_for(p.count, kGroupGrain, [&](int64_t begin, int64_t end) {  // the groups that begin there
    for (int64_t g = std::lower_bound(first, first + groups, begin) - first; g < groups && first[g] < end; ++g) {
      Greedy<C> greedy(heads + g, 1, blocks + first[g] / kBlockBoxes + g, bound);
      for (int32_t i = first[g]; i < first[g + 1]; ++i) {
        const Box<C> box = boxes[members[i]];
        dead[i] = greedy.is_suppressed(0, box);
        if (!dead[i]) greedy.keep(0, box);
      }
    }
  });

  int64_t kept = 0;
  for (int64_t r = 0; r < p.count; ++r) {
    if (!dead[places[r]]) p.keep[kept++] = index_of(keys[r]);
  }
  *p.num_keep = static_cast<int32_t>(kept);
  std::fill_n(p.keep + kept, p.count - kept, int64_t{-1});
}

// Keeps boxes until there are max_det. scanned: the share of a group's kept boxes that a candidate is tested against.
template <class T, class Kept>
void suppress(const BatchedNmsParams& p, const Boxes<T>& boxes, Kept& greedy, double scanned, int64_t groups,
              Key<Compute<T>>* keys, uint8_t* dead, const ParallelFor& parallel_for) {
  using C = Compute<T>;
  int64_t kept = 0;
  // Without a limit they are sorted already.
  BestFirst<Key<C>> chunks(keys, p.count, kStep, p.max_det >= p.count);
  const Key<C>* first;
  const Key<C>* last;
  while (kept < p.max_det && chunks.next(first, last)) {
    for (const Key<C>* step = first; step < last && kept < p.max_det; step += kStep) {
      const int64_t size = std::min<int64_t>(kStep, last - step);
      // Most of a long run's time is here, and candidates do not depend on each other: against what is already kept
      // they are tested in parallel, against each other in order.
      const int32_t since = greedy.num_blocks();
      const auto tests = static_cast<int64_t>(static_cast<double>(size) * since * scanned / groups);
      const bool parallel = parallel_for.num_threads() > 1 && tests >= kParallelTests;
      if (parallel) {
        parallel_for(size, 64, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const uint32_t index = index_of(step[i]);
            dead[i] = greedy.is_suppressed(boxes.group_of(index), boxes[index]);
          }
        });
      }
      for (int64_t i = 0; i < size && kept < p.max_det; ++i) {
        if (parallel && dead[i]) continue;
        const uint32_t index = index_of(step[i]);
        const Box<C> box = boxes[index];
        if (greedy.is_suppressed(boxes.group_of(index), box, parallel ? since : 0)) continue;
        greedy.keep(boxes.group_of(index), box);
        p.keep[kept++] = index;
      }
    }
  }
  *p.num_keep = static_cast<int32_t>(kept);
  std::fill_n(p.keep + kept, p.count - kept, int64_t{-1});
}

template <class T>
void suppress(const BatchedNmsParams& p, const ParallelFor& parallel_for) {
  using C = Compute<T>;
  const BatchedNmsWorkspace layout(p.count, p.max_det, p.idxs != nullptr, sizeof(C));
  auto* keys = at<Key<C>>(p, layout.keys_offset);
  auto* blocks = at<KeptBlock<C>>(p, layout.blocks_offset);
  auto* heads = at<int32_t>(p, layout.heads_offset);
  auto* dead = at<uint8_t>(p, layout.dead_offset);
  int32_t* group = nullptr;
  int64_t groups = 1;
  if (p.idxs) {
    group = at<int32_t>(p, layout.group_offset);
    groups = number_groups(p.idxs, p.count, at<int64_t>(p, layout.slot_idx_offset),
                           at<int32_t>(p, layout.slot_group_offset), layout.slots, group);
  }
  const T* scores = static_cast<const T*>(p.scores);
  for (int64_t i = 0; i < p.count; ++i) keys[i] = make_key(convert<C>(scores[i]), static_cast<uint32_t>(i));
  const Boxes<T> boxes{static_cast<const T*>(p.boxes), group};

  C bound;
  if constexpr (sizeof(C) == sizeof(double)) {
    bound = p.iou_threshold;
  } else {
    bound = round_down(p.iou_threshold);
  }
  const int64_t side = groups > 0 ? grid_side(std::min(p.count, p.max_det) / groups) : 0;
  Spread<C> spread;
  for (int64_t i = 0; side > 0 && i < p.count; ++i) spread.add(boxes[static_cast<uint32_t>(i)]);
  const double share = side > 0 ? spread.share(side) : 1;
  if (p.max_det >= p.count) {
    keys = sort_all(keys, at<Key<C>>(p, layout.scratch_offset), p.count);
    if (groups > 1 && side == 0) {
      return suppress_by_groups(p, boxes, groups, keys, bound, layout, parallel_for);
    }
  }
  if (share <= kLargestShare) {
    GridGreedy<C> greedy(heads, groups, blocks, bound, side, spread.centers(), at<int32_t>(p, layout.cell_slots_offset),
                         at<int32_t>(p, layout.cells_used_offset), at<CellBounds<C>>(p, layout.cell_bounds_offset));
    suppress(p, boxes, greedy, share, groups, keys, dead, parallel_for);
  } else {
    Greedy<C> greedy(heads, groups, blocks, bound);
    suppress(p, boxes, greedy, 1, groups, keys, dead, parallel_for);
  }
}

template <class T>
class GivenBoxes {
 public:
  explicit GivenBoxes(const MulticlassNmsParams& params) : p_(params) {}

  void operator()(int64_t image, AnchorSet& wanted, float* boxes) const {
    const T* data = static_cast<const T*>(p_.boxes) + image * p_.boxes_stride_b;
    wanted.drain([&](int64_t n) {
      const T* box = data + n * p_.boxes_stride_n;
      for (int64_t i = 0; i < 4; ++i) boxes[4 * n + i] = convert<float>(box[i * p_.boxes_stride_c]);
    });
  }

 private:
  const MulticlassNmsParams& p_;
};

}  // namespace

Status batched_nms_cpu(const BatchedNmsParams& p, const ParallelFor& parallel_for) {
  const int64_t needed = batched_nms_cpu_workspace_bytes(p, parallel_for.num_threads());
  if (const Status status = check_workspace(p.workspace, p.workspace_bytes, needed); !status.ok()) return status;
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16, DType::kFloat64>(
      "boxes and scores", p.dtype, [&](auto dtype) {
        suppress<Element<dtype.value>>(p, parallel_for);
        return Status{};
      });
}

Status multiclass_nms_cpu(const MulticlassNmsParams& p, const ParallelFor& parallel_for) {
  const int64_t needed = multiclass_nms_cpu_workspace_bytes(p, parallel_for.num_threads());
  if (const Status status = check_workspace(p.workspace, p.workspace_bytes, needed); !status.ok()) return status;
  HeadMap scores;  // one level, one row
  scores.data = p.scores;
  scores.height = 1;
  scores.width = p.count;
  scores.stride_b = p.scores_stride_b;
  scores.stride_c = p.scores_stride_c;
  scores.stride_w = p.scores_stride_n;
  const DetectionTask task{&scores,
                           1,
                           p.batch,
                           p.count,
                           p.classes,
                           round_down(p.settings.score_threshold),
                           /*values_are_logits=*/false,
                           &p.settings,
                           &p.out,
                           static_cast<char*>(p.workspace)};
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16, DType::kFloat64>(
      "boxes and scores", p.dtype, [&](auto dtype) {
        using T = Element<dtype.value>;
        const GivenBoxes<T> boxes(p);
        Detector<T, GivenBoxes<T>>(task, boxes, parallel_for.num_threads()).run(parallel_for);
        return Status{};
      });
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
