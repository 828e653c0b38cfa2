"""What becomes stale when a file changes: artefacts are removed, reports are kept and named."""

import json
import logging
from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle, problems, transaction
from fr_edge.bundle.derived import PAGE, removed_by, sources_of, stale_files, stale_reports
from fr_edge.bundle.manifest import FileEntry
from fr_edge.faces.contract import InputSpec

INT8 = "engines/onnxruntime-int8.onnx"
FP32 = "engines/onnxruntime-fp32.onnx"
REPORT = "reports/verify-int8-lfw.json"
EVERYTHING = ("model.onnx", "calibration.json", "model.int8.onnx", INT8, FP32, REPORT)
MARK = "OUT OF DATE"


def write(root: Path, *names: str, text: str = "1") -> None:
    with transaction(root, "test", {}) as change:
        change.spec, change.embedding_dim = InputSpec(), 8
        for name in names:
            of = [INT8] if name == REPORT else EVERYTHING if name == PAGE else ()
            change.path(name, "test", of=of).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "a.bundle"
    for name in EVERYTHING:
        write(root, name)
    write(root, PAGE, text="<html><body>1</body></html>")
    return root


def test_a_new_model_removes_what_was_made_of_the_old_one_and_keeps_reports(root: Path) -> None:
    write(root, "model.onnx", text="2")
    bundle = open_bundle(root, check="all")
    assert set(bundle.files) == {"model.onnx", REPORT, PAGE}
    assert stale_reports(bundle) == {
        REPORT: f"{INT8} is no longer in the bundle",
        PAGE: "model.onnx has changed since",
    }
    assert not (root / INT8).exists()
    assert (root / REPORT).exists()


def test_the_same_bytes_again_make_nothing_stale(root: Path) -> None:
    before = set(open_bundle(root).files)
    write(root, "model.onnx", "calibration.json")
    bundle = open_bundle(root)
    assert set(bundle.files) == before
    assert stale_reports(bundle) == {}
    assert MARK not in (root / PAGE).read_text()


def test_the_page_is_kept_and_marked_once_when_the_bundle_changes(root: Path) -> None:
    write(root, "reports/evaluate-int8-lfw.json")
    bundle = open_bundle(root, check="all")  # the manifest knows the marked page
    assert stale_reports(bundle)[PAGE] == "reports/evaluate-int8-lfw.json is newer"
    assert bundle.history[-1]["stale"] == {PAGE: "reports/evaluate-int8-lfw.json is newer"}
    page = (root / PAGE).read_text()
    assert page.startswith("<html><body><p id=")
    assert page.endswith("1</body></html>")
    assert page.count(MARK) == 1
    write(root, "other")
    assert (root / PAGE).read_text() == page
    assert "stale" not in open_bundle(root).history[-1]
    write(root, PAGE, "other", text="<html><body>2</body></html>")
    assert MARK not in (root / PAGE).read_text()


def test_a_page_that_is_not_the_manifests_is_not_vouched_for(root: Path) -> None:
    (root / PAGE).write_text("<html><body>PASSED</body></html>")
    write(root, "model.onnx", text="2")
    assert (root / PAGE).read_text() == "<html><body>PASSED</body></html>"
    assert [PAGE in problem for problem in problems(open_bundle(root))] == [True]


def test_a_new_calibration_concerns_int8_alone(root: Path) -> None:
    write(root, "calibration.json", "model.int8.onnx", text="2")
    assert FP32 in open_bundle(root)
    assert INT8 not in open_bundle(root)


def test_a_rebuilt_engine_makes_its_reports_stale_until_they_are_written_again(root: Path) -> None:
    write(root, INT8, text="2")
    reason = f"{INT8} has changed since"
    assert stale_reports(open_bundle(root)) == {REPORT: reason, PAGE: reason}
    write(root, REPORT)
    assert list(stale_reports(open_bundle(root))) == [PAGE]


def test_what_became_stale_is_logged_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fr_edge"):
        write(root, INT8, text="2")
        write(root, "other")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"kept, but out of date now: {PAGE}, {REPORT}",
    ]


def test_a_bundle_of_an_earlier_version_knows_its_sources_by_the_table(root: Path) -> None:
    file = root / "bundle.json"
    manifest = json.loads(file.read_text())
    for entry in manifest["files"].values():
        entry.pop("of", None)
    file.write_text(json.dumps(manifest))
    # Neither says what it judged.
    assert list(stale_reports(open_bundle(root))) == [PAGE, REPORT]
    write(root, "model.onnx", text="2")
    assert set(open_bundle(root).files) == {"model.onnx", REPORT, PAGE}
    assert MARK in (root / PAGE).read_text()
    assert PAGE in open_bundle(root).history[-1]["stale"]


def test_staleness_passes_on() -> None:
    def entry(digest: str, **of: str) -> FileEntry:
        return FileEntry("test", digest, 1, of)

    files = {
        "a": entry("1"),
        "b": entry("2", a="0"),
        "c": entry("3", b="2"),
        "d": entry("4", a="1"),
    }
    assert stale_files(files) == {"b": "a has changed since", "c": "b is stale"}
    assert set(removed_by(files, written=["b"])) == {"c"}


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("model.int8.onnx", ("model.onnx", "calibration.json")),
        ("engines/tensorrt-int8.plan", ("model.int8.onnx",)),
        ("engines/tensorrt-int8.plan.json", ("model.int8.onnx",)),
        ("engines/tensorrt.timing", ()),
        ("golden.npz", ()),
    ],
)
def test_the_table(name: str, sources: tuple[str, ...]) -> None:
    assert sources_of(name) == sources
