"""Where a network comes from: a bundle, a checkpoint or somebody's ONNX file.

Each becomes the network as ONNX, the original as a function to compare with, and its contract.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf.message import EncodeError
from onnx import ModelProto

from ..arrays import F32
from ..bundle.bundle import open_bundle
from ..errors import ModelError, UsageError
from ..faces.contract import ALIGNED_SIZE, PRESETS, InputSpec
from ..faces.sources import Faces
from ..graph.load import contract_of, image_input, read_onnx
from ..graph.run import Embed, original_embedder
from ..graph.trained_ranges import read_trained_ranges
from .canonicalize import tidy
from .preprocessing_search import find_preprocessing_of
from .torch_network import exact_embedder, module_embedder


@dataclass(frozen=True)
class ExportSource:
    """What is exported. `kind` is "pytorch" or "onnx"; `embed` is the original as a function, and
    `exact` that in double precision, where there is one."""

    kind: str
    file: Path
    model: ModelProto
    embed: Embed
    spec: InputSpec
    save_weights: Callable[[Path], None] | None = None
    exact: Callable[[F32], npt.NDArray[np.float64]] | None = None
    ranges: tuple[float, ...] = ()
    """Of each dense layer's input, where the network was trained on INT8's rounding."""


@dataclass(frozen=True)
class SourceOptions:
    """What the caller says of the source: the network's name, the contract, faces to find it."""

    arch: str | None = None
    spec: InputSpec | None = None
    faces: Faces | None = None
    notify: Callable[[str], None] = lambda _: None


def open_source(source: Path, out: Path, told: SourceOptions) -> ExportSource:
    """Read a source; weights are kept for `out` unless it is where they already lie.

    Raises UsageError when what is told does not fit, ModelError or BundleError when the file cannot
    be used, MachineError when torch is missing for weights.
    """
    if source.is_dir():
        return _from_bundle(source, out, told)
    if not source.exists():
        raise ModelError(
            f"there is no model at {source}", "give a bundle, a checkpoint or an ONNX file"
        )
    if _is_checkpoint(source):
        return _weights(source, told, keep=True)
    if told.arch is not None:
        raise UsageError(f"--arch {told.arch} is for PyTorch weights; {source} is none")
    return _from_onnx(source, told)


def _is_checkpoint(path: Path) -> bool:
    if path.suffix.lower() in (".pt", ".pth", ".ckpt", ".safetensors"):
        return True
    if path.suffix.lower() == ".onnx":
        return False
    with path.open("rb") as stream:
        return stream.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # torch.save: new, old


def _from_bundle(source: Path, out: Path, told: SourceOptions) -> ExportSource:
    bundle = open_bundle(source)
    if told.arch is not None:
        raise UsageError(f"{source} names its own network", "leave --arch out")
    _agree(source, bundle.spec, told.spec)
    told = replace(told, spec=bundle.spec)
    if "model.pt" not in bundle and "model.onnx" in bundle:  # it came from somebody's ONNX
        return _from_onnx(bundle.file("model.onnx"), told)
    return _weights(bundle.file("model.pt"), told, keep=source.resolve() != out.resolve())


def _weights(path: Path, told: SourceOptions, *, keep: bool) -> ExportSource:
    from .torch_network import load_ranges, load_torch_network, network_to_onnx, saver

    network, name, dim = load_torch_network(path, told.arch)
    embed = module_embedder(network)
    spec = told.spec or _found(path, embed, (ALIGNED_SIZE, ALIGNED_SIZE), told)
    model = network_to_onnx(network, name, spec)
    ranges = load_ranges(path)
    save = saver(network, name, dim, ranges) if keep else None
    exact = exact_embedder(network)
    return ExportSource("pytorch", path, model, embed, spec, save, exact, tuple(ranges.values()))


def _from_onnx(path: Path, told: SourceOptions) -> ExportSource:
    given = read_onnx(path)
    model = tidy(given)
    face = image_input(model)
    try:
        embed = original_embedder(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{path} is larger than 2 GB: {error}") from error
    own = contract_of(model)
    _agree(path, own, told.spec)
    size = (face.height or ALIGNED_SIZE, face.width or ALIGNED_SIZE)
    spec = own or told.spec or _found(path, embed, size, told)
    size = (face.height or spec.height, face.width or spec.width)
    if size != (spec.height, spec.width):
        raise UsageError(
            f"the network takes {size[0]}x{size[1]}, the contract says {spec.height}x{spec.width}",
            f"add --size {size[0]}x{size[1]}",
        )
    return ExportSource(
        "onnx", path, model, embed, spec, ranges=tuple(read_trained_ranges(given).values())
    )


def _found(path: Path, embed: Embed, size: tuple[int, int], told: SourceOptions) -> InputSpec:
    """The contract that the faces show, or an error that asks for it."""
    why = f"{path} does not say how a face becomes its input (channel order, mean, std)"
    hint = (
        f"add --preset NAME, one of {', '.join(PRESETS)}, or --mean and --std, as whoever trained"
        " it says; or --faces SRC, a folder per identity, to find out"
    )
    if told.faces is None:
        raise UsageError(why, hint)
    found = find_preprocessing_of(embed, size, told.faces)
    if not found.separates or found.best.view not in ("upright", "mirrored"):
        raise UsageError(f"{why}, and {told.faces.where} does not show it: {found.verdict}", hint)
    told.notify(f"{path.name}: {found.verdict}")
    return found.best.spec


def _agree(path: Path, own: InputSpec | None, told: InputSpec | None) -> None:
    """A contract is written once; whether the output has unit length is measured, not told."""
    if own and told and replace(told, l2_normalised=own.l2_normalised) != own:
        raise UsageError(
            f"{path} has its own input contract: {own.describe()}",
            "leave --preset, --mean, --std, --channels and --size out",
        )
