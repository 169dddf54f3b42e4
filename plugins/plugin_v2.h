// SPDX-License-Identifier: Apache-2.0
// IPluginV2DynamicExt of TensorRT 8.5 and 8.6 over Plugin<Op>.
#pragma once

#include <new>
#include <string>

#include "plugin.h"

namespace fastyolo {

using nvinfer1::DynamicPluginTensorDesc;

// The bytes of an engine: the number of inputs, and each field as its length and its elements.
class Writer {
 public:
  explicit Writer(void* buffer) : at_(static_cast<char*>(buffer)) {}  // null: counts only

  void operator()(const void* data, size_t bytes) {
    if (at_) std::memcpy(at_ + bytes_, data, bytes);
    bytes_ += bytes;
  }
  size_t bytes() const { return bytes_; }

 private:
  char* at_;
  size_t bytes_ = 0;
};

inline size_t element_bytes(PluginFieldType type) { return type == PluginFieldType::kCHAR ? 1 : 4; }

template <class Op>
size_t write_plugin(const Plugin<Op>& plugin, void* buffer) {
  Writer write(buffer);
  const int32_t inputs = plugin.inputs();
  write(&inputs, sizeof(inputs));
  Op::visit(plugin.op(), [&](const char* name, const auto& value) {
    const PluginField field = describe_field(name, value);
    write(&field.length, sizeof(field.length));
    write(field.data, static_cast<size_t>(field.length) * element_bytes(field.type));
  });
  return write.bytes();
}

template <class Op>
Status read_plugin(const void* data, size_t bytes, Op& op, int32_t& inputs) {
  const char* at = static_cast<const char*>(data);
  const auto read_int = [&](int32_t& value) {
    if (bytes < sizeof(value)) return false;
    std::memcpy(&value, at, sizeof(value));
    at += sizeof(value);
    bytes -= sizeof(value);
    return true;
  };
  const Status damaged = Status::error("the engine's data are damaged, or of another version of the plugins");
  if (!read_int(inputs)) return damaged;
  Status status;
  Op::visit(op, [&](const char* name, auto& value) {
    if (!status.ok()) return;
    PluginField field = describe_field(name, value);
    if (!read_int(field.length) || field.length < 0 ||
        bytes / element_bytes(field.type) < static_cast<size_t>(field.length)) {
      status = damaged;
      return;
    }
    field.data = at;
    status = read_field(field, value);
    at += static_cast<size_t>(field.length) * element_bytes(field.type);
    bytes -= static_cast<size_t>(field.length) * element_bytes(field.type);
  });
  if (!status.ok()) return status;
  if (bytes != 0) return damaged;
  status = op.check();
  const bool is_known = inputs != 0;
  return status.ok() && is_known && !op.accepts(inputs) ? damaged : status;
}

template <class Op>
class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
 public:
  PluginV2(const Plugin<Op>& plugin, std::string name_space) : plugin_(plugin), namespace_(std::move(name_space)) {}

  // --- IPluginV2
  const char* getPluginType() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  int32_t getNbOutputs() const noexcept override { return Op::kOutputs; }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  size_t getSerializationSize() const noexcept override { return write_plugin(plugin_, nullptr); }
  void serialize(void* buffer) const noexcept override { write_plugin(plugin_, buffer); }
  void destroy() noexcept override { delete this; }
  void setPluginNamespace(const char* name_space) noexcept override {
    guarded(Op::kName, [&] {
      namespace_ = name_space;
      return nullptr;
    });
  }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  // --- IPluginV2Ext
  DataType getOutputDataType(int32_t index, const DataType* input_types, int32_t) const noexcept override {
    return plugin_.output_type(index, input_types);
  }

  // --- IPluginV2DynamicExt
  IPluginV2DynamicExt* clone() const noexcept override {
    return guarded(Op::kName, [&]() -> IPluginV2DynamicExt* { return new PluginV2(plugin_, namespace_); });
  }

  nvinfer1::DimsExprs getOutputDimensions(int32_t index, const DimsExprs* inputs, int32_t count,
                                          IExprBuilder& expressions) noexcept override {
    const Status status = plugin_.check_inputs(count, [&](int32_t i) { return inputs[i]; });
    if (!succeeds(Op::kName, status)) {
      DimsExprs invalid{};
      invalid.nbDims = -1;
      return invalid;
    }
    return plugin_.op().output_dims(index, inputs, expressions);
  }

  bool supportsFormatCombination(int32_t position, const PluginTensorDesc* descs, int32_t inputs,
                                 int32_t) noexcept override {
    return plugin_.supports(position, inputs, [&](int32_t i) -> const PluginTensorDesc& { return descs[i]; });
  }

  // Shapes are checked at the call, where an error has a way out.
  void configurePlugin(const DynamicPluginTensorDesc*, int32_t count, const DynamicPluginTensorDesc*,
                       int32_t) noexcept override {
    plugin_.set_inputs(count);
  }

  size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t count, const PluginTensorDesc*,
                          int32_t) const noexcept override {
    return static_cast<size_t>(plugin_.workspace_bytes(inputs, count));
  }

  int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    const Status status = plugin_.enqueue(input_descs, output_descs, inputs, outputs, workspace, stream);
    return succeeds(Op::kName, status) ? 0 : -1;
  }

 private:
  Plugin<Op> plugin_;
  std::string namespace_;
};

template <class Op>
class CreatorV2 final : public nvinfer1::IPluginCreator {
 public:
  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV2* createPlugin(const char*, const PluginFieldCollection* fields) noexcept override {
    return guarded(Op::kName, [&]() -> nvinfer1::IPluginV2* {
      Op op;
      if (!succeeds(Op::kName, read_fields(fields, op))) return nullptr;
      return new PluginV2<Op>(Plugin<Op>(std::move(op), 0), namespace_);
    });
  }

  nvinfer1::IPluginV2* deserializePlugin(const char*, const void* data, size_t bytes) noexcept override {
    return guarded(Op::kName, [&]() -> nvinfer1::IPluginV2* {
      Op op;
      int32_t inputs = 0;
      if (!succeeds(Op::kName, read_plugin(data, bytes, op, inputs))) return nullptr;
      return new PluginV2<Op>(Plugin<Op>(std::move(op), inputs), namespace_);
    });
  }

  void setPluginNamespace(const char* name_space) noexcept override {
    guarded(Op::kName, [&] {
      namespace_ = name_space;
      return nullptr;
    });
  }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

 private:
  const Op defaults_{};
  const std::vector<PluginField> fields_ = describe_fields(defaults_);
  const PluginFieldCollection collection_ = collection_of(fields_);
  std::string namespace_;
};

}  // namespace fastyolo
