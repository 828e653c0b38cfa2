"""The teacher: a frozen network that embeds faces, from a bundle, an ONNX file or a checkpoint.

A teacher that does not load, or embeds different faces alike, stops the training: it is never
replaced by random weights.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from ..arrays import F32, U8
from ..bundle.bundle import open_bundle
from ..bundle.manifest import MANIFEST
from ..errors import ModelError, UsageError
from ..faces.contract import ALIGNED_SIZE, PRESETS, InputSpec, make_spec, preprocess, spec_from_text
from ..files import sha256
from ..graph.load import CONTRACT_KEY
from ..inference import make_session
from ..onnx_file import read_onnx
from ..trial_run import ensure_runnable
from .distributed import Ranks, computes_bf16, to_device
from .foreign.onnx_network import OnnxNetwork
from .networks import NETWORKS, usual_preset
from .student import normalised
from .weights import load_network

logger = logging.getLogger(__name__)

_BATCH = 64  # faces per run
_MIN_BF16_COSINE = 0.999  # of an embedding in bfloat16 to the same in float32
_MIN_TORCH_COSINE = 0.9999  # of an ONNX teacher's embedding in torch to that in onnxruntime
_MAX_COSINE = 0.9999  # of two different faces; above it they are embedded alike

_EmbedFaces = Callable[[U8], F32]


@dataclass(frozen=True)
class Teacher:
    """A frozen network that embeds faces.

    Attributes:
        where: The file or bundle, as the user named it.
        spec: Its input contract.
        dim: Embedding size.
        sha256: Of the file with the weights.
        embed: Aligned RGB faces `(N, 112, 112, 3) uint8` -> `(N, dim) float32`, unit length.
        device: Where it computes: "cpu" or "cuda".
        reduced: The same in bfloat16, to be compared first; None where it computes in float32 alone.
        precision: Of `embed`: "float32" or "bfloat16".
    """

    where: str
    spec: InputSpec
    dim: int
    sha256: str
    embed: _EmbedFaces
    device: str = "cpu"
    reduced: _EmbedFaces | None = None
    precision: str = "float32"


def open_teacher(
    source: str | Path, *, preset: str = "", arch: str = "", device: str = "cpu"
) -> Teacher:
    """Open a teacher.

    Args:
        source: A bundle, an ONNX file or a checkpoint.
        preset: Input contract of a file that carries none.
        arch: Network of a checkpoint that does not name it.
        device: Of torch. An ONNX file is computed by torch on a GPU, where torch knows its operators.

    Raises:
        UsageError: The input contract or the network is not known.
        ModelError: The file cannot be used.
        BundleError: The bundle holds no weights.
    """
    path = Path(source)
    spec = make_spec(preset) if preset else None
    if (path / MANIFEST).exists():
        bundle = open_bundle(path)
        spec = bundle.spec
        path = bundle.file("model.pt" if "model.pt" in bundle else "model.onnx")
    elif not path.is_file():
        fault = f"there is no teacher at {path}"
        if path.is_dir():
            fault = f"{path} is a folder, but not a bundle"
        raise ModelError(fault, "give a bundle, an ONNX file or a checkpoint")
    if path.suffix == ".onnx":
        run, reduced, spec, device = _onnx_runner(path, spec, device)
    else:
        try:
            network, name, _ = load_network(path, arch or None)
        except UsageError as error:
            if "--arch" not in error.hint:
                raise
            hint = f"--set teacher_arch=NAME, one of {', '.join(NETWORKS)}; or give its bundle"
            raise UsageError(error.message, hint) from error  # --arch is an option of `export`
        spec = spec or make_spec(usual_preset(name))
        run, reduced = _torch_runners(network.to(device), spec, device)
    embed = _embedder(run)
    probe = embed(np.zeros((1, ALIGNED_SIZE, ALIGNED_SIZE, 3), np.uint8))
    quick = None if reduced is None else _embedder(reduced)
    return Teacher(str(source), spec, probe.shape[1], sha256(path), embed, device, quick)


def check_teacher(teacher: Teacher, faces: U8) -> None:
    """Check that a teacher's embeddings are finite, not zero, and differ between people.

    Args:
        teacher: The teacher.
        faces: Aligned RGB faces of N different people, `(N, 112, 112, 3) uint8`.

    Raises:
        ModelError: They are not.
    """
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
        if cosine.min() > _MAX_COSINE:
            raise ModelError(
                f"teacher {teacher.where} embeds different faces alike (cosine {cosine.min():.5f})",
                "are its weights trained, and is its input contract the right one?",
            )


def choose_precision(teacher: Teacher, faces: U8, ranks: Ranks, begun: str = "") -> Teacher:
    """The teacher in bfloat16 where that changes nothing, else in float32: the same on all ranks.

    Every rank makes this call. Bfloat16 changes nothing when the cosine of each embedding to that in
    float32 is at least .999 on every rank.

    Args:
        teacher: As `open_teacher` gives it.
        faces: Aligned RGB faces, `(N, 112, 112, 3) uint8`, as different as those to be embedded.
        ranks: The processes.
        begun: Precision of embeddings that are to be continued; float32 stays. "" where there are none.
    """
    lowest = -1.0
    if teacher.reduced is not None and begun != "float32":
        lowest = float((teacher.embed(faces) * teacher.reduced(faces)).sum(1).min())
        if not lowest >= _MIN_BF16_COSINE:
            logger.warning("the teacher runs in float32: in bfloat16 a cosine is %.5f", lowest)
    differs = torch.tensor([0.0 if lowest >= _MIN_BF16_COSINE else 1.0], device=ranks.device)
    if bool(ranks.all_max(differs)) or teacher.reduced is None:
        return replace(teacher, reduced=None)
    return replace(teacher, embed=teacher.reduced, reduced=None, precision="bfloat16")


def _embedder(run: _EmbedFaces) -> _EmbedFaces:
    def embed(faces: U8) -> F32:
        parts = [run(faces[start : start + _BATCH]) for start in range(0, len(faces), _BATCH)]
        out = np.concatenate(parts).astype(np.float32)
        unit: F32 = out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        return unit

    return embed


def torch_runner(
    network: torch.nn.Module, spec: InputSpec, device: str, reduced: torch.dtype | None = None
) -> _EmbedFaces:
    """A function that runs a torch network.

    Args:
        network: In eval mode, on the device.
        spec: Its input contract. Faces go to the device as bytes where they have the input's size.
        device: Of torch.
        reduced: The type of autocast; None computes in float32.

    Returns:
        Aligned RGB faces `(N, S, S, 3) uint8` -> `(N, D) float32`.
    """
    kind = torch.device(device).type
    mean, std = (torch.tensor(values, device=device) for values in (spec.mean, spec.std))

    def run(faces: U8) -> F32:
        with torch.no_grad(), torch.autocast(kind, reduced, enabled=reduced is not None):
            if spec.channels == "GREY" or faces.shape[1:3] != (spec.height, spec.width):
                given = torch.from_numpy(preprocess(faces, spec)).to(device)
            else:
                pixels = to_device(faces, torch.device(device))
                pixels = pixels.flip(3) if spec.channels == "BGR" else pixels
                given = normalised(pixels, mean, std).contiguous()
            rows: F32 = network(given).float().cpu().numpy()
            return rows

    return run


def _torch_runners(
    network: torch.nn.Module, spec: InputSpec, device: str
) -> tuple[_EmbedFaces, _EmbedFaces | None]:
    """`torch_runner` in float32, and in bfloat16 on a GPU that computes in it."""
    exact = torch_runner(network, spec, device)
    if device != "cuda" or not computes_bf16():
        return exact, None
    return exact, torch_runner(network, spec, device, torch.bfloat16)


def _onnx_runner(
    path: Path, spec: InputSpec | None, device: str
) -> tuple[_EmbedFaces, _EmbedFaces | None, InputSpec, str]:
    model = read_onnx(path, side_files=True)
    ensure_runnable(model, str(path))
    own = {"device_id": torch.cuda.current_device()} if torch.cuda.is_available() else {}
    session = make_session(
        path,
        name=str(path),
        threads=torch.get_num_threads(),
        providers=(("CUDAExecutionProvider", own), ("CPUExecutionProvider", {})),
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

    def run(inputs: F32) -> Any:
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

    if device != "cpu" and (network := torch_of_onnx(model, run, spec, device)) is not None:
        return *_torch_runners(network, spec, device), spec, device
    contract = spec
    on_gpu = session.get_providers()[0] == "CUDAExecutionProvider"
    place = "cuda" if on_gpu else "cpu"
    return lambda faces: run(preprocess(faces, contract)), None, spec, place


def torch_of_onnx(
    model: ModelProto, run: Callable[[F32], Any], spec: InputSpec, device: str
) -> torch.nn.Module | None:
    """An ONNX network in torch, if it embeds random faces as onnxruntime does.

    Args:
        model: The network.
        run: Runs it in onnxruntime, `(N, 3, H, W) float32 -> (N, D)`.
        spec: Its input contract.
        device: Of torch.

    Returns:
        In eval mode on the device; None, with a warning, where torch does not know its operators or
        a cosine between the two is below .9999.
    """
    faces = np.random.default_rng(0).integers(0, 256, (4, ALIGNED_SIZE, ALIGNED_SIZE, 3), np.uint8)
    inputs = preprocess(faces, spec)
    try:
        network = OnnxNetwork(model).eval().to(device)
        with torch.no_grad():
            own = network(torch.from_numpy(inputs).to(device)).float().reshape(len(faces), -1)
    except ModelError as error:
        logger.warning("the teacher stays in onnxruntime: %s", error.message)
        return None
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        logger.warning("the teacher stays in onnxruntime: torch cannot run it: %s", error)
        return None
    wanted = torch.from_numpy(np.asarray(run(inputs), np.float32))
    if own.shape != wanted.shape:
        logger.warning("the teacher stays in onnxruntime: torch gives another shape")
        return None
    cosine = float(torch.nn.functional.cosine_similarity(own.cpu(), wanted).min())
    if not cosine >= _MIN_TORCH_COSINE:
        logger.warning("the teacher stays in onnxruntime: in torch a cosine is %.5f", cosine)
        return None
    return network
