// SPDX-License-Identifier: Apache-2.0
// Detects objects with a TensorRT engine that holds fastyolo's plugins, from image bytes to boxes on the GPU.
//
//   fastyolo export --weights yolov8n.pt --format tensorrt-onnx    # on any machine; prints the trtexec command
//   trtexec --onnx=yolov8n-tensorrt.onnx --saveEngine=yolov8n.engine ...    # on the target
//   detect yolov8n.engine ./libfastyolo_plugins.so bus.ppm found.ppm --iterations 200
//
// Images are binary PPM (P6), which needs no library: `ffmpeg -i bus.jpg bus.ppm`. All work of an image, from the copy
// to the GPU to the copies back, is recorded once in a CUDA graph; --iterations times it with and without the graph.
// Tested without a GPU: it compiles, links with TensorRT's lean runtime and reads its arguments and images, and the
// letterbox runs on the stand-in for CUDA (tests/simt). An engine and the graph have not been run with it yet.
#include <NvInfer.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "letterbox.h"

namespace {

using Clock = std::chrono::steady_clock;

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error(message);
}

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
  }
};

// --- images

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3] RGB
};

int read_number(std::istream& file) {
  while (file >> std::ws && file.peek() == '#') file.ignore(1 << 20, '\n');  // a comment
  int value = 0;
  file >> value;
  return value;
}

Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), path + " cannot be read");
  char magic[2] = {};
  file.read(magic, 2);
  require(magic[0] == 'P' && magic[1] == '6', path + " is not a binary PPM (P6); convert it: ffmpeg -i IN OUT.ppm");
  Image image;
  image.width = read_number(file);
  image.height = read_number(file);
  const int largest = read_number(file);
  require(image.width > 0 && image.width <= 16384 && image.height > 0 && image.height <= 16384 && largest == 255,
          path + " must have 1 to 16384 pixels a side and 8 bits a channel");
  file.get();  // one separator
  image.pixels.resize(size_t{3} * image.width * image.height);
  file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
  require(static_cast<size_t>(file.gcount()) == image.pixels.size(), path + " ends too early");
  return image;
}

void write_ppm(const std::string& path, const Image& image) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << image.width << ' ' << image.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
  require(file.flush().good(), path + " cannot be written");
}

struct Box {
  int x1, y1, x2, y2;  // pixels, both corners inside the image
};

void draw(Image& image, const Box& box, int label) {
  constexpr uint8_t kColours[][3] = {{255, 56, 56}, {72, 249, 10}, {0, 194, 255}, {255, 178, 29}, {203, 56, 255}};
  const uint8_t* colour = kColours[label % 5];
  const int thickness = std::max(2, std::max(image.width, image.height) / 400);
  for (int y = box.y1; y <= box.y2; ++y) {
    for (int x = box.x1; x <= box.x2; ++x) {
      const int depth = std::min({x - box.x1, box.x2 - x, y - box.y1, box.y2 - y});
      if (depth < thickness) std::copy_n(colour, 3, &image.pixels[3 * (size_t{1} * y * image.width + x)]);
    }
  }
}

// --- memory

struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreeHost {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct Destroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};

// Memory of the GPU, and page-locked memory of the host beside it: only that is copied without waiting.
struct Buffer {
  explicit Buffer(size_t size) : bytes(size) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    device.reset(memory);
    check(cudaMallocHost(&memory, bytes), "cudaMallocHost");
    host.reset(memory);
  }

  template <class T>
  const T* values() const {
    return static_cast<const T*>(host.get());
  }

  size_t bytes;
  std::unique_ptr<void, FreeDevice> device;
  std::unique_ptr<void, FreeHost> host;
};

// --- the detector

// What `fastyolo export --format engine` writes before the engine, as ultralytics does: a length and metadata in JSON.
size_t size_of_header(const std::string& file) {
  uint32_t length = 0;
  if (file.size() > 5 && file[4] == '{') std::memcpy(&length, file.data(), sizeof(length));
  return length > 0 && length < file.size() - 4 ? 4 + length : 0;
}

constexpr std::array kOutputs = {"num_dets", "boxes", "scores", "labels", "indices"};  // all of 4-byte elements

class Detector {
 public:
  Detector(const std::string& engine_path, const std::string& plugins, const Image& image) {
    std::ifstream file(engine_path, std::ios::binary);
    require(file.good(), engine_path + " cannot be read");
    std::string plan{std::istreambuf_iterator<char>(file), {}};
    plan.erase(0, size_of_header(plan));
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "CUDA does not start");
    stream_.reset(stream);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    require(runtime_ != nullptr, "TensorRT does not start");
    // Before the engine, whose plugins are looked up in the registry.
    require(runtime_->getPluginRegistry().loadLibrary(plugins.c_str()) != nullptr, plugins + " cannot be loaded");
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    require(engine_ != nullptr, engine_path + " cannot be loaded: an engine fits one version of TensorRT and one GPU");
    context_.reset(engine_->createExecutionContext());
    require(context_ != nullptr, "there is no memory for the engine's activations");

    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const std::string name = engine_->getIOTensorName(i);
      const bool is_input = engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
      require(!is_input || name == "images", engine_path + " has the input " + name + ", which is not given here");
    }
    const nvinfer1::Dims input = engine_->getTensorShape("images");
    require(engine_->getTensorDataType("images") == nvinfer1::DataType::kFLOAT && input.nbDims == 4 &&
                input.d[0] == 1 && input.d[1] == 3 && input.d[2] > 0 && input.d[3] > 0,
            engine_path + " must take images [1, 3, H, W] of float32 and of a fixed size");
    box_ = fit(image.width, image.height, static_cast<int>(input.d[3]), static_cast<int>(input.d[2]));
    image_ = std::make_unique<Buffer>(image.pixels.size());
    std::memcpy(image_->host.get(), image.pixels.data(), image.pixels.size());
    tensor_ = std::make_unique<Buffer>(sizeof(float) * 3 * box_.net_width * box_.net_height);
    require(context_->setTensorAddress("images", tensor_->device.get()), "images cannot be bound");
    for (const char* name : kOutputs) {
      const nvinfer1::Dims shape = engine_->getTensorShape(name);
      require(shape.nbDims > 0, engine_path + " has no output " + name + "; export with --format tensorrt-onnx");
      size_t bytes = 4;
      for (int i = 0; i < shape.nbDims; ++i) bytes *= static_cast<size_t>(shape.d[i]);
      outputs_.push_back(std::make_unique<Buffer>(bytes));
      require(context_->setTensorAddress(name, outputs_.back()->device.get()), std::string(name) + " cannot be bound");
    }
    detect();  // TensorRT sets itself up in the first run, which must not be captured
    capture();
  }

  // Both leave the detections in the outputs' host memory.
  void detect() {
    enqueue();
    check(cudaStreamSynchronize(stream_.get()), "detection");
  }
  void replay() {
    check(cudaGraphLaunch(graph_.get(), stream_.get()), "cudaGraphLaunch");
    check(cudaStreamSynchronize(stream_.get()), "detection");
  }

  // Prints the detections in pixels of the image, and draws them.
  void report(Image& image) const {
    const int count = outputs_[0]->values<int32_t>()[0];
    const float* corners = outputs_[1]->values<float>();  // [max_det, 4] xyxy in pixels of the network's input
    const auto pixel = [](float value, int size, int resized) {
      return static_cast<int>(std::clamp(value * size / resized, 0.f, size - 1.f));
    };
    const auto x = [&](float value) { return pixel(value - box_.left, box_.width, box_.resized_width); };
    const auto y = [&](float value) { return pixel(value - box_.top, box_.height, box_.resized_height); };
    for (int i = 0; i < count; ++i, corners += 4) {
      const Box box = {x(corners[0]), y(corners[1]), x(corners[2]), y(corners[3])};
      const int label = outputs_[3]->values<int32_t>()[i];
      std::printf("class %-4d %.3f  %d,%d - %d,%d\n", label, outputs_[2]->values<float>()[i], box.x1, box.y1, box.x2,
                  box.y2);
      draw(image, box, label);
    }
  }

 private:
  void enqueue() {
    cudaStream_t stream = stream_.get();
    check(cudaMemcpyAsync(image_->device.get(), image_->host.get(), image_->bytes, cudaMemcpyHostToDevice, stream),
          "copy of the image");
    const auto* pixels = static_cast<const uint8_t*>(image_->device.get());
    check(letterbox(pixels, box_, static_cast<float*>(tensor_->device.get()), stream), "letterbox");
    require(context_->enqueueV3(stream), "TensorRT does not run the engine");
    for (const auto& output : outputs_) {
      check(cudaMemcpyAsync(output->host.get(), output->device.get(), output->bytes, cudaMemcpyDeviceToHost, stream),
            "copy of the detections");
    }
  }

  void capture() {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    enqueue();
    check(cudaStreamEndCapture(stream_.get(), &graph), "cudaStreamEndCapture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiateWithFlags(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "cudaGraphInstantiate");
    graph_.reset(executable);
  }

  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Letterbox box_ = {};
  std::unique_ptr<Buffer> image_, tensor_;
  std::vector<std::unique_ptr<Buffer>> outputs_;
  std::unique_ptr<CUstream_st, Destroy> stream_;
  std::unique_ptr<CUgraphExec_st, Destroy> graph_;
};

template <class Run>
double milliseconds(const Run& run) {
  const auto start = Clock::now();
  run();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void print_times(const char* name, std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  const auto at = [&](size_t percent) { return times[(times.size() - 1) * percent / 100]; };
  std::printf("%-14s median %.3f ms, p99 %.3f ms\n", name, at(50), at(99));
}

int run(int argc, char** argv) {
  if (argc != 5 && !(argc == 7 && std::strcmp(argv[5], "--iterations") == 0)) {
    std::fprintf(stderr, "usage: %s ENGINE PLUGIN_LIBRARY IN.ppm OUT.ppm [--iterations N]\n", argv[0]);
    return 2;
  }
  const int iterations = argc == 7 ? std::atoi(argv[6]) : 100;
  require(iterations > 0, "--iterations must be a positive number");
  Image image = read_ppm(argv[3]);
  Detector detector(argv[1], argv[2], image);
  std::vector<double> direct, replayed;
  for (int i = 0; i < iterations; ++i) {  // in turns: the GPU's clock drifts
    direct.push_back(milliseconds([&] { detector.detect(); }));
    replayed.push_back(milliseconds([&] { detector.replay(); }));
  }
  detector.report(image);
  write_ppm(argv[4], image);
  print_times("without graph", direct);
  print_times("with graph", replayed);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "detect: %s\n", error.what());
    return 1;
  }
}
