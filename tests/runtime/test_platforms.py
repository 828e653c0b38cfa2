"""Every module of the runtime can be imported where Linux's own modules and calls are missing."""

import subprocess
import sys

_SCRIPT = """
import os, pkgutil, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # as Python marks what cannot be imported
for name in ("sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "fork"):
    if hasattr(os, name):
        delattr(os, name)
import fr_edge.runtime
from importlib import import_module
failed = []
for module in pkgutil.walk_packages(fr_edge.runtime.__path__, "fr_edge.runtime."):
    try:
        import_module(module.name)
    except Exception as error:
        failed.append(f"{module.name}: {error!r}")
from fr_edge.runtime.machine.device import cores, describe_device
assert cores() >= 1 and describe_device().cores >= 1
sys.exit("\\n".join(failed) or 0)
"""


def test_import_without_linux() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
