"""Runs onnxsim, which computes constant parts of a graph away and merges operators.

It is native code that has crashed on real models, so it runs in a process of its own, with a time
limit. Without it the model stays as it is. `parity` measures whether it changed the numbers.
"""

import importlib.util
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from ..reading import read_limit

logger = logging.getLogger(__name__)

_SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
sys.modules["torch"] = None  # onnxsim takes seconds to import it where it is, and needs none
import onnx, onnxsim
model, _ = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0)
onnx.save(model, sys.argv[2])
"""


class _SimplifyError(Exception):
    """onnxsim is missing or failed; the message says how."""


def simplify(model: ModelProto, *, timeout_s: float = 300.0) -> tuple[ModelProto, str]:
    """Simplify a model with onnxsim; failures are logged, never raised.

    Args:
        model: The model.
        timeout_s: Seconds after which onnxsim is ended.

    Returns:
        The simplified model and "onnxsim", or the same model and the reason.
    """
    try:
        return _simplified(model, timeout_s), "onnxsim"
    except _SimplifyError as error:
        logger.warning(
            "%s: the graph is not simplified, BatchNormalization is folded all the same", error
        )
        return model, str(error)


def _simplified(model: ModelProto, timeout_s: float) -> ModelProto:
    if importlib.util.find_spec("onnxsim") is None:
        raise _SimplifyError("onnxsim is not installed")
    memory = str(max(read_limit("APART_MB"), 8 * model.ByteSize()))
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(model, str(before))
        try:
            # In the empty folder: modules in the user's must not shadow onnx's.
            done = subprocess.run(
                [sys.executable, "-c", _SCRIPT, before.name, after.name, memory],
                cwd=folder,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _SimplifyError(f"onnxsim took more than {timeout_s:g} s") from error
        except OSError as error:
            raise _SimplifyError(f"onnxsim could not be started: {error.strerror}") from error
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip().splitlines()
            why = f"signal {-done.returncode}" if done.returncode < 0 else (text or ["?"])[-1]
            raise _SimplifyError(f"onnxsim failed ({why})")
        try:
            simplified = onnx.load(str(after))
            onnx.checker.check_model(simplified)
        except (OSError, DecodeError, onnx.checker.ValidationError) as error:
            raise _SimplifyError(f"onnxsim wrote a damaged model ({error})") from error
    return simplified
