// SPDX-License-Identifier: Apache-2.0
#include "kernels/dfl_decode.h"

#include "torch/tensor.h"

namespace fastyolo {
namespace {

// Grid coordinates keep float32 beside half-precision logits: bfloat16 cannot tell 128.5 from 128.
void check_grid(const Tensor& grid, Name name, const Tensor& logits, DType dtype) {
  check_device(grid, name, logits, "logits");
  const DType expected = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  if (dtype_of(grid, name) != expected) {
    throw std::runtime_error(name.text() + " must be " + name_of(expected) + " with " + name_of(dtype) +
                             " logits, got " + name_of(dtype_of(grid, name)));
  }
}

// What forward and backward share.
DflDecodeParams make_params(const Tensor& logits, const Tensor& strides) {
  if (logits.dim() != 3) refuse_shape(logits, "logits", "[B, 4R, A]");
  check_span(logits, "logits");
  DflDecodeParams params;
  params.dtype = dtype_of(logits, "logits");
  params.batch = logits.size(0);
  params.bins = bins_of(logits, "logits");
  params.anchors = logits.size(2);
  params.logits = logits.const_data_ptr();
  params.logits_stride_b = logits.stride(0);
  params.logits_stride_c = logits.stride(1);
  params.logits_stride_a = logits.stride(2);
  check_shape(strides, "strides", {params.anchors});
  check_grid(strides, "strides", logits, params.dtype);
  throw_if_error(check_dfl_decode(params));
  return params;
}

Tensor dfl_decode_op(const Tensor& logits, const Tensor& anchor_points, const Tensor& strides) {
  DflDecodeParams params = make_params(logits, strides);
  check_shape(anchor_points, "anchor_points", {2, params.anchors});
  check_grid(anchor_points, "anchor_points", logits, params.dtype);
  const Tensor dense_points = as_contiguous(anchor_points);
  const Tensor dense_strides = as_contiguous(strides);
  params.anchor_points = dense_points.const_data_ptr();
  params.strides = dense_strides.const_data_ptr();

  const Tensor boxes = empty<3>(logits, {params.batch, 4, params.anchors}, dtype_code(logits));
  params.boxes = boxes.mutable_data_ptr();
  run(logits, params, dfl_decode_cpu, dfl_decode);
  return boxes;
}

Tensor dfl_decode_backward_op(const Tensor& grad_boxes, const Tensor& logits, const Tensor& strides) {
  DflDecodeParams params = make_params(logits, strides);
  check_shape(grad_boxes, "grad_boxes", {params.batch, 4, params.anchors});
  check_device(grad_boxes, "grad_boxes", logits, "logits");
  check_dtype(grad_boxes, "grad_boxes", logits, "logits");
  const Tensor dense_grad = as_contiguous(grad_boxes);
  const Tensor dense_strides = as_contiguous(strides);
  params.grad_boxes = dense_grad.const_data_ptr();
  params.strides = dense_strides.const_data_ptr();

  const Tensor grad_logits = torch::stable::empty_like(logits);
  params.grad_logits = grad_logits.mutable_data_ptr();
  params.grad_logits_stride_b = grad_logits.stride(0);
  params.grad_logits_stride_c = grad_logits.stride(1);
  params.grad_logits_stride_a = grad_logits.stride(2);
  run(logits, params, dfl_decode_backward_cpu, dfl_decode_backward);
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CPU, m) {
  m.impl("dfl_decode", TORCH_BOX(&dfl_decode_op));
  m.impl("dfl_decode_backward", TORCH_BOX(&dfl_decode_backward_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastyolo, CUDA, m) {
  m.impl("dfl_decode", TORCH_BOX(&dfl_decode_op));
  m.impl("dfl_decode_backward", TORCH_BOX(&dfl_decode_backward_op));
}

}  // namespace fastyolo
