// SPDX-License-Identifier: Apache-2.0
// IPluginV3 of TensorRT 10 and later over Plugin<Op>.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <string>

#include "plugin.h"

namespace fastyolo {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::TensorRTPhase;

constexpr int32_t kFailure = -1;  // any value but 0

template <class Op>
class PluginV3 final : public IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit PluginV3(const Plugin<Op>& plugin)
      : plugin_(plugin), fields_(serialise_fields(plugin_.op())), timing_id_(FASTYOLO_VERSION + text_of(fields_)) {}
  PluginV3(const PluginV3&) = delete;  // fields_ points into plugin_

  // --- IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override {
    return guarded(Op::kName, [&]() -> IPluginV3* { return new PluginV3(plugin_); });
  }

  // --- core
  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }

  // --- build
  int32_t getNbOutputs() const noexcept override { return Op::kOutputs; }

  int32_t getOutputDataTypes(DataType* output_types, int32_t outputs, const DataType* input_types,
                             int32_t) const noexcept override {
    const Status status = plugin_.check_type(input_types[0]);
    for (int32_t i = 0; i < outputs; ++i) output_types[i] = plugin_.output_type(i, input_types);
    return succeeds(Op::kName, status) ? 0 : kFailure;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t, DimsExprs* outputs,
                          int32_t output_count, IExprBuilder& expressions) noexcept override {
    const Status status = plugin_.check_inputs(input_count, [&](int32_t i) { return inputs[i]; });
    if (!succeeds(Op::kName, status)) return kFailure;
    for (int32_t i = 0; i < output_count; ++i) outputs[i] = plugin_.op().output_dims(i, inputs, expressions);
    return 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* descs, int32_t inputs,
                                 int32_t) noexcept override {
    return plugin_.supports(position, inputs, [&](int32_t i) -> const PluginTensorDesc& { return descs[i].desc; });
  }

  // Sizes of -1 are checked by onShapeChange() when they are known.
  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t count, const DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    const Status status = plugin_.check_inputs(count, [&](int32_t i) { return inputs[i].desc.dims; });
    if (!succeeds(Op::kName, status)) return kFailure;
    std::array<PluginTensorDesc, kMaxInputs> descs;
    std::transform(inputs, inputs + count, descs.begin(), [](const auto& input) { return input.desc; });
    plugin_.set_inputs(count);
    const auto is_known = [](const PluginTensorDesc& desc) {
      return std::all_of(desc.dims.d, desc.dims.d + desc.dims.nbDims, [](auto size) { return size >= 0; });
    };
    if (!std::all_of(descs.begin(), descs.begin() + count, is_known)) return 0;
    return onShapeChange(descs.data(), count, nullptr, 0);
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t count, const DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    if (count > kMaxInputs) return 0;  // configurePlugin() has refused them
    std::array<PluginTensorDesc, kMaxInputs> largest;
    std::transform(inputs, inputs + count, largest.begin(), [](const auto& input) {
      PluginTensorDesc desc = input.desc;
      desc.dims = input.max;
      return desc;
    });
    return static_cast<size_t>(plugin_.workspace_bytes(largest.data(), count));
  }

  // What a measured time holds for, besides the tensors, which TensorRT adds: other kernels or fields, other times.
  const char* getTimingCacheID() noexcept override { return timing_id_.c_str(); }

  // --- runtime
  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t count, const PluginTensorDesc*,
                        int32_t) noexcept override {
    return succeeds(Op::kName, plugin_.check_shapes(inputs, count)) ? 0 : kFailure;
  }

  int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    const Status status = plugin_.enqueue(input_descs, output_descs, inputs, outputs, workspace, stream);
    return succeeds(Op::kName, status) ? 0 : kFailure;
  }

  IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    collection_ = collection_of(fields_);
    return &collection_;
  }

 private:
  Plugin<Op> plugin_;
  std::vector<PluginField> fields_;
  std::string timing_id_;
  PluginFieldCollection collection_{};
};

template <class Op>
class CreatorV3 final : public nvinfer1::IPluginCreatorV3One {
 public:
  IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
    return guarded(Op::kName, [&]() -> IPluginV3* {
      Op op;
      if (!succeeds(Op::kName, read_fields(fields, op))) return nullptr;
      return new PluginV3<Op>(Plugin<Op>(std::move(op), 0));
    });
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }

 private:
  const Op defaults_{};
  const std::vector<PluginField> fields_ = describe_fields(defaults_);
  const PluginFieldCollection collection_ = collection_of(fields_);
};

}  // namespace fastyolo
