"""The report: one file that needs nothing else, verdict first, and true to the JSON."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.search.budget import Budget
from fr_edge.documents import to_builtins
from fr_edge.errors import BundleError, DataError
from fr_edge.faces.pairs import Pairs
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.cpu_int8 import integer_layers
from fr_edge.metrics.comparison import CurvesChange
from fr_edge.metrics.protocols import draw_pairs
from fr_edge.metrics.rates import ScoreCurves
from fr_edge.onnx_file import read_onnx
from fr_edge.reading import printable
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.cpu_kernel_selection import KernelSelection
from fr_edge.runtime.evaluation.evaluate import evaluate
from fr_edge.runtime.evaluation.gates import floor_gate, gate_reasons
from fr_edge.runtime.evaluation.stored_reports import list_reports
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.report import report
from fr_edge.runtime.report.plots import det_curves, roc_curves
from fr_edge.runtime.report.report import write_report

_VOID = {"meta", "img", "br", "link", "hr", "input"}


class _Page(HTMLParser):
    """Collects text and tags; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def _verification(bundle: Path) -> Path:
    """The bundle's only report of `verify`."""
    (report,) = (bundle / "reports").glob("verify-*.json")
    return report


def _let_pass(bundle: Path, report: Path) -> None:
    """Another verdict in a report: the tests' network tells nobody apart."""
    name = f"reports/{report.name}"
    of = open_bundle(bundle).files[name].of
    document = {**json.loads(report.read_text()), "verdict": "PASSED", "passed": True}
    with transaction(bundle, "tamper", {}) as draft:
        target = draft.path(name, "verify", of=of)
        gates = [gate for gate in document["gates"] if gate["passed"]]
        target.write_text(json.dumps({**document, "gates": gates, "reasons": []}))


def _benchmark(bundle: Path) -> str:
    """The name of the bundle's only report of `benchmark`."""
    (report,) = (bundle / "reports").glob("benchmark-*.json")
    return f"reports/{report.name}"


@pytest.fixture(scope="session")
def judged_once(
    calibrated_mini: Path, people: Faces, distinct: Faces, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle with reports of every kind."""
    mini = tmp_path_factory.mktemp("judged") / "mini.bundle"
    shutil.copytree(calibrated_mini, mini)
    build_engine(mini, "int8", "onnxruntime")
    verify(
        mini,
        "int8",
        pairs=Pairs(distinct, **vars(draw_pairs(distinct.labels))),
        min_cosine=0.5,
        p1_cosine=0.5,
        max_tar_drop=0.5,
    )
    evaluate(mini, people, engine="int8", name="a set & more")
    evaluate(mini, people, engine="fp32", artifact="graph")
    benchmark(mini, "int8", duration_s=0.2, warmup_s=0.1)
    training = {
        "curve": [{"step": s, "lr": 0.1, "loss": 9 - s / 10} for s in range(0, 50, 10)],
        "verification": [{"step": 0, "accuracy": 0.5}, {"step": 40, "accuracy": 0.9}],
        "accuracy": 0.9,
        "seconds": 12.5,
    }
    with transaction(mini, "distill", {}) as draft:
        draft.path("reports/training.json", "report").write_text(json.dumps(training))
    return mini


@pytest.fixture
def judged(judged_once: Path, tmp_path: Path) -> Path:
    """The same, which the test may change."""
    shutil.copytree(judged_once, tmp_path / "judged.bundle")
    return tmp_path / "judged.bundle"


def test_page_is_whole_and_stands_alone(judged: Path) -> None:
    path = write_report(judged)
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    body = " ".join(" ".join(page.text).split())
    assert body.index("PASSED INT8 engine") < 400
    named = {a["aria-label"] for tag, a in page.tags if tag == "svg"}
    assert named == {
        *(f"int8 {what}" for what in ("cosines", "kinds of faces", "ROC", "scores")),
        "int8 latency",
        "int8 speed",
        "int8 onnxruntime layers",
        "training",
    }
    assert "script" not in {tag for tag, _ in page.tags}
    loads = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "xlink:href")]
    assert loads
    assert all(v and v.startswith(("data:", "#")) for v in loads)
    assert "url(http" not in text
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)), "two plots share an element id"
    assert "None" not in body
    assert "nan" not in body.lower().split()


def test_keyboards_and_screen_readers_reach_every_table(judged: Path) -> None:
    """What axe-core asks for: one main landmark, and no table that only a mouse can scroll."""
    tags = _Page(write_report(judged).read_text()).tags
    assert [tag for tag, _ in tags].count("main") == 1
    template = Path(report.__file__).parent / "templates" / "report.html"
    tables = re.findall(r"(<[^>]*>)<table>\n?(.*)", template.read_text())
    assert len(tables) >= 16
    for opening, _ in tables:
        assert re.search(r'class="wide( long)?" tabindex="0" role="group" aria-label="\S', opening)
    headless = [first for _, first in tables if not first.startswith("<thead>")]
    assert len(headless) == 1  # names and values of the training


def test_the_history_is_read_without_knowing_json(judged: Path) -> None:
    page = write_report(judged).read_text()
    rows = re.findall(r'<tr class="history">.*?</tr>', page, re.DOTALL)
    assert len(rows) == len(open_bundle(judged).history) - 1  # but the report itself
    (verified,) = (row for row in rows if "<td>verify</td>" in row)
    assert "<dt>engine</dt><dd>int8</dd>" in verified
    assert "<dt>passed</dt><dd>yes</dd>" in verified
    assert not any(
        "{" in re.sub(r"<details>.*?</details>", "", row, flags=re.DOTALL) for row in rows
    )


def test_figures_are_the_reports_own(judged: Path) -> None:
    body = " ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text)
    verified = json.loads(_verification(judged).read_text())
    timed = json.loads((judged / _benchmark(judged)).read_text())
    assert f"{verified['cosine']['min']:.4f}" in body
    assert f"{100 * verified['tar']['1e-2']['engine']:.2f} %" in body
    assert f"{timed['runs'][0]['latency_ms']['p50']:.2f}" in body
    assert "INVALID" in body
    assert "a set & more" in body  # each protocol has its row
    assert list((judged / "reports").glob("evaluate-int8-a-set-more-*.json"))
    for entry in open_bundle(judged).files.values():
        if entry.role != "report":
            assert entry.sha256 in body


def test_latency_plots_say_which_lines_cannot_be_trusted(judged: Path) -> None:
    benchmark(judged, "int8", batches=(1, 2), duration_s=0.2, warmup_s=0.1)
    text = write_report(judged).read_text(encoding="utf-8")
    plots = re.findall(r'aria-label="int8[ (2)]* latency".*?</svg>', text, re.DOTALL)
    assert len(plots) == 2  # other settings have a report of their own
    (plot,) = (plot for plot in plots if "batch 2" in plot)
    assert "batch 1: INVALID" in plot  # too short
    assert plot.count("stroke-dasharray") >= 2  # and looks so
    assert "batch 2: INVALID" in plot
    assert ">99.9<" in plot


def test_a_plot_holds_as_many_lines_as_can_be_told_apart(judged: Path) -> None:
    with transaction(judged, "benchmark", {}) as draft:
        name = _benchmark(judged)
        path = draft.path(name, "benchmark", of=open_bundle(judged).files[name].of)
        report = json.loads((judged / name).read_text())
        run = {**report["runs"][0], "verdict": "VALID", "reasons": []}
        report["runs"] = [{**run, "batch": size} for size in range(1, 9)]
        path.write_text(json.dumps(report))
    text = write_report(judged).read_text(encoding="utf-8")
    plot = text[text.index('aria-label="int8 speed"') :]
    plot = plot[: plot.index("</svg>")]
    assert "batch 6" in plot
    assert "batch 7" not in plot
    assert "INVALID" not in plot
    assert "2 more settings are in the table only" in text


def test_a_benchmark_of_an_earlier_version_has_no_plot(judged: Path) -> None:
    with transaction(judged, "benchmark", {}) as draft:
        name = _benchmark(judged)
        path = draft.path(name, "benchmark", of=open_bundle(judged).files[name].of)
        old = json.loads((judged / name).read_text())
        for run in old["runs"]:
            for key in ("rate", "quantiles_ms", "work_over_time_ms", "load", "breakdown_ms"):
                del run[key]
            run |= {"spent_ms": {"embed": 1.0}, "waited": 0.1}
        del old["artifact"], old["saturation_batch"]
        path.write_text(json.dumps(old))
    text = write_report(judged).read_text(encoding="utf-8")
    assert "int8 latency" not in text
    assert f"{old['runs'][0]['latency_ms']['p50']:.2f}" in text


def test_what_calibration_found_and_its_budget_tried(mini: Path) -> None:
    free = json.loads((mini / "reports/calibration.json").read_text())["judged"]["cosine"]["min"]
    calibrate(mini, open_faces("synthetic:16x2@5"), budget=Budget(min_cosine=(3 * free + 1) / 4))
    body = " ".join(" ".join(_Page(write_report(mini).read_text(encoding="utf-8")).text).split())
    found = json.loads((mini / "reports/calibration.json").read_text())
    at = body.index("INT8 calibration")
    assert f"{100 * found['int8_mac_share']:.1f} % of all multiply-adds" in body[at:]
    assert "accuracy budget" in body[at:]
    rows = body[body.index("What the accuracy budget tried") :]
    assert found["budget"] in rows
    assert len(found["trials"]) > 1
    for trial in found["trials"]:
        assert f"{100 * trial['int8_mac_share']:.1f} % {len(trial['float_layers'])} " in rows
    assert rows.count("taken") == 1
    document = found | {"budget": None}  # an error limit alone left layers out
    with transaction(mini, "tamper", {}) as draft:
        of = open_bundle(mini).files["reports/calibration.json"].of
        draft.path("reports/calibration.json", "calibration report", of=of).write_text(
            json.dumps(document)
        )
    page = " ".join(" ".join(_Page(write_report(mini).read_text(encoding="utf-8")).text).split())
    assert "What the accuracy budget tried" in page
    assert "None" not in page
    for rate in found["judged"]["rates"]:
        assert f"{rate['threshold']['engine']:.4f}" in body[at:]


def test_synthetic_faces_are_shown_and_other_peoples_are_not(judged: Path, distinct: Faces) -> None:
    def pictures() -> int:
        page = _Page(write_report(judged).read_text(encoding="utf-8"))
        return sum(tag == "img" for tag, _ in page.tags)

    assert pictures() == 12
    report = json.loads(_verification(judged).read_text())
    report["faces"]["synthetic"] = False
    with transaction(judged, "tamper", {}) as draft:
        name = f"reports/{_verification(judged).name}"
        of = open_bundle(judged).files[name].of
        draft.path(name, "verify", of=of).write_text(json.dumps(report))
    assert pictures() == 0
    page = _Page(write_report(judged, distinct).read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in page.tags) == 12


def test_failed_gates_come_first(mini: Path, people: Faces) -> None:
    verify(mini, "int8", artifact="graph", faces=people, min_cosine=1.0)
    body = " ".join(" ".join(_Page(write_report(mini).read_text(encoding="utf-8")).text).split())
    assert re.search(r"FAILED INT8 graph .* ✗ min cosine", body[:800])


def test_a_failed_benchmark_or_evaluation_stands_beside_a_passed_verification(judged: Path) -> None:
    _let_pass(judged, _verification(judged))
    gate = floor_gate("faces per second, batch 1", 10.0, 1e6)
    verdict = {
        "gates": to_builtins([gate]),
        "reasons": to_builtins(gate_reasons([gate])),
        "passed": False,
    }
    evaluation = next(name for name in open_bundle(judged).files if "evaluate-int8" in name)
    for name, key in ((_benchmark(judged), "gates_verdict"), (evaluation, "verdict")):
        document = json.loads((judged / name).read_text()) | verdict | {key: "FAILED"}
        with transaction(judged, "tamper", {}) as draft:
            path = draft.path(name, "report", of=open_bundle(judged).files[name].of)
            path.write_text(json.dumps(document))
    body = " ".join(" ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text).split())
    banner = body[: body.index("cosine, 1st percentile")]
    assert banner.index("PASSED INT8 engine") < banner.index(
        "FAILED INT8 on onnxruntime, evaluated"
    )
    assert "FAILED Benchmark of the INT8 engine on onnxruntime ✗ faces per second" in banner
    run = json.loads((judged / _benchmark(judged)).read_text())["runs"][0]
    assert run["reasons"]  # too short
    why = "; ".join(run["reasons"])
    assert banner.count(why) == 1
    row = next(row for row in list_reports(open_bundle(judged)) if row.kind == "benchmark")
    assert row.verdict.endswith(", FAILED")
    noisy = replace(gate, verdict="CANNOT JUDGE", reason=f"the run is INVALID: {why}")
    with transaction(judged, "tamper", {}) as draft:
        name = _benchmark(judged)
        document = json.loads((judged / name).read_text()) | {
            "gates": to_builtins([noisy]),
            "reasons": to_builtins(gate_reasons([noisy])),
            "gates_verdict": "CANNOT JUDGE",
        }
        of = open_bundle(judged).files[name].of
        draft.path(name, "report", of=of).write_text(json.dumps(document))
    page = " ".join(" ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text).split())
    assert page[: page.index("cosine, 1st percentile")].count(why) == 1


def test_a_bundle_that_nobody_verified_says_so(mini: Path) -> None:
    body = " ".join(_Page(write_report(mini).read_text(encoding="utf-8")).text)
    assert "NOT VERIFIED" in body
    assert "fr-edge benchmark" in body


def test_a_report_of_an_earlier_version_is_shown(judged: Path) -> None:
    report = json.loads(_verification(judged).read_text())
    for key in ("teacher", "artifact", "name", "report"):
        del report[key]
    report["worst"] = report["cosine"].pop("worst")
    for rate in report["tar"].values():
        del rate["far"], rate["low_confidence"]
    with transaction(judged, "tamper", {}) as draft:
        draft.path("reports/verify-int8.json", "verify").write_text(json.dumps(report))
        draft.remove(f"reports/{_verification(judged).name}")
    body = " ".join(" ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text).split())
    assert "PASSED" in body
    assert "STALE: an earlier fr-edge made it" in body


def test_reports_of_an_earlier_engine_are_marked(judged: Path) -> None:
    body = " ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text)
    assert "STALE" not in body
    assert "the engine" in body
    assert open_bundle(judged).files["engines/onnxruntime-int8.onnx"].sha256[:12] in body
    engine = (judged / "engines/onnxruntime-int8.onnx").read_bytes()
    with transaction(judged, "tamper", {}) as draft:
        draft.path("engines/onnxruntime-int8.onnx", "engine").write_bytes(engine + b"\0")
    body = " ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text)
    assert "STALE: engines/onnxruntime-int8.onnx has changed since" in body


def test_an_engine_that_was_not_built_or_judged_is_said(mini: Path, people: Faces) -> None:
    def banner() -> str:
        page = _Page(write_report(mini).read_text(encoding="utf-8"))
        return " ".join(" ".join(page.text).split())[:1500]

    verify(mini, "int8", artifact="graph", faces=people, min_cosine=0.5, p1_cosine=0.5)
    _let_pass(mini, _verification(mini))
    shown = banner()
    assert shown.index("NOT BUILT") < shown.index("INT8 graph on onnxruntime")
    assert '<div class="verdict good">' not in (mini / "report.html").read_text()
    build_engine(mini, "int8", "onnxruntime")
    shown = banner()
    assert "NOT BUILT" not in shown
    assert "NOT VERIFIED INT8 engine for onnxruntime" in shown
    golden = verify(mini, "int8", min_cosine=0.5, p1_cosine=0.5)
    assert golden.verdict == "PASSED"
    shown = banner()
    assert "NOT VERIFIED" not in shown
    assert re.search(r"Only \d+ golden faces were compared", shown)
    assert '<div class="verdict good">' not in (mini / "report.html").read_text()
    result = verify(mini, "int8", faces=people, min_cosine=0.5, p1_cosine=0.5)
    _let_pass(mini, mini / result.report)
    write_report(mini)
    assert (mini / "report.html").read_text().count('<div class="verdict good">') == 1


def test_the_banner_names_faces_pairs_machine_and_what_was_not_judged(judged: Path) -> None:
    body = " ".join(" ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text).split())
    banner = body[: body.index("INT8 engine against the reference")]
    assert "160 synthetic faces of 40 people: 240 genuine and 12,480 impostor pairs" in banner
    assert "Not judged: " in banner
    assert json.loads(_verification(judged).read_text())["device"]["cpu"] in banner


def test_a_report_of_another_bundle_counts_for_nothing(
    judged: Path, calibrated_mini: Path, tmp_path: Path
) -> None:
    """The copy's entry in the manifest agrees; the report itself tells what it judged."""
    other = tmp_path / "other.bundle"
    shutil.copytree(calibrated_mini, other)
    build_engine(other, "fp32", "onnxruntime")
    report = _verification(judged)
    with transaction(other, "copy", {}) as draft:
        target = draft.path(f"reports/{report.name}", "verify", of=("model.onnx",))
        target.write_bytes(report.read_bytes())
    (row,) = list_reports(open_bundle(other))
    assert (row.verdict, row.stale) == (
        "PASSED",
        "engines/onnxruntime-int8.onnx is not in the bundle",
    )
    body = " ".join(" ".join(_Page(write_report(other).read_text(encoding="utf-8")).text).split())
    assert "NOT VERIFIED No report judges the files" in body
    assert "STALE: engines/onnxruntime-int8.onnx is not in the bundle" in body
    assert list_reports(open_bundle(judged))[-1].stale == ""


def test_the_chart_shows_what_the_engine_computes_in(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own file: what the fingerprint claims beyond that is not drawn."""
    chosen: tuple[str, ...] = ()

    def select(model: object, *_: object) -> list[KernelSelection]:
        return [KernelSelection(chosen, (0.5, 0.5))]

    def plot() -> str:
        text = write_report(judged).read_text(encoding="utf-8")
        own = text[text.index('aria-label="int8 onnxruntime layers"') :]
        return own[: own.index("</svg>")]

    monkeypatch.setattr("fr_edge.runtime.cpu_kernel_selection.select_kernels", select)
    name = "engines/onnxruntime-int8.onnx"
    every = tuple(integer_layers(read_onnx(judged / "model.int8.onnx")))
    for chosen in (every, ()):
        build_engine(judged, "int8", "onnxruntime")
        in_float = 4 - len(chosen)
        assert (f"INT8 in integer kernels: {len(chosen)} layers" in plot()) == bool(chosen)
        assert f"INT8 weights, float sums: {in_float} layers" in plot()
    fingerprint = json.loads((judged / f"{name}.json").read_text())
    fingerprint |= {"integer_layers": every, "integer_kernels": len(every)}
    with transaction(judged, "tamper", {}) as draft:
        draft.path(f"{name}.json", "engine fingerprint").write_text(json.dumps(fingerprint))
    assert "INT8 in integer kernels" not in plot()
    assert "NOT INT8" in (judged / "report.html").read_text(encoding="utf-8")


def test_the_page_allows_no_script_and_files_write_no_markup(judged: Path) -> None:
    """Fingerprint and report come with the bundle; neither may add markup to the page."""
    evil = '"><script>alert(1)</script>\x1b[2J\u202e'
    name, report = "engines/onnxruntime-int8.onnx", _verification(judged)
    fingerprint = json.loads((judged / f"{name}.json").read_text())
    verified = json.loads(report.read_text())
    verified["strata"][0]["name"] = verified["findings"] = [evil, "$x$ $"]
    verified["strata"][0]["name"] = f"{evil} $a$ b$"
    verified["backend"] = verified["name"] = verified["device"]["cpu"] = evil
    with transaction(judged, "tamper", {}) as draft:
        sidecar = draft.path(f"{name}.json", "engine fingerprint")
        sidecar.write_text(json.dumps({**fingerprint, "plot": evil, "file": evil}))
    with transaction(judged, "tamper", {}) as draft:
        target = draft.path(f"reports/{report.name}", "verify", of=(name,))
        verified["provenance"] = None
        target.write_text(json.dumps(verified))
    text = write_report(judged).read_text(encoding="utf-8")
    assert "<script" not in text
    assert printable(text) == text
    assert "\\x1b[2J\\u202e" in text
    assert text.count("&lt;script&gt;") + text.count("&#34;&gt;&lt;script") >= 4
    policy = [a for t, a in _Page(text).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [
        {
            "http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        }
    ]
    with transaction(judged, "tamper", {}) as draft:
        target = draft.path(f"reports/{report.name}", "verify", of=(name,))
        target.write_text(json.dumps({**verified, "engine": evil}))
    with pytest.raises(DataError, match="no engine"):
        write_report(judged)


def test_the_engine_on_most_faces_comes_first(judged: Path) -> None:
    verify(judged, "int8")
    verify(judged, "int8", artifact="graph")
    body = " ".join(" ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text).split())
    places = [
        body.index(f"INT8 {what} against the reference, {name}")
        for what, name in (
            ("engine", "synthetic:40x4@9"),
            ("engine", "golden"),
            ("graph", "golden"),
        )
    ]
    assert places == sorted(places)


def test_a_judged_graph_is_named_as_one(mini: Path) -> None:
    verify(mini, "int8", artifact="graph")
    body = " ".join(" ".join(_Page(write_report(mini).read_text(encoding="utf-8")).text).split())
    assert "INT8 graph on onnxruntime" in body
    assert "the graph with every rounding, not an engine: model.int8.onnx" in body


def test_names_are_text_not_markup(mini: Path) -> None:
    with transaction(mini, "export", {"source": "<script>alert(1)</script>.onnx"}):
        pass
    text = write_report(mini).read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_damaged_report_is_named(mini: Path) -> None:
    with transaction(mini, "tamper", {}) as draft:
        draft.path("reports/verify-int8-golden-0.json", "verify").write_text("{ not json")
    with pytest.raises(DataError, match="verify-int8"):
        write_report(mini)


def test_a_browser_shows_it_offline_without_complaint(
    judged: Path, shown: Callable[[Path, int, float], str]
) -> None:
    dom = shown(write_report(judged), 400, 60)
    assert dom.count("<svg") == 8
    assert "PASSED" in dom


def test_axes_with_decades_are_labelled_with_plain_numbers(judged: Path) -> None:
    text = write_report(judged).read_text(encoding="utf-8")
    assert "mathdefault" not in text
    plot = text[text.index('aria-label="int8 cosines"') :]
    labels = re.findall(r">\s*([0-9.]+)\s*</text>", plot[: plot.index("</svg>")])
    assert {"0", "1", "10"} <= set(labels)


def test_a_plot_of_errors_needs_some() -> None:
    """Networks without a false reject have no line in decades; their ROC stays below 1."""
    share = (0.0,) * 128
    clean = ScoreCurves({"far": [1e-3, 1.0], "tar": [1.0, 1.0]}, 0.0, share, share)
    wrong = ScoreCurves({"far": [1e-3, 1.0], "tar": [0.9, 1.0]}, 0.1, share, share)
    assert det_curves(CurvesChange(clean, clean), "int8") == ""
    assert "int8 engine" in det_curves(CurvesChange(clean, wrong), "int8")
    assert "1.02" not in roc_curves(CurvesChange(clean, clean), "int8")


def test_the_headline_is_of_a_rate_that_the_pairs_hold(judged: Path) -> None:
    """40 people give 12,480 impostor pairs: FAR 1e-4 is measured by one of them, 1e-3 by twelve."""
    report = json.loads(_verification(judged).read_text())
    assert report["tar"]["1e-4"]["low_confidence"]
    assert not report["tar"]["1e-3"]["low_confidence"]
    body = " ".join(" ".join(_Page(write_report(judged).read_text(encoding="utf-8")).text).split())
    assert "At a false accept rate of 1e-3 it accepts" in body
    assert "1e-4 *" in body


def test_figures_that_do_not_fit_each_other_are_refused(judged: Path) -> None:
    report = _verification(judged)
    verified = json.loads(report.read_text())
    verified["cosine"]["histogram"]["counts"] *= 2
    verified["provenance"] = None
    with transaction(judged, "tamper", {}) as draft:
        engine = "engines/onnxruntime-int8.onnx"
        target = draft.path(f"reports/{report.name}", "verify", of=(engine,))
        target.write_text(json.dumps(verified))
    before = {path: path.read_bytes() for path in judged.rglob("*") if path.is_file()}
    with pytest.raises(BundleError, match="figures do not fit each other"):
        write_report(judged)
    assert {path: path.read_bytes() for path in judged.rglob("*") if path.is_file()} == before
