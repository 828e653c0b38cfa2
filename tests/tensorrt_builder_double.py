"""A double of TensorRT's builder: it records every call and builds nothing.

It proves which calls are made and how TensorRT's texts are read, never speed or numbers of a GPU.
The names are those of the real Python bindings of 8.6, 10.3 and 11.4; another name raises
AttributeError.
"""

import json
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import onnx

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
        return b"ftrt plan"


class _Parser:
    num_errors = 0

    def __init__(self, library: LibraryDouble, network: Any) -> None:
        self.library, self.network = library, network

    def parse(self, data: bytes) -> bool:
        model = onnx.load_from_string(data)
        face = model.graph.input[0]
        sizes = [dim.dim_value or -1 for dim in face.type.tensor_type.shape.dim]
        self.network.get_input = lambda index: SimpleNamespace(name=face.name, shape=sizes)
        self.library.nodes[:] = list(model.graph.node)
        self.library.shape = tuple(sizes)
        return True


class _Runtime(_Recorded):
    _settable = ("engine_host_code_allowed",)

    def deserialize_cuda_engine(self, plan: bytes) -> "_Engine":
        return _Engine(self.library)


class _Engine:
    num_io_tensors = 2

    def __init__(self, library: LibraryDouble) -> None:
        self.library = library

    def get_tensor_name(self, index: int) -> str:
        return ("embedding", "face")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "face" else "out"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert (name, index) == ("face", 0)
        return [(size, *self.library.shape[1:]) for size in (1, 8, 32)]

    def create_execution_context(self) -> "_Context | None":
        return _Context(self.library) if self.library.room else None

    def create_engine_inspector(self) -> "_Inspector":
        return _Inspector(self.library)


class _Context(_Recorded):
    _methods = ("set_input_shape",)


class _Inspector(_Recorded):
    _settable = ("execution_context",)

    def get_engine_information(self, form: str) -> str:
        context = vars(self).get("execution_context")
        shaped = context is not None and bool(self.library.called("set_input_shape"))
        rows = [self.library.row(n, shaped) for n in self.library.nodes if n.op_type == "Conv"]
        return json.dumps({"Layers": rows})
