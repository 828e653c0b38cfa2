"""README's Python runs, on a bundle, a detector and photographs of the names it uses."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from bright_detector import write_bright_detector
from PIL import Image

README = Path(__file__).parents[2] / "README.md"


def write_photograph(path: Path, row: int, column: int) -> None:
    photo = np.full((640, 640, 3), 60, np.uint8)
    photo[row : row + 32, column : column + 32] = 255
    Image.fromarray(photo).save(path, quality=95)


def test_the_first_screen_compares_two_photographs(built: Path, tmp_path: Path) -> None:
    code, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 8
    shutil.copytree(built, tmp_path / "mine.bundle")
    write_bright_detector(tmp_path / "det_10g.onnx")
    write_photograph(tmp_path / "a.jpg", 96, 160)
    write_photograph(tmp_path / "b.jpg", 320, 384)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (cosine,) = np.array(done.stdout.strip("[]\n").split(), float)
    assert 0.99 < cosine <= 1  # the same face in another place
