"""The commands that `benchmarks/kills.py` kills, with the bundles that they begin from."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / part) for part in ("", "cli")]

from bright_detector import write_bright_detector, write_conv_detector  # noqa: E402
from networks import write_network  # noqa: E402

from fr_edge.bundle.bundle import open_bundle  # noqa: E402
from fr_edge.cli import demo_stages  # noqa: E402
from fr_edge.faces.sources import open_faces  # noqa: E402
from fr_edge.runtime.recognition.face_gallery import Gallery  # noqa: E402
from fr_edge.runtime.recognition.gallery_file import gallery_model  # noqa: E402

PEOPLE = "synthetic:16x3@9"
TRAINING = ["--set", "losses=arcface", "--set", "epochs=3", "--set", "batch=20"]
TRAINING += ["--set", "verify_identities=4", "--set", "checkpoint_s=0.2"]
KEEP_GOING = {  # commands that keep their progress -> their bundle
    "distill": "student.bundle",
    "demo": "demo/student.bundle",
    "run": "run/model.bundle",
    "roll-out on a board": "home/fr-edge/releases/one/bundle",
}
GALLERY = 5  # people that are enrolled at once
Work = list[str] | Callable[[], int]  # a command line, or what else a process does
SMALL = demo_stages.DemoPlan(
    training="synthetic:24x4@1",
    calibration="synthetic:8x2@2",
    judging="synthetic:24x3@3",
    changes=("epochs=1", "verify_identities=4", "batch=20", "checkpoint_s=0.2"),
)


def enrol(gallery: Path, bundle: Path) -> int:
    """Enrol people in steps, the gallery saved after each, as a device's program does."""
    model = gallery_model(open_bundle(bundle, check="manifest"), "fp32")
    generator = np.random.default_rng(0)
    for step in range(40):
        people = Gallery.load(gallery, model) if gallery.exists() else Gallery(model)
        names = [f"{step}-{number}" for number in range(GALLERY)]
        people.enrol_many(names, generator.normal(size=(GALLERY, model.dim)).astype(np.float32))
        people.save(gallery)
    return 0


def roll_out(home: Path, pack: Path) -> int:
    """What a roll-out does on a board; does not return."""
    release = home / "fr-edge" / "releases" / "one"
    release.mkdir(parents=True, exist_ok=True)
    if not (release / "bundle").exists():
        shutil.copyfile(pack, release / "pack.frb")
    settings = dict(RELEASE="one", BACKEND="onnxruntime", PRECISIONS="int8", UNSIGNED="yes")
    settings |= dict(VERIFY_OPTIONS=f"--faces {PEOPLE}", BENCHMARK_OPTIONS="--duration 0.2")
    settings |= dict(HOME=str(home), ROOT="~/fr-edge", ACCEPT="", TRUST="", POLICY="")
    settings |= dict(FR_EDGE=str(Path(sys.executable).with_name("fr-edge")))
    script = ROOT / "fleet/collection/playbooks/roles/board/files/release.sh"
    os.setpgid(0, 0)
    os.execve("/bin/sh", ["sh", str(script), "roll-out"], {**os.environ, **settings})


def prepare(
    home: Path, run_line: Callable[[Work], int]
) -> tuple[dict[str, Path], dict[str, tuple[Work, str]]]:
    """Bundles to start from, and the commands with the bundle each starts from ("" for none)."""
    network = str(write_network(home / "mini.onnx"))
    detector = str(write_bright_detector(home / "detector.onnx"))
    faces = open_faces("synthetic:10x2@4")
    for index, key in enumerate(faces.keys):
        file = home / "photos" / f"{key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph = np.full((160, 224, 3), 20, np.uint8)
        photograph[24:136, 56:168] = faces.read(index) * 0.45
        photograph[64:96, 96:128] = 250  # what both detectors take for a face
        Image.fromarray(photograph).save(file)
    made = str(home / "made.bundle")
    finder = str(write_conv_detector(home / "finder.onnx"))
    photos, role = str(home / "photos"), ("--role", "detector")
    sources: dict[str, Path] = {}
    for name, line in {
        "exported": ["export", network, "--preset", "insightface", "--out", made],
        "calibrated": ["calibrate", made, "--faces", "synthetic:16x2@5"],
        "built": ["build-engine", made, "--int8", "--backend", "onnxruntime"],
        "found": ["export", finder, *role, "--out", made],
        "found int8": ["calibrate", made, *role, "--faces", photos],
        "found built": ["build-engine", made, *role, "--int8", "--backend", "onnxruntime"],
    }.items():
        if code := run_line(line):
            raise SystemExit(f"{name}: {code}: {(home / 'log').read_text()}")
        sources[name] = home / f"{name}.bundle"
        shutil.copytree(made, sources[name])
    pack = str(home / "built.frb")
    if code := run_line(["pack", str(sources["built"]), "--out", pack]):
        raise SystemExit(f"pack: {code}: {(home / 'log').read_text()}")
    place = home / "place"
    root, out = str(place / "killed.bundle"), str(place / "out")
    student, demo = str(place / "student.bundle"), str(place / "demo")
    onnxruntime, gallery = ("--backend", "onnxruntime"), place / "g.npz"
    detector_commands: dict[str, tuple[Work, str]] = {
        "export a detector": (["export", finder, *role, "--out", root], "built"),
        "calibrate a detector": (["calibrate", root, *role, "--faces", photos], "found"),
        "build-engine of a detector": (
            ["build-engine", root, *role, "--int8", *onnxruntime],
            "found int8",
        ),
        "build-engine for frames": (
            ["build-engine", root, "--int8", *onnxruntime, "--input", "frame"],
            "built",
        ),
        "verify --photos": (
            ["verify", root, "--engine", "int8", "--photos", photos],
            "found built",
        ),
        "package": (["package", root, "--for", "onnx", "--out", out], "built"),
        "gallery enrolled": (lambda: enrol(gallery, sources["built"]), ""),
        "roll-out on a board": (lambda: roll_out(place / "home", Path(pack)), ""),
    }
    return sources, {
        **detector_commands,
        "export": (["export", network, "--preset", "insightface", "--out", root], ""),
        "export again": (
            ["export", network, "--preset", "raw", "--force", "--out", root],
            "built",
        ),
        "calibrate": (["calibrate", root, "--faces", "synthetic:16x2@5"], "exported"),
        "calibrate with a budget": (
            ["calibrate", root, "--faces", "synthetic:16x2@5", "--min-cosine", "0.9997"],
            "exported",
        ),
        "build-engine": (["build-engine", root, "--int8", "--backend", "onnxruntime"], "built"),
        "embed": (["embed", root, "--faces", PEOPLE, "--out", str(place / "e.npz")], "built"),
        "verify": (["verify", root, "--engine", "int8", "--faces", PEOPLE], "built"),
        "evaluate": (["evaluate", root, "--protocol", PEOPLE], "built"),
        "benchmark": (["benchmark", root, "--duration", "0.3", "--allow-invalid"], "built"),
        "report": (["report", root], "built"),
        "pack": (["pack", root, "--out", str(place / "x.frb")], "built"),
        "unpack": (["unpack", pack, "--allow-unsigned", "--out", root], ""),
        "unpack over a bundle": (
            ["unpack", pack, "--allow-unsigned", "--force", "--out", root],
            "exported",
        ),
        "align": (["align", str(home / "photos"), "--out", out, "--detector", detector], ""),
        "distill": (
            ["distill", "tiny", "--faces", "synthetic:24x4@1", "--out", student, *TRAINING],
            "",
        ),
        "demo": (["demo", "--out", demo], ""),
        "run": (
            [
                *("run", str(home / "photos"), network),
                *("--preset", "insightface", "--backend", "onnxruntime"),
                *("--precisions", "fp32,int8", "--duration", "0.2", "--out", str(place / "run")),
            ],
            "",
        ),
    }
