"""The double's names and arguments are the bindings'; what they do not have is not there."""

from typing import Any

import pytest
from tensorrt_api import NoSuchCall, fits, read_api, read_table
from tensorrt_double import TensorRTDouble

VERSIONS = read_table()[0]


class Log:
    """Makes a logger of the double's class, as `runtime.trt.errors.recorder` does."""

    def __new__(cls, trt: Any) -> Any:
        class Made(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.messages: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                self.messages.append(message)

        return Made()


def test_the_table_has_the_five_versions() -> None:
    assert VERSIONS == ("8.6.1", "10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
    sizes = [len(read_api(column)) for column in range(len(VERSIONS))]
    assert all(150 < size < 250 for size in sizes), sizes


@pytest.mark.parametrize("version", VERSIONS)
def test_names_come_and_go_with_versions(version: str) -> None:
    """The facts that the code decides by (boards.md's and TensorRT's release notes)."""
    trt = TensorRTDouble(version).module
    eight, eleven = version.startswith("8"), version.startswith("11")
    assert hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") is not eleven
    assert hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") is not eight
    assert hasattr(trt.BuilderFlag, "FP16") is not eleven
    assert hasattr(trt, "IInt8EntropyCalibrator2") is not eleven
    assert hasattr(trt.Builder, "build_engine") is eight
    assert hasattr(trt.IBuilderConfig, "max_workspace_size") is eight
    assert hasattr(trt.ICudaEngine, "num_bindings") is eight
    assert not hasattr(trt.IBuilderConfig, "set_compute_capability")  # TensorRT-RTX's
    assert trt.float32 is trt.DataType.FLOAT
    assert int(trt.BuilderFlag.TF32) == (7 if eight else 6)
    assert int(trt.BuilderFlag.VERSION_COMPATIBLE) == (15 if eight else 12 if eleven else 13)


def test_other_names_and_arguments_are_refused() -> None:
    trt = TensorRTDouble("10.3.0").module
    builder = trt.Builder(Log(trt))
    config = builder.create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1  # TensorRT 8's
    with pytest.raises(AttributeError):
        builder.build_engine  # noqa: B018
    with pytest.raises(AttributeError):
        config.builder_optimisation_level = 3
    for call in (
        lambda: config.set_flag(0),  # an enum's member, not its number
        lambda: config.set_flag(trt.MemoryPoolType.WORKSPACE),
        lambda: config.set_flag(),
        lambda: config.set_flag(trt.BuilderFlag.FP16, True),
        lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5),
        lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1),
        lambda: builder.create_network(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
    ):
        with pytest.raises(NoSuchCall):
            call()
    for name, value in (("DLA_core", "0"), ("profiling_verbosity", 2)):
        with pytest.raises(NoSuchCall):
            setattr(config, name, value)
    with pytest.raises(TypeError, match="No constructor"):
        trt.IBuilderConfig()
    with pytest.raises(AttributeError):  # read only, as in the bindings
        builder.num_DLA_cores = 2
    with pytest.raises(NotImplementedError, match=r"the double has no Builder\.reset"):
        builder.reset()


def test_a_base_that_was_not_initialised_is_told() -> None:
    trt = TensorRTDouble("10.3.0").module

    class Forgetful(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"ILogger\.__init__\(\) must be called"):
        Forgetful()


def test_values_fit_as_pybind11_takes_them() -> None:
    trt = TensorRTDouble("11.4.0.106").module
    assert fits("Dims", (1, 3), trt)
    assert fits("Dims", trt.Dims((1, 3)), trt)
    assert not fits("Dims", ("1",), trt)
    assert fits("buffer", b"", trt)
    assert not fits("buffer", "text", trt)
    assert not fits("bool", 1, trt)
    assert tuple(trt.Dims([4, 5])[1:]) == (5,)
    assert len(trt.Dims((1, 2, 3))) == 3


def test_flags_that_do_not_exist_make_no_network() -> None:
    double = TensorRTDouble("11.4.0.106")
    log = Log(double.module)
    assert double.module.Builder(log).create_network(1 << 5) is None
    assert "unknown flags 32" in log.messages[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_of_another_version_or_gpu_is_refused_in_tensorrts_words(
    tiny: Any, version: str
) -> None:
    """What a preflight spares the user; and the double would see a preflight that is missing."""
    from fr_edge.runtime.trt.builder import compile_plan
    from fr_edge.runtime.trt.config import EngineOptions

    double = TensorRTDouble(version)
    data = tiny().SerializeToString()
    plan = compile_plan(double.module, data, (3, 16, 16), "fp32", EngineOptions()).plan

    def refusal(plan: bytes) -> str:
        log = Log(double.module)
        assert double.module.Runtime(log).deserialize_cuda_engine(plan) is None
        return str(log.messages[-1])

    double.gpu = lambda: ("H100", "9.0")
    assert "expecting compute 9.0 got compute 8.7, please rebuild" in refusal(plan)
    double.gpu, double.header = lambda: ("Orin", "8.7"), (7, 1, 0, 0)
    assert "expecting library version 7.1.0.0 got" in refusal(plan)
    assert "Magic tag does not match" in refusal(b"nothing" * 10)
