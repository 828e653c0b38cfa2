set -e
fr-edge package mine.bundle --for onnx --out onnx.package
fr-edge verify --package onnx.package
fr-edge package mine.bundle --for cpp --out cpp.package
if [ -n "${ONNXRUNTIME_ROOT:-}" ]; then
    fr-edge verify --package cpp.package
else
    echo "cpp.package was not compiled: ONNXRUNTIME_ROOT names no ONNX Runtime"
fi
