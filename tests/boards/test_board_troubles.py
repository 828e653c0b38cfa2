"""What is wrong with a board is told by the right verdict and words, on pretend boards.

An engine that computes no INT8, graphs that compute nothing, a driver that is too old, too little
memory, two GPUs. A plan of another version or GPU: test_pretend_board.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import Shell

Open = Callable[..., Shell]


def begin(shell: Shell, mini: Path) -> Shell:
    shell.ready()
    shutil.copytree(mini, shell.work / "mine.bundle")
    return shell


def test_an_engine_that_computes_no_int8(open_board: Open, calibrated_mini: Path) -> None:
    shell = begin(open_board("orin-nano-super@jetpack6.2", keeps="fp16"), calibrated_mini)
    done = shell.run("fr-edge build-engine mine.bundle --int8 --backend tensorrt")
    assert done.code == 1
    assert "none of the engine's 5 Conv layers computes in INT8: 5 FP16" in done.err
    assert not list((shell.work / "mine.bundle" / "engines").glob("*.plan"))
    done = shell.run("fr-edge doctor --self-test")
    assert done.code == 1
    assert "none of the engine's 2 Conv layers computes in INT8" in done.out


def test_graphs_that_compute_nothing(open_board: Open, calibrated_mini: Path) -> None:
    """The engine is right without them: runs are queued call by call, and that is said."""
    shell = begin(open_board("l4@10.13", REPLAY="nothing"), calibrated_mini)
    done = shell.run(
        "fr-edge build-engine mine.bundle --int8\n"
        "fr-edge verify mine.bundle --engine int8\n"
        "fr-edge benchmark mine.bundle --engine int8 --json"
    )
    assert done.code == 0, done.err
    assert "PASSED" in done.out
    assert "does not compute what the same run computes without it" in done.err
    timed = json.loads(done.out[done.out.index("\n{") :])
    assert timed["golden_min_cosine"] > 0.99


def test_a_driver_that_is_too_old(open_board: Open, calibrated_mini: Path) -> None:
    """TensorRT for CUDA 12 on a driver of 11.8: it gives no builder at all."""
    shell = begin(open_board("l4@10.13", CUDA="11080"), calibrated_mini)
    done = shell.run("fr-edge build-engine mine.bundle --int8 --backend tensorrt")
    assert done.code == 3
    assert "needs a newer driver than this one, which serves CUDA 11.8" in done.err
    assert "install a tensorrt for CUDA 11" in done.err
    done = shell.run("fr-edge doctor --self-test")
    assert done.code == 1
    assert "needs a newer driver" in done.out


def test_a_backend_that_cannot_run_here_beside_one_that_does(open_board: Open) -> None:
    """NVIDIA's own TensorRT-RTX for CUDA 13 on a driver of 12.9: it fails where it is the only one."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    shell = open_board("l4@10.13")
    shell.ready()
    for installed, code, outcome in (("tensorrt\n", 0, "compiled"), ("", 1, "failed")):
        (shell.home / "installed").write_text(installed)
        done = shell.run("fr-edge doctor --self-test --json")
        assert done.code == code, done.err
        tried = {test["backend"]: test for test in json.loads(done.out)["self_test"]}
        assert tried["tensorrt-rtx"]["outcome"] == outcome
        assert "needs a newer driver than this one" in tried["tensorrt-rtx"]["detail"]
        assert tried["tensorrt"]["outcome"] == ("ran" if installed else "skipped")


def test_a_driver_that_serves_no_gpu(open_board: Open, calibrated_mini: Path) -> None:
    shell = begin(open_board("l4@10.13", INIT="803"), calibrated_mini)
    done = shell.run("fr-edge build-engine mine.bundle --int8 --backend tensorrt")
    assert done.code == 3
    assert "finds no usable GPU: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)" in done.err
    done = shell.run("fr-edge doctor")
    assert "reboot after a driver update" in done.out


def test_too_little_memory(open_board: Open, calibrated_mini: Path) -> None:
    shell = begin(open_board("orin-nano-super@jetpack6.2", FREE_MB="1"), calibrated_mini)
    build = "fr-edge build-engine mine.bundle --int8 --backend tensorrt"
    done = shell.run(f"{build} --batch 1,8,32")
    assert done.code == 0, done.err
    verify = "fr-edge verify mine.bundle --engine int8"
    done = shell.run(verify)
    assert done.code == 3
    assert "the CUDA driver returned CUDA_ERROR_OUT_OF_MEMORY (2)" in done.err
    assert "close other programs" in done.err
    done = shell.run(f"{build} --batch 1,1,1 && {verify}")  # 150 kB of faces: this fits
    assert done.code == 0, done.err


def test_the_second_of_two_gpus(open_board: Open, calibrated_mini: Path) -> None:
    gpus = "NVIDIA L4|8.9|23034|0;NVIDIA H100 PCIe|9.0|81559|0"
    shell = begin(open_board("l4@10.13", gpus=gpus), calibrated_mini)
    line = "mine.bundle --engine int8 --backend tensorrt --device"
    done = shell.run(
        "fr-edge build-engine mine.bundle --int8 --backend tensorrt --device 1\n"
        f"fr-edge verify {line} 1\nfr-edge benchmark {line} 1"
    )
    assert done.code == 0, f"{done.out}\n{done.err}\n{shell.log()}"
    (engine,) = (shell.work / "mine.bundle" / "engines").glob("*.plan")
    assert "nvidia-h100-pcie" in engine.name
    facts = json.loads(engine.with_name(f"{engine.name}.json").read_text())
    assert (facts["gpu"], facts["compute_capability"]) == ("NVIDIA H100 PCIe", "9.0")
    done = shell.run(f"fr-edge verify {line} 0")
    assert done.code == 3
    assert "was built for gpu 'NVIDIA H100 PCIe', this machine has 'NVIDIA L4'" in done.err
    assert "is for this machine" in shell.run("fr-edge check mine.bundle --device 1").out
    assert "was built for gpu" in shell.run("fr-edge check mine.bundle").out
    budget = "calibrate mine.bundle --faces synthetic:2x2 --max-tar-drop 0.1 --device"
    for command in (f"verify {line}", budget):
        done = shell.run(f"fr-edge {command} 2")
        assert done.code == 2
        assert "no GPU 2 here" in done.err
