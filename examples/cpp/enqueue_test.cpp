// SPDX-License-Identifier: Apache-2.0
// Runs every plugin on the GPU without an engine: what TensorRT's builder and runtime would call, from createPlugin()
// to enqueue(), in each type and format that the plugin offers, with fixed and with dynamic sizes, on a stream and in a
// graph, against the CPU kernels of fastyolo::kernels. And what the plugins must refuse.
//
//   enqueue_test ./libfastyolo_plugins.so         # exit status 1 if anything differs
//   compute-sanitizer enqueue_test ./libfastyolo_plugins.so
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
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/batched_nms.h"
#include "kernels/decode_nms.h"
#include "kernels/dfl_decode.h"
#include "kernels/dw_sppf.h"
#include "kernels/eca.h"
#include "kernels/sppf_pool.h"

#ifndef FASTYOLO_PLUGIN_V2  // the interface of the plugins, as in plugins/creators.h
#define FASTYOLO_PLUGIN_V2 (NV_TENSORRT_MAJOR < 10)
#endif

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
#if !FASTYOLO_PLUGIN_V2
using nvinfer1::PluginCapabilityType;
using nvinfer1::TensorRTPhase;
#endif

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

size_t element_bytes(DataType type) { return type == DataType::kINT8 ? 1 : type == DataType::kHALF ? 2 : 4; }

// A tensor in device memory, of exactly its bytes, and what is done to it on a stream.
class DeviceTensor {
 public:
  DeviceTensor(const PluginTensorDesc& desc, cudaStream_t stream) : desc(desc), stream_(stream) {
    bytes_ = element_bytes(desc.type) * static_cast<size_t>(positions());
    check(cudaMalloc(&data_, std::max<size_t>(1, bytes_)));  // TensorRT has an address for empty tensors too
  }
  ~DeviceTensor() { (void)cudaFree(data_); }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  void* data() const { return data_; }

  // Every byte becomes 0xff: NaN, or -1.
  void clear() const { check(cudaMemsetAsync(data_, 0xff, bytes_, stream_)); }

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
    return static_cast<size_t>(i) * element_bytes(desc.type);
  }

  void copy(void* to, const void* from, cudaMemcpyKind kind) const {
    check(cudaMemcpyAsync(to, from, bytes_, kind, stream_));
    check(cudaStreamSynchronize(stream_));
  }

  const cudaStream_t stream_;
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
#if NV_TENSORRT_MAJOR >= 10
      int64_t getConstantValue() const override { return value; }
      bool isSizeTensor() const override { return false; }
#else
      int32_t getConstantValue() const override { return static_cast<int32_t>(value); }
#endif
      int64_t value;
    } impl_;
  };

  struct Impl : nvinfer1::apiv::VExprBuilder {
#if NV_TENSORRT_MAJOR >= 10
    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return &numbers.emplace_back(value); }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      throw std::runtime_error("no plugin has outputs of unknown size");
    }
#else
    const nvinfer1::IDimensionExpr* constant(int32_t value) override { return &numbers.emplace_back(value); }
#endif
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override {
      require(operation == nvinfer1::DimensionOperation::kPROD, "the plugins' shapes are products only");
      return constant(first.getConstantValue() * second.getConstantValue());
    }
    std::list<Number> numbers;
  } impl_;
};

using Descs = std::vector<PluginTensorDesc>;
using DynamicDescs = std::vector<DynamicPluginTensorDesc>;

template <class T>
int32_t count_of(const std::vector<T>& values) {
  return static_cast<int32_t>(values.size());
}

#if FASTYOLO_PLUGIN_V2

constexpr char kGetCreators[] = "getPluginCreators";
using CreatorList = nvinfer1::IPluginCreator* const*;
using Creator = nvinfer1::IPluginCreator;

// A plugin as the builder makes and asks it and, after load(), as an engine's context has it.
class Layer {
 public:
  Layer(Creator& creator, const std::vector<PluginField>& fields) : creator_(creator) {
    const PluginFieldCollection collection{count_of(fields), fields.data()};
    hold(creator.createPlugin("layer", &collection));
    require(plugin_ != nullptr, "createPlugin() refuses the fields");
  }

  int32_t outputs() const { return plugin_->getNbOutputs(); }

  bool output_types(const std::vector<DataType>& inputs, std::vector<DataType>& types) const {
    for (int32_t i = 0; i < outputs(); ++i) types[i] = plugin_->getOutputDataType(i, inputs.data(), count_of(inputs));
    return true;
  }

  bool output_dims(const std::vector<DimsExprs>& inputs, std::vector<DimsExprs>& dims, Expressions& expressions) {
    for (int32_t i = 0; i < outputs(); ++i) {
      dims[i] = plugin_->getOutputDimensions(i, inputs.data(), count_of(inputs), expressions);
      if (dims[i].nbDims < 0) return false;
    }
    return true;
  }

  bool supports(int32_t position, const Descs& descs) {
    return plugin_->supportsFormatCombination(position, descs.data(), count_of(descs) - outputs(), outputs());
  }

  bool configure(const DynamicDescs& inputs, const DynamicDescs& outputs) {
    plugin_->configurePlugin(inputs.data(), count_of(inputs), outputs.data(), count_of(outputs));
    return true;
  }

  size_t workspace_bytes(const DynamicDescs& inputs, const DynamicDescs& outputs) const {
    const auto largest = [](const DynamicDescs& dynamic) {
      Descs descs;
      for (const DynamicPluginTensorDesc& tensor : dynamic) {
        descs.push_back(tensor.desc);
        descs.back().dims = tensor.max;
      }
      return descs;
    };
    return plugin_->getWorkspaceSize(largest(inputs).data(), count_of(inputs), largest(outputs).data(),
                                     count_of(outputs));
  }

  std::vector<char> serialise() const {
    std::vector<char> bytes(plugin_->getSerializationSize());
    plugin_->serialize(bytes.data());
    return bytes;
  }

  // False, and nothing changed, if the plugin refuses the bytes.
  bool read(const std::vector<char>& bytes) {
    nvinfer1::IPluginV2* const loaded = creator_.deserializePlugin("layer", bytes.data(), bytes.size());
    if (loaded) hold(loaded);
    return loaded;
  }

  void load() {
    require(read(serialise()), "deserializePlugin() refuses what serialize() wrote");
    clone();
    require(plugin_->initialize() == 0, "initialize() fails");
  }

  void clone() { hold(plugin_->clone()); }

  // TensorRT 8 may configure the plugin again, now with the sizes; enqueue() must do without.
  bool set_shapes(const Descs&, const Descs&) { return true; }

  bool enqueue(const Descs& inputs, const Descs& outputs, const std::vector<const void*>& input_data,
               const std::vector<void*>& output_data, void* workspace, cudaStream_t stream) {
    return plugin_->enqueue(inputs.data(), outputs.data(), input_data.data(), output_data.data(), workspace, stream) ==
           0;
  }

 private:
  struct Destroy {
    void operator()(nvinfer1::IPluginV2DynamicExt* plugin) const { plugin->destroy(); }
  };

  void hold(nvinfer1::IPluginV2* plugin) { plugin_.reset(static_cast<nvinfer1::IPluginV2DynamicExt*>(plugin)); }

  Creator& creator_;
  std::unique_ptr<nvinfer1::IPluginV2DynamicExt, Destroy> plugin_;
};

#else

constexpr char kGetCreators[] = "getCreators";
using CreatorList = nvinfer1::IPluginCreatorInterface* const*;
using Creator = nvinfer1::IPluginCreatorV3One;

// A plugin as the builder makes and asks it and, after load(), as an engine's context has it.
class Layer {
 public:
  Layer(Creator& creator, const std::vector<PluginField>& fields) : creator_(creator) {
    const PluginFieldCollection collection{count_of(fields), fields.data()};
    plugin_.reset(creator.createPlugin("layer", &collection, TensorRTPhase::kBUILD));
    require(plugin_ != nullptr, "createPlugin() refuses the fields");
  }

  int32_t outputs() const { return build().getNbOutputs(); }

  bool output_types(const std::vector<DataType>& inputs, std::vector<DataType>& types) const {
    return build().getOutputDataTypes(types.data(), count_of(types), inputs.data(), count_of(inputs)) == 0;
  }

  bool output_dims(const std::vector<DimsExprs>& inputs, std::vector<DimsExprs>& dims, Expressions& expressions) {
    return build().getOutputShapes(inputs.data(), count_of(inputs), nullptr, 0, dims.data(), count_of(dims),
                                   expressions) == 0;
  }

  bool supports(int32_t position, const Descs& descs) {
    DynamicDescs dynamic;
    for (const PluginTensorDesc& desc : descs) dynamic.push_back({desc, desc.dims, desc.dims, desc.dims});
    return build().supportsFormatCombination(position, dynamic.data(), count_of(descs) - outputs(), outputs());
  }

  bool configure(const DynamicDescs& inputs, const DynamicDescs& outputs) {
    return build().configurePlugin(inputs.data(), count_of(inputs), outputs.data(), count_of(outputs)) == 0;
  }

  size_t workspace_bytes(const DynamicDescs& inputs, const DynamicDescs& outputs) const {
    return build().getWorkspaceSize(inputs.data(), count_of(inputs), outputs.data(), count_of(outputs));
  }

  void load() {
    clone();
    plugin_.reset(creator_.createPlugin("layer", runtime().getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    require(plugin_ != nullptr, "createPlugin() refuses the serialised fields");
    plugin_.reset(runtime().attachToContext(nullptr));
  }

  void clone() { plugin_.reset(plugin_->clone()); }

  bool set_shapes(const Descs& inputs, const Descs& outputs) {
    return runtime().onShapeChange(inputs.data(), count_of(inputs), outputs.data(), count_of(outputs)) == 0;
  }

  bool enqueue(const Descs& inputs, const Descs& outputs, const std::vector<const void*>& input_data,
               const std::vector<void*>& output_data, void* workspace, cudaStream_t stream) {
    return runtime().enqueue(inputs.data(), outputs.data(), input_data.data(), output_data.data(), workspace, stream) ==
           0;
  }

 private:
  template <class Capability>
  Capability& capability(PluginCapabilityType type) const {
    auto* found = static_cast<Capability*>(plugin_->getCapabilityInterface(type));
    require(found != nullptr, "a capability is missing");
    return *found;
  }
  nvinfer1::IPluginV3OneBuild& build() const {
    return capability<nvinfer1::IPluginV3OneBuild>(PluginCapabilityType::kBUILD);
  }
  nvinfer1::IPluginV3OneRuntime& runtime() const {
    return capability<nvinfer1::IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME);
  }

  Creator& creator_;
  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

#endif

class Library {
 public:
  explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error(dlerror());
    const auto get_creators = reinterpret_cast<CreatorList (*)(int32_t&)>(dlsym(handle_, kGetCreators));
    require(get_creators != nullptr,
            std::string("there is no ") + kGetCreators + "(): give the path of libfastyolo_plugins.so");
    int32_t count = 0;
    const CreatorList creators = get_creators(count);
    for (int32_t i = 0; i < count; ++i) creators_.push_back(static_cast<Creator*>(creators[i]));
    require(creators_.size() == 6, "expected 6 creators, got " + std::to_string(creators_.size()));
  }

  Layer create(const std::string& name, const std::vector<PluginField>& fields) const {
    const auto named = [&](auto* creator) { return creator->getPluginName() == name; };
    const auto creator = std::find_if(creators_.begin(), creators_.end(), named);
    require(creator != creators_.end(), "there is no plugin " + name);
    return Layer(**creator, fields);
  }

 private:
  void* handle_;  // stays open: it holds the plugins' code
  std::vector<Creator*> creators_;
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
  std::vector<std::vector<Input>> calls;  // of one plugin; sizes in which they differ are dynamic, the first's optimal
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

Descs describe_inputs(const std::vector<Input>& inputs, const Variant& variant) {
  Descs descs;
  for (const Input& input : inputs) {
    const bool is_map = input.kind == Kind::kMap;
    descs.push_back(describe(input.array.shape, input.kind == Kind::kFloat32 ? DataType::kFLOAT : variant.type,
                             is_map ? variant.format : TensorFormat::kLINEAR));
  }
  return descs;
}

bool output_dims(Layer& layer, const Descs& inputs, std::vector<DimsExprs>& dims, Expressions& expressions) {
  std::vector<DimsExprs> input_dims;
  for (const PluginTensorDesc& desc : inputs) {
    DimsExprs sizes{};
    sizes.nbDims = desc.dims.nbDims;
    for (int i = 0; i < sizes.nbDims; ++i) sizes.d[i] = expressions.number(desc.dims.d[i]);
    input_dims.push_back(sizes);
  }
  dims.resize(layer.outputs());
  return layer.output_dims(input_dims, dims, expressions);
}

Descs describe_outputs(Layer& layer, const Descs& inputs, TensorFormat format) {
  Expressions expressions;
  std::vector<DimsExprs> dims;
  require(output_dims(layer, inputs, dims, expressions), "no output shapes");
  std::vector<DataType> input_types, types(dims.size());
  for (const PluginTensorDesc& desc : inputs) input_types.push_back(desc.type);
  require(layer.output_types(input_types, types), "no output types");
  Descs descs;
  for (size_t i = 0; i < dims.size(); ++i) {
    std::vector<int64_t> shape;
    for (int axis = 0; axis < dims[i].nbDims; ++axis) shape.push_back(dims[i].d[axis]->getConstantValue());
    descs.push_back(describe(shape, types[i], format));
  }
  return descs;
}

// What the builder knows of tensors that have the descriptions of `calls`: -1 where the sizes differ.
DynamicDescs merge(const std::vector<Descs>& calls) {
  DynamicDescs merged;
  for (size_t i = 0; i < calls[0].size(); ++i) {
    DynamicPluginTensorDesc tensor{};
    tensor.desc = calls[0][i];
    tensor.min = tensor.max = tensor.desc.dims;
#if NV_TENSORRT_MAJOR >= 10
    tensor.opt = tensor.desc.dims;
#endif
    for (const Descs& call : calls) {
      for (int axis = 0; axis < tensor.desc.dims.nbDims; ++axis) {
        const auto size = call[i].dims.d[axis];
        tensor.min.d[axis] = std::min(tensor.min.d[axis], size);
        tensor.max.d[axis] = std::max(tensor.max.d[axis], size);
        if (size != calls[0][i].dims.d[axis]) tensor.desc.dims.d[axis] = -1;
      }
    }
    merged.push_back(tensor);
  }
  return merged;
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

// A call, recorded and then launched as often as wanted.
class Graph {
 public:
  template <class Enqueue>
  Graph(cudaStream_t stream, Enqueue&& enqueue) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    const bool is_done = enqueue();
    check(cudaStreamEndCapture(stream, &graph_));
    require(is_done, "enqueue() fails while it is captured");
    check(cudaGraphInstantiateWithFlags(&executable_, graph_, 0));
    check(cudaDeviceSynchronize());  // what went elsewhere is done before launch()
  }
  ~Graph() {
    if (executable_) (void)cudaGraphExecDestroy(executable_);
    if (graph_) (void)cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

// Not on the stand-in for CUDA of tests/simt.
bool has_graphs(cudaStream_t stream) {
  const cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  if (error == cudaErrorNotSupported) return false;
  check(error);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphDestroy(graph));
  return true;
}

enum class Mode { kAtOnce, kGraph };

constexpr int64_t kWorkspaceOffset = 64;  // the header promises no alignment of the workspace

void run_call(Layer& layer, const Case& test, const std::vector<Input>& inputs, const Descs& input_descs,
              const Descs& output_descs, const DeviceTensor& workspace, float tolerance, Mode mode,
              cudaStream_t stream) {
  // What the plugin gets is rounded to its type; so is what the reference gets.
  std::vector<Input> rounded = inputs;
  std::vector<std::unique_ptr<DeviceTensor>> input_tensors, output_tensors;
  std::vector<const void*> input_data;
  std::vector<void*> output_data;
  for (size_t i = 0; i < inputs.size(); ++i) {
    input_tensors.push_back(std::make_unique<DeviceTensor>(input_descs[i], stream));
    input_tensors[i]->upload(inputs[i].array);
    rounded[i].array = input_tensors[i]->download();
    input_data.push_back(input_tensors[i]->data());
  }
  for (const PluginTensorDesc& desc : output_descs) {
    output_tensors.push_back(std::make_unique<DeviceTensor>(desc, stream));
    output_data.push_back(output_tensors.back()->data());
  }
  // Pending when enqueue() is called: what the plugin puts on another stream is not in order with it.
  const auto clear = [&] {
    workspace.clear();
    for (const auto& tensor : output_tensors) tensor->clear();
  };
  const auto enqueue = [&] {
    return layer.enqueue(input_descs, output_descs, input_data, output_data,
                         static_cast<char*>(workspace.data()) + kWorkspaceOffset, stream);
  };
  clear();
  if (mode == Mode::kGraph) {
    const Graph graph(stream, enqueue);
    clear();
    graph.launch(stream);
    check(cudaStreamSynchronize(stream));
  } else {
    require(enqueue(), "enqueue() fails");
  }

  const std::vector<Array> expected = test.reference(rounded);
  require(expected.size() == output_descs.size(), "another number of outputs");
  for (size_t i = 0; i < output_descs.size(); ++i) {
    const bool is_integer = output_descs[i].type == DataType::kINT32;
    const float allowed = is_integer ? 0 : test.detects ? 1e-5f : tolerance;
    compare(output_tensors[i]->download(), expected[i], allowed, "output " + std::to_string(i));
  }
}

// False if the plugin rightly does not offer the variant.
bool run(const Library& library, const Case& test, const Variant& variant, Mode mode, cudaStream_t stream) {
  Layer layer = library.create(test.plugin, test.fields);
  const bool is_map = !test.detects && test.calls[0][0].kind == Kind::kMap;
  std::vector<Descs> inputs, outputs;
  for (const std::vector<Input>& call : test.calls) {
    inputs.push_back(describe_inputs(call, variant));
    outputs.push_back(describe_outputs(layer, inputs.back(), is_map ? variant.format : TensorFormat::kLINEAR));
  }
  const DynamicDescs dynamic_inputs = merge(inputs), dynamic_outputs = merge(outputs);

  Descs all;
  for (const DynamicDescs& descs : {dynamic_inputs, dynamic_outputs}) {
    for (const DynamicPluginTensorDesc& tensor : descs) all.push_back(tensor.desc);
  }
  // Channels last is offered unless an output would have padded channels.
  const bool is_wanted = variant.format == TensorFormat::kLINEAR || test.detects || outputs[0][0].dims.d[1] % 8 == 0;
  bool is_offered = true;
  for (int32_t i = 0; i < count_of(all); ++i) is_offered = is_offered && layer.supports(i, all);
  require(is_offered == is_wanted, is_wanted ? "the format is not offered" : "a format with padded outputs is offered");
  if (!is_offered) return false;
  require(layer.configure(dynamic_inputs, dynamic_outputs), "configurePlugin() fails");
  const auto workspace_bytes = static_cast<int64_t>(layer.workspace_bytes(dynamic_inputs, dynamic_outputs));
  const DeviceTensor workspace(describe({workspace_bytes + kWorkspaceOffset}, DataType::kINT8, TensorFormat::kLINEAR),
                               stream);

  layer.load();
  for (size_t i = 0; i < test.calls.size(); ++i) {
    require(layer.set_shapes(inputs[i], outputs[i]), "onShapeChange() fails");
    if (i + 1 == test.calls.size()) layer.clone();  // which knows the shapes too
    run_call(layer, test, test.calls[i], inputs[i], outputs[i], workspace, variant.tolerance, mode, stream);
  }
  return true;
}

// --- what must be refused

// Of one input or output. Offered are only "f", float32, "h", float16, "h8", float16 with channels last, and "i",
// int32.
struct Layout {
  const char* code;
  DataType type;
  TensorFormat format;
};
constexpr Layout kLayouts[] = {
    {"f", DataType::kFLOAT, TensorFormat::kLINEAR},  {"f8", DataType::kFLOAT, TensorFormat::kHWC8},
    {"f32", DataType::kFLOAT, TensorFormat::kCHW32}, {"h", DataType::kHALF, TensorFormat::kLINEAR},
    {"h8", DataType::kHALF, TensorFormat::kHWC8},    {"h2", DataType::kHALF, TensorFormat::kCHW2},
    {"h16", DataType::kHALF, TensorFormat::kCHW16},  {"i", DataType::kINT32, TensorFormat::kLINEAR},
    {"i8", DataType::kINT32, TensorFormat::kHWC8},   {"c", DataType::kINT8, TensorFormat::kLINEAR},
    {"c32", DataType::kINT8, TensorFormat::kCHW32},  {"b", DataType::kBOOL, TensorFormat::kLINEAR},
};

// Every combination that the plugin offers, as the builder finds them: tensor by tensor, the later ones unknown.
void find_offers(Layer& layer, Descs& descs, size_t position, const std::string& so_far,
                 std::vector<std::string>& offers) {
  if (position == descs.size()) return offers.push_back(so_far);
  for (const Layout& layout : kLayouts) {
    descs[position].type = layout.type;
    descs[position].format = layout.format;
    if (layer.supports(static_cast<int32_t>(position), descs)) {
      find_offers(layer, descs, position + 1, so_far + (so_far.empty() ? "" : " ") + layout.code, offers);
    }
  }
  descs[position].type = DataType::kBOOL;
  descs[position].format = TensorFormat::kCHW4;
}

void check_offers(const Library& library) {
  static const std::vector<float> strides = {8, 16};
  const std::vector<PluginField> levels = {{"strides", strides.data(), PluginFieldType::kFLOAT32, 2}};
  const std::vector<int64_t> box = {1, 64, 4, 4}, cls = {1, 3, 4, 4}, weight = {3, 8, 3, 3};
  const struct {
    const char* plugin;
    std::vector<PluginField> fields;
    std::vector<std::vector<int64_t>> shapes;
    std::vector<std::string> offers;
  } kOffers[] = {
      {"FastYoloECA", {}, {{1, 8, 5, 5}, {3}}, {"f f f", "h f h", "h h h", "h8 f h8", "h8 h h8"}},
      {"FastYoloECA", {}, {{1, 12, 5, 5}, {3}}, {"f f f", "h f h", "h h h"}},
      {"FastYoloECA", {}, {{1, -1, 5, 5}, {3}}, {"f f f", "h f h", "h h h"}},
      {"FastYoloDWSPPF", {}, {{1, 8, 5, 5}, weight}, {"f f f", "h f h", "h h h", "h8 f h8", "h8 h h8"}},
      {"FastYoloDWSPPF",
       {},
       {{1, 8, 5, 5}, weight, {3, 8}},
       {"f f f f", "h f f h", "h h h h", "h8 f f h8", "h8 h h h8"}},
      {"FastYoloSPPF", {}, {{1, 6, 5, 5}}, {"f f", "h h", "h8 h8"}},
      {"FastYoloSPPF", {}, {{1, 3, 5, 5}}, {"f f", "h h"}},
      {"FastYoloDFLDecode", {}, {{1, 64, 10}, {2, 10}, {10}}, {"f f f f", "h f f h"}},
      {"FastYoloBatchedNMS", {}, {{1, 10, 4}, {1, 80, 10}}, {"f f i f f i i", "h h i f f i i"}},
      {"FastYoloBatchedNMS", {}, {{1, 10, 4}, {1, 80, 10}, {2}}, {"f f f i f f i i", "h h f i f f i i"}},
      {"FastYoloDecodeNMS",
       levels,
       {box, box, cls, cls},
       {"f f f f i f f i i", "h h h h i f f i i", "h8 h8 h8 h8 i f f i i"}},
      {"FastYoloDecodeNMS",
       levels,
       {box, box, cls, cls, {2}},
       {"f f f f f i f f i i", "h h h h f i f f i i", "h8 h8 h8 h8 f i f f i i"}},
  };
  for (const auto& [name, fields, shapes, offers] : kOffers) {
    Layer layer = library.create(name, fields);
    Descs descs;
    for (const auto& shape : shapes) descs.push_back(describe(shape, DataType::kFLOAT, TensorFormat::kLINEAR));
    const Descs outputs = describe_outputs(layer, descs, TensorFormat::kLINEAR);
    descs.insert(descs.end(), outputs.begin(), outputs.end());
    std::vector<std::string> found;
    find_offers(layer, descs, 0, "", found);
    std::string text;
    for (const std::string& offer : found) text += " [" + offer + "]";
    require(found == offers, std::string(name) + " offers other types and formats than it should:" + text);
  }
}

// Shapes that do not fit must be refused when they become known, by enqueue() at the latest, with a message on stderr.
void check_refusals(const Library& library) {
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
    Layer layer = library.create(name, fields);
    Descs inputs;
    for (const auto& shape : shapes) inputs.push_back(describe(shape, DataType::kFLOAT, TensorFormat::kLINEAR));
#if FASTYOLO_PLUGIN_V2
    Expressions expressions;
    std::vector<DimsExprs> dims;
    if (!output_dims(layer, inputs, dims, expressions)) continue;
    const Descs outputs = describe_outputs(layer, inputs, TensorFormat::kLINEAR);
    const std::vector<const void*> input_data(inputs.size());
    const std::vector<void*> output_data(outputs.size());
    layer.configure(merge({inputs}), merge({outputs}));
    const bool is_taken = layer.enqueue(inputs, outputs, input_data, output_data, nullptr, nullptr);
#else
    const bool is_taken = layer.configure(merge({inputs}), {}) || layer.set_shapes(inputs, {});
#endif
    require(!is_taken, std::string(name) + " takes shapes that do not fit");
  }
}

#if FASTYOLO_PLUGIN_V2
// Bytes that are not a whole plugin's, each refused with a message on stderr.
void check_damaged_bytes(const Library& library, const std::vector<Case>& cases) {
  std::set<std::string> done;
  for (const Case& test : cases) {
    if (!done.insert(test.plugin).second) continue;
    Layer layer = library.create(test.plugin, test.fields);
    const std::vector<char> whole = layer.serialise();
    for (size_t size = 0; size <= whole.size() + 1; ++size) {
      std::vector<char> bytes = whole;
      bytes.resize(size);
      require(layer.read(bytes) == (size == whole.size()),
              test.plugin + " reads " + std::to_string(size) + " bytes of " + std::to_string(whole.size()));
    }
    std::vector<char> bytes = whole;
    bytes[0] = 99;
    require(!layer.read(bytes), test.plugin + " reads that it has 99 inputs");
  }
}
#endif

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

std::vector<Input> head_maps(std::mt19937& random, int64_t batch, int64_t bins, int64_t classes, int64_t scale = 1) {
  constexpr int64_t kSizes[][2] = {{6, 8}, {3, 4}, {2, 2}};
  std::vector<Input> inputs;
  for (const auto& [h, w] : kSizes) {
    inputs.push_back({random_array(random, {batch, 4 * bins, scale * h, w}), Kind::kMap});
  }
  for (const auto& [h, w] : kSizes) {
    inputs.push_back({random_array(random, {batch, classes, scale * h, w}, -1, 2), Kind::kMap});
  }
  return inputs;
}

std::vector<Input> candidates(std::mt19937& random, int64_t batch, int64_t classes, int64_t count) {
  Array scores({batch, classes, count});
  std::uniform_real_distribution<float> uniform(0, 1);
  for (float& value : scores.values) value = uniform(random);
  return {{random_boxes(random, batch, count, 640), Kind::kDense}, {scores, Kind::kDense}};
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
  const std::vector<std::vector<int64_t>> tables[] = {
      {{1, 8, 5, 7}}, {{2, 12, 4, 4}}, {{2, 16, 9, 3}, {3, 16, 10, 8}, {0, 16, 9, 3}, {2, 16, 0, 3}}};
  for (const std::vector<std::vector<int64_t>>& shapes : tables) {
    std::vector<std::vector<Input>> maps;
    for (const auto& shape : shapes) maps.push_back({{random_array(random, shape), Kind::kMap}});
    const auto with = [&](const std::vector<Input>& rest) {
      std::vector<std::vector<Input>> calls = maps;
      for (auto& call : calls) call.insert(call.end(), rest.begin(), rest.end());
      return calls;
    };
    const std::vector<int64_t>& shape = shapes[0];
    const std::string size = std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + "x" +
                             std::to_string(shape[2]) + "x" + std::to_string(shape[3]) +
                             (shapes.size() > 1 ? " and other sizes" : "");
    const int64_t channels = shape[1];
    for (const Kind weights : {Kind::kDense, Kind::kFloat32}) {
      const std::string suffix = size + (weights == Kind::kFloat32 ? ", float32 weights" : "");
      cases.push_back(
          {"eca " + suffix, "FastYoloECA", {}, with({{random_array(random, {3}), weights}}), reference_eca});
      cases.push_back(
          {"dw_sppf " + suffix,
           "FastYoloDWSPPF",
           {},
           with({{random_array(random, {3, channels, 3, 3}, 0, 0.3f), weights}}),
           [](const auto& inputs) { return reference_dw_sppf(inputs, 2, fastyolo::Activation::kIdentity); }});
      cases.push_back({"dw_sppf with bias " + suffix,
                       "FastYoloDWSPPF",
                       {field("dilation", dilation), field("activation", "silu")},
                       with({{random_array(random, {3, channels, 5, 5}, 0, 0.2f), weights},
                             {random_array(random, {3, channels}), weights}}),
                       [](const auto& inputs) { return reference_dw_sppf(inputs, 1, fastyolo::Activation::kSilu); }});
    }
    cases.push_back(
        {"sppf " + size, "FastYoloSPPF", {}, maps, [](const auto& inputs) { return reference_sppf(inputs, 5); }});
    cases.push_back({"sppf of 3 " + size, "FastYoloSPPF", {field("kernel_size", kernel)}, maps, [](const auto& inputs) {
                       return reference_sppf(inputs, 3);
                     }});
  }
}

void add_box_cases(std::vector<Case>& cases, std::mt19937& random) {
  static const std::vector<float> strides = {8, 16, 32};
  static const std::vector<int32_t> classes = {0, 2, 10};
  static const int32_t max_det = 20, none = 0, one = 1;
  static const float score = 0.4f, iou = 0.5f;

  for (const int64_t bins : {16, 1}) {
    std::vector<std::vector<Input>> calls;
    for (const auto& [batch, anchors] : {std::pair<int64_t, int64_t>{1, 37}, {2, 50}, {0, 37}, {2, 0}}) {
      calls.push_back({{random_array(random, {batch, 4 * bins, anchors}), Kind::kDense},
                       {random_array(random, {2, anchors}, 10, 5), Kind::kFloat32},
                       {Array({anchors}, 16), Kind::kFloat32}});
    }
    cases.push_back({"dfl_decode of " + std::to_string(bins) + " bins",
                     "FastYoloDFLDecode",
                     {},
                     std::move(calls),
                     reference_dfl_decode});
  }

  const auto decode = [&](const char* name, std::vector<PluginField> fields, std::vector<std::vector<Input>> calls,
                          const fastyolo::NmsSettings& expected) {
    fields.push_back(field("strides", strides));
    cases.push_back({std::string("decode_nms ") + name, "FastYoloDecodeNMS", fields, std::move(calls),
                     [=](const auto& given) { return reference_decode_nms(given, strides, expected); }, true});
  };
  decode("with defaults", {}, {head_maps(random, 2, 16, 80)}, settings(0.25, 0.7, 300));
  decode("of other sizes", {field("max_det", max_det)},
         {head_maps(random, 1, 16, 12), head_maps(random, 2, 16, 12, 2), head_maps(random, 0, 16, 12),
          head_maps(random, 1, 16, 12, 0)},
         settings(0.25, 0.7, 20));
  decode("of no detections", {field("max_det", none)}, {head_maps(random, 2, 16, 12)}, settings(0.25, 0.7, 0));
  decode("of 3 classes", {field("score_threshold", score), field("iou_threshold", iou), field("max_det", max_det)},
         {head_maps(random, 1, 16, 3)}, settings(score, iou, 20));
  fastyolo::NmsSettings every = settings(0.25, 0.7, 20);
  every.multi_label = every.class_agnostic = true;
  decode("of all labels, across classes",
         {field("multi_label", one), field("class_agnostic", one), field("max_det", max_det)},
         {head_maps(random, 2, 4, 12)}, every);
  fastyolo::NmsSettings some = settings(0.25, 0.7, 20);
  some.filter.enabled = true;
  for (const int32_t label : classes) some.filter.words[label / 32] |= 1u << label % 32;
  decode("of some classes", {field("classes", classes), field("max_det", max_det)}, {head_maps(random, 1, 16, 12)},
         some);
  std::vector<Input> with_thresholds = head_maps(random, 2, 16, 12);
  with_thresholds.push_back(thresholds(score, iou));
  decode("with thresholds at run time", {field("max_det", max_det)}, {with_thresholds}, settings(score, iou, 20));

  const auto suppress = [&](const char* name, std::vector<PluginField> fields, std::vector<std::vector<Input>> calls,
                            const fastyolo::NmsSettings& expected) {
    cases.push_back({std::string("multiclass_nms ") + name, "FastYoloBatchedNMS", std::move(fields), std::move(calls),
                     [=](const auto& given) { return reference_multiclass_nms(given, expected); }, true});
  };
  suppress("with defaults", {}, {candidates(random, 2, 5, 60)}, settings(0.25, 0.7, 300));
  suppress("of other sizes", {field("max_det", max_det)},
           {candidates(random, 1, 5, 40), candidates(random, 3, 5, 90), candidates(random, 0, 5, 40),
            candidates(random, 2, 5, 0)},
           settings(0.25, 0.7, 20));
  suppress("of no detections", {field("max_det", none)}, {candidates(random, 2, 5, 60)}, settings(0.25, 0.7, 0));
  std::vector<Input> limited = candidates(random, 2, 5, 60);
  limited.push_back(thresholds(score, iou));
  suppress("with thresholds at run time", {field("max_det", max_det)}, {limited}, settings(score, iou, 20));
}

}  // namespace

int main(int argc, char** argv) try {
  const Library library(argc > 1 ? argv[1] : nullptr);
  check_offers(library);
  check_refusals(library);
  std::mt19937 random(20);
  std::vector<Case> cases;
  add_map_cases(cases, random);
  add_box_cases(cases, random);
#if FASTYOLO_PLUGIN_V2
  check_damaged_bytes(library, cases);
#endif
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));  // in no order with the null stream
  std::vector<Mode> modes = {Mode::kAtOnce};
  if (has_graphs(stream)) {
    modes.push_back(Mode::kGraph);
  } else {
    std::puts("There are no graphs on this device: none is tested.");
  }
  int runs = 0, failures = 0;
  for (const Case& test : cases) {
    for (const Variant& variant : kVariants) {
      if (variant.format == TensorFormat::kHWC8 && test.calls[0][0].kind != Kind::kMap) continue;
      for (const Mode mode : modes) {
        const std::string name = test.name + ", " + variant.name + (mode == Mode::kGraph ? ", in a graph" : "");
        try {
          if (!run(library, test, variant, mode, stream)) continue;
          ++runs;
          std::printf("ok    %s\n", name.c_str());
        } catch (const std::exception& error) {
          ++failures;
          std::printf("WRONG %s: %s\n", name.c_str(), error.what());
        }
      }
    }
  }
  std::printf("%d passed, %d failed\n", runs, failures);
  return failures > 0 ? 1 : 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
