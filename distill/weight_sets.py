"""Finds the weights of networks in what trainers save: under keys, beside heads, behind prefixes.

A checkpoint may hold several sets (raw weights and their moving average, a teacher's and a
student's): they are all found, and which one is meant is never decided silently.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, UsageError

_ANCHORS = (  # a name that one kind of network has
    "conv_6_sep.conv.weight",  # AdaDistill's MobileFaceNet
    "conv_sep.layers.0.weight",  # insightface's mbf
    "layer1.0.conv1.weight",  # insightface's IResNet
    "input_layer.0.weight",  # IR networks of AdaFace, CVLface and face.evoLVe
    "conv2d_1a.conv.weight",  # facenet-pytorch
    "stages.0.blocks.0.conv_dw.weight",  # EdgeFace
    "features.0.0.weight",  # fr-edge
)

_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile

_DEPTH = 3  # of dictionaries in a checkpoint


@dataclass(frozen=True, eq=False)
class WeightSet:
    """The weights of one network.

    Attributes:
        label: Where they are in the file, for example `state_dict_ema` or `model.backbone`.
        state: Name -> tensor, without prefixes.
    """

    label: str
    state: dict[str, Tensor]


def choose_weights(
    path: Path,
    content: Mapping[str, Any],
    wanted: str | None = None,
    anchors: Sequence[str] = _ANCHORS,
) -> WeightSet:
    """Give the weights that a checkpoint holds.

    Args:
        path: The file, for errors.
        content: What it holds.
        wanted: A part of the label of the set that is meant; None where there is one.
        anchors: Names of weights that tell a network, one of each kind that is meant.

    Returns:
        The set; where no known network is in the file, its first dictionary of tensors.

    Raises:
        ModelError: The file holds no tensors.
        UsageError: It holds several sets and `wanted` names none or several of them.
    """
    groups = list(_tensor_groups(content))
    if not groups:
        names = ", ".join(map(str, list(content)[:5]))
        raise ModelError(
            f"{path} holds no tensors; found {names or 'nothing'}",
            "expected a state dict, alone or in a trainer's dictionary",
        )
    sets = [each for label, state in groups for each in _networks(label, state, anchors)]
    sets = sets or [WeightSet(label, _without_wrappers(state)) for label, state in groups]
    labels = [each.label or "the file itself" for each in sets]
    if wanted is not None:
        sets = [each for each in sets if wanted in each.label]
    elif len(sets) > 1 and not any(each.label for each in sets):
        sets = sets[:1]
    if len(sets) != 1:
        shown = ", ".join(labels)
        raise UsageError(
            f"{path} holds {len(labels)} sets of weights: {shown}",
            "name the one that is meant, for example --weights"
            f" {next((label for label in labels if 'ema' in label), labels[-1])}",
        )
    return sets[0]


def _tensor_groups(
    content: Mapping[str, Any], label: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dictionaries that hold tensors, and where they are."""
    tensors = {
        str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)
    }
    if tensors:
        yield label, tensors
    for name, value in content.items():
        # An optimizer's state is numbered, not named.
        if isinstance(value, Mapping) and depth and isinstance(name, str) and name != "optimizer":
            yield from _tensor_groups(value, f"{label}.{name}" if label else name, depth - 1)


def _networks(
    label: str, state: Mapping[str, Tensor], anchors: Sequence[str]
) -> Iterator[WeightSet]:
    """The networks in one dictionary: one for each prefix that an anchor has."""
    prefixes = {
        name[: -len(anchor)]
        for name in state
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    }
    for prefix in sorted(prefixes):
        where = ".".join(part for part in (label, prefix.rstrip(".")) if part)
        part = {
            name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
        }
        yield WeightSet(where, part)


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, value in state.items():
        while wrapper := next((w for w in _WRAPPERS if name.startswith(w)), None):
            name = name[len(wrapper) :]
        result[name] = value
    if any(name.startswith("backbone.") for name in result):  # beside a head, for example
        result = {n[9:]: value for n, value in result.items() if n.startswith("backbone.")}
    return result
