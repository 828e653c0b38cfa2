"""Every layout, written by a plain encoder of its authors' definition, read back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fr_edge.faces.detect import open_detector

Arrays = dict[str, np.ndarray]
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Face:
    """In pixels of the canvas; `stride` is the level that finds it."""

    score: float
    box: np.ndarray
    points: np.ndarray
    stride: int

    @property
    def centre(self) -> np.ndarray:
        return (self.box[:2] + self.box[2:]) / 2

    @property
    def size(self) -> np.ndarray:
        return self.box[2:] - self.box[:2]

    def cell(self, stride: int) -> np.ndarray:
        return np.floor(self.centre / stride).astype(int)


def face(score: float, x: float, y: float, width: float, height: float, stride: int) -> Face:
    five = np.array([[0.3, 0.35], [0.7, 0.33], [0.52, 0.55], [0.35, 0.75], [0.66, 0.77]])
    return Face(
        score,
        np.array([x, y, x + width, y + height]),
        five * [width, height] + [x, y],
        stride,
    )


FACES = [face(0.95, 40.5, 61, 66, 80.25, 16), face(0.8, 150, 20, 18, 25, 8)]
DOUBLE = face(0.9, 48, 61, 66, 80.25, 16)
"""The first face found again, less surely."""


def blank(size: Size, stride: int, values: int, anchors: int = 1) -> np.ndarray:
    return np.zeros((-(-size[0] // stride), -(-size[1] // stride), anchors, values), np.float32)


def logit(x: np.ndarray | float) -> np.ndarray:
    return np.log(x) - np.log1p(-np.asarray(x))


def yunet(faces: list[Face], size: Size) -> Arrays:
    arrays = {}
    for stride in (8, 16, 32):
        cls, box, kps = (blank(size, stride, n)[:, :, 0] for n in (1, 4, 10))
        for one in (f for f in faces if f.stride == stride):
            x, y = cell = one.cell(stride)
            cls[y, x] = one.score
            box[y, x] = [*(one.centre / stride - cell), *np.log(one.size / stride)]
            kps[y, x] = (one.points / stride - cell).ravel()
        for name, array in (("cls", cls), ("obj", cls), ("bbox", box), ("kps", kps)):
            arrays[f"{name}_{stride}"] = array.reshape(1, -1, array.shape[-1])
    return arrays


def scrfd_levels(faces: list[Face], size: Size, strides: tuple[int, ...], anchors: int) -> Arrays:
    arrays = {}
    for stride in strides:
        score, box, kps = (blank(size, stride, n, anchors) for n in (1, 4, 10))
        for one in (f for f in faces if f.stride == stride):
            x, y = cell = one.cell(stride)
            at, corner = (y, x, anchors - 1), cell * stride
            score[at] = one.score
            box[at] = np.concatenate([corner - one.box[:2], one.box[2:] - corner]) / stride
            kps[at] = ((one.points - corner) / stride).ravel()
        arrays |= {f"score{stride}": score, f"box{stride}": box, f"kps{stride}": kps}
    return {name: arrays[name] for name in sorted(arrays, key=lambda n: n.rstrip("0123456789"))}


def scrfd(faces: list[Face], size: Size) -> Arrays:
    """As insightface's files: no batch axis, and names that are numbers."""
    arrays = scrfd_levels(faces, size, (8, 16, 32), 2)
    return {str(440 + i): a.reshape(-1, a.shape[-1]) for i, a in enumerate(arrays.values())}


def scrfd_batched(faces: list[Face], size: Size) -> Arrays:
    arrays = scrfd_levels(faces, size, (8, 16, 32), 2)
    return {name: a.reshape(1, -1, a.shape[-1]) for name, a in arrays.items()}


def scrfd_logits(faces: list[Face], size: Size) -> Arrays:
    arrays = scrfd_batched(faces, size)
    return {
        name: logit(np.clip(a, 1e-4, 1 - 1e-4)).astype(np.float32) if "score" in name else a
        for name, a in arrays.items()
    }


def scrfd_maps(faces: list[Face], size: Size) -> Arrays:
    arrays = scrfd_levels(faces, size, (8, 16, 32), 2)
    return {n: a.reshape(*a.shape[:2], -1).transpose(2, 0, 1)[None] for n, a in arrays.items()}


def scrfd_five_strides(faces: list[Face], size: Size) -> Arrays:
    arrays = scrfd_levels(faces, size, (8, 16, 32, 64, 128), 1)
    return {name: a.reshape(1, -1, a.shape[-1]) for name, a in arrays.items()}


MNET = {8: (16, 32), 16: (64, 128), 32: (256, 512)}
SLIM = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}


def retinaface(
    faces: list[Face], size: Size, sides: dict[int, tuple[int, ...]] = MNET, softmax: bool = True
) -> Arrays:
    """Offsets in tenths and fifths, all in parts of the image as the authors do it."""
    parts: dict[str, list[np.ndarray]] = {"loc": [], "conf": [], "landms": []}
    whole = np.array(size[::-1])
    for stride, many in sides.items():
        loc, conf, landms = (blank(size, stride, n, len(many)) for n in (4, 2, 10))
        conf[..., 0] = 1
        for one in (f for f in faces if f.stride == stride):
            x, y = cell = one.cell(stride)
            centre, side = (cell + 0.5) * stride / whole, many[-1] / whole
            at = (y, x, len(many) - 1)
            conf[at] = 1 - one.score, one.score
            loc[at] = np.concatenate(
                [(one.centre / whole - centre) / side / 0.1, np.log(one.size / whole / side) / 0.2]
            )
            landms[at] = ((one.points / whole - centre) / side / 0.1).ravel()
        for name, array in (("loc", loc), ("conf", conf), ("landms", landms)):
            parts[name].append(array.reshape(1, -1, array.shape[-1]))
    arrays = {name: np.concatenate(arrays, axis=1) for name, arrays in parts.items()}
    if not softmax:
        arrays["conf"] = np.log(np.clip(arrays["conf"], 1e-4, 1)) + np.float32(3)
    return arrays


def retinaface_slim(faces: list[Face], size: Size) -> Arrays:
    return retinaface(faces, size, SLIM)


def retinaface_logits(faces: list[Face], size: Size) -> Arrays:
    return retinaface(faces, size, softmax=False)


def retinaface_decoded(faces: list[Face], size: Size) -> Arrays:
    """The offsets already applied, nothing suppressed: every anchor gives a box near itself."""
    arrays = retinaface(faces, size)
    middles, at = [], {}
    for stride, many in MNET.items():
        for y, x in np.ndindex(-(-size[0] // stride), -(-size[1] // stride)):
            for k in range(len(many)):
                at[stride, y, x, k] = len(middles)
                middles.append([(x + 0.5) * stride, (y + 0.5) * stride])
    whole = np.array(size[::-1])
    boxes = np.hstack([np.array(middles) - 9, np.array(middles) + 9])
    points = np.tile(np.array(middles), 5)
    for one in faces:
        x, y = one.cell(one.stride)
        row = at[one.stride, y, x, 1]
        boxes[row], points[row] = one.box, one.points.ravel()
    return {
        "boxes": (boxes / np.tile(whole, 2)).astype(np.float32)[None],
        "conf": arrays["conf"],
        "points": (points / np.tile(whole, 5)).astype(np.float32)[None],
    }


def retinaface_maps(faces: list[Face], size: Size) -> Arrays:
    """Anchors as corners of whole pixels, the larger first: -24..39 is 64 wide around 7.5."""
    anchors = {32: (512, 256), 16: (128, 64), 8: (32, 16)}
    arrays = {}
    for stride, many in anchors.items():
        prob, box, points = (blank(size, stride, n, 2) for n in (1, 4, 10))
        for one in (f for f in faces if f.stride == stride):
            x, y = cell = one.cell(stride)
            side, centre = many[1], cell * stride + 7.5
            prob[y, x, 1] = one.score
            box[y, x, 1] = [*((one.centre - centre) / side), *np.log(one.size / side)]
            points[y, x, 1] = ((one.points - centre) / side).ravel()
        prob = np.concatenate([1 - prob, prob], axis=2)
        for name, array in (("prob", prob), ("bbox", box), ("landmark", points)):
            flat = array.reshape(*array.shape[:2], -1)
            arrays[f"{name}_stride{stride}"] = flat.transpose(2, 0, 1)[None]
    return arrays


def yolo_rows(faces: list[Face], size: Size, anchors: int) -> int:
    return anchors * sum(-(-size[0] // s) * -(-size[1] // s) for s in (8, 16, 32))


def yolo(faces: list[Face], size: Size, values: int) -> np.ndarray:
    table = np.zeros((yolo_rows(faces, size, 3 if values in (16, 21) else 1), values), np.float32)
    for one, row in zip(faces, (5, 77, 401), strict=False):
        sure = np.hstack([one.points, np.full((5, 1), 0.7)]).ravel()
        tail = {
            15: [one.score, *one.points.ravel()],
            20: [one.score, *sure],
            16: [one.score / 0.99, *one.points.ravel(), 0.99],
            21: [one.score / 0.99, 0.99, *sure],
        }[values]
        table[row] = [*one.centre, *one.size, *tail]
    return table


def yolo8(faces: list[Face], size: Size) -> Arrays:
    return {"output0": yolo(faces, size, 20).T[None]}


def yolo8_rows(faces: list[Face], size: Size) -> Arrays:
    return {"output0": yolo(faces, size, 15)[None]}


def yolo5(faces: list[Face], size: Size) -> Arrays:
    """With the raw maps beside the list, as some exporters leave them."""
    maps = {f"map{s}": blank(size, s, 16, 3).transpose(2, 0, 1, 3)[None] for s in (8, 16, 32)}
    return {"output": yolo(faces, size, 16)[None], **maps}


def yolo7(faces: list[Face], size: Size) -> Arrays:
    return {"output": yolo(faces, size, 21)[None]}


def yolo5_parts(faces: list[Face], size: Size) -> Arrays:
    table = yolo(faces, size, 16)
    table[:, :4] /= np.tile(size[::-1], 2)
    table[:, 5:15] /= np.tile(size[::-1], 5)
    return {"output": table[None]}


def yolo8_maps(faces: list[Face], size: Size) -> Arrays:
    arrays = {}
    for stride in (8, 16, 32):
        array = blank(size, stride, 80)[:, :, 0]
        array[..., :65] = -50
        for one in (f for f in faces if f.stride == stride):
            x, y = cell = one.cell(stride)
            middle = cell + 0.5
            low, high = middle - one.box[:2] / stride, one.box[2:] / stride - middle
            for side, reach in enumerate([*low, *high]):
                whole, part = int(reach), reach - int(reach)
                array[y, x, 16 * side + whole] = np.log(1 - part)
                array[y, x, 16 * side + whole + 1] = np.log(max(part, 1e-9))
            array[y, x, 64] = logit(one.score)
            five = np.hstack([(one.points / stride - cell) / 2, np.ones((5, 1))])
            array[y, x, 65:] = five.ravel()
        arrays[f"out{stride}"] = array.transpose(2, 0, 1)[None]
    return arrays


def yolo5_maps(faces: list[Face], size: Size) -> Arrays:
    anchors = {8: (13, 16), 16: (73, 105), 32: (335, 433)}
    arrays = {}
    for stride in (8, 16, 32):
        array = blank(size, stride, 16, 3)
        array[..., 4] = -20
        for one in (f for f in faces if f.stride == stride):
            x, y = cell = one.cell(stride)
            anchor = np.array(anchors[stride])
            array[y, x, 2] = np.concatenate(
                [
                    logit((one.centre / stride - cell + 0.5) / 2),
                    logit(np.sqrt(one.size / anchor) / 2),
                    [logit(one.score / 0.99)],
                    ((one.points - cell * stride) / anchor).ravel(),
                    [logit(0.99)],
                ]
            )
        arrays[f"out{stride}"] = array.transpose(2, 0, 1, 3)[None]
    return arrays


def centerface(faces: list[Face], size: Size) -> Arrays:
    heat, scale, offset, points = (blank(size, 4, n)[:, :, 0] for n in (1, 2, 2, 10))
    for one in faces:
        x, y = cell = one.cell(4)
        heat[y, x] = one.score
        scale[y, x] = np.log(one.size / 4)[::-1]
        offset[y, x] = (one.centre / 4 - cell - 0.5)[::-1]
        points[y, x] = ((one.points - one.box[:2]) / one.size)[:, ::-1].ravel()
    maps = {"537": heat, "538": scale, "539": offset, "540": points}
    return {name: array.transpose(2, 0, 1)[None] for name, array in maps.items()}


def padded(rows: list[np.ndarray], count: int = 100) -> np.ndarray:
    table = np.zeros((count, len(rows[0])), np.float32)
    table[: len(rows)] = rows
    return table


def lists(faces: list[Face], size: Size) -> Arrays:
    return {
        "num_dets": np.array([[len(faces)]], np.int32),
        "boxes": padded([f.box for f in faces])[None],
        "scores": padded([np.array([f.score]) for f in faces])[None, :, 0],
        "classes": np.zeros((1, 100), np.float32),
        "landmarks": padded([f.points.ravel() for f in faces]).reshape(1, 100, 5, 2),
    }


def lists_unbatched(faces: list[Face], size: Size) -> Arrays:
    """Only as long as need be; boxes carry the score, and width and height for the far corner."""
    return {
        "dets": np.float32([[*f.box[:2], *f.size, f.score] for f in faces]),
        "labels": np.zeros(len(faces), np.int64),
        "kps": np.float32([f.points for f in faces]),
    }


def lists_in_parts(faces: list[Face], size: Size) -> Arrays:
    whole = np.array(size[::-1])
    sizes = np.float32([np.concatenate([f.centre, f.size]) / np.tile(whole, 2) for f in faces])
    points = np.float32([(f.points / whole).ravel() for f in faces])
    scores = np.float32([[f.score] for f in faces])
    return {"conf": scores, "bbox": sizes, "landmarks": points}


def rows_21(faces: list[Face], size: Size) -> Arrays:
    rows = [
        np.concatenate([f.box, [f.score, 0], np.hstack([f.points, np.ones((5, 1))]).ravel()])
        for f in faces
    ]
    return {"output0": padded(rows, 300)[None]}


def rows_15(faces: list[Face], size: Size) -> Arrays:
    rows = [np.concatenate([f.box, [f.score], f.points.ravel()]) for f in faces]
    return {"dets": np.float32(rows)}


def rows_16(faces: list[Face], size: Size) -> Arrays:
    rows = [np.concatenate([f.box, [f.score], f.points.ravel(), [0]]) for f in faces]
    return {"dets": np.float32(rows)}


Encode = Callable[[list[Face], Size], Arrays]
RAW: list[tuple[Encode, str, str]] = [
    (yunet, "YuNet", "BGR"),
    (scrfd, "SCRFD", "RGB"),
    (scrfd_batched, "SCRFD", "RGB"),
    (scrfd_logits, "SCRFD", "RGB"),
    (scrfd_maps, "SCRFD", "RGB"),
    (scrfd_five_strides, "SCRFD", "RGB"),
    (retinaface, "RetinaFace", "BGR"),
    (retinaface_slim, "RetinaFace", "BGR"),
    (retinaface_logits, "RetinaFace", "BGR"),
    (retinaface_decoded, "RetinaFace", "BGR"),
    (retinaface_maps, "RetinaFace by strides", "RGB"),
    (yolo8, "YOLO-face", "RGB"),
    (yolo8_rows, "YOLO-face", "RGB"),
    (yolo5, "YOLO-face", "RGB"),
    (yolo5_parts, "YOLO-face", "RGB"),
    (yolo7, "YOLO-face", "RGB"),
    (yolo8_maps, "YOLO-face by strides", "RGB"),
    (yolo5_maps, "YOLO-face by strides", "RGB"),
    (centerface, "CenterFace", "RGB"),
]
SUPPRESSED: list[tuple[Encode, str, str]] = [
    (lists, "suppressed lists", "RGB"),
    (lists_unbatched, "suppressed lists", "RGB"),
    (lists_in_parts, "suppressed lists", "RGB"),
    (rows_21, "suppressed rows", "RGB"),
    (rows_15, "suppressed rows", "RGB"),
    (rows_16, "suppressed rows", "RGB"),
]


@pytest.mark.parametrize(
    ("encode", "name", "channels"), RAW + SUPPRESSED, ids=lambda v: getattr(v, "__name__", "")
)
@pytest.mark.parametrize("size", [(256, 320), None])
def test_what_was_written_is_read(
    encode: Encode,
    name: str,
    channels: str,
    size: Size | None,
    constant: Callable[..., Path],
) -> None:
    canvas = size or (640, 640)
    faces = FACES if name.startswith("suppressed") else [*FACES, DOUBLE]
    detector = open_detector(constant(encode(faces, canvas), size))
    assert detector.layout.name == name
    assert detector.spec.channels == channels
    photograph = np.zeros((canvas[0] * 2, canvas[1] * 2 - 7, 3), np.uint8)
    detected = detector(photograph)
    assert [one.score for one in detected] == pytest.approx([0.95, 0.8], rel=1e-4)
    for one, meant in zip(detected, FACES, strict=True):
        box = np.concatenate([meant.box[:2], meant.size]) * 2
        np.testing.assert_allclose(one.box, box, atol=0.02)
        np.testing.assert_allclose(one.points, meant.points * 2, atol=0.02)


@pytest.mark.parametrize(
    ("encode", "name", "channels"), RAW, ids=lambda v: getattr(v, "__name__", "")
)
def test_nobody_and_nonsense(
    encode: Encode, name: str, channels: str, constant: Callable[..., Path]
) -> None:
    size = (256, 320)
    arrays = encode([], size)
    photograph = np.zeros((50, 40, 3), np.uint8)
    assert open_detector(constant(arrays, size))(photograph) == []
    spoilt = {key: np.full_like(array, np.nan) for key, array in arrays.items()}
    assert open_detector(constant(spoilt, size))(photograph) == []
    huge = {key: np.full_like(array, 3e38) for key, array in arrays.items()}
    assert open_detector(constant(huge, size))(photograph) == []


@pytest.mark.parametrize("encode", [lists, rows_21])
def test_nobody_in_a_list(encode: Encode, constant: Callable[..., Path]) -> None:
    arrays = {n: a[:, :0] if a.ndim > 2 else a for n, a in encode(FACES, (96, 96)).items()}
    arrays = {n: a[:, :0] if a.shape == (1, 100) else a for n, a in arrays.items()}
    detector = open_detector(constant(arrays, (96, 96)))
    assert detector(np.zeros((50, 40, 3), np.uint8)) == []
