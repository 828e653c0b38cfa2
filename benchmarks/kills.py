"""Kills at random moments: each command in a process of its own, then the same command again.

    python benchmarks/kills.py [--kills 25] [--again 25] [--seed 0] [--signal KILL] [--only verify,export]

A command is killed at a moment drawn evenly over its run. Its bundle must then open with all hashes
right, as it was or as the command makes it. After the first `--again` kills the same command, run
again, must end as an uninterrupted one does; after the others an empty change is made. Either must
leave nothing but what the manifest lists. `distill`, `demo` and `run` keep their progress, so
they are killed again and again on one folder, until they have been killed often enough or are done;
so is what a roll-out does on a board, a shell script, with all its processes at once. A gallery is
no command but a file that programs change through the library: it must open after each kill.

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

from killed_commands import GALLERY, KEEP_GOING, SMALL, Work, prepare

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.pack_format import unlisted_files
from fr_edge.cli import demo_stages
from fr_edge.cli.main import run
from fr_edge.errors import BundleError
from fr_edge.runtime.recognition.gallery_file import read_gallery


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


def start(args: Work, log: Path) -> int:
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
        code = args() if callable(args) else run(args)
    sys.stdout.flush()
    os._exit(code)


def kill(child: int, number: int) -> None:
    """Send a signal to a process, and to those that it has started where it leads a group."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(child) == child:
            os.killpg(child, number)
        else:
            os.kill(child, number)


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
    args: Work,
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
        for name in ("e.npz", "x.frb", "g.npz"):
            (place / name).unlink(missing_ok=True)
        if source is not None:
            shutil.copytree(source, root)

    fresh()
    begin = time.monotonic()
    expected = ended(start(args, log))
    outcome.seconds = time.monotonic() - begin
    if expected not in (0, 1):
        raise SystemExit(f"{args} ends with {expected}:\n{log.read_text()}")
    whole = content(place)
    for count in range(kills):
        fresh()
        before = hashes(root)
        child = start(args, log)
        time.sleep(rng.uniform(0, outcome.seconds))
        kill(child, number)
        code = ended(child)
        outcome.kills += 1
        outcome.finished_first += code == expected
        if code not in (expected, -number, 128 + number):
            outcome.problems.append(f"killed: exit {code}: {log.read_text()[-300:]}")
        judge(outcome, root, before)
        if (place / "g.npz").exists() and len(read_gallery(place / "g.npz").names) % GALLERY:
            outcome.problems.append("a gallery of half an enrolment")
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
    args: Work, place: Path, bundle: Path, kills: int, number: int, rng: random.Random
) -> Outcome:
    """Kill a command that keeps its progress again and again, then let it end."""
    outcome, log = Outcome(), place / "log"
    begin = time.monotonic()
    first = ended(start(args, log))
    if hashes(bundle) is None:
        raise SystemExit(f"{args} made no bundle: exit {first}: {log.read_text()[-300:]}")
    outcome.seconds = time.monotonic() - begin
    shutil.rmtree(place)
    place.mkdir()
    for _ in range(kills):
        child = start(args, log)
        time.sleep(rng.uniform(0, outcome.seconds / 3))
        kill(child, number)
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
        sources, commands = prepare(home, lambda line: ended(start(line, home / "log")))
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


if __name__ == "__main__":
    main()
