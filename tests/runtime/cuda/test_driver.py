"""The package that is taken, and what an older driver lacks, on doubles of the packages."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fr_edge.errors import MachineError, UsageError
from fr_edge.runtime.cuda import cuda_python, interface, pycuda_driver
from fr_edge.runtime.machine import device
from fr_edge.runtime.machine.device import Gpu, GpuList, gpu_names, selected_gpu, use_gpu

ORIN = GpuList((Gpu("Orin", "8.7", 7620, integrated=True),), "12.6", "")


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_HANDLE = 400


class DriverDouble(ModuleType):
    """cuda.bindings.driver 13 over a driver of CUDA 12.6, which has no cuEventElapsedTime_v2."""

    CUresult = Status
    CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_INTEGRATED=18)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.opened: list[int] = []

    def cuInit(self, flags: int) -> tuple[Status]:  # noqa: N802
        return (Status.CUDA_SUCCESS,)

    def cuDeviceGet(self, index: int) -> tuple[Status, int]:  # noqa: N802
        self.opened.append(index)
        return Status.CUDA_SUCCESS, index

    def cuDevicePrimaryCtxRetain(self, index: int) -> tuple[Status, int]:  # noqa: N802
        return Status.CUDA_SUCCESS, 1

    def cuDeviceGetAttribute(self, which: int, index: int) -> tuple[Status, int]:  # noqa: N802
        return Status.CUDA_SUCCESS, 1

    def cuEventElapsedTime(self, first: int, second: int) -> tuple[Status, float]:  # noqa: N802
        raise RuntimeError('Function "cuEventElapsedTime_v2" not found')


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> DriverDouble:
    double = DriverDouble()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["cuda.bindings"].driver = double  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", double)
    for module in (interface, cuda_python, device):
        monkeypatch.setattr(module, "find_gpus", lambda: ORIN)
    cuda_python._driver_function.cache_clear()
    yield double
    cuda_python._driver_function.cache_clear()


class PyCudaDouble(ModuleType):
    """pycuda.driver of one GPU, whose memory is the host's; it keeps a log of what was asked."""

    device_attribute = SimpleNamespace(INTEGRATED=18)
    host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
    Error = type("Error", (Exception,), {})
    MemoryError = type("MemoryError", (Error,), {})

    def __init__(self, *, integrated: bool) -> None:
        super().__init__("pycuda.driver")
        self.log: list[str] = []
        self.integrated, self.full = integrated, False
        log = self.log
        context = SimpleNamespace(
            push=lambda: log.append("push"), detach=lambda: log.append("detach")
        )
        self.Context = SimpleNamespace(pop=lambda: log.append("pop"))
        self.Device = lambda index: SimpleNamespace(
            retain_primary_context=lambda: context, get_attribute=lambda which: int(integrated)
        )

    def init(self) -> None:
        pass

    def pagelocked_empty(self, size: int, dtype: Any, mem_flags: int) -> Any:
        self.log.append(f"host {size} flags {mem_flags}")
        memory = PageLocked(self, size)
        array = np.asarray(memory).view(Based)
        array.base_memory = memory
        return array

    def mem_alloc(self, size: int) -> Any:
        if self.full:
            raise self.MemoryError("out of memory")
        self.log.append(f"device {size}")
        return DeviceMemory(self, size)

    def memcpy_htod_async(self, address: int, array: Any, stream: Any) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.log.append(f"in {array.nbytes} on {stream.handle}")

    def memcpy_dtoh_async(self, array: Any, address: int, stream: Any) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.log.append(f"out {array.nbytes} on {stream.handle}")

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(handle=11, synchronize=lambda: self.log.append("wait"))

    def Event(self) -> Any:  # noqa: N802
        event = SimpleNamespace(record=lambda stream: self.log.append(f"mark {stream.handle}"))
        event.time_till = lambda other: 2.5
        return event


class PageLocked:
    """pycuda.driver.PagelockedHostAllocation."""

    def __init__(self, driver: PyCudaDouble, size: int) -> None:
        self.driver, self.memory = driver, (ctypes.c_uint8 * size)()
        interface = {"shape": (size,), "typestr": "|u1", "version": 3}
        self.__array_interface__ = {**interface, "data": (ctypes.addressof(self.memory), False)}

    def get_device_pointer(self) -> int:
        return ctypes.addressof(self.memory)

    def free(self) -> None:
        self.driver.log.append("free host")


class Based(np.ndarray):
    """An array whose `base` is its memory, as pycuda's C code makes it."""

    base_memory: Any = None

    @property
    def base(self) -> Any:
        return self.base_memory


class DeviceMemory:
    """pycuda.driver.DeviceAllocation."""

    def __init__(self, driver: PyCudaDouble, size: int) -> None:
        self.driver, self.memory = driver, (ctypes.c_uint8 * size)()

    def __int__(self) -> int:
        return ctypes.addressof(self.memory)

    def free(self) -> None:
        self.driver.log.append("free device")


def raising(error: Exception) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize("integrated", [True, False])
def test_what_pycuda_is_asked(integrated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    double, package = PyCudaDouble(integrated=integrated), ModuleType("pycuda")
    package.driver = double  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", double)
    cuda = pycuda_driver.open_pycuda(0)
    with cuda.current():
        buffer, stream = cuda.buffer(8), cuda.stream()
        assert buffer.mapped is integrated
        assert (buffer.address == buffer.array.ctypes.data) is integrated
        buffer.array[:] = range(8)
        cuda.push(buffer, 4, stream)
        buffer.array[:] = 9
        cuda.pull(buffer, 4, stream)
        assert cuda.elapsed_ms(cuda.mark(stream), cuda.mark(stream)) == 2.5
        cuda.wait(stream)
        assert cuda.record(stream, lambda: None) is None
        for call in (cuda.push, cuda.pull):
            if not integrated:
                with pytest.raises(MachineError, match="stream 12 is not one of this GPU's"):
                    call(buffer, 4, 12)
        for ask in (cuda.mark, cuda.wait):
            with pytest.raises(MachineError, match="stream 12 is not one of this GPU's"):
                ask(12)
        double.full = True
        if not integrated:
            with pytest.raises(MachineError, match="no 8 bytes left") as error:
                cuda.buffer(8)
            assert error.value.hint == "close other programs"
    refused = double.Error("cuMemHostAlloc failed: invalid device context")
    monkeypatch.setattr(double, "pagelocked_empty", raising(refused))
    monkeypatch.setattr(double, "Stream", raising(refused))
    for make in (lambda: cuda.buffer(8), cuda.stream):
        with pytest.raises(MachineError, match="invalid device context"):
            make()
    cuda.close()
    assert buffer.array.tolist() == ([9] * 8 if integrated else [0, 1, 2, 3, 9, 9, 9, 9])
    steps = {
        True: ["host 8 flags 2", "mark 11", "mark 11", "wait"],
        False: ["host 8 flags 0", "device 8", "in 4 on 11", "out 4 on 11", "mark 11", "mark 11",
                "wait", "host 8 flags 0"],
    }[integrated]  # fmt: skip
    freed = ["free host"] if integrated else ["free host", "free device"]
    assert double.log == ["push", *steps, "pop", "push", *freed, "pop", "detach"]


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module, inner = ModuleType("pycuda"), ModuleType("pycuda.driver")
    vars(inner).update(
        init=lambda: None,
        Error=type("Error", (Exception,), {}),
        device_attribute=SimpleNamespace(INTEGRATED=18),
        Device=lambda index: SimpleNamespace(
            retain_primary_context=lambda: None, get_attribute=lambda which: index
        ),
    )
    module.driver = inner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", module)
    monkeypatch.setitem(sys.modules, "pycuda.driver", inner)
    return inner


def test_the_package_that_replays_graphs_is_taken(driver, pycuda, monkeypatch):
    assert interface.open_cuda().name == "cuda-python"
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python marks what cannot be imported
    assert interface.open_cuda().name == "pycuda"
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MachineError, match="no package to use it") as error:
        interface.open_cuda()
    assert "pip install 'cuda-python==12.6.*'" in error.value.hint


def driver_library(elapsed: Callable[..., int] | None) -> Any:
    """A double of libcuda.so.1, with or without cuEventElapsedTime."""
    return lambda name: SimpleNamespace(**({"cuEventElapsedTime": elapsed} if elapsed else {}))


def test_event_times_are_asked_of_the_driver_not_of_the_package(driver, monkeypatch):
    def elapsed(target: Any, first: int, second: int) -> int:
        target._obj.value = float(second - first)
        return 0 if second > first else 400

    monkeypatch.setattr(ctypes, "CDLL", driver_library(elapsed))
    cuda = interface.open_cuda()
    assert cuda.elapsed_ms(3, 10) == 7.0
    with pytest.raises(MachineError, match="CUDA_ERROR_INVALID_HANDLE"):
        cuda.elapsed_ms(10, 3)


def test_what_the_package_cannot_call_is_an_error_with_the_right_package(driver, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", driver_library(None))
    with pytest.raises(MachineError, match=r"cannot call cuEventElapsedTime .*CUDA 12\.6") as error:
        interface.open_cuda().elapsed_ms(3, 10)
    assert "'cuda-python==12.6.*'" in error.value.hint


def test_a_gpu_with_a_fault_is_given_back_all_the_same(driver, monkeypatch):
    """After a fault the driver refuses every call in the context; the error of the run stays the one."""
    cuda, released = cuda_python.open_cuda_python(0), []
    fine = lambda *args: (Status.CUDA_SUCCESS, 7)  # noqa: E731
    for name in ("cuCtxPushCurrent", "cuCtxPopCurrent", "cuStreamCreate", "cuEventCreate"):
        monkeypatch.setattr(driver, name, fine, raising=False)
    monkeypatch.setattr(driver, "cuEventRecord", fine, raising=False)
    flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    monkeypatch.setattr(driver, "CUstream_flags", flags, raising=False)
    cuda.mark(cuda.stream())
    refuse = lambda *args: (Status.CUDA_ERROR_INVALID_HANDLE,)  # noqa: E731
    for name in ("cuEventDestroy", "cuStreamDestroy"):
        monkeypatch.setattr(driver, name, refuse, raising=False)
    release = lambda device: (released.append(device), (Status.CUDA_SUCCESS,))[1]  # noqa: E731
    monkeypatch.setattr(driver, "cuDevicePrimaryCtxRelease", release, raising=False)
    cuda.close()
    assert released == [0]


def test_another_gpu_is_opened_by_its_number(driver, pycuda, monkeypatch):
    two = GpuList((*ORIN.gpus, Gpu("L4", "8.9", 23034, integrated=False)), "13.0", "")
    for module in (interface, device):
        monkeypatch.setattr(module, "find_gpus", lambda: two)
    interface.open_cuda()
    with use_gpu(1):
        interface.open_cuda()
        assert selected_gpu() == two.gpus[1]
        assert gpu_names() == ("L4", "Orin")
        assert pycuda_driver.open_pycuda(1)._shared is True
    assert driver.opened == [0, 1]
    assert selected_gpu() == two.gpus[0]
    with pytest.raises(UsageError, match="no GPU 2 here") as error, use_gpu(2):
        pass
    assert "1: L4" in error.value.hint
    monkeypatch.setattr(device, "find_gpus", lambda: GpuList((), "", "no NVIDIA driver"))
    with pytest.raises(MachineError, match="no NVIDIA driver"), use_gpu(0):
        pass


def test_a_build_works_on_the_selected_gpu(monkeypatch):
    made: list[str] = []

    @contextmanager
    def current() -> Iterator[None]:
        made.append("current")
        yield
        made.append("left")

    cuda = SimpleNamespace(current=current, close=lambda: made.append("closed"))
    monkeypatch.setattr(interface, "open_cuda", lambda: cuda)
    with interface.on_selected_gpu():
        assert made == []  # libraries take the first by themselves
    monkeypatch.setattr(device, "find_gpus", lambda: GpuList(ORIN.gpus * 2, "13.0", ""))
    with use_gpu(1), interface.on_selected_gpu():
        assert made == ["current"]
    assert made == ["current", "left", "closed"]

    class Builder:  # TensorRT's, say: it has to be freed while the GPU's context is there
        def __del__(self) -> None:
            made.append("freed")

    def fail() -> None:
        builder = Builder()
        raise MachineError(f"{type(builder).__name__} fails")

    made.clear()
    with pytest.raises(MachineError), use_gpu(1), interface.on_selected_gpu():
        fail()
    assert made == ["current", "freed", "closed"]
