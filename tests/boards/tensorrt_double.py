"""A double of TensorRT 8.6 to 11.4: the real bindings' names and signatures, onnxruntime's numbers.

It refuses what TensorRT refuses, in recorded words, and keeps a transcript of every call. It proves
calls and texts, never speed, fusion or a GPU's numbers.

The texts are those of public logs: "not compatible with this version" and "incompatible device" of
IRuntime::deserializeCudaEngine, "int8 is not configured in the builder" and OutOfMemory of the
builder, and the inspector's "N/A due to dynamic shapes" (NvInferRuntime.h,
IEngineInspector::setExecutionContext).
"""

import ctypes
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from functools import lru_cache
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet, ref

import numpy as np
import onnx
import onnxruntime as ort
from tensorrt_api import make_module, read_table

WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")
# The words for fp8 are made up after those for int8; the others are TensorRT's.
UNTOLD = "N/A due to dynamic shapes"
FORMS = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp8": "Channel major FP8 format where channel % 16 == 0",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
}
WEIGHTS = {"int8": "Int8", "fp8": "FP8", "fp16": "Half", "fp32": "Float"}
TACTICS = {
    "int8": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs",
    "fp8": "sm89_xmma_fprop_implicit_gemm_e4m3e4m3_e4m3f32_f32_nhwckrsc_nhwc",
    "fp16": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc",
    "fp32": "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc",
}
_UINT8, _FP8 = 2, 17  # TensorProto's
ALIGNED = 256  # bytes, of addresses (NvInferRuntime.h, IExecutionContext::setTensorAddress)
HEAD = 28  # bytes before what this double writes into a plan


class Refused(Exception):
    """What TensorRT logs as an error before it returns None or False."""


class TensorRTDouble:
    """TensorRT of one version; `module` is what `import tensorrt` gives.

    Attributes:
        module: The module.
        header: The version in four numbers, as plans carry it.
        transcript: Every call and every attribute that was set, in order.
        gpu: Name and compute capability of the GPU that work runs on now.
        launch: Queues a function on a stream.
        capturing: Whether a stream records a graph.
        driver_too_old: Whether TensorRT's CUDA runtime refuses the driver.
        on_run: Is told the batch of each run of an engine.
        keeps: Of a node, its precision and whether the convolution is depthwise, the precision that
            the builder takes in its place; None for no change.
        log_form: How the builder's log prints parameters: "json", "plain" or "" (no layers).
        untold: What reports leave out: "weights", "tactics", "inspector" (of engines with shapes).
        workspace_mb: Memory that a build needs.
        largest_mb: Memory that there is for a build.
        contexts: Execution contexts that fit into memory.
        types: Tensor -> type that engines report of it in place of its own.
        refuses: Calls, as "Class.method", that return False or None from now on.
    """

    def __init__(self, version: str, header: tuple[int, int, int, int] | None = None) -> None:
        known, wanted = read_table()[0], version.split(".")[:2]
        (column,) = (i for i, name in enumerate(known) if name.split(".")[:2] == wanted)
        self.module: Any = make_module(column, self._behaviour, self._record)
        self.module.__version__ = version
        self.module.__spec__ = ModuleSpec("tensorrt", None)
        numbers = (*map(int, version.split(".")), 0)[:4]
        self.header = header or numbers
        self.transcript: list[str] = []
        self._living: WeakSet[Any] = WeakSet()
        self._global_log: Callable[[], Any] = lambda: None
        self.gpu: Callable[[], tuple[str, str]] = lambda: ("Orin", "8.7")
        self.launch: Callable[[int, Callable[[], None]], None] = lambda stream, work: work()
        self.capturing: Callable[[int], bool] = lambda stream: False
        self.driver_too_old: Callable[[], bool] = lambda: False
        self.on_run: Callable[[int], None] = lambda batch: None
        self.keeps: Callable[[str, str, bool], str | None] = lambda node, kind, depthwise: None
        self.log_form = "plain" if version.startswith("8") else "json"
        self.untold: set[str] = set()
        self.workspace_mb, self.largest_mb, self.contexts = 64, 1 << 20, 1 << 20
        self.dla_cores = 0
        self.refuses: set[str] = set()
        self.types: dict[str, str] = {}
        self.major = int(version.split(".")[0])

    def called(self, name: str) -> list[str]:
        """The rows of the transcript that begin with `name`."""
        return [row for row in self.transcript if row.startswith(name)]

    def _behaviour(self, path: str) -> Callable[..., Any] | None:
        if path in self.refuses:
            return lambda *args, **keywords: False if ".set_" in path or "execute" in path else None
        return getattr(self, path.replace(".__", "_").replace("__", "").replace(".", "_"), None)

    def _record(self, this: Any, path: str, values: dict[str, Any]) -> None:
        if path.startswith(("Dims.", "ILogger.", "IProfiler.", "IInt8")):
            return
        number = vars(this).get("_number", 1)  # of an engine's contexts after the first
        which = f"  of context {number}" if number > 1 else ""
        if path.endswith(" ="):
            self.transcript.append(f"{path} {_text(values[''])}{which}")
            return
        inner = ", ".join(f"{name}={_text(value)}" for name, value in values.items())
        self.transcript.append(f"{path}({inner}){which}")

    def _make(self, name: str, **state: Any) -> Any:
        made = object.__new__(getattr(self.module, name))
        vars(made).update(state, _made=True)
        return made

    def _error(self, log: Any, text: str) -> None:
        log.log(self.module.ILogger.Severity.ERROR, text)

    # Dims

    def Dims_init(self, this: Any, shape: Any = ()) -> None:  # noqa: N802
        vars(this)["_sizes"] = tuple(int(size) for size in shape)

    def Dims_len(self, this: Any) -> int:  # noqa: N802
        return len(this._sizes)

    def Dims_getitem(self, this: Any, arg0: Any) -> Any:  # noqa: N802
        return this._sizes[arg0]

    def _dims(self, sizes: Any) -> Any:
        return self._make("Dims", _sizes=tuple(sizes))

    # Builder

    def Builder_init(self, this: Any, logger: Any) -> None:  # noqa: N802
        self._begin(this, logger)

    def _begin(self, this: Any, logger: Any) -> None:
        """Of a builder or runtime; the first that lives gives the global logger, by its address."""
        self._require_driver(logger)
        if not self._living:
            self._global_log = ref(logger)
        self._living.add(this)
        vars(this)["_log"] = logger

    def _global_error(self, text: str) -> None:
        """To nvinfer1::getLogger(), as allocators write."""
        logger = self._global_log()
        assert logger is not None, "TensorRT writes to a logger that was freed"
        self._error(logger, text)

    def alive(self) -> dict[str, int]:
        """Class -> objects that were not freed yet."""
        return dict(Counter(type(one).__name__ for one in self._living))

    def _require_driver(self, log: Any) -> None:
        """What pybind11 makes of a factory that returns nullptr."""
        if self.driver_too_old():
            self._error(
                log,
                "[checkMacros.cpp::catchCudaError::212] Error Code 1: Cuda Runtime (CUDA driver"
                " version is insufficient for CUDA runtime version)",
            )
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def Builder_num_DLA_cores(self, this: Any) -> int:  # noqa: N802
        return self.dla_cores

    def Builder_create_network(self, this: Any, flags: int = 0) -> Any:  # noqa: N802
        creation = self.module.NetworkDefinitionCreationFlag
        names = {flag.name for flag in creation if flags >> flag.value & 1}
        if flags >> (max(flag.value for flag in creation) + 1):
            self._error(this._log, f"createNetworkV2: Error Code 3: unknown flags {flags}")
            return None
        return self._make("INetworkDefinition", _flags=names, _log=this._log, _model=None)

    def Builder_create_builder_config(self, this: Any) -> Any:  # noqa: N802
        return self._make(
            "IBuilderConfig", _flags={"TF32"}, _log=this._log, _profiles=[], _limits={}, _preview={}
        )

    def Builder_create_optimization_profile(self, this: Any) -> Any:  # noqa: N802
        return self._make("IOptimizationProfile", _shapes={})

    def Builder_build_serialized_network(self, this: Any, network: Any, config: Any) -> Any:  # noqa: N802
        try:
            meta = self._built(network, config)
        except Refused as error:
            self._error(this._log, str(error))
            return None
        if self.log_form:
            rows = "\n".join(self._log_rows(network._model, meta))
            this._log.log(self.module.ILogger.Severity.VERBOSE, f"Layers:\n{rows}")
        head = b"ftrt" + bytes(HEAD - 8) + bytes(self.header)
        data = head + json.dumps(meta).encode() + b"\n" + network._model.SerializeToString()
        return _host_memory(self._make("IHostMemory", _data=data))

    def _built(self, network: Any, config: Any) -> dict[str, Any]:
        """What the plan holds beside the network."""
        strong = "STRONGLY_TYPED" in network._flags or (
            self.major >= 11 and not hasattr(self.module.BuilderFlag, "FP16")
        )
        flags, model = config._flags, network._model
        if strong and {"FP16", "INT8"} & flags:
            raise Refused(
                "IBuilder::buildSerializedNetwork: Error Code 3: API Usage Error (Parameter check"
                " failed: precision flags cannot be set for a strongly typed network)"
            )
        if not strong and _quantised(model) and "INT8" not in flags:
            raise Refused(
                "4: [network.cpp::validate::2949] Error Code 4: Internal Error (Int8 precision has"
                " been set for a layer or layer output, but int8 is not configured in the builder)"
            )
        name = model.graph.input[0].name
        readers = {node.op_type for node in model.graph.node if name in node.input}
        if model.graph.input[0].type.tensor_type.elem_type == _UINT8 and readers != {"Cast"}:
            raise Refused(
                "Error Code 4: Internal Error (a UINT8 input must be cast before other layers read"
                f" it; it is read by {sorted(readers)})"
            )
        names = [value.name for value in model.graph.input]
        profiles = [profile._shapes for profile in config._profiles]
        if not profiles or not all(n in shapes for n in names for shapes in profiles):
            raise Refused(
                "4: [network.cpp::validate::3066] Error Code 4: Internal Error (Network has dynamic"
                " or shape inputs, but no optimization profile has been defined.)"
            )
        limit = config._limits.get("WORKSPACE", self.largest_mb << 20) >> 20
        if limit >= self.largest_mb and self.workspace_mb > self.largest_mb:
            raise Refused(
                "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (no"
                " further information)"
            )
        if limit < min(self.workspace_mb, 16):
            raise Refused(
                "[optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error (Could not find"
                " any implementation for node c1 within workspace limit.)"
            )
        dla = self._dla(config, profiles[0][name])
        ranges = self._calibrated(config) if "INT8" in flags and not _quantised(model) else set()
        return {
            "version": list(self.header),
            "gpu": list(self.gpu()),
            "compatible": "VERSION_COMPATIBLE" in flags,
            "hardware": _get(config, "hardware_compatibility_level", "NONE"),
            "detailed": _get(config, "profiling_verbosity", "LAYER_NAMES_ONLY") == "DETAILED",
            "shares": self.major >= 10 or config._preview.get("PROFILE_SHARING_0806", False),
            "shapes": profiles[0],
            "dla": dla,
            "precisions": dict(self._precisions(model, strong, flags, ranges)),
        }

    def _dla(self, config: Any, shapes: list[list[int]]) -> int | None:
        if _get(config, "default_device_type", "GPU") != "DLA":
            return None
        core = vars(config).get("_IBuilderConfig.DLA_core", -1)
        if not 0 <= core < self.dla_cores:
            raise Refused(f"Error Code 3: API Usage Error (DLA core {core} does not exist)")
        if "GPU_FALLBACK" not in config._flags:
            raise Refused(
                "4: [standardEngineBuilder.cpp::buildEngine] Error Code 4: Internal Error (GPU"
                " fallback is disabled and a layer cannot run on DLA)"
            )
        if len({shape[0] for shape in shapes}) > 1:
            raise Refused("Error Code 4: Internal Error (DLA does not take dynamic shapes)")
        return int(core)

    def _calibrated(self, config: Any) -> set[str]:
        """The tensors with a range in the calibrator's cache; TensorRT ignores another version's."""
        calibrator = vars(config).get("_IBuilderConfig.int8_calibrator")
        cache = bytes(calibrator.read_calibration_cache() or b"") if calibrator else b""
        major, minor, patch = self.header[:3]
        number = major * 1000 + minor * 100 + patch
        if major >= 10:
            number = major * 10000 + minor * 100 + patch
        head, *lines = cache.decode().splitlines() or [""]
        if head != f"TRT-{number}-EntropyCalibration2":
            raise Refused(
                "4: [standardEngineBuilder.cpp::initCalibrationParams::1460] Error Code 4: Internal"
                " Error (Calibration failure occurs with no scaling factors detected.)"
            )
        return {line.rsplit(": ", 1)[0] for line in lines}

    def _precisions(
        self, model: Any, strong: bool, flags: set[str], ranges: set[str]
    ) -> Iterator[tuple[str, str]]:
        made = {out: node for node in model.graph.node for out in node.output}
        weights = {w.name: w for w in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type not in WEIGHTED:
                continue
            sources = [made.get(name) for name in node.input[:2]]
            explicit = all(s is not None and s.op_type == "DequantizeLinear" for s in sources)
            half = any(weights[n].data_type == 10 for n in node.input if n in weights)
            kind = "fp16" if half or (not strong and "FP16" in flags) else "fp32"
            if explicit or ("INT8" in flags and node.input[0] in ranges):
                zeros = [weights[s.input[2]].data_type for s in sources if explicit and s]
                kind = "fp8" if _FP8 in zeros else "int8"
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            yield node.name, self.keeps(node.name, kind, groups > 1) or kind

    # IBuilderConfig

    def IBuilderConfig_set_flag(self, this: Any, flag: Any) -> None:  # noqa: N802
        this._flags.add(flag.name)

    def IBuilderConfig_clear_flag(self, this: Any, flag: Any) -> None:  # noqa: N802
        this._flags.discard(flag.name)

    def IBuilderConfig_get_flag(self, this: Any, flag: Any) -> bool:  # noqa: N802
        return flag.name in this._flags

    def IBuilderConfig_set_memory_pool_limit(  # noqa: N802
        self, this: Any, pool: Any, pool_size: int
    ) -> None:
        this._limits[pool.name] = pool_size

    def IBuilderConfig_set_preview_feature(self, this: Any, feature: Any, enable: bool) -> None:  # noqa: N802
        this._preview[feature.name] = enable

    def IBuilderConfig_add_optimization_profile(self, this: Any, profile: Any) -> int:  # noqa: N802
        this._profiles.append(profile)
        return len(this._profiles) - 1

    def IBuilderConfig_create_timing_cache(  # noqa: N802
        self, this: Any, serialized_timing_cache: Any
    ) -> Any:
        data = bytes(serialized_timing_cache)
        if data and not data.startswith(self._timings()):
            self._error(this._log, "Timing cache of another TensorRT or GPU: it is ignored")
            return None
        return self._make("ITimingCache", _data=data)

    def IBuilderConfig_set_timing_cache(self, this: Any, cache: Any, ignore_mismatch: bool) -> bool:  # noqa: N802
        vars(this)["_cache"] = cache
        return True

    def IBuilderConfig_get_timing_cache(self, this: Any) -> Any:  # noqa: N802
        return self._make("ITimingCache", _data=self._timings())

    def ITimingCache_serialize(self, this: Any) -> Any:  # noqa: N802
        return _host_memory(self._make("IHostMemory", _data=this._data))

    def _timings(self) -> bytes:
        return f"timings of {self.header} on {self.gpu()}".encode()

    def IOptimizationProfile_set_shape(  # noqa: N802
        self, this: Any, input: str, min: Any, opt: Any, max: Any
    ) -> None:
        this._shapes[input] = [list(tuple(shape)) for shape in (min, opt, max)]

    # Network and parser

    def INetworkDefinition_num_inputs(self, this: Any) -> int:  # noqa: N802
        return len(this._model.graph.input)

    def INetworkDefinition_get_input(self, this: Any, index: int) -> Any:  # noqa: N802
        face = this._model.graph.input[index]
        sizes = [dim.dim_value or -1 for dim in face.type.tensor_type.shape.dim]
        return self._make("ITensor", **{"_ITensor.name": face.name, "_sizes": sizes})

    def INetworkDefinition_num_layers(self, this: Any) -> int:  # noqa: N802
        return len(this._model.graph.node)

    def INetworkDefinition_get_layer(self, this: Any, index: int) -> Any:  # noqa: N802
        """One layer for each node; TensorRT's parser names them so, and makes some more."""
        node = this._model.graph.node[index]
        types = {v.name: v.type.tensor_type.elem_type for v in _inferred(this._model)}
        return self._make(
            "ILayer",
            **{
                "_ILayer.name": node.name or f"(Unnamed Layer* {index}) [{node.op_type}]",
                "_ILayer.num_outputs": len(node.output),
                "_types": [types[name] for name in node.output],
            },
        )

    def ILayer_get_output(self, this: Any, index: int) -> Any:  # noqa: N802
        floats = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
        kind = floats.get(this._types[index], "INT32")
        return self._make("ITensor", **{"_ITensor.dtype": getattr(self.module.DataType, kind)})

    def ITensor_shape(self, this: Any) -> Any:  # noqa: N802
        return self._dims(this._sizes)

    def OnnxParser_init(self, this: Any, network: Any, logger: Any) -> None:  # noqa: N802
        vars(this).update(_network=network, _log=logger, _errors=[])

    def OnnxParser_parse(self, this: Any, model: Any, path: str = "") -> bool:  # noqa: N802
        if self.major < 10 and "EXPLICIT_BATCH" not in this._network._flags:
            this._errors.append(
                (-1, "", "", "This version of the ONNX parser only supports TensorRT"
                 " INetworkDefinitions with an explicit batch dimension.")
            )  # fmt: skip
            return False
        read = onnx.load_from_string(bytes(model))
        vars(this._network)["_model"] = read
        self.transcript.append(f"-- network: {_summary(read)}")
        return True

    def OnnxParser_num_errors(self, this: Any) -> int:  # noqa: N802
        return len(this._errors)

    def OnnxParser_get_error(self, this: Any, index: int) -> Any:  # noqa: N802
        return self._make("ParserError", _row=this._errors[index])

    def ParserError_node(self, this: Any) -> int:  # noqa: N802
        return int(this._row[0])

    def ParserError_node_name(self, this: Any) -> str:  # noqa: N802
        return str(this._row[1])

    def ParserError_node_operator(self, this: Any) -> str:  # noqa: N802
        return str(this._row[2])

    def ParserError_desc(self, this: Any) -> str:  # noqa: N802
        return str(this._row[3])

    # Runtime and engine

    def Runtime_init(self, this: Any, logger: Any) -> None:  # noqa: N802
        self._begin(this, logger)

    def Runtime_deserialize_cuda_engine(self, this: Any, serialized_engine: Any) -> Any:  # noqa: N802
        data = bytes(serialized_engine)
        try:
            meta, model = self._read_plan(data, this)
        except Refused as error:
            self._error(this._log, str(error))
            return None
        state = SimpleNamespace(
            meta=meta,
            log=this._log,
            model=onnx.load_from_string(model),
            session=ort.InferenceSession(model, _options(), providers=["CPUExecutionProvider"]),
            contexts=WeakSet(),
            known={},
            made=0,
        )
        made = self._make("ICudaEngine", _state=state)
        self._living.add(made)
        return made

    def _read_plan(self, data: bytes, runtime: Any) -> tuple[dict[str, Any], bytes]:
        if data[:4] != b"ftrt" or b"\n" not in data:
            raise Refused(
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization"
                " assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match)"
            )
        text, model = data[HEAD:].split(b"\n", 1)
        meta = json.loads(text)
        expected = ".".join(map(str, self.header))
        if meta["version"] != list(self.header) and not meta["compatible"]:
            raise Refused(
                "6: The engine plan file is not compatible with this version of TensorRT, expecting"
                f" library version {expected} got {'.'.join(map(str, meta['version']))}, please"
                " rebuild."
            )
        if meta["compatible"] and not vars(runtime).get("_Runtime.engine_host_code_allowed", False):
            raise Refused(
                "IRuntime::deserializeCudaEngine: Error Code 9: API Usage Error (Engine contains"
                " host executable code, and engine_host_code_allowed is false)"
            )
        compute = self.gpu()[1]
        if meta["gpu"][1] != compute and meta["hardware"] == "NONE":
            raise Refused(
                "6: The engine plan file is generated on an incompatible device, expecting compute"
                f" {compute} got compute {meta['gpu'][1]}, please rebuild."
            )
        core = vars(runtime).get("_Runtime.DLA_core", 0)
        if meta["dla"] is not None and not 0 <= core < self.dla_cores:
            raise Refused("Error Code 3: API Usage Error (this machine has no such DLA core)")
        return meta, model

    def ICudaEngine_num_io_tensors(self, this: Any) -> int:  # noqa: N802
        graph = this._state.model.graph
        return len(graph.output) + len(graph.input)

    def ICudaEngine_get_tensor_name(self, this: Any, index: int) -> str:  # noqa: N802
        graph = this._state.model.graph  # outputs first: the order is not promised
        return str([value.name for value in (*graph.output, *graph.input)][index])

    def ICudaEngine_get_tensor_mode(self, this: Any, name: str) -> Any:  # noqa: N802
        mode = self.module.TensorIOMode
        inputs = {value.name for value in this._state.model.graph.input}
        return mode.INPUT if name in inputs else mode.OUTPUT

    def ICudaEngine_get_tensor_dtype(self, this: Any, name: str) -> Any:  # noqa: N802
        kind = self._tensor(this, name).type.tensor_type.elem_type
        own = "UINT8" if kind == _UINT8 else "FLOAT"
        return getattr(self.module.DataType, self.types.get(name, own))

    def ICudaEngine_get_tensor_shape(self, this: Any, name: str) -> Any:  # noqa: N802
        sizes = [d.dim_value or -1 for d in self._tensor(this, name).type.tensor_type.shape.dim]
        return self._dims(sizes)

    def ICudaEngine_get_tensor_profile_shape(  # noqa: N802
        self, this: Any, name: str, profile_index: int
    ) -> list[Any]:
        return [self._dims(shape) for shape in this._state.meta["shapes"][name]]

    def _tensor(self, engine: Any, name: str) -> Any:
        graph = engine._state.model.graph
        return next(t for t in (*graph.input, *graph.output) if t.name == name)

    def ICudaEngine_create_execution_context(self, this: Any, **ignored: Any) -> Any:  # noqa: N802
        contexts = this._state.contexts
        if len(contexts) >= self.contexts:
            self._global_error(
                "1: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
            )
            return None
        # In TensorRT 8 the first context has profile 0, the others have to ask for it.
        free = self.major >= 10 or all(context._profile != 0 for context in contexts)
        this._state.made += 1
        made = self._make(
            "IExecutionContext",
            _engine=this,
            _at={},
            _shapes={},
            _ready={},
            _profile=-1 + free,
            _number=this._state.made,
        )
        contexts.add(made)
        self._living.add(made)
        return made

    def ICudaEngine_create_engine_inspector(self, this: Any) -> Any:  # noqa: N802
        return self._make("EngineInspector", _engine=this)

    # Execution

    def IExecutionContext_active_optimization_profile(self, this: Any) -> int:  # noqa: N802
        return int(this._profile)

    def IExecutionContext_set_optimization_profile_async(  # noqa: N802
        self, this: Any, profile_index: int, stream_handle: int
    ) -> bool:
        state = this._engine._state
        used = any(context._profile == profile_index for context in state.contexts)
        if used and not state.meta["shares"]:
            self._error(
                state.log,
                f"3: [executionContext.cpp::setOptimizationProfileInternal::1328] Error Code 3: API"
                f" Usage Error (Profile {profile_index} has been chosen by another IExecutionContext)",
            )
            return False
        vars(this)["_profile"] = profile_index
        return True

    def IExecutionContext_set_tensor_address(self, this: Any, name: str, memory: int) -> bool:  # noqa: N802
        if memory % ALIGNED:
            self._error(this._engine._state.log, f"IExecutionContext::setTensorAddress: {ALIGNED}")
            return False
        this._at[name] = memory
        return True

    def IExecutionContext_set_input_shape(self, this: Any, name: str, shape: Any) -> bool:  # noqa: N802
        smallest, _, largest = this._engine._state.meta["shapes"][name]
        sizes = tuple(shape)
        if this._profile != 0 or not all(
            a <= size <= b for a, size, b in zip(smallest, sizes, largest, strict=True)
        ):
            self._error(
                this._engine._state.log,
                "3: [executionContext.cpp::validateInputBindings::2082] Error Code 3: API Usage"
                f" Error (Static dimension mismatch or out of the profile: {sizes})",
            )
            return False
        this._shapes[name] = sizes
        return True

    def IExecutionContext_get_tensor_shape(self, this: Any, name: str) -> Any:  # noqa: N802
        state, shapes = this._engine._state, this._shapes
        feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        names = [value.name for value in state.model.graph.output]
        arrays = dict(zip(names, state.session.run(names, feeds), strict=True))
        return self._dims(list(arrays[name].shape))

    def IExecutionContext_execute_async_v3(self, this: Any, stream_handle: int) -> bool:  # noqa: N802
        state, at, shapes = this._engine._state, dict(this._at), dict(this._shapes)
        names = list(state.meta["shapes"])
        outputs = {value.name for value in state.model.graph.output}
        problem = ""
        if this._profile != 0 or set(shapes) != {*names} or set(at) != {*names, *outputs}:
            problem = "a profile, the input's shape and all addresses must be set"
        elif self.capturing(stream_handle) and this._ready != shapes:
            problem = "operation not permitted when stream is capturing"  # what a first run sets up
        if problem:
            self._error(state.log, f"1: [enqueueV3] Error Code 1: Cuda Runtime ({problem})")
            return False

        def work() -> None:
            _compute(state, at, shapes)
            self.on_run(shapes[names[-1]][0])

        self.launch(stream_handle, work)
        vars(this)["_ready"] = shapes
        profiler = vars(this).get("_IExecutionContext.profiler")
        if profiler is not None:
            for index, name in enumerate(state.meta["precisions"]):
                profiler.report_layer_time(name, 0.5 / (1 + index))
        return True

    # Inspector and log

    def EngineInspector_get_engine_information(self, this: Any, format: Any) -> str:  # noqa: N802
        context = vars(this).get("_EngineInspector.execution_context")
        state = this._engine._state
        if not state.meta["detailed"]:
            return json.dumps({"Layers": list(state.meta["precisions"])})
        shaped = _static(state.meta) or (context is not None and bool(context._shapes))
        shaped = shaped and "inspector" not in self.untold
        rows = [self._row(name, kind, shaped) for name, kind in state.meta["precisions"].items()]
        copy = {
            "Name": "Reformatting CopyNode for Input Tensor 0 to first",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "face", "Format/Datatype": FORMS["fp32"] if shaped else UNTOLD}],
            "Outputs": [{"Name": "x", "Format/Datatype": FORMS["int8"] if shaped else UNTOLD}],
            "TacticName": "",
        }
        return json.dumps({"Layers": [copy, *rows], "Bindings": ["face", "embedding"]})

    def _row(self, node: str, kind: str, shaped: bool) -> dict[str, Any]:
        form = FORMS[kind] if shaped else UNTOLD
        row: dict[str, Any] = {
            "Name": node if self.major < 10 else f"{node} + {node}_act",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Location": "Device", "Format/Datatype": form}],
            "Outputs": [{"Name": "y", "Location": "Device", "Format/Datatype": form}],
            "ParameterType": "Convolution",
            "Weights": {} if "weights" in self.untold else {"Type": WEIGHTS[kind], "Count": 864},
            "TacticName": "" if "tactics" in self.untold else TACTICS[kind],
        }
        if self.major >= 10:
            row["Metadata"] = f"[ONNX Layer: {node}]"
        return row

    def _log_rows(self, model: Any, meta: dict[str, Any]) -> Iterator[str]:
        for name, kind in meta["precisions"].items():
            form = FORMS[kind] if _static(meta) else UNTOLD
            weights: Any = {} if "weights" in self.untold else {"Type": WEIGHTS[kind], "Count": 864}
            text = json.dumps(weights) if self.log_form == "json" else _plain(weights)
            tactic = "" if "tactics" in self.untold else TACTICS[kind]
            ends = [
                f"{side}: [ {{ Name: {tensor}, Location: Device, Dimensions: [-1,8,8,8],"
                f" Format/Datatype: {form} }}]"
                for side, tensor in (("Inputs", "x"), ("Outputs", "y"))
            ]
            metadata = f", Metadata: [ONNX Layer: {name}]" if self.major >= 10 else ""
            yield (
                f"Name: {name}, LayerType: CaskConvolution, {ends[0]}, {ends[1]}, ParameterType:"
                f" Convolution, Weights: {text}, TacticName: {tactic}, StreamId: 0{metadata}"
            )


def _compute(state: Any, at: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    """Run the network on the bytes at the inputs' addresses into those at the outputs'."""
    feeds = {}
    for value in state.model.graph.input:
        kind = np.uint8 if value.type.tensor_type.elem_type == _UINT8 else np.float32
        size = int(np.prod(shapes[value.name])) * np.dtype(kind).itemsize
        data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at[value.name]))
        feeds[value.name] = data.view(kind).reshape(shapes[value.name])
    sums = (
        zlib.crc32(array.reshape(-1).view(np.uint8)[::61].tobytes()) for array in feeds.values()
    )
    key = (*shapes.items(), *sums)
    if key not in state.known:  # the same faces again: the same numbers
        state.known[key] = list(map(np.ascontiguousarray, state.session.run(None, feeds)))
    for value, out in zip(state.model.graph.output, state.known[key], strict=True):
        ctypes.memmove(at[value.name], out.ctypes.data, out.nbytes)


def _options() -> ort.SessionOptions:
    """As the graph is written: some of onnxruntime's optimisers change INT8 with FP16 around it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _summary(model: Any) -> str:
    """The inputs, the operators, and the types of the convolutions' weights."""
    inputs = []
    for value in model.graph.input:
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        inputs.append(f"{value.name} {kind} {sizes}")
    counts = Counter(node.op_type for node in model.graph.node)
    weights = Counter(
        onnx.TensorProto.DataType.Name(w.data_type)
        for w in model.graph.initializer
        if len(w.dims) == 4
    )
    operators = ", ".join(f"{n} {op}" for op, n in sorted(counts.items()))
    types = ", ".join(f"{n} {name}" for name, n in sorted(weights.items()))
    return f"{' and '.join(inputs)}; {operators}; weights {types}"


@lru_cache(maxsize=1)
def _values(data: bytes) -> list[Any]:
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data)).graph
    return [*graph.value_info, *graph.output]


def _inferred(model: Any) -> list[Any]:
    return _values(model.SerializeToString())


def _quantised(model: Any) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _static(meta: dict[str, Any]) -> bool:
    return all(shape == shapes[0] for shapes in meta["shapes"].values() for shape in shapes)


def _get(thing: Any, name: str, default: str) -> str:
    """The name of the enum member that a property was set to."""
    value = vars(thing).get(f"_{type(thing).__name__}.{name}")
    return default if value is None else str(value.name)


def _host_memory(made: Any) -> Any:
    """With the buffer protocol's effect on `bytes(...)`."""
    if not hasattr(type(made), "__bytes__"):
        type(made).__bytes__ = lambda this: this._data
    return made


def _plain(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def _text(value: Any) -> str:
    """A value in the transcript, the same on every run."""
    if hasattr(value, "_sizes") and hasattr(value, "_made"):
        return str(tuple(value._sizes))
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes" if len(value) > 8 else repr(value)
    if isinstance(value, bool | int | float | str | tuple | list | None):
        return repr(value)
    return value.name if isinstance(value, Enum) else type(value).__name__
