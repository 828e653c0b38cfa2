"""The real cuda-python over a double of the driver's library, of CUDA 12.6 and 13.0.

The double is built here with the system's compiler; it proves calls, never speed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")
COMPILER = shutil.which("cc")
SCRIPT = """
import json
from cuda.bindings import driver
from fr_edge.runtime.cuda.interface import open_cuda
from fr_edge.runtime.machine.device import find_gpus

cuda, runs = open_cuda(), []
with cuda.current():
    stream, buffer = cuda.stream(), cuda.buffer(64)
    buffer.array[:] = 7
    first = cuda.mark(stream)
    cuda.push(buffer, 64, stream)
    second = cuda.mark(stream)
    cuda.wait(stream)
    try:
        module = int(driver.cuEventElapsedTime(first, second)[0])
    except RuntimeError as error:
        module = str(error)
    elapsed = cuda.elapsed_ms(first, second)
    launch = cuda.record(stream, lambda: runs.append(1))
    launch()
cuda.close()
gpus = find_gpus()
print(json.dumps([gpus.driver, gpus.gpus[0].name, cuda.name, buffer.mapped, module, elapsed, runs]))
"""


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, cc, for the driver's double")
@pytest.mark.parametrize("version", [12060, 13000])
def test_every_call_of_a_session_is_served(tmp_path: Path, version: int) -> None:
    source = Path(__file__).with_name("libcuda_double.c")
    library = str(tmp_path / "libcuda.so.1")
    line = [str(COMPILER), "-shared", "-fPIC", f"-DVERSION={version}", "-o", library, str(source)]
    subprocess.run([*line, "-ldl"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: list[Any] = json.loads(done.stdout)
    driver, name, package, mapped, module, elapsed, runs = result
    assert (driver, name) == (f"{version // 1000}.{version % 1000 // 10}", "Double")
    assert (package, mapped, elapsed, runs) == ("cuda-python", True, 0.5, [1])
    if version < 12080:  # what the package itself does there
        assert "cuEventElapsedTime_v2" in str(module)
