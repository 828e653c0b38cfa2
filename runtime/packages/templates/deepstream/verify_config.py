"""Checks the numbers in embedder_infer.txt and preprocess.txt: python verify_config.py

Golden faces become tensors by DeepStream's formula, net-scale-factor * (pixel - offset) in the order of
model-color-format; tensor.onnx embeds them, and the embeddings are compared with the bundle's. Needs numpy and
onnxruntime. Neither DeepStream nor a plan of TensorRT is run.
"""

import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent


def nvinfer_tensor(image: np.ndarray, config: ConfigParser) -> np.ndarray:
    """What nvinfer makes of an aligned face.

    Args:
        image: `(S, S, 3) uint8`, RGB.
        config: Of nvinfer.

    Returns:
        `(1, 3, H, W) float32`.
    """
    section = config["property"]
    _, height, width = map(int, section["infer-dims"].split(";"))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    crop = image[top : top + height, left : left + width]
    if section["model-color-format"] == "1":
        crop = crop[..., ::-1]
    offsets = np.array(section["offsets"].split(";"), np.float32)
    scale = np.float32(section["net-scale-factor"])
    return np.ascontiguousarray((scale * (crop - offsets)).transpose(2, 0, 1)[None], np.float32)


def check_numbers(folder: Path) -> tuple[int, float, float]:
    """How many golden faces there are, the lowest cosine, and the limit.

    Args:
        folder: The package's.
    """
    config, preprocess = ConfigParser(), ConfigParser()
    config.read(folder / "embedder_infer.txt")
    preprocess.read(folder / "preprocess.txt")
    written = config["property"], preprocess["user-configs"]
    for name, other in (("net-scale-factor", "pixel-normalization-factor"), ("offsets", "offsets")):
        if written[0][name] != written[1][other]:
            raise ValueError(f"{name} in embedder_infer.txt and preprocess.txt differ")
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(folder / "tensor.onnx"), providers=providers)
    cosines, limit = [], 1.0
    for line in (folder / "golden" / "faces.txt").read_text(encoding="ascii").splitlines():
        kind, name, *texts = line.split()
        if kind == "min_cosine":
            limit = float(name)
            continue
        data = (folder / "golden" / name).read_bytes()
        width, height = map(int, data.split(maxsplit=3)[1:3])
        image = np.frombuffer(data[-3 * width * height :], np.uint8).reshape(height, width, 3)
        tensor = nvinfer_tensor(image, config)
        embedding = session.run(None, {session.get_inputs()[0].name: tensor})[0][0]
        cosines.append(float(embedding @ np.array(texts, np.float32)))
    return len(cosines), float(np.min(cosines)), limit  # NaN stays NaN


if __name__ == "__main__":
    count, lowest, least = check_numbers(FOLDER)
    passed = lowest >= least
    print(
        f"faces={count} min_cosine={lowest:.9f} limit={least:g} {'PASSED' if passed else 'FAILED'}"
    )
    sys.exit(0 if passed else 1)
