"""Small images to put into folders, tars, records and sets."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
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
