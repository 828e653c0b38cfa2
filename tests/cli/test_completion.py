"""What a shell offers: files, folders and the names that fr-edge knows."""

import pytest
from click.shell_completion import BashComplete

from fr_edge.cli.main import root

OFFERED = {
    "inspect mi": [("file", "mi")],
    "verify mine.bundle --pairs ": [("file", "")],
    "run photos mine.onnx --out ": [("dir", "")],
    "run photos mine.onnx --detector det": [("file", "det")],
    "export a.onnx --preset ins": [("plain", "insightface")],
    "distill ada": [("plain", "adadistill"), ("plain", "adadistill-plus")],
    "distill my.to": [("file", "my.to")],
    "targets --target orin-nano@jetpack6.": [
        ("plain", f"orin-nano@jetpack6.{minor}") for minor in (0, 1, 2)
    ],
    "verify mine.bundle --backend tensorrt-": [("plain", "tensorrt-rtx")],
    "verify mine.bundle --engine int8-": [
        ("plain", f"int8-{kind}") for kind in ("tensor", "crop", "frame")
    ],
    "export a.onnx --mean ": [],
}


@pytest.mark.parametrize("line", OFFERED)
def test_values_are_offered(line: str) -> None:
    *words, incomplete = line.split(" ")
    shell = BashComplete(root, {}, "fr-edge", "_FR_EDGE_COMPLETE")
    found = [(item.type, item.value) for item in shell.get_completions(words, incomplete)]
    assert found == OFFERED[line]
