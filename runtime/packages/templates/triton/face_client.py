"""Asks a Triton server that serves this package's models for embeddings.

pip install -r requirements.txt
"""

import numpy as np
import tritonclient.http as triton


class FaceClient:
    """A connection to a server.

    Attributes:
        url: Host and HTTP port.
    """

    def __init__(self, url: str = "localhost:8000") -> None:
        self.url = url
        self._client = triton.InferenceServerClient(url)

    def ready(self) -> bool:
        """Whether the server answers and has loaded the face networks."""
        models = ("embedder", "frame_embedder")
        return self._client.is_server_ready() and all(map(self._client.is_model_ready, models))

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        """Embeddings of aligned faces.

        Args:
            crops: `(N, S, S, 3) uint8`, RGB, S of the configuration; N at most its `max_batch_size`.

        Returns:
            `(N, D) float32`, of unit length.
        """
        return unit(self._ask("embedder", {"pixels": crops})["embedding"])

    def embed(self, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Embeddings of the faces of one frame.

        Args:
            frame: `(H, W, 3) uint8`, RGB.
            landmarks: `(N, 5, 2) float32`.

        Returns:
            `(N, D) float32`, of unit length.
        """
        inputs = {"frame": frame[None], "landmarks": landmarks.astype(np.float32)}
        return self._ask("frame_embedder", inputs)["embedding"]

    def recognise(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """The faces of a photograph: score, box, landmarks and embedding of each.

        Args:
            frame: `(H, W, 3) uint8`, RGB.
        """
        names = ("score", "box", "landmarks", "embedding")
        return self._ask("recognise", {"frame": frame}, names)

    def _ask(
        self, model: str, inputs: dict[str, np.ndarray], names: tuple[str, ...] = ("embedding",)
    ) -> dict[str, np.ndarray]:
        sent = []
        for name, array in inputs.items():
            kind = "UINT8" if array.dtype == np.uint8 else "FP32"
            sent.append(triton.InferInput(name, list(array.shape), kind))
            sent[-1].set_data_from_numpy(np.ascontiguousarray(array))
        answer = self._client.infer(model, sent)
        return {name: answer.as_numpy(name) for name in names}


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of unit length.

    Args:
        embeddings: `(N, D)`.
    """
    return embeddings / np.maximum(1e-12, np.linalg.norm(embeddings, axis=1, keepdims=True))
