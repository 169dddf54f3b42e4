// SPDX-License-Identifier: Apache-2.0
// What every plugin repeats, once: formats, types, shapes, workspace, errors, and the call of the kernel's entry.
// plugin_v3.h and plugin_v2.h put TensorRT's interfaces on it. A plugin is a struct `Op` (see eca_plugin.cpp, the
// smallest):
//
//   kName, kInputs       as a network names it, and its inputs as messages name them
//   kOutputs             their number
//   visit(), check()     its fields (fields.h)
//   accepts(count)       whether it takes so many inputs
//   input(i), output(i)  what each tensor is
//   output_dims()        the shape of an output as expressions
//   check_shapes()       whether the inputs fit together; their ranks do
//   params(), connect()  fills the kernel's params from the inputs; puts the outputs in
//   kCheck, kEntry, kWorkspaceBytes   the kernel's own functions
//
// Nothing here throws but the constructors of fields, which guarded() turns into a report and a null pointer.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <type_traits>

#include "fields.h"
#include "report.h"
#include "tensor.h"

namespace fastyolo {

using nvinfer1::DimsExprs;
using nvinfer1::IExprBuilder;

constexpr char kPluginVersion[] = "1";
constexpr int32_t kMaxInputs = 17;  // FastYoloDecodeNMS with 8 levels and thresholds

enum class Role {
  kMap,      // [B, C, H, W] of float32, or of float16 in kLINEAR or kHWC8; all of a plugin alike
  kDense,    // float32 or float16; all of a plugin alike
  kWeights,  // float32, or of the type of the first input; all of a plugin alike
  kFloat32,
  kInt32,
};

struct TensorSpec {
  const char* name;
  int32_t rank;
  Role role;
};

// x with `factor` times its channels.
inline DimsExprs concatenated_dims(const DimsExprs& x, int32_t factor, IExprBuilder& expressions) {
  DimsExprs dims = x;
  dims.d[1] = expressions.operation(nvinfer1::DimensionOperation::kPROD, *x.d[1], *expressions.constant(factor));
  return dims;
}

// f(), or null and a report if it throws.
template <class F>
auto guarded(const char* plugin, F&& f) noexcept -> decltype(f()) {
  try {
    return f();
  } catch (const std::exception& error) {
    report(plugin, error.what());
  } catch (...) {
    report(plugin, "an exception of unknown type");
  }
  return nullptr;
}

template <class Op>
class Plugin {
 public:
  Plugin(Op op, int32_t inputs) : op_(std::move(op)), inputs_(inputs) {}

  // The formats of the position's tensor, given those before it.
  template <class DescAt>
  bool supports(int32_t position, int32_t inputs, DescAt desc_at) const {
    if (!op_.accepts(inputs)) return false;
    const bool is_output = position >= inputs;
    const PluginTensorDesc& tensor = desc_at(position);
    const PluginTensorDesc& first = desc_at(0);
    const bool is_linear = tensor.format == TensorFormat::kLINEAR;
    const bool is_float = tensor.type == DataType::kFLOAT;
    const bool is_half = tensor.type == DataType::kHALF;
    switch (is_output ? op_.output(position - inputs).role : op_.input(position).role) {
      case Role::kMap: {
        // An output without padded channels: nobody would write them.
        const bool is_hwc8 = tensor.format == TensorFormat::kHWC8 && is_half && tensor.dims.nbDims == 4 &&
                             (!is_output || tensor.dims.d[1] % kFormatChannels == 0);
        const bool is_alike = position == 0 || (tensor.type == first.type && tensor.format == first.format);
        return is_alike && ((is_linear && (is_float || is_half)) || is_hwc8);
      }
      case Role::kDense: return is_linear && (is_float || is_half) && (position == 0 || tensor.type == first.type);
      case Role::kWeights: {
        const bool follows_weights = op_.input(position - 1).role == Role::kWeights;
        return is_linear && (follows_weights ? tensor.type == desc_at(position - 1).type
                                             : is_float || (is_half && tensor.type == first.type));
      }
      case Role::kFloat32: return is_linear && is_float;
      case Role::kInt32: return is_linear && tensor.type == DataType::kINT32;
    }
    return false;
  }

  // Of the first input, which types of outputs follow.
  static Status check_type(DataType type) {
    if (type == DataType::kFLOAT || type == DataType::kHALF) return Status{};
    return Status::error("the first input must be float32 or float16, got TensorRT's DataType %d; cast it before",
                         static_cast<int>(type));
  }

  DataType output_type(int32_t index, const DataType* input_types) const {
    switch (op_.output(index).role) {
      case Role::kFloat32: return DataType::kFLOAT;
      case Role::kInt32: return DataType::kINT32;
      default: return input_types[0];
    }
  }

  // The number of inputs and their ranks, before anything reads their sizes.
  template <class DimsAt>
  Status check_inputs(int32_t count, DimsAt dims_at) const {
    if (count > kMaxInputs || !op_.accepts(count)) {
      return Status::error("the inputs must be %s, got %d", Op::kInputs, static_cast<int>(count));
    }
    for (int32_t i = 0; i < count; ++i) {
      const TensorSpec spec = op_.input(i);
      const int32_t rank = dims_at(i).nbDims;
      if (rank != spec.rank) {
        return Status::error("input %d, %s, must have %d dimensions, got %d", static_cast<int>(i), spec.name,
                             static_cast<int>(spec.rank), static_cast<int>(rank));
      }
    }
    return Status{};
  }

  // Shapes that are known, with everything that the kernel itself would refuse.
  Status check_shapes(const PluginTensorDesc* inputs, int32_t count) {
    Status status = check_inputs(count, [&](int32_t i) { return inputs[i].dims; });
    if (!status.ok()) return status;
    inputs_ = count;
    const Tensors tensors(inputs, nullptr);
    status = op_.check_shapes(tensors, count);
    return status.ok() ? Op::kCheck(op_.params(tensors, count)) : status;
  }

  // For inputs of this size or smaller: the kernels' workspaces never shrink as sizes grow. With room for the
  // alignment, which TensorRT promises of tensors but not of this.
  int64_t workspace_bytes(const PluginTensorDesc* inputs, int32_t count) const {
    if constexpr (std::is_null_pointer_v<std::decay_t<decltype(Op::kWorkspaceBytes)>>) {
      return 0;
    } else {
      const int64_t bytes = Op::kWorkspaceBytes(op_.params(Tensors(inputs, nullptr), count));
      return bytes == 0 ? 0 : bytes + kWorkspaceAlignment - 1;
    }
  }

  Status enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs, const void* const* inputs,
                 void* const* outputs, [[maybe_unused]] void* workspace, Stream stream) const {
    if (inputs_ == 0) return Status::error("enqueue() must come after the shapes are known");
    const Tensors tensors(input_descs, const_cast<void* const*>(inputs));  // the params are const where they are read
    const Status status = op_.check_shapes(tensors, inputs_);
    if (!status.ok()) return status;
    auto params = op_.params(tensors, inputs_);
    op_.connect(params, Tensors(output_descs, outputs));
    if constexpr (!std::is_null_pointer_v<std::decay_t<decltype(Op::kWorkspaceBytes)>>) {
      // TensorRT does not tell its size. It is that for the largest shapes, which is enough for these.
      params.workspace = reinterpret_cast<void*>(align_up(reinterpret_cast<intptr_t>(workspace)));
      params.workspace_bytes = Op::kWorkspaceBytes(params);
    }
    return Op::kEntry(params, stream);
  }

  void set_inputs(int32_t count) { inputs_ = count; }

  const Op& op() const { return op_; }
  int32_t inputs() const { return inputs_; }

 private:
  Op op_;
  int32_t inputs_;  // 0: not known yet
};

}  // namespace fastyolo
