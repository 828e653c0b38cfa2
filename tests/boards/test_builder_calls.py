"""Every call that decides an engine's types, and how its layers are asked for, on TensorRT's double."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from threading import Thread
from typing import Any

import pytest
from onnx import ModelProto
from pretend import L4, ORIN
from tensorrt_double import TensorRTDouble

from fr_edge.bundle.bundle import open_bundle
from fr_edge.cli.main import run
from fr_edge.errors import GateFailed, MachineError, ModelError, UsageError
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.machine import backends
from fr_edge.runtime.machine.device import GpuList
from fr_edge.runtime.trt import builder
from fr_edge.runtime.trt.builder import Compiled, compile_plan
from fr_edge.runtime.trt.config import EngineOptions
from fr_edge.runtime.trt.errors import recorder
from fr_edge.runtime.trt.layers import layers_in_log, node_precisions

SHAPE = (3, 16, 16)
VERSIONS = ["8.6.1", "10.3.0", "10.13.3.9", "10.16.2.10", "11.4.1.5"]


def built(
    trt: TensorRTDouble, model: ModelProto, precision: str, *args: Any, **options: Any
) -> Compiled:
    data = model.SerializeToString()
    return compile_plan(trt.module, data, SHAPE, precision, EngineOptions(**options), *args)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_other_options_reach_the_builder(tiny, version):
    trt = TensorRTDouble(version)
    built(
        trt, tiny(), "fp32", b"", batch=(1, 4, 8), workspace_mb=64, level=2,
        version_compatible=True, hardware_compatible=True,
    )  # fmt: skip
    for row in (
        f"IBuilderConfig.set_memory_pool_limit(pool=WORKSPACE, pool_size={64 << 20})",
        "IBuilderConfig.builder_optimization_level = 2",
        "IBuilderConfig.profiling_verbosity = DETAILED",
        "IBuilderConfig.hardware_compatibility_level = AMPERE_PLUS",
        "IBuilderConfig.set_flag(flag=VERSION_COMPATIBLE)",
        "IBuilderConfig.create_timing_cache(serialized_timing_cache=b'')",
        "IBuilderConfig.set_timing_cache(cache=ITimingCache, ignore_mismatch=False)",
        "IOptimizationProfile.set_shape(input='face', min=(1, 3, 16, 16), opt=(4, 3, 16, 16),"
        " max=(8, 3, 16, 16))",
        # The builder's own plan is trusted: it carries NVIDIA's lean runtime.
        "Runtime.engine_host_code_allowed = True",
    ):
        assert trt.transcript.count(row) == 1, row


def test_timings_of_another_machine_are_dropped_and_kept_ones_are_used(tiny):
    trt = TensorRTDouble("10.3.0")
    timings = built(trt, tiny(), "fp32", b"").timing_cache
    assert timings
    trt.transcript.clear()
    built(trt, tiny(), "fp32", timings)
    assert len(trt.called("IBuilderConfig.create_timing_cache")) == 1
    trt.gpu = lambda: ("H100", "9.0")
    built(trt, tiny(), "fp32", timings)
    assert trt.called("IBuilderConfig.create_timing_cache")[1:] == [
        f"IBuilderConfig.create_timing_cache(serialized_timing_cache={len(timings)} bytes)",
        "IBuilderConfig.create_timing_cache(serialized_timing_cache=b'')",
    ]


def test_host_code_stays_forbidden_without_version_compatibility(tiny):
    trt = TensorRTDouble("10.3.0")
    built(trt, tiny(), "fp32")
    assert trt.called("Runtime.engine_host_code_allowed") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_precisions_are_proven_where_the_log_leaves_out_types(tiny, version):
    """With a dynamic batch log and inspector have no types of tensors, until a context has shapes."""
    trt = TensorRTDouble(version)
    model = tiny(int8=True)
    trt.untold = {"weights", "tactics"}
    options: dict[str, Any] = {"batch": (1, 4, 8)}
    precisions = node_precisions(model, built(trt, model, "int8", **options).layers)
    assert trt.called("IExecutionContext.set_input_shape") == [
        "IExecutionContext.set_input_shape(name='face', shape=(4, 3, 16, 16))"
    ]
    assert {precisions[f"c{i}"] for i in (1, 2, 4, 5)} == {"int8"}
    assert precisions["c3"] == precisions["c6"] != "int8"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("told", ["weights", "tactics"])
def test_weights_or_kernels_names_prove_it_where_no_context_fits(tiny, version, told):
    trt = TensorRTDouble(version)
    model = tiny(int8=True)
    trt.contexts, trt.untold = 0, {"weights", "tactics"} - {told}
    precisions = node_precisions(model, built(trt, model, "int8").layers)
    assert precisions["c2"] == "int8"


def test_a_context_without_a_shape_is_not_given_to_the_inspector(tiny):
    trt = TensorRTDouble("10.3.0")
    trt.refuses = {"IExecutionContext.set_input_shape"}
    model = tiny(int8=True)
    precisions = node_precisions(model, built(trt, model, "int8").layers)
    assert precisions["c2"] == "int8"  # by its weights
    assert trt.called("EngineInspector.execution_context") == []


@pytest.mark.parametrize("log_form", ["json", "plain", ""])
def test_both_forms_of_the_log_are_read(tiny, log_form):
    trt = TensorRTDouble("10.3.0")
    trt.log_form = log_form
    model = tiny(int8=True)
    layers = built(trt, model, "int8", batch=(4, 4, 4)).layers
    assert node_precisions(model, layers)["c2"] == "int8"
    asked = trt.called("EngineInspector.get_engine_information")
    assert len(asked) == (0 if log_form else 1)


def test_the_logger_keeps_problems_and_every_layer():
    """TensorRT writes all layers in one message, or a message for each."""
    trt = TensorRTDouble("10.3.0").module
    log, severity = recorder(trt), trt.ILogger.Severity
    for level in severity:
        log.logger.log(level, f"said at {level.name}")
    assert sorted(log.problems) == ["said at ERROR", "said at INTERNAL_ERROR"]
    assert log.table == ""
    for name in ("c1", "c2"):
        log.logger.log(severity.VERBOSE, f"Name: {name}, LayerType: CaskConvolution, TacticName: t")
    assert [row.name for row in layers_in_log(log.table)] == ["c1", "c2"]
    whole = "Layers:\nName: c3, LayerType: kgen, TacticName: t"
    log.logger.log(severity.VERBOSE, whole)
    assert [row.name for row in layers_in_log(log.table)] == ["c3"]


def test_a_build_keeps_its_own_messages_and_all_have_one_logger():
    """TensorRT's global logger is that of the first object: one of a session would be freed."""
    trt = TensorRTDouble("10.3.0").module
    session, build = recorder(trt), recorder(trt)
    assert session.logger is build.logger
    error = trt.ILogger.Severity.ERROR
    with build:
        build.logger.log(error, "of the build")
        other = Thread(target=build.logger.log, args=(error, "of another thread"))
        other.start()
        other.join()
    build.logger.log(error, "of a run")
    assert build.problems == ["of the build", "of another thread", "of a run"]
    assert session.problems == ["of another thread", "of a run"]


def test_a_package_that_raises_anything_is_told(tmp_path, monkeypatch):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(
        "raise AttributeError('_ARRAY_API is missing')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert backends.library_version("tensorrt") == ""
    with pytest.raises(MachineError, match="tensorrt cannot be loaded: _ARRAY_API is missing"):
        builder.load_library("tensorrt")


@pytest.fixture
def library(monkeypatch) -> TensorRTDouble:
    trt = TensorRTDouble("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", trt.module)
    monkeypatch.setattr(backends, "find_gpus", lambda: GpuList((), "12.6", ""))
    return trt


def test_an_int8_engine_is_proven(library, bundle, caplog):
    assert build_engine(bundle, "int8", "tensorrt").layers["int8"] == 4
    assert "computes in" not in caplog.text


def test_not_int8_is_told_apart_from_not_reported(library, bundle):
    library.keeps = lambda node, kind, depthwise: "fp16"
    with pytest.raises(GateFailed, match="none of the engine's 6 Conv layers .*: 6 FP16; 3 of"):
        build_engine(bundle, "int8", "tensorrt")
    library.keeps = lambda node, kind, depthwise: None
    library.contexts, library.untold = 0, {"weights", "tactics"}
    with pytest.raises(GateFailed, match="not known: TensorRT reports .* of 0 of its 6 Conv") as e:
        build_engine(bundle, "int8", "tensorrt")
    assert "--batch" in e.value.hint


def test_layers_that_were_to_be_int8_are_named(library, bundle, caplog):
    """The Q/DQ plan beside what was built: refused layers, with the likely reason."""
    library.keeps = lambda node, kind, depthwise: "fp16" if node in ("c1", "c2") else None
    built = build_engine(bundle, "int8", "tensorrt")
    assert built.layers["int8"] == 2
    proofs = {proof.layer: proof for proof in built.proof}
    assert {name: (p.asked, p.built) for name, p in proofs.items()} == {
        "c1": ("int8", "fp16"),
        "c2": ("int8", "fp16"),
        "c3": ("fp16", "fp16"),
        "c4": ("int8", "int8"),
        "c5": ("int8", "int8"),
        "c6": ("fp16", "fp16"),
        "embedding": ("fp16", "fp16"),
    }
    assert {p.evidence for p in built.proof} == {"tensors and weights"}
    assert {name for name, p in proofs.items() if p.reason} == {"c1", "c2"}
    assert "c1 was to be INT8 and computes in FP16: it reads the image's 3 channels" in caplog.text
    assert "c2 was to be INT8 and computes in FP16: TensorRT has no INT8 kernel" in caplog.text
    assert "c4 was" not in caplog.text
    sidecar = json.loads(open_bundle(bundle.root).file(f"{built.engine}.json").read_text())
    assert sidecar["proof"][1] == asdict(proofs["c2"])


def test_the_command_lists_refused_layers(library, bundle, capsys):
    line = ["build-engine", str(bundle.root), "--int8", "--backend", "tensorrt"]
    library.keeps = lambda node, kind, depthwise: "fp16" if node == "c2" else None
    assert run([*line, "-q"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^c2 +Conv +int8 +fp16 +tensors and weights +TensorRT has no INT8", out, re.M)
    assert not re.search(r"^c4 ", out, re.M)
    assert run([*line, "-v"]) == 0
    assert re.search(r"^c4 +Conv +int8 +int8 +tensors and weights", capsys.readouterr().out, re.M)


def test_a_smaller_workspace_is_tried_before_memory_is_said_to_be_too_little(tiny, caplog):
    trt = TensorRTDouble("10.3.0")
    trt.workspace_mb, trt.largest_mb = 2048, 1536
    built(trt, tiny(), "fp32")
    limits = trt.called("IBuilderConfig.set_memory_pool_limit")
    assert [row.split("pool_size=")[1] for row in limits] == [f"{1024 << 20})"]
    assert "cut to 1024 MB" in caplog.text
    trt.largest_mb = 128
    with pytest.raises(MachineError, match="too little memory to build"):
        built(trt, tiny(), "fp32")
    with pytest.raises(MachineError, match="workspace of 4 MB does not suffice"):
        built(trt, tiny(), "fp32", workspace_mb=4)


@pytest.mark.parametrize(
    ("gpu", "limits"),
    [
        (replace(ORIN, memory_mb=7620), [1905]),
        (replace(ORIN, memory_mb=3700), [925, 256]),
        (L4, []),
    ],
    ids=["8 GB", "4 GB", "card"],
)
def test_a_gpu_that_shares_the_cpus_memory_is_not_given_all_of_it(tiny, monkeypatch, gpu, limits):
    trt = TensorRTDouble("10.3.0")
    if len(limits) > 1:  # what the build wants is not there, and less will do
        trt.workspace_mb, trt.largest_mb = 512, 500
    monkeypatch.setattr(builder, "selected_gpu", lambda: gpu)
    built(trt, tiny(), "fp32")
    rows = trt.called("IBuilderConfig.set_memory_pool_limit")
    assert [int(re.findall(r"\d+", row.split("pool_size=")[1])[0]) >> 20 for row in rows] == limits


def test_what_the_double_refuses_is_told(tiny):
    """The double's own refusals: without them a dropped flag would not be seen."""
    trt = TensorRTDouble("8.6.1")
    with pytest.raises(ModelError, match="int8 is not configured in the builder"):
        built(trt, tiny(int8=True), "fp16")
    trt.dla_cores = 2
    with pytest.raises(UsageError, match="a DLA runs FP16 or implicit INT8"):
        built(trt, tiny(int8=True), "int8", dla=0)


def test_the_build_runs_on_the_selected_gpu(tiny, monkeypatch):
    trt, order = TensorRTDouble("10.3.0"), []

    @contextmanager
    def on_selected_gpu() -> Iterator[None]:
        order.append("in")
        yield
        order.append(trt.transcript[-1])

    monkeypatch.setattr(builder, "on_selected_gpu", on_selected_gpu)
    built(trt, tiny(), "fp32")
    assert order[0] == "in"
    assert len(trt.called("Builder.build_serialized_network")) == 1
    assert len(order) == 2
