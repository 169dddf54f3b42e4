// SPDX-License-Identifier: Apache-2.0
// Runs every plugin on the GPU without an engine: what TensorRT's builder and runtime would call, from createPlugin()
// to enqueue(), in each type and format that the plugin offers, against the CPU kernels of fastyolo::kernels.
//
//   enqueue_test libfastyolo_plugins.so           # exit status 1 if anything differs
//   compute-sanitizer enqueue_test libfastyolo_plugins.so
//
// Without an argument it takes the plugins that are linked into the program itself.
#include <NvInferRuntime.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/batched_nms.h"
#include "kernels/decode_nms.h"
#include "kernels/dfl_decode.h"
#include "kernels/dw_sppf.h"
#include "kernels/eca.h"
#include "kernels/sppf_pool.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error(message);
}

void check(cudaError_t error) { require(error == cudaSuccess, cudaGetErrorString(error)); }

void check(const fastyolo::Status& status) { require(status.ok(), status.message); }

// --- tensors

// What a test computes with: every value as a float, in the order of the axes.
struct Array {
  std::vector<int64_t> shape;
  std::vector<float> values;

  explicit Array(std::vector<int64_t> sizes, float value = 0) : shape(std::move(sizes)) {
    values.assign(static_cast<size_t>(elements()), value);
  }
  int64_t elements() const {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
  }
};

Array random_array(std::mt19937& random, std::vector<int64_t> shape, float mean = 0, float deviation = 1) {
  Array array(std::move(shape));
  std::normal_distribution<float> normal(mean, deviation);
  for (float& value : array.values) value = normal(random);
  return array;
}

PluginTensorDesc describe(const std::vector<int64_t>& shape, DataType type, TensorFormat format) {
  PluginTensorDesc desc{};
  desc.dims.nbDims = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), desc.dims.d);
  desc.type = type;
  desc.format = format;
  desc.scale = 1;
  return desc;
}

// A tensor in device memory. Until it is written every byte is 0xff: NaN, or -1.
class DeviceTensor {
 public:
  explicit DeviceTensor(const PluginTensorDesc& desc) : desc(desc) {
    bytes_ = (desc.type == DataType::kHALF ? 2 : 4) * static_cast<size_t>(std::max<int64_t>(1, positions()));
    check(cudaMalloc(&data_, bytes_));
    check(cudaMemsetAsync(data_, 0xff, bytes_, nullptr));
    check(cudaStreamSynchronize(nullptr));
  }
  ~DeviceTensor() { (void)cudaFree(data_); }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  void* data() const { return data_; }

  void upload(const Array& array) {
    std::vector<char> bytes(bytes_, static_cast<char>(0xff));  // what pads the channels is NaN: nobody may read it
    for (int64_t i = 0; i < array.elements(); ++i) {
      char* at = bytes.data() + byte_of(i);
      if (desc.type == DataType::kHALF) {
        const __half value = __float2half(array.values[i]);
        std::memcpy(at, &value, sizeof(value));
      } else {
        std::memcpy(at, &array.values[i], sizeof(float));
      }
    }
    copy(data_, bytes.data(), cudaMemcpyHostToDevice);
  }

  Array download() const {
    std::vector<char> bytes(bytes_);
    copy(bytes.data(), data_, cudaMemcpyDeviceToHost);
    Array array(std::vector<int64_t>(desc.dims.d, desc.dims.d + desc.dims.nbDims));
    for (int64_t i = 0; i < array.elements(); ++i) {
      const char* at = bytes.data() + byte_of(i);
      if (desc.type == DataType::kHALF) {
        __half value;
        std::memcpy(&value, at, sizeof(value));
        array.values[i] = __half2float(value);
      } else if (desc.type == DataType::kINT32) {
        int32_t value;
        std::memcpy(&value, at, sizeof(value));
        array.values[i] = static_cast<float>(value);
      } else {
        std::memcpy(&array.values[i], at, sizeof(float));
      }
    }
    return array;
  }

  const PluginTensorDesc desc;

 private:
  int64_t channels_in_memory() const { return (desc.dims.d[1] + 7) / 8 * 8; }

  int64_t positions() const {
    int64_t product = 1;
    for (int i = 0; i < desc.dims.nbDims; ++i) {
      product *= i == 1 && desc.format == TensorFormat::kHWC8 ? channels_in_memory() : desc.dims.d[i];
    }
    return product;
  }

  // Of the element that is the i-th in the order of the axes.
  size_t byte_of(int64_t i) const {
    if (desc.format == TensorFormat::kHWC8) {
      const int64_t pixels = desc.dims.d[2] * desc.dims.d[3];
      const int64_t image = i / (desc.dims.d[1] * pixels), channel = i / pixels % desc.dims.d[1], pixel = i % pixels;
      i = (image * pixels + pixel) * channels_in_memory() + channel;
    }
    return static_cast<size_t>(i) * (desc.type == DataType::kHALF ? 2 : 4);
  }

  void copy(void* to, const void* from, cudaMemcpyKind kind) const {
    check(cudaMemcpyAsync(to, from, bytes_, kind, nullptr));
    check(cudaStreamSynchronize(nullptr));
  }

  void* data_ = nullptr;
  size_t bytes_;
};

// --- TensorRT's side

// Numbers in the place of expressions, as the builder has for static shapes.
class Expressions : public nvinfer1::IExprBuilder {
 public:
  Expressions() { mImpl = &impl_; }
  const nvinfer1::IDimensionExpr* number(int64_t value) { return impl_.constant(value); }

 private:
  class Number : public nvinfer1::IDimensionExpr {
   public:
    explicit Number(int64_t value) : impl_(value) { mImpl = &impl_; }

   private:
    struct Impl : nvinfer1::apiv::VDimensionExpr {
      explicit Impl(int64_t value) : value(value) {}
      bool isConstant() const override { return true; }
      int64_t getConstantValue() const override { return value; }
      bool isSizeTensor() const override { return false; }
      int64_t value;
    } impl_;
  };

  struct Impl : nvinfer1::apiv::VExprBuilder {
    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return &numbers.emplace_back(value); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override {
      require(operation == nvinfer1::DimensionOperation::kPROD, "the plugins' shapes are products only");
      return constant(first.getConstantValue() * second.getConstantValue());
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      throw std::runtime_error("no plugin has outputs of unknown size");
    }
    std::list<Number> numbers;
  } impl_;
};

using Plugin = std::unique_ptr<IPluginV3>;

template <class Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type) {
  auto* found = static_cast<Capability*>(plugin.getCapabilityInterface(type));
  require(found != nullptr, "a capability is missing");
  return *found;
}

nvinfer1::IPluginV3OneBuild& build_of(IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
nvinfer1::IPluginV3OneRuntime& runtime_of(IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

class Library {
 public:
  explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error(dlerror());
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(handle_, "getCreators"));
    require(get_creators != nullptr, "there is no getCreators(): give the path of libfastyolo_plugins.so");
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* creators = get_creators(count);
    for (int32_t i = 0; i < count; ++i) creators_.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]));
    require(creators_.size() == 6, "expected 6 creators, got " + std::to_string(creators_.size()));
  }

  // As the builder makes it, serialised, made again as the runtime does, and attached to a context.
  Plugin create(const std::string& name, const std::vector<PluginField>& fields) const {
    const auto named = [&](auto* creator) { return creator->getPluginName() == name; };
    const auto creator = std::find_if(creators_.begin(), creators_.end(), named);
    require(creator != creators_.end(), "there is no plugin " + name);
    const nvinfer1::PluginFieldCollection given{static_cast<int32_t>(fields.size()), fields.data()};
    const Plugin built((*creator)->createPlugin("layer", &given, TensorRTPhase::kBUILD));
    require(built != nullptr, "createPlugin() refuses the fields");
    const Plugin cloned(built->clone());
    const Plugin loaded(
        (*creator)->createPlugin("layer", runtime_of(*cloned).getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    require(loaded != nullptr, "createPlugin() refuses the serialised fields");
    return Plugin(runtime_of(*loaded).attachToContext(nullptr));
  }

 private:
  void* handle_;  // stays open: it holds the plugins' code
  std::vector<nvinfer1::IPluginCreatorV3One*> creators_;
};

// --- cases

// What a tensor is of: the type and format under test, that type, or float32.
enum class Kind { kMap, kDense, kFloat32 };

struct Input {
  Array array;
  Kind kind;
};

struct Case {
  std::string name;
  std::string plugin;
  std::vector<PluginField> fields;
  std::vector<Input> inputs;
  std::function<std::vector<Array>(const std::vector<Input>&)> reference;  // in float32, by the CPU kernels
  bool detects = false;  // five outputs that do not have the type under test
};

struct Variant {
  const char* name;
  DataType type;
  TensorFormat format;
  float tolerance;
};
constexpr Variant kVariants[] = {{"float32 linear", DataType::kFLOAT, TensorFormat::kLINEAR, 1e-5f},
                                 {"float16 linear", DataType::kHALF, TensorFormat::kLINEAR, 2e-3f},
                                 {"float16 channels last", DataType::kHALF, TensorFormat::kHWC8, 2e-3f}};

std::vector<PluginTensorDesc> describe_inputs(const Case& test, const Variant& variant) {
  std::vector<PluginTensorDesc> descs;
  for (const Input& input : test.inputs) {
    const bool is_map = input.kind == Kind::kMap;
    descs.push_back(describe(input.array.shape, input.kind == Kind::kFloat32 ? DataType::kFLOAT : variant.type,
                             is_map ? variant.format : TensorFormat::kLINEAR));
  }
  return descs;
}

std::vector<PluginTensorDesc> describe_outputs(IPluginV3& plugin, const std::vector<PluginTensorDesc>& inputs,
                                               const Variant& variant, bool is_map) {
  nvinfer1::IPluginV3OneBuild& build = build_of(plugin);
  const int32_t outputs = build.getNbOutputs();
  Expressions expressions;
  std::vector<DimsExprs> input_dims, output_dims(outputs);
  std::vector<DataType> input_types, output_types(outputs);
  for (const PluginTensorDesc& desc : inputs) {
    DimsExprs dims{};
    dims.nbDims = desc.dims.nbDims;
    for (int i = 0; i < dims.nbDims; ++i) dims.d[i] = expressions.number(desc.dims.d[i]);
    input_dims.push_back(dims);
    input_types.push_back(desc.type);
  }
  const int32_t count = static_cast<int32_t>(inputs.size());
  require(build.getOutputDataTypes(output_types.data(), outputs, input_types.data(), count) == 0, "no output types");
  require(build.getOutputShapes(input_dims.data(), count, nullptr, 0, output_dims.data(), outputs, expressions) == 0,
          "no output shapes");
  std::vector<PluginTensorDesc> descs;
  for (int32_t i = 0; i < outputs; ++i) {
    std::vector<int64_t> shape;
    for (int axis = 0; axis < output_dims[i].nbDims; ++axis) {
      shape.push_back(output_dims[i].d[axis]->getConstantValue());
    }
    descs.push_back(describe(shape, output_types[i], is_map ? variant.format : TensorFormat::kLINEAR));
  }
  return descs;
}

std::vector<nvinfer1::DynamicPluginTensorDesc> as_dynamic(const std::vector<PluginTensorDesc>& descs) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic;
  for (const PluginTensorDesc& desc : descs) dynamic.push_back({desc, desc.dims, desc.dims, desc.dims});
  return dynamic;
}

// The tolerance is relative to the largest value: a box's side is a difference, of a cell and a distance in pixels.
void compare(const Array& got, const Array& expected, float tolerance, const std::string& what) {
  require(got.shape == expected.shape, what + " has another shape");
  float largest = 1;
  for (const float value : expected.values) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < got.values.size(); ++i) {
    require(std::abs(got.values[i] - expected.values[i]) <= tolerance * largest,  // false for NaN
            what + "[" + std::to_string(i) + "] is " + std::to_string(got.values[i]) + ", expected " +
                std::to_string(expected.values[i]));
  }
}

// False if the plugin rightly does not offer the variant.
bool run(const Library& library, const Case& test, const Variant& variant) {
  const Plugin plugin = library.create(test.plugin, test.fields);
  const std::vector<PluginTensorDesc> inputs = describe_inputs(test, variant);
  const bool is_map = !test.detects && test.inputs[0].kind == Kind::kMap;
  const std::vector<PluginTensorDesc> outputs = describe_outputs(*plugin, inputs, variant, is_map);
  const auto dynamic_inputs = as_dynamic(inputs), dynamic_outputs = as_dynamic(outputs);
  const int32_t input_count = static_cast<int32_t>(inputs.size()), output_count = static_cast<int32_t>(outputs.size());

  nvinfer1::IPluginV3OneBuild& build = build_of(*plugin);
  std::vector<PluginTensorDesc> all = inputs;
  all.insert(all.end(), outputs.begin(), outputs.end());
  const auto dynamic_all = as_dynamic(all);
  // Channels last is offered unless an output would have padded channels.
  const bool is_wanted = variant.format == TensorFormat::kLINEAR || test.detects || outputs[0].dims.d[1] % 8 == 0;
  bool is_offered = true;
  for (int32_t i = 0; i < input_count + output_count; ++i) {
    is_offered = is_offered && build.supportsFormatCombination(i, dynamic_all.data(), input_count, output_count);
  }
  require(is_offered == is_wanted, is_wanted ? "the format is not offered" : "a format with padded outputs is offered");
  if (!is_offered) return false;
  require(build.configurePlugin(dynamic_inputs.data(), input_count, dynamic_outputs.data(), output_count) == 0,
          "configurePlugin() fails");
  const size_t workspace_bytes =
      build.getWorkspaceSize(dynamic_inputs.data(), input_count, dynamic_outputs.data(), output_count);

  // What the plugin gets is rounded to its type; so is what the reference gets.
  std::vector<Input> rounded = test.inputs;
  std::vector<std::unique_ptr<DeviceTensor>> input_tensors, output_tensors;
  std::vector<const void*> input_data;
  std::vector<void*> output_data;
  for (size_t i = 0; i < inputs.size(); ++i) {
    input_tensors.push_back(std::make_unique<DeviceTensor>(inputs[i]));
    input_tensors[i]->upload(test.inputs[i].array);
    rounded[i].array = input_tensors[i]->download();
    input_data.push_back(input_tensors[i]->data());
  }
  for (const PluginTensorDesc& desc : outputs) {
    output_tensors.push_back(std::make_unique<DeviceTensor>(desc));
    output_data.push_back(output_tensors.back()->data());
  }
  const DeviceTensor workspace(
      describe({static_cast<int64_t>(workspace_bytes / 4)}, DataType::kINT32, TensorFormat::kLINEAR));

  nvinfer1::IPluginV3OneRuntime& runtime = runtime_of(*plugin);
  require(runtime.onShapeChange(inputs.data(), input_count, outputs.data(), output_count) == 0,
          "onShapeChange() fails");
  require(runtime.enqueue(inputs.data(), outputs.data(), input_data.data(), output_data.data(), workspace.data(),
                          nullptr) == 0,
          "enqueue() fails");
  check(cudaStreamSynchronize(nullptr));

  const std::vector<Array> expected = test.reference(rounded);
  require(expected.size() == outputs.size(), "another number of outputs");
  for (size_t i = 0; i < outputs.size(); ++i) {
    const bool is_integer = outputs[i].type == DataType::kINT32;
    const float tolerance = is_integer ? 0 : test.detects ? 1e-5f : variant.tolerance;
    compare(output_tensors[i]->download(), expected[i], tolerance, "output " + std::to_string(i));
  }
  return true;
}

// Shapes that do not fit must be refused before enqueue(), each with a message on stderr.
void run_refusals(const Library& library) {
  static const std::vector<float> strides = {8, 16};
  const std::vector<PluginField> levels = {{"strides", strides.data(), PluginFieldType::kFLOAT32, 2}};
  const struct {
    const char* plugin;
    std::vector<PluginField> fields;
    std::vector<std::vector<int64_t>> shapes;
  } kRefusals[] = {
      {"FastYoloDWSPPF", {}, {{1, 8, 5, 5}, {3, 4, 3, 3}}},
      {"FastYoloDWSPPF", {}, {{1, 8, 5, 5}, {3, 8, 7, 7}}},
      {"FastYoloDWSPPF", {}, {{1, 8, 5, 5}, {3, 8, 3, 3}, {3, 4}}},
      {"FastYoloECA", {}, {{1, 8, 5, 5}, {4}}},
      {"FastYoloECA", {}, {{1, 8, 5, 5}, {3}, {3}}},
      {"FastYoloECA", {}, {{1, 8, 5}, {3}}},
      {"FastYoloDFLDecode", {}, {{1, 6, 10}, {2, 10}, {10}}},
      {"FastYoloDFLDecode", {}, {{1, 64, 10}, {2, 9}, {10}}},
      {"FastYoloDecodeNMS", levels, {{1, 64, 4, 4}, {1, 64, 2, 2}, {1, 80, 4, 4}, {1, 80, 2, 3}}},
      {"FastYoloDecodeNMS", levels, {{1, 64, 4, 4}, {1, 60, 2, 2}, {1, 80, 4, 4}, {1, 80, 2, 2}}},
      {"FastYoloDecodeNMS", levels, {{1, 64, 4, 4}, {1, 64, 2, 2}, {1, 80, 4, 4}}},
      {"FastYoloBatchedNMS", {}, {{1, 10, 4}, {1, 80, 9}}},
      {"FastYoloBatchedNMS", {}, {{1, 10, 4}, {1, 80, 10}, {3}}},
  };
  for (const auto& [name, fields, shapes] : kRefusals) {
    const Plugin plugin = library.create(name, fields);
    std::vector<PluginTensorDesc> inputs;
    for (const auto& shape : shapes) inputs.push_back(describe(shape, DataType::kFLOAT, TensorFormat::kLINEAR));
    const int32_t count = static_cast<int32_t>(inputs.size());
    require(runtime_of(*plugin).onShapeChange(inputs.data(), count, nullptr, 0) != 0,
            std::string(name) + " takes shapes that do not fit");
  }
}

// --- references: contiguous float32 arrays through the CPU kernels

template <class Map>
Map map_of(const Array& a) {
  const int64_t row = a.shape[3], plane = a.shape[2] * row;
  return {const_cast<float*>(a.values.data()), a.shape[1] * plane, plane, row, 1};
}

template <class Params>
Params map_params(const Array& x) {
  Params params;
  params.batch = x.shape[0];
  params.channels = x.shape[1];
  params.height = x.shape[2];
  params.width = x.shape[3];
  params.x = map_of<fastyolo::FeatureMap>(x);
  return params;
}

template <class Params>
void call(fastyolo::Status (*entry)(const Params&, const fastyolo::ParallelFor&),
          int64_t (*workspace_bytes)(const Params&, int), Params& params) {
  params.workspace_bytes = workspace_bytes(params, 1);
  std::vector<char> memory(static_cast<size_t>(params.workspace_bytes + fastyolo::kWorkspaceAlignment));
  params.workspace =
      reinterpret_cast<void*>(fastyolo::align_up(static_cast<int64_t>(reinterpret_cast<intptr_t>(memory.data()))));
  check(entry(params, fastyolo::ParallelFor()));
}

Array concatenated(const Array& x) { return Array({x.shape[0], 4 * x.shape[1], x.shape[2], x.shape[3]}); }

std::vector<Array> reference_eca(const std::vector<Input>& inputs) {
  auto params = map_params<fastyolo::EcaParams>(inputs[0].array);
  params.taps = inputs[1].array.elements();
  params.weight = inputs[1].array.values.data();
  Array y(inputs[0].array.shape);
  params.y = map_of<fastyolo::MutableFeatureMap>(y);
  call(fastyolo::eca_cpu, fastyolo::eca_cpu_workspace_bytes, params);
  return {y};
}

std::vector<Array> reference_sppf(const std::vector<Input>& inputs, int64_t kernel) {
  auto params = map_params<fastyolo::SppfPoolParams>(inputs[0].array);
  params.kernel = kernel;
  Array y = concatenated(inputs[0].array);
  params.out = map_of<fastyolo::MutableFeatureMap>(y);
  call(fastyolo::sppf_pool_cpu, fastyolo::sppf_pool_cpu_workspace_bytes, params);
  return {y};
}

std::vector<Array> reference_dw_sppf(const std::vector<Input>& inputs, int64_t dilation,
                                     fastyolo::Activation activation) {
  auto params = map_params<fastyolo::DwSppfParams>(inputs[0].array);
  params.kernel = inputs[1].array.shape[2];
  params.dilation = dilation;
  params.activation = activation;
  params.weight = inputs[1].array.values.data();
  if (inputs.size() > 2) params.bias = inputs[2].array.values.data();
  Array y = concatenated(inputs[0].array);
  params.out = map_of<fastyolo::MutableFeatureMap>(y);
  call(fastyolo::dw_sppf_cpu, fastyolo::dw_sppf_cpu_workspace_bytes, params);
  return {y};
}

std::vector<Array> reference_dfl_decode(const std::vector<Input>& inputs) {
  const Array& logits = inputs[0].array;
  fastyolo::DflDecodeParams params;
  params.batch = logits.shape[0];
  params.bins = logits.shape[1] / 4;
  params.anchors = logits.shape[2];
  params.logits = logits.values.data();
  params.logits_stride_b = logits.shape[1] * logits.shape[2];
  params.logits_stride_c = logits.shape[2];
  params.logits_stride_a = 1;
  params.anchor_points = inputs[1].array.values.data();
  params.strides = inputs[2].array.values.data();
  Array boxes({params.batch, 4, params.anchors});
  params.boxes = boxes.values.data();
  check(fastyolo::dfl_decode_cpu(params, fastyolo::ParallelFor()));
  return {boxes};
}

// Calls `entry` with outputs in params.out, and returns them as arrays.
template <class Params>
std::vector<Array> detect(fastyolo::Status (*entry)(const Params&, const fastyolo::ParallelFor&),
                          int64_t (*workspace_bytes)(const Params&, int), Params& params) {
  const int64_t batch = params.batch, max_det = params.settings.max_det;
  Array boxes({batch, max_det, 4}), scores({batch, max_det});
  std::vector<int32_t> counts(batch), labels(batch * max_det), indices(batch * max_det);
  params.out = {counts.data(), boxes.values.data(), scores.values.data(), labels.data(), indices.data()};
  call(entry, workspace_bytes, params);
  const auto as_array = [](const std::vector<int32_t>& values, std::vector<int64_t> shape) {
    Array array(std::move(shape));
    std::copy(values.begin(), values.end(), array.values.begin());
    return array;
  };
  return {as_array(counts, {batch}), boxes, scores, as_array(labels, {batch, max_det}),
          as_array(indices, {batch, max_det})};
}

std::vector<Array> reference_decode_nms(const std::vector<Input>& inputs, const std::vector<float>& strides,
                                        const fastyolo::NmsSettings& settings) {
  const auto head_map = [](const Array& a) {
    const auto map = map_of<fastyolo::FeatureMap>(a);
    return fastyolo::HeadMap{map.data, a.shape[2], a.shape[3], map.stride_b, map.stride_c, map.stride_h, map.stride_w};
  };
  const size_t levels = strides.size();
  fastyolo::DecodeNmsParams params;
  params.batch = inputs[0].array.shape[0];
  params.bins = inputs[0].array.shape[1] / 4;
  params.classes = inputs[levels].array.shape[1];
  params.levels = static_cast<int32_t>(levels);
  for (size_t l = 0; l < levels; ++l) {
    params.box_maps[l] = head_map(inputs[l].array);
    params.cls_maps[l] = head_map(inputs[levels + l].array);
    params.strides[l] = strides[l];
  }
  params.settings = settings;
  return detect(fastyolo::decode_nms_cpu, fastyolo::decode_nms_cpu_workspace_bytes, params);
}

std::vector<Array> reference_multiclass_nms(const std::vector<Input>& inputs, const fastyolo::NmsSettings& settings) {
  const Array &boxes = inputs[0].array, &scores = inputs[1].array;
  fastyolo::MulticlassNmsParams params;
  params.batch = boxes.shape[0];
  params.count = boxes.shape[1];
  params.classes = scores.shape[1];
  params.boxes = boxes.values.data();
  params.boxes_stride_b = params.count * 4;
  params.boxes_stride_n = 4;
  params.boxes_stride_c = 1;
  params.scores = scores.values.data();
  params.scores_stride_b = params.classes * params.count;
  params.scores_stride_c = params.count;
  params.scores_stride_n = 1;
  params.settings = settings;
  return detect(fastyolo::multiclass_nms_cpu, fastyolo::multiclass_nms_cpu_workspace_bytes, params);
}

// --- the table of cases. Fields point to values that live as long as the program.

PluginField field(const char* name, const int32_t& value) { return {name, &value, PluginFieldType::kINT32, 1}; }
PluginField field(const char* name, const float& value) { return {name, &value, PluginFieldType::kFLOAT32, 1}; }
PluginField field(const char* name, const std::vector<float>& values) {
  return {name, values.data(), PluginFieldType::kFLOAT32, static_cast<int32_t>(values.size())};
}
PluginField field(const char* name, const std::vector<int32_t>& values) {
  return {name, values.data(), PluginFieldType::kINT32, static_cast<int32_t>(values.size())};
}
PluginField field(const char* name, const char* text) {
  return {name, text, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(text))};
}

// x1, y1, x2, y2 of boxes in a square of `side` pixels; many overlap.
Array random_boxes(std::mt19937& random, int64_t batch, int64_t count, float side) {
  Array boxes({batch, count, 4});
  std::uniform_real_distribution<float> center(0, side), extent(side / 8, side / 4);
  for (int64_t i = 0; i < batch * count; ++i) {
    const float x = center(random), y = center(random), w = extent(random), h = extent(random);
    const float corners[] = {x - w, y - h, x + w, y + h};
    std::copy(corners, corners + 4, boxes.values.begin() + 4 * i);
  }
  return boxes;
}

std::vector<Input> head_maps(std::mt19937& random, int64_t batch, int64_t bins, int64_t classes) {
  constexpr int64_t kSizes[][2] = {{6, 8}, {3, 4}, {2, 2}};
  std::vector<Input> inputs;
  for (const auto& [h, w] : kSizes) inputs.push_back({random_array(random, {batch, 4 * bins, h, w}), Kind::kMap});
  for (const auto& [h, w] : kSizes) {
    inputs.push_back({random_array(random, {batch, classes, h, w}, -1, 2), Kind::kMap});
  }
  return inputs;
}

Input thresholds(float score, float iou) {
  Array array({2});
  array.values = {score, iou};
  return {array, Kind::kFloat32};
}

fastyolo::NmsSettings settings(double score_threshold, double iou_threshold, int64_t max_det) {
  fastyolo::NmsSettings settings;
  settings.score_threshold = score_threshold;
  settings.iou_threshold = iou_threshold;
  settings.max_det = max_det;
  return settings;
}

void add_map_cases(std::vector<Case>& cases, std::mt19937& random) {
  static const int32_t kernel = 3, dilation = 1;
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{1, 8, 5, 7}, {2, 12, 4, 4}, {2, 16, 9, 3}}) {
    const Input x = {random_array(random, shape), Kind::kMap};
    const std::string size = std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + "x" +
                             std::to_string(shape[2]) + "x" + std::to_string(shape[3]);
    const int64_t channels = shape[1];
    for (const Kind weights : {Kind::kDense, Kind::kFloat32}) {
      const std::string suffix = size + (weights == Kind::kFloat32 ? ", float32 weights" : "");
      cases.push_back({"eca " + suffix, "FastYoloECA", {}, {x, {random_array(random, {3}), weights}}, reference_eca});
      cases.push_back(
          {"dw_sppf " + suffix,
           "FastYoloDWSPPF",
           {},
           {x, {random_array(random, {3, channels, 3, 3}, 0, 0.3f), weights}},
           [](const auto& inputs) { return reference_dw_sppf(inputs, 2, fastyolo::Activation::kIdentity); }});
      cases.push_back({"dw_sppf with bias " + suffix,
                       "FastYoloDWSPPF",
                       {field("dilation", dilation), field("activation", "silu")},
                       {x,
                        {random_array(random, {3, channels, 5, 5}, 0, 0.2f), weights},
                        {random_array(random, {3, channels}), weights}},
                       [](const auto& inputs) { return reference_dw_sppf(inputs, 1, fastyolo::Activation::kSilu); }});
    }
    cases.push_back(
        {"sppf " + size, "FastYoloSPPF", {}, {x}, [](const auto& inputs) { return reference_sppf(inputs, 5); }});
    cases.push_back({"sppf of 3 " + size, "FastYoloSPPF", {field("kernel_size", kernel)}, {x}, [](const auto& inputs) {
                       return reference_sppf(inputs, 3);
                     }});
  }
}

void add_box_cases(std::vector<Case>& cases, std::mt19937& random) {
  static const std::vector<float> strides = {8, 16, 32};
  static const std::vector<int32_t> classes = {0, 2, 10};
  static const int32_t max_det = 20, one = 1;
  static const float score = 0.4f, iou = 0.5f;

  Array anchor_points = random_array(random, {2, 37}, 10, 5), pixels({37}, 16);
  for (const int64_t bins : {16, 1}) {
    cases.push_back({"dfl_decode of " + std::to_string(bins) + " bins",
                     "FastYoloDFLDecode",
                     {},
                     {{random_array(random, {2, 4 * bins, 37}), Kind::kDense},
                      {anchor_points, Kind::kFloat32},
                      {pixels, Kind::kFloat32}},
                     reference_dfl_decode});
  }

  const auto decode = [&](const char* name, std::vector<PluginField> fields, std::vector<Input> inputs,
                          const fastyolo::NmsSettings& expected) {
    fields.push_back(field("strides", strides));
    cases.push_back({std::string("decode_nms ") + name, "FastYoloDecodeNMS", fields, std::move(inputs),
                     [=](const auto& given) { return reference_decode_nms(given, strides, expected); }, true});
  };
  decode("with defaults", {}, head_maps(random, 2, 16, 80), settings(0.25, 0.7, 300));
  decode("of 3 classes", {field("score_threshold", score), field("iou_threshold", iou), field("max_det", max_det)},
         head_maps(random, 1, 16, 3), settings(score, iou, 20));
  fastyolo::NmsSettings every = settings(0.25, 0.7, 20);
  every.multi_label = every.class_agnostic = true;
  decode("of all labels, across classes",
         {field("multi_label", one), field("class_agnostic", one), field("max_det", max_det)},
         head_maps(random, 2, 4, 12), every);
  fastyolo::NmsSettings some = settings(0.25, 0.7, 20);
  some.filter.enabled = true;
  for (const int32_t label : classes) some.filter.words[label / 32] |= 1u << label % 32;
  decode("of some classes", {field("classes", classes), field("max_det", max_det)}, head_maps(random, 1, 16, 12), some);
  std::vector<Input> with_thresholds = head_maps(random, 2, 16, 12);
  with_thresholds.push_back(thresholds(score, iou));
  decode("with thresholds at run time", {field("max_det", max_det)}, std::move(with_thresholds),
         settings(score, iou, 20));

  Array scores({2, 5, 60});
  std::uniform_real_distribution<float> uniform(0, 1);
  for (float& value : scores.values) value = uniform(random);
  const std::vector<Input> candidates = {{random_boxes(random, 2, 60, 640), Kind::kDense}, {scores, Kind::kDense}};
  const auto suppress = [&](const char* name, std::vector<PluginField> fields, std::vector<Input> inputs,
                            const fastyolo::NmsSettings& expected) {
    cases.push_back({std::string("multiclass_nms ") + name, "FastYoloBatchedNMS", std::move(fields), std::move(inputs),
                     [=](const auto& given) { return reference_multiclass_nms(given, expected); }, true});
  };
  suppress("with defaults", {}, candidates, settings(0.25, 0.7, 300));
  std::vector<Input> limited = candidates;
  limited.push_back(thresholds(score, iou));
  suppress("with thresholds at run time", {field("max_det", max_det)}, std::move(limited), settings(score, iou, 20));
}

}  // namespace

int main(int argc, char** argv) try {
  const Library library(argc > 1 ? argv[1] : nullptr);
  run_refusals(library);
  std::mt19937 random(20);
  std::vector<Case> cases;
  add_map_cases(cases, random);
  add_box_cases(cases, random);
  int runs = 0, failures = 0;
  for (const Case& test : cases) {
    for (const Variant& variant : kVariants) {
      if (variant.format == TensorFormat::kHWC8 && test.inputs[0].kind != Kind::kMap) continue;
      const std::string name = test.name + ", " + variant.name;
      try {
        if (!run(library, test, variant)) continue;
        ++runs;
        std::printf("ok    %s\n", name.c_str());
      } catch (const std::exception& error) {
        ++failures;
        std::printf("WRONG %s: %s\n", name.c_str(), error.what());
      }
    }
  }
  std::printf("%d passed, %d failed\n", runs, failures);
  return failures > 0 ? 1 : 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
