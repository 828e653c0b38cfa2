"""`fr-edge report`: what a bundle holds and what was measured, on one page."""

import click

from . import options
from .command import define_command
from .output import Output


@define_command("report", example="fr-edge report mine.bundle")
@options.bundle
@click.option("--include-faces", metavar="SRC", help="Show the worst faces, from this source.")
def command(output: Output, bundle: str, include_faces: str | None) -> None:
    """Write report.html, one file that opens offline.

    It shows what the stages left in BUNDLE: the verdict first, what was not measured last. It holds
    no photograph unless --include-faces asks for them; synthetic faces are shown. Reports of files that
    the bundle no longer holds are marked as stale.
    """
    from ..runtime.report.report import write_report

    faces = options.load_faces(include_faces) if include_faces else None
    path = write_report(bundle, faces)
    output.result({"bundle": bundle, "report": str(path)}, str(path))
