// nvinfer's parsers: a detector's outputs as faces, each with five landmarks in the place of a mask.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

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
  const bool finite = std::all_of(points, points + 10, [](float v) { return std::isfinite(v); }) &&
                      std::all_of(box, box + 4, [](float v) { return std::isfinite(v); });
  if (!(finite && face.width > 0 && face.height > 0)) return;
  attach(face, points);
  faces.push_back(face);
}

}  // namespace

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
