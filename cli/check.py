"""`fr-edge check`: does a bundle, or a TensorRT plan, hold what it says? Nothing is run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .inspect import report_lines
from .output import Output

if TYPE_CHECKING:
    from ..bundle.manifest import Bundle


@define_command("check", example="fr-edge check mine.bundle")
@click.argument("source", metavar="BUNDLE|FILE.plan")
@options.device
def command(output: Output, source: str) -> None:
    """Check that a bundle, or a TensorRT plan, holds what it says.

    Nothing is run, nothing is written.

    BUNDLE: each file has the manifest's sha256, each engine is the one that its fingerprint describes,
    and each report is compared with the files that the bundle holds now. Exit code 4 when a file or an
    engine is not what it should be; reports of earlier files, or of another bundle, are named.

    FILE.plan: whether it loads here, by its header and its sidecar (FILE.plan.json). Exit code 3 when
    it will not load on this machine, 4 when it is damaged or not a plan.
    """
    if Path(source).is_dir():
        _check_bundle(output, source)
    else:
        _check_plan(output, source)


def _check_bundle(output: Output, source: str) -> None:
    from ..bundle.bundle import open_bundle, problems
    from ..bundle.derived import stale_reports
    from ..bundle.pack_format import unlisted_files
    from ..documents import to_builtins
    from ..errors import BundleError
    from ..runtime.evaluation.stored_reports import list_reports

    bundle = open_bundle(source, check="manifest")
    damages, stale = list(problems(bundle)), stale_reports(bundle)
    unlisted = list(unlisted_files(bundle))
    reports = () if damages else list_reports(bundle)
    stale |= {row.file: row.stale for row in reports if row.stale}
    engines = {} if damages else dict(_engine_problems(bundle))
    wrong = [text for text, error in engines.values() if issubclass(error, BundleError)]
    lines = [
        f"{source}: {len(bundle.files)} files, {len(damages)} missing or changed",
        *[f"engine {n}: {text or 'is for this machine'}" for n, (text, _) in engines.items()],
        *report_lines(reports),
        *[f"stale: {name}: {reason}" for name, reason in stale.items()],
        *[f"not part of the bundle: {name}" for name in unlisted],
    ]
    document = {
        "bundle": source,
        "problems": [*damages, *wrong],
        "engines": {name: text for name, (text, _) in engines.items()},
        "reports": reports,
        "stale": stale,
        "unlisted": unlisted,
    }
    if damages or wrong:
        output.note("\n".join(lines))
        raise BundleError("; ".join([*damages, *wrong]), "restore it, or run its stage again")
    output.result(to_builtins(document), "\n".join(lines).rstrip())


def _engine_problems(bundle: "Bundle") -> "Iterator[tuple[str, tuple[str, type[Exception]]]]":
    """Each engine, why it does not belong here, and whether machine or bundle is the reason."""
    from ..errors import BundleError, MachineError
    from ..runtime.fingerprint import check_fingerprint
    from ..runtime.machine.backends import lacking

    for name in bundle.files:
        if not name.startswith("engines/") or f"{name}.json" not in bundle:
            continue
        try:
            lack = lacking(check_fingerprint(bundle, name)["backend"])
            yield name, (lack and f"does not run here: {lack}", MachineError)
        except (BundleError, MachineError) as error:
            yield name, (error.message, type(error))


_LONE = "this version loads here; without PLAN.json beside it, its GPU is not known"


def _check_plan(output: Output, plan: str) -> None:
    from ..documents import to_builtins
    from ..errors import DataError, MachineError
    from ..runtime.trt.plan_file import check_plan

    check = check_plan(plan)
    verdict = "will not load here"
    if check.loads:
        verdict = "should load here" if check.sidecar else _LONE
    lines = [f"{plan}: {check.backend} {check.version}, {verdict}"]
    lines += [f"  {problem}" for problem in check.problems]
    if check.hint:
        lines.append(f"  {check.hint}")
    output.result(to_builtins(check), "\n".join(lines))
    if not check.loads:
        error = DataError if check.damaged else MachineError
        click.get_current_context().exit(error.exit_code)
