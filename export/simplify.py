"""Runs onnxsim, which computes constant parts of a graph away and merges operators.

It is native code that has crashed on real models, so it runs in a process of its own, with a time
limit; without it the model stays as it was. What it did to the numbers is check.py's to find out.
"""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

_SCRIPT = """
import sys
sys.modules["torch"] = None  # onnxsim takes seconds to import it where it is, and needs none
import onnx, onnxsim
model, _ = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0)
onnx.save(model, sys.argv[2])
"""


def simplify(
    model: ModelProto, notify: Callable[[str], None], *, timeout_s: float = 300.0
) -> tuple[ModelProto, str]:
    """The simplified model and "onnxsim", or the model as it is and why not.

    Never raises for what onnxsim does; the reason goes to `notify` too.
    """
    if importlib.util.find_spec("onnxsim") is None:
        return model, _kept(notify, "onnxsim is not installed")
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(model, str(before))
        try:
            # In the empty folder: modules in the user's must not shadow onnx's.
            done = subprocess.run(
                [sys.executable, "-c", _SCRIPT, before.name, after.name],
                cwd=folder,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return model, _kept(notify, f"onnxsim took more than {timeout_s:g} s")
        except OSError as error:
            return model, _kept(notify, f"onnxsim could not be started: {error.strerror}")
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip().splitlines()
            why = f"signal {-done.returncode}" if done.returncode < 0 else (text or ["?"])[-1]
            return model, _kept(notify, f"onnxsim failed ({why})")
        try:
            simplified = onnx.load(str(after))
            onnx.checker.check_model(simplified)
        except (OSError, DecodeError, onnx.checker.ValidationError) as error:
            return model, _kept(notify, f"onnxsim wrote a damaged model ({error})")
    return simplified, "onnxsim"


def _kept(notify: Callable[[str], None], reason: str) -> str:
    notify(f"{reason}: the graph keeps its shape, BatchNormalization is folded all the same")
    return reason
