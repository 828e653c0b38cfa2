/* A double of DeepStream's header: what face_parsers.cpp uses of it, written from its documentation. The layout of
 * the structures is not DeepStream's; where DeepStream is installed its own header is compiled. */
#ifndef FR_EDGE_TEST_NVDSINFER_CUSTOM_IMPL_H
#define FR_EDGE_TEST_NVDSINFER_CUSTOM_IMPL_H

#include <vector>

struct NvDsInferDims {
  unsigned int numDims, d[8], numElements;
};

struct NvDsInferLayerInfo {
  NvDsInferDims inferDims;
  void* buffer;
};

struct NvDsInferNetworkInfo {
  unsigned int width, height, channels;
};

struct NvDsInferParseDetectionParams {
  std::vector<float> perClassPreclusterThreshold;
};

struct NvDsInferInstanceMaskInfo {
  unsigned int classId;
  float left, top, width, height, detectionConfidence;
  float* mask;
  unsigned int mask_width, mask_height, mask_size;
};

#define CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(name)

#endif
