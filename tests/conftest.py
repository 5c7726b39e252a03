"""Golden files: what users see, kept in tests/golden. `pytest --renew-golden` writes them anew; review the diff."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from arm64_sandbox import fetch_hint
from fault_summary import cells, fault_table

os.environ["AMC_MOBILE_UNTRAINED"] = "1"  # most networks of the tests have random weights
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-golden", action="store_true", help="write tests/golden anew instead of comparing with it")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults, and how to run what was skipped.

    Here, since under xdist the process that prints reads only the tests' first conftest.
    """
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found = [cell for report in reports for cell in cells(getattr(report, "user_properties", ()))]
    if found:
        terminalreporter.section("faults during commands")
        for line in fault_table(list(dict.fromkeys(found))):
            terminalreporter.write_line(line)
    if hint := fetch_hint(str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.write_line(hint)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text) asserts that `text` equals tests/golden/name."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--renew-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        assert path.exists(), f"no {path}; write it with pytest --renew-golden"
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; if that is right: pytest --renew-golden"

    return compare
