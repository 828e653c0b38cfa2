"""Three pretend boards behind real sshd: roll-outs by real Ansible and fr-edge, cut off in the middle.

The boards are homes on this machine, their engines compute on this CPU: what is proved is that boards
that fail cost only themselves and that the next run does what is missing; not that TensorRT ran.

    python benchmarks/fleet_boards.py            the cases of docs/fleet.md
    python benchmarks/fleet_boards.py 20         as many boards cut off at random moments
    python benchmarks/fleet_boards.py signed     packs by two makers, two roll-outs at once
    python benchmarks/fleet_boards.py accept     `accept` within a roll-out
"""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "fleet")]
from boards_behind_sshd import Board, Boards, free_port, missing  # noqa: E402

from fr_edge.bundle.pack import pack  # noqa: E402
from fr_edge.runtime.selftest import make_sample_bundle  # noqa: E402

FR_EDGE = Path(sys.executable).with_name("fr-edge")
OPTIONS = ["--allow-unsigned", "--no-accept", "-q", "--json"]
SHORT = ["--", "-e", "fr_edge_benchmark_options=--duration=1"]


class Fleet:
    """The boards, and the command line."""

    def __init__(self, root: Path, boards: Boards) -> None:
        self.root, self.boards, self.out = root, boards, root / "evidence"
        self.environment = {**os.environ, **boards.environment, "OMP_NUM_THREADS": "1"}

    def start(self, *line: str, inventory: Path | None = None) -> subprocess.Popen[str]:
        inventory = inventory or self.boards.inventory()
        ends = line.index("--") if "--" in line else len(line)
        before = [*line[:ends], "-i", str(inventory), "--out", str(self.out)]
        command = [str(FR_EDGE), "fleet", *before, *line[ends:]]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=self.environment)

    def run(self, *line: str, inventory: Path | None = None) -> tuple[int, dict[str, str]]:
        """The exit code, and for each board its verdict and why."""
        process = self.start(*line, inventory=inventory)
        return self.wait(process)

    def wait(self, process: subprocess.Popen[str]) -> tuple[int, dict[str, str]]:
        out, err = process.communicate()
        try:
            boards = json.loads(out)["boards"]
        except (ValueError, KeyError):
            print(out, err)
            raise
        said = {
            b["board"]: " ".join(
                [b["verdict"] or "-", *(f"{r['reason']} -> {r['cure']}" for r in b["reasons"])]
            )
            for b in boards
        }
        return process.returncode, said


def current(board: Board) -> str:
    path = board.home / "fr-edge" / "current"
    return os.readlink(path).removeprefix("releases/") if path.is_symlink() else "none"


def builds(board: Board) -> float:
    """When the engine of the current release was built."""
    return (board.home / "fr-edge" / "current" / "done" / "build-int8").stat().st_mtime


def tell(title: str, code: int, said: dict[str, str], fleet: Fleet) -> None:
    print(f"\n## {title}: exit code {code}", flush=True)
    for name, text in sorted(said.items()):
        board = fleet.boards.boards.get(name)
        print(f"  {name}: {text}; current: {current(board) if board else 'none'}", flush=True)


@contextmanager
def fleet_of(names: list[str]) -> Iterator[Fleet]:
    root, sockets = Path(tempfile.mkdtemp(dir="/tmp")), Path(tempfile.mkdtemp(dir="/tmp"))
    boards = Boards(root, sockets)
    try:
        for name in names:
            boards.start(name)
        yield Fleet(root, boards)
    finally:
        boards.stop()
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)


def make_packs(root: Path) -> tuple[Path, Path]:
    """Two packs of the same network that differ in a policy, so in their digest."""
    bundle = root / "one.bundle"
    make_sample_bundle(bundle)
    pack(bundle, root / "one.frb", None)
    from fr_edge.bundle.bundle import transaction

    with transaction(bundle, "export", {"policy": True}) as change:
        change.path("policy.toml", "policy").write_text("[int8]\nmin_cosine = 0.9\n")
    pack(bundle, root / "two.frb", None)
    return root / "one.frb", root / "two.frb"


def cases() -> None:
    with fleet_of(["a", "b", "c"]) as fleet:
        one, two = make_packs(fleet.root)
        b = fleet.boards.boards["b"]
        roll_one = ["roll-out", str(one), *OPTIONS, "--serial", "1,100%", *SHORT]
        roll_two = ["roll-out", str(two), *OPTIONS, "--serial", "1,100%", *SHORT]

        process = fleet.start(*roll_one)
        while not list(b.home.glob("fr-edge/releases/*/bundle/bundle.json")):
            time.sleep(0.1)
        b.stop()
        tell("b loses its power while it builds", *fleet.wait(process), fleet)

        built = builds(fleet.boards.boards["a"]), builds(fleet.boards.boards["c"])
        b = fleet.boards.start("b", port=b.port)
        tell("b is back, the same command again", *fleet.run(*roll_one), fleet)
        again = builds(fleet.boards.boards["a"]), builds(fleet.boards.boards["c"])
        print(f"  a and c were not built again: {built == again}")

        policy = fleet.root / "policy.toml"
        policy.write_text("[benchmark]\nmax_p99_ms = 0.001\n")
        gate = ["roll-out", str(two), *OPTIONS, "--policy", str(policy), "--serial", "1,100%"]
        tell("the next bundle, with a p99 that no board keeps", *fleet.run(*gate, *SHORT), fleet)
        tell("the next bundle, by its own policy", *fleet.run(*roll_two), fleet)
        for title in ("roll-back", "roll-back again"):
            tell(title, *fleet.run("roll-back", "-q", "--json"), fleet)

        with (b.home / "fr-edge" / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            limited = [*roll_two, "--limit", "b"]
            tell("another roll-out holds b", *fleet.run(*limited), fleet)

        known = fleet.boards.boards["a"].settings
        no_python = fleet.boards.start("no-python")
        tools = fleet.root / "tools"
        tools.mkdir()
        for tool in ("sh", "bash", "flock", "mv", "mkdir", "env", "test", "cat"):
            (tools / tool).symlink_to(shutil.which(tool) or "/bin/sh")
        no_python.stop()
        config = fleet.root / "no-python.conf"
        text = config.read_text()
        config.write_text(text.replace(f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", f"PATH={tools}"))  # fmt: skip
        sshd = subprocess.Popen([shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-f", str(config)])
        no_python.process = sshd
        stranger = fleet.boards.start("unknown-key", known=False)
        more: dict[str, dict[str, Any]] = {
            "unknown-kind": {**known, "fr_edge_backend": "auto"},
            "wrong-user": {**known, "ansible_user": "nobody"},
            "off": {**known, "ansible_port": free_port()},
            "no-fr-edge": {**known, "fr_edge_program": "/nowhere/fr-edge"},
        }
        inventory = fleet.boards.inventory(**more)
        tell("check", *fleet.run("check", "-q", "--json", inventory=inventory), fleet)
        del stranger

        full = fleet.root / "small"
        full.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)], capture_output=True, check=False
        )  # fmt: skip
        old = fleet.root / "old.frb"
        old.write_bytes(one.read_bytes().replace(b'"schema": 1', b'"schema": 9', 1))
        hosts = {"no-disk": {**known, "fr_edge_root": str(full)}} if not mounted.returncode else {}
        inventory = fleet.root / "full.yml"
        inventory.write_text(json.dumps({"all": {"hosts": {**hosts, "a": known}}}))
        tell(
            "no disk" if hosts else "no disk: not tried, a tmpfs cannot be mounted here",
            *fleet.run(*roll_one, inventory=inventory),
            fleet,
        )
        inventory.write_text(json.dumps({"all": {"hosts": {"a": known}}}))
        damaged = ["roll-out", str(old), *OPTIONS, *SHORT]
        tell("a pack of another version", *fleet.run(*damaged, inventory=inventory), fleet)
        if hosts:
            subprocess.run(["umount", str(full)], check=False)


def cuts(count: int) -> None:
    """A board is cut off at a random moment of its first roll-out; then the same command again."""
    draw = random.Random(0)
    with fleet_of(["cut"]) as fleet:
        one, _ = make_packs(fleet.root)
        board = fleet.boards.boards["cut"]
        line = ["roll-out", str(one), *OPTIONS, *SHORT]
        start = time.monotonic()
        code, said = fleet.run(*line)
        whole = time.monotonic() - start
        print(f"without a cut: {whole:.0f} s, exit code {code}, {said}", flush=True)
        named = healed = 0
        for number in range(count):
            shutil.rmtree(board.home / "fr-edge")
            process, at = fleet.start(*line), draw.uniform(0.1, 0.9) * whole
            time.sleep(at)
            board.cut()
            code, said = fleet.wait(process)
            left, link = (code, said["cut"]), current(board)
            code, said = fleet.run(*line)
            named += left[0] == 1 and "->" in left[1]
            healed += code == 0 and current(board) != "none"
            print(f"cut {number} at {at:.0f} s: {left}, current {link}; again: {code}", flush=True)
        print(f"{count} cuts: {named} named with a remedy, {healed} whole after the next run")


def accept() -> None:
    """`accept` within a roll-out; a rehearsal, since the board computes on this CPU."""
    with fleet_of(["a"]) as fleet:
        one, _ = make_packs(fleet.root)
        line = ["roll-out", str(one), "-q", "--json", "--allow-unsigned"]
        tell("with accept", *fleet.run(*line, *SHORT), fleet)
        accepted = json.loads((fleet.out / "a" / "evidence.json").read_text())["evidence"]["accept"]
        tried = [(e["bundle"], e["precision"], e["verdict"]) for e in accepted["engines"]]
        print(f"  rehearsal {accepted['rehearsal']}, {tried}, left {accepted['left']}")


def signed() -> None:
    """Boards that take signed packs only, and two roll-outs at once."""
    with fleet_of(["a", "b"]) as fleet:
        one, two = (fleet.root / f"{name}.bundle" for name in ("first", "second"))
        for packed, bundle in zip(make_packs(fleet.root), (one, two), strict=True):
            command = [FR_EDGE, "unpack", packed, "--out", bundle, "--allow-unsigned", "-q"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for maker in ("ours", "stranger"):
            command = [FR_EDGE, "keygen", fleet.root / maker]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        key, other = (str(fleet.root / f"{maker}.key") for maker in ("ours", "stranger"))
        line = ["roll-out", str(one), "-q", "--json", "--serial", "100%", "--no-accept"]
        tell("signed", *fleet.run(*line, "--sign", key, *SHORT), fleet)
        for name in ("a", "b"):
            board = fleet.boards.boards[name]
            environment = {**os.environ, "HOME": str(board.home)}
            bundle = board.home / "fr-edge" / "current" / "bundle"
            command = [
                FR_EDGE,
                "verify",
                bundle,
                "--engine",
                "int8",
                "--require-signature",
                "-q",
                "--json",
            ]
            for trust in ([], ["--trust", f"{key[:-4]}.pub"], ["--trust", f"{other[:-4]}.pub"]):
                done = subprocess.run([*command, *trust], env=environment, capture_output=True, text=True, check=False)  # fmt: skip
                words = done.stderr.strip().replace("\n", " ")
                print(f"  {name}, --require-signature {' '.join(trust)}: {done.returncode} {words}")
        line = ["roll-out", str(two), "-q", "--json", "--serial", "100%", "--no-accept"]
        wrong = [*line, "--sign", other, "--trust", f"{key[:-4]}.pub", *SHORT]
        tell("signed by another maker than the trusted one", *fleet.run(*wrong), fleet)
        tell("not signed", *fleet.run(*line, *SHORT), fleet)
        edited = fleet.root / "edited.frb"
        data = bytearray((fleet.out / "second.frb").read_bytes())
        data[len(data) // 2] ^= 1
        edited.write_bytes(data)
        line[1] = str(edited)
        tell(
            "a pack with one bit changed",
            *fleet.run(*line, "--trust", f"{key[:-4]}.pub", *SHORT),
            fleet,
        )
        line[1] = str(two)
        line += ["--sign", key]
        first = fleet.start(*line, *SHORT)
        while not list(fleet.boards.boards["a"].home.glob("fr-edge/releases/*/bundle/bundle.json")):
            time.sleep(0.1)
        time.sleep(5)
        second = Fleet(fleet.root, fleet.boards)
        done = second.start(*line, *SHORT)
        out, err = done.communicate()
        print(f"\n## the same folder of evidence: {done.returncode} {out} {err.strip()}")
        second.out = fleet.root / "elsewhere"
        tell("two roll-outs at once: the second", *second.run(*line, *SHORT), fleet)
        tell("two roll-outs at once: the first", *fleet.wait(first), fleet)


if __name__ == "__main__":
    if reason := missing():
        raise SystemExit(reason)
    if sys.argv[1:] in (["signed"], ["accept"]):
        globals()[sys.argv[1]]()
    else:
        cuts(int(sys.argv[1])) if sys.argv[1:] else cases()
