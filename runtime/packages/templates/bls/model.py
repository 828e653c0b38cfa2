"""Triton's `recognise`: finds the faces of a photograph, and embeds them; numpy alone.

`detector.txt` beside this file holds how the detector is fed and read: SCRFD's and YuNet's layouts.
"""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

STEP, MIN_SIDE, OVERLAP = 32, 192, 0.3


class TritonPythonModel:
    """What the server calls."""

    def initialize(self, args: dict) -> None:
        """Read how the detector is fed and read."""
        folder = Path(args["model_repository"]) / args["model_version"]
        lines = (folder / "detector.txt").read_text(encoding="ascii").splitlines()
        values = {line.split()[0]: line.split()[1:] for line in lines}
        self.family, self.bgr = values["family"][0], values["channels"][0] == "BGR"
        self.mean, self.std = (np.array(values[k], np.float32) for k in ("mean", "std"))
        self.min_score = float(values["min_score"][0])
        self.height, self.width = map(int, values["size"])
        self.any_size = values["any_size"][0] == "1"
        self.outputs, self.dim = values["outputs"], int(values["dim"][0])

    def execute(self, requests: list) -> list:
        """Answer each request, or say why not."""
        responses = []
        for request in requests:
            try:
                frame = pb_utils.get_input_tensor_by_name(request, "frame").as_numpy()
                responses.append(pb_utils.InferenceResponse(self.answer(frame)))
            except Exception as error:
                problem = pb_utils.TritonError(str(error))
                responses.append(pb_utils.InferenceResponse([], error=problem))
        return responses

    def answer(self, frame: np.ndarray) -> list:
        """The output tensors of one photograph `(H, W, 3) uint8`, RGB."""
        scores, boxes, points = self.find(frame)
        inputs = [
            pb_utils.Tensor("frame", np.ascontiguousarray(frame[None])),
            pb_utils.Tensor("landmarks", points),
        ]
        found = _ask("frame_embedder", inputs, ["embedding"]) if len(points) else None
        embeddings = found["embedding"] if found else np.zeros((0, self.dim), np.float32)
        named = {"score": scores, "box": boxes, "landmarks": points, "embedding": embeddings}
        return [pb_utils.Tensor(name, np.ascontiguousarray(a)) for name, a in named.items()]

    def find(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores `(N,)`, boxes `(N, 4)` and landmarks `(N, 5, 2)`, the most confident first."""
        high, wide = frame.shape[:2]
        size, scale = (self.height, self.width), min(self.height / high, self.width / wide)
        if self.any_size:
            longest = max(high, wide)
            scale = min(max(1.0, MIN_SIDE / longest), min(size) / longest)
            size = tuple(max(STEP, -(-round(side * scale) // STEP) * STEP) for side in (high, wide))
        small = _resized(frame, max(1, round(high * scale)), max(1, round(wide * scale)))
        canvas = np.zeros((*size, 3), np.float32)
        canvas[: small.shape[0], : small.shape[1]] = small
        canvas = ((canvas[..., ::-1] if self.bgr else canvas) - self.mean) / self.std
        image = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32)
        tensor = pb_utils.Tensor("image", image)
        outputs = list(_ask("detector", [tensor], self.outputs).values())
        parts = [self.decode(outputs, size, stride) for stride in (8, 16, 32)]
        scores, boxes, points = (np.concatenate(part) for part in zip(*parts, strict=True))
        sane = np.isfinite(boxes).all(1) & np.isfinite(points).all((1, 2))
        sane &= (boxes[:, 2:] > boxes[:, :2]).all(1)
        order = np.flatnonzero(sane)
        order, kept = order[np.argsort(-scores[order], kind="stable")], []
        while len(order):
            kept.append(order[0])
            order = order[1:][_overlaps(boxes[order[0]], boxes[order[1:]]) <= OVERLAP]
        return (
            scores[kept].astype(np.float32),
            (boxes[kept] / scale).astype(np.float32),
            (points[kept] / scale).astype(np.float32),
        )

    def decode(self, outputs: list, size: tuple, stride: int) -> tuple:
        """Candidates of one stride: scores, boxes, points in pixels of the canvas."""
        rows, columns = (-(-side // stride) for side in size)
        tables = sorted(
            filter(lambda t: t is not None, (_table(a, rows, columns) for a in outputs)),
            key=lambda t: t.shape[1],
        )
        widths = [t.shape[1] for t in tables]
        y, x = np.mgrid[:rows, :columns].reshape(2, -1).astype(np.float32)
        cell = np.stack([x, y], 1)
        if self.family == "SCRFD" and widths == [2, 8, 20]:
            scores = tables[0].ravel()
            if scores.min() < 0 or scores.max() > 1:
                scores = 1 / (1 + np.exp(-scores))
            keep, cell = scores >= self.min_score, cell.repeat(2, axis=0)
            cell, reach = cell[keep], tables[1].reshape(-1, 4)[keep]
            boxes = np.concatenate([cell - reach[:, :2], cell + reach[:, 2:]], 1)
            points = cell[:, None] + tables[2].reshape(-1, 5, 2)[keep]
        elif self.family == "YuNet" and widths == [1, 1, 4, 10]:
            scores = np.sqrt(np.clip(tables[0][:, 0], 0, 1) * np.clip(tables[1][:, 0], 0, 1))
            keep = scores >= self.min_score
            cell, box = cell[keep], tables[2][keep]
            centre, half = cell + box[:, :2], np.exp(box[:, 2:]) / 2
            boxes = np.concatenate([centre - half, centre + half], 1)
            points = cell[:, None] + tables[3].reshape(-1, 5, 2)[keep]
        else:
            raise ValueError(f"the detector's outputs are not {self.family}'s: {widths}")
        return scores[keep], boxes * stride, points * stride


def _ask(model: str, inputs: list, names: list) -> dict:
    """A model's outputs by name."""
    request = pb_utils.InferenceRequest(
        model_name=model, requested_output_names=names, inputs=inputs
    )
    response = request.exec()
    if response.has_error():
        raise RuntimeError(f"{model}: {response.error().message()}")
    return {n: pb_utils.get_output_tensor_by_name(response, n).as_numpy() for n in names}


def _table(array: np.ndarray, rows: int, columns: int) -> np.ndarray | None:
    """An output as cells x values, where it is of that many cells."""
    cells = rows * columns
    if array.ndim == 4 and array.shape[2:] == (rows, columns):
        return array[0].transpose(1, 2, 0).reshape(cells, -1)
    if array.ndim in (2, 3) and array.shape[-2] in (cells, 2 * cells):
        return array.reshape(cells, -1)
    return None


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others `(K, 4)`."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.maximum(sides, 0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return common / (areas - common)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, averaged where it becomes smaller."""
    for axis, size in ((1, width), (0, height)):
        if image.shape[axis] != size:
            image = np.moveaxis(
                np.tensordot(
                    _weights(image.shape[axis], size), image.astype(np.float32), (1, axis)
                ),
                0,
                axis,
            )
            image = np.floor(image + 0.5).clip(0, 255)
    return image


def _weights(old: int, new: int) -> np.ndarray:
    """A triangle filter as a matrix `(new, old)`."""
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    shares = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres) / max(1.0, scale))
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)
