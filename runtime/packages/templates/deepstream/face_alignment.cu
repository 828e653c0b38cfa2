// DeepStream's hooks: landmarks from the detector to aligned tensors. Build with `make`.
//
// Not tried on a GPU by the makers of this package; face_alignment.h, the arithmetic, is.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "face_alignment.h"
#include "nvbufsurface.h"
#include "nvbufsurftransform.h"
#include "nvdsinfer_custom_impl.h"
#include "nvdspreprocess_interface.h"

namespace {

std::vector<float> numbers(const std::unordered_map<std::string, std::string>& configs,
                           const char* key) {
  std::vector<float> values;
  const auto entry = configs.find(key);
  if (entry == configs.end()) return values;
  std::istringstream text(entry->second);
  for (std::string part; std::getline(text, part, ';');) values.push_back(std::stof(part));
  return values;
}

struct Contract {
  float scale, offsets[3], target[10];
  int width, height, blue_first;
};

__global__ void align(const unsigned char* pixels, int width, int height, int pitch,
                      fr_edge::FacePlace place, Contract contract, float* out) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  const int row = blockIdx.y * blockDim.y + threadIdx.y;
  if (column >= contract.width || row >= contract.height) return;
  for (int c = 0; c < 3; ++c) {
    const int channel = contract.blue_first ? 2 - c : c;  // of RGBA
    const float level = place.possible
        ? fr_edge::sample_face(pixels, width, height, pitch, 4, channel, place, column, row)
        : 0;
    out[(c * contract.height + row) * contract.width + column] =
        contract.scale * (level - contract.offsets[c]);
  }
}

// Five landmarks as fractions of the box, in the place of a mask.
void attach(NvDsInferInstanceMaskInfo& face, const float* points) {
  face.mask = new float[10];
  for (int i = 0; i < 5; ++i) {
    face.mask[2 * i] = (points[2 * i] - face.left) / face.width;
    face.mask[2 * i + 1] = (points[2 * i + 1] - face.top) / face.height;
  }
  face.mask_width = 10;
  face.mask_height = 1;
  face.mask_size = 10 * sizeof(float);
}

// The outputs of one stride, from the narrowest to the widest; lists of cells x values.
std::vector<std::pair<int, const float*>> parts_of(const std::vector<NvDsInferLayerInfo>& layers,
                                                   int cells) {
  std::vector<std::pair<int, const float*>> parts;
  for (const auto& layer : layers) {
    const int count = layer.inferDims.numElements;
    const int rows = layer.inferDims.numDims > 1 ? layer.inferDims.d[layer.inferDims.numDims - 2] : 0;
    if (rows == cells || rows == 2 * cells) {
      parts.emplace_back(count / cells, static_cast<const float*>(layer.buffer));
    }
  }
  std::sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return parts;
}

void add(std::vector<NvDsInferInstanceMaskInfo>& faces, float score, const float* box,
         const float* points) {
  NvDsInferInstanceMaskInfo face{};
  face.detectionConfidence = score;
  face.left = box[0];
  face.top = box[1];
  face.width = box[2] - box[0];
  face.height = box[3] - box[1];
  if (!(face.width > 0 && face.height > 0)) return;
  attach(face, points);
  faces.push_back(face);
}

}  // namespace

struct CustomCtx {
  Contract contract;
  cudaStream_t stream = nullptr;
};

extern "C" CustomCtx* initLib(CustomInitParams params) {
  const auto& configs = params.user_configs;
  const auto scale = numbers(configs, "pixel-normalization-factor");
  const auto offsets = numbers(configs, "offsets"), target = numbers(configs, "template");
  const auto width = numbers(configs, "width"), height = numbers(configs, "height");
  const auto blue = numbers(configs, "blue-first");
  if (scale.size() != 1 || offsets.size() != 3 || target.size() != 10 || width.size() != 1 ||
      height.size() != 1 || blue.size() != 1) {
    std::fprintf(stderr, "preprocess.txt is damaged: [user-configs] lacks the contract\n");
    return nullptr;
  }
  auto* context = new CustomCtx;
  auto& contract = context->contract;
  contract.scale = scale[0];
  std::copy(offsets.begin(), offsets.end(), contract.offsets);
  std::copy(target.begin(), target.end(), contract.target);
  contract.width = static_cast<int>(width[0]);
  contract.height = static_cast<int>(height[0]);
  contract.blue_first = static_cast<int>(blue[0]);
  if (cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking) != cudaSuccess) {
    delete context;
    return nullptr;
  }
  return context;
}

extern "C" void deInitLib(CustomCtx* context) {
  cudaStreamDestroy(context->stream);
  delete context;
}

// Faces are sampled from the frame itself: what the plugin scales is not used.
extern "C" NvDsPreProcessStatus CustomTransformation(NvBufSurface*, NvBufSurface*,
                                                     CustomTransformParams&) {
  return NVDSPREPROCESS_SUCCESS;
}

extern "C" NvDsPreProcessStatus CustomTensorPreparation(CustomCtx* context, NvDsPreProcessBatch* batch,
                                                        NvDsPreProcessCustomBuf*& buffer,
                                                        CustomTensorParams& tensor,
                                                        NvDsPreProcessAcquirer* acquirer) {
  buffer = acquirer->acquire();
  const Contract& contract = context->contract;
  const dim3 block(16, 16), grid((contract.width + 15) / 16, (contract.height + 15) / 16);
  const std::size_t size = std::size_t(3) * contract.width * contract.height;
  auto* out = static_cast<float*>(buffer->memory_ptr);
  NvDsPreProcessStatus status = NVDSPREPROCESS_SUCCESS;
  for (std::size_t i = 0; i < batch->units.size(); ++i) {
    const auto& unit = batch->units[i];
    const NvDsObjectMeta* face = unit.obj_meta ? unit.obj_meta : unit.roi_meta.object_meta;
    const NvBufSurfaceParams* frame = unit.input_surf_params;
    const bool usable = face && frame && face->mask_params.data && face->mask_params.size == 40 &&
                        frame->colorFormat == NVBUF_COLOR_FORMAT_RGBA;
    if (!usable) {
      std::fprintf(stderr, "a face without landmarks, or a frame that is not RGBA\n");
      status = NVDSPREPROCESS_CUSTOM_TENSOR_FAILED;
      break;
    }
    const auto& box = face->detector_bbox_info.org_bbox_coords;
    float points[10];
    for (int k = 0; k < 5; ++k) {
      points[2 * k] = box.left + face->mask_params.data[2 * k] * box.width;
      points[2 * k + 1] = box.top + face->mask_params.data[2 * k + 1] * box.height;
    }
    const auto place = fr_edge::place_face(points, contract.target);
    align<<<grid, block, 0, context->stream>>>(static_cast<const unsigned char*>(frame->dataPtr),
                                               frame->width, frame->height, frame->pitch, place,
                                               contract, out + i * size);
  }
  if (cudaStreamSynchronize(context->stream) != cudaSuccess || cudaGetLastError() != cudaSuccess) {
    status = NVDSPREPROCESS_CUSTOM_TENSOR_FAILED;
  }
  if (status != NVDSPREPROCESS_SUCCESS) acquirer->release(buffer);
  tensor.params.network_input_shape[0] = static_cast<int>(batch->units.size());
  return status;
}

extern "C" bool ParseScrfd(const std::vector<NvDsInferLayerInfo>& layers,
                           const NvDsInferNetworkInfo& network,
                           const NvDsInferParseDetectionParams& params,
                           std::vector<NvDsInferInstanceMaskInfo>& faces) {
  for (int stride : {8, 16, 32}) {
    const int columns = (network.width + stride - 1) / stride;
    const int cells = columns * ((network.height + stride - 1) / stride);
    const auto parts = parts_of(layers, cells);
    if (parts.size() != 3 || parts[0].first != 2 || parts[1].first != 8 || parts[2].first != 20) {
      return false;
    }
    for (int i = 0; i < 2 * cells; ++i) {
      const float score = parts[0].second[i];
      if (!(score >= params.perClassPreclusterThreshold[0])) continue;
      const float x = i / 2 % columns * stride, y = i / 2 / columns * stride;
      const float *reach = parts[1].second + 4 * i, *spots = parts[2].second + 10 * i;
      const float box[4] = {x - reach[0] * stride, y - reach[1] * stride, x + reach[2] * stride,
                            y + reach[3] * stride};
      float points[10];
      for (int k = 0; k < 10; ++k) points[k] = (k % 2 ? y : x) + spots[k] * stride;
      add(faces, score, box, points);
    }
  }
  return true;
}

extern "C" bool ParseYuNet(const std::vector<NvDsInferLayerInfo>& layers,
                           const NvDsInferNetworkInfo& network,
                           const NvDsInferParseDetectionParams& params,
                           std::vector<NvDsInferInstanceMaskInfo>& faces) {
  for (int stride : {8, 16, 32}) {
    const int columns = (network.width + stride - 1) / stride;
    const int cells = columns * ((network.height + stride - 1) / stride);
    const auto parts = parts_of(layers, cells);
    if (parts.size() != 4 || parts[1].first != 1 || parts[2].first != 4 || parts[3].first != 10) {
      return false;
    }
    for (int i = 0; i < cells; ++i) {
      const auto share = [&](int part) {
        return std::min(1.f, std::max(0.f, parts[part].second[i]));
      };
      const float score = std::sqrt(share(0) * share(1));
      if (!(score >= params.perClassPreclusterThreshold[0])) continue;
      const float column = i % columns, row = i / columns;
      const float *shape = parts[2].second + 4 * i, *spots = parts[3].second + 10 * i;
      const float x = (column + shape[0]) * stride, y = (row + shape[1]) * stride;
      const float w = std::exp(shape[2]) * stride / 2, h = std::exp(shape[3]) * stride / 2;
      const float box[4] = {x - w, y - h, x + w, y + h};
      float points[10];
      for (int k = 0; k < 10; ++k) points[k] = ((k % 2 ? row : column) + spots[k]) * stride;
      add(faces, score, box, points);
    }
  }
  return true;
}

CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(ParseScrfd)
CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(ParseYuNet)
