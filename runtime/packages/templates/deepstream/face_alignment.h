// Alignment of one face, for CPU and GPU: the arithmetic of fr-edge's frame engine.
#ifndef FR_EDGE_FACE_ALIGNMENT_H
#define FR_EDGE_FACE_ALIGNMENT_H

#include <cmath>

#ifdef __CUDACC__
#define FR_EDGE_BOTH __host__ __device__
#else
#define FR_EDGE_BOTH
#endif

namespace fr_edge {

// Where a pixel (column, row) of the aligned face lies in the frame:
// x = a * column + b * row + x0, y = -b * column + a * row + y0.
struct FacePlace {
  float a, b, x0, y0;
  bool possible;  // false for landmarks in one place or not finite
};

// The inverse of the least-squares similarity transform from five landmarks to a template, x before y.
FR_EDGE_BOTH inline FacePlace place_face(const float* points, const float* target) {
  float mean[2] = {0, 0}, middle[2] = {0, 0};
  for (int i = 0; i < 10; ++i) {
    mean[i % 2] += points[i] / 5;
    middle[i % 2] += target[i] / 5;
  }
  // With points as complex numbers: u + iv = sum(conj(x) y), p = sum(|x|^2).
  float u = 0, v = 0, p = 0;
  for (int i = 0; i < 5; ++i) {
    const float x = points[2 * i] - mean[0], y = points[2 * i + 1] - mean[1];
    const float s = target[2 * i] - middle[0], t = target[2 * i + 1] - middle[1];
    u += x * s + y * t;
    v += x * t - y * s;
    p += x * x + y * y;
  }
  const float scale = p / (u * u + v * v);
  const float a = u * scale, b = v * scale;
  const bool possible = p > 1 && p < 1e12f && scale > 0 && scale < 1e12f;
  return {a, b, mean[0] - a * middle[0] - b * middle[1], mean[1] + b * middle[0] - a * middle[1],
          possible};
}

FR_EDGE_BOTH inline float round_half_up(float value) { return std::floor(value + 0.5f); }

// One channel of the aligned face at a place: bilinear at 1/32 of a pixel, whole grey levels, black
// outside. `pixels` has `step` bytes a pixel and `pitch` bytes a row.
FR_EDGE_BOTH inline float sample_face(const unsigned char* pixels, int width, int height, int pitch,
                                      int step, int channel, const FacePlace& place, int column,
                                      int row) {
  const float fine = 1024, coarse = 32;  // as OpenCV's warpAffine rounds
  const float x = round_half_up((round_half_up(place.a * column * fine) +
                                 round_half_up((place.b * row + place.x0) * fine)) / coarse) / coarse;
  const float y = round_half_up((round_half_up(-place.b * column * fine) +
                                 round_half_up((place.a * row + place.y0) * fine)) / coarse) / coarse;
  const float left = std::floor(x), top = std::floor(y), right = x - left, below = y - top;
  float sum = 0;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 2; ++i) {
      const float px = left + i, py = top + j;
      if (!(px >= 0 && px < width && py >= 0 && py < height)) continue;
      const float weight = (i ? right : 1 - right) * (j ? below : 1 - below);
      sum += weight * pixels[static_cast<int>(py) * static_cast<long>(pitch) +
                             static_cast<int>(px) * step + channel];
    }
  }
  return round_half_up(sum);
}

}  // namespace fr_edge

#endif
