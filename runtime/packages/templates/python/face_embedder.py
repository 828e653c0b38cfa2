"""Embeds and compares faces with onnxruntime and numpy; of this folder it needs `frame.onnx` alone.

    from face_embedder import FrameEmbedder, compare_faces

    embedder = FrameEmbedder("frame.onnx")
    one, other = embedder.embed(frame, landmarks)   # RGB (H, W, 3) uint8, (2, 5, 2) float32
    print(compare_faces(one, other))                      # a cosine

Alignment, channel order, mean and std are inside the model.
"""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent


class FrameEmbedder:
    """An open model.

    Attributes:
        contract: What the model takes and gives: its metadata "fr_edge.contract".
        dim: Numbers per embedding.
    """

    def __init__(self, model: str | Path = FOLDER / "frame.onnx", threads: int = 0) -> None:
        """Open the model; `threads` 0 takes one per core."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if _sums_overflow():
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(model), options, providers=providers)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.contract: dict[str, Any] = json.loads(metadata["fr_edge.contract"])
        if self.contract["schema"] != 1 or self.contract["kind"] != "frame":
            raise ValueError(f"{model} does not take frames with landmarks")
        self.dim: int = self.contract["output"]["dim"]

    def embed(self, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Embed the faces of one image.

        Args:
            frame: `(H, W, 3) uint8`, RGB.
            landmarks: `(N, 5, 2)`: x, y in pixels of the eyes, nose tip and mouth corners, what is
                left in the image first.

        Returns:
            `(N, D) float32`, of unit length.
        """
        points = np.ascontiguousarray(landmarks, np.float32)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"expected a frame (H, W, 3) uint8, found {frame.shape} {frame.dtype}")
        if points.shape[1:] != (5, 2) or not np.isfinite(points).all():
            raise ValueError(f"expected finite landmarks (N, 5, 2), found {points.shape}")
        step = self.contract["faces_per_run"] or max(1, len(points))
        parts = [
            self._session.run(None, {"frame": frame[None], "landmarks": points[i : i + step]})[0]
            for i in range(0, len(points), step)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        """Embed faces that are aligned already.

        Args:
            crops: `(N, S, S, 3) uint8`, RGB, of the contract's size and aligned to its template.

        Returns:
            `(N, D) float32`, of unit length.
        """
        template = np.array(self.contract["template"], np.float32)[None]
        parts = [self.embed(crop, template) for crop in crops]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)


def compare_faces(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine of two embeddings.

    Args:
        first: `(D,)`.
        second: `(D,)`.

    Returns:
        -1 to 1; the same person from the threshold that `fr-edge evaluate` gave for the bundle.
    """
    return float(first @ second / max(1e-12, np.linalg.norm(first) * np.linalg.norm(second)))


def _sums_overflow() -> bool:
    """Whether this CPU adds 8-bit products in 16 bits: x86 without VNNI, where the exact way is asked for."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return True
    return not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}
