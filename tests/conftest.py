"""What several rooms' tests need."""

import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.faces.sources import Faces, open_faces

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "boards"), str(HERE / "cli")]
from kernel_choice import RACE, one_on_integers  # noqa: E402

collect_ignore = []
if find_spec("torch") is None:
    needs = re.compile(r"^(import|from) torch\b", re.MULTILINE)
    files = [f for f in HERE.rglob("*.py") if needs.search(f.read_text(encoding="utf-8"))]
    collect_ignore = ["distill", *(str(f.relative_to(HERE)) for f in files)]


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, nohup the hangup, and so would the programs that
    tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread for each
        _one_thread_each()


def _one_thread_each() -> None:
    import onnxruntime

    class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    onnxruntime.SessionOptions = OneThread


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the settings and notes of the user who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        for name in ("FR_EDGE_TRUSTED_KEYS", "FR_EDGE_REQUIRE_SIGNATURE"):
            patch.delenv(name, raising=False)
        patch.setattr(RACE, one_on_integers)
        yield


def pytest_report_header() -> str:
    left_out = [name for name in collect_ignore if name.count("conftest") == 0]
    if not left_out:
        return ""
    return f"torch is not installed, left out: {', '.join(left_out)}"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real faces and models; the test skips where there is none."""
    folder = os.environ.get("FR_EDGE_DATA")
    if not folder:
        pytest.skip("FR_EDGE_DATA does not name a folder of real faces and models")
    if not Path(folder).is_dir():
        pytest.skip(f"FR_EDGE_DATA names {folder}, which is not there")
    return Path(folder)


@pytest.fixture(scope="session")
def few_real_faces(real_data: Path) -> Faces:
    """Two photographs each of the first 16 people: a search for the contract runs on all of them."""
    faces = open_faces(real_data / "faces_dev.tar")
    labels = np.asarray(faces.labels)
    counted = [np.flatnonzero(labels == label)[:2] for label in np.unique(labels)]
    pairs = [picks for picks in counted if len(picks) == 2]
    return faces.subset(np.concatenate(pairs[:16]))


@pytest.fixture(scope="session")
def calibrated_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights, exported and calibrated."""
    from networks import write_network

    from fr_edge.calibration.calibrate import calibrate
    from fr_edge.export.export import export_onnx  # needs onnx-ir, which no board has
    from fr_edge.faces.contract import PRESETS

    folder = tmp_path_factory.mktemp("mini")
    network = write_network(folder / "mini.onnx")
    exported = export_onnx(network, folder / "mini.bundle", spec=PRESETS["insightface"]).bundle
    calibrate(exported, open_faces("synthetic:16x2@5"))
    return exported.root


@pytest.fixture(scope="session")
def detecting_mini(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a small detector, exported and calibrated on twelve pictures."""
    from bright_detector import draw_bright_cell, write_conv_detector
    from PIL import Image

    from fr_edge.calibration.detector_calibration import calibrate_detector
    from fr_edge.export.detector_export import export_detector
    from fr_edge.faces.photographs import open_photographs

    folder = tmp_path_factory.mktemp("detecting")
    shutil.copytree(calibrated_mini, folder / "mini.bundle")
    (folder / "photographs").mkdir()
    for number in range(12):
        picture = Image.fromarray(draw_bright_cell(number + 9, number))
        picture.save(folder / "photographs" / f"{number:02}.png")
    export_detector(write_conv_detector(folder / "bright.onnx"), folder / "mini.bundle")
    calibrate_detector(folder / "mini.bundle", open_photographs(folder / "photographs"))
    return folder / "mini.bundle"


@pytest.fixture
def mini(calibrated_mini: Path, tmp_path: Path) -> Path:
    """A calibrated bundle that the test may change."""
    shutil.copytree(calibrated_mini, tmp_path / "mini.bundle")
    return tmp_path / "mini.bundle"


@contextmanager
def terminal_of_80_columns() -> Iterator[list[str]]:
    """stdout and stderr are a terminal of 80 columns, and what is printed fits.

    It is in the list at the end.

    Words stay whole: a line that holds one path or one command in backticks may be longer.
    """
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    shown, lines = bytearray(), list[str]()

    def read() -> None:
        with suppress(OSError):  # the other side is closed
            while part := os.read(controller, 4096):
                shown.extend(part)

    reader = Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch, open(terminal, "w", encoding="utf-8") as stream:
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("TERM", "dumb")
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield lines
    reader.join()
    os.close(controller)
    assert shown
    lines += shown.decode().replace("\r\n", "\n").split("\n")
    for line in lines:
        assert len(line) <= 80 or re.fullmatch(r" *(`[^`]*`\S*|\S+)", line), line


@pytest.fixture
def terminal() -> Callable[[], AbstractContextManager[list[str]]]:
    """`with terminal() as lines:` gives what runs inside a terminal of 80 columns."""
    return terminal_of_80_columns


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[Path, int, float], str]:
    """Opens a page in Chromium, `(page, width in pixels, timeout in seconds)` -> its DOM; the test
    fails when the console has something to say, and skips where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")

    def show(page: Path, width: int, timeout_s: float) -> str:
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={width},800",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        assert "CONSOLE" not in done.stderr
        return done.stdout

    return show


@pytest.fixture
def ijb_folder(tmp_path: Path) -> Path:
    """IJB in small: five people, two templates each: one of three images of two media, one of one image."""
    people = 5
    random = np.random.default_rng(0)
    root = tmp_path / "IJBX"
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    media: list[str] = []
    points: list[str] = []
    number = 0
    for person in range(people):
        look = random.integers(0, 256, (5, 5, 3)).repeat(30, axis=0).repeat(30, axis=1)
        for template, medium in ((0, 1), (0, 1), (0, 2), (1, 3)):
            number += 1
            pixels = np.clip(look + random.integers(-30, 31, look.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "loose_crop" / f"{number}.jpg", quality=95)
            media.append(f"{number}.jpg {person * 2 + template} {person * 10 + medium}")
            places = np.array(ARCFACE_TEMPLATE) * 1.2 + random.normal(size=(5, 2))
            values = [*places.reshape(-1), random.uniform(0.5, 1)]
            points.append(f"{number}.jpg " + " ".join(f"{v:.4f}" for v in values))
    pairs = [f"{2 * a} {2 * b + 1} {int(a == b)}" for a in range(people) for b in range(people)]
    (root / "meta" / "x_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    (root / "meta" / "x_name_5pts_score.txt").write_text("\n".join(points) + "\n")
    (root / "meta" / "x_template_pair_label.txt").write_text("\n".join(pairs) + "\n")
    return root
