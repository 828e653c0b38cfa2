"""The command lines that `benchmarks/fuzz.py` gives mutated files to, and the files they begin from."""

import contextlib
import io
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TRAINING = (  # what a mutated recipe may not raise
    "--out @/s --set losses=arcface --set network=iresnet-tiny --set dim=16 --set epochs=1"
    " --set batch=2 --set accumulate=1 --set workers=0 --set verify_identities=0"
    " --set checkpoint_s=1000 --set compile=false --set amp=off"
)


def make_seeds(home: Path) -> None:
    """The bundle and the other files that inputs begin from."""
    from fr_edge.cli.main import run
    from tests.networks import write_network

    bundle = home / "made" / "b"
    home.mkdir()
    write_network(home / "net.onnx", batch="batch")
    for line in (
        f"export {home}/net.onnx --preset insightface --out {bundle}",
        f"calibrate {bundle} --faces synthetic:16x2@5 --trt-cache 10.3.0",
        f"build-engine {bundle} --int8 --backend onnxruntime",
        f"build-engine {bundle} --int8 --backend onnxruntime --input frame",
        f"verify {bundle} --engine int8 --faces synthetic:16x4@7",
        f"benchmark {bundle} --engine int8 --duration 0.3",
        f"embed {bundle} --faces synthetic:6x2 --out {home}/e.npz",
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run([*line.split(), "-q"])  # verdicts do not matter
    stop_training(home / "training")
    write_photographs(home / "photographs")
    sign_pack(bundle, home / "signed")


def stop_training(home: Path) -> None:
    """A training that a signal stopped: its bundle's folder holds a checkpoint."""
    from fr_edge.distill.recipe import read_recipe
    from fr_edge.distill.train import distill_student
    from fr_edge.faces.sources import open_faces
    from fr_edge.interruption import Interrupted

    def track(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        for item in items:
            if label == "training":
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    with contextlib.suppress(Interrupted):
        changes = [part for part in TRAINING.split() if "=" in part]
        faces = open_faces("synthetic:8x4")
        distill_student(read_recipe("tiny", changes), faces, home / "s", track=track)
    assert (home / "s" / "checkpoint" / "last.pt").exists()


def write_photographs(home: Path) -> None:
    """Two photographs in which the detector beside them finds faces."""
    from PIL import Image

    from fr_edge.faces.sources import open_faces
    from tests.cli.bright_detector import write_bright_detector

    (home / "photos").mkdir(parents=True)
    write_bright_detector(home / "detector.onnx")
    faces = open_faces("synthetic:2x1@4")
    for index in range(2):
        Image.fromarray(faces.read(index)).save(home / "photos" / f"{index}.png")


def sign_pack(bundle: Path, home: Path) -> None:
    """A signed pack and the public key."""
    from fr_edge.cli.main import run

    home.mkdir()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(["keygen", str(home / "maker"), "-q"])
        run(
            ["pack", str(bundle), "--out", str(home / "x.frb"), "--sign", f"{home}/maker.key", "-q"]
        )
    (home / "maker.key").unlink()


def commands(seeds: Path) -> dict[str, tuple[str, str, str]]:
    """Name -> folder of the files, pattern of those that are mutated, command line; `@` is the copy."""
    bundle = str(seeds / "made")
    faces = "--faces synthetic:12x2"
    lines = {
        "inspect": "inspect @/b",
        "inspect --layers": "inspect @/b/model.onnx --layers",
        "verify": f"verify @/b --engine int8 {faces}",
        "verify graph": "verify @/b --engine int8 --artifact graph",
        "evaluate": f"evaluate @/b --engine int8 --protocol {seeds}/readers/pairs/pairs.csv",
        "build-engine": "build-engine @/b --int8 --backend onnxruntime",
        "calibrate": f"calibrate @/b {faces} --limit 16",
        "embed": f"embed @/b {faces} --out @/e.npz",
        "benchmark": "benchmark @/b --engine int8 --duration 0.1",
        "report": "report @/b",
        "export bundle": "export @/b --out @/c",
        "export onnx": "export @/b/model.onnx --out @/c",
        "find-preprocessing": "find-preprocessing @/b --faces synthetic:12x2",
        "pack": "pack @/b --out @/x.frb",
    }
    table = {name: (bundle, "b/*", line) for name, line in lines.items()}
    other, photographs = seeds / "readers", str(seeds / "photographs")
    people = "--faces synthetic:8x4"
    taught = TRAINING.replace("losses=arcface", "losses=adadistill")
    taught += " --teacher @/x.pt --set teacher_arch=iresnet-tiny --set teacher_preset=insightface"
    table |= {
        "verify pairs": (str(other / "pairs"), "pairs.csv", f"verify {bundle}/b --pairs @/pairs.csv"),
        "evaluate bin": (str(other / "bins"), "x.bin", f"evaluate {bundle}/b --protocol @/x.bin"),
        "embed tar": (str(other / "tars"), "x.tar", f"embed {bundle}/b --faces @/x.tar --out @/e.npz"),
        "embed records": (str(other / "records"), "*", f"embed {bundle}/b --faces @ --out @/e.npz"),
        "export checkpoint": (str(other / "torch"), "x.pt", "export @/x.pt --preset insightface --out @/c"),
        "check-engine": (str(other / "plan"), "*", "check-engine @/x.plan"),
        "compare": (str(other / "report"), "r.json", f"compare @/r.json {bundle}/b"),
        "verify policy": (str(other / "policy"), "p.toml", f"verify {bundle}/b --policy @/p.toml"),
        "distill": (str(other / "recipe"), "r.toml", f"distill @/r.toml {people} {TRAINING}"),
        "distill faces": (str(other / "tars"), "x.tar", f"distill tiny --faces @/x.tar {TRAINING}"),
        "distill teacher": (str(other / "torch"), "x.pt", f"distill tiny {people} {taught}"),
        "distill on": (str(seeds / "training"), "s/checkpoint/*", f"distill tiny {people} {TRAINING}"),
        "verify package": (str(other / "kept" / "package"), "p/*", "verify --package @/p"),
        "run": (str(other / "kept" / "plan"), "run.toml", "run --config @/run.toml --out @/o"),
        "unpack": (str(other / "pack"), "x.frb", "unpack @/x.frb --out @/c --allow-unsigned"),
        "unpack signed": (str(seeds / "signed"), "*", "unpack @/x.frb --out @/c --trust @/maker.pub"),
        "align": (photographs, "photos/*", "align @/photos --out @/o --detector @/detector.onnx"),
        "align detector": (
            photographs, "detector.onnx", "align @/photos --out @/o --detector @/detector.onnx"
        ),
    }  # fmt: skip
    return table
