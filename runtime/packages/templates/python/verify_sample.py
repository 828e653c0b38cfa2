"""Embeds the golden faces and compares them with the bundle's embeddings: python verify_sample.py

Prints the lowest cosine; exit code 1 where it is below the limit in golden/faces.txt.
"""

import sys
from pathlib import Path

import numpy as np
from face_embedder import FOLDER, FrameEmbedder, compare_faces


def read_ppm(path: Path) -> np.ndarray:
    """A binary PPM image as `(H, W, 3) uint8`, RGB.

    Args:
        path: The file.
    """
    data = path.read_bytes()
    width, height = map(int, data.split(maxsplit=3)[1:3])
    return np.frombuffer(data[-3 * width * height :], np.uint8).reshape(height, width, 3)


def check_sample(folder: Path) -> tuple[int, float, float]:
    """How many golden faces there are, the lowest cosine, and the limit.

    Args:
        folder: The package's.
    """
    embedder, cosines, limit = FrameEmbedder(folder / "frame.onnx"), [], 1.0
    for line in (folder / "golden" / "faces.txt").read_text(encoding="ascii").splitlines():
        kind, name, *texts = line.split()
        if kind == "min_cosine":
            limit = float(name)
            continue
        image, values = read_ppm(folder / "golden" / name), np.array(texts, np.float32)
        if kind == "crop":
            embedding = embedder.embed_crops(image[None])[0]
        else:
            embedding = embedder.embed(image, values[:10].reshape(1, 5, 2))[0]
            values = values[10:]
        cosines.append(compare_faces(embedding, values))
    return len(cosines), float(np.min(cosines)), limit  # NaN stays NaN


if __name__ == "__main__":
    count, lowest, least = check_sample(FOLDER)
    passed = lowest >= least
    print(
        f"faces={count} min_cosine={lowest:.9f} limit={least:g} {'PASSED' if passed else 'FAILED'}"
    )
    sys.exit(0 if passed else 1)
