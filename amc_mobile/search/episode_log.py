"""The search's log: one CSV line per episode, and beside it what a killed search needs to go on.

A line is complete when it ends in a newline; a torn last line is dropped when the log is opened again. All
numbers are written with full precision, because a search continues by observing its log again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.store import MAX_TEXT_BYTES, append_text, from_document, read_bytes, read_json, write_json, write_text

FORMAT_VERSION = 1  # 1: first

LONGEST_SHOWN = 100  # characters of two values that differ
ANOTHER = "start another run"
# Instead of a policy, on lines that are no episode:
CHECK = "check"  # only measures the plan of an earlier episode
RESIZE = "resize"  # a plan that was measured, scaled to the budget


@dataclass(frozen=True)
class EpisodeRow:
    """One line. Costs in the budget's unit unless the name says another; None is an empty cell."""

    episode: int  # from 0; a check carries the episode that scored its plan, a resize the last one before it
    policy: str  # where the plan came from
    reward: float
    top1: float | None
    fidelity: float | None
    predicted_cost: float  # by the cost model as it was when the plan was proposed
    limit: float  # that the plan was held to: the budget, or less after plans measured over it
    measured_ms: float | None
    ci_high_ms: float | None
    macs: float | None
    parameters: float | None
    reconstruction_s: float  # of this process's CPU, as the next two
    evaluation_s: float
    agent_s: float
    latency_s: float  # waited for measurements
    widths: tuple[int, ...]  # kept channels in group order

    @property
    def is_episode(self) -> bool:
        """Whether a policy proposed the plan, and learns from it."""
        return self.policy not in (CHECK, RESIZE)

    @property
    def cost(self) -> float:
        """Measured where it was, else predicted."""
        return self.predicted_cost if self.measured_ms is None else self.measured_ms


@dataclass(frozen=True)
class Pending:
    """What the next line will be about. A measurement may change the cost model before the line is written: a
    search that was killed in between could not decide the same again."""

    policy: str
    widths: tuple[int, ...]
    predicted_cost: float
    limit: float
    measuring: bool = False  # it has been decided that this plan is measured


COLUMNS = tuple(column.name for column in fields(EpisodeRow))


class EpisodeLog:
    """The lines at `path` (.csv) and the header beside it (.json).

    `identity` is what must not change when a search goes on (model, data, reward ...): JSON values.
    """

    def __init__(self, path: Path, *, identity: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.header_path = path.with_suffix(".json")
        self.identity = dict(identity or {})
        self.rows: list[EpisodeRow] = _read_rows(path)
        self._header: dict[str, Any] = {}
        if self.header_path.exists():
            self._header = read_json(self.header_path, format_version=FORMAT_VERSION, next_step=ANOTHER)
            if not isinstance(self._header["policy"], dict) or not isinstance(self._header["settings"], dict):
                raise CorruptFile(self.header_path, "holds values of a wrong kind", next_step=ANOTHER)
        elif self.rows:
            raise CorruptFile(path, f"its header {self.header_path.name} is missing", next_step=ANOTHER)

    @property
    def started(self) -> bool:
        return bool(self._header)

    @property
    def policy_document(self) -> dict[str, Any]:
        return dict(self._header["policy"])

    def start(self, policy_document: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Writes the header, unless the search has started: then checks that it is the same search.

        Raises InvalidInput, naming what differs; what is in one of the two only differs too.
        """
        settings = {**self.identity, **settings}
        if not self.started:
            write_text(self.path, ",".join(COLUMNS) + "\n")
            self._write_header({"policy": dict(policy_document), "settings": settings, "pending": None})
            return
        self._refuse_others(settings, self._header["settings"].keys() | settings.keys())
        # Repairs a torn last line, and a header that was written before the first line of columns was.
        write_text(self.path, ",".join(COLUMNS) + "\n" + "".join(_line(row) for row in self.rows))

    def check_identity(self) -> None:
        """Raises InvalidInput, naming what differs, where the log has been started by a search of another identity."""
        if self.started:
            self._refuse_others(self.identity, self.identity.keys())

    def _refuse_others(self, settings: Mapping[str, Any], keys: Iterable[str]) -> None:
        before = self._header["settings"]
        for key in sorted(keys):
            old, new = before.get(key), settings.get(key)
            if old != new:
                values = f"was {old!r}, now {new!r}"
                differs = f"{key.removeprefix('search.')} {values if len(values) < LONGEST_SHOWN else 'differ'}"
                raise InvalidInput(
                    f"{self.path.parent.name} is the run of another search: {differs}",
                    next_step="pass what it was begun with, or `amc-mobile search --run NAME`, or another --workspace",
                )

    @property
    def pending(self) -> Pending | None:
        """The plan that was being scored or measured when the search was stopped."""
        document = self._header.get("pending")
        if document is None:
            return None
        try:
            values = dict(document)
            if values.pop("line") != len(self.rows):
                return None
            pending = from_document(Pending, values, "pending")
            return replace(pending, widths=tuple(map(_width, pending.widths)))
        except (InvalidInput, KeyError, TypeError, ValueError, OverflowError) as error:
            why = f"its pending plan cannot be read ({error})"
            raise CorruptFile(self.header_path, why, next_step=ANOTHER) from error

    def begin(self, pending: Pending) -> None:
        """Notes a plan before it is scored or measured."""
        self._write_header({**self._header, "pending": {"line": len(self.rows), **asdict(pending)}})

    def append(self, row: EpisodeRow) -> None:
        append_text(self.path, _line(row))
        self.rows.append(row)

    def seconds(self) -> dict[str, float]:
        """What all lines together took, by part: CPU seconds, and seconds waited for measurements."""
        parts = ("reconstruction", "evaluation", "agent", "latency")
        return {part: float(sum(getattr(row, f"{part}_s") for row in self.rows)) for part in parts}

    def _write_header(self, header: dict[str, Any]) -> None:
        write_json(self.header_path, header, format_version=FORMAT_VERSION)
        self._header = header


def _line(row: EpisodeRow) -> str:
    buffer = io.StringIO()
    cells = [getattr(row, name) for name in COLUMNS[:-1]]
    csv.writer(buffer, lineterminator="\n").writerow([*cells, " ".join(map(str, row.widths))])
    return buffer.getvalue()


def _read_rows(path: Path) -> list[EpisodeRow]:
    if not path.exists():
        return []
    text = read_bytes(path, MAX_TEXT_BYTES).decode(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines:
        return []
    if tuple(lines[0].split(",")) != COLUMNS:
        raise CorruptFile(path, "the first line does not hold the columns of an episode log")
    rows: list[EpisodeRow] = []
    try:
        for cells in csv.reader(lines[1:]):
            rows.append(_row(dict(zip(COLUMNS, cells, strict=True))))
    except (ValueError, csv.Error) as error:
        raise CorruptFile(path, f"line {len(rows) + 2}: {error}", next_step=ANOTHER) from error
    return rows


def _width(value: object) -> int:
    width = int(value) if isinstance(value, str | int) else 0
    if not 1 <= width < 2**31:
        raise ValueError(f"{str(value)[:40]} is no number of channels")
    return width


_READ: Mapping[str, Callable[[str], object]] = {  # by the type of a column
    "int": int,
    "str": str,
    "float": float,
    "float | None": lambda cell: float(cell) if cell else None,
    "tuple[int, ...]": lambda cell: tuple(map(_width, cell.split())),
}


def _row(cells: Mapping[str, str]) -> EpisodeRow:
    return EpisodeRow(**{column.name: _READ[str(column.type)](cells[column.name]) for column in fields(EpisodeRow)})  # type: ignore[arg-type]
