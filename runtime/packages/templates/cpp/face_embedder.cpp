#include "face_embedder.h"

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

#ifdef FR_EDGE_TENSORRT
#include <NvInfer.h>
#include <cuda_runtime_api.h>
#endif

namespace fr_edge {

namespace {

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

std::string read_whole(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail(path + " cannot be read");
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

struct Input {
  std::string name;
  std::vector<std::int64_t> shape;
  const void* data;
  bool bytes;  // uint8, else float32

  std::size_t size() const {
    std::size_t count = bytes ? 1 : sizeof(float);
    for (auto side : shape) count *= static_cast<std::size_t>(side);
    return count;
  }
};

struct Output {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

using Outputs = std::map<std::string, Output>;

}  // namespace

class Network {
 public:
  virtual ~Network() = default;
  virtual Outputs run(const std::vector<Input>& inputs) = 0;
  virtual std::string metadata(const char* key) = 0;
};

namespace {

// ---------------------------------------------------------------- ONNX Runtime

class OrtNetwork : public Network {
 public:
  OrtNetwork(const std::string& path, int threads) : path_(path) {
    try {
      open(threads);
    } catch (...) {  // no destructor runs for an object that was not made
      close();
      throw;
    }
  }

  ~OrtNetwork() override { close(); }

 private:
  void open(int threads) {
    api_ = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!api_) {
      fail("libonnxruntime is older than the header that this program was compiled with");
    }
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "fr_edge", &env_));
    OrtSessionOptions* options = nullptr;
    check(api_->CreateSessionOptions(&options));
    OrtStatus* status = api_->SetIntraOpNumThreads(options, threads);
#if defined(__x86_64__) && defined(__GNUC__)
    // Without VNNI sums of 8-bit products overflow 16 bits, unless the exact way is asked for.
    if (!status && !__builtin_cpu_supports("avx512vnni")) {
      status = api_->AddSessionConfigEntry(options, "session.x64quantprecision", "1");
    }
#endif
    if (!status) status = api_->CreateSession(env_, path_.c_str(), options, &session_);
    api_->ReleaseSessionOptions(options);
    check(status);
    check(api_->GetAllocatorWithDefaultOptions(&allocator_));
    check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
    std::size_t count = 0;
    check(api_->SessionGetOutputCount(session_, &count));
    for (std::size_t i = 0; i < count; ++i) {
      char* name = nullptr;
      check(api_->SessionGetOutputName(session_, i, allocator_, &name));
      outputs_.emplace_back(name);
      check(api_->AllocatorFree(allocator_, name));
    }
  }

  void close() {
    if (memory_) api_->ReleaseMemoryInfo(memory_);
    if (session_) api_->ReleaseSession(session_);
    if (env_) api_->ReleaseEnv(env_);
  }

 public:
  std::string metadata(const char* key) override {
    OrtModelMetadata* metadata = nullptr;
    check(api_->SessionGetModelMetadata(session_, &metadata));
    char* text = nullptr;
    OrtStatus* status =
        api_->ModelMetadataLookupCustomMetadataMap(metadata, allocator_, key, &text);
    api_->ReleaseModelMetadata(metadata);
    check(status);
    std::string value = text ? text : "";
    if (text) check(api_->AllocatorFree(allocator_, text));
    return value;
  }

  Outputs run(const std::vector<Input>& inputs) override {
    std::vector<const char*> names, wanted;
    std::vector<OrtValue*> values(inputs.size(), nullptr), results(outputs_.size(), nullptr);
    for (const auto& name : outputs_) wanted.push_back(name.c_str());
    OrtStatus* status = nullptr;
    for (std::size_t i = 0; i < inputs.size() && !status; ++i) {
      const Input& input = inputs[i];
      names.push_back(input.name.c_str());
      status = api_->CreateTensorWithDataAsOrtValue(
          memory_, const_cast<void*>(input.data), input.size(), input.shape.data(),
          input.shape.size(),
          input.bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
          &values[i]);
    }
    if (!status) {
      status = api_->Run(session_, nullptr, names.data(), values.data(), values.size(),
                         wanted.data(), wanted.size(), results.data());
    }
    Outputs outputs;
    for (std::size_t i = 0; i < results.size() && !status; ++i) {
      status = copy(results[i], outputs[outputs_[i]]);
    }
    for (auto* value : values) if (value) api_->ReleaseValue(value);
    for (auto* value : results) if (value) api_->ReleaseValue(value);
    check(status);
    for (const auto& [name, output] : outputs) {
      if (output.values.empty()) fail(path_ + ": output " + name + " is empty or not float32");
    }
    return outputs;
  }

 private:
  OrtStatus* copy(OrtValue* value, Output& output) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    OrtStatus* status = api_->GetTensorTypeAndShape(value, &info);
    if (status) return status;
    std::size_t axes = 0, count = 0;
    status = api_->GetDimensionsCount(info, &axes);
    output.shape.resize(axes);
    if (!status) status = api_->GetDimensions(info, output.shape.data(), axes);
    if (!status) status = api_->GetTensorShapeElementCount(info, &count);
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    if (!status) status = api_->GetTensorElementType(info, &type);
    api_->ReleaseTensorTypeAndShapeInfo(info);
    void* data = nullptr;
    if (!status) status = api_->GetTensorMutableData(value, &data);
    // Other types stay without values, which `run` refuses.
    if (!status && type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      const float* numbers = static_cast<const float*>(data);
      output.values.assign(numbers, numbers + count);
    }
    return status;
  }

  void check(OrtStatus* status) {
    if (!status) return;
    std::string message = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    fail(path_ + ": " + message);
  }

  std::string path_;
  const OrtApi* api_ = nullptr;
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  OrtAllocator* allocator_ = nullptr;
  std::vector<std::string> outputs_;
};

// -------------------------------------------------------------------- TensorRT

#ifdef FR_EDGE_TENSORRT

void check_cuda(cudaError_t code) {
  if (code != cudaSuccess) fail(std::string("CUDA: ") + cudaGetErrorString(code));
}

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) last = message;
  }
  std::string last;
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  void* at_least(std::size_t bytes) {
    if (bytes > bytes_) {
      cudaFree(data_);
      data_ = nullptr;
      check_cuda(cudaMalloc(&data_, bytes));
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class TrtNetwork : public Network {
 public:
  explicit TrtNetwork(const std::string& path) : path_(path) {
    const std::string plan = read_whole(path);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (!runtime_) fail("TensorRT does not start: " + logger_.last);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) fail(path + ": " + logger_.last);
    context_.reset(engine_->createExecutionContext());
    if (!context_) fail(path + ": " + logger_.last);
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      if (engine_->getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) continue;
      if (engine_->getTensorDataType(name) != nvinfer1::DataType::kFLOAT) {
        fail(path + ": output " + name + " is not float32");
      }
      outputs_.emplace_back(name);
    }
    check_cuda(cudaStreamCreate(&stream_));  // last: nothing after it can fail
  }

  ~TrtNetwork() override {
    if (stream_) cudaStreamDestroy(stream_);
  }

  std::string metadata(const char*) override { return ""; }

  Outputs run(const std::vector<Input>& inputs) override {
    for (const auto& input : inputs) {
      nvinfer1::Dims shape{};
      shape.nbDims = static_cast<int>(input.shape.size());
      for (int i = 0; i < shape.nbDims; ++i) {
        shape.d[i] = static_cast<std::remove_reference_t<decltype(shape.d[0])>>(input.shape[i]);
      }
      if (!context_->setInputShape(input.name.c_str(), shape)) {
        fail(path_ + " does not take this size: " + logger_.last);
      }
      void* data = buffers_[input.name].at_least(input.size());
      check_cuda(cudaMemcpyAsync(data, input.data, input.size(), cudaMemcpyHostToDevice, stream_));
      context_->setTensorAddress(input.name.c_str(), data);
    }
    Outputs outputs;
    for (const auto& name : outputs_) {
      const nvinfer1::Dims shape = context_->getTensorShape(name.c_str());
      std::size_t count = 1;
      for (int i = 0; i < shape.nbDims; ++i) {
        if (shape.d[i] < 0) fail(path_ + ": the shape of " + name + " depends on the data");
        outputs[name].shape.push_back(shape.d[i]);
        count *= static_cast<std::size_t>(shape.d[i]);
      }
      outputs[name].values.resize(count);
      context_->setTensorAddress(name.c_str(), buffers_[name].at_least(count * sizeof(float)));
    }
    if (!context_->enqueueV3(stream_)) fail(path_ + ": " + logger_.last);
    for (auto& [name, output] : outputs) {
      const std::size_t bytes = output.values.size() * sizeof(float);
      check_cuda(cudaMemcpyAsync(output.values.data(), buffers_[name].at_least(bytes), bytes,
                                 cudaMemcpyDeviceToHost, stream_));
    }
    check_cuda(cudaStreamSynchronize(stream_));
    return outputs;
  }

 private:
  std::string path_;
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;  // outlives the engine and the context
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaStream_t stream_ = nullptr;
  std::map<std::string, DeviceBuffer> buffers_;
  std::vector<std::string> outputs_;
};

#endif

std::unique_ptr<Network> open_network(const std::string& path, int threads) {
  if (path.size() > 5 && path.compare(path.size() - 5, 5, ".plan") == 0) {
#ifdef FR_EDGE_TENSORRT
    return std::make_unique<TrtNetwork>(path);
#else
    fail(path + " is a plan: build with -DFR_EDGE_TENSORRT=ON");
#endif
  }
  return std::make_unique<OrtNetwork>(path, threads);
}

void check_size(const Image& frame) {
  if (frame.height < 1 || frame.width < 1 ||
      frame.pixels.size() != static_cast<std::size_t>(frame.height) * frame.width * 3) {
    fail("a frame of another size than its pixels");
  }
}

// The number or the numbers behind a key of the contract's JSON.
std::vector<double> numbers_of(const std::string& json, const std::string& key) {
  const auto at = json.rfind("\"" + key + "\":");
  std::vector<double> numbers;
  if (at == std::string::npos) return numbers;
  const char* text = json.c_str() + at + key.size() + 3;
  int depth = 0;
  while (*text) {
    if (*text == '[') ++depth;
    if (*text == ']' && --depth <= 0) break;
    if (std::strchr("-0123456789", *text)) {
      char* end = nullptr;
      numbers.push_back(std::strtod(text, &end));
      text = end;
      if (depth == 0) break;
      continue;
    }
    if (depth == 0 && !std::strchr(" [", *text)) break;  // null, for example
    ++text;
  }
  return numbers;
}

}  // namespace

// ------------------------------------------------------------------- embedding

FaceEmbedder::FaceEmbedder(const std::string& model, int threads)
    : network_(open_network(model, threads)), contract_(network_->metadata("fr_edge.contract")) {
  if (!contract_.empty() && contract_.find("\"kind\": \"frame\"") == std::string::npos) {
    fail(model + " does not take frames with landmarks");
  }
}

FaceEmbedder::~FaceEmbedder() = default;

std::vector<Embedding> FaceEmbedder::embed(const Image& frame,
                                           const std::vector<Landmarks>& faces) const {
  check_size(frame);
  for (const auto& points : faces) {
    for (float value : points) {
      if (!std::isfinite(value)) fail("landmarks that are not finite");
    }
  }
  const auto fixed = numbers_of(contract_, "faces_per_run");
  if (!fixed.empty() && !(fixed[0] >= 1 && fixed[0] <= 65536)) fail("the model's contract is damaged");
  const std::size_t step = fixed.empty() ? std::max<std::size_t>(1, faces.size())
                                         : static_cast<std::size_t>(fixed[0]);
  std::vector<Embedding> embeddings;
  for (std::size_t start = 0; start < faces.size(); start += step) {
    const std::size_t count = std::min(step, faces.size() - start);
    const Outputs outputs = network_->run(
        {{"frame", {1, frame.height, frame.width, 3}, frame.pixels.data(), true},
         {"landmarks", {static_cast<std::int64_t>(count), 5, 2}, faces[start].data(), false}});
    if (outputs.size() != 1 || outputs.begin()->second.values.size() % count != 0) {
      fail("the model's output is not an embedding for each face");
    }
    const auto& values = outputs.begin()->second.values;
    const auto dim = static_cast<std::ptrdiff_t>(values.size() / count);
    for (std::size_t i = 0; i < count; ++i) {
      const auto from = values.begin() + static_cast<std::ptrdiff_t>(i) * dim;
      embeddings.emplace_back(from, from + dim);
    }
  }
  return embeddings;
}

Embedding FaceEmbedder::embed_crop(const Image& crop) const {
  const auto side = numbers_of(contract_, "aligned_size");
  const auto points = numbers_of(contract_, "template");
  if (side.size() != 1 || points.size() != 10) fail("the model has no contract");
  if (crop.height != side[0] || crop.width != crop.height) {
    fail("an aligned face of another size than the contract's");
  }
  Landmarks landmarks{};
  std::copy(points.begin(), points.end(), landmarks.begin());
  return embed(crop, {landmarks})[0];
}

float compare(const Embedding& first, const Embedding& second) {
  if (first.size() != second.size()) fail("embeddings of two networks");
  double product = 0, one = 0, two = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    product += double(first[i]) * second[i];
    one += double(first[i]) * first[i];
    two += double(second[i]) * second[i];
  }
  return static_cast<float>(product / std::max(1e-12, std::sqrt(one * two)));
}

// ------------------------------------------------------------------- detection

struct FaceDetector::Settings {
  bool scrfd = false, bgr = false, any_size = false;
  std::array<float, 3> mean{}, std{};
  float min_score = 0;
  int height = 0, width = 0;
};

namespace {

constexpr float kOverlap = 0.3f;  // of two boxes, from which the less confident is dropped
constexpr int kStep = 32;         // pixels: the largest stride
constexpr float kMinSide = 192;   // smaller frames are enlarged to it
constexpr int kMaxSide = 8192;    // of the picture that a detector takes

// One axis of a bilinear resize that averages where it reduces: a triangle filter, rows of `row` bytes
// in groups of 3.
void resize_axis(const std::uint8_t* in, int from, std::uint8_t* out, int to, int stride_in,
                 int stride_out, int channels_step) {
  const double scale = double(from) / to, reach = std::max(1.0, scale);
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(centre - reach + 0.5));
    const int high = std::min(from, static_cast<int>(centre + reach + 0.5));
    double sums[3] = {0, 0, 0}, total = 0;
    for (int j = low; j < high; ++j) {
      const double weight = std::max(0.0, 1 - std::abs((j + 0.5 - centre) / reach));
      total += weight;
      for (int c = 0; c < 3; ++c) sums[c] += weight * in[std::ptrdiff_t(j) * stride_in + c * channels_step];
    }
    for (int c = 0; c < 3; ++c) {
      const double level = total > 0 ? sums[c] / total + 0.5 : 0;
      out[std::ptrdiff_t(i) * stride_out + c * channels_step] =
          static_cast<std::uint8_t>(std::min(255.0, std::floor(level)));
    }
  }
}

Image resized(const Image& image, int height, int width) {
  Image wide{image.height, width, std::vector<std::uint8_t>(std::size_t(image.height) * width * 3)};
  for (int y = 0; y < image.height; ++y) {
    resize_axis(&image.pixels[std::size_t(y) * image.width * 3], image.width,
                &wide.pixels[std::size_t(y) * width * 3], width, 3, 3, 1);
  }
  Image result{height, width, std::vector<std::uint8_t>(std::size_t(height) * width * 3)};
  for (int x = 0; x < width; ++x) {
    resize_axis(&wide.pixels[std::size_t(x) * 3], image.height, &result.pixels[std::size_t(x) * 3],
                height, width * 3, width * 3, 1);
  }
  return result;
}

float sigmoid_unless_share(float value, bool shares) {
  return shares ? value : 1 / (1 + std::exp(-value));
}

// The outputs of one stride, from the narrowest to the widest: cells x values.
struct Level {
  int stride = 0, columns = 0;
  std::vector<std::pair<std::size_t, std::vector<float>>> parts;  // values per cell, data
};

// Outputs as tables (cells x values): maps (1, C, h, w) are turned, lists (1, h*w*A, C) taken as they are.
std::vector<Level> levels_of(const Outputs& outputs, int height, int width) {
  std::vector<Level> levels;
  for (int stride : {8, 16, 32}) {
    const int rows = (height + stride - 1) / stride, columns = (width + stride - 1) / stride;
    const auto cells = static_cast<std::size_t>(rows) * columns;
    Level level;
    level.stride = stride;
    level.columns = columns;
    for (const auto& [name, output] : outputs) {
      const auto& shape = output.shape;
      const std::size_t axes = shape.size();
      if (axes == 4 && shape[2] == rows && shape[3] == columns) {
        const auto count = static_cast<std::size_t>(shape[1]);
        std::vector<float> turned(output.values.size());
        for (std::size_t c = 0; c < count; ++c) {
          for (std::size_t i = 0; i < cells; ++i) turned[i * count + c] = output.values[c * cells + i];
        }
        level.parts.emplace_back(count, std::move(turned));
      } else if (axes == 2 || axes == 3) {
        const auto listed = static_cast<std::size_t>(shape[axes - 2]);
        const auto anchors = listed / cells;
        if (listed % cells == 0 && (anchors == 1 || anchors == 2)) {
          level.parts.emplace_back(output.values.size() / cells, output.values);
        }
      }
    }
    std::sort(level.parts.begin(), level.parts.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    levels.push_back(std::move(level));
  }
  return levels;
}

bool has_values(const Level& level, std::initializer_list<std::size_t> values) {
  return level.parts.size() == values.size() &&
         std::equal(values.begin(), values.end(), level.parts.begin(),
                    [](std::size_t value, const auto& part) { return value == part.first; });
}

// Score, the distances to a box's sides and to five points in strides from the cell's corner; two anchors.
void decode_scrfd(const Level& level, float min_score, std::vector<Face>& faces) {
  const auto& scores = level.parts[0].second;
  const bool shares = std::all_of(scores.begin(), scores.end(),
                                  [](float value) { return value >= 0 && value <= 1; });
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const float score = sigmoid_unless_share(scores[i], shares);
    if (!(score >= min_score)) continue;
    const std::size_t cell = i / 2;
    const float stride = static_cast<float>(level.stride);
    const float x = static_cast<float>(cell % level.columns) * stride;
    const float y = static_cast<float>(cell / level.columns) * stride;
    const float* box = &level.parts[1].second[i * 4];
    const float* points = &level.parts[2].second[i * 10];
    Face face;
    face.score = score;
    face.box = {x - box[0] * stride, y - box[1] * stride, x + box[2] * stride, y + box[3] * stride};
    for (int p = 0; p < 5; ++p) {
      face.landmarks[2 * p] = x + points[2 * p] * stride;
      face.landmarks[2 * p + 1] = y + points[2 * p + 1] * stride;
    }
    faces.push_back(face);
  }
}

// Two scores, a box as centre and logarithm of the size, and five points, in strides from the cell.
void decode_yunet(const Level& level, float min_score, std::vector<Face>& faces) {
  const auto& first = level.parts[0].second;
  const auto& second = level.parts[1].second;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const float score = std::sqrt(std::clamp(first[i], 0.f, 1.f) * std::clamp(second[i], 0.f, 1.f));
    if (!(score >= min_score)) continue;
    const float stride = static_cast<float>(level.stride);
    const float column = static_cast<float>(i % level.columns);
    const float row = static_cast<float>(i / level.columns);
    const float* box = &level.parts[2].second[i * 4];
    const float* points = &level.parts[3].second[i * 10];
    const float x = (column + box[0]) * stride, y = (row + box[1]) * stride;
    const float w = std::exp(box[2]) * stride / 2, h = std::exp(box[3]) * stride / 2;
    Face face;
    face.score = score;
    face.box = {x - w, y - h, x + w, y + h};
    for (int p = 0; p < 5; ++p) {
      face.landmarks[2 * p] = (column + points[2 * p]) * stride;
      face.landmarks[2 * p + 1] = (row + points[2 * p + 1]) * stride;
    }
    faces.push_back(face);
  }
}

float overlap(const std::array<float, 4>& a, const std::array<float, 4>& b) {
  const float w = std::min(a[2], b[2]) - std::max(a[0], b[0]);
  const float h = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  const float common = std::max(w, 0.f) * std::max(h, 0.f);
  const float areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]);
  return common / (areas - common);
}

bool sane(const Face& face) {
  const auto finite = [](float value) { return std::isfinite(value); };
  return std::all_of(face.box.begin(), face.box.end(), finite) &&
         std::all_of(face.landmarks.begin(), face.landmarks.end(), finite) &&
         face.box[2] > face.box[0] && face.box[3] > face.box[1];
}

}  // namespace

FaceDetector::FaceDetector(const std::string& model, const std::string& settings, int threads)
    : network_(open_network(model, threads)), settings_(std::make_unique<Settings>()) {
  std::istringstream lines(read_whole(settings));
  std::string family, key, channels;
  auto& s = *settings_;
  while (lines >> key) {
    if (key == "family") lines >> family;
    else if (key == "channels") lines >> channels;
    else if (key == "mean") lines >> s.mean[0] >> s.mean[1] >> s.mean[2];
    else if (key == "std") lines >> s.std[0] >> s.std[1] >> s.std[2];
    else if (key == "min_score") lines >> s.min_score;
    else if (key == "size") lines >> s.height >> s.width;
    else if (key == "any_size") lines >> s.any_size;
    else fail(settings + " holds an unknown line: " + key);
  }
  s.scrfd = family == "SCRFD";
  s.bgr = channels == "BGR";
  const bool known = s.scrfd || family == "YuNet";
  const bool size = std::min(s.height, s.width) >= kStep && std::max(s.height, s.width) <= kMaxSide;
  if (!lines.eof() || !known || !size || s.std[0] == 0 || s.std[1] == 0 || s.std[2] == 0) {
    fail(settings + " is damaged");
  }
}

FaceDetector::~FaceDetector() = default;

std::vector<Face> FaceDetector::detect(const Image& frame) const {
  const auto& s = *settings_;
  check_size(frame);
  const double longest = std::max(frame.height, frame.width);
  double scale = std::min(double(s.height) / frame.height, double(s.width) / frame.width);
  int height = s.height, width = s.width;
  if (s.any_size) {
    scale = std::min(std::max(1.0, kMinSide / longest), std::min(s.height, s.width) / longest);
    const auto stepped = [scale](int side) {
      const int scaled = static_cast<int>(std::nearbyint(side * scale));
      return std::max(kStep, (scaled + kStep - 1) / kStep * kStep);
    };
    height = stepped(frame.height);
    width = stepped(frame.width);
  }
  const int high = std::max(1, static_cast<int>(std::nearbyint(frame.height * scale)));
  const int wide = std::max(1, static_cast<int>(std::nearbyint(frame.width * scale)));
  const bool same = high == frame.height && wide == frame.width;
  const Image reduced = same ? Image{} : resized(frame, high, wide);
  const Image& small = same ? frame : reduced;
  const auto plane = static_cast<std::size_t>(height) * width;
  std::vector<float> canvas(3 * plane);
  for (int c = 0; c < 3; ++c) {
    std::fill_n(canvas.begin() + static_cast<std::ptrdiff_t>(c * plane), plane,
                (0 - s.mean[c]) / s.std[c]);
    for (int y = 0; y < high; ++y) {
      for (int x = 0; x < wide; ++x) {
        const auto pixel = small.pixels[(std::size_t(y) * wide + x) * 3 + (s.bgr ? 2 - c : c)];
        canvas[c * plane + std::size_t(y) * width + x] = (pixel - s.mean[c]) / s.std[c];
      }
    }
  }
  const Outputs outputs = network_->run({{"image", {1, 3, height, width}, canvas.data(), false}});
  std::vector<Face> candidates, faces;
  for (const auto& level : levels_of(outputs, height, width)) {
    if (s.scrfd && has_values(level, {2, 8, 20})) decode_scrfd(level, s.min_score, candidates);
    else if (!s.scrfd && has_values(level, {1, 1, 4, 10})) decode_yunet(level, s.min_score, candidates);
    else fail("the detector's outputs are not in the layout that its settings name");
  }
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(),
                                  [](const Face& face) { return !sane(face); }),
                   candidates.end());
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Face& a, const Face& b) { return a.score > b.score; });
  for (const auto& candidate : candidates) {
    const bool free = std::none_of(faces.begin(), faces.end(), [&](const Face& kept) {
      return overlap(kept.box, candidate.box) > kOverlap;
    });
    if (free) faces.push_back(candidate);
  }
  for (auto& face : faces) {
    for (auto& value : face.box) value = static_cast<float>(value / scale);
    for (auto& value : face.landmarks) value = static_cast<float>(value / scale);
  }
  return faces;
}

Image read_ppm(const std::string& path) {
  const std::string data = read_whole(path);
  std::istringstream header(data.substr(0, 64));
  std::string magic;
  int width = 0, height = 0, most = 0;
  header >> magic >> width >> height >> most;
  const auto size = static_cast<std::size_t>(std::max(0, width)) * std::max(0, height) * 3;
  if (magic != "P6" || most != 255 || size == 0 || data.size() < size) {
    fail(path + " is not a PPM image of 8 bits");
  }
  Image image{height, width, std::vector<std::uint8_t>(size)};
  std::memcpy(image.pixels.data(), data.data() + data.size() - size, size);
  return image;
}

}  // namespace fr_edge
