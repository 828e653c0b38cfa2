"""TensorRT's engine in the form of PReLU that is faster on this GPU: both are built and timed.

TensorRT-RTX fuses relu(x) - a relu(-x) into the convolution and gives PReLU a kernel of its own
(docs/decisions/0003). What TensorRT 8.6 to 11 do differs between versions and GPUs, so it is measured.
The two forms compute the same numbers; the winner is verified like any engine.
"""

import hashlib
import logging
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..bundle.manifest import Bundle
from ..errors import FrEdgeError, GateFailed, MachineError, ModelError
from ..faces.contract import ALIGNED_SIZE, preprocess
from ..graph.prelu import has_prelu
from ..onnx_file import read_onnx
from .cpu_kernel_selection import interleaved_min_times
from .fingerprint import SOURCES, BackendBuild
from .machine.backends import COMPILE_ONLY
from .tensorrt_session import GpuSession
from .trt.bundle_plan import build_plan
from .trt.config import EngineOptions, PreluForm

logger = logging.getLogger(__name__)

PRELU_FORMS: dict[PreluForm, str] = {"split": "relu(x) - a relu(-x)", "native": "PReLU as it is"}

_TIMING_S = 4.0  # for both together

Build = tuple[bytes, BackendBuild]


def build_fastest_plan(
    bundle: Bundle, precision: str, backend: str, options: EngineOptions, timing_cache: bytes
) -> Build:
    """Build the plan of a bundle's network, with `options.prelu` "fastest" in both forms of PReLU.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16" or "int8".
        backend: "tensorrt" or "tensorrt-rtx".
        options: How to build it.
        timing_cache: An earlier build's, b"" to begin one.

    Returns:
        The serialized plan, and what is in it. Where both forms were timed, its facts name the one
        that was kept, `prelu`, and the milliseconds of the fastest run of each, `prelu_ms`.

    Raises:
        ModelError: TensorRT refuses the network in both forms.
        GateFailed: An INT8 engine computes no convolution in INT8, or it is not known whether.
        MachineError: The library or the GPU does not suffice.
    """
    if options.prelu != "fastest":
        return build_plan(bundle, precision, backend, options, timing_cache)
    if not _undecided(bundle, precision, backend, options):
        return build_plan(bundle, precision, backend, replace(options, prelu="split"), timing_cache)
    builds: dict[PreluForm, Build] = {}
    refusals: list[FrEdgeError] = []
    for form in PRELU_FORMS:
        try:
            choice = replace(options, prelu=form)
            builds[form] = build_plan(bundle, precision, backend, choice, timing_cache)
        except (ModelError, GateFailed) as error:
            logger.info("%s is not built: %s", PRELU_FORMS[form], error.message)
            refusals.append(error)
            continue
        timing_cache = builds[form][1].timing_cache
    if not builds:
        raise refusals[0]
    return _fastest(bundle, precision, backend, options, builds)


def _undecided(bundle: Bundle, precision: str, backend: str, options: EngineOptions) -> bool:
    """Whether there are two forms and the faster one is not known."""
    if backend in COMPILE_ONLY or options.dla is not None or options.implicit:
        return False
    return has_prelu(read_onnx(bundle.file(SOURCES[precision])))


def _fastest(
    bundle: Bundle,
    precision: str,
    backend: str,
    options: EngineOptions,
    builds: dict[PreluForm, Build],
) -> Build:
    times: dict[PreluForm, float] = {}
    if len(builds) > 1:
        try:
            times = _time(bundle, precision, backend, options, builds)
        except MachineError as error:
            logger.warning("the forms of PReLU are not timed: %s", error.message)
    winner = min(times, key=lambda form: times[form]) if times else next(iter(builds))
    if times:
        texts = [f"{PRELU_FORMS[form]} {ms:.3f} ms" for form, ms in times.items()]
        logger.info(
            "%s, batch %d: %s is kept", ", ".join(texts), options.batch[0], PRELU_FORMS[winner]
        )
    plan, built = builds[winner]
    last = list(builds.values())[-1][1].timing_cache  # has the timings of both builds
    return plan, replace(built, facts={**built.facts, "prelu_ms": times}, timing_cache=last)


def _time(
    bundle: Bundle,
    precision: str,
    backend: str,
    options: EngineOptions,
    builds: dict[PreluForm, Build],
) -> dict[PreluForm, float]:
    """Form -> milliseconds of the fastest run of the smallest batch, timed in turns."""
    shape = (options.batch[0], ALIGNED_SIZE, ALIGNED_SIZE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sessions = []
        for form, (plan, _) in builds.items():
            path = Path(folder, f"{form}.plan")
            path.write_bytes(plan)
            session = GpuSession(
                path,
                precision,
                backend,
                bundle.spec,
                expected_sha256=hashlib.sha256(plan).hexdigest(),
                version_compatible=options.version_compatible,
            )
            sessions.append(stack.enter_context(session))
        if options.uint8_input:
            seconds = interleaved_min_times([s.embed for s in sessions], images, _TIMING_S)
        else:
            inputs = preprocess(images, bundle.spec)
            seconds = interleaved_min_times([s.embed_tensor for s in sessions], inputs, _TIMING_S)
    return {form: 1e3 * value for form, value in zip(builds, seconds, strict=True)}
