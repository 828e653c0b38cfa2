"""Pretend boards: Debian's sshd on loopback ports, each with a home of its own.

What is real: ssh, Ansible, the collection and fr-edge. What is pretended: the board; its engines
compute on this CPU.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")


def missing() -> str:
    """Why there can be no boards here; "" where there can."""
    if not Path(SSHD).exists():
        return "no sshd on this machine (openssh-server)"
    if not ANSIBLE.exists():
        return "ansible-core is not installed"
    return ""


@dataclass
class Board:
    """One sshd.

    Attributes:
        home: Of the user who logs in.
        port: On 127.0.0.1.
        settings: Its variables in the inventory.
    """

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    settings: dict[str, Any]

    def cut(self) -> None:
        """As when a board reboots: every session and what it runs is killed, the server stays."""
        _kill(children(self.process.pid))

    def stop(self) -> None:
        """As when the power goes: the server is killed too."""
        _kill([self.process.pid, *children(self.process.pid)])
        self.process.wait(10)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """A process's descendants."""
    out = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    rows = [tuple(map(int, line.split())) for line in out.stdout.splitlines()[1:]]
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        below = [child for child, above in rows if above == parent]
        found += below
        todo += below
    return found


class Boards:
    """Boards, the key that opens them, and the hosts that are known."""

    def __init__(self, root: Path, sockets: Path) -> None:
        self.root, self.boards = root, dict[str, Board]()
        self.key = self._keygen("client")
        self.known = root / "known_hosts"
        self.known.touch()
        (root / "ansible.cfg").touch()  # not that of whoever runs the tests
        self.environment = {
            "ANSIBLE_HOME": str(root / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
            "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
        }

    def _keygen(self, name: str) -> Path:
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / name)]
        subprocess.run(line, check=True, capture_output=True)
        return self.root / name

    def start(self, name: str, *, known: bool = True, port: int = 0) -> Board:
        """Start a board; `known` is whether its host key is."""
        home = self.root / name
        home.mkdir(exist_ok=True)
        host_key = self.root / f"{name}.host"
        if not host_key.exists():
            self._keygen(host_key.name)
        port = port or free_port()
        config = self.root / f"{name}.conf"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.key}.pub\nPasswordAuthentication no\nPidFile none\n"
            f"Subsystem sftp internal-sftp\n"
            f"SetEnv HOME={home} PATH={path} OMP_NUM_THREADS=1\nLogLevel ERROR\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        if known:
            public = host_key.with_name(f"{host_key.name}.pub").read_text().split()
            with self.known.open("a") as stream:
                stream.write(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
        settings = {
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={self.known}"
            " -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none",
            "ansible_python_interpreter": sys.executable,
            "fr_edge_program": str(Path(sys.executable).with_name("fr-edge")),
            "fr_edge_backend": "onnxruntime",
        }
        self.boards[name] = Board(home, port, process, settings)
        return self.boards[name]

    def inventory(self, **more: dict[str, Any]) -> Path:
        """Write the inventory: JSON is YAML."""
        import json

        hosts = {name: board.settings for name, board in self.boards.items()} | more
        path = self.root / "boards.yml"
        path.write_text(json.dumps({"all": {"hosts": hosts}}))
        return path

    def stop(self) -> None:
        for board in self.boards.values():
            board.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
