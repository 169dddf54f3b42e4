// SPDX-License-Identifier: Apache-2.0
// What every operator needs from torch: tensors that were checked, memory, the current stream and the thread pool.
// Only the stable ABI is used, so one library serves every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "kernels/common.h"

namespace fastyolo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- errors: one sentence becomes the RuntimeError. torch's check macros would put a function, a file and a line
// first.

inline void throw_if_error(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

// An argument as messages name it: "boxes", or "box_maps[2]" for an element of a list.
struct Name {
  const char* base;
  int64_t index = -1;

  Name(const char* base, int64_t index = -1) : base(base), index(index) {}  // implicit: "boxes" is a name

  std::string text() const { return index < 0 ? base : base + ("[" + std::to_string(index) + "]"); }
};

inline std::string shape_text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "[" : ", ") + std::to_string(size);
  return text.empty() ? "[]" : text + "]";
}

inline std::string device_text(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

inline std::string dtype_text(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    default: return torch::headeronly::toString(tensor.scalar_type());
  }
}

[[noreturn]] inline void refuse_shape(const Tensor& tensor, Name name, const std::string& expected) {
  throw std::runtime_error(name.text() + " must have shape " + expected + ", got " + shape_text(tensor.sizes()));
}

// ---- checks of what the kernels' parameters cannot express

inline void check_shape(const Tensor& tensor, Name name, std::initializer_list<int64_t> expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(i) == expected.begin()[i];
  if (!same) refuse_shape(tensor, name, shape_text(expected));
}

inline DType dtype_of(const Tensor& tensor, Name name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Double: return DType::kFloat64;
    default:
      throw std::runtime_error(name.text() + " must be float32, float16, bfloat16 or float64, got " +
                               dtype_text(tensor));
  }
}

inline void check_device(const Tensor& tensor, Name name, const Tensor& first, Name first_name) {
  if (tensor.is_cuda() != first.is_cuda() || tensor.get_device_index() != first.get_device_index()) {
    throw std::runtime_error(name.text() + " must be on " + device_text(first) + " like " + first_name.text() +
                             ", got " + device_text(tensor));
  }
}

inline void check_dtype(const Tensor& tensor, Name name, const Tensor& first, Name first_name) {
  if (tensor.scalar_type() != first.scalar_type()) {
    throw std::runtime_error(name.text() + " must be " + dtype_text(first) + " like " + first_name.text() + ", got " +
                             dtype_text(tensor));
  }
}

// The kernels' offsets from the first element have 32 bits.
inline void check_span(const Tensor& tensor, Name name) {
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) == 0) return;
    last += (tensor.size(i) - 1) * tensor.stride(i);
  }
  if (last >= kMaxElements) {
    throw std::runtime_error(name.text() + " spans more than 2^31 - 1 elements of memory, got shape " +
                             shape_text(tensor.sizes()) + "; split the batch or pass a copy");
  }
}

inline int64_t bins_of(const Tensor& tensor, Name name) {
  const int64_t channels = tensor.size(1);
  if (channels == 0 || channels % 4 != 0) {
    throw std::runtime_error(name.text() + " must have 4 x bins channels, got " + std::to_string(channels));
  }
  return channels / 4;
}

// ---- memory

// The running torch's number for the dtype; ScalarType has the numbers of the torch that we were built with.
inline int32_t dtype_code(const Tensor& tensor) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

// An uninitialised tensor on the device of `like`; dtype is one of the aoti_torch_dtype_*() numbers.
// torch::stable::empty() would box every argument for the dispatcher.
template <size_t Rank>
Tensor empty_strided(const Tensor& like, const std::array<int64_t, Rank>& sizes,
                     const std::array<int64_t, Rank>& strides, int32_t dtype) {
  const int32_t device = like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(Rank, sizes.data(), strides.data(), dtype, device, like.get_device_index(), &handle)) {
    int64_t bytes = aoti_torch_dtype_element_size(dtype);
    for (const int64_t size : sizes) bytes *= size;
    throw std::runtime_error("could not allocate " + std::to_string(bytes) + " bytes on " + device_text(like) +
                             ": out of memory, or an earlier CUDA error");
  }
  return Tensor(handle);
}

// The same, contiguous.
template <size_t Rank>
Tensor empty(const Tensor& like, const std::array<int64_t, Rank>& sizes, int32_t dtype) {
  std::array<int64_t, Rank> strides;
  int64_t stride = 1;
  for (size_t i = Rank; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return empty_strided(like, sizes, strides, dtype);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Scratch memory for one call, if any, aligned as the kernels want it. CUDA's is so by itself, and without bytes to
// spare compute-sanitizer sees what goes beyond it; torch's CPU allocator gives 64 bytes.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes) {
    if (bytes == 0) return;
    const int64_t slack = like.is_cuda() ? 0 : kWorkspaceAlignment;
    memory_ = empty<1>(like, {bytes + slack}, aoti_torch_dtype_uint8());
  }

  void* data() const {
    if (!memory_) return nullptr;
    return reinterpret_cast<void*>(align_up(reinterpret_cast<intptr_t>(memory_->mutable_data_ptr())));
  }

 private:
  std::optional<Tensor> memory_;
};

// ---- the call: a kernel's entry for the device of `tensor`

Stream current_stream(const Tensor& tensor);  // library.cpp

inline ParallelFor torch_threads() {
  const auto run = [](void*, int64_t count, int64_t grain, ParallelFor::Body body, void* arg) {
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(arg, begin, end); });
  };
  return ParallelFor(run, nullptr, static_cast<int>(torch::stable::get_num_threads()));
}

template <class Params>
using CpuEntry = Status (*)(const Params&, const ParallelFor&);
template <class Params>
using CudaEntry = Status (*)(const Params&, Stream);

template <class Params>
void run(const Tensor& tensor, const Params& params, CpuEntry<Params> cpu, CudaEntry<Params> cuda) {
  if (tensor.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
    throw_if_error(cuda(params, current_stream(tensor)));
  } else {
    throw_if_error(cpu(params, torch_threads()));
  }
}

// For entries that ask for workspace.
template <class Params>
void run(const Tensor& tensor, Params& params, int64_t (*cpu_bytes)(const Params&, int), CpuEntry<Params> cpu,
         int64_t (*cuda_bytes)(const Params&), CudaEntry<Params> cuda) {
  if (tensor.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
    params.workspace_bytes = cuda_bytes(params);
    const Workspace workspace(tensor, params.workspace_bytes);
    params.workspace = workspace.data();
    throw_if_error(cuda(params, current_stream(tensor)));
  } else {
    const ParallelFor threads = torch_threads();
    params.workspace_bytes = cpu_bytes(params, threads.num_threads());
    const Workspace workspace(tensor, params.workspace_bytes);
    params.workspace = workspace.data();
    throw_if_error(cpu(params, threads));
  }
}

}  // namespace fastyolo
