"""What the policy demands of the machine, and who else is on it."""

from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.errors import DataError
from fr_edge.runtime.benchmark.conditions import (
    other_gpu_load,
    power_mode_problems,
    required_power_mode,
)
from fr_edge.runtime.evaluation.limits import Limits, read_policy
from fr_edge.runtime.machine.monitor import SensorTrace
from fr_edge.runtime.machine.sensors import Reading


def _with_policy(mini: Path, text: str) -> Path:
    with transaction(mini, "verify", {}) as draft:
        draft.path("policy.toml", "policy").write_text(text)
    return mini / "policy.toml"


def test_one_policy_serves_verify_and_benchmark(mini: Path) -> None:
    assert required_power_mode(open_bundle(mini)) is None
    path = _with_policy(mini, 'far = 1e-3\n[benchmark]\npower_mode = "15W"\n')
    assert required_power_mode(open_bundle(mini)) == "15W"
    assert read_policy(path, "int8", Limits) == Limits(far=1e-3)


@pytest.mark.parametrize(
    "text",
    [
        "[benchmark]\npower_mode = 15",
        '[benchmark]\nmode = "15W"',
        "benchmark = 3",
        "[benchmark",
        "\xff",
    ],
)
def test_a_policy_that_cannot_be_read(mini: Path, text: str) -> None:
    path = _with_policy(mini, "")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"policy\.toml"):
        required_power_mode(open_bundle(mini, check="manifest"))


@pytest.mark.parametrize(
    ("modes", "demanded", "said"),
    [
        (("15W", "15W"), None, []),
        (("MAXN", "MAXN"), "maxn", []),
        (("15W", "15W"), "MAXN", ["wrong power mode: 15W, MAXN is required"]),
        (("MAXN", "15W"), "MAXN", ["wrong power mode: 15W, MAXN is required"]),
        ((), "MAXN", ["power mode MAXN is required, and this machine reports none (nvpmodel)"]),
    ],
)
def test_the_power_mode(modes: tuple[str, ...], demanded: str | None, said: list[str]) -> None:
    assert list(power_mode_problems(SensorTrace(power_modes=modes), demanded)) == said


def test_others_on_the_gpu() -> None:
    assert other_gpu_load(Reading(), ()) == ()
    assert other_gpu_load(Reading(load_percent={"gpu": 4.0}), ()) == ()
    assert other_gpu_load(Reading(load_percent={"gpu": 63.0}), ("python3 (4711)",)) == (
        "other load on the GPU: python3 (4711)",
        "other load on the GPU: 63 % busy before the run",
    )
