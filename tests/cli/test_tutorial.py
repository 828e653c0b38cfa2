"""The tutorial's commands run one after another, literally, and end with its certificate in use."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from bright_detector import write_bright_detector
from networks import write_distinct_people
from PIL import Image
from test_readme import write_photograph

from fr_edge.cli.main import run
from fr_edge.faces.synthetic.render import draw_face

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)


def test_every_command_of_the_tutorial(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Faces that the tests' network tells apart take the place of those that `align` made."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(network, "backbone.onnx")
    write_bright_detector(Path("det_10g.onnx"))
    for person, column in (("ann", 96), ("bob", 160), ("cem", 224), ("dee", 288)):
        Path("photos", person).mkdir(parents=True)
        for image in (1, 2):
            write_photograph(Path("photos", person, f"{image}.jpg"), 96 * image, column)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "fr-edge"
        if words[1] == "pairs":
            assert len(list(Path("faces").glob("*/*/*.*"))) == 8
            shutil.rmtree("faces")
            for person in range(12):
                path = Path("faces", "calibration", f"person{person}", "0.png")
                path.parent.mkdir(parents=True)
                Image.fromarray(draw_face(1000 + person, 0)).save(path)
            write_distinct_people(Path("faces/judging"), 80, 3)
        if words[1] == "benchmark":
            words += ["--duration", "0.2", "--allow-invalid"]
        assert run([*words[1:], "-q"]) == 0, line
    (code,) = blocks("python")
    exec(compile(code, str(TUTORIAL), "exec"), {})
    *_, last = capsys.readouterr().out.splitlines()
    assert last.split()[1] == "True"
