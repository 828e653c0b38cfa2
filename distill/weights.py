"""PyTorch weights on disk: read without running anything the file holds, and written.

Knows `model.pt` and bare state dicts, also inside a trainer's dict or behind a wrapper's prefix.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MachineError, ModelError, UsageError
from .checkpoint_layouts import to_our_names
from .networks import NETWORKS, build_network

# Where trainers put the state dict among other things.
_KEYS = (
    *("state", "state_dict", "model_state_dict", "state_dict_backbone"),
    *("model", "backbone", "network", "net", "ema"),
)

_WRAPPERS = ("module.", "_orig_mod.")

_SHOWN = 4


def load_network(path: Path, arch: str | None = None) -> tuple[nn.Module, str, int]:
    """A network in eval mode, its name and its embedding size, from a checkpoint file.

    The file is fr-edge's `model.pt`, which names its network, a state dict in a layout that
    layouts.py knows, or one under our names, for which `arch` names the network; the last two also
    inside a trainer's dict or behind a wrapper's prefix. Raises UsageError without a name, ModelError when the
    file holds no weights, holds code, or the weights are another network's.
    """
    found = load_tensors(path)
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} holds a {type(found).__name__}; expected a state dict")
    state = _state(path, found)
    named = found.get("network")
    if other := to_our_names(state):
        named, state = other
    if arch is None and not isinstance(named, str):
        raise UsageError(
            f"{path} does not say which network its weights belong to",
            f"name it, one of {', '.join(NETWORKS)}",
        )
    name = arch or str(named)
    first = state.get("embed.weight")
    said = found.get("dim")
    dim = said if isinstance(said, int) and 0 < said <= 4096 else 512
    if first is not None and first.ndim == 2:
        dim = int(first.shape[0])
    network = build_network(name, dim)
    _fill(path, name, network, state)
    return network.eval(), name, dim


def save_network(
    path: Path,
    state: Mapping[str, Tensor],
    name: str,
    dim: int,
    ranges: Mapping[str, float] | None = None,
) -> None:
    """Write `model.pt`: the state dict with the network's name and embedding size.

    `ranges`, of a network trained on INT8's rounding: dense layer -> the largest magnitude of its
    input, in the order in which they compute.
    """
    kept = {"ranges": dict(ranges)} if ranges else {}
    torch.save({"network": name, "dim": dim, "state": dict(state), **kept}, path)


def trained_ranges(path: Path) -> dict[str, float]:
    """The ranges that `save_network` was given; empty where there are none.

    Raises ModelError when they are no positive numbers.
    """
    found = load_tensors(path)
    ranges = found.get("ranges", {}) if isinstance(found, Mapping) else {}
    if not isinstance(ranges, Mapping) or not all(
        isinstance(value, float) and 0.0 < value < math.inf for value in ranges.values()
    ):
        raise ModelError(f"{path}: the INT8 ranges are no positive numbers", "train it again")
    return {str(name): value for name, value in ranges.items()}


def load_tensors(path: Path) -> Any:
    """What a torch file holds, tensors and plain values only; raises ModelError otherwise."""
    if not path.is_file():
        raise ModelError(f"there is no checkpoint at {path}")
    if path.suffix.lower() == ".safetensors":
        return _safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged data raises nearly anything
        # A pickle that names something to call, or one that torch.save did not write.
        if "GLOBAL" in str(error) or ("operand" in str(error) and _head(path) == b"\x80"):
            raise ModelError(
                f"{path} holds more than weights, and reading it could run code: refused",
                "save the weights alone: torch.save(model.state_dict(), FILE)",
            ) from error
        # torch's own text recommends reading the file with weights_only=False: not ours to pass on.
        raise ModelError(
            f"{path} is not a PyTorch checkpoint, or is damaged",
            "expected what torch.save writes; download or copy the file again",
        ) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    """A format that holds tensors alone."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MachineError(
            f"reading {path.name} needs safetensors", "pip install 'fr-edge[train]'"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # its error class derives from Exception alone
        raise ModelError(f"{path} is no safetensors file, or is damaged: {error}") from error


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(1)


def _state(path: Path, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict without the prefixes that wrappers put before names."""
    for key in _KEYS:
        if isinstance(found.get(key), Mapping):
            found = found[key]
            break
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        while wrapper := next((w for w in _WRAPPERS if str(name).startswith(w)), None):
            name = name[len(wrapper) :]
        if isinstance(value, torch.Tensor):
            state[str(name)] = value
    if any(name.startswith("backbone.") for name in state):  # beside a head, say
        state = {n[9:]: value for n, value in state.items() if n.startswith("backbone.")}
    if not state:
        raise ModelError(
            f"{path} holds no tensors; found {', '.join(map(str, list(found)[:5])) or 'nothing'}",
            f"expected a state dict, alone or under one of {', '.join(_KEYS)}",
        )
    return state


def _fill(path: Path, name: str, network: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the weights into the network; raises ModelError that lists what does not fit."""
    wanted = network.state_dict()
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    state = {**counters, **state}
    other = [
        f"{key} {tuple(state[key].shape)} where {tuple(mine.shape)} is expected"
        for key, mine in wanted.items()
        if key in state and state[key].shape != mine.shape
    ]
    faults = {
        "missing": [key for key in wanted if key not in state],
        "too many": [key for key in state if key not in wanted],
        "of other shape": other,
    }
    said = [
        f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for what, keys in faults.items()
        if keys
    ]
    if said:
        raise ModelError(
            f"{path} is not a {name}: of its keys, {', '.join(said)}",
            "name the network that these weights belong to",
        )
    for key in wanted:
        if not torch.isfinite(state[key]).all():
            raise ModelError(f"{path}: {key} holds NaN or infinite values")
    network.load_state_dict(state)
