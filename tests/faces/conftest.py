"""Small images to put into folders, tars, records and sets; detectors that ignore the picture."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

U8 = npt.NDArray[np.uint8]


def png(face: U8) -> bytes:
    """Encoded without loss, so that what is read must equal `face`."""
    out = io.BytesIO()
    Image.fromarray(face).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def encode() -> Callable[[U8], bytes]:
    return png


@pytest.fixture(scope="session")
def pictures() -> U8:
    """Twelve pictures `(12, 112, 112, 3)`, each different from the next."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (12, 7, 7, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture
def people(tmp_path: Path, pictures: U8) -> Path:
    """A folder: anna 3 images, bo 2, deep/cyd 1."""
    root = tmp_path / "people"
    names = ["anna/1.png", "anna/2.png", "anna/3.png", "bo/1.png", "bo/2.png", "deep/cyd/1.png"]
    for name, picture in zip(names, pictures, strict=False):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture))
    return root


@pytest.fixture
def constant(tmp_path: Path) -> Callable[..., Path]:
    """`(arrays, size)` -> an ONNX file; without a size its axes are free and 640x640 is meant."""

    def build(
        arrays: dict[str, np.ndarray],
        size: tuple[int, int] | None = None,
        shape: list[int | str] | None = None,
        kind: int = TensorProto.FLOAT,
    ) -> Path:
        shape = shape or ([1, 3, *size] if size else ["n", 3, "h", "w"])
        named = {f"{name}_value": array for name, array in arrays.items()}
        kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in arrays.items()}
        graph = helper.make_graph(
            [helper.make_node("Identity", [f"{name}_value"], [name]) for name in arrays],
            "detector",
            [helper.make_tensor_value_info("picture", kind, shape)],
            [
                helper.make_tensor_value_info(
                    n, kinds[n], a.shape if size else [f"{n}{i}" for i in range(a.ndim)]
                )
                for n, a in arrays.items()
            ],
            [numpy_helper.from_array(a, n) for n, a in named.items()],
        )
        opsets = [helper.make_opsetid("", 13)]
        path = tmp_path / "detector.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
        return path

    return build
