"""Answers follow from the table, and what is not in it is unknown."""

import json
import re
from pathlib import Path

import pytest

from fr_edge.documents import to_builtins
from fr_edge.errors import UsageError
from fr_edge.runtime.compatibility import (
    AS_OF,
    JETPACKS,
    TARGETS,
    _dla,
    compatibility_of,
)
from fr_edge.runtime.machine.backends import RTX_COMPUTE
from fr_edge.runtime.trt.config import has_fp8

PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")


def test_orin_on_jetpack_6():
    result = compatibility_of("orin-nano@jetpack6.2")
    assert (result.verdict, result.tensorrt, result.compute, result.opset) == (
        "works",
        "10.3",
        "8.7",
        19,
    )
    assert result.typing.startswith("strong")
    assert result.flavours["int8"].startswith("model.int8.onnx")
    assert "none" in result.dla
    assert any("--system-site-packages" in step for step in result.steps)
    json.dumps(to_builtins(result))


def test_a_patch_release_is_its_release():
    assert compatibility_of("orin-nx@jetpack6.2.1").tensorrt == "10.3"


def test_tensorrt_8_6_goes_by_flags():
    result = compatibility_of("agx-orin@jetpack6.0")
    assert (result.verdict, result.tensorrt, result.opset) == ("works", "8.6", 17)
    assert result.typing.startswith("flags")
    assert result.dla.startswith("FP16 only")


def test_only_two_boards_have_tensorrt_11_on_jetpack():
    assert compatibility_of("agx-orin@jetpack7.2.2").tensorrt == "11.4"
    assert compatibility_of("agx-orin@jetpack7.2.2").dla.startswith("yes")
    assert compatibility_of("thor@jetpack7.2.2").tensorrt == "11.4"
    assert compatibility_of("orin-nano@jetpack7.2.2").tensorrt == "10.16"
    assert compatibility_of("agx-orin@jetpack7.2").dla == "no: TensorRT 10.16 has no DLA support"


def test_one_number_is_no_version():
    for text in ("l4@tensorrt10", "l4@tensorrt8", "rtx-40@tensorrt-rtx1", "rtx-40@tensorrt-rtx"):
        assert compatibility_of(text).verdict == "unknown"
    assert all("." in pack.tensorrt for pack in JETPACKS.values())


def test_tensorrt_rtx_goes_by_the_compute_capability():
    result = compatibility_of("rtx-50@tensorrt-rtx1.7")
    assert (result.verdict, result.tensorrt, result.opset) == ("works", "RTX 1.7", 19)
    assert "--compute 12.0" in result.steps[1]
    assert "9.0" in compatibility_of("h100@tensorrt-rtx1.7").problems[0]
    assert compatibility_of("rtx-50@tensorrt-rtx1.2").verdict == "fails"
    rtx = pytest.importorskip("tensorrt_rtx", reason="compares with the real library")
    if not rtx.__version__.startswith("1.7."):
        pytest.skip(f"the table is of 1.7, installed is {rtx.__version__}")
    known = [n[2:] for n in dir(rtx.ComputeCapability) if n.startswith("SM")]
    assert sorted(known) == sorted(text.replace(".", "") for text in RTX_COMPUTE)


def test_blackwell_needs_tensorrt_10_8():
    for name in ("b200", "rtx-50"):
        assert "needs 10.8" in compatibility_of(f"{name}@tensorrt10.7").problems[0]
        assert compatibility_of(f"{name}@tensorrt10.8").verdict == "works"


def test_power_modes_and_cuda_python_go_by_the_board():
    steps = " ".join(compatibility_of("orin-nano@jetpack6.2").steps)
    assert "nvpmodel -m 0" not in steps
    assert "'cuda-python==12.6.*'" in steps
    assert "'cuda-python==13.0.*'" in " ".join(compatibility_of("thor@jetpack7.0").steps)
    # Which 13 it is is not known: the first is never newer than the driver.
    steps = " ".join(compatibility_of("agx-orin@jetpack7.2.2").steps)
    assert "'cuda-python==13.0.*'" in steps


def test_dla_is_gone_between_10_8_and_11_3():
    # No JetPack in the table ships one of those with a board that has a DLA, so ask the rule
    target = TARGETS["agx-orin"]
    answers = {v: _dla(target, v).split()[0] for v in ((10, 7), (10, 13), (11, 0), (11, 4))}
    assert answers == {(10, 7): "FP16", (10, 13): "no:", (11, 0): "no:", (11, 4): "yes,"}


def test_old_boards_fail_with_a_way_out():
    result = compatibility_of("xavier-nx@jetpack5.1.2")
    assert result.verdict == "fails"
    assert any("TensorRT 8.5" in text for text in result.problems)
    assert any("Python 3.8" in text for text in result.problems)
    assert any("trtexec" in text for text in result.steps)


def test_a_jetpack_that_does_not_serve_the_board():
    result = compatibility_of("xavier-nx@jetpack6.2")
    assert result.verdict == "fails"
    assert "does not serve" in result.problems[0]


@pytest.mark.parametrize(
    "text",
    ["raspberry-pi", "orin-nano@jetpack8.0", "orin-nano@jetpack9", "orin-nano", "t4", "b300"],
)
def test_what_is_not_in_the_table_is_unknown(text):
    result = compatibility_of(text)
    assert result.verdict == "unknown"
    assert result.tensorrt == ""
    assert result.steps


@pytest.mark.parametrize(
    ("text", "typing"), [("t4@tensorrt10.13", "strong"), ("l4@tensorrt8.6", "flags")]
)
def test_gpus_go_by_the_tensorrt_that_is_named(text, typing):
    result = compatibility_of(text)
    assert result.verdict == "works"
    assert result.typing.startswith(typing)


@pytest.mark.parametrize(
    "text", ["t4@jetpack6.2", "orin-nano@tensorrt10.3", "t4@tensorrtX", "orin-nano@jetpack6.x"]
)
def test_texts_of_another_form(text):
    with pytest.raises(UsageError):
        compatibility_of(text)


def test_the_page_and_the_table_agree():
    assert AS_OF in PAGE
    for target in TARGETS.values():
        line = next(line for line in PAGE.splitlines() if f"`{target.name}`" in line)
        assert target.compute in line
        if target.jetpack:
            assert line.rstrip(" |").endswith(", ".join(target.jetpack))
            assert f"| {target.dla_cores} |" in line
    for name, pack in JETPACKS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert re.match(rf"{re.escape(pack.tensorrt)}\b", cells[1])
        assert cells[2:4] == [pack.cuda, pack.python]
        assert "https://" in cells[4]


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("thor@jetpack7.0", "yes"),
        ("h100@tensorrt10.3", "yes"),
        ("b200@tensorrt10.8", "yes"),
        ("l4@tensorrt11.4", "yes"),
        ("rtx-50@tensorrt-rtx1.7", "yes by its compiler"),
        ("l4@tensorrt10.2", "no: TensorRT 10.2"),
        ("orin-nano@jetpack7.2", "no: compute capability 8.7"),
        ("agx-orin@jetpack7.2.2", "no: compute capability 8.7"),
        ("a100@tensorrt11.4", "no: compute capability 8.0"),
        ("rtx-30@tensorrt-rtx1.7", "no: compute capability 8.6"),
    ],
)
def test_who_takes_fp8(target, answer):
    result = compatibility_of(target)
    assert result.verdict == "works"
    assert result.fp8.startswith(answer)
    assert ("fp8" in result.flavours) == answer.startswith("yes")


def test_fp8_begins_with_ada():
    by_compute = {t.compute: has_fp8(t.compute) for t in TARGETS.values()}
    takes = {compute for compute, fp8 in by_compute.items() if fp8}
    assert takes == {"8.9", "9.0", "10.0", "11.0", "12.0"}
