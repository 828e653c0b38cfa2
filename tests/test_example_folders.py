"""Every example is listed, has its page and its script, and is run by `examples/all.sh`."""

import re
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.glob("[0-9][0-9]_*"))


def test_every_example_is_listed_and_run() -> None:
    page, all_of_them = (EXAMPLES / "README.md").read_text(), (EXAMPLES / "all.sh").read_text()
    assert len(FOLDERS) >= 7
    for number, name in enumerate(FOLDERS, 1):
        assert name.startswith(f"{number:02}_")
        assert f"]({name}/README.md)" in page
        (script,) = [p for p in (EXAMPLES / name).iterdir() if p.suffix in (".py", ".sh")]
        assert f'"$here/{name}/{script.name}"' in all_of_them


def test_links_of_the_pages_point_at_files() -> None:
    for page in EXAMPLES.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
