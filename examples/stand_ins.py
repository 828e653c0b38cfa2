"""Write what the examples need into the working directory: a network, faces, no photograph of anyone.

    python examples/stand_ins.py

`backbone.onnx` has random weights; it tells noisy copies of drawn faces apart, and no people.
"""

from itertools import product
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser
from PIL import Image

from fr_edge import open_faces

JUDGED, CALIBRATION, IMAGES = 80, 60, 3  # ranges of few faces miss what others reach
NETWORK = """
<ir_version: 8, opset_import: ["": 17]>
stand_in (float[batch, 3, 112, 112] face) => (float[batch, 32] embedding)
{
    a = Conv <strides = [4, 4], pads = [2, 2, 2, 2]> (face, first)
    b = PRelu (a, slopes)
    c = Conv <pads = [1, 1, 1, 1]> (b, second)
    d = Add (b, c)
    e = Conv <strides = [4, 4], pads = [1, 1, 1, 1]> (d, third)
    f = PRelu (e, more_slopes)
    g = Conv <group = 32> (f, pool)
    h = Flatten (g)
    embedding = MatMul (h, last)
}
"""
SHAPES = {
    "first": (16, 3, 5, 5), "slopes": (16, 1, 1), "second": (16, 16, 3, 3), "third": (32, 16, 3, 3),
    "more_slopes": (32, 1, 1), "pool": (32, 1, 7, 7), "last": (32, 32),
}  # fmt: skip


def write_network(path: Path) -> None:
    model, random = parser.parse_model(NETWORK), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        values = np.full(shape, 0.25) if "slopes" in name else values
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, str(path))


def write_faces(folder: Path, people: int, images: int, seed: int) -> None:
    """A folder for each person: one drawn face of 112x112 pixels with other noise in each image."""
    drawn, random = open_faces(f"synthetic:{people}x1@{seed}"), np.random.default_rng(seed)
    for person, image in product(range(people), range(images)):
        face = drawn.read(person) + random.normal(0, 4, (112, 112, 3))
        path = folder / f"person{person:03}" / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face.clip(0, 255).astype(np.uint8)).save(path)


def main() -> None:
    write_network(Path("backbone.onnx"))
    write_faces(Path("faces/calibration"), CALIBRATION, IMAGES, seed=1)
    write_faces(Path("faces/judging"), JUDGED, IMAGES, seed=2)
    print("backbone.onnx, faces/calibration and faces/judging are written")


if __name__ == "__main__":
    main()
