"""A board within this process: the doubles of TensorRT and of the `Cuda` interface, and a GPU.

No driver is asked; the boards of test_documented_commands.py have the driver's double too.
"""

import sys
from importlib import import_module

import pytest
from cuda_double import CudaDouble
from tensorrt_double import TensorRTDouble

from fr_edge.runtime import tensorrt_session
from fr_edge.runtime.machine.device import Gpu, GpuList
from fr_edge.runtime.trt import detector_session

ORIN = Gpu("Orin", "8.7", 7620, integrated=True)
L4 = Gpu("L4", "8.9", 23034, integrated=False)
H100 = Gpu("H100", "9.0", 81559, integrated=False)

BOARDS = {  # module's version, header's version, CUDA
    "jetpack6.0": ("8.6.2", (8, 6, 2, 3), "12.2"),
    "jetpack6.2": ("10.3.0", (10, 3, 0, 30), "12.6"),
    "jetpack7.0": ("10.13.3.9", (10, 13, 3, 9), "13.0"),
    "jetpack7.2": ("10.16.2.10", (10, 16, 2, 10), "13.2"),
    "datacenter11": ("11.4.0.106", (11, 4, 0, 106), "13.2"),
}
ASKING = ("machine.backends", "machine.device", "cuda.interface", "trt.bundle_plan")


class PretendBoard:
    """A board of `BOARDS`.

    Attributes:
        trt: TensorRT's double.
        cuda: The double that sessions open.
        gpus: What the driver would list.
    """

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        version, header, self.driver = BOARDS[name]
        self.trt, self.cuda = TensorRTDouble(version, header), CudaDouble()
        self.have(ORIN)
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt.module)
        for module in ASKING:
            asking = import_module(f"fr_edge.runtime.{module}")
            monkeypatch.setattr(asking, "find_gpus", lambda: self.gpus)
        for module in (tensorrt_session, detector_session):
            monkeypatch.setattr(module, "open_cuda", lambda: self.cuda)

    def have(self, gpu: Gpu) -> None:
        """Put another GPU into the board."""
        self.gpus = GpuList((gpu,), self.driver, "")
        self.trt.gpu = lambda: (gpu.name, gpu.compute)

    def replayed(self) -> int:
        """Graphs launched since the last call."""
        before, self.cuda.replays = self.cuda.replays, 0
        return before
