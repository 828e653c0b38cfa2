// align_here FRAME.ppm WIDTH HEIGHT x0 y0 ... (ten landmarks, ten of the template): the aligned face as bytes.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "face_alignment.h"

int main(int, char** words) {
  std::ifstream stream(words[1], std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  const std::string data = text.str();
  int width = 0, height = 0;
  std::sscanf(data.c_str(), "P6 %d %d", &width, &height);
  const auto* pixels = reinterpret_cast<const unsigned char*>(data.data()) + data.size() - 3 * width * height;
  float points[10], target[10];
  for (int i = 0; i < 10; ++i) {
    points[i] = std::strtof(words[4 + i], nullptr);
    target[i] = std::strtof(words[14 + i], nullptr);
  }
  const auto place = fr_edge::place_face(points, target);
  if (!place.possible) return 3;
  for (int row = 0; row < std::atoi(words[3]); ++row) {
    for (int column = 0; column < std::atoi(words[2]); ++column) {
      for (int c = 0; c < 3; ++c) {
        std::putchar(static_cast<int>(
            fr_edge::sample_face(pixels, width, height, 3 * width, 3, c, place, column, row)));
      }
    }
  }
  return 0;
}
