"""The real cuda-python over the driver's double: of CUDA 12.2 to 13.5, integrated and discrete.

The installed cuda-python runs always. FR_EDGE_CUDA_BINDINGS names folders with other versions
(`pip install --target FOLDER cuda-python==12.6.2.post1`), separated by ":"; they run too. Nothing
here proves speed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")

FOLDERS = [f for f in os.environ.get("FR_EDGE_CUDA_BINDINGS", "").split(":") if f]
SCRIPT = """
import ctypes, json, threading
try:
    from cuda.bindings import driver
except ImportError:
    from cuda import cuda as driver
from fr_edge.errors import MachineError
from fr_edge.runtime.cuda.interface import open_cuda
from fr_edge.runtime.machine.device import find_gpus, use_gpu

facts = {"package": driver.__file__}
library = ctypes.CDLL("libcuda.so.1")

def alive():
    # Bytes, contexts, streams, events, graphs, contexts that are current in this thread.
    counts = (ctypes.c_long * 6)()
    library.double_alive(counts)
    return list(counts)

def refuse():
    raise MachineError("TensorRT could not run the engine")

def failure(call, *args):
    try:
        call(*args)
    except MachineError as error:
        return f"{error.message} / {error.hint}"

def use(cuda):
    stream, buffer, other = cuda.stream(), cuda.buffer(64), cuda.buffer(64)
    facts["mapped"] = buffer.mapped
    flags = ctypes.c_uint()
    library.cuStreamGetFlags(ctypes.c_void_p(stream), ctypes.byref(flags))
    facts["stream flags"] = flags.value
    first = cuda.mark(stream)
    buffer.array[:] = 7
    cuda.push(buffer, 64, stream)
    second = cuda.mark(stream)
    cuda.wait(stream)
    facts["elapsed"] = cuda.elapsed_ms(first, second)
    try:
        facts["module"] = str(driver.cuEventElapsedTime(first, second)[0])
    except RuntimeError as error:
        facts["module"] = str(error)

    def there_and_back():
        cuda.push(buffer, 64, stream)
        cuda.pull(buffer, 64, stream)

    launch = cuda.record(stream, there_and_back)
    device = (ctypes.c_uint8 * 64).from_address(buffer.address)
    facts["recorded, not run"] = list(device) == [7] * 64
    buffer.array[:] = 9
    launch()
    facts["replayed"] = list(device) == list(buffer.array) == [9] * 64
    facts["sync in a capture"] = cuda.record(stream, lambda: cuda.wait(stream)) is None
    facts["refused in a capture"] = cuda.record(stream, refuse) is None
    try:
        cuda.record(stream, lambda: 1 / 0)
    except ZeroDivisionError:
        facts["raised in a capture"] = cuda.record(stream, there_and_back) is not None
    bytes_before = alive()[0]
    facts["too large"] = failure(cuda.buffer, 2 << 20)
    facts["the host's half fits"] = failure(cuda.buffer, 600 << 10)
    facts["kept of them"] = 0 if buffer.mapped else alive()[0] - bytes_before
    facts["allocated meanwhile"] = []

    def allocate():
        with cuda.current():
            facts["allocated meanwhile"].append(failure(cuda.buffer, 64))

    def allocate_elsewhere():
        other_thread = threading.Thread(target=allocate)
        other_thread.start()
        other_thread.join()
        cuda.push(buffer, 64, stream)

    facts["recorded beside it"] = cuda.record(stream, allocate_elsewhere) is not None
    cuda.record(stream, allocate)
    thread = threading.Thread(target=lambda: facts.update(thread=failure(cuda.buffer, 64)))
    thread.start()
    thread.join()

cuda = open_cuda()
with cuda.current():
    use(cuda)
facts["not current"] = failure(cuda.buffer, 64)
facts["in use"] = alive()
cuda.close()
facts["left"] = alive()
gpus = find_gpus()
facts["driver"], facts["gpus"] = gpus.driver, [(g.name, g.compute, g.bus_id) for g in gpus.gpus]
if len(gpus.gpus) > 1:
    with use_gpu(1):
        second = open_cuda()
    with second.current():
        stream = second.stream()
        first = open_cuda()
        with first.current():
            facts["another device's stream"] = failure(first.mark, stream)
        facts["its own"] = failure(second.mark, stream)
print(json.dumps(facts))
"""


def run_over(driver: Path, package: str, **double: str) -> dict[str, Any]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": package}
    environment |= {f"DOUBLE_{name}": value for name, value in double.items()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["package"].startswith(package)
    return facts


@pytest.mark.parametrize("package", ["", *FOLDERS], ids=lambda p: Path(p).name or "installed")
@pytest.mark.parametrize(
    ("cuda", "gpus"),
    [
        ("12020", "Orin|8.7|7620|1"),
        ("12060", "Orin|8.7|7620|1"),
        ("12080", "L4|8.9|23034|0"),
        ("13020", "L4|8.9|23034|0;RTX|12.0|16303|0"),
    ],
)
def test_every_call_of_a_session_is_served(
    driver_folder: Path, package: str, cuda: str, gpus: str
) -> None:
    facts = run_over(driver_folder, package, CUDA=cuda, GPUS=gpus, FREE_MB="1")
    integrated = gpus.endswith("1")
    assert facts["driver"] == f"{int(cuda) // 1000}.{int(cuda) % 1000 // 10}"
    assert facts["mapped"] is integrated
    assert facts["elapsed"] == (0.125 if integrated else 0.375)
    assert facts["recorded, not run"]
    assert facts["replayed"]
    assert facts["sync in a capture"]
    assert facts["refused in a capture"]
    assert facts["raised in a capture"]
    assert facts["stream flags"] == 1  # CU_STREAM_NON_BLOCKING
    # A capture forbids allocating to its own thread alone (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).
    assert facts["recorded beside it"]
    elsewhere, here = facts["allocated meanwhile"]
    assert elsewhere is None
    assert "(900)" in here
    assert facts["kept of them"] == 0
    assert (facts["the host's half fits"] is None) is integrated
    assert min(facts["in use"][:5]) > 0
    assert facts["left"] == [0] * 6
    assert facts["too large"].endswith("close other programs")
    assert "(201)" in facts["thread"]
    assert "(201)" in facts["not current"]
    if int(cuda) < 12080 and package == "":  # what cuda-python 13 itself does there
        assert "cuEventElapsedTime_v2" in facts["module"]
    if ";" in gpus:
        assert facts["gpus"] == [["L4", "8.9", "0000:01:00.0"], ["RTX", "12.0", "0000:02:00.0"]]
        assert "(400)" in facts["another device's stream"]
        assert facts["its own"] is None


@pytest.mark.parametrize(("replay", "works"), [("", True), ("nothing", False)])
def test_replays_of_the_double_compute_or_not(
    driver_folder: Path, replay: str, works: bool
) -> None:
    facts = run_over(driver_folder, "", GPUS="L4|8.9|23034|0", REPLAY=replay, FREE_MB="1")
    assert facts["replayed"] is works
