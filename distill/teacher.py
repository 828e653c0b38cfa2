"""The teacher: a frozen network that embeds faces, from a bundle, an ONNX file or a checkpoint.

A teacher that does not load, or embeds two different faces alike, stops the run: it is never
random. Knows nothing of training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..bundle.bundle import open_bundle
from ..bundle.manifest import MANIFEST
from ..errors import ModelError, UsageError
from ..faces.contract import ALIGNED_SIZE, PRESETS, InputSpec, make_spec, preprocess, spec_from_text
from ..files import sha256
from ..inference import make_session
from .weights import load_network

CONTRACT_KEY = "fr_edge.input"

_BATCH = 64

_ALIKE = 0.9999
"""Cosine above which two faces count as embedded alike."""

Embed = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Teacher:
    """`embed`: aligned RGB faces `(N, 112, 112, 3) uint8 -> (N, dim) float32`, unit length."""

    where: str
    spec: InputSpec
    dim: int
    sha256: str
    """Of the file with the weights."""
    embed: Embed


def open_teacher(
    source: str | Path, *, preset: str = "", arch: str = "", device: str = "cpu"
) -> Teacher:
    """A teacher from a bundle, an ONNX file, or a checkpoint (`arch` names its network).

    `preset` is the contract of a file that carries none. Raises UsageError where one is missing,
    ModelError for a file that cannot be used, BundleError for a bundle without weights.
    """
    path = Path(source)
    spec = make_spec(preset) if preset else None
    if (path / MANIFEST).exists():
        bundle = open_bundle(path)
        spec = bundle.spec
        path = bundle.file("model.onnx" if "model.onnx" in bundle else "model.pt")
    elif not path.is_file():
        raise ModelError(
            f"there is no teacher at {path}", "give a bundle, an ONNX file or a checkpoint"
        )
    if path.suffix == ".onnx":
        found, spec = _onnx(path, spec)
    else:
        network, name, _ = load_network(path, arch or None)
        # fr-edge's own networks are trained with this contract, in every layout it reads.
        spec = spec or make_spec("insightface")
        found = _torch(network.to(device), device)
    embed = _embedder(found, spec)
    probe = embed(np.zeros((1, ALIGNED_SIZE, ALIGNED_SIZE, 3), np.uint8))
    return Teacher(str(source), spec, probe.shape[1], sha256(path), embed)


def check_teacher(teacher: Teacher, faces: npt.NDArray[np.uint8]) -> None:
    """Raises ModelError when faces `(N, 112, 112, 3)` of different people are embedded alike, or
    one of them as nothing at all."""
    embeddings = teacher.embed(faces)
    if not np.isfinite(embeddings).all():
        raise ModelError(f"teacher {teacher.where} gives NaN or infinite embeddings")
    if not np.linalg.norm(embeddings, axis=1).all():
        raise ModelError(
            f"teacher {teacher.where} gives embeddings that are all zeros",
            "are its weights trained?",
        )
    if len(faces) > 1:
        cosine = (embeddings @ embeddings.T)[np.triu_indices(len(faces), 1)]
        if cosine.min() > _ALIKE:
            raise ModelError(
                f"teacher {teacher.where} embeds different faces alike (cosine {cosine.min():.5f})",
                "are its weights trained, and is its input contract the right one?",
            )


def _embedder(run: Callable[[Any], Any], spec: InputSpec) -> Embed:
    def embed(faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        parts = [
            run(preprocess(faces[start : start + _BATCH], spec))
            for start in range(0, len(faces), _BATCH)
        ]
        out = np.concatenate(parts).astype(np.float32)
        unit: npt.NDArray[np.float32] = out / np.maximum(
            np.linalg.norm(out, axis=1, keepdims=True), 1e-12
        )
        return unit

    return embed


def _torch(network: torch.nn.Module, device: str) -> Callable[[Any], Any]:
    def run(inputs: npt.NDArray[np.float32]) -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(inputs).to(device)).float().cpu().numpy()

    return run


def _onnx(path: Path, spec: InputSpec | None) -> tuple[Callable[[Any], Any], InputSpec]:
    session = make_session(
        path,
        name=str(path),
        threads=torch.get_num_threads(),
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    )
    text = session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
    spec = spec or (spec_from_text(text) if text else None)
    if spec is None:
        raise UsageError(
            f"{path} does not say how faces become its input",
            f"--set teacher_preset=NAME ({', '.join(PRESETS)}), or export it into a bundle first",
        )
    face = session.get_inputs()[0]
    fixed = face.shape[0] if isinstance(face.shape[0], int) else 0

    def run(inputs: npt.NDArray[np.float32]) -> Any:
        size = fixed or len(inputs)
        parts = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            short = size - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], short, 0)]) if short else part
            try:
                out = session.run(None, {face.name: full})[0]
            except Exception as error:
                raise ModelError(f"{path} does not run on faces: {error}") from error
            parts.append(out.reshape(size, -1)[: len(part)])
        return np.concatenate(parts)

    return run, spec
