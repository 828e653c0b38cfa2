"""Times of assignments: engines that really run, here the CPU's."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.search.budget import Budget
from fr_edge.calibration.search.latency_model import LatencyModel, QuantizeChoice, counted_latency
from fr_edge.errors import MachineError, ModelError, UsageError
from fr_edge.faces.contract import preprocess
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import Int8Choice, choose_int8_layers
from fr_edge.runtime import layer_latency as choice_times
from fr_edge.runtime.layer_latency import engine_builder, latency_here, opened_engine
from fr_edge.runtime.machine.backends import lacking
from fr_edge.runtime.machine.device import describe_device


def test_a_search_by_engines_that_ran(mini: Path, people: Faces) -> None:
    bundle = open_bundle(mini)
    worst = bundle.history[-1]["summary"]["judged"]["cosine"]["min"]
    budget = Budget(min_cosine=worst + 0.3 * (1 - worst))
    done = calibrate(
        bundle, people, budget=budget, latency=latency_here(bundle, "onnxruntime", 0.02)
    )
    report = done.report
    assert report.time_source == f"engines of onnxruntime on {describe_device().cpu}, measured"
    model = onnx.load(done.bundle.file("model.onnx"))
    for trial in report.trials:
        choice = choose_int8_layers(model, dict.fromkeys(trial.float_layers, ""))
        assert trial.cost > 0
        assert (trial.cost != counted_latency(model).cost(choice)) == bool(choice.int8)
    assert report.trials[-1].loss.cosine.min >= budget.min_cosine


def test_a_fast_layer_that_loses_too_much_does_not_end_the_search(
    mini: Path, people: Faces
) -> None:
    """Times say to keep the most sensitive layer in INT8 to the last; another one holds."""
    bundle = open_bundle(mini)
    model = onnx.load(bundle.file("model.onnx"))
    layers = choose_int8_layers(model).int8
    worst = bundle.history[-1]["summary"]["judged"]["cosine"]["min"]
    losses = {}
    for fast in layers:  # each in turn is the only one that is worth its INT8

        def latency(
            model: onnx.ModelProto, quantised: QuantizeChoice, fast: str = fast
        ) -> LatencyModel:
            def cost(choice: Int8Choice) -> float:
                return 1.0 - sum(1e3 if name == fast else 1e-3 for name in choice.int8) / 1e4

            return LatencyModel(f"{fast} is fast", cost, lambda: 0.0)

        done = calibrate(
            bundle, people, budget=Budget(min_cosine=1 - 0.1 * (1 - worst)), latency=latency
        )
        losses[fast] = {t.float_layers: t.loss.cosine.min for t in done.report.trials}
        bundle = done.bundle
    budget = 1 - 0.1 * (1 - worst)
    alone = {
        fast: next(loss for kept, loss in trials.items() if set(kept) == set(layers) - {fast})
        for fast, trials in losses.items()
    }
    assert min(alone.values()) < budget, "no layer loses the budget alone: the test shows nothing"
    assert all(list(trials.values())[-1] >= budget for trials in losses.values())


def test_what_was_measured_before_an_interruption_is_not_measured_again(
    mini: Path, people: Faces
) -> None:
    """Another run's times differ: with them the order of the layers might."""
    bundle, journal = open_bundle(mini), mini.with_name(f".{mini.name}.calibrate")
    worst = bundle.history[-1]["summary"]["judged"]["cosine"]["min"]
    budget = Budget(min_cosine=worst + 0.3 * (1 - worst))
    measured: list[tuple[str, ...]] = []

    def interrupted(most: int) -> dict[str, object]:
        """What is remembered when, in all searches together, `most` assignments were timed."""

        def latency(model: onnx.ModelProto, quantised: QuantizeChoice) -> LatencyModel:
            times = latency_here(bundle, "onnxruntime", 0.01)(model, quantised)

            def cost(choice: Int8Choice) -> float:
                if len(measured) == most:
                    raise KeyboardInterrupt
                measured.append(choice.int8)
                return times.cost(choice)

            return replace(times, cost=cost)

        with pytest.raises(KeyboardInterrupt):
            calibrate(bundle, people, budget=budget, latency=latency)
        return dict(json.loads(journal.read_text())["results"])

    few, more = interrupted(2), interrupted(4)
    layers = choose_int8_layers(onnx.load(bundle.file("model.onnx"))).int8
    assert list(few) == ["noise", "[]", f"{layers[0]} saves"]
    assert [*few, *(f"{layer} saves" for layer in layers[1:3])] == list(more)
    assert few.items() < more.items()
    assert len(set(measured)) == 4


def test_what_is_timed_is_the_assignment(mini: Path, people: Faces) -> None:
    """Both models run as they are: float exactly, Q/DQ with its roundings."""
    bundle = open_bundle(mini)
    faces = preprocess(np.stack([people.read(0)]), bundle.spec)
    embeddings = []
    for name in ("model.onnx", "model.int8.onnx"):
        engine = engine_builder(bundle, "onnxruntime")(onnx.load(bundle.file(name)))
        with opened_engine(engine, bundle.spec, "onnxruntime") as run:
            embeddings.append(run(faces)[0])
    assert embeddings[0].shape == (1, bundle.embedding_dim)
    cosine = float(
        (embeddings[0] * embeddings[1]).sum() / np.prod([np.linalg.norm(x) for x in embeddings])
    )
    assert 0.98 < cosine < 1 - 1e-7


def test_ratios_and_noise(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three races of the float engine with its twin, then one for the assignment."""
    races: Iterator[Sequence[float]] = iter([(1.0, 1.01), (2.0, 1.94), (1.0, 1.0), (4.0, 3.0)])
    monkeypatch.setattr(choice_times, "interleaved_min_times", lambda *_: next(races))
    bundle = open_bundle(mini)
    model, int8 = (onnx.load(bundle.file(n)) for n in ("model.onnx", "model.int8.onnx"))
    times = latency_here(bundle, "onnxruntime")(model, lambda choice: int8)
    assert times.noise() == pytest.approx(0.03 * np.sqrt(2))
    assert times.cost(choose_int8_layers(model)) == 0.75
    assert (
        times.cost(choose_int8_layers(model, dict.fromkeys(choose_int8_layers(model).int8, "")))
        == 1.0
    )


def test_an_assignment_of_which_no_engine_can_be_made(mini: Path) -> None:
    """onnxruntime refuses it: the message tells which assignment, and that onnxruntime did."""
    bundle = open_bundle(mini)
    model = onnx.load(bundle.file("model.onnx"))
    broken = onnx.load(bundle.file("model.int8.onnx"))
    broken.graph.node[-1].op_type = "Nonsense"
    times = latency_here(bundle, "onnxruntime", 0.01)(model, lambda choice: broken)
    layers = choose_int8_layers(model).int8
    message = (
        f"{len(layers) - 1} layers in INT8, 1 left out \\({layers[0]}\\), cannot be timed: .*onnx"
    )
    with pytest.raises(ModelError, match=message):
        times.cost(choose_int8_layers(model, {layers[0]: ""}))
    with pytest.raises(ModelError, match=r"4 left out \(a, b, c, \.\.\.\), cannot"):
        times.cost(choose_int8_layers(model, dict.fromkeys("abcd", "")))


def test_which_engines(mini: Path) -> None:
    bundle = open_bundle(mini)
    if lacking("tensorrt"):
        assert latency_here(bundle) is counted_latency
        with pytest.raises(MachineError, match="cannot be used on this machine"):
            latency_here(bundle, "tensorrt")
    with pytest.raises(UsageError, match="no backend 'tpu'"):
        latency_here(bundle, "tpu")


def test_tensorrts_compiler_takes_every_variant(mini: Path) -> None:
    """Compiled, not run: there is no GPU."""
    if lacking("tensorrt-rtx", build=True):
        pytest.skip(lacking("tensorrt-rtx", build=True))
    bundle = open_bundle(mini)
    build = engine_builder(bundle, "tensorrt-rtx")
    for name in ("model.onnx", "model.int8.onnx"):
        assert len(build(onnx.load(bundle.file(name)))) > 1000
