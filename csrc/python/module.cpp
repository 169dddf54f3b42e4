// SPDX-License-Identifier: Apache-2.0
// fastyolo._C: the CPU kernels on NumPy arrays, and what was built. Arrays are read where they lie, whatever their
// strides; the GIL is released while a kernel runs.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/batched_nms.h"
#include "kernels/decode_nms.h"
#include "kernels/dfl_decode.h"
#include "kernels/dw_sppf.h"
#include "kernels/eca.h"
#include "kernels/isa.h"
#include "kernels/sppf_pool.h"
#include "python/arguments.h"
#include "python/thread_pool.h"

namespace fastyolo {
namespace {

NmsSettings to_settings(int64_t class_count, py::handle score_threshold, py::handle iou_threshold, py::handle max_det,
                        py::handle max_candidates, py::handle multi_label, py::handle class_agnostic,
                        py::handle classes) {
  NmsSettings settings;
  settings.score_threshold = to_number(score_threshold, "score_threshold");
  settings.iou_threshold = to_number(iou_threshold, "iou_threshold");
  settings.max_det = to_integer(max_det, "max_det");
  settings.max_candidates = to_integer(max_candidates, "max_candidates");
  settings.multi_label = to_bool(multi_label, "multi_label");
  settings.class_agnostic = to_bool(class_agnostic, "class_agnostic");
  settings.filter.enabled = !classes.is_none();
  require(check_nms_settings(settings, class_count));
  if (classes.is_none()) return settings;
  const std::vector<py::object> items = to_list(classes, "classes", "integers");
  for (size_t i = 0; i < items.size(); ++i) {
    const int64_t label = to_integer(items[i], element("classes", i));
    if (label < 0 || label >= class_count) {
      throw py::value_error(element("classes", i) + " must be in [0, " + std::to_string(class_count) + "), got " +
                            std::to_string(label));
    }
    settings.filter.words[label >> 5] |= uint32_t{1} << (label & 31);
  }
  return settings;
}

// ---- outputs and the call

struct DetectionArrays {
  py::array_t<int32_t> num_dets;
  py::array_t<float> boxes;
  py::array_t<float> scores;
  py::array_t<int32_t> labels;
  py::array_t<int32_t> indices;

  DetectionArrays(py::ssize_t batch, py::ssize_t max_det)
      : num_dets(batch),
        boxes({batch, max_det, py::ssize_t{4}}),
        scores({batch, max_det}),
        labels({batch, max_det}),
        indices({batch, max_det}) {}

  Detections pointers() {
    return {num_dets.mutable_data(), boxes.mutable_data(), scores.mutable_data(), labels.mutable_data(),
            indices.mutable_data()};
  }

  py::tuple tuple() const { return py::make_tuple(num_dets, boxes, scores, labels, indices); }
};

// Runs an entry without the GIL.
template <class F>
void call(F&& entry) {
  const ParallelFor parallel_for = ThreadPool::get().parallel_for();
  Status status;
  {
    const py::gil_scoped_release unlocked;
    status = entry(parallel_for);
  }
  require(status);
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class Params>
void call_with_workspace(Status (*entry)(const Params&, const ParallelFor&),
                         int64_t (*workspace_bytes)(const Params&, int), Params params) {
  call([&](const ParallelFor& parallel_for) {
    params.workspace_bytes = align_up(workspace_bytes(params, parallel_for.num_threads()) + 1);
    const std::unique_ptr<void, Free> workspace(std::aligned_alloc(kWorkspaceAlignment, params.workspace_bytes));
    if (!workspace) throw std::bad_alloc();
    params.workspace = workspace.get();
    return entry(params, parallel_for);
  });
}

// ---- the ops

HeadMap to_head_map(const Input& map) {
  return {map.data(), map.size(2), map.size(3), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

py::tuple decode_nms_numpy(py::handle box_maps, py::handle cls_maps, py::handle strides, py::handle score_threshold,
                           py::handle iou_threshold, py::handle max_det, py::handle max_candidates,
                           py::handle multi_label, py::handle class_agnostic, py::handle classes) {
  const std::vector<py::object> box_items = to_list(box_maps, "box_maps", "arrays, one for each level");
  const std::vector<py::object> cls_items = to_list(cls_maps, "cls_maps", "arrays, one for each level");
  const std::vector<py::object> stride_items = to_list(strides, "strides", "numbers, one for each level");
  const size_t levels = box_items.size();
  if (levels < 1 || levels > kMaxLevels) {
    throw py::value_error("box_maps must hold 1 to " + std::to_string(kMaxLevels) + " levels, got " +
                          std::to_string(levels));
  }
  const auto require_levels = [&](const char* name, size_t count) {
    if (count == levels) return;
    throw py::value_error(std::string(name) + " must have one entry for each of the " + std::to_string(levels) +
                          " levels of box_maps, got " + std::to_string(count));
  };
  require_levels("cls_maps", cls_items.size());
  require_levels("strides", stride_items.size());

  std::vector<Input> boxes;
  std::vector<Input> scores;
  DecodeNmsParams params;
  params.levels = static_cast<int32_t>(levels);
  for (size_t l = 0; l < levels; ++l) {
    boxes.emplace_back(box_items[l], element("box_maps", l), "[B, 4R, H, W]", 4);
    scores.emplace_back(cls_items[l], element("cls_maps", l), "[B, C, H, W]", 4);
    for (const Input* map : {&boxes[l], &scores[l]}) {
      map->require_dtype_of(boxes[0]);
      map->require_size(0, "batch size", boxes[0], 0);
    }
    boxes[l].require_size(1, "channel count", boxes[0], 1);
    scores[l].require_size(1, "class count", scores[0], 1);
    params.box_maps[l] = to_head_map(boxes[l]);
    params.cls_maps[l] = to_head_map(scores[l]);
    params.strides[l] = static_cast<float>(to_number(stride_items[l], element("strides", l)));
  }
  params.dtype = boxes[0].dtype();
  params.batch = boxes[0].size(0);
  params.bins = boxes[0].bins();
  params.classes = scores[0].size(1);
  params.settings = to_settings(params.classes, score_threshold, iou_threshold, max_det, max_candidates, multi_label,
                                class_agnostic, classes);
  require(check_decode_nms(params));
  DetectionArrays out(params.batch, params.settings.max_det);
  params.out = out.pointers();
  call_with_workspace(decode_nms_cpu, decode_nms_cpu_workspace_bytes, params);
  return out.tuple();
}

py::tuple multiclass_nms_numpy(py::handle boxes_value, py::handle scores_value, py::handle score_threshold,
                               py::handle iou_threshold, py::handle max_det, py::handle max_candidates,
                               py::handle multi_label, py::handle class_agnostic, py::handle classes) {
  const Input boxes(boxes_value, "boxes", "[B, N, 4]", 3);
  const Input scores(scores_value, "scores", "[B, C, N]", 3);
  boxes.require_size(2, 4);
  scores.require_dtype_of(boxes);
  scores.require_size(0, "batch size", boxes, 0);
  scores.require_size(2, "box count", boxes, 1);

  MulticlassNmsParams params;
  params.dtype = boxes.dtype();
  params.batch = boxes.size(0);
  params.count = boxes.size(1);
  params.classes = scores.size(1);
  params.boxes = boxes.data();
  params.boxes_stride_b = boxes.stride(0);
  params.boxes_stride_n = boxes.stride(1);
  params.boxes_stride_c = boxes.stride(2);
  params.scores = scores.data();
  params.scores_stride_b = scores.stride(0);
  params.scores_stride_c = scores.stride(1);
  params.scores_stride_n = scores.stride(2);
  params.settings = to_settings(params.classes, score_threshold, iou_threshold, max_det, max_candidates, multi_label,
                                class_agnostic, classes);
  require(check_multiclass_nms(params));
  DetectionArrays out(params.batch, params.settings.max_det);
  params.out = out.pointers();
  call_with_workspace(multiclass_nms_cpu, multiclass_nms_cpu_workspace_bytes, params);
  return out.tuple();
}

py::array_t<int64_t> to_groups(py::handle value, int64_t count) {
  if (!py::isinstance<py::array>(value)) {
    throw py::type_error("idxs must be a NumPy array of integers or None, got " + type_of(value));
  }
  const auto array = py::reinterpret_borrow<py::array>(value);
  if (array.dtype().kind() != 'i' && array.dtype().kind() != 'u') {
    throw py::type_error("idxs must be a NumPy array of integers or None, got " + std::string(py::str(array.dtype())));
  }
  if (array.ndim() != 1 || array.shape(0) != count) {
    throw py::value_error("idxs must have shape [N] with N " + std::to_string(count) + " like boxes, got " +
                          std::string(py::str(array.attr("shape"))));
  }
  auto groups = py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  if (!groups) throw py::error_already_set();
  return groups;
}

py::array_t<int64_t> batched_nms_numpy(py::handle boxes_value, py::handle scores_value, py::handle idxs,
                                       py::handle iou_threshold, py::handle max_det) {
  Input boxes(boxes_value, "boxes", "[N, 4]", 2);
  Input scores(scores_value, "scores", "[N]", 1);
  boxes.require_size(1, 4);
  scores.require_dtype_of(boxes);
  scores.require_size(0, "box count", boxes, 0);
  boxes.make_contiguous();
  scores.make_contiguous();

  BatchedNmsParams params;
  params.dtype = boxes.dtype();
  params.count = boxes.size(0);
  params.boxes = boxes.data();
  params.scores = scores.data();
  py::array_t<int64_t> groups;
  if (!idxs.is_none()) {
    groups = to_groups(idxs, params.count);
    params.idxs = groups.data();
  }
  params.iou_threshold = to_number(iou_threshold, "iou_threshold");
  params.max_det = max_det.is_none() ? params.count : std::min(params.count, to_integer(max_det, "max_det"));
  require(check_batched_nms(params));
  std::vector<int64_t> keep(params.count);
  int32_t num_keep = 0;
  params.keep = keep.data();
  params.num_keep = &num_keep;
  call_with_workspace(batched_nms_cpu, batched_nms_cpu_workspace_bytes, params);
  return py::array_t<int64_t>(num_keep, keep.data());
}

py::array_t<int64_t> nms_numpy(py::handle boxes, py::handle scores, py::handle iou_threshold, py::handle max_det) {
  return batched_nms_numpy(boxes, scores, py::none(), iou_threshold, max_det);
}

py::array dfl_decode_numpy(py::handle logits_value, py::handle anchor_points_value, py::handle strides_value) {
  const Input logits(logits_value, "logits", "[B, 4R, A]", 3);
  Input anchor_points(anchor_points_value, "anchor_points", "[2, A]", 2);
  Input strides(strides_value, "strides", "[A]", 1);
  anchor_points.require_dtype_of(logits);
  strides.require_dtype_of(logits);
  anchor_points.require_size(0, 2);
  anchor_points.require_size(1, "anchor count", logits, 2);
  strides.require_size(0, "anchor count", logits, 2);
  anchor_points.make_contiguous();
  strides.make_contiguous();

  DflDecodeParams params;
  params.dtype = logits.dtype();
  params.batch = logits.size(0);
  params.anchors = logits.size(2);
  params.bins = logits.bins();
  params.logits = logits.data();
  params.logits_stride_b = logits.stride(0);
  params.logits_stride_c = logits.stride(1);
  params.logits_stride_a = logits.stride(2);
  params.anchor_points = anchor_points.data();
  params.strides = strides.data();
  require(check_dfl_decode(params));
  py::array boxes(logits.numpy_dtype(), {params.batch, int64_t{4}, params.anchors});
  params.boxes = boxes.mutable_data();
  call([&](const ParallelFor& parallel_for) { return dfl_decode_cpu(params, parallel_for); });
  return boxes;
}

// Fills what every op's params say of x.
template <class Params>
Params to_params(const Input& x) {
  Params params;
  params.dtype = x.dtype();
  params.batch = x.size(0);
  params.channels = x.size(1);
  params.height = x.size(2);
  params.width = x.size(3);
  params.x = {x.data(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
  return params;
}

// A new contiguous map of `channels` channels that is otherwise like x.
py::array make_map(const Input& x, int64_t channels) {
  return py::array(x.numpy_dtype(), {x.size(0), channels, x.size(2), x.size(3)});
}

MutableFeatureMap to_map(py::array& map) {
  const auto stride = [&](int axis) { return map.strides(axis) / map.itemsize(); };
  return {map.mutable_data(), stride(0), stride(1), stride(2), stride(3)};
}

py::array eca_numpy(py::handle x_value, py::handle weight_value) {
  const Input x(x_value, "x", "[B, C, H, W]", 4);
  Input weight(weight_value, "weight", "[k]", 1);
  weight.require_dtype_of(x);
  weight.make_contiguous();

  EcaParams params = to_params<EcaParams>(x);
  params.weight_dtype = weight.dtype();
  params.taps = weight.size(0);
  params.weight = weight.data();
  require(check_eca(params));
  py::array y = make_map(x, params.channels);
  params.y = to_map(y);
  call_with_workspace(eca_cpu, eca_cpu_workspace_bytes, params);
  return y;
}

py::array dw_sppf_numpy(py::handle x_value, py::handle weight_value, py::handle bias_value, py::handle dilation,
                        py::handle activation) {
  const Input x(x_value, "x", "[B, C, H, W]", 4);
  Input weight(weight_value, "weight", "[3, C, K, K]", 4);
  weight.require_dtype_of(x);
  weight.require_size(0, kDwSppfStages);
  weight.require_size(1, "channel count", x, 1);
  weight.require_size(3, weight.size(2));
  weight.make_contiguous();

  DwSppfParams params = to_params<DwSppfParams>(x);
  params.weight_dtype = weight.dtype();
  params.kernel = weight.size(2);
  params.dilation = to_integer(dilation, "dilation");
  params.weight = weight.data();
  std::optional<Input> bias;
  if (!bias_value.is_none()) {
    bias.emplace(bias_value, "bias", "[3, C]", 2);
    bias->require_dtype_of(x);
    bias->require_size(0, kDwSppfStages);
    bias->require_size(1, "channel count", x, 1);
    bias->make_contiguous();
    params.bias = bias->data();
  }
  require(parse_activation(to_text(activation, "activation").c_str(), params.activation));
  require(check_dw_sppf(params));
  py::array out = make_map(x, (1 + kDwSppfStages) * params.channels);
  params.out = to_map(out);
  call_with_workspace(dw_sppf_cpu, dw_sppf_cpu_workspace_bytes, params);
  return out;
}

py::array sppf_pool_numpy(py::handle x_value, py::handle kernel_size) {
  const Input x(x_value, "x", "[B, C, H, W]", 4);
  SppfPoolParams params = to_params<SppfPoolParams>(x);
  params.kernel = to_integer(kernel_size, "kernel_size");
  require(check_sppf_pool(params));
  py::array out = make_map(x, (1 + kSppfStages) * params.channels);
  params.out = to_map(out);
  call_with_workspace(sppf_pool_cpu, sppf_pool_cpu_workspace_bytes, params);
  return out;
}

// ---- what was built

py::tuple words(const std::string& text) { return py::tuple(py::str(text).attr("split")()); }

py::dict build_info() {
  using namespace py::literals;
#ifdef FASTYOLO_WITH_CUDA
  const bool cuda = true;
#else
  const bool cuda = false;
#endif
  return py::dict("version"_a = FASTYOLO_VERSION, "cpu_isa"_a = cpu_isa_name(), "cpu_isas"_a = words(FASTYOLO_CPU_ISAS),
                  "cuda"_a = cuda, "cuda_version"_a = cuda ? py::object(py::str(FASTYOLO_CUDA_VERSION)) : py::none(),
                  "cuda_architectures"_a = words(FASTYOLO_CUDA_ARCHITECTURES), "compiler"_a = FASTYOLO_COMPILER,
                  "build_type"_a = FASTYOLO_BUILD_TYPE);
}

void set_num_threads(py::handle value) {
  const int64_t count = to_integer(value, "num_threads");
  if (count < 1 || count > ThreadPool::kMaxThreads) {
    throw py::value_error("num_threads must be in [1, " + std::to_string(ThreadPool::kMaxThreads) + "], got " +
                          std::to_string(count));
  }
  ThreadPool::set_num_threads(static_cast<int>(count));
}

// Defines a function whose docstring starts with its signature. Without the second overload, a call that does not fit
// the first would be answered with the text of every array in it.
template <class F, class... Arguments>
void define(py::module_& m, const char* name, F function, const char* doc, const Arguments&... arguments) {
  m.def(name, function, doc, arguments...);
  const std::string signature(doc, std::strcspn(doc, "\n"));
  m.def(name, [signature](const py::args& args, const py::kwargs& keywords) -> py::object {
    std::string got = std::to_string(args.size()) + " positional arguments";
    for (const auto& keyword : keywords) got += ", " + std::string(py::str(keyword.first));
    throw py::type_error("The call must be " + signature + "; got " + got);
  });
}

constexpr const char* kDecodeNmsDoc =
    R"(decode_nms(box_maps, cls_maps, strides, *, score_threshold=0.25, iou_threshold=0.7, max_det=300, max_candidates=30000, multi_label=False, class_agnostic=False, classes=None)

Raw head maps to final detections: one [B, 4R, H, W] box map, one [B, C, H, W] class map of logits and one
stride in pixels for each level; float32 or float64, any strides, never copied.

Returns (num_dets [B] int32, boxes [B, max_det, 4] float32 xyxy in pixels, scores [B, max_det] float32,
labels [B, max_det] int32, indices [B, max_det] int32). Rows past num_dets hold 0 in boxes and scores, -1 in labels
and indices. The meaning of every argument is that of fastyolo.ops.decode_nms.)";

constexpr const char* kMulticlassNmsDoc =
    R"(multiclass_nms(boxes, scores, *, score_threshold=0.25, iou_threshold=0.7, max_det=300, max_candidates=30000, multi_label=False, class_agnostic=False, classes=None)

Greedy NMS for each class over boxes [B, N, 4] xyxy and scores [B, C, N] (probabilities); float32 or float64, any
strides, never copied. Returns what decode_nms returns; indices are box indices.)";

constexpr const char* kBatchedNmsDoc =
    R"(batched_nms(boxes, scores, idxs, iou_threshold, max_det=None)

Greedy NMS of boxes [N, 4] xyxy with scores [N] within each group of idxs [N] (None: one group): the indices that stay,
by descending score, int64, as torchvision.ops.batched_nms returns them; at most max_det of them if given.)";

constexpr const char* kNmsDoc = R"(nms(boxes, scores, iou_threshold, max_det=None)

batched_nms of a single group.)";

constexpr const char* kDflDecodeDoc = R"(dfl_decode(logits, anchor_points, strides)

Distribution focal loss logits [B, 4R, A] (any strides, never copied), anchor_points [2, A] in grid cells and
strides [A] in pixels, all float32 or all float64, to boxes [B, 4, A] xyxy in pixels.)";

constexpr const char* kEcaDoc = R"(eca(x, weight)

Efficient channel attention of x [B, C, H, W] (any strides, never copied) with the convolution weight [k], both float32
or both float64: the result of fastyolo.ops.eca, contiguous.)";

constexpr const char* kDwSppfDoc = R"(dw_sppf(x, weight, bias=None, *, dilation=2, activation='identity')

Three chained depthwise convolutions of x [B, C, H, W] (any strides, never copied) with weight [3, C, K, K] and bias
[3, C], all float32 or all float64, and the concatenation of x and the stages, [B, 4C, H, W]: the result of
fastyolo.ops.dw_sppf, contiguous.)";

constexpr const char* kSppfPoolDoc = R"(sppf_pool(x, *, kernel_size=5)

Three chained max pools of x [B, C, H, W] (float32 or float64, any strides, never copied) and the concatenation of x and
the stages, [B, 4C, H, W]: the result of fastyolo.ops.sppf_pool, contiguous.)";

}  // namespace
}  // namespace fastyolo

PYBIND11_MODULE(_C, m) {
  using namespace fastyolo;
  using py::arg;
  py::options options;
  options.disable_function_signatures();
  m.doc() = "fastyolo's CPU kernels on NumPy arrays, and what was built.";
  m.attr("__version__") = FASTYOLO_VERSION;

  const auto define_detector = [&](const char* name, auto function, const char* doc, const auto&... inputs) {
    const NmsSettings defaults;
    define(m, name, function, doc, inputs..., py::kw_only(), arg("score_threshold") = defaults.score_threshold,
           arg("iou_threshold") = defaults.iou_threshold, arg("max_det") = defaults.max_det,
           arg("max_candidates") = defaults.max_candidates, arg("multi_label") = defaults.multi_label,
           arg("class_agnostic") = defaults.class_agnostic, arg("classes") = py::none());
  };
  define_detector("decode_nms", decode_nms_numpy, kDecodeNmsDoc, arg("box_maps"), arg("cls_maps"), arg("strides"));
  define_detector("multiclass_nms", multiclass_nms_numpy, kMulticlassNmsDoc, arg("boxes"), arg("scores"));
  define(m, "batched_nms", batched_nms_numpy, kBatchedNmsDoc, arg("boxes"), arg("scores"), arg("idxs"),
         arg("iou_threshold"), arg("max_det") = py::none());
  define(m, "nms", nms_numpy, kNmsDoc, arg("boxes"), arg("scores"), arg("iou_threshold"), arg("max_det") = py::none());
  define(m, "dfl_decode", dfl_decode_numpy, kDflDecodeDoc, arg("logits"), arg("anchor_points"), arg("strides"));

  define(m, "eca", eca_numpy, kEcaDoc, arg("x"), arg("weight"));
  define(m, "dw_sppf", dw_sppf_numpy, kDwSppfDoc, arg("x"), arg("weight"), arg("bias") = py::none(), py::kw_only(),
         arg("dilation") = DwSppfParams{}.dilation, arg("activation") = "identity");
  define(m, "sppf_pool", sppf_pool_numpy, kSppfPoolDoc, arg("x"), py::kw_only(),
         arg("kernel_size") = SppfPoolParams{}.kernel);

  define(m, "set_num_threads", set_num_threads,
         "set_num_threads(num_threads)\n\nThreads that a call may use, its own included.", arg("num_threads"));
  define(m, "get_num_threads", &ThreadPool::num_threads,
         "get_num_threads()\n\nAt first, the number of CPUs that the process may run on.");
  define(m, "build_info", build_info,
         "build_info()\n\nWhat was compiled into the library, and the instruction set in use.");
}
