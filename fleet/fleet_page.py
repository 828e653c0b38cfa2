"""The page of a fleet: boards grouped by kind, sorted by any column; one file, offline, without scripts.

Each row carries its rank in every order as a CSS variable; a radio button chooses the variable that
the rows are laid out by.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MachineError, install_hint
from ..runtime.evaluation.gates import CANNOT_JUDGE, FAILED, PASSED
from .board_evidence import BoardEvidence, EngineEvidence, reason_text
from .outliers import engine_kinds

if TYPE_CHECKING:
    from .fleet_report import FleetReport

Row = tuple[BoardEvidence, EngineEvidence]

_SEVERITY = {FAILED: 0, CANNOT_JUDGE: 1, PASSED: 2}

_ORDERS: Mapping[str, tuple[str, Callable[[Row], Any]]] = {
    "trouble": (
        "what needs attention",
        lambda row: (_SEVERITY[row[0].verdict], not row[0].outliers, row[0].board),
    ),
    "name": ("board", lambda row: row[0].board),
    "tar": ("TAR", lambda row: _last(row[1].tar)),
    "cosine": ("cosine", lambda row: _last(row[1].cosine)),
    "p50": ("p50", lambda row: _last(row[1].p50_ms, largest_first=True)),
    "p99": ("p99", lambda row: _last(row[1].p99_ms, largest_first=True)),
    "mj": ("energy", lambda row: _last(row[1].energy_mj, largest_first=True)),
    "mb": ("memory", lambda row: _last(row[1].memory_mb, largest_first=True)),
    "heat": ("temperature", lambda row: _last(row[1].temperature_c, largest_first=True)),
}
"""Order -> its title, and the key of a row; the first is shown at the begin."""


def fleet_page(report: "FleetReport") -> str:
    """A fleet's report as an HTML page.

    Args:
        report: The merged evidence.

    Returns:
        The page; nothing in it is loaded from elsewhere.

    Raises:
        MachineError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MachineError(
            f"the page needs the package {error.name}, which is not installed here",
            install_hint("fleet", "jinja2"),
        ) from error
    by_name = {board.board: board for board in report.boards}
    tables = []
    for key, rows in engine_kinds(report.boards).items():
        group = next(g for g in report.groups if _key(g) == key)
        tables.append((group, _ranked([(by_name[board], engine) for board, engine in rows])))
    tables.sort(key=lambda table: report.groups.index(table[0]))
    troubled = [b for b in report.boards if b.verdict != PASSED or b.outliers]
    text: str = _template(jinja2).render(
        report=report,
        tables=tables,
        troubled=[(board, *reason_text(board)) for board in troubled],
        orders=[(name, title) for name, (title, _) in _ORDERS.items()],
    )
    return text


def _key(group: Any) -> tuple[str, str, str, str, str]:
    return group.kind, group.jetpack, group.tensorrt, group.precision, group.backend


def _ranked(rows: Sequence[Row]) -> list[tuple[BoardEvidence, EngineEvidence, str]]:
    """Each row with its rank in every order, as CSS."""
    ranks: list[list[str]] = [[] for _ in rows]
    first: list[int] = []
    for name, (_, key) in _ORDERS.items():
        order = sorted(range(len(rows)), key=lambda index: key(rows[index]))
        first = first or order
        for rank, index in enumerate(order, 1):
            ranks[index].append(f"--{name}:{rank}")
    return [(*rows[index], ";".join(ranks[index])) for index in first]


def _last(value: float | None, *, largest_first: bool = False) -> tuple[bool, float]:
    """A key that puts rows without a figure at the end."""
    if value is None:
        return True, 0.0
    return False, -value if largest_first else value


@cache
def _template(jinja2: Any) -> Any:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("fleet.html")
