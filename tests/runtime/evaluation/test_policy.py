"""Policies: read whole, or refused with the line to mend."""

from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.errors import DataError, UsageError
from fr_edge.faces.sources import Faces
from fr_edge.runtime.evaluation.limits import BenchmarkLimits, EvaluateLimits, Limits, read_policy
from fr_edge.runtime.evaluation.verify import verify


@pytest.mark.parametrize(
    "limits",
    [
        {"min_cosine": 1.1},
        {"p1_cosine": float("nan")},
        {"max_tar_drop": -0.1},
        {"max_stratum_drop": 2},
        {"far": 0},
        {"min_tar": 1.5},
        {"max_kept_far": 0},
    ],
)
def test_impossible_limits(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Limits(**limits)


def test_a_precisions_own_table_goes_before_the_general(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("far = 1e-3\nmin_cosine = 0.9\n[fp16]\nmin_cosine = 0.99\n")
    assert read_policy(file, "fp16", Limits) == Limits(min_cosine=0.99, far=1e-3)
    assert read_policy(file, "int8", Limits) == Limits(min_cosine=0.9, far=1e-3)


def test_a_table_per_command_and_precision(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        "far = 1e-3\n[verify]\nmin_tar = 0.8\n[verify.int8]\nmin_tar = 0.7\n"
        "[evaluate]\nmax_eer = 0.02\n[evaluate.fp16]\nmax_eer = 0.01\n"
        "[benchmark]\npower_mode = 'MAXN'\nmax_p99_ms = 9\n[benchmark.int8]\nmax_p99_ms = 4\n"
    )
    assert read_policy(file, "int8", Limits) == Limits(min_tar=0.7, far=1e-3)
    assert read_policy(file, "fp16", Limits) == Limits(min_tar=0.8, far=1e-3)
    assert read_policy(file, "int8", EvaluateLimits) == EvaluateLimits(max_eer=0.02)
    assert read_policy(file, "fp16", EvaluateLimits) == EvaluateLimits(max_eer=0.01)
    assert read_policy(file, "int8", BenchmarkLimits) == BenchmarkLimits(max_p99_ms=4)
    assert read_policy(file, "fp32", BenchmarkLimits) == BenchmarkLimits(max_p99_ms=9)


def test_a_precisions_table_goes_before_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("[int8]\nmin_cosine = 0.96\n[verify]\nmin_cosine = 0.9\nfar = 1e-3\n")
    assert read_policy(file, "int8", Limits) == Limits(min_cosine=0.96, far=1e-3)
    assert read_policy(file, "fp16", Limits) == Limits(min_cosine=0.9, far=1e-3)


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    """A mistake in another command's table is found too."""
    (tmp_path / "p.toml").write_text("[benchmark.int8]\nmax_p99 = 4\n")
    with pytest.raises(DataError, match=r"'max_p99' in \[benchmark.int8\]") as error:
        read_policy(tmp_path / "p.toml", "fp32", Limits)
    assert error.value.hint == "did you mean 'max_p99_ms'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_cosinus = 0.9", "min_cosinus"),
        ("min_cosine = 'high'", "a number"),
        ("min_cosine = true", "a number"),
        ("min_cosine = 7", "-1 to 1"),
        ("[int8]\nfast = 1", "fast"),
        ("int8 = 3", "expected"),
        ("evaluate = 3", "expected"),
        ("[evaluate]\nmin_cosine = 0.9", "min_cosine"),
        ("[benchmark]\nmin_throughput = 0", "above 0"),
        ("min_cosine 0.9", "TOML"),
    ],
)
def test_policies_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_policy(tmp_path / "p.toml", "int8", Limits)


def test_the_bundle_keeps_its_policy_and_flags_go_before_it(
    mini: Path, distinct: Faces, tmp_path: Path
) -> None:
    file = tmp_path / "strict.toml"
    file.write_text("min_cosine = 1.0\n")
    assert not verify(mini, "int8", artifact="graph", faces=distinct, policy=file).passed
    assert (mini / "policy.toml").read_text() == file.read_text()
    found = verify(mini, "int8", artifact="graph", faces=distinct)
    assert [g.limit for g in found.gates if g.name == "min cosine"] == [1.0]
    assert verify(
        mini,
        "int8",
        artifact="graph",
        faces=distinct,
        min_cosine=0.1,
        p1_cosine=0.1,
        max_tar_drop=0.1,
    ).passed
    assert "policy.toml" in open_bundle(mini)
