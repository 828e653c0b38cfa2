// Embeds, compares and finds faces: one header, one source, C++17.
//
// Networks run by ONNX Runtime's C API; with FR_EDGE_TENSORRT also by TensorRT 8.6 to 11 (files that
// end in .plan). Alignment, channel order, mean and std of the face network are inside its model.
// All functions throw std::runtime_error with a message that names the file. Objects with a plan serve
// one thread at a time, others any number.
#ifndef FR_EDGE_FACE_EMBEDDER_H
#define FR_EDGE_FACE_EMBEDDER_H

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fr_edge {

// x, y in pixels of the eyes, nose tip and mouth corners, what is left in the image first; whole
// numbers are centres of pixels.
using Landmarks = std::array<float, 10>;

using Embedding = std::vector<float>;  // of unit length

struct Image {  // RGB, row by row, without padding
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> pixels;
};

struct Face {
  float score = 0;              // confidence, 0 to 1
  std::array<float, 4> box{};   // left, top, right, bottom in pixels
  Landmarks landmarks{};
};

class Network;  // an open model; in the source

// A face network of `fr-edge package` with frame input: frame.onnx, or a plan of
// `fr-edge build-engine --input frame`.
class FaceEmbedder {
 public:
  explicit FaceEmbedder(const std::string& model, int threads = 0);
  ~FaceEmbedder();

  // One embedding per face of a frame. Landmarks that are not finite are refused.
  std::vector<Embedding> embed(const Image& frame, const std::vector<Landmarks>& faces) const;

  // The embedding of a face that is aligned already, of the size and to the template of the contract.
  Embedding embed_crop(const Image& crop) const;

  // The JSON of the model's metadata "fr_edge.contract"; empty for a plan.
  const std::string& contract() const { return contract_; }

 private:
  std::unique_ptr<Network> network_;
  std::string contract_;
};

// The cosine of two embeddings, -1 to 1; the same person from the threshold that `fr-edge evaluate`
// gave for the bundle.
float compare(const Embedding& first, const Embedding& second);

// A bundle's detector: detector.onnx or a plan of it, and detector.txt. YuNet and SCRFD.
class FaceDetector {
 public:
  FaceDetector(const std::string& model, const std::string& settings, int threads = 0);
  ~FaceDetector();

  // The faces of a frame, the most confident first.
  std::vector<Face> detect(const Image& frame) const;

 private:
  struct Settings;
  std::unique_ptr<Network> network_;
  std::unique_ptr<Settings> settings_;
};

// A binary PPM file (P6, 8 bits).
Image read_ppm(const std::string& path);

}  // namespace fr_edge

#endif
