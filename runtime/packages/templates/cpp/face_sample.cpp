// face_sample verify FOLDER            the golden faces against the bundle's embeddings; exit code 0 or 1
// face_sample compare FRAME.ppm FRAME.ppm   the cosine of the most confident faces of two frames
// face_sample detect FRAME.ppm         each face: score, box, landmarks
//
// `compare` and `detect` need detector.onnx and detector.txt, which the package has where the bundle has
// a detector. FOLDER is the package's; the other commands use the folder of the working directory.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "face_embedder.h"

namespace {

int verify(const std::string& folder) {
  const fr_edge::FaceEmbedder embedder(folder + "/frame.onnx");
  std::ifstream lines(folder + "/golden/faces.txt");
  if (!lines) throw std::runtime_error(folder + "/golden/faces.txt cannot be read");
  std::string line;
  double limit = 1, lowest = std::numeric_limits<double>::infinity();
  int count = 0;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string kind, name;
    words >> kind >> name;
    if (kind == "min_cosine") {
      if (!(std::istringstream(name) >> limit)) {
        throw std::runtime_error(folder + "/golden/faces.txt is damaged: " + line);
      }
      continue;
    }
    const fr_edge::Image image = fr_edge::read_ppm(folder + "/golden/" + name);
    fr_edge::Landmarks landmarks{};
    if (kind == "frame") {
      for (auto& value : landmarks) words >> value;
    }
    fr_edge::Embedding expected;
    for (float value; words >> value;) expected.push_back(value);
    const fr_edge::Embedding embedding =
        kind == "frame" ? embedder.embed(image, {landmarks})[0] : embedder.embed_crop(image);
    const double cosine = fr_edge::compare(embedding, expected);
    lowest = cosine >= lowest ? lowest : cosine;  // not a number stays so
    ++count;
  }
  const bool passed = count > 0 && lowest >= limit;
  std::printf("faces=%d min_cosine=%.9f limit=%g %s\n", count, lowest, limit,
              passed ? "PASSED" : "FAILED");
  return passed ? 0 : 1;
}

int detect(const std::string& path) {
  const fr_edge::FaceDetector detector("detector.onnx", "detector.txt");
  for (const auto& face : detector.detect(fr_edge::read_ppm(path))) {
    std::printf("%.5f", face.score);
    for (float value : face.box) std::printf(" %.3f", value);
    for (float value : face.landmarks) std::printf(" %.3f", value);
    std::printf("\n");
  }
  return 0;
}

int compare(const std::string& first, const std::string& second) {
  const fr_edge::FaceDetector detector("detector.onnx", "detector.txt");
  const fr_edge::FaceEmbedder embedder("frame.onnx");
  std::vector<fr_edge::Embedding> embeddings;
  for (const auto& path : {first, second}) {
    const fr_edge::Image frame = fr_edge::read_ppm(path);
    const auto faces = detector.detect(frame);
    if (faces.empty()) throw std::runtime_error(path + " shows no face");
    embeddings.push_back(embedder.embed(frame, {faces[0].landmarks})[0]);
  }
  std::printf("%.6f\n", fr_edge::compare(embeddings[0], embeddings[1]));
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const std::string command = count > 1 ? words[1] : "";
  try {
    if (command == "verify" && count == 3) return verify(words[2]);
    if (command == "detect" && count == 3) return detect(words[2]);
    if (command == "compare" && count == 4) return compare(words[2], words[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  std::fprintf(stderr,
               "usage: face_sample verify FOLDER | detect FRAME.ppm | compare FRAME.ppm FRAME.ppm\n");
  return 2;
}
