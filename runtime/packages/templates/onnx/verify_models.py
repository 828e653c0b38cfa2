"""Runs the golden faces through each model: python verify_models.py

Needs numpy and onnxruntime. Prints the lowest cosine to the bundle's embeddings; exit code 1 where it
is below the limit in golden/faces.txt.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent


def read_golden_input(path: Path) -> np.ndarray:
    """A PPM image as `(1, H, W, 3) uint8`, a .f32 file as a row of float32.

    Args:
        path: The file.
    """
    data = path.read_bytes()
    if path.suffix == ".f32":
        return np.frombuffer(data, "<f4")[None]
    width, height = map(int, data.split(maxsplit=3)[1:3])
    return np.frombuffer(data[-3 * width * height :], np.uint8).reshape(1, height, width, 3)


def check_models(folder: Path) -> tuple[int, float, float]:
    """How many golden faces there are over all models, the lowest cosine, and the limit.

    Args:
        folder: The package's.
    """
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    cosines, limit = [], 1.0
    for line in (folder / "golden" / "faces.txt").read_text(encoding="ascii").splitlines():
        kind, name, *texts = line.split()
        if kind == "min_cosine":
            limit = float(name)
            continue
        if kind not in sessions:
            options = onnxruntime.SessionOptions()
            options.add_session_config_entry("session.x64quantprecision", "1")
            sessions[kind] = onnxruntime.InferenceSession(
                str(folder / f"{kind}.onnx"), options, providers=["CPUExecutionProvider"]
            )
        inputs = sessions[kind].get_inputs()
        values = np.array(texts, np.float32)
        feeds = {inputs[0].name: read_golden_input(folder / "golden" / name)}
        if kind == "frame":
            feeds[inputs[1].name], values = values[:10].reshape(1, 5, 2), values[10:]
        elif kind == "tensor":
            feeds[inputs[0].name] = feeds[inputs[0].name].reshape(1, *inputs[0].shape[1:])
        embedding = sessions[kind].run(None, feeds)[0][0]
        cosines.append(float(embedding @ values))  # both have unit length
    return len(cosines), float(np.min(cosines)), limit  # NaN stays NaN


if __name__ == "__main__":
    count, lowest, least = check_models(FOLDER)
    passed = lowest >= least
    print(
        f"faces={count} min_cosine={lowest:.9f} limit={least:g} {'PASSED' if passed else 'FAILED'}"
    )
    sys.exit(0 if passed else 1)
