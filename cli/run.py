"""`fr-edge run`: from photographs and a network to verified engines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .command import define_command
from .output import Output, size_text, table

if TYPE_CHECKING:
    from .pipeline import EngineRow


@define_command(
    "run",
    example="fr-edge run faces/judging backbone.onnx --preset insightface --duration 1",
    option_groups={
        "Photographs": ("--detector", "--faces", "--calibration-share"),
        "Network and engines": ("--preset", "--precisions", "--backend", "--device"),
        "Judging": ("--policy", "--duration"),
    },
)
@click.argument("photos", metavar="[PHOTOS]", required=False)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--out", default="run", show_default=True, metavar="DIR", help="Where to work.")
@click.option("--detector", metavar="FILE.onnx", help="Align the photographs with this network.")
@click.option(
    "--faces",
    type=click.Choice(["one", "largest", "central", "all"]),
    help="Which of several faces in a photograph; by default such a photograph is left out.",
)
@click.option("--preset", metavar="NAME", help="The input contract; by default found on the faces.")
@click.option(
    "--precisions",
    metavar="A,B,...",
    help="fp32, fp16, fp8, int8; by default fp32, int8, and fp16 where its numbers fit.",
)
@options.backend
@options.device
@click.option("--policy", metavar="FILE.toml", help="Limits, as `fr-edge verify` takes them.")
@click.option(
    "--calibration-share", type=float, metavar="X", help="Share of the people that calibrate; 0.3."
)
@click.option("--duration", "duration_s", type=float, metavar="S", help="Timing of each engine; 5.")
@click.option("--config", metavar="run.toml", help="All of this from a file; options come first.")
def command(
    output: Output,
    out: str,
    config: str | None,
    precisions: str | None,
    backend: str,
    **given: Any,
) -> None:
    """Take photographs and a network to verified, timed engines.

    PHOTOS has a folder for each person; with --detector they are aligned first, without it they are
    aligned faces of any source. MODEL is what `fr-edge export` takes. Some of the people calibrate
    INT8, the others judge. OUT/run.toml has the settings, OUT/model.bundle the engines and the
    report. Finished stages are not repeated; those whose input or setting changed are. Exit code 1
    unless every engine PASSED.
    """
    from ..documents import to_builtins
    from .pipeline import run_pipeline
    from .run_plan import read_plan

    given["precisions"] = tuple(precisions.split(",")) if precisions else None
    given["backend"] = None if config and backend == "auto" else backend
    result = run_pipeline(read_plan(Path(config) if config else None, given), Path(out), output)
    rows = [[s.stage, s.figure, f"{s.seconds:.0f} s"] for s in result.stages]
    lines = [
        table(rows, ("stage", "result", "time")),
        "",
        table(list(map(_row, result.engines)), _HEAD),
        *([_BEST] if any(engine.best for engine in result.engines) else []),
        *(
            f"{e.precision}: not compared, {e.not_placed}"
            for e in result.engines
            if e.not_placed and e.verdict == "PASSED"
        ),
        *(f"{e.precision}: {e.verdict}: {e.reason}" for e in result.engines if e.reason),
        "",
        f"report: {result.report}",
        "PASSED" if result.passed else "not every engine PASSED",
    ]
    output.result(to_builtins(result), "\n".join(lines))
    if not result.passed:
        output.fail_gate("not every engine PASSED")


_BEST = "* no other engine here is as small, as fast and as accurate"
_HEAD = ("engine", "verdict", "size", "INT8", "p50", "FAR", "TAR", "change (95 %)", "")


def _row(engine: "EngineRow") -> list[str]:
    change = "" if engine.tar_change is None else f"{engine.tar_change:+.4f}"
    if engine.tar_interval_95:
        change += " ({:+.4f} to {:+.4f})".format(*engine.tar_interval_95)
    time = "-" if engine.p50_ms is None else f"{engine.p50_ms:.2f} ms"
    return [
        engine.precision,
        engine.verdict,
        "-" if engine.size is None else size_text(engine.size),
        f"{100 * engine.int8_share:.0f} %" if engine.int8_share else "-",
        f"{time} {engine.timing}" if engine.timing == "INVALID" else time,
        engine.far,
        "-" if engine.tar is None else f"{engine.tar:.4f}",
        change,
        "*" if engine.best else "",
    ]
