"""Kills at random moments: each command in a process of its own, then the same command again.

    python benchmarks/kills.py [--kills 25] [--again 25] [--seed 0] [--signal KILL] [--only verify,export]

A command is killed at a moment drawn evenly over its run. Its bundle must then open with all hashes
right, as it was or as the command makes it. After the first `--again` kills the same command, run
again, must end as an uninterrupted one does; after the others an empty change is made. Either must
leave nothing but what the manifest lists. `distill`, `demo` and `run` keep their progress, so
they are killed again and again on one folder, until they have been killed often enough or are done.

Processes are forks of one that has loaded the libraries. Nothing is simulated: the networks are small.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / part) for part in ("", "cli")]

from bright_detector import write_bright_detector  # noqa: E402
from networks import write_network  # noqa: E402

from fr_edge.bundle.bundle import open_bundle, transaction  # noqa: E402
from fr_edge.bundle.pack_format import unlisted_files  # noqa: E402
from fr_edge.cli import demo_stages  # noqa: E402
from fr_edge.cli.main import run  # noqa: E402
from fr_edge.errors import BundleError  # noqa: E402
from fr_edge.faces.sources import open_faces  # noqa: E402

PEOPLE = "synthetic:16x3@9"
TRAINING = ["--set", "losses=arcface", "--set", "epochs=3", "--set", "batch=20"]
TRAINING += ["--set", "verify_identities=4", "--set", "checkpoint_s=0.2"]
KEEP_GOING = {  # commands that keep their progress -> their bundle
    "distill": "student.bundle",
    "demo": "demo/student.bundle",
    "run": "run/model.bundle",
}
SMALL = demo_stages.DemoPlan(
    training="synthetic:24x4@1",
    calibration="synthetic:8x2@2",
    judging="synthetic:24x3@3",
    changes=("epochs=1", "verify_identities=4", "batch=20", "checkpoint_s=0.2"),
)


@dataclass
class Outcome:
    """What came of the kills of one command."""

    seconds: float = 0.0
    kills: int = 0
    finished_first: int = 0
    again: int = 0
    old: int = 0
    new: int = 0
    journals: int = 0
    problems: list[str] = field(default_factory=list)


def start(args: list[str], log: Path) -> int:
    """Start a command in a process of its own; gives the process's id."""
    child = os.fork()
    if child:
        return child
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    demo_stages.FULL = SMALL
    code = 99
    with contextlib.suppress(BaseException):
        code = run(args)
    sys.stdout.flush()
    os._exit(code)


def ended(child: int) -> int:
    """The exit code of a process, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()}


def hashes(root: Path) -> dict[str, str] | None:
    """The bundle's files with their hashes, all checked; None where there is no bundle."""
    try:
        return {name: e.sha256 for name, e in open_bundle(root, check="all").files.items()}
    except BundleError as error:
        if "there is no bundle" in error.message or "it has no" in error.message:
            return None
        raise


def leftovers(root: Path) -> set[str]:
    """What lies in a bundle's folder and is not the bundle's."""
    return set(unlisted_files(open_bundle(root, check="manifest")))


def judge(outcome: Outcome, root: Path, before: dict[str, str] | None) -> None:
    """The bundle after a kill: whole, and old or new."""
    outcome.journals += (root / "bundle.next.json").exists()
    try:
        after = hashes(root)
    except BundleError as error:
        outcome.problems.append(f"after the kill: {error.message}")
        return
    if after == before:
        outcome.old += 1
    else:
        outcome.new += 1


def kill_copies(
    args: list[str],
    source: Path | None,
    place: Path,
    kills: int,
    repeats: int,
    number: int,
    rng: random.Random,
) -> Outcome:
    """Kill a command on a fresh copy each time, and run it again."""
    outcome, root, log = Outcome(), place / "killed.bundle", place / "log"

    def fresh() -> None:
        for old in (root, place / "out", place / "e.npz"):
            shutil.rmtree(old, ignore_errors=True)
        for name in ("e.npz", "x.frb"):
            (place / name).unlink(missing_ok=True)
        if source is not None:
            shutil.copytree(source, root)

    fresh()
    begin = time.monotonic()
    expected = ended(start(args, log))
    outcome.seconds = time.monotonic() - begin
    if expected not in (0, 1):
        raise SystemExit(f"{' '.join(args)} ends with {expected}:\n{log.read_text()}")
    whole = content(place)
    for count in range(kills):
        fresh()
        before = hashes(root)
        child = start(args, log)
        time.sleep(rng.uniform(0, outcome.seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        code = ended(child)
        outcome.kills += 1
        outcome.finished_first += code == expected
        if code not in (expected, -number, 128 + number):
            outcome.problems.append(f"killed: exit {code}: {log.read_text()[-300:]}")
        judge(outcome, root, before)
        if count < repeats:
            outcome.again += 1
            again = ended(start(args, log))
            if again != expected:
                outcome.problems.append(f"again: exit {again}: {log.read_text()[-300:]}")
        elif hashes(root) is not None:
            with transaction(root, "after", {}):
                pass
        if hashes(root) is not None and (left := leftovers(root)):
            outcome.problems.append(f"left over: {', '.join(sorted(left))}")
        left = {name for name in content(place) - whole if "/reports/" not in name}
        if count < repeats and left:
            outcome.problems.append(f"left over beside it: {', '.join(sorted(left))}")
    return outcome


def kill_in_place(
    args: list[str], place: Path, bundle: Path, kills: int, number: int, rng: random.Random
) -> Outcome:
    """Kill a command that keeps its progress again and again, then let it end."""
    outcome, log = Outcome(), place / "log"
    begin = time.monotonic()
    first = ended(start(args, log))
    if hashes(bundle) is None:
        raise SystemExit(f"{args[0]} made no bundle: exit {first}: {log.read_text()[-300:]}")
    outcome.seconds = time.monotonic() - begin
    shutil.rmtree(place)
    place.mkdir()
    for _ in range(kills):
        child = start(args, log)
        time.sleep(rng.uniform(0, outcome.seconds / 3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        code = ended(child)
        if code == first:
            outcome.finished_first += 1
            shutil.rmtree(place)  # done: begin anew
            place.mkdir()
            continue
        outcome.kills += 1
        if code not in (-number, 128 + number):
            outcome.problems.append(f"killed: exit {code}: {log.read_text()[-300:]}")
        try:
            whole = hashes(bundle)
        except BundleError as error:
            outcome.problems.append(f"after the kill: {error.message}")
        else:
            outcome.old += whole is None
            outcome.new += whole is not None
    outcome.again = 1
    again = ended(start(args, log))
    if again != first:
        outcome.problems.append(f"again: exit {again}: {log.read_text()[-300:]}")
    elif left := leftovers(bundle):
        outcome.problems.append(f"left over: {', '.join(sorted(left))}")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--again", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    number = int(getattr(signal, f"SIG{options.signal}"))
    rng = random.Random(options.seed)
    preload()
    print(f"seed {options.seed}, SIG{options.signal}")
    print(
        "| command | seconds | kills | had ended | run again | bundle as before | changed |"
        " journal left | problems |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        sources, commands = prepare(home)
        wanted = [name for name in options.only.split(",") if name] or list(commands)
        for name in wanted:
            args, source = commands[name]
            place = home / "place"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            if name in KEEP_GOING:
                bundle = place / KEEP_GOING[name]
                outcome = kill_in_place(args, place, bundle, options.kills, number, rng)
            else:
                start_from = sources[source] if source else None
                outcome = kill_copies(
                    args, start_from, place, options.kills, options.again, number, rng
                )
            print(
                f"| {name} | {outcome.seconds:.1f} | {outcome.kills} | {outcome.finished_first} |"
                f" {outcome.again} | {outcome.old} | {outcome.new} | {outcome.journals} |"
                f" {'; '.join(outcome.problems) or 'none'} |",
                flush=True,
            )


def preload() -> None:
    """Load what the commands load, so that forks start at once; no threads are started."""
    import matplotlib.figure  # noqa: F401
    import onnxruntime  # noqa: F401

    from fr_edge.cli import demo_stages  # noqa: F401


def prepare(home: Path) -> tuple[dict[str, Path], dict[str, tuple[list[str], str]]]:
    """Bundles to start from, and the commands with the bundle each starts from ("" for none)."""
    network = str(write_network(home / "mini.onnx"))
    detector = str(write_bright_detector(home / "detector.onnx"))
    faces = open_faces("synthetic:10x2@4")
    for index, key in enumerate(faces.keys):
        from PIL import Image

        file = home / "photos" / f"{key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(faces.read(index)).save(file)
    made = str(home / "made.bundle")
    sources: dict[str, Path] = {}
    for name, line in {
        "exported": ["export", network, "--preset", "insightface", "--out", made],
        "calibrated": ["calibrate", made, "--faces", "synthetic:16x2@5"],
        "built": ["build-engine", made, "--int8", "--backend", "onnxruntime"],
    }.items():
        if code := ended(start(line, home / "log")):
            raise SystemExit(f"{name}: {code}: {(home / 'log').read_text()}")
        sources[name] = home / f"{name}.bundle"
        shutil.copytree(made, sources[name])
    pack = str(home / "built.frb")
    if code := ended(start(["pack", made, "--out", pack], home / "log")):
        raise SystemExit(f"pack: {code}: {(home / 'log').read_text()}")
    place = home / "place"
    root, out = str(place / "killed.bundle"), str(place / "out")
    student, demo = str(place / "student.bundle"), str(place / "demo")
    return sources, {
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


if __name__ == "__main__":
    main()
