"""Runs the golden faces through the repository's ONNX models without a server: python verify_repository.py

Needs numpy and onnxruntime. Plans of TensorRT are not run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent

GoldenFace = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def read_golden_faces(folder: Path) -> tuple[list[GoldenFace], float]:
    """Kind, image, landmarks and the bundle's embedding of each golden face, and the limit.

    Args:
        folder: With faces.txt and the images.
    """
    faces, limit = [], 1.0
    for line in (folder / "faces.txt").read_text(encoding="ascii").splitlines():
        kind, name, *texts = line.split()
        if kind == "min_cosine":
            limit = float(name)
            continue
        data, values = (folder / name).read_bytes(), np.array(texts, np.float32)
        width, height = map(int, data.split(maxsplit=3)[1:3])
        image = np.frombuffer(data[-3 * width * height :], np.uint8).reshape(height, width, 3)
        points = 10 if kind == "frame" else 0
        faces.append((kind, image, values[:points].reshape(-1, 5, 2), values[points:]))
    return faces, limit


def repository_cosines(folder: Path) -> Iterator[tuple[str, float]]:
    """The model and the cosine of each golden face that a model in ONNX answers.

    Args:
        folder: The package's.
    """
    import onnxruntime

    sessions = {}
    for kind, image, landmarks, expected in read_golden_faces(folder / "golden")[0]:
        model = {"crop": "embedder", "frame": "frame_embedder"}[kind]
        path = folder / "models" / model / "1" / "model.onnx"
        if not path.is_file():
            continue
        if model not in sessions:
            options = onnxruntime.SessionOptions()
            options.add_session_config_entry("session.x64quantprecision", "1")
            sessions[model] = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        feeds = {"pixels": image[None]}
        if kind == "frame":
            feeds = {"frame": image[None], "landmarks": landmarks}
        own = sessions[model].run(["embedding"], feeds)[0][0]
        yield model, float(own @ expected)


if __name__ == "__main__":
    cosines = [cosine for _, cosine in repository_cosines(FOLDER)]
    lowest, least = float(np.min(cosines)), read_golden_faces(FOLDER / "golden")[1]
    passed = lowest >= least
    print(
        f"faces={len(cosines)} min_cosine={lowest:.9f} limit={least:g}"
        f" {'PASSED' if passed else 'FAILED'}"
    )
    sys.exit(0 if passed else 1)
