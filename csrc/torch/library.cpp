// SPDX-License-Identifier: Apache-2.0
// The operators' table of contents, and what the library has once.
#include "kernels/batched_nms.h"
#include "kernels/decode_nms.h"
#include "kernels/dfl_decode.h"
#include "kernels/dw_sppf.h"
#include "kernels/eca.h"
#include "kernels/sppf_pool.h"
#include "torch/tensor.h"

// Only CUDA builds of torch define it. As a weak symbol it is null in the others, where no tensor can ask for it.
#pragma weak aoti_torch_get_current_cuda_stream

STABLE_TORCH_LIBRARY(fastyolo, m) {
  m.def(
      "decode_nms(Tensor[] box_maps, Tensor[] cls_maps, float[] strides, *, float score_threshold=0.25, "
      "float iou_threshold=0.7, int max_det=300, int max_candidates=30000, bool multi_label=False, "
      "bool class_agnostic=False, int[]? classes=None) "
      "-> (Tensor num_dets, Tensor boxes, Tensor scores, Tensor labels, Tensor indices)");
  m.def(
      "multiclass_nms(Tensor boxes, Tensor scores, *, float score_threshold=0.25, float iou_threshold=0.7, "
      "int max_det=300, int max_candidates=30000, bool multi_label=False, bool class_agnostic=False, "
      "int[]? classes=None) -> (Tensor num_dets, Tensor boxes, Tensor scores, Tensor labels, Tensor indices)");
  m.def(
      "batched_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, *, int? max_det=None) "
      "-> (Tensor keep, Tensor num_keep)");
  m.def("dfl_decode(Tensor logits, Tensor anchor_points, Tensor strides) -> Tensor");
  m.def("dfl_decode_backward(Tensor grad_boxes, Tensor logits, Tensor strides) -> Tensor");
  m.def("eca(Tensor x, Tensor weight) -> Tensor");
  m.def("eca_backward(Tensor grad_y, Tensor x, Tensor weight) -> (Tensor grad_x, Tensor grad_weight)");
  m.def("dw_sppf(Tensor x, Tensor weight, Tensor? bias=None, *, int dilation=2, str activation='identity') -> Tensor");
  m.def(
      "dw_sppf_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor? bias, *, int dilation, str activation) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def("sppf_pool(Tensor x, *, int kernel_size=5) -> Tensor");
  m.def("sppf_pool_backward(Tensor grad_out, Tensor x, *, int kernel_size) -> Tensor");
  m.def("_build_version() -> str");
}

namespace fastyolo {

Stream current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}

#ifndef FASTYOLO_WITH_CUDA

// A build without nvcc answers CUDA tensors with one sentence.
namespace {

Status cuda_absent() {
  return Status::error(
      "fastyolo was built without its CUDA kernels; rebuild it with nvcc on PATH: "
      "FASTYOLO_CUDA=on pip install --no-build-isolation -e .");
}

}  // namespace

int64_t batched_nms_workspace_bytes(const BatchedNmsParams&) { return 0; }
int64_t multiclass_nms_workspace_bytes(const MulticlassNmsParams&) { return 0; }
int64_t decode_nms_workspace_bytes(const DecodeNmsParams&) { return 0; }
int64_t eca_workspace_bytes(const EcaParams&) { return 0; }
int64_t eca_backward_workspace_bytes(const EcaParams&) { return 0; }
int64_t dw_sppf_workspace_bytes(const DwSppfParams&) { return 0; }
int64_t dw_sppf_backward_workspace_bytes(const DwSppfParams&) { return 0; }
int64_t sppf_pool_workspace_bytes(const SppfPoolParams&) { return 0; }
int64_t sppf_pool_backward_workspace_bytes(const SppfPoolParams&) { return 0; }
Status batched_nms(const BatchedNmsParams&, Stream) { return cuda_absent(); }
Status multiclass_nms(const MulticlassNmsParams&, Stream) { return cuda_absent(); }
Status decode_nms(const DecodeNmsParams&, Stream) { return cuda_absent(); }
Status dfl_decode(const DflDecodeParams&, Stream) { return cuda_absent(); }
Status dfl_decode_backward(const DflDecodeParams&, Stream) { return cuda_absent(); }
Status eca(const EcaParams&, Stream) { return cuda_absent(); }
Status eca_backward(const EcaParams&, Stream) { return cuda_absent(); }
Status dw_sppf(const DwSppfParams&, Stream) { return cuda_absent(); }
Status dw_sppf_backward(const DwSppfParams&, Stream) { return cuda_absent(); }
Status sppf_pool(const SppfPoolParams&, Stream) { return cuda_absent(); }
Status sppf_pool_backward(const SppfPoolParams&, Stream) { return cuda_absent(); }

#endif

namespace {

std::string build_version() { return FASTYOLO_VERSION; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CompositeExplicitAutograd, m) {
  m.impl("_build_version", TORCH_BOX(&build_version));
}

}  // namespace fastyolo
