"""Seeded mutations over every reader: what is refused is refused by a FrEdgeError, in bounded time.

`benchmarks/fuzz.py` runs many more, over the commands too, in processes with limits.
"""

import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from fr_edge.cli.main import run
from fr_edge.errors import FrEdgeError

from .fuzzing.mutate import mutate
from .fuzzing.readers import Reader, make_readers
from .networks import write_network

COUNT = 30  # inputs of each reader
SECONDS = 20  # for one input
MEMORY = 4 << 30  # bytes above what the tests have already
NAMES = (
    *(
        "bundle",
        "golden",
        "table",
        "onnx",
        "pairs",
        "LFW pairs",
        "photographs' pairs",
        "groups",
        "IJB",
    ),
    *("images", "tar", "RecordIO", "bin set", "embeddings", "gallery", "policy", "device's policy"),
    *("cache", "plan", "frame engine", "public key", "OpenSSH key", "private key", "signatures"),
    *("pack", "report", "stages", "run plan", "acceptance", "commit journal", "package"),
)
CONTINUED = (  # what is damaged begins anew, or is a reason
    *("statistics", "search log", "align log", "embedding log", "board's evidence"),
)
NEEDS_TORCH = (
    *("checkpoint", "old checkpoint", "safetensors", "recipe", "exclusions", "teacher cache"),
    *("TorchScript", "torch.export"),
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    home = tmp_path_factory.mktemp("seeds")
    network, bundle = write_network(home / "net.onnx", batch="batch"), home / "b"
    for line in (
        f"export {network} --preset insightface --out {bundle}",
        f"calibrate {bundle} --faces synthetic:12x2@5 --trt-cache 10.3.0",
        f"build-engine {bundle} --int8 --backend onnxruntime",
        f"build-engine {bundle} --int8 --backend onnxruntime --input frame",
        f"verify {bundle} --engine int8",
    ):
        assert run([*line.split(), "-q"]) in (0, 1)
    torch = find_spec("torch") is not None
    return {reader.name: reader for reader in make_readers(home / "readers", bundle, torch)}


@pytest.fixture
def limits() -> Iterator[None]:
    """More memory than a reader may need, and an alarm; both as before afterwards."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))

    def late(*_: object) -> None:
        raise TimeoutError(f"not read within {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(reader: Reader, seed: str, folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(reader.folder, folder)
    rng = random.Random(seed)
    what = mutate(rng, folder / rng.choice(reader.targets))
    signal.alarm(SECONDS)
    try:
        reader.read(folder)
    except FrEdgeError:
        return "refused"
    except Exception as error:
        raise AssertionError(f"input {seed!r} of {reader.name}, {what}") from error
    finally:
        signal.alarm(0)
    return "accepted"


@pytest.mark.parametrize("name", [*NAMES, *CONTINUED, *NEEDS_TORCH])
def test_what_is_read_is_sense_or_refused(
    name: str, readers: dict[str, Reader], tmp_path: Path, limits: None
) -> None:
    if name not in readers:
        assert name in NEEDS_TORCH
        pytest.skip("checkpoints need torch")
    reader = readers[name]
    reader.read(shutil.copytree(reader.folder, tmp_path / "good"))
    counts = Counter(outcome(reader, f"ci-{i}", tmp_path / "input") for i in range(COUNT))
    assert counts["refused"] >= COUNT // 10 or name in CONTINUED, counts


def test_every_reader_is_here(readers: dict[str, Reader]) -> None:
    known = {*NAMES, *CONTINUED, *NEEDS_TORCH}
    assert known - set(readers) <= set(NEEDS_TORCH)
    assert set(readers) <= known
