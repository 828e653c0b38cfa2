"""`fr-edge report`: what a bundle holds and what was found, on one page."""

from . import options
from .output import Output
from .output import command as make


@make("report")
@options.bundle
def command(output: Output, bundle: str) -> None:
    """Write report.html, one file that opens offline.

    It shows what the stages left in BUNDLE: the verdict first, what was not measured last.
    """
    from ..runtime.report import write_report

    path = write_report(bundle)
    output.result({"bundle": bundle, "report": str(path)}, str(path))
