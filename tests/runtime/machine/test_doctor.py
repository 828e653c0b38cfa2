"""Each problem is found and has its remedy; no GPU is not a problem."""

import importlib
import json
import sys
from dataclasses import replace

import pytest

from fr_edge.documents import encode_json
from fr_edge.runtime.machine.backends import BACKENDS
from fr_edge.runtime.machine.doctor import (
    _MODULES,
    SystemInfo,
    _finds,
    diagnose_system,
    examine_system,
)
from fr_edge.runtime.machine.tegrastats import fastest_mode, power_modes
from fr_edge.runtime.selftest import self_test

DESKTOP = SystemInfo(
    card=True,
    gpu=True,
    driver="13.0",
    modules=frozenset({"tensorrt", "cuda"}),
    versions={"tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0"},
    memory_gb=32.0,
)
JETSON = SystemInfo(
    jetson=True,
    l4t="# R36 (release), REVISION: 4.3",
    power_mode="MAXN_SUPER",
    gpu=True,
    driver="12.6",
    in_environment=True,
    modules=frozenset({"tensorrt", "cuda"}),
    memory_gb=8.0,
)


@pytest.mark.parametrize("info", [SystemInfo(memory_gb=4.0), DESKTOP, JETSON])
def test_the_healthy_have_no_problems(info):
    assert list(diagnose_system(info)) == []


@pytest.mark.parametrize(
    ("info", "what", "remedy"),
    [
        (
            replace(DESKTOP, gpu=False, driver="", driver_lack="no NVIDIA driver"),
            "no GPU that can be used",
            "install NVIDIA's driver",
        ),
        (
            replace(DESKTOP, gpu=False, driver_lack="CUDA_ERROR_NO_DEVICE (100)"),
            "CUDA_ERROR_NO_DEVICE",
            "--gpus all",
        ),
        (
            replace(JETSON, gpu=False, driver_lack="error 801"),
            "no GPU that can be used",
            "--runtime nvidia",
        ),
        (
            replace(
                JETSON,
                modules=frozenset({"cuda"}),
                system_tensorrt="/usr/lib/python3.10/dist-packages/tensorrt",
            ),
            "outside this virtual environment",
            "--system-site-packages",
        ),
        (
            replace(JETSON, modules=frozenset({"cuda"}), in_environment=False),
            "tensorrt is not installed",
            "apt install python3-libnvinfer",
        ),
        (
            replace(DESKTOP, modules=frozenset({"cuda"})),
            "tensorrt is not installed",
            "pip install tensorrt",
        ),
        (
            replace(DESKTOP, driver="12.4"),
            "needs a driver for CUDA 13, this one serves 12.4",
            "install tensorrt-cu12",
        ),
        (
            replace(JETSON, versions={"tensorrt": "11.4.0"}),
            "does not support JetPack 6",
            "10.3",
        ),
        (
            replace(DESKTOP, modules=frozenset({"tensorrt"}), cuda_root="/usr/local/cuda"),
            "neither cuda-python nor pycuda",
            "CUDA_ROOT=/usr/local/cuda CPATH=/usr/local/cuda/include",
        ),
        (
            replace(DESKTOP, modules=frozenset({"tensorrt"})),
            "neither cuda-python nor pycuda",
            "pip install 'cuda-python==13.0.*'",
        ),
        (
            replace(DESKTOP, versions={"torch": "2.13.0+cpu"}),
            "built for the CPU",
            "pytorch.org",
        ),
        (replace(JETSON, power_mode="15W"), "power mode 15W", "grep POWER_MODEL"),
        (
            replace(JETSON, power_mode="15W", power_modes={0: "15W", 1: "25W", 2: "MAXN_SUPER"}),
            "power mode 15W",
            "`sudo nvpmodel -m 2` sets MAXN_SUPER",
        ),
        (
            replace(JETSON, power_mode="MODE_30W", power_modes={0: "MAXN", 2: "MODE_30W"}),
            "power mode MODE_30W",
            "`sudo nvpmodel -m 0` sets MAXN,",
        ),
        (
            replace(JETSON, modules=frozenset({"tensorrt", "pycuda"})),
            "has no CUDA graphs",
            "pip install 'cuda-python==12.6.*'",
        ),
        (SystemInfo(memory_gb=1.0), "1 GB of memory", "copy the bundle"),
    ],
)  # fmt: skip
def test_one_problem_one_remedy(info, what, remedy):
    problems = list(diagnose_system(info))
    assert len(problems) == 1
    assert what in problems[0]
    assert remedy in problems[0]


def test_this_machine_is_described_as_json():
    data = json.loads(encode_json(examine_system()))
    assert set(data["backends"]) == set(BACKENDS)
    assert data["backends"]["onnxruntime"]["ready"] is True
    assert {"gpu", "jetson", "problems", "cuda_driver", "device"} <= set(data)


def test_every_backend_is_tried():
    tried = {one.backend: one for one in self_test()}
    assert set(tried) == set(BACKENDS)
    assert tried["onnxruntime"].outcome == "ran"
    assert all(one.outcome != "failed" for one in tried.values())
    assert all(one.detail for one in tried.values())


def test_the_self_test_sees_a_wrong_kernel(monkeypatch):
    """Broken on purpose: the network computes something else than the arithmetic by hand."""
    import fr_edge.runtime.selftest as module

    build = module._network

    def wrong(weights, steps):
        return build({**weights, "slope": weights["slope"] * 2}, steps)

    monkeypatch.setattr(module, "_network", wrong)
    tried = {one.backend: one.outcome for one in self_test()}
    assert tried["onnxruntime"] == "failed"


SUPER = """# FRIENDLY NAMES
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


def test_the_fastest_mode_goes_by_the_boards_own_table(tmp_path):
    assert power_modes(tmp_path) == {}
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nvpmodel.conf").write_text(SUPER)
    assert power_modes(tmp_path) == {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
    assert fastest_mode(power_modes(tmp_path)) == (2, "MAXN_SUPER")
    assert fastest_mode({0: "MAXN", 1: "MODE_15W", 3: "MODE_50W"}) == (0, "MAXN")
    assert fastest_mode({0: "7W", 1: "15W"}) == (1, "15W")
    assert fastest_mode({}) is None


def test_a_folder_named_cuda_is_not_cuda_python(tmp_path, monkeypatch):
    """torch brings cuda-pathfinder, which lies in the same namespace."""
    (tmp_path / "cuda" / "pathfinder").mkdir(parents=True)
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not any(map(_finds, _MODULES["cuda"]))
    (tmp_path / "cuda" / "bindings").mkdir()
    (tmp_path / "cuda" / "bindings" / "driver.py").touch()
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    assert any(map(_finds, _MODULES["cuda"]))
