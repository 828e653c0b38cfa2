// dnn_here FOLDER KIND: the golden faces of a package by OpenCV's DNN module; prints their lowest cosine.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <opencv2/dnn.hpp>
#include <sstream>
#include <string>
#include <vector>

int main(int, char** words) {
  const std::string folder = words[1], wanted = words[2];
  auto network = cv::dnn::readNetFromONNX(folder + "/" + wanted + ".onnx");
  std::ifstream lines(folder + "/golden/faces.txt");
  int count = 0;
  double lowest = 1;
  for (std::string line, kind, name; std::getline(lines, line);) {
    std::istringstream text(line);
    text >> kind >> name;
    if (kind != wanted) continue;
    std::ifstream stream(folder + "/golden/" + name, std::ios::binary);
    std::string data(std::istreambuf_iterator<char>(stream), {});
    const int planes[] = {1, 3, 112, 112}, pixels[] = {1, 112, 112, 3};
    const bool bytes = kind == "crop";
    const std::size_t size = 3 * 112 * 112 * (bytes ? 1 : sizeof(float));
    network.setInput(cv::Mat(4, bytes ? pixels : planes, bytes ? CV_8U : CV_32F,
                             data.data() + data.size() - size));
    const cv::Mat embedding = network.forward();
    double product = 0, length = 0;
    std::size_t at = 0;
    for (double expected; text >> expected; ++at) {
      const double value = embedding.ptr<float>()[at];
      product += value * expected;
      length += value * value;
    }
    if (at != embedding.total() || !(std::abs(length - 1) < 1e-5)) return 1;
    lowest = std::min(lowest, product);
    ++count;
  }
  std::printf("%d %.9f\n", count, lowest);
  return 0;
}
