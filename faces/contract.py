"""The input contract: how an aligned face becomes the tensor a network was trained on.

It is written once, at export or training, and read by every later stage. A wrong contract is the
most frequent cause of an inaccurate engine.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..arrays import F32, F64, U8
from ..documents import decode_json
from ..errors import DataError, UsageError

ALIGNED_SIZE = 112  # side of an aligned face in pixels (insightface's norm_crop)

ARCFACE_TEMPLATE = (  # eyes, nose tip, mouth corners (x, y) in the 112x112 frame: norm_crop's
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)

_WIDE_SIZE = 128  # pixels; for its multiples norm_crop has a frame of its own
_WIDE_SHIFT = 8  # pixels to the right in that frame

LUMA_UNIT = 1 << 16
LUMA = (19595, 38470, 7471)  # .299, .587, .114 of LUMA_UNIT: what Pillow's conversion to L takes

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class InputSpec:
    """How a network's input is made from an aligned square RGB face.

    A face of another size is scaled so that its side is `max(height, width)`, cropped at the centre to
    `height x width`, put into `channels` order or made grey, and becomes `(pixel - mean) / std`.

    Attributes:
        height: Of the input, in pixels.
        width: Of the input, in pixels.
        channels: `RGB`, `BGR`, or `GREY` for one channel, the luma of ITU-R BT.601.
        mean: Per channel of the input, in grey levels 0..255; three equal numbers for `GREY`.
        std: Per channel of the input, in grey levels, likewise.
        layout: `NCHW`.
        template: Name of the landmarks' template that faces are aligned to.
        l2_normalised: Whether the network's own output has unit length.
    """

    height: int = ALIGNED_SIZE
    width: int = ALIGNED_SIZE
    channels: str = "RGB"
    mean: Triple = (127.5, 127.5, 127.5)
    std: Triple = (127.5, 127.5, 127.5)
    layout: str = "NCHW"
    template: str = "arcface-5pt-112"
    l2_normalised: bool = False

    def __post_init__(self) -> None:
        if not (8 <= self.height <= 1024 and 8 <= self.width <= 1024):
            raise DataError(f"input size {self.height}x{self.width} is outside 8..1024 pixels")
        if not isinstance(self.height, int) or not isinstance(self.width, int):
            raise DataError(f"input size {self.height}x{self.width} is not in whole pixels")
        if self.channels not in ("RGB", "BGR", "GREY"):
            raise DataError(f"channels are RGB, BGR or GREY, found {self.channels!r}")
        if self.layout != "NCHW":
            raise DataError(f"layout is NCHW, found {self.layout!r}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise DataError("mean and std hold three numbers, one per channel")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise DataError(f"mean {self.mean} and std {self.std} must be finite, std above 0")
        if self.channels == "GREY" and (len({*self.mean}) > 1 or len({*self.std}) > 1):
            raise DataError(f"a grey input has one mean and one std, found {self.mean}, {self.std}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""
        return (1 if self.channels == "GREY" else 3, self.height, self.width)

    @property
    def crop_side(self) -> int:
        """Side in pixels at which faces are cut out of photographs; smaller inputs are reduced from 112."""
        return max(ALIGNED_SIZE, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """As JSON types, with mean and std exact: a network is fed by them."""
        return asdict(self)

    def describe(self) -> str:
        """One line: `RGB 112x112, (x - 127.5) / 127.5`."""
        mean, std = _short(self.mean), _short(self.std)
        return f"{self.channels} {self.height}x{self.width}, (x - {mean}) / {std}"


def _short(values: Triple) -> str:
    texts = [f"{v:g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else "[" + ", ".join(texts) + "]"


PRESETS: dict[str, InputSpec] = {  # of pixels 0..255
    "insightface": InputSpec(),
    "adadistill": InputSpec(),
    "adaface": InputSpec(channels="BGR"),
    "raw": InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    "facenet": InputSpec(height=160, width=160, std=(128.0, 128.0, 128.0)),
    # torchvision's mean and std times 255
    "imagenet": InputSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
}

NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {  # mean and std, the most usual first
    "insightface": (PRESETS["insightface"].mean, PRESETS["insightface"].std),
    "raw": (PRESETS["raw"].mean, PRESETS["raw"].std),
    "127.5/128": ((127.5,) * 3, (128.0,) * 3),
    "/255": ((0.0,) * 3, (255.0,) * 3),
    "imagenet": (PRESETS["imagenet"].mean, PRESETS["imagenet"].std),
    "127.5/1": ((127.5,) * 3, (1.0,) * 3),
    "imagenet mean/1": (PRESETS["imagenet"].mean, (1.0,) * 3),
}

VIEWS: dict[str, Callable[[U8], U8]] = {  # geometric mistakes on square faces (N, S, S, 3)
    "upright": lambda faces: faces,
    "mirrored": lambda faces: faces[:, :, ::-1],
    "upside down": lambda faces: faces[:, ::-1],
    "rows and columns swapped": lambda faces: faces.transpose(0, 2, 1, 3),
    "channels last read as channels first": lambda faces: (
        np.ascontiguousarray(faces).reshape(-1, 3, *faces.shape[1:3]).transpose(0, 2, 3, 1)
    ),
}


@dataclass(frozen=True)
class ContractVariant:
    """One way to turn a face into a network's input.

    Attributes:
        name: The normalization: a key of `NORMALIZATIONS`, or `declared`.
        spec: Size, channel order, mean and std.
        view: A key of `VIEWS`, applied to the faces before `preprocess`.
    """

    name: str
    spec: InputSpec
    view: str = "upright"

    def inputs(self, faces: U8) -> F32:
        """Network input `(N, 3, H, W) float32` of faces `(N, S, S, 3) uint8`."""
        return preprocess(np.ascontiguousarray(VIEWS[self.view](faces)), self.spec)


def contract_variants(spec: InputSpec) -> list[ContractVariant]:
    """The ways to preprocess a face that are tried to find a wrong input contract.

    Args:
        spec: The declared contract; its size is that of all variants.

    Returns:
        Every normalization in both channel orders (a grey contract: grey), the most usual first (the contract's own comes
        last, as `declared`, when it is not among the usual ones), then the contract in each view
        that is not upright.
    """
    normalizations = dict(NORMALIZATIONS)
    if (spec.mean, spec.std) not in normalizations.values():
        normalizations["declared"] = (spec.mean, spec.std)
    grey = spec.channels == "GREY"
    variants = [
        ContractVariant(name, replace(spec, channels=channels, mean=mean, std=std))
        for name, (mean, std) in normalizations.items()
        if not grey or len({*mean}) == len({*std}) == 1
        for channels in (("GREY",) if grey else ("RGB", "BGR"))
    ]
    own = next(v.name for v in variants if (v.spec.mean, v.spec.std) == (spec.mean, spec.std))
    return variants + [ContractVariant(own, spec, view) for view in list(VIEWS)[1:]]


def with_usual_normalizations(spec: InputSpec) -> list[InputSpec]:
    """The contract with every usual mean and std; a grey one with those of one number each.

    Args:
        spec: A contract.
    """
    return [
        replace(spec, mean=mean, std=std)
        for mean, std in NORMALIZATIONS.values()
        if spec.channels != "GREY" or len({*mean}) == len({*std}) == 1
    ]


def spec_from_json(data: Mapping[str, Any]) -> InputSpec:
    """A contract from JSON types.

    Args:
        data: Fields of `InputSpec`; those that are missing take their default.

    Raises:
        DataError: A key is unknown or a value impossible.
    """
    known = set(InputSpec.__dataclass_fields__)
    if unknown := set(data) - known:
        raise DataError(f"the input contract has unknown keys: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = dict(data)
    try:
        for name in {"mean", "std"} & set(data):
            values[name] = tuple(float(x) for x in data[name])
        return InputSpec(**values)
    except (TypeError, ValueError) as error:
        raise DataError(f"the input contract cannot be read: {error}") from error


def spec_from_text(text: str) -> InputSpec:
    """A contract from a JSON object.

    Args:
        text: The object.

    Raises:
        DataError: The text is not a JSON object, a key is unknown or a value impossible.
    """
    data = decode_json(text.encode(errors="replace"), dict[str, Any], "the input contract")
    return spec_from_json(data)


def make_spec(
    preset: str | None = None,
    *,
    mean: str | None = None,
    std: str | None = None,
    channels: str | None = None,
    size: str | None = None,
) -> InputSpec:
    """A contract from a preset and overrides as typed on the command line.

    Args:
        preset: A key of `PRESETS`; `insightface` by default.
        mean: One number or three, `127.5` or `1,2,3`, in grey levels.
        std: As the mean.
        channels: `RGB`, `BGR` or `grey`.
        size: `HEIGHTxWIDTH` or a side, in pixels.

    Raises:
        UsageError: The preset is unknown or a text cannot be read.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}", f"presets: {', '.join(PRESETS)}")
    spec = PRESETS[preset or "insightface"]
    return with_overrides(spec, mean=mean, std=std, channels=channels, size=size)


def with_overrides(
    spec: InputSpec,
    *,
    mean: str | None = None,
    std: str | None = None,
    channels: str | None = None,
    size: str | None = None,
) -> InputSpec:
    """A contract with overrides as typed on the command line.

    Args:
        spec: The contract.
        mean: One number or three, in grey levels; None keeps the contract's.
        std: As the mean.
        channels: `RGB`, `BGR` or `grey`.
        size: `HEIGHTxWIDTH` or a side, in pixels.

    Raises:
        UsageError: A text cannot be read.
    """
    changes: dict[str, Any] = {}
    if mean is not None:
        changes["mean"] = _triple(mean, "--mean")
    if std is not None:
        changes["std"] = _triple(std, "--std")
    if channels is not None:
        changes["channels"] = "GREY" if channels.lower() == "gray" else channels.upper()
    if size is not None:
        changes["height"], changes["width"] = _size(size)
    try:
        return replace(spec, **changes)
    except DataError as error:
        raise UsageError(error.message) from error


def _triple(text: str, flag: str) -> Triple:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise UsageError(f"{flag} takes one number or three, found {text!r}", f"{flag} 127.5")
    return (values[0], values[1], values[2])


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if not all(part.isdigit() for part in parts) or len(parts) not in (1, 2):
        raise UsageError(f"--size takes HEIGHTxWIDTH, found {text!r}", "--size 112x112")
    return int(parts[0]), int(parts[-1])


def preprocess(faces: U8, spec: InputSpec) -> F32:
    """Make network input from aligned faces.

    Args:
        faces: RGB `(N, S, S, 3) uint8`; scaled where S is not the input's larger side.
        spec: The network's contract.

    Returns:
        `(N, 3, H, W) float32`, `(N, 1, H, W)` for a grey contract.
    """
    side = max(spec.height, spec.width)
    if faces.ndim != 4 or faces.shape[1] != faces.shape[2] or faces.shape[3] != 3:
        raise ValueError(f"expected square faces (N, S, S, 3) uint8, got {faces.shape}")
    if faces.dtype != np.uint8:
        raise ValueError(f"expected faces (N, S, S, 3) uint8, got {faces.dtype}")
    faces = resize_faces(faces, side)
    top, left = (side - spec.height) // 2, (side - spec.width) // 2
    faces = faces[:, top : top + spec.height, left : left + spec.width]
    if spec.channels == "BGR":
        faces = faces[..., ::-1]
    elif spec.channels == "GREY":
        faces = luma(faces)
    planes = faces.transpose(0, 3, 1, 2)
    mean, std = (
        np.array(values[: planes.shape[1]], np.float32)[:, None, None]
        for values in (spec.mean, spec.std)
    )
    out = np.empty(planes.shape, np.float32)
    out[...] = planes  # rearranged as bytes: one pass over them, and whole planes after it
    out -= mean
    out /= std
    return out


def resize_faces(faces: U8, side: int) -> U8:
    """Aligned faces at another size, as `resize_face`.

    Args:
        faces: RGB `(N, S, S, 3) uint8`.
        side: Wanted, in pixels.

    Returns:
        `(N, side, side, 3) uint8`; the faces themselves where they have that size.
    """
    if faces.shape[1] == side:
        return faces
    if not len(faces):
        return np.zeros((0, side, side, 3), np.uint8)
    return np.stack([resize_face(face, side) for face in faces])


def luma(faces: U8) -> U8:
    """Grey levels of colour images: ITU-R BT.601's luma as Pillow's mode L computes it.

    Args:
        faces: RGB `(N, H, W, 3) uint8`.

    Returns:
        `(N, H, W, 1) uint8`, rounded.
    """
    weighted = faces.astype(np.int64) @ np.array(LUMA, np.int64)
    return ((weighted + LUMA_UNIT // 2) // LUMA_UNIT).astype(np.uint8)[..., None]


def aligned_template(side: int = ALIGNED_SIZE) -> F64:
    """Where the five landmarks lie in an aligned face of a size.

    As insightface's `norm_crop` has them: the template of 112 pixels times `side / 112`; for multiples
    of 128, that template 8 pixels further right in a frame of 128, times `side / 128`. The former is
    taken for sizes that `norm_crop` refuses.

    Args:
        side: Of the face, in pixels.

    Returns:
        x, y of the eyes, nose tip and mouth corners, `(5, 2) float64`, in pixels.
    """
    template = np.array(ARCFACE_TEMPLATE)
    if side % ALIGNED_SIZE and side % _WIDE_SIZE == 0:
        return (template + (_WIDE_SHIFT, 0)) * (side / _WIDE_SIZE)
    return template * (side / ALIGNED_SIZE)


def resize_face(face: U8, side: int) -> U8:
    """A face of another size, bilinear; averaged where it becomes smaller.

    Args:
        face: `(S, S, 3) uint8`.
        side: Of the result, in pixels.
    """
    return np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BILINEAR))
