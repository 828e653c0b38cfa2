"""PyTorch weights on disk: read without running code that a file holds, and written.

Reads fr-edge's `model.pt` and bare state dicts, also inside a trainer's dictionary or with the name
prefixes of wrappers.
"""

import logging
import math
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import MachineError, ModelError, UsageError, install_hint
from ..onnx_file import other_file
from ..reading import check_limit, open_file
from .checkpoint_layouts import choose_weights, nearest_layout, to_our_names
from .networks import NETWORKS, build_network, network_name
from .published_networks import edgeface_of

logger = logging.getLogger(__name__)

_MAX_NAMES = 4  # of a kind in an error
_MAX_DIM = 4096

_LAST_LAYERS = (  # whose rows are the embedding's numbers
    *("embed.weight", "last_linear.weight", "head.fc.linear2.weight", "head.fc.weight"),
)


def load_network(
    path: Path, arch: str | None = None, weights: str | None = None
) -> tuple[nn.Module, str, int]:
    """Load a network from a checkpoint.

    Args:
        path: fr-edge's `model.pt`, which names its network; a state dict in a layout of
            `checkpoint_layouts`; or one under fr-edge's names.
        arch: Name of the network; needed for the last form.
        weights: A part of the name of the set that is meant, where a file holds several.

    Returns:
        The network in eval mode, its name, and its embedding size.

    Raises:
        UsageError: The network's name is not known, or the file holds several sets of weights.
        ModelError: The file holds no weights, holds code, or holds another network's weights.
    """
    content = load_tensors(path)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a state dict")
    chosen = choose_weights(path, content, weights)
    state = chosen.state
    if chosen.label:
        logger.debug("%s: the weights under %s", path, chosen.label)
    named = content.get("network")
    if converted := to_our_names(state):
        named, state = converted
    elif edgeface := edgeface_of(state):
        named = edgeface
    if arch is None and not isinstance(named, str):
        raise _unknown_layout(path, state)
    name = network_name(arch or str(named))
    dim = content.get("dim")
    if not isinstance(dim, int) or not 0 < dim <= _MAX_DIM:
        dim = 512
    embed = next((state[key] for key in _LAST_LAYERS if key in state), None)
    if embed is not None and embed.ndim == 2:
        dim = int(embed.shape[0])
        if not 0 < dim <= _MAX_DIM:
            raise ModelError(f"{path}: its embeddings have {dim:,} numbers, at most {_MAX_DIM:,}")
    network = build_network(name, dim)
    fill_network(path, name, network, state)
    return network.eval(), name, dim


def load_into(path: Path, name: str, network: nn.Module, weights: str | None = None) -> nn.Module:
    """Load a checkpoint into somebody's own network.

    Args:
        path: A checkpoint. A prefix of all names, and weights of other parts beside the network's,
            are left out where the network's first name tells it.
        name: What errors call the network.
        network: The network; it is changed.
        weights: A part of the name of the set that is meant, where the file holds several.

    Returns:
        The network in eval mode.

    Raises:
        UsageError: The file holds several sets of weights.
        ModelError: The file holds no weights, or they are not the network's; the message counts
            what does not fit.
    """
    content = load_tensors(path)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a state dict")
    anchors = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    chosen = choose_weights(path, content, weights, anchors[:1])
    fill_network(path, name, network, chosen.state)
    return network.eval()


def _unknown_layout(path: Path, state: Mapping[str, Tensor]) -> UsageError:
    """The error for weights that do not tell their network: what is nearest to them."""
    why = f"{path} does not say which network its weights belong to"
    known = f"one of {', '.join(NETWORKS)}"
    if "features.0.0.weight" in state and "embed.weight" in state:  # fr-edge's own names
        return UsageError(why, f"name it: --arch NAME, {known}")
    names = list(state)
    while len(names) > 1 and len({name.partition(".")[0] for name in names}) == 1:
        names = [name.partition(".")[2] for name in names]
    label, shared = nearest_layout(names)
    near = (
        f"the nearest is {label}, with {shared} of its {len(names)} names"
        if shared * 4 >= len(names)
        else f"none is near to names such as {', '.join(names[:2])}"
    )
    return UsageError(
        f"{why}, and their layout is not known; {near}",
        "give the code of the network, --arch FILE.py:FUNCTION, which runs that file; or its name,"
        f" {known}",
    )


def save_network(
    path: Path,
    state: Mapping[str, Tensor],
    name: str,
    dim: int,
    ranges: Mapping[str, float] | None = None,
) -> None:
    """Write `model.pt`.

    Args:
        path: The file.
        state: State dict.
        name: The network's name.
        dim: Embedding size.
        ranges: Of a network trained on INT8's rounding: dense layer -> amax of its input, in the
            order in which the layers compute.
    """
    extra = {"ranges": dict(ranges)} if ranges else {}
    torch.save({"network": name, "dim": dim, "state": dict(state), **extra}, path)


def trained_ranges(path: Path) -> dict[str, float]:
    """The INT8 ranges that a network was trained with.

    Args:
        path: A checkpoint.

    Returns:
        Dense layer -> amax of its input; empty where there are none.

    Raises:
        ModelError: They are not positive numbers.
    """
    content = load_tensors(path)
    ranges = content.get("ranges", {}) if isinstance(content, Mapping) else {}
    if not isinstance(ranges, Mapping) or not all(
        isinstance(value, float) and 0.0 < value < math.inf for value in ranges.values()
    ):
        raise ModelError(f"{path}: the INT8 ranges are not positive numbers", "train it again")
    return {str(name): value for name, value in ranges.items()}


def load_tensors(path: Path) -> Any:
    """The content of a torch or safetensors file: tensors and plain values only.

    Args:
        path: The file.

    Raises:
        ModelError: It does not exist, is damaged, or holds code.
        MachineError: safetensors is not installed.
    """
    if not path.is_file():
        raise ModelError(f"there is no checkpoint at {path}")
    if path.suffix.lower() == ".safetensors":
        return _safetensors(path)
    try:
        stream = open_file(path, "WEIGHTS_MB", ModelError)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with stream:
                _check_archive(path, stream)
                return torch.load(stream, map_location="cpu", weights_only=True)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # unpickling damaged data raises nearly anything
        # A pickle that calls something, or one that torch.save did not write.
        if "GLOBAL" in str(error) or ("operand" in str(error) and _beginning(path)[:1] == b"\x80"):
            raise ModelError(
                f"{path} holds more than weights, and reading it could run code: refused",
                "save the weights alone: torch.save(model.state_dict(), FILE)",
            ) from error
        kind = other_file(_beginning(path))
        if kind and kind[0] not in ("a zip archive", "a pickle"):
            raise ModelError(
                f"{path} is {kind[0]}; expected a PyTorch checkpoint", kind[1]
            ) from error
        # torch's own message recommends weights_only=False, which would run the code.
        raise ModelError(
            f"{path} is not a PyTorch checkpoint, or is damaged",
            "expected what torch.save writes; download or copy the file again",
        ) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MachineError(
            f"reading {path.name} needs safetensors", install_hint("train")
        ) from error
    try:
        with open_file(path, "WEIGHTS_MB", ModelError):
            return load_file(path)
    except ModelError:
        raise
    except Exception as error:  # its error class derives from Exception alone
        raise ModelError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def _beginning(path: Path) -> bytes:
    with open_file(path) as stream:
        return stream.read(16)


def _check_archive(path: Path, stream: BinaryIO) -> None:
    """Refuse a compressed archive: torch.save only stores, and would unpack any amount."""
    if zipfile.is_zipfile(stream):
        stream.seek(0)
        members = zipfile.ZipFile(stream).infolist()
        _check_program(path, [member.filename for member in members])
        size = sum(member.file_size for member in members)
        check_limit("WEIGHTS_MB", size, path, ModelError)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ModelError(f"{path} is a compressed archive, expected what torch.save writes")
    stream.seek(0)


def _check_program(path: Path, members: Sequence[str]) -> None:
    """Refuse a program, told by its archive's members: running it is not reading weights."""
    kinds = {"code/": "TorchScript", "models/": "a torch.export program"}
    for part, kind in kinds.items():
        if any(f"/{part}" in f"/{member}" for member in members):
            load = "torch.jit.load" if kind == "TorchScript" else "torch.export.load"
            raise ModelError(
                f"{path} is {kind}, a program with its weights, not weights alone",
                f"if you trust it: torch.onnx.export({load}(FILE), ...), and give the ONNX file",
            )


def _tensor_problem(tensor: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot be a network's weight; "" where it can."""
    if tensor.is_meta:
        return "a shape without numbers (device meta), expected weights"
    if tensor.layout is not torch.strided:
        return f"{tensor.layout}, expected a dense tensor"
    if tensor.is_quantized or tensor.is_complex():
        return f"{tensor.dtype}, expected {wanted.dtype}"
    if wanted.is_floating_point() != tensor.is_floating_point():
        return f"{tensor.dtype}, expected {wanted.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "an expanded tensor: fewer numbers are stored than its shape announces"
    return ""


def fill_network(path: Path, name: str, network: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy weights into a network, all of them and no others.

    Args:
        path: The checkpoint, for errors.
        name: The network's name, for errors.
        network: The network.
        state: Name -> tensor; counters of batches may be missing.

    Raises:
        ModelError: Weights are missing, too many, of another shape or type, or not finite; the
            message lists what does not fit.
    """
    wanted = network.state_dict()
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    state = {**counters, **state}
    reshaped = [
        f"{key} {tuple(state[key].shape)} where {tuple(value.shape)} is expected"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    faults = {
        "missing": [key for key in wanted if key not in state],
        "too many": [key for key in state if key not in wanted],
        "of another shape": reshaped,
    }
    problems = [
        f"{len(keys)} {fault} ({', '.join(keys[:_MAX_NAMES])}"
        f"{', ...' if len(keys) > _MAX_NAMES else ''})"
        for fault, keys in faults.items()
        if keys
    ]
    if problems:
        raise ModelError(
            f"{path} is not a {name}: of its keys, {', '.join(problems)}",
            "name the network that these weights belong to",
        )
    for key, value in wanted.items():
        if problem := _tensor_problem(state[key], value):
            raise ModelError(f"{path}: {key} is {problem}", "save the float weights of the network")
    for key in wanted:
        if not torch.isfinite(state[key]).all():
            raise ModelError(f"{path}: {key} holds NaN or infinite values")
    network.load_state_dict(state)
