"""The Python API, as its users call it: on this computer, with a small network."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import amc_mobile as amc

ROOT = Path(__file__).parent.parent
SMALL = {"calibration_images": 64, "reward_images": 32, "min_keep_ratio": 0.1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(maps.mean((2, 3)))


def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        return generator.integers(0, 256, (count, 1, 32, 32), np.uint8), generator.integers(0, 10, count)

    return part(300), part(50)


def test_importing_the_package_loads_neither_torch_nor_pandas() -> None:
    program = "import sys, amc_mobile; print({'torch', 'pandas', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_loaded_and_typed() -> None:
    for name in amc.__all__:
        assert getattr(amc, name) is not None
    assert dir(amc) == sorted(amc.__all__)
    tree = ast.parse((ROOT / "amc_mobile/__init__.py").read_text())
    typed = {
        f"{node.module}.{alias.name}"
        for block in tree.body if isinstance(block, ast.If)
        for node in block.body if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert typed == {f"amc_mobile.{module}.{name}" for name, module in amc._MODULES.items()}
    with pytest.raises(AttributeError, match="Workspaec"):
        amc.Workspaec  # noqa: B018
    with pytest.raises(ImportError):
        importlib.import_module("amc_mobile.Workspace")


def test_a_network_is_profiled_searched_finetuned_exported_and_reported(tmp_path: Path) -> None:
    space = amc.Workspace(tmp_path / "space")
    device = amc.open_device("host", runtime="onnxruntime", waive=["BUSY", "WIDE_BAND"])
    network = space.network(Net(), example_input=torch.zeros(1, 1, 32, 32), data=data())
    stages = []
    latency = space.profile(network, device, quick=True, progress=lambda stage, *_: stages.append(stage))
    assert "measure kernels" in stages
    assert latency.conditions.runtime == "onnxruntime"
    assert 0 < latency.band < 10
    assert {"operator", "kernel", "low_ms", "p50_ms", "passes", "flags"} <= set(latency.to_frame().columns)
    assert latency.result.kernels == len(latency.to_frame())
    full = amc.PruningPlan.full(network.groups.channels)
    assert latency.p50_ms() == latency.p50_ms(full) > latency.p50_ms(full.keeping("second", 0.25)) > 0

    budget = amc.Budget(latency_ratio=0.7)
    run = space.search(network, budget, latency, episodes=4, policy="random", untrained=True, measure_every=0, **SMALL)
    assert run.plan().channels == network.groups.channels
    episodes = run.episodes()
    # Which plans are measured beside the episodes, and resized, depends on how long they take here.
    assert len(episodes[~episodes.policy.isin(["check", "resize"])]) == 4
    assert {"name", "ms_before", "ms_after"} <= set(run.layers().columns)

    run.finetune(epochs=1)
    files = run.export("onnx", kotlin=True)
    assert files.passed in (True, False)
    measured = files["onnx"].latency
    assert measured is not None and measured.p50_ms > 0
    assert 0 <= files["onnx"].accuracy <= 1
    assert amc.measure(files["onnx"].path, device).p50_ms > 0
    described = json.loads((run.folder / "model.json").read_text())
    file = described["files"]["model.onnx"]
    assert file["sha256"] == files["onnx"].sha256 == hashlib.sha256(Path(files["onnx"].path).read_bytes()).hexdigest()
    assert file["latency"]["p50_ms"] == pytest.approx(measured.p50_ms, rel=1e-4)
    assert file["budgets"][0]["met"] is files.passed and file["accuracy"] == files["onnx"].accuracy
    assert [(end["name"], end["layout"]) for end in file["inputs"]] == [("images", "NCHW")]
    assert file["outputs"][0]["name"] == file["outputs"][0]["content"] == "logits"
    assert described["image"]["divisor"] == 255.0 and described["image"]["colours"] == "grey"
    assert described["plan"]["first"] == [32, run.plan().kept_channels["first"]]
    assert "to image" in (run.folder / "Classify.kt").read_text()
    assert (run.folder / "labels.txt").read_text().splitlines() == described["labels"] == [str(i) for i in range(10)]
    assert "report.html" in {path.name for path in run.report().paths}

    module = amc.load_pruned(run.folder)
    assert module(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert module.first.out_channels == run.plan().kept_channels["first"]
    assert space.run().folder == run.folder
    assert space.status().last_run == run.folder.name


def test_a_module_of_ones_own_is_trained_and_opened_with_the_new_weights(tmp_path: Path) -> None:
    space, module = amc.Workspace(tmp_path / "space"), Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    settings = {"example_input": torch.zeros(1, 1, 32, 32), "data": data()}
    result = space.train(module, epochs=1, **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    network = space.network(module, checkpoint=result.checkpoint, **settings)
    assert not torch.equal(network.module.first.weight, module.first.weight)
    assert amc.evaluate(network.module, network.dataset.test) == result.top1


def test_a_table_is_taken_to_another_workspace_and_used_without_the_device(tmp_path: Path) -> None:
    space, other = amc.Workspace(tmp_path / "space"), amc.Workspace(str(tmp_path / "other"))
    network = space.network(Net(), example_input=(1, 1, 32, 32), data=data())
    latency = space.profile(network, amc.open_device(runtime="onnxruntime", waive=["BUSY"]), quick=True)
    space.export_table(tmp_path / "table.jsonl")
    other.import_table(tmp_path / "table.jsonl")
    assert len(other.table().entries[0].kernels) == len(latency.to_frame())
    offline = {"runtime": "onnxruntime", "waive": ["WIDE_BAND"], "offline": True}  # a busy computer widens the band
    recorded = amc.open_device(latency.conditions.device, **offline)
    run = other.search(
        network, amc.Budget(latency_ratio=0.7), recorded, episodes=2, policy="uniform", untrained=True, **SMALL
    )
    files = run.export("onnx", offline=True)
    assert files.passed is None and files["onnx"].latency is None


def test_any_module_is_pruned_without_a_workspace() -> None:
    module, example = Net(), torch.zeros(1, 1, 32, 32)
    groups = amc.find_groups(module, example)
    pruned = amc.prune(module, {"first": 8}, example)
    assert groups.channels == {"first": 32, "second": 64}
    assert pruned.first.out_channels == pruned.second.in_channels == 8
    assert pruned(example).shape == (1, 10)


def test_wrong_values_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(amc.InvalidConfig, match="no_phone"):
        amc.open_device("no_phone")
    with pytest.raises(amc.InvalidConfig, match="runtime"):
        amc.open_device(runtime="caffe")
    space = amc.Workspace(tmp_path)
    with pytest.raises(amc.InvalidConfig, match="example input"):
        space.network(Net())
    with pytest.raises(amc.InvalidInput, match=r"model\.pt"):
        amc.measure("model.pt")
    network = space.network(Net(), example_input=(1, 1, 32, 32))
    with pytest.raises(amc.InvalidConfig, match="above 0 ms"):
        space.search(network, amc.Budget(latency_ms=-3))
    with pytest.raises(amc.InvalidConfig, match="ddgp"):
        space.search(network, amc.Budget(macs_ratio=0.5), policy="ddgp")
