"""The page in a real browser: no console message, no request, and the numbers of report.json."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_example import finished_report

from amc_mobile.report.pages import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=1280,4000",
)  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, dict[str, Any], Path]:
    """The document after its script has run, what the browser said, its log of requests, and the report's folder."""
    folder = tmp_path_factory.mktemp("browser")
    write_report(finished_report(), folder)
    log = folder / "requests.json"
    done = subprocess.run(
        [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom",
         (folder / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr, json.loads(log.read_text()), folder


def test_every_chart_is_drawn_and_the_console_stays_empty(opened: tuple[str, str, dict[str, Any], Path]) -> None:
    dom, said, _, _ = opened
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []
    places = re.findall(r'<div class="chart.*?</div>\s*<script type="application/json">', dom, flags=re.DOTALL)
    assert len(places) == 8 and all("<svg" in place for place in places)


def test_the_page_asks_for_nothing(opened: tuple[str, str, dict[str, Any], Path]) -> None:
    requests = [
        event["params"]
        for event in opened[2]["events"]
        if "url" in event.get("params", {}) and "initiator" in event["params"]
    ]
    # What the browser itself asks for has no origin.
    asked = [request for request in requests if request["initiator"] != "not an origin"]
    assert {request["url"] for request in asked if not request["url"].startswith("file:")} == set()


def test_the_numbers_on_the_page_are_those_of_the_document(opened: tuple[str, str, dict[str, Any], Path]) -> None:
    dom, _, _, folder = opened
    report = json.loads((folder / "report.json").read_text())
    pruned, original, verdict = report["pruned"], report["original"], report["verdict"]
    text = re.sub(r"<script.*?</script>|<style.*?</style>", "", dom, flags=re.DOTALL).replace("\xa0", " ")
    tiles = dict(
        re.findall(r'class="label">(.*?)</span><span class="figure">(.*?)</span>', text.replace("&nbsp;", " "))
    )
    assert tiles == {
        "latency p50": f"{pruned['latency']['p50_ms']:.3f} ms",
        "budget used": f"{100 * verdict['budget_used']:.1f} %",
        "speed-up": f"{report['speedup']['value']:.2f}x",
        "top-1": f"{100 * pruned['accuracy']['top1']:.1f} %",
        "MACs": f"{pruned['macs'] / 1e6:.2f} M",
        "parameters": f"{pruned['parameters'] / 1e3:.0f} k",
        "predicted": f"{pruned['predicted_ms']:.3f} ms",
        "ran on": "CPU",
    }
    assert re.search(rf"<b>{verdict['status']}</b>", text)
    for value in (original["latency"]["p50_ms"], report["budget"]["limit"], original["latency"]["load_ms"]):
        assert f"{value:.4g}" in text
    for layer in report["layers"]:
        assert layer["name"] in text and f"{layer['ms_before']:.4g}"[:6] in text
    data = [
        json.loads(one) for one in re.findall(r'<script type="application/json">(.*?)</script>', dom, flags=re.DOTALL)
    ]
    drawn = {row["ms"] for chart in data for rows in chart["datasets"].values() for row in rows if "round" in row}
    assert drawn == {float(f"{ms:.6g}") for one in report["passes"] for ms in one["samples_ms"]}
