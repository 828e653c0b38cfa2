"""`fr-edge benchmark`: latency and throughput of an engine on this machine, or INVALID."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from . import options
from .benchmark_text import as_markdown, as_text
from .command import define_command
from .compare import changes_text, fraction
from .detector_stages import benchmark_photos, refuse_for_photos
from .output import Output
from .verdict_text import failure_text, write_junit

if TYPE_CHECKING:
    from ..errors import FrEdgeError
    from ..runtime.benchmark.result import BenchmarkResult
    from ..runtime.evaluation.compare import CompareResult

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_LONG_S = 600


def _numbers(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,6}", part) and int(part) > 0 for part in parts):
        raise click.BadParameter(f"expected numbers from 1 up, such as 1,8; found {text!r}")
    return tuple(dict.fromkeys(map(int, parts)))


def _batches(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...] | None:
    return None if text == "auto" else _numbers(ctx, parameter, text)


def _size(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None:
        raise click.BadParameter(f"expected height and width such as 1080x1920, found {text!r}")
    return int(match[1]), int(match[2])


def _seconds(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(s|m|h|)", text.strip())
    if match is None or not 0 < float(match[1]) * _UNITS[match[2]] < float("inf"):
        raise click.BadParameter(
            f"expected a time above 0, such as 10, 90s, 5m or 1h; found {text!r}"
        )
    return float(match[1]) * _UNITS[match[2]]


@define_command(
    "benchmark",
    example="fr-edge benchmark mine.bundle --engine int8 --batch 1,8 --duration 5",
    option_groups={
        "Load": (
            "--batch",
            "--threads",
            "--streams",
            "--rate",
            "--duration",
            "--end-to-end",
        ),
        "Photographs": (
            "--photos",
            "--frame-faces",
            "--frame-size",
            "--gallery",
            "--detector-engine",
        ),
        "Report": (
            "--layers",
            "--log",
            "--markdown",
        ),
        "Gates": (
            "--power-mode",
            "--against",
            "--max-regression",
            "--max-p99-ms",
            "--min-throughput",
            "--max-energy-mj",
            "--policy",
            "--junit",
            "--allow-invalid",
        ),
        "Signatures": ("--require-signature", "--trust"),
    },
)
@options.bundle
@options.engine()
@options.backend
@options.device
@options.require_signature
@click.option(
    "--batch",
    "batches",
    default="1",
    show_default=True,
    metavar="N,...",
    callback=_batches,
    help="Faces in a run; auto doubles them while that pays.",
)
@click.option(
    "--threads", metavar="N,...", callback=_numbers, help="onnxruntime's; one per core by default."
)
@click.option(
    "--streams",
    default="1",
    show_default=True,
    metavar="N,...",
    callback=_numbers,
    help="Sessions that run at the same time.",
)
@click.option(
    "--rate",
    "rates",
    metavar="N,...",
    callback=_numbers,
    help="Queries per second that arrive at random; latency counts from then.",
)
@click.option(
    "--duration",
    metavar="TIME",
    callback=_seconds,
    help="Of each setting, such as 90s, 5m or 1h. [10 s; 40 s for a gate on energy]",
)
@click.option("--end-to-end", is_flag=True, help="Time decoding and preprocessing too.")
@options.photos(what="Time frames from JPEG bytes to matches")
@click.option(
    "--frame-faces",
    metavar="N,...",
    callback=_numbers,
    help="Faces in a frame, a line each.  [default: 1,6,20]",
)
@click.option("--frame-size", metavar="HxW", callback=_size, help="Of a frame. [1080x1920]")
@click.option(
    "--gallery", type=int, metavar="N", help="Enrolled faces to search.  [default: 10000]"
)
@click.option(
    "--detector-engine",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="The detector's engine to time.",
)
@click.option("--layers", is_flag=True, help="The slowest layers, as the backend profiles them.")
@click.option(
    "--power-mode", metavar="NAME", help="Runs in another power mode (nvpmodel's name) are INVALID."
)
@click.option("--log", metavar="FILE", help="A line of JSON every ten seconds, for long runs.")
@click.option("--against", metavar="FILE", help="Compare with an earlier benchmark's JSON.")
@click.option(
    "--max-regression", metavar="5%", callback=fraction, help="Gate: latency's rise over --against."
)
@click.option("--max-p99-ms", type=float, metavar="X", help="Gate: p99 of each line's latency.")
@click.option("--min-throughput", type=float, metavar="X", help="Gate: each line's faces a second.")
@click.option("--max-energy-mj", type=float, metavar="X", help="Gate: each line's energy per face.")
@options.policy
@options.junit
@click.option("--markdown", is_flag=True, help="Print a table for a README.")
@click.option("--allow-invalid", is_flag=True, help="Exit 0 even when a run is INVALID.")
def command(
    output: Output,
    bundle: str,
    engine: str,
    backend: str,
    batches: tuple[int, ...] | None,
    threads: tuple[int, ...],
    streams: tuple[int, ...],
    rates: tuple[int, ...],
    duration: float | None,
    end_to_end: bool,
    photos: str | None,
    frame_faces: tuple[int, ...],
    frame_size: tuple[int, int] | None,
    gallery: int | None,
    detector_engine: str,
    layers: bool,
    power_mode: str | None,
    log: str | None,
    against: str | None,
    max_regression: float | None,
    policy: str | None,
    junit: str | None,
    markdown: bool,
    allow_invalid: bool,
    **limits: float | None,
) -> None:
    """Time an engine on this machine.

    Percentiles of latency, throughput, and where the time goes.
    A run is INVALID when it was too short, too noisy or disturbed, or when the engine is not the
    original network any more; the exit code is then 1. Ctrl-C and SIGTERM keep what has run. The
    result is printed before the bundle keeps it: one that is read-only loses nothing but the report.

    --photos times the whole chain with the bundle's detector instead: frames that hold 1, 6 and 20 of
    the photographs' faces are decoded, detected, aligned, embedded and matched.
    """
    if photos:
        refuse_for_photos(
            batch=batches if batches != (1,) else None, threads=threads, rate=rates,
            streams=streams if streams != (1,) else None, end_to_end=end_to_end, layers=layers,
            power_mode=power_mode, log=log, against=against, max_regression=max_regression,
            policy=policy, junit=junit, markdown=markdown, **limits,
        )  # fmt: skip
        benchmark_photos(
            output, bundle, photos, allow_invalid=allow_invalid, engine=engine, backend=backend,
            detector=detector_engine, faces=frame_faces, frame_size=frame_size, gallery=gallery,
            duration_s=duration,
        )  # fmt: skip
        return
    if frame_faces or frame_size or gallery is not None or detector_engine != "auto":
        raise click.UsageError(
            "--frame-faces, --frame-size, --gallery and --detector-engine need --photos DIR"
        )
    from ..errors import FrEdgeError
    from ..interruption import interruptible
    from ..runtime.benchmark.benchmark import benchmark
    from ..runtime.benchmark.result import BenchmarkInterrupted

    if max_regression is not None and not against:
        raise click.UsageError("--max-regression needs --against FILE")
    if markdown and output.json:
        raise click.UsageError("--json and --markdown each want all of stdout: choose one")
    options.check_junit(junit)
    earlier = _read_earlier(Path(against), max_regression) if against else None
    if (duration or 0) >= _LONG_S and not log:
        output.note("--log FILE would keep what a power failure takes")
    printed: list[tuple[CompareResult | FrEdgeError | None, BenchmarkResult]] = []

    def show(result: "BenchmarkResult") -> None:
        comparison = _compare(earlier, result, str(against), max_regression) if earlier else None
        printed.append((comparison, result))
        _print(output, result, comparison, str(against), markdown=markdown)

    stopped = 0
    not_stored: FrEdgeError | OSError | KeyboardInterrupt | None = None
    with interruptible() as signals:
        try:
            benchmark(
                bundle,
                engine,
                backend,
                batches=batches,
                duration_s=duration,
                track=output.track,
                threads=threads,
                streams=streams,
                rates=rates,
                end_to_end=end_to_end,
                layers=layers,
                power_mode=power_mode,
                policy=Path(policy) if policy else None,
                log=Path(log) if log else None,
                before_storing=show,
                **{name: limit for name, limit in limits.items() if limit is not None},
            )
        except BenchmarkInterrupted:
            stopped = 128 + signals.number
        except (FrEdgeError, OSError, KeyboardInterrupt) as error:
            if not printed:
                raise
            not_stored = error
    ((comparison, result),) = printed
    _write_junit(junit, result)
    if not_stored is not None:
        _end_unstored(not_stored)
    if isinstance(comparison, FrEdgeError):
        _end(comparison.message, comparison.hint, comparison.exit_code)
    if stopped:
        output.note("interrupted: what had run is above, and in the bundle's reports")
        click.get_current_context().exit(stopped)
    slower = comparison is not None and not comparison.passed
    if result.passed is False and result.gates_verdict == "FAILED":
        output.fail_gate(failure_text(result.gates_verdict, result.reasons))
    if slower:
        output.fail_gate(f"slower than {against} by more than allowed")
    invalid = sum(run.verdict != "VALID" for run in result.runs)
    if invalid and not allow_invalid:
        output.fail_gate(
            f"INVALID: {invalid} of {len(result.runs)} lines; --allow-invalid exits 0 all the same"
        )
    if result.passed is False:
        output.fail_gate(failure_text(result.gates_verdict, result.reasons))


def _print(
    output: Output,
    result: "BenchmarkResult",
    comparison: "CompareResult | FrEdgeError | None",
    against: str,
    *,
    markdown: bool,
) -> None:
    from ..documents import to_builtins
    from ..errors import FrEdgeError

    document = to_builtins(result)
    lines = [as_markdown(result) if markdown else as_text(result)]
    if comparison is not None and not isinstance(comparison, FrEdgeError):
        document["against"] = to_builtins(comparison)
        lines += ["", f"A is {against}, B this run", changes_text(comparison)]
    output.result(document, "\n".join(lines))


def _end_unstored(error: "FrEdgeError | OSError | KeyboardInterrupt") -> NoReturn:
    """End the command after a result that is printed and that the bundle could not take."""
    from ..errors import FrEdgeError, MachineError
    from ..interruption import interrupted

    what = "the result is above, and was not stored: "
    if isinstance(error, FrEdgeError):
        _end(what + error.message, error.hint, error.exit_code)
    if isinstance(error, OSError):
        _end(what + (error.strerror or str(error)), "", MachineError.exit_code)
    _end(f"{what}interrupted", "", interrupted(error).exit_code)


def _end(message: str, hint: str, code: int) -> NoReturn:
    """As `main` ends a command, but stdout holds the result already."""
    click.echo(f"fr-edge: {message}", err=True)
    if hint:
        click.echo(f"         {hint}", err=True)
    click.get_current_context().exit(code)


def _write_junit(path: str | None, result: "BenchmarkResult") -> None:
    from ..runtime.benchmark.result import skipped_gates
    from ..runtime.evaluation.gates import CANNOT_JUDGE, VerdictReason

    invalid = [
        VerdictReason(CANNOT_JUDGE, f"{run.setting.label} is INVALID: {'; '.join(run.reasons)}")
        for run in result.runs
        if run.reasons
    ]
    title = f"{result.engine} on {result.backend}"
    reasons = (*result.reasons, *invalid)
    write_junit(path, "benchmark", title, result.gates, reasons, skipped_gates(result))


def _read_earlier(path: Path, max_regression: float | None) -> "BenchmarkResult":
    """The report to compare with, read before this run may write another in its place."""
    from ..errors import DataError
    from ..runtime.benchmark.result import BenchmarkResult
    from ..runtime.evaluation.compare import compare_reports
    from ..runtime.evaluation.stored_reports import read_report

    if not path.is_file():
        raise DataError(f"there is no report at {path}", "--against takes a benchmark's JSON file")
    report = read_report(path)
    if not isinstance(report, BenchmarkResult) or not report.runs:
        raise DataError(
            f"{path} is no benchmark's report", "--against BUNDLE/reports/benchmark-*.json"
        )
    compare_reports(report, report, (str(path), str(path)), max_regression)  # checks the limit
    return report


def _compare(
    earlier: "BenchmarkResult", result: "BenchmarkResult", name: str, max_regression: float | None
) -> "CompareResult | FrEdgeError":
    """The comparison, or the error that prevents it: it is raised once all is printed."""
    from ..errors import UsageError
    from ..runtime.evaluation.compare import compare_reports

    try:
        return compare_reports(earlier, result, (name, "this run"), max_regression)
    except UsageError:
        return UsageError(
            "this run and the earlier one have no setting in common; this one's figures are in"
            " the bundle's reports",
            "run the earlier one's --batch, --threads, --streams and --rate",
        )
