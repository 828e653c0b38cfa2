"""Names that other trainers give to the weights of the same networks, converted to fr-edge's names.

They are the state dicts of insightface's arcface_torch (IResNet, mbf), of the official AdaDistill
repository (IResNet, MobileFaceNet), and of TreB1eN's and FaceX-Zoo's MobileFaceNet.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")

Names = Iterator[tuple[str, str]]

_CONV, _BN, _PRELU = ("weight",), ("weight", "bias", "running_mean", "running_var"), ("weight",)

_COUNT = "num_batches_tracked"

_BLOCKS = {
    (2, 2, 2, 2): "iresnet18",
    (3, 4, 6, 3): "iresnet34",
    (3, 4, 14, 3): "iresnet50",
    (3, 13, 30, 3): "iresnet100",
    (6, 26, 60, 6): "iresnet200",
}


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
        if stages not in _BLOCKS:
            return None
        name, pairs = _BLOCKS[stages], _iresnet(stages)
    else:
        return None
    ours = dict(pairs)
    return name, {ours.get(theirs, theirs): value for theirs, value in state.items()}


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
