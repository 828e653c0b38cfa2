// nvdspreprocess' hooks: from the landmarks that face_parsers.cpp attached to aligned tensors. Build with `make`.
//
// Compiled, but not tried on a GPU by the makers of this package; face_alignment.h, the arithmetic, is tried.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "face_alignment.h"
#include "nvbufsurface.h"
#include "nvbufsurftransform.h"
#include "nvdspreprocess_interface.h"

namespace {

std::vector<float> numbers(const std::unordered_map<std::string, std::string>& configs,
                           const char* key) {
  std::vector<float> values;
  const auto entry = configs.find(key);
  if (entry == configs.end()) return values;
  std::istringstream text(entry->second);
  for (std::string part; std::getline(text, part, ';');) {
    char* end = nullptr;
    values.push_back(std::strtof(part.c_str(), &end));
    if (end == part.c_str()) return {};
  }
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
