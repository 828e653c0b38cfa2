"""What the commands say."""

import json
import os
import subprocess
import sys
from itertools import count
from random import Random

import pytest

from fr_edge.cli import output
from fr_edge.cli.compare import changes_text
from fr_edge.cli.output import Output, _fitted, _wrapped_rows, size_text, table
from fr_edge.runtime.evaluation.compare import CompareResult

Captured = pytest.CaptureFixture[str]


def test_results_go_to_stdout_and_notes_to_stderr(capsys: Captured) -> None:
    Output().note("a note")
    Output().result({"a": 1}, "text")
    assert capsys.readouterr() == ("text\n", "a note\n")
    Output(json=True).result({"a": 1}, "text")
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    Output(quiet=True).note("a note")
    assert capsys.readouterr() == ("", "")


def test_progress_passes_everything_on(capsys: Captured) -> None:
    for quiet in (True, False):
        assert list(Output(quiet=quiet).track(iter("abc"), "reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")  # short work says nothing


def test_long_work_says_where_it_stands(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    clock = count(step=5.0)
    monkeypatch.setattr(output.time, "monotonic", lambda: float(next(clock)))
    assert list(Output().track(range(4), "reading", 4)) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 1 of 4 (25 %), 30 s left"
    assert lines[-1].startswith("reading: done in ")


def test_tables_line_up() -> None:
    assert table([["a", "1"], ["bbb", "22"]], ("x", "y")) == "x    y\n---- ---\na    1\nbbb  22"
    assert table([["a", "1"], ["bbb", "22"]]) == "a    1\nbbb  22"
    assert table([]) == ""


ROWS = [
    [
        "engine int8",
        "engines/onnxruntime-int8.onnx",
        "33 INT8 (0 in kernels), 17 FP32 layers",
        "6 s",
    ],
    ["accuracy", "on people never trained on", "teacher 90.0 %, [bold]student[/] 90.4 %", "5 s"],
]


@pytest.mark.parametrize("width", [80, 60, 40, 20])
def test_a_narrow_table_wraps_between_words(width: int) -> None:
    text = _fitted(table(ROWS, ("stage", "result", "figure", "time"), width), width)
    words = {word for row in ROWS for cell in row for word in cell.split()}
    assert words <= set(text.split())
    for line in text.splitlines():
        assert len(line) <= width or len(line.split()) == 1  # the path has 29


def test_names_stand_above_the_other_cells_where_that_is_shorter() -> None:
    rows = [["reports/verify-int8-of-faces.json", "two words", "1"], ["b", "three of them", "22"]]
    assert table(rows, ("file", "text", "n"), 40).splitlines() == [
        "file",
        "  text           n",
        "  -------------- ---",
        "reports/verify-int8-of-faces.json",
        "  two words      1",
        "b",
        "  three of them  22",
    ]
    assert table(rows, (), 40).splitlines()[:2] == [rows[0][0], "  two words      1"]


def test_lines_of_text_are_broken_between_words() -> None:
    text = "  pass  the gate: `fr-edge verify a b`, and more\n\nshort"
    assert _fitted(text, None) == text
    assert _fitted(text, 24).split("\n") == [
        "  pass  the gate:",
        "    `fr-edge verify a b`,",
        "    and more",
        "",
        "short",
    ]
    assert _fitted("a/path/that/is/whole", 10) == "a/path/that/is/whole"
    assert _fitted("面部 面部 ab", 9) == "面部 面部\n  ab"


def test_a_table_in_a_pipe_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [["a" * 60, "two words " * 20]]
    assert len(table(rows).splitlines()) == 1


def test_a_table_is_the_same_with_and_without_wrapping() -> None:
    """Tables that fit are not laid out by rich: 40,000 layers took it 25 s."""
    random = Random(7)
    words = ["", "a", "two words", "Gesicht 面部", "x" * 30, "  indented", "end "]
    for columns in range(1, 6):
        rows = [random.choices(words, k=columns) for _ in range(6)]
        head = random.choices(["", "title", "two words", "面"], k=columns)
        for header in ([], head):
            wrapped = [line for row in _wrapped_rows(rows, header, 500) for line in row]
            assert table(rows, header, 500) == "\n".join(wrapped)


def test_a_difference_between_reports_stays_one_line() -> None:
    """A report names its packages: one of them must not look like a verdict of fr-edge's own."""
    differences = ("packages: x\n\nfr-edge: PASSED", "y")
    result = CompareResult(True, "a", "b", differences, (), ())
    lines = changes_text(result).rstrip().split("\n")
    assert lines == [r"differs: packages: x\n\nfr-edge: PASSED", "differs: y"]


def test_one_long_name_does_not_widen_every_row_of_a_table() -> None:
    rows = [["a" * 100_000, "1"], *[["b", "2"]] * 1000]
    for width in (None, 80):
        text = table(rows, ("name", "number"), width)
        assert len(text) < 2_500_000
        assert ["a" * 100_000, "1"] in [line.split() for line in text.splitlines()]


@pytest.mark.parametrize(
    ("size", "text"),
    [(5, "5 B"), (1500, "1.5 kB"), (4_131_057, "4.1 MB"), (2_000_000_000, "2.0 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def on_a_terminal(code: str, **environment: str) -> str:
    """What Python code prints to a terminal."""
    controller, terminal = os.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", code],
            stdout=terminal,
            check=True,
            env={**os.environ, "NO_COLOR": "", "TERM": "xterm", **environment},
        )
        return os.read(controller, 4096).decode().replace("\r\n", "\n")
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, "\x1b[32m\x1b[1mPASSED\x1b[0m: a, \x1b[31m\x1b[1mINVALID\x1b[0m, UNPASSED\n"),
        ({"NO_COLOR": "1"}, "PASSED: a, INVALID, UNPASSED\n"),
        ({"TERM": "dumb"}, "PASSED: a, INVALID, UNPASSED\n"),
    ],
)
def test_verdicts_are_coloured_on_terminals_alone(given: dict[str, str], shown: str) -> None:
    code = "from fr_edge.cli.output import echo\necho('PASSED: a, INVALID, UNPASSED')"
    assert on_a_terminal(code, **given) == shown
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "PASSED: a, INVALID, UNPASSED\n"


def test_a_document_on_a_terminal_is_as_in_a_pipe() -> None:
    code = (
        "from fr_edge.cli.output import Output\n"
        "Output(True, False, False).result({'verdict': 'PASSED ' * 9}, 'PASSED')"
    )
    assert json.loads(on_a_terminal(code, COLUMNS="40")) == {"verdict": "PASSED " * 9}


def test_a_terminal_gets_lines_of_its_width_and_a_broken_verdict_its_colour() -> None:
    code = "from fr_edge.cli.output import echo\necho('it is CANNOT JUDGE')"
    shown = on_a_terminal(code, COLUMNS="14")
    assert shown == "it is \x1b[33m\x1b[1mCANNOT\n  JUDGE\x1b[0m\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "it is CANNOT JUDGE\n"
