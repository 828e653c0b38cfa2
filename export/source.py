"""Where a network comes from: a bundle, a checkpoint or an ONNX file.

Each becomes the network as ONNX, the original as a function to compare with, and its contract.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf.message import EncodeError
from onnx import ModelProto

from ..arrays import F32, F64
from ..bundle.bundle import open_bundle
from ..errors import ModelError, UsageError
from ..faces.contract import ALIGNED_SIZE, PRESETS, InputSpec
from ..faces.embedding_log import logged_network
from ..faces.sources import Faces
from ..files import real_path
from ..graph.load import contract_of, image_input
from ..graph.run import Embed, original_embedder
from ..graph.trained_ranges import read_trained_ranges
from ..onnx_file import read_onnx
from ..reading import open_file
from ..trial_run import ensure_runnable
from .canonicalize import tidy
from .contract_check import own_normalization
from .one_face import InterfaceOptions, takes_pixels
from .preprocessing_search import PreprocessingResult, rank_contracts
from .torch_network import (
    exact_embedder,
    is_torch_program,
    module_embedder,
    network_to_onnx,
    open_foreign_network,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSource:
    """What is exported.

    Attributes:
        kind: "pytorch" or "onnx".
        file: The checkpoint or ONNX file.
        model: The network as ONNX.
        embed: The original network, `(N, 3, H, W) float32 -> (N, D) float32`.
        spec: The input contract.
        save_weights: Writes the PyTorch weights, if the bundle is to get them.
        exact: The original in double precision, where it is PyTorch.
        ranges: Range of each dense layer's input, where the network was trained on INT8 rounding.
        search: How `spec` was found on faces; None where it is declared.
    """

    kind: str
    file: Path
    model: ModelProto
    embed: Embed
    spec: InputSpec
    save_weights: Callable[[Path], None] | None = None
    exact: Callable[[F32], F64] | None = None
    ranges: tuple[float, ...] = ()
    search: PreprocessingResult | None = None


@dataclass(frozen=True)
class SourceOptions:
    """What the caller declares of a source.

    Attributes:
        arch: The network's name.
        spec: The input contract.
        faces: Faces of known identity, to find the contract if it is not declared.
        weights: A part of the name of the weights that are meant, for a checkpoint with several.
        output: Name of the output that is the embedding, for an ONNX file.
        constants: Input -> its numbers, for inputs of an ONNX file besides the image.
    """

    arch: str | None = None
    spec: InputSpec | None = None
    faces: Faces | None = None
    weights: str | None = None
    output: str | None = None
    constants: Mapping[str, F32] = field(default_factory=dict)


def open_source(source: Path, out: Path, options: SourceOptions) -> ExportSource:
    """Read a source.

    Args:
        source: A bundle, a checkpoint or an ONNX file.
        out: The bundle that is written; weights that lie there are not saved again.
        options: What the caller declares.

    Returns:
        The network.

    Raises:
        UsageError: The options do not fit the source.
        ModelError: The file cannot be used.
        BundleError: The bundle cannot be used.
        MachineError: torch is missing for weights.
    """
    if source.is_dir():
        return _open_bundle_source(source, out, options)
    if not source.exists():
        raise ModelError(
            f"there is no model at {source}", "give a bundle, a checkpoint or an ONNX file"
        )
    if _is_checkpoint(source):
        if options.constants:
            raise UsageError(f"--constant is for ONNX files; {source} holds weights")
        if ":" in (options.arch or "") or is_torch_program(source):
            return _open_foreign(source, options)
        if options.output:
            raise UsageError(f"--output is for networks with several outputs; {source} has one")
        return _open_weights(source, options, keep=True)
    if options.arch is not None:
        raise UsageError(f"--arch {options.arch} is for PyTorch weights; {source} has none")
    if options.weights is not None:
        raise UsageError(
            f"--weights {options.weights} is for checkpoints; {source} is an ONNX file"
        )
    return _open_onnx(source, options)


def _is_checkpoint(path: Path) -> bool:
    if path.suffix.lower() in (".pt", ".pth", ".pt2", ".ckpt", ".safetensors"):
        return True
    if path.suffix.lower() == ".onnx":
        return False
    with open_file(path, None, ModelError) as stream:
        return stream.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # torch.save: new, old


def _open_bundle_source(source: Path, out: Path, options: SourceOptions) -> ExportSource:
    bundle = open_bundle(source)
    if options.arch is not None:
        raise UsageError(f"{source} names its own network", "leave --arch out")
    _check_same_contract(source, bundle.spec, options.spec)
    options = replace(options, spec=bundle.spec)
    if "model.pt" not in bundle and "model.onnx" in bundle:  # it was exported from an ONNX file
        return _open_onnx(bundle.file("model.onnx"), options, side_files=False)
    return _open_weights(bundle.file("model.pt"), options, keep=real_path(source) != real_path(out))


def _open_weights(path: Path, options: SourceOptions, *, keep: bool) -> ExportSource:
    from .torch_network import load_ranges, load_torch_network, saver

    network, name, dim = load_torch_network(path, options.arch, options.weights)
    embed = module_embedder(network)
    size = (ALIGNED_SIZE, ALIGNED_SIZE)
    spec, search = _declared_or_found(path, embed, size, options.spec, options)
    model = network_to_onnx(network, name, spec)
    ranges = load_ranges(path)
    save = saver(network, name, dim, ranges) if keep else None
    exact = exact_embedder(network)
    trained = tuple(ranges.values())
    return ExportSource("pytorch", path, model, embed, spec, save, exact, trained, search)


def _open_foreign(path: Path, options: SourceOptions) -> ExportSource:
    """A person's own network, TorchScript or a torch.export program; the bundle gets no weights."""
    declared = options.spec or InputSpec()
    network = open_foreign_network(path, options.arch, options.weights, options.output, declared)
    embed = module_embedder(network.module, network.batch)
    size = (declared.height, declared.width)
    spec, search = _declared_or_found(path, embed, size, options.spec, options)
    onnx_model = network_to_onnx(network.module, network.name, spec, network.batch or 2)
    if network.batch is not None:
        face = onnx_model.graph.input[0].type.tensor_type.shape.dim[0]
        face.ClearField("dim_param")
        face.dim_value = network.batch
    model = tidy(onnx_model, InterfaceOptions(size=size))
    return ExportSource("pytorch", path, model, embed, spec, search=search)


def _open_onnx(path: Path, options: SourceOptions, *, side_files: bool = True) -> ExportSource:
    given = read_onnx(path, side_files=side_files)
    ensure_runnable(given, str(path))
    interface = InterfaceOptions(options.output, options.constants)
    if options.spec:
        interface = replace(interface, size=(options.spec.height, options.spec.width))
    model = tidy(given, interface)
    face = image_input(model)
    try:
        embed = original_embedder(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{path} is larger than 2 GB: {error}") from error
    own = contract_of(model)
    _check_same_contract(path, own, options.spec)
    if own is None and options.spec is None:
        own = _pixels_in(path, given, model)
    size = (face.height or ALIGNED_SIZE, face.width or ALIGNED_SIZE)
    grey = face.channels == 1
    spec, search = _declared_or_found(path, embed, size, own or options.spec, options, grey=grey)
    if face.channels and face.channels != spec.shape[0]:
        raise UsageError(
            f"the network takes {'one channel' if grey else 'three channels'}, the contract says"
            f" {spec.channels}",
            "add --channels grey" if grey else "leave --channels grey out",
        )
    size = (face.height or spec.height, face.width or spec.width)
    if size != (spec.height, spec.width):
        raise UsageError(
            f"the network takes {size[0]}x{size[1]}, the contract says {spec.height}x{spec.width}",
            f"add --size {size[0]}x{size[1]}",
        )
    ranges = tuple(read_trained_ranges(given).values())
    return ExportSource("onnx", path, model, embed, spec, ranges=ranges, search=search)


def _pixels_in(path: Path, given: ModelProto, model: ModelProto) -> InputSpec | None:
    """The contract of a network that normalizes pixels 0..255 itself; None for any other."""
    own = own_normalization(model)
    if not takes_pixels(given) and (own is None or own.pixel_range != 255.0):
        return None
    raw = PRESETS["raw"]
    if model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 1:
        return replace(raw, channels="GREY")
    logger.info(
        "%s normalizes pixels itself: %s, the channels' order taken as RGB (else --preset raw"
        " --channels BGR)",
        path.name,
        raw.describe(),
    )
    return raw


def _declared_or_found(
    path: Path,
    embed: Embed,
    size: tuple[int, int],
    declared: InputSpec | None,
    options: SourceOptions,
    *,
    grey: bool = False,
) -> tuple[InputSpec, PreprocessingResult | None]:
    """The contract, and the search that it comes from where it is not declared."""
    if declared is not None:
        return declared, None
    search = _find_contract(path, embed, size, options, grey)
    return search.best.input, search


def _find_contract(
    path: Path, embed: Embed, size: tuple[int, int], options: SourceOptions, grey: bool
) -> PreprocessingResult:
    """The contracts on the faces, or an error that asks for a declaration."""
    why = f"{path} does not say how a face becomes its input (channel order, mean, std)"
    hint = (
        f"add --preset NAME, one of {', '.join(PRESETS)}, or --mean and --std, as the network was"
        " trained; or --faces SRC, a folder per identity, to find out"
    )
    if options.faces is None:
        raise UsageError(why, hint)
    shape = (1 if grey else 3, *size)
    with logged_network(embed, shape, options.faces, "contracts") as logged:
        result = rank_contracts(logged, size, options.faces, grey=grey)
    if not result.separates or result.best.view not in ("upright", "mirrored"):
        raise UsageError(
            f"{why}, and {options.faces.where} does not show it: {result.verdict}", hint
        )
    logger.info("%s: %s", path.name, result.verdict)
    return result


def _check_same_contract(path: Path, own: InputSpec | None, given: InputSpec | None) -> None:
    """A contract is written once; whether the output has unit length is measured, not declared."""
    if own and given and replace(given, l2_normalised=own.l2_normalised) != own:
        raise UsageError(
            f"{path} has its own input contract: {own.describe()}",
            "leave --preset, --mean, --std, --channels and --size out",
        )
