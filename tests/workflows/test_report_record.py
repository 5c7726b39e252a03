"""A report needs the run's records alone, and says one number for one quantity."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_device import Bench

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--policy", "random", "--episodes", "6", "--calibration-images", "64", "--reward-images", "32",
          "--latency-ratio", "0.7", "--run", "one", "--quiet")  # fmt: skip
RUN = Path("amc-workspace/runs/one")


def done(amc: Amc, *words: str) -> str:
    code, out, err = amc(*words)
    assert code == 0, err
    return out


def report(amc: Amc) -> dict[str, Any]:
    document = json.loads(done(amc, "report", "--json"))
    return {key: value for key, value in document.items() if key != "created"}


def test_a_report_needs_neither_network_nor_table_nor_runtime(amc: Amc, monkeypatch: pytest.MonkeyPatch) -> None:
    done(amc, *SEARCH)
    done(amc, "export", "--onnx", "--quiet")
    before = report(amc)
    assert len(before["layers"]) == 4 and all(layer["ms_after"] for layer in before["layers"])
    assert {point["kind"] for point in before["predictions"]["points"]} == {"calibration", "search", "final"}
    assert before["kept_groups"] and before["predictions"]["drift"] == pytest.approx(1.0)
    Path("net.py").unlink()
    Path("amc-workspace/table.sqlite").unlink()
    Path("amc-workspace/templates").unlink()
    monkeypatch.setattr("amc_mobile.workflows.devices.installed_runtimes", lambda: ())
    assert report(amc) == before


def test_a_run_without_the_record_is_refused_with_the_next_step(amc: Amc) -> None:
    done(amc, *SEARCH)
    (RUN / "details.json").write_text('{"format_version": 1, "layers": 3}')
    code, _, err = amc("report")
    assert code == 1 and "details.json" in err and "amc-mobile search` again" in err
    (RUN / "details.json").unlink()
    code, _, err = amc("report")
    assert code == 1 and "no details yet" in err and "amc-mobile search`" in err
    done(amc, *SEARCH)
    assert report(amc)["layers"]


def test_a_report_says_how_to_make_the_run_again_and_keeps_every_run(amc: Amc) -> None:
    done(amc, *SEARCH)
    done(amc, "finetune", "--epochs", "1", "--quiet")
    done(amc, "export", "--onnx", "--quiet")
    document = report(amc)
    commands = [shlex.split(command) for command in document["commands"]]
    assert [words[:2] for words in commands] == [
        ["amc-mobile", step] for step in ("profile", "search", "finetune", "export", "report")
    ]
    assert {"--latency-ratio", "0.7", "--policy", "random"} <= set(commands[1]) and commands[3][2:] == ["--onnx"]
    for words in commands:  # every flag is one that the command takes
        assert amc(words[1], "--help")[0] == 0
        assert {word for word in words if word.startswith("--")} <= set(amc(words[1], "--help")[1].split())
    assert set(document["hashes"]) == {"weights of the original", "training images", "test images"}
    assert [row["file"] for row in document["passes"]][:2] == ["original", "pruned"]
    assert {node for layer in document["layers"] for node in layer["nodes"]}


def test_two_runs_are_compared_and_exit_3_says_that_the_later_is_worse(amc: Amc, bench: Bench) -> None:
    done(amc, *SEARCH)
    done(amc, "export", "--onnx", "--quiet")
    done(amc, "report")
    kept = Path("kept.json")
    kept.write_bytes((RUN / "report.json").read_bytes())
    document = json.loads(done(amc, "report", "--compare", "one", str(kept), "--json"))
    assert (document["verdict"], document["p50_change"]["value"]) == ("WITHIN TOLERANCE", pytest.approx(0.0))
    slower = json.loads(kept.read_text())
    for row in slower["passes"]:
        row["samples_ms"] = [ms * (1.5 if row["file"] == "pruned" else 1.0) for ms in row["samples_ms"]]
    kept.write_text(json.dumps(slower))
    code, out, err = amc("report", "--compare", "one", str(kept))
    assert code == 3 and out.startswith("WORSE") and "slower by 50.0 %" in err
    assert amc("report", "--compare", "one", str(kept), "--tolerance", "0.6")[0] == 0


def test_a_share_of_an_original_that_became_slower_is_shown_with_both_its_values(amc: Amc, bench: Bench) -> None:
    done(amc, *SEARCH)
    searched = json.loads((RUN / "search.json").read_text())["budget"]["limit"]
    assert report(amc)["budget"]["searched_limit"] is None
    bench.slowdown = lambda label: 1.25
    done(amc, "export", "--onnx", "--quiet")
    budget = report(amc)["budget"]
    assert budget["limit"] == pytest.approx(1.25 * searched)
    assert budget["searched_limit"] == pytest.approx(searched)
    text = done(amc, "report")
    assert "took 1.250 times as long at the export as when the search began" in text
    # One number everywhere: the search's plans are drawn on the scale of the export.
    page = (RUN / "report.html").read_text()
    assert f">budget {1.25 * searched:.4g}<" in page and f"budget {searched:.4g}" not in page
    predicted = json.loads((RUN / "search.json").read_text())["predicted_cost"]
    document = report(amc)
    (chosen,) = {point["predicted"] for point in document["episodes"] if point["is_best"]}
    assert chosen == pytest.approx(1.25 * predicted) == document["pruned"]["predicted_ms"]


def test_the_headline_before_the_export_is_that_of_the_weights_it_would_take(amc: Amc) -> None:
    done(amc, *SEARCH)
    done(amc, "finetune", "--epochs", "1", "--quiet")
    stages = {stage["name"]: stage for stage in report(amc)["stages"]}
    tuned = stages["fine-tuned"]
    best = "refitted" if "not kept" in tuned["note"] else "fine-tuned"
    assert report(amc)["pruned"]["accuracy"] == stages[best]["accuracy"]
