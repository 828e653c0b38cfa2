"""Bundles made by the command line itself, from a small real network."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from networks import write_network  # noqa: E402

from fr_edge.cli.main import run  # noqa: E402
from fr_edge.runtime.benchmark import timing  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def short_warm_up() -> Iterator[None]:
    """What a benchmark takes, not how long it runs before it times, is of interest here. For a
    session, the tests of other rooms that the process runs later would have it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_WINDOW_S", 0.02)
        yield


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("network") / "mini.onnx")


@pytest.fixture(scope="session")
def exported(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("exported") / "mini.bundle"
    assert run(["export", str(network), "--out", str(bundle), "--preset", "insightface", "-q"]) == 0
    return bundle


@pytest.fixture(scope="session")
def calibrated(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("calibrated") / "mini.bundle"
    shutil.copytree(exported, bundle)
    assert run(["calibrate", str(bundle), "--faces", "synthetic:16x2@5", "-q"]) == 0
    return bundle


@pytest.fixture(scope="session")
def built(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("built") / "mini.bundle"
    shutil.copytree(calibrated, bundle)
    for precision in ("--fp32", "--int8"):
        build = ["build-engine", str(bundle), precision, "--backend", "onnxruntime", "-q"]
        assert run(build) == 0
    return bundle


@pytest.fixture(scope="session")
def distinct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 people whom a network of random weights tells apart."""
    from networks import write_distinct_people

    return write_distinct_people(tmp_path_factory.mktemp("people"))


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A calibrated bundle with engines, which the test may change."""
    shutil.copytree(built, tmp_path / "mini.bundle")
    return tmp_path / "mini.bundle"
