"""Numbers that others publish or that certificates depend on, against values written out here.

None of them is read from the package: a constant that is changed, by mistake or on purpose, fails
here and must be changed in two places.
"""

import inspect
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest

from fr_edge.bundle import golden
from fr_edge.calibration import calibrate, fitting, trt_cache
from fr_edge.calibration import constants as calibration
from fr_edge.calibration.search import budget, latency_model, mixed_precision
from fr_edge.cli.main import root
from fr_edge.export import contract_check, one_face, opset, parity, preprocessing_search
from fr_edge.faces import contract, quality
from fr_edge.metrics import (
    accuracy,
    changed_decisions,
    identification,
    intervals,
    protocols,
    rates,
    smoothed_drop,
    strata,
    verification,
)
from fr_edge.runtime.benchmark import result as benchmark
from fr_edge.runtime.benchmark import statistics, workload
from fr_edge.runtime.evaluation import doubts, evaluate, judgement, limits, reference, verify


def test_arcface_template() -> None:
    """SphereFace's landmarks for 96x112 faces, 8 pixels to the right: insightface's `arcface_dst`."""
    sphereface = np.array(
        [
            (30.2946, 51.6963),
            (65.5318, 51.5014),
            (48.0252, 71.7366),
            (33.5493, 92.3655),
            (62.7299, 92.2041),
        ]
    )
    np.testing.assert_allclose(contract.ARCFACE_TEMPLATE, sphereface + (8, 0), atol=1e-9)
    assert contract.ALIGNED_SIZE == 112


PIXELS = np.arange(256, dtype=np.float64)[:, None]  # every grey level, three channels
PUBLISHED = {  # name -> side, and the arithmetic of the code that the networks were trained by
    # insightface, arcface_torch: ToTensor(), Normalize(mean=0.5, std=0.5)
    "insightface": (112, (PIXELS / 255 - 0.5) / 0.5 + np.zeros(3)),
    # AdaDistill: the same transform
    "adadistill": (112, (PIXELS / 255 - 0.5) / 0.5 + np.zeros(3)),
    # AdaFace's README: BGR, ((image / 255) - 0.5) / 0.5
    "adaface": (112, (PIXELS / 255 - 0.5) / 0.5 + np.zeros(3)),
    "raw": (112, PIXELS + np.zeros(3)),
    # facenet-pytorch: fixed_image_standardization
    "facenet": (160, (PIXELS - 127.5) / 128 + np.zeros(3)),
    # torchvision: ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    "imagenet": (112, (PIXELS / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("name", [*contract.PRESETS, *PUBLISHED])
def test_presets_are_the_published_arithmetic(name: str) -> None:
    side, wanted = PUBLISHED[name]
    spec = contract.PRESETS[name]
    order = "BGR" if name == "adaface" else "RGB"
    assert (spec.height, spec.width, spec.channels, spec.layout) == (side, side, order, "NCHW")
    np.testing.assert_allclose((PIXELS - spec.mean) / np.array(spec.std), wanted, atol=1e-9)


def test_normalizations_that_are_searched() -> None:
    half = (127.5,) * 3
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    assert dict(contract.NORMALIZATIONS) == {
        "insightface": (half, half),
        "raw": ((0.0,) * 3, (1.0,) * 3),
        "127.5/128": (half, (128.0,) * 3),
        "/255": ((0.0,) * 3, (255.0,) * 3),
        "imagenet": (mean, std),
        "127.5/1": (half, (1.0,) * 3),
        "imagenet mean/1": (mean, (1.0,) * 3),
    }


def test_default_limits_of_every_gate() -> None:
    assert limits.COSINE_FLOORS == {
        "int8": (0.95, 0.97),
        "fp8": (0.95, 0.97),
        "fp16": (0.999, 0.9995),
        "fp32": (0.9999, 0.9999),
    }
    default = limits.Limits()
    assert (default.judged_far, default.tar_drop) == (1e-4, 0.01)
    assert limits.EvaluateLimits().judged_far == 1e-4
    for kind in (limits.Limits, limits.EvaluateLimits, limits.BenchmarkLimits):
        assert set(vars(kind()).values()) == {None}, "a gate that nobody asked for"


CONSTANTS: list[tuple[ModuleType, dict[str, Any]]] = [
    # What a certificate is judged by.
    (judgement, {"MIN_REFERENCE_COSINE": 0.9999}),
    (
        doubts,
        {
            "_MAX_REFERENCE_EER": 0.2,
            "_MIN_REFERENCE_TAR": 0.5,
            "MIN_JUDGED_TAR": 0.1,
            "_MIXED_LABELS": 0.3,
            "_MANY_WRONG": 0.05,
            "_MANY_ACCEPTED": 0.1,
            "_CONTRACT_PEOPLE": 20,
            "_ALIKE": 0.35,
            "_SAME_INPUT": 0.999,
            "_LIKELY": 0.674,  # the normal distribution's third quartile
            "_SHOWN": 1.96,
        },
    ),
    (verify, {"_SAMPLE": 64, "_DEGRADED": 512}),
    (evaluate, {"_IJB_FARS": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}),  # of IJB's papers
    (verification, {"FARS": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)}),
    (identification, {"FPIRS": (1e-1, 1e-2, 1e-3)}),
    (rates, {"SOLID_IMPOSTORS": 10, "_SEPARATED_TAR": 0.5, "_SEPARATED_PAIRS": 20}),
    (strata, {"MIN_STRATUM_PAIRS": 50, "_FREEDOM_TIMES": 4}),
    (changed_decisions, {"FREEDOM_TIMES": 2}),
    (reference, {"_SMALL_BATCHES": (1, 2, 3, 4, 8, 16)}),
    (protocols, {"FOLDS": 10, "PER_FOLD": 300}),  # LFW: 10 folds of 300 and 300 pairs
    (golden, {"ORIGINS": {"pytorch": "PyTorch", "onnx": "the original ONNX network"}}),
    # When a benchmark is INVALID.
    (
        benchmark,
        {
            "MIN_RUNS": 100,
            "_MIN_DURATION_S": 1.0,
            "_MAX_VARIATION": 0.10,
            "_MAX_DRIFT": 0.10,
            "_MAX_CPU_WAIT": 0.05,
            "_MAX_LATE": 0.05,
            "_SAME_COSINE": 0.9999,
        },
    ),
    (statistics, {"PERCENTILES": (50.0, 90.0, 95.0, 99.0, 99.9)}),
    (workload, {"_JPEG_QUALITY": 95}),
    # Calibration.
    (budget, {"MAX_JUDGED_FACES": 2048}),
    (
        calibration,
        {
            "CLIPPING_WEIGHT": 8.0,
            "LEVELS": 128,  # magnitudes of INT8, 0 to 127
            "FEW_VALUES": 4096,
            "HEADROOM": 1.2,
            "PERCENTILE": 99.99,  # onnxruntime's documentation
            "FP8_HEADROOM": 2.0,
            "POOLED_BINS": 2048,  # ModelOpt's
            "HALF_BINS": 512,
            "MIN_EXPONENT": -100,
            "EXPONENTS": (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0),
            "WEIGHT_ERROR_FACTOR": 4.0,
            "MIN_RELATIVE_PEAK": 1e-3,
            "WORTH_A_PRODUCT": 0.8,
            "MAX_INPUTS": 1024,
            "PATCHES": 128,
            "BLOCK": 64,
            "PEAK_MARGIN": 0.01,
            "MAX_MEAN_ERROR": 8.5e-4,
            "MAX_TIME_SHARE": 0.15,
            "ERROR_PER_TIME": 2.3,
            "ENOUGH_FACES": 128,
            "MIN_FACES": 4,
            "MIN_PEOPLE": 16,
            "HOLD_OUT_EVERY": 5,
            "HOLD_OUT_FOR_PAIRS": 2,
            "MAX_IMAGES": 8,
            "HELD_OUT": 64,
            "ALIGNMENT_FACES": 64,
            "BLANK_STD": 2.0,
            "BLUE_EXCESS": 5.0,
            "EXTREME_GREY": 40.0,
            "MAX_FACES": 100_000,  # times 112 * 112 values is below 2 ** 32
            "BATCH": 4,
            "MAX_BATCH_VALUES": 1 << 24,
            "MIN_CHANNEL_VALUES": 1024,
            "MAX_WAITING_VALUES": 1 << 21,
            "BLOCK_VALUES": 1 << 15,
            "BLOCK_CHANNELS": 64,
        },
    ),
    (latency_model, {"_INT8_SPEED": 2.0, "_CONVERSION": 250.0, "_BYTE": 250.0 / 3.0}),
    (mixed_precision, {"_SENSITIVITY_FACES": 24}),
    (trt_cache, {"ALGORITHM": "EntropyCalibration2", "_LAST_MAJOR": 10}),
    # Export.
    (parity, {"MIN_COSINE": 0.99999, "BATCHES": (1, 7)}),
    (opset, {"OPSET": 17, "IR_VERSION": 8}),
    (one_face, {"MIN_DIM": 16, "HALF_COSINE": 0.999}),
    (preprocessing_search, {"SEPARATES": 1.5, "SAME_CONTRACT": 0.01, "_MIN_IDENTITIES": 8}),
    (contract_check, {"_ALIKE": 0.7, "_TIE": 0.05, "_CLEARLY_LESS_ALIKE": 0.3}),
    (intervals, {"_PRIOR_FREEDOM": 20, "_MIN_EFFECTIVE_COUPLES": 0.015}),
    (smoothed_drop, {"_NARROWER": 3.0, "_TAIL": (1, 2, 4, 8), "_TAIL_PAIRS": 20}),
]


@pytest.mark.parametrize(
    ("module", "wanted"), CONSTANTS, ids=[module.__name__ for module, _ in CONSTANTS]
)
def test_constants(module: ModuleType, wanted: dict[str, Any]) -> None:
    assert {name: getattr(module, name) for name in wanted} == wanted


def test_arrays_of_constants() -> None:
    # insightface and facenet: np.arange(0, 4, 0.01), squared distances
    np.testing.assert_allclose(accuracy._THRESHOLDS, np.arange(400) / 100, atol=1e-12)
    for shares, wanted in (
        (calibration.AUTO_SHARES, 0.15 * (1 / 0.15) ** (np.arange(40) / 39)),
        (calibration.MSE_SHARES, 0.1 + 0.01 * np.arange(91)),
    ):
        np.testing.assert_allclose(shares, wanted)
    # ITU-R BT.601
    np.testing.assert_allclose(quality._LUMA, (0.299, 0.587, 0.114), rtol=1e-6)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("calibrate", {"method": "auto", "limit": 512, "far": 1e-4}),
        ("verify", {"engine": "int8", "artifact": "engine", "far": None, "max_tar_drop": None}),
        ("evaluate", {"engine": "auto", "artifact": "engine"}),
        ("find-preprocessing", {"limit": 160}),
        ("benchmark", {"batches": "1", "duration": None}),
    ],
)
def test_defaults_of_the_commands(command: str, defaults: dict[str, object]) -> None:
    result = root.get_command(click.Context(root), command)
    assert result is not None
    values = {parameter.name: parameter.default for parameter in result.params}
    shown = {name: values[name] for name in defaults}
    assert {
        k: v if isinstance(v, str | float | int) else None for k, v in shown.items()
    } == defaults


def test_defaults_of_the_functions() -> None:
    parameters = inspect.signature(calibrate.calibrate).parameters
    assert (parameters["method"].default, parameters["limit"].default) == ("auto", 512)
    assert parameters["steps"].default == fitting.CalibrationSteps(True, True, True, True, True)
    assert budget.Budget(min_cosine=0.5).far == 1e-4
    assert inspect.signature(verify.verify).parameters["engine"].default == "int8"


def test_luma_is_bt_601s() -> None:
    """Against the recommendation's weights, in Pillow's 16 bits."""
    from fr_edge.faces.contract import LUMA, LUMA_UNIT

    assert sum(LUMA) == LUMA_UNIT == 65536
    assert np.abs(np.array(LUMA) / LUMA_UNIT - [0.299, 0.587, 0.114]).max() < 1e-5


def test_every_constant_of_calibration_is_pinned() -> None:
    """A new one gets its experiment there and its value here."""
    pinned = next(wanted for module, wanted in CONSTANTS if module is calibration)
    named = {name for name in vars(calibration) if name.isupper()}
    assert named == {*pinned, "AUTO_SHARES", "MSE_SHARES"}
