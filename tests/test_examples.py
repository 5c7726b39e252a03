"""The examples as their readers run them, and that they need the public names alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "notebook.ipynb"

# These measure parts of the toolchain by themselves (templates, predictors, devices, least squares), switch a part off
# (the agent's updates) or make runs with what only the commands' own settings give. The set may shrink: what the public
# names can do moves to them.
DEEPER_BENCHMARKS = {
    "adb_overhead.py", "episode_cost.py", "exact_plans.py", "finetuning_recipes.py",
    "interpolators.py", "latency_prediction.py",
    "learning_curves.py", "pixel1_budget.py", "proxies.py", "runner_agreement.py",
}  # fmt: skip


def environment() -> dict[str, str]:
    """As a reader has it: the checkout is importable, and random weights are not allowed for."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AMC_MOBILE_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def output_of(script: str, folder: Path) -> str:
    """What a script prints that writes into `space`, a folder in `folder`, and nowhere else there."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), "space"], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["space"]
    return done.stdout


def only_run(space: Path) -> Path:
    (search,) = space.glob("runs/*/search.json")
    return search.parent


def deep_imports(source: str) -> set[str]:
    """The modules and private names of amc_mobile that are imported other than by `import amc_mobile`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("amc_mobile.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "amc_mobile":
            found.add(str(node.module))
    return found


def notebook_code() -> str:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def test_quickstart_trains_profiles_searches_exports_and_reports(tmp_path: Path) -> None:
    printed = output_of("quickstart.py", tmp_path)
    assert "test images after 2 epochs" in printed
    assert " ms, predictions within " in printed
    assert "exported the" in printed and "p50" in printed
    run = only_run(tmp_path / "space")
    assert {"model.onnx", "report.html", "report.json", "layers.csv"} <= {path.name for path in run.iterdir()}


def test_own_network_is_pruned_by_hand_and_by_a_search(tmp_path: Path) -> None:
    printed = output_of("own_network.py", tmp_path)
    assert "channels: {'first': 32, 'second': 64}" in printed
    assert "by hand: 19652 -> 2836 parameters" in printed
    assert " MACs\n" in printed
    assert "by search: 19652 -> " in printed
    assert (only_run(tmp_path / "space") / "pruned.safetensors").exists()


def test_notebook_shows_frames_and_a_chart(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env=environment() | {"IPYTHONDIR": str(tmp_path / "ipython")})
    shown = [
        (kind, str(value))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for kind, value in output.get("data", {}).items()
    ]
    frames = [html for kind, html in shown if kind == "text/html" and 'class="dataframe"' in html]
    assert len(frames) == 3
    for frame, column in zip(frames, ("ms", "reward", "ms_before"), strict=True):
        assert column in frame
    assert sum("vegaEmbed" in html for kind, html in shown if kind == "text/html") == 1
    assert only_run(tmp_path / "amc-workspace")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_need_the_public_names_alone(path: Path) -> None:
    assert deep_imports(path.read_text()) == set()


def test_the_notebook_needs_the_public_names_alone() -> None:
    assert deep_imports(notebook_code()) == set()


def test_no_further_benchmark_imports_modules_of_the_package() -> None:
    deeper = {path.name for path in (ROOT / "scripts/benchmarks").glob("*.py") if deep_imports(path.read_text())}
    assert deeper == DEEPER_BENCHMARKS, "a benchmark that needs the public names alone leaves the set; none joins it"
