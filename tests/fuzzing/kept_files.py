"""The readers of what fr-edge itself keeps between two commands: journals, drafts, logs, caches, sidecars.

They lie beside bundles and in the user's folders, travel in archives, and may be torn.
"""

import hashlib
import json
import os
import shutil
import signal
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fr_edge.arrays import F32, U8
from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.journal import JOURNAL, _owner
from fr_edge.bundle.keys import make_key_pair, read_public_key, read_signing_key
from fr_edge.bundle.manifest import STAGED, Bundle
from fr_edge.bundle.signature import add_signature, signed_files
from fr_edge.bundle.trust import list_signatures
from fr_edge.calibration.covariance import InputCovariance
from fr_edge.calibration.histogram import empty_histogram
from fr_edge.calibration.search.mixed_precision import SearchLog
from fr_edge.calibration.statistics_draft import StatisticsDraft
from fr_edge.cli.output import Output
from fr_edge.cli.pipeline import _rows
from fr_edge.cli.run import _row
from fr_edge.cli.run_plan import RunPlan, encode_plan, read_plan
from fr_edge.cli.stages import Work, run_stages
from fr_edge.faces import embedding_log
from fr_edge.faces.align_log import AlignedImage, AlignLog
from fr_edge.faces.contract import InputSpec
from fr_edge.faces.sources import open_faces
from fr_edge.fleet.evidence_files import read_evidence
from fr_edge.progress import silent
from fr_edge.runtime.acceptance.accept import _Acceptance
from fr_edge.runtime.benchmark.conditions import required_power_mode
from fr_edge.runtime.evaluation.limits import min_cosine_floor, with_policy_signatures
from fr_edge.runtime.packages.package import package
from fr_edge.runtime.packages.verify_package import read_package
from fr_edge.runtime.session import open_session

from .mutate import agree
from .readers import Reader, png

SIDECAR = "b/engines/onnxruntime-int8-frame.onnx.json"
_NUMBERS = {
    **{"untrained": 0.6, "teacher": 0.95, "student": 0.9, "share": 0.9, "size": 1000},
    **{
        name: {"passed": True, "text": "x"} for name in ("fp16 engine", "int8 engine", "int8 graph")
    },
    **{"verdict": "PASSED", "reason": "", "far": "1e-4", "tar": 0.9, "tar_change": -0.001},
    **{"tar_interval_95": (-0.01, 0.01), "p50_ms": 1.5, "timing": "VALID"},
}


def make_kept_readers(home: Path, bundle: Path) -> list[Reader]:
    """Their readers, with files written below `home`.

    Args:
        home: A folder; its subfolders `kept/...` are made.
        bundle: A bundle with an INT8 engine that takes frames.
    """
    home = home / "kept"
    home.mkdir(parents=True)
    return [
        _stages(home / "stages"),
        _plan(home / "plan"),
        _acceptance(home / "acceptance"),
        _statistics(home / "statistics", bundle),
        _search(home / "search"),
        _align(home / "align"),
        _embeddings(home / "embeddings"),
        _journal(home / "journal"),
        *_keys(home / "keys", bundle),
        _frame_engine(home / "frame", bundle),
        _bundle_policy(home / "policy", bundle),
        _package(home / "package", bundle),
        _evidence(home / "evidence", bundle, home / "acceptance" / "a.json"),
    ]


def _stages(home: Path) -> Reader:
    """The journal of `run` and of `demo`, and the tables made of it."""

    def read(root: Path) -> None:
        names = [f"{kind} int8" for kind in ("calibrate", "engine", "verify", "benchmark")]
        works = {name: Work(lambda: ("x", "y", _NUMBERS), {"a": 1}) for name in names}
        stages = run_stages(root / "run.json", works, Output(quiet=True))
        for row in _rows(("int8",), {stage.stage: stage for stage in stages}):
            _row(row)
        if find_spec("torch"):
            from fr_edge.cli.demo_stages import _gates

            _gates(stages[-1].numbers)

    home.mkdir()
    read(home)
    return Reader("stages", home, ("run.json",), read)


def _plan(home: Path) -> Reader:
    home.mkdir()
    plan = RunPlan("photos", "model.onnx", "detector.onnx", precisions=("int8",), preset="raw")
    (home / "run.toml").write_bytes(encode_plan(plan))
    return Reader("run plan", home, ("run.toml",), lambda r: read_plan(r / "run.toml", {}))


def _acceptance(home: Path) -> Reader:
    """The file that `accept` goes on with."""

    def run(root: Path) -> _Acceptance:
        acceptance = _Acceptance(root / "a.json", "onnxruntime", None, silent)
        acceptance.begin("", {})
        acceptance._over("sample")
        return acceptance

    home.mkdir()
    run(home)
    document = json.loads((home / "a.json").read_bytes())
    check = {
        **{"bundle": "sample", "precision": "int8", "verdict": "PASSED", "problems": []},
        **{"cosine": {"min": 0.99, "mean": 1.0}, "build_s": 1.0, "seconds": 2.0, "size": 9},
        "benchmark": {
            "verdict": "VALID",
            "runs": [{"latency_ms": {"p50": 1.0}, "verdict": "VALID"}],
        },
    }
    document["engines"] = [check, {**check, "precision": "fp16"}]
    document["choices"] = [
        {
            **{"bundle": "sample", "ship": "int8", "times_ms": {"int8": 1, "fp16": 2, "fp32": 3}},
            **{"certain": True, "text": "x"},
        }
    ]
    (home / "a.json").write_text(json.dumps(document))
    return Reader("acceptance", home, ("a.json",), run)


def _statistics(home: Path, bundle: Path) -> Reader:
    """What a calibration that was stopped has counted."""
    faces = open_faces("synthetic:8x1@3").cached()
    digests = {i: hashlib.sha256(faces.read(i).tobytes()).digest() for i in range(len(faces))}
    home.mkdir()
    shutil.copytree(bundle, home / "b")

    def draft(root: Path) -> StatisticsDraft:
        moments = {"conv": InputCovariance(np.zeros((3, 3), np.float32), np.zeros(3))}
        opened = open_bundle(root / "b", check="manifest")
        return StatisticsDraft(opened, range(8), ["t"], moments)

    begun = draft(home)
    begun.histograms["t"] = empty_histogram(4)
    used: list[int] = []
    with suppress(KeyboardInterrupt), begun.collecting(used, digests):
        used += range(8)
        os.kill(os.getpid(), signal.SIGTERM)
        begun.counted(8)
    name = ".b.statistics"
    assert (home / name).exists()
    return Reader("statistics", home, (name,), lambda r: draft(r).restore(faces, digests))


def _search(home: Path) -> Reader:
    """The log of a search within a budget."""

    def read(root: Path) -> None:
        log = SearchLog(root / "s.json", "key")
        for name in ("noise", "conv saves", "conv"):
            log.recall(name, float, lambda: 0.25)

    home.mkdir()
    read(home)
    return Reader("search log", home, ("s.json",), read)


def _align(home: Path) -> Reader:
    """The log of an alignment that was stopped, and its crops."""
    (home / "out").mkdir(parents=True)
    for number in range(3):
        (home / f"{number}.png").write_bytes(png(number))
        (home / "out" / f"{number}.png").write_bytes(png(number))
    log = AlignLog(home, home / "out", "detector")
    for number in range(3):
        log.add(f"{number}.png", AlignedImage(1, "", (f"{number}.png",)))

    def read(root: Path) -> None:
        log = AlignLog(root, root / "out", "detector")
        for number in range(3):
            log.recall(f"{number}.png")
        log.add("0.png", AlignedImage(1, "", ("0.png",)))

    return Reader("align log", home, ("out/.align.jsonl",), read)


class _TwoNumbers:
    """Embeds a face as two of its pixels."""

    dim = 2

    def embed(self, images: U8) -> F32:
        """`(N, 112, 112, 3) uint8` -> `(N, 2) float32`."""
        rows: F32 = images[:, 0, :2, 0].astype(np.float32)
        return rows


def _embeddings(home: Path) -> Reader:
    """The log of embeddings of an interrupted command."""
    faces = open_faces("synthetic:4x1@3").cached()
    batches = list(faces.batches(2))
    home.mkdir()

    def read(root: Path) -> None:
        log = embedding_log._Log(_TwoNumbers(), root / "log")
        log._start -= 60
        for batch in batches:
            log.embed(batch)
        log.close()

    read(home)
    return Reader("embedding log", home, ("log",), read)


def _journal(home: Path) -> Reader:
    """The journal of an interrupted commit: replayed by a command that writes, inside the bundle alone."""
    home.mkdir()
    with transaction(home / "b", "export", {}) as change:
        change.spec, change.embedding_dim = InputSpec(), 8
        change.path("a.json", "test").write_bytes(b"{}")
    (home / "b" / JOURNAL).write_bytes(
        json.dumps({"arrived": ["b.json"], "gone": [], "owner": [0, 0, 0]}).encode()
    )

    def read(root: Path) -> None:
        path, staged = root / "b" / JOURNAL, root / "b" / STAGED
        staged.mkdir(exist_ok=True)
        (staged / "b.json").write_bytes(b"{}")
        with suppress(
            ValueError, OSError, AttributeError, RecursionError
        ):  # as if it had been written here
            document = json.loads(path.read_bytes()) if path.is_file() else None
            if document is not None and document.get("owner") == [0, 0, 0]:
                path.write_text(json.dumps({**document, "owner": _owner(root / "b")}))
        open_bundle(root / "b")
        with transaction(root / "b", "after", {}):
            pass
        open_bundle(root / "b", check="all")

    return Reader("commit journal", home, (f"b/{JOURNAL}",), read)


def _keys(home: Path, bundle: Path) -> list[Reader]:
    """A private key, an OpenSSH public key, and a bundle that is signed with them."""
    home.mkdir()
    make_key_pair(home / "m.key", home / "m.pub")
    public, key = read_public_key(home / "m.pub"), read_signing_key(home / "m.key")
    signed = home.parent / "signed"
    shutil.copytree(bundle, signed / "b")
    opened = open_bundle(signed / "b", check="manifest")
    add_signature(opened, list(opened.files), key)

    def read_signed(root: Path) -> None:
        opened = open_bundle(root / "b", check="manifest")
        list_signatures(opened)
        signed_files(opened, [public])

    def read_key(root: Path) -> None:
        (root / "m.key").is_file() and (root / "m.key").chmod(0o600)
        read_signing_key(root / "m.key")

    return [
        Reader("private key", home, ("m.key",), read_key),
        Reader("OpenSSH key", home, ("m.pub",), lambda r: read_public_key(r / "m.pub")),
        Reader("signatures", signed, ("b/bundle.signatures.json",), read_signed),
    ]


def _frame_engine(home: Path, bundle: Path) -> Reader:
    """The sidecar of an engine that takes frames; the manifest agrees with it."""
    home.mkdir()
    shutil.copytree(bundle, home / "b")

    def read(root: Path) -> None:
        agree(root / "b", root / SIDECAR)
        with open_session(root / "b", "int8-frame", "onnxruntime", threads=1) as session:
            session.embed_frame(np.zeros((200, 200, 3), np.uint8), np.zeros((0, 5, 2), np.float32))

    return Reader("frame engine", home, (SIDECAR,), read)


def _bundle_policy(home: Path, bundle: Path) -> Reader:
    """A policy as `benchmark` and devices read it."""
    home.mkdir()
    text = b"require_signature = false\n[benchmark]\npower_mode = 'MAXN'\nmax_p99_ms = 5\n"
    (home / "p.toml").write_bytes(text)
    opened = open_bundle(bundle, check="manifest")

    def read(root: Path) -> Bundle:
        required_power_mode(opened, root / "p.toml")
        min_cosine_floor(opened, root / "p.toml", "int8")
        return with_policy_signatures(opened, root / "p.toml")

    return Reader("device's policy", home, ("p.toml",), read)


def _package(home: Path, bundle: Path) -> Reader:
    """The list of files of a package for another runtime."""
    home.mkdir()
    package(bundle, "onnx", home / "p")
    return Reader("package", home, ("p/package.json",), lambda r: read_package(r / "p"))


def _evidence(home: Path, bundle: Path, acceptance: Path) -> Reader:
    """What a fleet's boards have sent: reports and the file of `accept`."""
    board = home / "board"
    board.mkdir(parents=True)
    names = [n for n in open_bundle(bundle, check="manifest").files if "reports/verify" in n]
    shutil.copyfile(bundle / names[0], board / "verify.json")
    shutil.copyfile(acceptance, board / "accept.json")
    files = tuple(f"board/{name}.json" for name in ("verify", "accept"))
    return Reader("board's evidence", home, files, lambda r: read_evidence(r / "board"))


def make_training_readers(home: Path) -> list[Reader]:
    """The readers that need torch: what a training keeps and takes, and programs of networks.

    Args:
        home: A folder; its subfolders `training/...` are made.
    """
    home = home / "training"
    home.mkdir(parents=True)
    return [
        _exclusions(home / "list"),
        _teacher_cache(home / "cache"),
        *_programs(home / "programs"),
    ]


def _exclusions(home: Path) -> Reader:
    from fr_edge.distill.data_report import read_exclusions

    home.mkdir()
    (home / "suspects.csv").write_text(
        "image,reason,cosine\na/0.png,outlier,0.1\nb/1.png,singleton,0\n"
    )
    keys = ["a/0.png", "b/1.png", "c/2.png"]
    return Reader(
        "exclusions", home, ("suspects.csv",), lambda r: read_exclusions(r / "suspects.csv", keys)
    )


def _teacher_cache(home: Path) -> Reader:
    from fr_edge.distill.dataset import Pixels
    from fr_edge.distill.teacher import Teacher
    from fr_edge.distill.teacher_cache import cached_embeddings

    pixels = Pixels(open_faces("synthetic:2x2@3"), np.arange(4), 100)
    teacher = Teacher("x", InputSpec(), 2, "ab" * 32, _TwoNumbers().embed)

    def read(root: Path) -> None:
        np.array(cached_embeddings(root / "c", teacher, pixels))

    home.mkdir()
    read(home)
    return Reader(
        "teacher cache", home, tuple(f"c/teacher.{n}" for n in ("json", "npy", "done")), read
    )


def _programs(home: Path) -> list[Reader]:
    """TorchScript and torch.export files: the checks before anything of them is run."""
    import torch

    from fr_edge.distill.foreign.foreign_network import load_program

    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 4), torch.nn.PReLU(4), torch.nn.Flatten(), torch.nn.Linear(256, 16)
    ).eval()
    face = torch.zeros(1, 3, 32, 32)
    home.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, face), home / "x.ts.pt")
        torch.export.save(torch.export.export(network, (face,)), home / "x.pt2")
    return [
        Reader("TorchScript", home, ("x.ts.pt",), lambda r: load_program(r / "x.ts.pt")),
        Reader("torch.export", home, ("x.pt2",), lambda r: load_program(r / "x.pt2")),
    ]
