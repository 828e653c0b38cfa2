"""The weights of networks in what trainers save: where they are, and under which names.

They are found under keys, beside heads, behind prefixes. A checkpoint may hold several sets (raw weights
and their moving average, a teacher's and a student's): they are all found, and which one is meant is
never decided silently.

Their names are converted to fr-edge's from those of insightface's arcface_torch (IResNet, mbf), of the
official AdaDistill repository (IResNet, MobileFaceNet), of TreB1eN's and FaceX-Zoo's MobileFaceNet, of
AdaFace's and CVLface's IR networks, and of face.evoLVe and TreB1eN (IR and IR-SE). facenet-pytorch's and
EdgeFace's networks are built under their own names.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import ModelError, UsageError

T = TypeVar("T")

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

Names = Iterator[tuple[str, str]]

_CONV, _BN, _PRELU = ("weight",), ("weight", "bias", "running_mean", "running_var"), ("weight",)

_COUNT = "num_batches_tracked"

_STAGES = {  # blocks in each stage -> depth
    (2, 2, 2, 2): 18,
    (3, 4, 6, 3): 34,
    (3, 4, 14, 3): 50,
    (3, 13, 30, 3): 100,
    (6, 26, 60, 6): 200,
}

_DEPTHS = {sum(stages): depth for stages, depth in _STAGES.items()}  # blocks in all -> depth


def to_our_names(state: Mapping[str, T]) -> tuple[str, dict[str, T]] | None:
    """Convert a state dict of another trainer.

    Args:
        state: Name -> value; only names are used.

    Returns:
        The network's name and the state under fr-edge's names; None for an unknown layout. Names
        without a counterpart stay, so that loading reports them as left over.
    """
    if "conv_6_sep.conv.weight" in state:
        head = "output_layer." if "output_layer.linear.weight" in state else ""
        affine = f"{head}bn.weight" in state
        name = "mobilefacenet-affine" if affine else "mobilefacenet"
        pairs = _adadistill_mobilefacenet(head)
    elif "conv_sep.layers.0.weight" in state:
        name, pairs = "mbf", _insightface_mbf()
    elif "layer1.0.conv1.weight" in state and "fc.weight" in state:
        stages = tuple(_count(state, f"layer{stage}.") for stage in range(1, 5))
        if stages not in _STAGES:
            return None
        name, pairs = f"iresnet{_STAGES[stages]}", _iresnet(stages)
    elif "input_layer.0.weight" in state and "body.0.res_layer.0.weight" in state:
        blocks = _count(state, "body.")
        if blocks not in _DEPTHS:
            return None
        gated = "body.0.res_layer.5.fc1.weight" in state
        adaface = "body.0.res_layer.2.running_mean" in state
        form = "adaface-ir" if adaface else "evolve-irse" if gated else "evolve-ir"
        name, pairs = f"{form}{_DEPTHS[blocks]}", _ir(blocks, adaface)
    elif "conv2d_1a.conv.weight" in state and "last_linear.weight" in state:
        classes = ("logits.weight", "logits.bias")  # of the training
        return "facenet", {key: value for key, value in state.items() if key not in classes}
    else:
        return None
    ours = dict(pairs)
    return name, {ours.get(theirs, theirs): value for theirs, value in state.items()}


def nearest_layout(names: Collection[str]) -> tuple[str, int]:
    """The known layout that most names of a checkpoint belong to.

    Args:
        names: Names of a checkpoint that no layout fits.

    Returns:
        What the layout is called, and how many of the names it has.
    """
    layouts = {
        "AdaDistill's MobileFaceNet": _adadistill_mobilefacenet("output_layer."),
        "FaceX-Zoo's MobileFaceNet": _adadistill_mobilefacenet(""),
        "insightface's mbf": _insightface_mbf(),
        **{f"insightface's IResNet-{d}": _iresnet(stages) for stages, d in _STAGES.items()},
        **{f"AdaFace's IR-{d}": _ir(blocks, True) for blocks, d in _DEPTHS.items() if d < 200},
        **{f"face.evoLVe's IR-{d}": _ir(blocks, False) for blocks, d in _DEPTHS.items() if d < 200},
    }
    known = {label: {theirs for theirs, _ in pairs} for label, pairs in layouts.items()}
    given = set(names)

    def likeness(label: str) -> tuple[float, int]:
        shared = len(given & known[label])
        return shared / len(given | known[label]), shared

    best = max(known, key=likeness)
    return best, len(given & known[best])


def _count(state: Mapping[str, T], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _conv(theirs: str, ours: str) -> Names:
    for part in _CONV:
        yield f"{theirs}.{part}", f"{ours}.{part}"


def _bn(theirs: str, ours: str) -> Names:
    for part in (*_BN, _COUNT):
        yield f"{theirs}.{part}", f"{ours}.{part}"


def _block(theirs: tuple[str, ...], ours: str) -> Names:
    """Convolution, normalisation and, for three names, a slope."""
    yield from _conv(theirs[0], f"{ours}.0")
    yield from _bn(theirs[1], f"{ours}.1")
    for name in theirs[2:]:
        yield f"{name}.{_PRELU[0]}", f"{ours}.2.{_PRELU[0]}"


def _adadistill_mobilefacenet(head: str) -> Names:
    """`head` is the prefix of the last layers: none in TreB1eN's and FaceX-Zoo's MobileFaceNet."""

    def parts(prefix: str, count: int) -> tuple[str, ...]:
        return tuple(f"{prefix}.{part}" for part in ("conv", "bn", "prelu")[:count])

    yield from _block(parts("conv1", 3), "features.0")
    yield from _block(parts("conv2_dw", 3), "features.1")
    bottlenecks = ["conv_23", *(f"conv_3.model.{i}" for i in range(4)), "conv_34"]
    bottlenecks += [*(f"conv_4.model.{i}" for i in range(6)), "conv_45"]
    bottlenecks += [f"conv_5.model.{i}" for i in range(2)]
    for number, prefix in enumerate(bottlenecks, 2):
        yield from _block(parts(f"{prefix}.conv", 3), f"features.{number}.body.0")
        yield from _block(parts(f"{prefix}.conv_dw", 3), f"features.{number}.body.1")
        yield from _block(parts(f"{prefix}.project", 2), f"features.{number}.body.2")
    yield from _block(parts("conv_6_sep", 3), "features.17")
    yield from _block(parts(f"{head}conv_6_dw", 2), "pool")
    yield from _conv(f"{head}linear", "embed")
    yield from _bn(f"{head}bn", "norm")


def _insightface_mbf() -> Names:
    def parts(prefix: str, count: int) -> tuple[str, ...]:
        return tuple(f"{prefix}.layers.{part}" for part in range(count))

    yield from _block(parts("layers.0", 3), "features.0")
    yield from _block(parts("layers.1", 3), "features.1")
    bottlenecks = ["layers.2", *(f"layers.3.layers.{i}" for i in range(4)), "layers.4"]
    bottlenecks += [*(f"layers.5.layers.{i}" for i in range(6)), "layers.6"]
    bottlenecks += [f"layers.7.layers.{i}" for i in range(2)]
    for number, prefix in enumerate(bottlenecks, 2):
        for part, count in enumerate((3, 3, 2)):
            inner = parts(f"{prefix}.layers.{part}", count)
            yield from _block(inner, f"features.{number}.body.{part}")
    yield from _block(parts("conv_sep", 3), "features.17")
    yield from _block(parts("features.layers.0", 2), "pool")
    yield from _conv("features.layers.2", "embed")
    yield from _bn("features.layers.3", "norm")


def _iresnet(stages: tuple[int, ...]) -> Names:
    yield from _block(("conv1", "bn1", "prelu"), "features.0")
    number = 0
    for stage, count in enumerate(stages, 1):
        for index in range(count):
            number += 1
            theirs, ours = f"layer{stage}.{index}", f"features.{number}"
            yield from _bn(f"{theirs}.bn1", f"{ours}.body.0")
            inner = (f"{theirs}.conv1", f"{theirs}.bn2", f"{theirs}.prelu")
            yield from _block(inner, f"{ours}.body.1")
            yield from _block((f"{theirs}.conv2", f"{theirs}.bn3"), f"{ours}.body.2")
            shortcut = (f"{theirs}.downsample.0", f"{theirs}.downsample.1")
            yield from _block(shortcut, f"{ours}.shortcut")
    yield from _bn("bn2", f"features.{number + 1}")
    for part in ("weight", "bias"):
        yield f"fc.{part}", f"embed.{part}"
    yield from _bn("features", "norm")


def _ir(blocks: int, adaface: bool) -> Names:
    """AdaFace's IR network, or face.evoLVe's, which has a normalisation less in each block."""
    yield from _block(("input_layer.0", "input_layer.1", "input_layer.2"), "features.0")
    for number in range(blocks):
        theirs, ours = f"body.{number}.res_layer", f"features.{number + 1}"
        yield from _bn(f"{theirs}.0", f"{ours}.body.0")
        yield from _conv(f"{theirs}.1", f"{ours}.body.1.0")
        if adaface:
            yield from _bn(f"{theirs}.2", f"{ours}.body.1.1")
        slope = 3 if adaface else 2
        yield f"{theirs}.{slope}.weight", f"{ours}.body.1.2.weight"
        yield from _block((f"{theirs}.{slope + 1}", f"{theirs}.{slope + 2}"), f"{ours}.body.2")
        if not adaface:
            yield f"{theirs}.5.fc1.weight", f"{ours}.body.3.squeeze.weight"
            yield f"{theirs}.5.fc2.weight", f"{ours}.body.3.excite.weight"
        shortcut = f"body.{number}.shortcut_layer"
        yield from _block((f"{shortcut}.0", f"{shortcut}.1"), f"{ours}.shortcut")
    yield from _bn("output_layer.0", f"features.{blocks + 1}")
    for part in ("weight", "bias"):
        yield f"output_layer.3.{part}", f"embed.{part}"
    yield from _bn("output_layer.4", "norm")


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
