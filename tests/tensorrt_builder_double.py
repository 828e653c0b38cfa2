"""A double of TensorRT's Python API, and one of CUDA: calls are recorded, onnxruntime computes.

They prove which calls are made and how TensorRT's texts are read, never speed or numbers of a GPU.
The names are those of the real Python bindings of 8.6, 10.3 and 11.4; another name raises
AttributeError.
"""

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from fr_edge.runtime.cuda.interface import Buffer

_FLAGS_8 = {"FP16": 0, "INT8": 1, "TF32": 7, "GPU_FALLBACK": 3, "VERSION_COMPATIBLE": 17}
_FLAGS_11 = {"TF32": 7, "GPU_FALLBACK": 3, "VERSION_COMPATIBLE": 17}


class LibraryDouble(SimpleNamespace):
    """The module `tensorrt` of one version, as far as the builder uses it.

    `calls` holds what was called, in order. `layers` makes the inspector's rows of the network's
    nodes; `table` is the text that the builder logs.
    """

    def __init__(self, version: str, *, dla_cores: int = 0) -> None:
        major = int(version.split(".")[0])
        creation = {"EXPLICIT_BATCH": 0} if major < 11 else {}
        if major >= 10:
            creation["STRONGLY_TYPED"] = 1
        super().__init__(
            __version__=version,
            __name__="tensorrt",
            __spec__=ModuleSpec("tensorrt", None),
            header=(0, 0, 0, 0),
            calls=[],
            table="",
            nodes=[],
            row=lambda node, shaped: {"Name": node.name, "LayerType": "CaskConvolution"},
            room=True,
            ILogger=_Logger,
            BuilderFlag=IntEnum("BuilderFlag", _FLAGS_8 if major < 11 else _FLAGS_11),
            NetworkDefinitionCreationFlag=IntEnum("NetworkDefinitionCreationFlag", creation),
            MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
            ProfilingVerbosity=SimpleNamespace(DETAILED="DETAILED", NONE="NONE"),
            HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS"),
            DeviceType=SimpleNamespace(DLA="DLA", GPU="GPU"),
            IProfiler=type("IProfiler", (), {}),
            DataType=SimpleNamespace(UINT8="uint8", FLOAT="float"),
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            LayerInformationFormat=SimpleNamespace(JSON="JSON"),
            Dims=tuple,
            dla_cores=dla_cores,
        )
        if major < 11:
            self.IInt8Calibrator = type("IInt8Calibrator", (), {})
            self.IInt8EntropyCalibrator2 = type(
                "IInt8EntropyCalibrator2", (), {"__init__": lambda self: None}
            )
        if major < 11:
            self.PreviewFeature = SimpleNamespace(PROFILE_SHARING_0806="PROFILE_SHARING_0806")
        self.Builder = lambda log: _Builder(self, log)
        self.OnnxParser = lambda network, log: _Parser(self, network)
        self.Runtime = lambda log: _Runtime(self)

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of `name`."""
        return [args for call, *args in map(list, self.calls) if call == name]


class _Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

    def __init__(self) -> None:
        pass


class _Recorded:
    """Every attribute that is set and every call of `_methods` goes into the library's `calls`."""

    _methods: tuple[str, ...] = ()
    _settable: tuple[str, ...] = ()

    def __init__(self, library: LibraryDouble) -> None:
        vars(self)["library"] = library

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._settable:
            raise AttributeError(name)
        self.library.calls.append((name, value))
        vars(self)[name] = value

    def __getattr__(self, name: str) -> Any:
        if name not in type(self)._methods:
            raise AttributeError(name)

        def call(*args: Any, **keywords: Any) -> bool:
            self.library.calls.append((name, *args, *keywords.values()))
            return True

        return call


class _Config(_Recorded):
    _methods = (
        *("set_flag", "clear_flag", "set_memory_pool_limit", "add_optimization_profile"),
        *("set_timing_cache", "set_preview_feature"),
    )
    _settable = (
        *("profiling_verbosity", "builder_optimization_level", "hardware_compatibility_level"),
        *("default_device_type", "DLA_core", "int8_calibrator"),
    )

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings")


class _Profile(_Recorded):
    _methods = ("set_shape",)


class _Builder:
    def __init__(self, library: LibraryDouble, log: Any) -> None:
        self.library, self.log = library, log
        self.num_DLA_cores = library.dla_cores

    def create_network(self, flags: int) -> Any:
        creation = self.library.NetworkDefinitionCreationFlag
        names = {flag.name for flag in creation if flags & 1 << int(flag)}
        self.library.calls.append(("create_network", names))
        return SimpleNamespace(num_inputs=1)

    def create_builder_config(self) -> _Config:
        return _Config(self.library)

    def create_optimization_profile(self) -> _Profile:
        return _Profile(self.library)

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        self.library.calls.append(("build_serialized_network",))
        if self.library.table:
            self.log.log(_Logger.Severity.VERBOSE, self.library.table)
        head = b"ftrt" + bytes(20) + bytes(self.library.header)
        return head + self.library.model


class _Parser:
    num_errors = 0

    def __init__(self, library: LibraryDouble, network: Any) -> None:
        self.library, self.network = library, network

    def parse(self, data: bytes) -> bool:
        model = onnx.load_from_string(data)
        face = model.graph.input[0]
        sizes = [dim.dim_value or -1 for dim in face.type.tensor_type.shape.dim]
        self.network.get_input = lambda index: SimpleNamespace(name=face.name, shape=sizes)
        self.library.model = data
        self.library.nodes[:] = list(model.graph.node)
        self.library.shape = tuple(sizes)
        return True


class _Runtime(_Recorded):
    _settable = ("engine_host_code_allowed", "DLA_core")

    def deserialize_cuda_engine(self, plan: bytes) -> "_Engine":
        return _Engine(self.library, plan[28:])


class _Engine:
    num_io_tensors = 2

    def __init__(self, library: LibraryDouble, model: bytes) -> None:
        self.library = library
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.face, self.embedding = self.session.get_inputs()[0], self.session.get_outputs()[0]

    def get_tensor_name(self, index: int) -> str:
        return str((self.embedding, self.face)[index].name)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == self.face.name else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if name == self.face.name and "uint8" in self.face.type else "float"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tensor = self.face if name == self.face.name else self.embedding
        return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert (name, index) == (self.face.name, 0)
        _, *shapes = self.library.called("set_shape")[-1]
        return [tuple(shape) for shape in shapes]

    def create_execution_context(self) -> "_Context | None":
        return _Context(self.library, self) if self.library.room else None

    def create_engine_inspector(self) -> "_Inspector":
        return _Inspector(self.library)


class _Context(_Recorded):
    active_optimization_profile = 0
    _settable = ("nvtx_verbosity", "profiler")

    def __init__(self, library: LibraryDouble, engine: _Engine) -> None:
        super().__init__(library)
        vars(self).update(engine=engine, at={}, shape=())

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.at[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.library.calls.append(("set_input_shape", name, shape))
        vars(self)["shape"] = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        face, embedding = self.engine.face, self.engine.embedding
        dtype = np.dtype(np.uint8 if "uint8" in face.type else np.float32)
        size = dtype.itemsize * int(np.prod(self.shape))
        data = np.frombuffer(ctypes.string_at(self.at[face.name], size), dtype)
        out = self.engine.session.run(None, {face.name: data.reshape(self.shape)})[0]
        ctypes.memmove(self.at[embedding.name], np.ascontiguousarray(out).ctypes.data, out.nbytes)
        if profiler := vars(self).get("profiler"):
            profiler.report_layer_time("conv", 0.5)
        return True


class _Inspector(_Recorded):
    _settable = ("execution_context",)

    def get_engine_information(self, form: str) -> str:
        context = vars(self).get("execution_context")
        shaped = context is not None and bool(self.library.called("set_input_shape"))
        rows = [self.library.row(n, shaped) for n in self.library.nodes if n.op_type == "Conv"]
        return json.dumps({"Layers": rows})


class CudaDouble:
    """Host memory as a device that shares it, as on a Jetson; work runs when it is queued."""

    name = "double"

    def __init__(self) -> None:
        self.replays, self.replays_compute, self.clock = 0, True, 0.0
        self.arrays: list[np.ndarray] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def buffer(self, size: int) -> Buffer:
        self.arrays.append(np.zeros(size, np.uint8))
        return Buffer(self.arrays[-1], self.arrays[-1].ctypes.data, True, ())

    def stream(self) -> int:
        return 1

    def push(self, buffer: Buffer, size: int, stream: int) -> None:
        assert size <= len(buffer.array)

    pull = push

    def mark(self, stream: int) -> float:
        self.clock += 0.25
        return self.clock

    def elapsed_ms(self, first: float, second: float) -> float:
        return second - first

    def wait(self, stream: int) -> None:
        pass

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        def launch() -> None:
            self.replays += 1
            if self.replays_compute:
                work()

        return launch

    def close(self) -> None:
        pass
