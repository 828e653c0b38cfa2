"""A shell on a pretend board: documented blocks are run by bash, as they stand.

Doubles in its PATH stand for what a board's system does: sudo, apt, python3 -m venv, pip, each with
the refusals that a user meets (no python3-venv, no environment, `fr-edge` before it is installed).
`fr-edge` itself runs in a process on the board (run_on_board.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from board_trees import MAC, MACHINE, SERIAL, Board, write_board, write_tool

HERE = Path(__file__).parent
HOST, USER = "lovelace-box", "ada"  # whose names no document may hold
ASK = r"""home={home}
printf '%s\0' "$PWD" "$PATH" "$@" > $home/request
code=$(cat $home/done)
cat $home/out; cat $home/err >&2
exit $code"""
APT = r"""[ "$1" = install ] || exit 0
shift
for package in "$@"; do [ "$package" = -y ] || echo "apt:$package" >> {home}/installed; done"""
PYTHON = r"""[ "$1 $2" = "-m venv" ] || { echo "python3: not in this shell: $*" >&2; exit 9; }
if ! grep -qx apt:python3-venv {home}/installed; then
  echo "The virtual environment was not created successfully because ensurepip is not available." >&2
  exit 1
fi
shift 2
[ "$1" = --system-site-packages ] && { grep -qx apt:python3-libnvinfer {home}/installed &&
  echo tensorrt >> {home}/installed; shift; }
mkdir -p "$1/bin"
echo "VIRTUAL_ENV=$PWD/$1; PATH=$PWD/$1/bin:\$PATH" > "$1/bin/activate"
echo "export VIRTUAL_ENV PATH" >> "$1/bin/activate"
"""
PIP = r"""[ -n "$VIRTUAL_ENV" ] || { echo "error: externally-managed-environment" >&2; exit 1; }
shift
while [ $# -gt 0 ]; do case "$1" in
  -c) shift; [ -f "$1" ] || { echo "no constraints: $1" >&2; exit 1; };;
  -e) shift; [ -f "${1%%[*}/pyproject.toml" ] || exit 1
      cp {home}/fr-edge "$VIRTUAL_ENV/bin/fr-edge";;
  cuda-python==*) echo "$1" >> {home}/installed;;
  *) echo "ERROR: No matching distribution found for $1" >&2; exit 1;;
esac; shift; done"""


@dataclass(frozen=True)
class Done:
    """What a block did: its exit code, and its output in order."""

    code: int
    out: str
    err: str


class Shell:
    """A shell in the folder `home/work` of a board; close it.

    Attributes:
        work: The folder, a clone of the repository as far as installing needs it.
    """

    def __init__(self, board: Board, home: Path, boards: "Boards", **double: str) -> None:
        self.home, self.board, self.work = home, board, home / "work"
        self.work.mkdir(parents=True)
        for name in ("pyproject.toml", "constraints.txt"):
            (self.work / name).write_text("")
        write_board(board, home)
        facts = {"keeps": "", "contexts": 1 << 20, "rtx": not board.model, **asdict(board)}
        facts["sample"] = ""  # accept's network is made anew
        self.environment = {
            **boards.environment,
            "DOUBLE_CUDA": str(board.cuda),
            "DOUBLE_GPUS": board.gpus,
            "DOUBLE_HOST": HOST,
            "USER": USER,
            "LOGNAME": USER,
            "HOME": str(home / "home" / USER),
        }
        for name, value in double.items():
            if name.isupper():
                self.environment[f"DOUBLE_{name}"] = value
            else:
                facts[name] = type(facts[name])(value)
        (home / "board.json").write_text(json.dumps(facts))
        (home / "installed").write_text("")
        for name, script in (("apt", APT), ("python3", PYTHON), ("pip", PIP)):
            write_tool(home / "bin" / name, script.replace("{home}", str(home)))
        write_tool(home / "bin" / "sudo", 'exec "$@"')
        write_tool(home / "fr-edge", ASK.replace("{home}", str(home)))
        for name in ("request", "done"):
            os.mkfifo(home / name)
        (home / "home" / USER).mkdir(parents=True)
        (home / "environment.json").write_text(json.dumps(self.environment))
        self.process = boards.begin(home)

    def ready(self) -> None:
        """As after installing, for tests that begin there."""
        (self.home / "installed").write_text("tensorrt\n")
        (self.home / "bin" / "fr-edge").write_bytes((self.home / "fr-edge").read_bytes())
        (self.home / "bin" / "fr-edge").chmod(0o755)

    def run(self, block: str, timeout_s: float = 900) -> Done:
        """Run a block as it stands; it ends at the first line that fails.

        A board's process that ended leaves `fr-edge` waiting: the time only bounds that.
        """
        script = f"cd {self.work}\nset -eo pipefail\n{block}"
        environment = {k: v for k, v in self.environment.items() if k != "LD_PRELOAD"}
        environment["PATH"] = f"{self.home / 'bin'}:/usr/bin:/bin"
        # grep and cat see the board's files too.
        environment |= {
            "LD_PRELOAD": self.environment["LD_PRELOAD"],
            "DOUBLE_FILES": str(self.home / "files"),
        }
        done = subprocess.run(
            ["bash", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def log(self) -> str:
        """What the process on the board wrote beside the commands."""
        return (self.home / "log").read_text()

    def transcript(self) -> list[str]:
        """TensorRT's calls so far."""
        return (self.home / "transcript").read_text().splitlines()

    def close(self) -> None:
        """End the board's process."""
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)


class Boards:
    """The process that begins boards (run_on_board.py); close it.

    Attributes:
        environment: Of each board, before what differs.
    """

    def __init__(self, driver: Path, files: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DOUBLE_")}
        doubles = {"LD_LIBRARY_PATH": str(driver), "LD_PRELOAD": str(files)}
        self.environment = {**kept, **doubles, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "run_on_board.py")],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, home: Path) -> int:
        """Begin the board of a folder; gives its process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{home}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def private(text: str, shell: Shell) -> list[str]:
    """What a document tells of a board that it must not: names, numbers, paths."""
    secrets = (HOST, USER, MAC, SERIAL, MACHINE, str(shell.home), "/tmp", "/home", sys.prefix)
    paths = re.findall(r"(?<![\w.:])~?/(?:[\w.@+-]+/)+[\w.@+-]+", text)
    return [s for s in secrets if re.search(rf"\b{re.escape(s)}\b|{re.escape(s)}/", text)] + paths
