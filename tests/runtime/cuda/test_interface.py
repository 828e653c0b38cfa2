"""Without a GPU every way to CUDA says why, in words and not in a crash."""

import pytest

from fr_edge.errors import BundleError, MachineError
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.cuda.cuda_python import open_cuda_python, take
from fr_edge.runtime.cuda.interface import open_cuda
from fr_edge.runtime.machine.backends import lacking, pick_backend
from fr_edge.runtime.machine.device import find_gpus
from fr_edge.runtime.session import open_session

no_gpu = pytest.mark.skipif(bool(find_gpus().gpus), reason="says what a machine without GPU says")


@no_gpu
def test_the_probe_says_why_there_is_no_gpu():
    result = find_gpus()
    assert result.gpus == ()
    assert "NVIDIA driver" in result.lack


@no_gpu
def test_no_package_is_asked_without_a_gpu():
    with pytest.raises(MachineError, match="NVIDIA driver"):
        open_cuda()


@no_gpu
def test_cuda_python_itself_says_so():
    pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")
    with pytest.raises(MachineError, match=r"no NVIDIA driver|the CUDA driver returned"):
        open_cuda_python(0)


def test_statuses_of_cuda_python_have_names():
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")
    assert take((driver.CUresult.CUDA_SUCCESS, 7)) == 7
    assert take((driver.CUresult.CUDA_SUCCESS,)) is None
    with pytest.raises(MachineError, match=r"CUDA_ERROR_NO_DEVICE \(100\)"):
        take((driver.CUresult.CUDA_ERROR_NO_DEVICE, None))
    with pytest.raises(MachineError, match="CUDA_ERROR_OUT_OF_MEMORY") as error:
        take((driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0))
    assert "close other programs" in error.value.hint


@no_gpu
def test_backends_say_what_they_lack_to_run_and_to_build():
    assert lacking("onnxruntime") == ""
    assert "NVIDIA driver" in lacking("tensorrt")
    assert "NVIDIA driver" in lacking("tensorrt-rtx")
    assert "NVIDIA driver" not in lacking("tensorrt-rtx", build=True)
    assert pick_backend("auto") == pick_backend("auto", build=True) == "onnxruntime"
    with pytest.raises(MachineError, match="tensorrt backend cannot be used"):
        pick_backend("tensorrt", build=True)


@no_gpu
def test_a_compiled_plan_is_not_run_without_a_gpu(bundle):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    build_engine(bundle, "int8", "tensorrt-rtx")
    assert open_session(bundle.root).backend == "onnxruntime"
    with pytest.raises(MachineError, match="tensorrt-rtx backend cannot be used"):
        open_session(bundle.root, "int8", "tensorrt-rtx")


@pytest.mark.gpu
def test_a_backend_without_its_engine_says_how_to_build_it(bundle, gpu_backend):
    with pytest.raises(BundleError, match=f"no int8 engine for {gpu_backend}") as error:
        open_session(bundle, "int8", gpu_backend)
    assert f"build-engine {bundle.root} --int8 --backend {gpu_backend}" in error.value.hint
