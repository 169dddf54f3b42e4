// SPDX-License-Identifier: Apache-2.0
// The CUDA entries on arrays in the stand-in's device memory, for simt.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "batched_nms.h"
#include "decode_nms.h"
#include "dfl_decode.h"
#include "dw_sppf.h"
#include "eca.h"
#include "include/cuda_runtime.h"
#include "intrinsics.h"
#include "letterbox.h"
#include "sppf_pool.h"
#include "wrong_kernels.h"

namespace py = pybind11;

namespace {

using namespace fastyolo;

// Whatever the checkers found becomes an exception.
void raise_report() {
  const std::string report = simt::take_report();
  (void)cudaGetLastError();
  if (!report.empty()) throw std::runtime_error(report);
}

void* allocate(size_t bytes) {
  void* memory = simt::allocate(bytes);
  if (!memory) throw std::bad_alloc();
  return memory;
}

struct Release {
  void operator()(void* memory) const { simt::release(memory); }
};
using DeviceMemory = std::unique_ptr<void, Release>;

// A strided array. It owns no byte more than its elements span, and its alignment is that of the host's array.
class DeviceArray {
 public:
  DeviceArray(uintptr_t host, DType dtype, std::vector<int64_t> sizes, std::vector<int64_t> strides)
      : dtype(dtype), sizes(std::move(sizes)), strides(std::move(strides)) {
    int64_t elements = 1;
    for (size_t i = 0; i < this->sizes.size(); ++i) {
      if (this->sizes[i] == 0) elements = 0;
      if (elements) elements += (this->sizes[i] - 1) * this->strides[i];
    }
    bytes_ = static_cast<size_t>(elements * size_of(dtype));
    const size_t offset = host % 256;
    memory_.reset(allocate(offset + bytes_));
    data_ = static_cast<char*>(memory_.get()) + offset;
  }

  void upload(uintptr_t host) const { copy(data_, reinterpret_cast<void*>(host), cudaMemcpyHostToDevice); }
  void download(uintptr_t host) const { copy(reinterpret_cast<void*>(host), data_, cudaMemcpyDeviceToHost); }

  template <class T = void>
  T* data() const {
    return static_cast<T*>(data_);
  }

  DType dtype;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;

 private:
  void copy(void* to, const void* from, cudaMemcpyKind kind) const {
    (void)cudaMemcpyAsync(to, from, bytes_, kind);
    raise_report();
  }

  size_t bytes_;
  DeviceMemory memory_;
  void* data_;
};

template <class Params>
void call(Status (*entry)(const Params&, Stream), const Params& params) {
  const Status status = entry(params, nullptr);
  if (status.ok()) simt::check_launch_error();
  raise_report();
  if (!status.ok()) throw std::invalid_argument(status.message);
}

template <class Params>
void call(Status (*entry)(const Params&, Stream), int64_t (*workspace_bytes)(const Params&), Params& params) {
  params.workspace_bytes = workspace_bytes(params);
  const DeviceMemory workspace(allocate(params.workspace_bytes));
  params.workspace = workspace.get();
  call(entry, params);
}

NmsSettings make_settings(double score_threshold, double iou_threshold, int64_t max_det, int64_t max_candidates,
                          bool multi_label, bool class_agnostic, const std::optional<std::vector<int64_t>>& classes,
                          const DeviceArray* thresholds) {
  NmsSettings settings;
  settings.score_threshold = score_threshold;
  settings.iou_threshold = iou_threshold;
  settings.max_det = max_det;
  settings.max_candidates = max_candidates;
  settings.multi_label = multi_label;
  settings.class_agnostic = class_agnostic;
  settings.filter.enabled = classes.has_value();
  settings.thresholds = thresholds ? thresholds->data<float>() : nullptr;
  if (classes) {
    for (int64_t label : *classes) settings.filter.words[label / 32] |= 1u << label % 32;
  }
  return settings;
}

using Arrays = std::vector<const DeviceArray*>;

Detections pointers_of(const Arrays& out) {
  return {out.at(0)->data<int32_t>(), out.at(1)->data<float>(), out.at(2)->data<float>(), out.at(3)->data<int32_t>(),
          out.at(4)->data<int32_t>()};
}

HeadMap view_of(const DeviceArray& a) {
  return {a.data(), a.sizes[2], a.sizes[3], a.strides[0], a.strides[1], a.strides[2], a.strides[3]};
}

void run_decode_nms(const Arrays& box_maps, const Arrays& cls_maps, const std::vector<float>& strides,
                    const NmsSettings& settings, const Arrays& out) {
  DecodeNmsParams params;
  params.dtype = box_maps.at(0)->dtype;
  params.batch = box_maps[0]->sizes[0];
  params.bins = box_maps[0]->sizes[1] / 4;
  params.classes = cls_maps.at(0)->sizes[1];
  params.levels = static_cast<int32_t>(box_maps.size());
  for (size_t l = 0; l < box_maps.size(); ++l) {
    params.box_maps[l] = view_of(*box_maps[l]);
    params.cls_maps[l] = view_of(*cls_maps.at(l));
    params.strides[l] = strides.at(l);
  }
  params.settings = settings;
  params.out = pointers_of(out);
  call(decode_nms, decode_nms_workspace_bytes, params);
}

void run_multiclass_nms(const DeviceArray& boxes, const DeviceArray& scores, const NmsSettings& settings,
                        const Arrays& out) {
  MulticlassNmsParams params;
  params.dtype = boxes.dtype;
  params.batch = boxes.sizes[0];
  params.count = boxes.sizes[1];
  params.classes = scores.sizes[1];
  params.boxes = boxes.data();
  params.boxes_stride_b = boxes.strides[0];
  params.boxes_stride_n = boxes.strides[1];
  params.boxes_stride_c = boxes.strides[2];
  params.scores = scores.data();
  params.scores_stride_b = scores.strides[0];
  params.scores_stride_c = scores.strides[1];
  params.scores_stride_n = scores.strides[2];
  params.settings = settings;
  params.out = pointers_of(out);
  call(multiclass_nms, multiclass_nms_workspace_bytes, params);
}

void run_batched_nms(const DeviceArray& boxes, const DeviceArray& scores, const DeviceArray* idxs, double iou_threshold,
                     int64_t max_det, const DeviceArray& keep, const DeviceArray& num_keep) {
  BatchedNmsParams params;
  params.dtype = boxes.dtype;
  params.count = boxes.sizes[0];
  params.boxes = boxes.data();
  params.scores = scores.data();
  params.idxs = idxs ? idxs->data<int64_t>() : nullptr;
  params.iou_threshold = iou_threshold;
  params.max_det = max_det;
  params.keep = keep.data<int64_t>();
  params.num_keep = num_keep.data<int32_t>();
  call(batched_nms, batched_nms_workspace_bytes, params);
}

DflDecodeParams dfl_params(const DeviceArray& logits, const DeviceArray& strides) {
  DflDecodeParams params;
  params.dtype = logits.dtype;
  params.batch = logits.sizes[0];
  params.bins = logits.sizes[1] / 4;
  params.anchors = logits.sizes[2];
  params.logits = logits.data();
  params.logits_stride_b = logits.strides[0];
  params.logits_stride_c = logits.strides[1];
  params.logits_stride_a = logits.strides[2];
  params.strides = strides.data();
  return params;
}

void run_dfl_decode(const DeviceArray& logits, const DeviceArray& anchor_points, const DeviceArray& strides,
                    const DeviceArray& boxes) {
  DflDecodeParams params = dfl_params(logits, strides);
  params.anchor_points = anchor_points.data();
  params.boxes = boxes.data();
  call(dfl_decode, params);
}

void run_dfl_decode_backward(const DeviceArray& grad_boxes, const DeviceArray& logits, const DeviceArray& strides,
                             const DeviceArray& grad_logits) {
  DflDecodeParams params = dfl_params(logits, strides);
  params.grad_boxes = grad_boxes.data();
  params.grad_logits = grad_logits.data();
  params.grad_logits_stride_b = grad_logits.strides[0];
  params.grad_logits_stride_c = grad_logits.strides[1];
  params.grad_logits_stride_a = grad_logits.strides[2];
  call(dfl_decode_backward, params);
}

template <class Map>
Map map_of(const DeviceArray& a) {
  return {a.data(), a.strides[0], a.strides[1], a.strides[2], a.strides[3]};
}

template <class Params>
Params params_of(const DeviceArray& x) {
  Params params;
  params.dtype = x.dtype;
  params.batch = x.sizes[0];
  params.channels = x.sizes[1];
  params.height = x.sizes[2];
  params.width = x.sizes[3];
  params.x = map_of<FeatureMap>(x);
  return params;
}

EcaParams eca_params(const DeviceArray& x, const DeviceArray& weight) {
  EcaParams params = params_of<EcaParams>(x);
  params.weight_dtype = weight.dtype;
  params.taps = weight.sizes[0];
  params.weight = weight.data();
  return params;
}

void run_eca(const DeviceArray& x, const DeviceArray& weight, const DeviceArray& y) {
  EcaParams params = eca_params(x, weight);
  params.y = map_of<MutableFeatureMap>(y);
  call(eca, eca_workspace_bytes, params);
}

void run_eca_backward(const DeviceArray& grad_y, const DeviceArray& x, const DeviceArray& weight,
                      const DeviceArray& grad_x, const DeviceArray& grad_weight) {
  EcaParams params = eca_params(x, weight);
  params.grad_y = map_of<FeatureMap>(grad_y);
  params.grad_x = map_of<MutableFeatureMap>(grad_x);
  params.grad_weight = grad_weight.data();
  call(eca_backward, eca_backward_workspace_bytes, params);
}

DwSppfParams dw_sppf_params(const DeviceArray& x, const DeviceArray& weight, const DeviceArray* bias, int64_t dilation,
                            const std::string& activation) {
  DwSppfParams params = params_of<DwSppfParams>(x);
  params.weight_dtype = weight.dtype;
  params.kernel = weight.sizes[2];
  params.dilation = dilation;
  const Status status = parse_activation(activation.c_str(), params.activation);
  if (!status.ok()) throw std::invalid_argument(status.message);
  params.weight = weight.data();
  params.bias = bias ? bias->data() : nullptr;
  return params;
}

void run_dw_sppf(const DeviceArray& x, const DeviceArray& weight, const DeviceArray* bias, int64_t dilation,
                 const std::string& activation, const DeviceArray& out) {
  DwSppfParams params = dw_sppf_params(x, weight, bias, dilation, activation);
  params.out = map_of<MutableFeatureMap>(out);
  call(dw_sppf, dw_sppf_workspace_bytes, params);
}

void run_dw_sppf_backward(const DeviceArray& grad_out, const DeviceArray& x, const DeviceArray& weight,
                          const DeviceArray* bias, int64_t dilation, const std::string& activation,
                          const DeviceArray& grad_x, const DeviceArray& grad_weight, const DeviceArray& grad_bias) {
  DwSppfParams params = dw_sppf_params(x, weight, bias, dilation, activation);
  params.grad_out = map_of<FeatureMap>(grad_out);
  params.grad_x = map_of<MutableFeatureMap>(grad_x);
  params.grad_weight = grad_weight.data();
  params.grad_bias = bias ? grad_bias.data() : nullptr;
  call(dw_sppf_backward, dw_sppf_backward_workspace_bytes, params);
}

SppfPoolParams sppf_pool_params(const DeviceArray& x, int64_t kernel) {
  SppfPoolParams params = params_of<SppfPoolParams>(x);
  params.kernel = kernel;
  return params;
}

void run_sppf_pool(const DeviceArray& x, int64_t kernel, const DeviceArray& out) {
  SppfPoolParams params = sppf_pool_params(x, kernel);
  params.out = map_of<MutableFeatureMap>(out);
  call(sppf_pool, sppf_pool_workspace_bytes, params);
}

void run_sppf_pool_backward(const DeviceArray& grad_out, const DeviceArray& x, int64_t kernel,
                            const DeviceArray& grad_x) {
  SppfPoolParams params = sppf_pool_params(x, kernel);
  params.grad_out = map_of<FeatureMap>(grad_out);
  params.grad_x = map_of<MutableFeatureMap>(grad_x);
  call(sppf_pool_backward, sppf_pool_backward_workspace_bytes, params);
}

// Of examples/cpp. The image travels as bytes and the stand-in's arrays have none, so this one allocates for itself.
std::vector<float> run_letterbox(const std::string& image, int width, int height, int net_width, int net_height) {
  const Letterbox box = fit(width, height, net_width, net_height);
  std::vector<float> result(size_t{3} * net_width * net_height);
  const DeviceMemory pixels(allocate(image.size()));
  const DeviceMemory tensor(allocate(result.size() * sizeof(float)));
  cudaError_t error = cudaMemcpyAsync(pixels.get(), image.data(), image.size(), cudaMemcpyHostToDevice);
  if (error == cudaSuccess) {
    error = letterbox(static_cast<const uint8_t*>(pixels.get()), box, static_cast<float*>(tensor.get()), nullptr);
  }
  if (error == cudaSuccess) {
    error = cudaMemcpyAsync(result.data(), tensor.get(), result.size() * sizeof(float), cudaMemcpyDeviceToHost);
  }
  raise_report();
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  return result;
}

}  // namespace

PYBIND11_MODULE(SIMT_MODULE, m) {
  // The kernels take no notice of int32 or int64 beyond the size: those travel as the floats of theirs.
  py::enum_<DType>(m, "DType")
      .value("float32", DType::kFloat32)
      .value("float16", DType::kFloat16)
      .value("bfloat16", DType::kBFloat16)
      .value("float64", DType::kFloat64)
      .value("int32", DType::kFloat32)
      .value("int64", DType::kFloat64);
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(py::init<uintptr_t, DType, std::vector<int64_t>, std::vector<int64_t>>())
      .def("upload", &DeviceArray::upload)
      .def("download", &DeviceArray::download);
  py::class_<NmsSettings>(m, "NmsSettings").def(py::init(&make_settings), py::keep_alive<1, 9>());  // the thresholds

  m.def("decode_nms", run_decode_nms);
  m.def("multiclass_nms", run_multiclass_nms);
  m.def("batched_nms", run_batched_nms);
  m.def("dfl_decode", run_dfl_decode);
  m.def("dfl_decode_backward", run_dfl_decode_backward);
  m.def("eca", run_eca);
  m.def("eca_backward", run_eca_backward);
  m.def("dw_sppf", run_dw_sppf);
  m.def("dw_sppf_backward", run_dw_sppf_backward);
  m.def("sppf_pool", run_sppf_pool);
  m.def("sppf_pool_backward", run_sppf_pool_backward);
  m.def("letterbox", [](const py::bytes& image, int width, int height, int net_width, int net_height) {
    return run_letterbox(image, width, height, net_width, net_height);
  });

  py::class_<simt::Device>(m, "Device")
      .def_readwrite("multiprocessors", &simt::Device::multiprocessors)
      .def_readwrite("capability", &simt::Device::capability)
      .def_readwrite("block_threads", &simt::Device::block_threads)
      .def_readwrite("shared_bytes", &simt::Device::shared_bytes)
      .def_readwrite("shared_bytes_optin", &simt::Device::shared_bytes_optin);
  m.attr("device") = py::cast(&simt::device, py::return_value_policy::reference);
  m.def("set_order", simt::set_order);
  m.def("fail_launch_after", simt::fail_launch_after);

  m.def("run_wrong_kernel", [](const std::string& name) {
    const float result = run_wrong_kernel(name);
    raise_report();
    return result;
  });
  m.def("run_intrinsics", [] {
    run_intrinsics();
    raise_report();
  });
  m.def("half_bits", half_bits);
  m.def("bfloat16_bits", bfloat16_bits);
  m.def("half_value", half_value);
  m.def("bfloat16_value", bfloat16_value);
}
