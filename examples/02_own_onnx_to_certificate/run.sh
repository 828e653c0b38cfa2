set -e
fr-edge export backbone.onnx --out mine.bundle --preset insightface
fr-edge calibrate mine.bundle --faces faces/calibration
fr-edge build-engine mine.bundle --int8
fr-edge verify mine.bundle --engine int8 --faces faces/judging
fr-edge benchmark mine.bundle --engine int8 --duration 2 --allow-invalid
fr-edge report mine.bundle
