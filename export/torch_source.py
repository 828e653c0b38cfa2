"""PyTorch weights: reading them without running anything they hold, and turning them into ONNX.

torch is imported inside the functions: exporting somebody's ONNX file works without it.
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto

from ..errors import MachineError, ModelError, UsageError
from ..faces.contract import InputSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where trainers put the state dict among other things.
_KEYS = ("state", "state_dict", "model_state_dict", "model", "backbone", "network", "net", "ema")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 4


def load_network(path: Path, arch: str | None = None) -> "tuple[nn.Module, str, int]":
    """A network in eval mode, its name and its embedding size, from a checkpoint file.

    The file is fr-edge's `model.pt`, which names its network, or a state dict (also one inside a
    trainer's dict), for which `arch` does. Raises UsageError without a name, ModelError when the
    file holds no weights, holds code, or the weights are another network's, MachineError without
    torch.
    """
    found = _load(path)
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} holds a {type(found).__name__}; expected a state dict")
    named = found.get("network")
    if arch is None and not isinstance(named, str):
        raise UsageError(
            f"{path} does not say which network its weights belong to",
            f"add --arch NAME, one of {', '.join(_networks())}",
        )
    name = arch or str(named)
    if name not in _networks():
        raise UsageError(f"no network {name!r}", f"networks: {', '.join(_networks())}")
    state = _state(path, found)
    first = state.get("embed.weight")
    dim = int(first.shape[0]) if first is not None and first.ndim == 2 else 512
    network = _networks()[name](dim)
    _fill(path, name, network, state)
    return network.eval(), name, dim


def save_network(path: Path, network: "nn.Module", name: str, dim: int) -> None:
    """Write `model.pt` as the trainer does."""
    import torch

    torch.save({"network": name, "dim": dim, "state": network.state_dict()}, path)


def network_to_onnx(network: "nn.Module", name: str, spec: InputSpec) -> ModelProto:
    """The network as ONNX, batch dynamic; raises UsageError when it does not take that size."""
    import torch

    face = torch.zeros(1, *spec.shape)
    try:
        with torch.no_grad():
            network(face)
    except RuntimeError as error:
        raise UsageError(
            f"{name} does not take faces of {spec.height}x{spec.width}: {error}",
            "the networks of fr-edge take --size 112x112",
        ) from error
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder, "network.onnx")
        # The TorchScript exporter is deprecated; it is the one that writes opset 17 directly.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            network,
            (face,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["face"],
            output_names=["embedding"],
            dynamic_axes={"face": {0: "batch"}, "embedding": {0: "batch"}},
        )
        return onnx.load(str(path))


def _networks() -> Mapping[str, Any]:
    try:
        from ..distill.networks import NETWORKS
    except ImportError as error:
        raise _no_torch() from error
    return NETWORKS


def _no_torch() -> MachineError:
    return MachineError("exporting PyTorch weights needs torch", "pip install 'fr-edge[train]'")


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise _no_torch() from error
    if not path.is_file():
        raise ModelError(f"there is no checkpoint at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged data raises nearly anything
        if "weights_only" in str(error).lower() or "weights only" in str(error).lower():
            raise ModelError(
                f"{path} holds more than weights, and reading it could run code: refused",
                "save the weights alone: torch.save(model.state_dict(), FILE)",
            ) from error
        raise ModelError(
            f"{path} is not a PyTorch checkpoint, or is damaged",
            "expected what torch.save writes; download or copy the file again",
        ) from error


def _state(path: Path, found: Mapping[str, Any]) -> "dict[str, Tensor]":
    """The state dict without the prefixes that wrappers put before names."""
    import torch

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


def _fill(path: Path, name: str, network: "nn.Module", state: "dict[str, Tensor]") -> None:
    """Copy the weights into the network; raises ModelError that lists what does not fit."""
    import torch

    mine = network.state_dict()
    counters = [key for key in mine if key.endswith("num_batches_tracked")]
    state = {**{key: mine[key] for key in counters}, **state}
    lacks = [key for key in mine if key not in state]
    extra = [key for key in state if key not in mine]
    other = [
        f"{key} {tuple(state[key].shape)} where {tuple(value.shape)} is expected"
        for key, value in mine.items()
        if key in state and state[key].shape != value.shape
    ]
    wrong = [
        f"{len(found)} {what} ({', '.join(found[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''})"
        for what, found in (("missing", lacks), ("too many", extra), ("of other shape", other))
        if found
    ]
    if wrong:
        raise ModelError(
            f"{path} is not a {name}: of its keys, {', '.join(wrong)}", "choose another --arch"
        )
    for key in mine:
        if not torch.isfinite(state[key]).all():
            raise ModelError(f"{path}: {key} holds NaN or infinite values")
    network.load_state_dict(state)
