"""Fuzzes the readers and the commands: mutated files, in processes with limits, and a table.

    python benchmarks/fuzz.py [--inputs 10000] [--seed 1] [--commands 0.15] [--workers 2]
        [--minutes 30] [--json]

An input is a copy of good files of which one is mutated (`tests/fuzzing`): by its structure where the
format is known, else by bytes; or replaced by a pipe, a device, a link or a folder. In a bundle, half
of the time, the manifest is made to agree with the changed file, as somebody hostile would. It is
then read in this process's workers, which have 6 GB of address space:

    refused     a FrEdgeError, or exit code 1 to 4 with a message
    accepted    what was read makes sense, or exit code 0
    traceback   any other exception
    died        by a signal, or out of memory
    hang        no answer within 60 s (readers) or 150 s (commands)
    outside     a file beside the input's folder was written, changed or deleted

Failing inputs are kept in `--keep FOLDER`, each with the seed that made it.
"""

import argparse
import contextlib
import io
import json
import os
import queue
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
OUTCOMES = ("refused", "accepted", "traceback", "died", "hang", "outside")
MEMORY = 6 << 30
SECONDS = {"reader": 60, "command": 150}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", type=float, default=0.15, help="share of the inputs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=0, help="begin no input after these")
    parser.add_argument("--only", default="", help="readers and commands whose name contains this")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker)
        return
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        from tests.fuzzing.command_lines import make_seeds

        home = Path(folder)
        make_seeds(home / "seeds")
        jobs: queue.Queue[str] = queue.Queue()
        for job in plan(home / "seeds", arguments):
            jobs.put(json.dumps(job))
        lock, total = threading.Lock(), jobs.qsize()
        threads = [
            threading.Thread(target=work, args=(home, number, jobs, counts, lock, total, arguments))
            for number in range(arguments.workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if arguments.json:
        print(json.dumps(counts, indent=1, sort_keys=True))
        return
    rows = [
        [name, sum(c.values()), *(c[o] for o in OUTCOMES)] for name, c in sorted(counts.items())
    ]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print("| input | inputs | " + " | ".join(OUTCOMES) + " |")
    print("|---|" + "---:|" * (len(OUTCOMES) + 1))
    for row in rows:
        print(
            "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |"
        )


def plan(seeds: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The inputs, spread evenly over readers and over commands."""
    from tests.fuzzing.command_lines import commands
    from tests.fuzzing.readers import make_readers

    readers = [r.name for r in make_readers(seeds / "readers", seeds / "made" / "b")]
    lines = list(commands(seeds))
    if arguments.only:
        readers = [name for name in readers if arguments.only in name]
        lines = [name for name in lines if arguments.only in name]
    share = arguments.commands if readers and lines else float(bool(lines))
    count = round(arguments.inputs * share)
    jobs = [
        {"kind": kind, "name": names[i % len(names)], "seed": f"{arguments.seed}-{kind}-{i}"}
        for kind, names, n in (
            ("command", lines, count),
            ("reader", readers, arguments.inputs - count),
        )
        for i in range(n)
    ]
    random.Random(arguments.seed).shuffle(jobs)
    return jobs


def work(
    home: Path,
    number: int,
    jobs: "queue.Queue[str]",
    counts: dict[str, Counter[str]],
    lock: threading.Lock,
    total: int,
    arguments: argparse.Namespace,
) -> None:
    """Feed one worker process after another, until no job is left."""
    process: subprocess.Popen[bytes] | None = None
    end = time.monotonic() + 60 * (arguments.minutes or 1e6)
    while time.monotonic() < end:
        try:
            text = jobs.get_nowait()
        except queue.Empty:
            break
        job = json.loads(text)
        job["place"] = str(home / f"worker{number}")
        if process is None or process.poll() is not None:
            process = start(home)
            assert process.stdout is not None
            process.stdout.readline()  # that it is ready; its imports are not the input's time
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], SECONDS[job["kind"]])
        line = process.stdout.readline() if ready else b""
        if not ready:
            process.kill()
            process.wait()
            answer = {"outcome": "hang", "detail": ""}
        elif not line:
            answer = {"outcome": "died", "detail": f"exit status {process.wait()}"}
        else:
            answer = json.loads(line)
        with lock:
            name = job["name"] if job["kind"] == "reader" else f"`{job['name']}`"
            counts.setdefault(name, Counter())[answer["outcome"]] += 1
            done = sum(sum(c.values()) for c in counts.values())
            if answer["outcome"] not in ("refused", "accepted"):
                print(
                    f"{answer['outcome']}: {name} {job['seed']}\n{answer['detail']}",
                    file=sys.stderr,
                )
                keep(Path(job["place"]), arguments.keep, job, answer)
            if done % 500 == 0:
                print(f"{done} of {total}", file=sys.stderr, flush=True)
    if process is not None:
        process.kill()
        process.wait()


def start(home: Path) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "FR_EDGE_MAX_APART_SECONDS": "20",
        "FR_EDGE_MAX_APART_MB": "3000",
    }
    line = [sys.executable, __file__, "--worker", str(home)]
    return subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
    )


def keep(place: Path, folder: Path | None, job: dict[str, Any], answer: dict[str, str]) -> None:
    if folder is None:
        return
    target = folder / f"{answer['outcome']}-{job['name'].replace(' ', '_')}-{job['seed']}"
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(place / "input", target, symlinks=True)
        (target / "why.txt").write_text(json.dumps(job) + "\n" + answer["detail"])


def serve(home: Path) -> None:
    """A worker: reads jobs, writes answers; everything else goes to /dev/null."""
    from tests.fuzzing.readers import make_readers

    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.BytesIO())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        # Only for their functions: the files lie in the seeds' folder already.
        made = make_readers(Path(scratch) / "readers", home / "seeds" / "made" / "b")
        readers = {reader.name: reader for reader in made}
        answers.write("ready\n")
        answers.flush()
        for line in sys.stdin:
            job = json.loads(line)
            place = Path(job["place"])
            shutil.rmtree(place, ignore_errors=True)
            try:
                answer = one(job, place, readers, home / "seeds")
            except Exception:  # a fault of this program
                answer = {"outcome": "died", "detail": traceback.format_exc()}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def one(job: dict[str, Any], place: Path, readers: dict[str, Any], seeds: Path) -> dict[str, str]:
    from fr_edge.errors import FrEdgeError
    from tests.fuzzing.command_lines import commands
    from tests.fuzzing.mutate import agree, mutate

    rng = random.Random(job["seed"])
    copy = place / "input"
    if job["kind"] == "reader":
        reader = readers[job["name"]]
        shutil.copytree(reader.folder, copy)
        target = copy / rng.choice(reader.targets)
        line = ""
    else:
        folder, pattern, line = commands(seeds)[job["name"]]
        shutil.copytree(folder, copy)
        files = [p for p in sorted(copy.rglob("*")) if p.is_file() and p.match(pattern)]
        files += [p for p in sorted(copy.rglob("*/*/*")) if p.is_file()] if "b/" in pattern else []
        if job["name"] in ("inspect --layers", "export onnx"):
            files = [copy / "b" / "model.onnx"]
        target = rng.choice(files)
    (place / "beside").mkdir()
    (place / "beside" / "yours.txt").write_text("yours")
    if not job["seed"].startswith("good-"):
        mutate(rng, target)
    in_bundle = target.is_file() and target.name != "bundle.json" and copy / "b" in target.parents
    if in_bundle and rng.random() < 0.5:
        agree(copy / "b", target)
    before = beside(place, copy)
    os.chdir(place / "beside")
    outcome, detail = "accepted", ""
    try:
        if job["kind"] == "reader":
            reader.read(copy)
        else:
            outcome, detail = command(line.replace("@", str(copy)))
    except FrEdgeError:
        outcome = "refused"
    except MemoryError:
        outcome = "refused"  # the command line says so, with exit code 3
    except BaseException:
        outcome, detail = "traceback", traceback.format_exc()
    if beside(place, copy) != before:
        outcome, detail = "outside", f"{detail}\n{beside(place, copy)}"
    return {"outcome": outcome, "detail": detail[-3000:]}


def command(line: str) -> tuple[str, str]:
    from fr_edge.cli.main import run

    err = io.TextIOWrapper(io.BytesIO(), write_through=True)
    out = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = run(line.split())
    text = err.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    if code and not text.strip():
        text = out.buffer.getvalue().decode()  # type: ignore[attr-defined]  # a result that is no success
    if code not in range(5) or "Traceback" in text or (code and not text.strip()):
        return "traceback", f"exit code {code}: {text}"
    return ("refused" if code else "accepted"), ""


def beside(place: Path, copy: Path) -> dict[str, str]:
    """What lies beside the input, which nothing may change."""
    files = [p for p in place.rglob("*") if copy not in p.parents and p != copy]
    return {str(p): p.read_text() if p.is_file() else "" for p in files}


if __name__ == "__main__":
    main()
