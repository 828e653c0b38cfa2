"""Runs a detector's plan on a GPU: one canvas at a time, several outputs.

Calls are queued one by one, not recorded: canvases have many sizes. This project has not run it on a
GPU yet.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays import F32
from ...errors import MachineError, UsageError
from ...faces.stored_detector import IMAGE, DetectorSpec
from ..cuda.interface import Buffer, Cuda, open_cuda
from ..fingerprint import read_expected
from .bindings import tensor_type
from .builder import load_engine, load_library, open_runtime
from .errors import recorder

if TYPE_CHECKING:
    import tensorrt

_AGAIN = "build it again here: `fr-edge build-engine BUNDLE --role detector`"


@dataclass(frozen=True)
class _Tensor:
    """An input or output by name, as onnxruntime's sessions list them."""

    name: str


class GpuDetectorSession:
    """A detector on one GPU, called like an onnxruntime session; from any thread, one call at a time.

    Attributes:
        sha256: Of the plan's bytes.
    """

    def __init__(
        self,
        path: Path,
        backend: str,
        spec: DetectorSpec,
        *,
        file: str,
        expected_sha256: str,
        host_code: bool = False,
        dla: int | None = None,
    ) -> None:
        """Load a plan onto the GPU.

        Args:
            path: The plan.
            backend: "tensorrt" or "tensorrt-rtx".
            spec: The largest canvas and the outputs' names.
            file: The file's name for messages.
            expected_sha256: Of the plan's bytes.
            host_code: Whether the plan may bring code for the CPU.
            dla: The DLA core that it was built for.

        Raises:
            BundleError: The plan's sha256 is not the expected one.
            MachineError: There is no GPU, TensorRT refuses the plan, or memory does not suffice.
        """
        plan, self.sha256 = read_expected(path, expected_sha256)
        self.file, self._spec = file, spec
        self._lock = threading.Lock()
        self._cuda: Cuda | None = open_cuda()
        try:
            with self._cuda.current():
                self._load(load_library(backend), self._cuda, plan, host_code=host_code, dla=dla)
        except BaseException as error:
            # The frames hold objects of TensorRT, which have to go before the GPU's context does.
            clear_frames(error.__traceback__)
            self.close()
            raise

    def _load(self, trt: Any, cuda: Cuda, plan: bytes, *, host_code: bool, dla: int | None) -> None:
        self._log = recorder(trt)
        self._runtime = open_runtime(trt, self._log, host_code=host_code, dla=dla)
        engine = load_engine(trt, self._runtime, self._log, plan, self.file, _AGAIN)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if set(names) != {IMAGE, *self._spec.outputs}:
            raise MachineError(f"{self.file} is not the detector that the bundle describes", _AGAIN)
        for name in names:
            tensor_type(trt, engine, name, self.file)
        self._engine = engine
        context: tensorrt.IExecutionContext | None = engine.create_execution_context()
        if context is None:
            raise MachineError(
                f"the GPU has too little memory to run {self.file}: {self._problems()}",
                "close other programs",
            )
        # Built with details, so that layers can be inspected; at run time they cost latency.
        context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        self._context = context
        self._stream = cuda.stream()
        largest = (1, 3, self._spec.height, self._spec.width)
        self._image = cuda.buffer(4 * prod(largest))
        self._require(context.set_tensor_address(IMAGE, self._image.address), f"bind {IMAGE!r}")
        self._require(context.set_input_shape(IMAGE, largest), f"set {IMAGE!r} to {largest}")
        self._buffers: dict[str, Buffer] = {}
        for name in self._spec.outputs:
            shape = self._shape(name)
            self._buffers[name] = cuda.buffer(4 * prod(shape))
            address = self._buffers[name].address
            self._require(context.set_tensor_address(name, address), f"bind {name!r}")

    def _shape(self, name: str) -> tuple[int, ...]:
        dims = self._context.get_tensor_shape(name)
        shape = tuple(int(dims[index]) for index in range(len(dims)))
        if any(side < 0 for side in shape):
            raise MachineError(
                f"the size of the output {name!r} of {self.file} depends on the picture: its"
                " suppression is inside",
                "run it on onnxruntime, or bring a detector without suppression",
            )
        return shape

    def run(self, names: Sequence[str], feeds: Mapping[str, F32]) -> list[F32]:
        """Run one canvas.

        Args:
            names: Outputs that are wanted.
            feeds: The input's name -> `(1, 3, height, width) float32`.

        Returns:
            The outputs, float32.

        Raises:
            UsageError: The session is closed, or the canvas is larger than the engine takes.
            MachineError: TensorRT does not run the engine.
        """
        image = feeds[IMAGE]
        if image.nbytes > len(self._image.array):
            raise UsageError(f"{self.file} takes no canvas of {image.shape}")
        with self._lock:
            if self._cuda is None:
                raise UsageError("the detector is closed", "open a new one")
            cuda = self._cuda
            self._log.problems.clear()
            with cuda.current():
                self._image.array[: image.nbytes] = (
                    np.ascontiguousarray(image).view(np.uint8).ravel()
                )
                cuda.push(self._image, image.nbytes, self._stream)
                done = self._context.set_input_shape(IMAGE, image.shape)
                self._require(done, f"set {IMAGE!r} to {image.shape}")
                shapes = {name: self._shape(name) for name in names}
                self._require(self._context.execute_async_v3(self._stream), "run the engine")
                for name, shape in shapes.items():
                    cuda.pull(self._buffers[name], 4 * prod(shape), self._stream)
                cuda.wait(self._stream)
                return [
                    self._buffers[name]
                    .array[: 4 * prod(shape)]
                    .view(np.float32)
                    .reshape(shape)
                    .copy()
                    for name, shape in shapes.items()
                ]

    def get_inputs(self) -> list[_Tensor]:
        """The image."""
        return [_Tensor(IMAGE)]

    def get_outputs(self) -> list[_Tensor]:
        """The outputs that decide the family."""
        return [_Tensor(name) for name in self._spec.outputs]

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise MachineError(
                f"TensorRT could not {what} of {self.file}: {self._problems()}", _AGAIN
            )

    def _problems(self) -> str:
        return " ".join(self._log.problems)[-400:] or "it gives no reason"

    def close(self) -> None:
        """Free the engine and its memory; closing twice does nothing."""
        with self._lock:
            cuda, self._cuda = self._cuda, None
            if cuda is None:
                return
            with cuda.current():
                for name in ("_context", "_engine", "_runtime"):
                    vars(self).pop(name, None)
            cuda.close()
