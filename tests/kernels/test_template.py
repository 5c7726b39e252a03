from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.errors import CorruptFile, InvalidConfig
from amc_mobile.kernels.template import Template, load_or_build

SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12, 5)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) if self._activation == "relu" else torch.tanh(self.first(x))
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


def net(activation: str = "relu", seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(activation).eval()


def build(model: nn.Module, folder: Path, stages: list[tuple[str, int, int]] | None = None) -> Template:
    groups = find_groups(model, torch.zeros(SHAPE))
    return load_or_build(
        model, groups, "onnxruntime", folder, progress=None if stages is None else lambda *s: stages.append(s)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates")
    build(net(), path)
    return path


def exports(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.onnx")}


def test_a_second_load_exports_nothing_and_gives_the_same_kernels(folder: Path) -> None:
    before, stages = exports(folder), list[tuple[str, int, int]]()
    one, other = build(net(), folder), build(net(), folder, stages)
    assert exports(folder) == before
    assert stages[-1] == ("export for onnxruntime", 2, 2)
    assert [k.key for k in one.kernels(one.sizes)] == [k.key for k in other.kernels(other.sizes)]
    assert one.model_at({}) == other.model_at({})


def test_other_weights_get_files_of_their_own(folder: Path) -> None:
    before = exports(folder)
    build(net(seed=1), folder)
    assert before.items() < exports(folder).items()


def test_an_edited_forward_is_exported_anew(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "templates")
    edited = build(net("tanh"), place)
    assert "Tanh" in [o.name for kernel in edited.kernels(edited.sizes) for o in kernel.operators]
    assert len(exports(place)) == len(exports(folder))


def test_a_broken_file_is_named_and_made_anew_once_deleted(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "templates")
    files = list(place.rglob("original.onnx"))  # other tests may have added templates of other weights
    for broken in files:
        broken.write_bytes(b"not a model")
    with pytest.raises(CorruptFile, match=r"original\.onnx"):
        build(net(), place)
    for broken in files:
        broken.unlink()
    assert build(net(), place).sites


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(InvalidConfig, match="ncnn"):
        load_or_build(model, find_groups(model, torch.zeros(SHAPE)), "ncnn", tmp_path)


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    model = net()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    build(model, folder)
    assert model.training
    assert all(np.array_equal(tensor, before[name]) for name, tensor in model.state_dict().items())
