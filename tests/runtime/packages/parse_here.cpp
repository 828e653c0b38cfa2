// parse_here WIDTH HEIGHT MIN_SCORE < LAYERS: the faces that a parser of face_parsers.cpp attaches landmarks to.
//
// LAYERS has the parser's name and for each layer its rows, its columns and its values.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <list>
#include <string>

#include "nvdsinfer_custom_impl.h"

extern "C" bool ParseScrfd(const std::vector<NvDsInferLayerInfo>&, const NvDsInferNetworkInfo&,
                           const NvDsInferParseDetectionParams&, std::vector<NvDsInferInstanceMaskInfo>&);
extern "C" bool ParseYuNet(const std::vector<NvDsInferLayerInfo>&, const NvDsInferNetworkInfo&,
                           const NvDsInferParseDetectionParams&, std::vector<NvDsInferInstanceMaskInfo>&);

int main(int, char** words) {
  std::string parser;
  std::cin >> parser;
  std::list<std::vector<float>> values;
  std::vector<NvDsInferLayerInfo> layers;
  for (unsigned int rows = 0, columns = 0; std::cin >> rows >> columns;) {
    values.emplace_back(rows * columns);
    for (std::string text; auto& value : values.back()) {
      std::cin >> text;
      value = std::strtof(text.c_str(), nullptr);
    }
    layers.push_back({{2, {rows, columns}, rows * columns}, values.back().data()});
  }
  const auto width = static_cast<unsigned int>(std::atoi(words[1]));
  const auto height = static_cast<unsigned int>(std::atoi(words[2]));
  std::vector<NvDsInferInstanceMaskInfo> faces;
  const auto parse = parser == "ParseScrfd" ? ParseScrfd : ParseYuNet;
  if (!parse(layers, {width, height, 3}, {{std::strtof(words[3], nullptr)}}, faces)) return 3;
  for (const auto& face : faces) {
    if (face.mask_size != 40 || face.mask_width * face.mask_height != 10) return 4;
    std::printf("%.6f %.4f %.4f %.4f %.4f", face.detectionConfidence, face.left, face.top, face.width,
                face.height);
    for (int i = 0; i < 10; ++i) {
      std::printf(" %.4f", i % 2 ? face.top + face.mask[i] * face.height : face.left + face.mask[i] * face.width);
    }
    std::printf("\n");
    delete[] face.mask;
  }
  return 0;
}
