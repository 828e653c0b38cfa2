"""Starts `ansible-playbook`, as a program: the playbooks of `fr_edge.fleet` run without fr-edge too."""

import json
import locale
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any
from uuid import uuid4

from ..errors import DataError, MachineError, UsageError, install_hint
from ..fleet.board_evidence import CHECK, ROLL_BACK, ROLL_OUT
from ..reading import read_file
from .output import Output

_PLAYBOOKS = Path(__file__).parents[1] / "fleet" / "collection" / "playbooks"
_SSH = "-C -o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=15"
_ANSIBLE = {  # what the user has set goes before
    "ANSIBLE_SSH_ARGS": _SSH,
    "ANSIBLE_PIPELINING": "1",
    "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "0",  # a step that a board does not need is no news
}
_LOCK = ".lock"


def find_ansible() -> str:
    """The program `ansible-playbook`: beside this Python, else on the PATH.

    Raises:
        MachineError: ansible-playbook is not installed.
    """
    beside = Path(sys.executable).with_name("ansible-playbook")
    program = str(beside) if beside.exists() else which("ansible-playbook")
    if program is None:
        raise MachineError(
            "the fleet needs the program ansible-playbook, which is not installed here",
            install_hint("fleet", "ansible-core"),
        )
    return program


def run_playbook(
    output: Output,
    name: str,
    out: Path,
    inventory: str | None,
    variables: Mapping[str, Any],
    arguments: Sequence[str],
) -> int:
    """Run a playbook; what Ansible prints goes to stderr.

    Args:
        output: How the command prints.
        name: "check", "roll_out" or "roll_back".
        out: Where the evidence is gathered; a folder that exists.
        inventory: As Ansible takes it; None for Ansible's own setting.
        variables: Of the playbook.
        arguments: Further ones of ansible-playbook.

    Returns:
        Its exit code: 0 when no board failed.

    Raises:
        MachineError: Ansible is not installed.
        DataError: Another command works on the same folder.
        UsageError: Ansible ended before it tried a board.
    """
    program, run = find_ansible(), uuid4().hex
    if inventory is not None and not Path(inventory).exists() and "," not in inventory:
        raise UsageError(
            f"there is no inventory {inventory}",
            "give a file that lists your boards; docs/fleet.md has one",
        )
    settings = {"fr_edge_out": str(out.resolve()), "fr_edge_run": run, **variables}
    environment = {**_ANSIBLE, **os.environ}
    if locale.getlocale()[1] != "UTF-8":  # Ansible refuses the locale C, as in a job of cron
        environment["LC_ALL"] = "C.UTF-8"
    with _alone(out), tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(settings, file)
        file.flush()
        line = [program, str(_PLAYBOOKS / f"{name}.yml"), "-e", f"@{file.name}"]
        line += ["-i", inventory] if inventory is not None else []
        code = subprocess.run(
            [*line, *arguments],
            env=environment,
            stdin=sys.stdin if sys.stdin and sys.stdin.isatty() else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if output.quiet else 2,
            stderr=2,
            check=False,
        ).returncode
    dry = bool({"--check", "-C", "--syntax-check", "--list-hosts"} & set(arguments))
    if not (dry and code == 0) and not _has_begun(out, run):
        raise UsageError(
            f"ansible-playbook ended with {code} before it tried a board",
            "its message is above: check the inventory and --limit",
        )
    return code


def _has_begun(out: Path, run: str) -> bool:
    noted = (out / name for name in (ROLL_OUT, CHECK, ROLL_BACK))
    return any(run.encode() in read_file(path, "JSON_MB") for path in noted if path.is_file())


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One command at a time works on a folder of evidence; the lock ends with the process."""
    import fcntl  # not on Windows, where the command line refuses to start

    with (out / _LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"another roll-out gathers its evidence in {out}",
                "wait until it has ended, or choose another --out",
            ) from error
        yield
