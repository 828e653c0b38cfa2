"""DeepStream configurations: the input contract in nvinfer's numbers, and what aligns the faces.

nvinfer computes `net-scale-factor * (pixel - offset)` with one factor for all channels, in the order of
`model-color-format`. A contract that needs more is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template

from ...documents import read_json
from ...errors import BundleError
from ...faces.contract import InputSpec, aligned_template
from ...faces.stored_detector import DETECTOR, DetectorSpec
from .package_draft import TEMPLATES, PackageDraft

_MODES = {"fp32": 0, "int8": 1, "fp16": 2}  # network-mode
_PARSERS = {"SCRFD": "ParseScrfd", "YuNet": "ParseYuNet"}  # of face_parsers.cpp


def nvinfer_numbers(spec: InputSpec) -> dict[str, str]:
    """An input contract as nvinfer's properties.

    Args:
        spec: Of a network.

    Returns:
        `scale`, `offsets` and `color`: net-scale-factor, offsets and model-color-format.

    Raises:
        BundleError: nvinfer cannot express the contract; the message says why.
    """
    if spec.channels == "GREY":
        raise BundleError(
            "the contract's grey is BT.601's luma of RGB; DeepStream takes grey from the video's own"
            " luma, whose range and rounding are others",
            "package it for cpp or triton",
        )
    if len(set(spec.std)) > 1:
        raise BundleError(
            f"the contract divides each channel by another number, {spec.std}; nvinfer has one"
            " net-scale-factor for all",
            "package it for cpp or triton, or write std into the network and export it again",
        )
    return {
        "scale": f"{1 / spec.std[0]:.17g}",
        "offsets": ";".join(f"{value:.9g}" for value in spec.mean),
        "color": "1" if spec.channels == "BGR" else "0",
    }


def write_deepstream(draft: PackageDraft) -> None:
    """Fill a package with configurations for nvinfer and nvdspreprocess, and the bundle's plans.

    Args:
        draft: The package.

    Raises:
        BundleError: The contract cannot be expressed, or the bundle has no plan of that precision.
    """
    spec, precision = draft.bundle.spec, draft.precision
    numbers = nvinfer_numbers(spec)
    plans = draft.add_plans("tensor")
    if not plans:
        raise BundleError(
            f"{draft.bundle.root} has no TensorRT engine in {precision} for DeepStream",
            f"build it on the board: `fr-edge build-engine {draft.bundle.root} --{precision} --backend"
            " tensorrt`",
        )
    _render(
        draft,
        "embedder_infer.txt",
        {
            **numbers,
            "engine": plans[0],
            "mode": _MODES[precision],
            "batch": _largest_batch(draft, plans[0]),
            "height": spec.height,
            "width": spec.width,
        },
    )
    side = max(spec.height, spec.width)
    shift = (side - spec.width) // 2, (side - spec.height) // 2
    target = aligned_template(side) - shift
    _render(
        draft,
        "preprocess.txt",
        {
            **numbers,
            "batch": _largest_batch(draft, plans[0]),
            "height": spec.height,
            "width": spec.width,
            "template": ";".join(f"{value:.9g}" for value in target.reshape(-1)),
        },
    )
    for other in plans[1:]:
        draft.left_out[f"embedder_infer.txt: {other}"] = (
            f"it names {plans[0]}; write the other for its board"
        )
    draft.add_model("tensor")
    draft.add_golden("crop")
    draft.not_run["plans"] = "plans of TensorRT run on the GPU that they were built for"
    detector = draft.add_detector(tuple(_PARSERS))
    if detector is not None:
        _add_detector(draft, detector)


def _add_detector(draft: PackageDraft, spec: DetectorSpec) -> None:
    """nvinfer's configuration of the detector, where the bundle has a plan of it."""
    for name in (DETECTOR, "detector.txt"):  # only its plan is of use here
        (draft.root / name).unlink()
    plans = draft.add_plans("detector")
    if not plans:
        return
    try:
        numbers = nvinfer_numbers(spec.input)
    except BundleError as error:
        draft.left_out["detector_infer.txt"] = error.message
        return
    _render(
        draft,
        "detector_infer.txt",
        {
            **numbers,
            "engine": plans[0],
            "mode": _MODES[draft.precision],
            "height": spec.height,
            "width": spec.width,
            "min_score": f"{spec.min_score:g}",
            "parser": _PARSERS[spec.family],
        },
    )


def _largest_batch(draft: PackageDraft, plan: str) -> int:
    facts = read_json(draft.bundle.file(f"{plan}.json"), dict[str, object])
    batch = facts.get("batch")
    if isinstance(batch, list) and len(batch) == 3 and isinstance(batch[2], int):
        return batch[2]
    return 1


def _render(draft: PackageDraft, name: str, values: Mapping[str, object]) -> None:
    text = Template((TEMPLATES / "rendered" / name).read_text(encoding="ascii"))
    path: Path = draft.root / name
    path.write_text(text.substitute({k: str(v) for k, v in values.items()}), encoding="ascii")
