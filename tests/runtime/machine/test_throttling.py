"""Replayed trees of boards: events that were counted, alerts that act, the fan, held clocks."""

from pathlib import Path

import pytest

from fr_edge.runtime.machine.sensors import (
    ClockSetting,
    clock_settings,
    read_alerts,
    read_fan,
    throttle_counts,
)


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """Names and numbers as on an Orin with JetPack 6 (the Developer Guide's, and boards' own)."""
    thermal, hwmon = "sys/class/thermal/cooling_device", "sys/class/hwmon/hwmon"
    cpu, gpu = "sys/devices/system/cpu/cpu0/cpufreq", "sys/class/devfreq/17000000.gpu"
    return _write(
        tmp_path,
        {
            f"{hwmon}3/name": "soctherm_oc",
            f"{hwmon}3/oc1_event_cnt": "0",
            f"{hwmon}3/oc2_event_cnt": "15",
            f"{hwmon}3/oc3_event_cnt": "37",
            f"{hwmon}3/oc3_throt_en": "1",
            f"{hwmon}1/name": "pwmfan",
            f"{hwmon}1/pwm1": "102",
            f"{hwmon}0/name": "pwm_tach",
            f"{hwmon}0/rpm": "2140",
            f"{thermal}0/type": "cpufreq-cpu0",
            f"{thermal}0/cur_state": "3",
            f"{thermal}7/type": "pwm-fan",
            f"{thermal}7/cur_state": "1",
            f"{thermal}8/type": "cpu-throttle-alert",
            f"{thermal}8/cur_state": "0",
            f"{thermal}9/type": "gpu-throttle-alert",
            f"{thermal}9/cur_state": "1",
            f"{cpu}/scaling_governor": "schedutil",
            f"{cpu}/scaling_min_freq": "729600",
            f"{cpu}/scaling_max_freq": "2201600",
            f"{gpu}/governor": "nvhost_podgov",
            f"{gpu}/min_freq": "1300500000",
            f"{gpu}/max_freq": "1300500000",
        },
    )


def test_events_of_the_power_supply(orin: Path) -> None:
    assert throttle_counts(orin) == {
        "under-voltage": 0,
        "average over-current": 15,
        "over-current peaks": 37,
    }


def test_only_an_alert_that_acts_is_one(orin: Path) -> None:
    assert read_alerts(orin) == ("gpu",)


def test_the_fan(orin: Path) -> None:
    assert read_fan(orin) == {"percent": 40.0, "rpm": 2140.0}


def test_clocks_that_are_held(orin: Path) -> None:
    settings = clock_settings(orin)
    assert settings["gpu"] == ClockSetting("nvhost_podgov", 1300.5, 1300.5, held=True)
    assert settings["cpu"] == ClockSetting("schedutil", 729.6, 2201.6, held=False)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert throttle_counts(tmp_path) == {}
    assert read_alerts(tmp_path) == ()
    assert read_fan(tmp_path) == {}
    assert clock_settings(tmp_path) == {}
