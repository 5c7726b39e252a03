from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import build

from amc_mobile.errors import InvalidConfig, InvalidInput, MissingDependency
from amc_mobile.models.loading import ExpectedInput, expected_input, load_model, name_module, weights_sha256
from amc_mobile.models.task import CLASSIFICATION

USER_FILE = """
import torch
def net(num_classes=3, input_size=20):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(8, num_classes))
def fixed():
    return net(2)
def wrong():
    return "a network"
def maps():
    return torch.nn.Conv2d(3, 8, 3)
def weightless():
    return torch.nn.Flatten()
def grey(in_channels=1):
    return torch.nn.Sequential(torch.nn.Conv2d(in_channels, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(8, 4), torch.nn.Softmax(1))
"""


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    return str(path)


def test_the_same_seed_gives_the_same_weights_and_leaves_other_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (load_model("resnet20", seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first["conv1.weight"], same["conv1.weight"])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_a_loaded_network_is_ready_to_evaluate() -> None:
    loaded = load_model("mobilenet_v1", num_classes=4, width_multiplier=0.25, input_size=32)
    assert not any(module.training for module in loaded.module.modules())
    assert (loaded.num_classes, loaded.input_shape) == (4, (1, 3, 32, 32))


def test_a_user_s_function_gets_the_arguments_it_takes(user_file: str) -> None:
    loaded = load_model(f"{user_file}:net", num_classes=5)
    assert (loaded.num_classes, loaded.input_shape) == (5, (1, 3, 20, 20))
    assert load_model(f"{user_file}:fixed", input_size=16).num_classes == 2
    assert load_model(f"{user_file}:grey", input_size=(9, 14)).input_shape == (1, 1, 9, 14)
    assert load_model("resnet20", width_multiplier=0.25, in_channels=1).input_shape == (1, 1, 32, 32)
    assert expected_input(f"{user_file}:grey") == ExpectedInput(None, 1, None)


@pytest.mark.parametrize(
    ("spec", "options", "error", "message", "next_step"),
    [
        (":fixed", {"num_classes": 5, "input_size": 16}, InvalidInput, "gives 2 outputs, 5 classes", ""),
        (":wrong", {"input_size": 12}, InvalidInput, "returned a str", ""),
        (":maps", {"input_size": 12}, InvalidInput, r"gave \(1, 8, 10, 10\)", ""),
        (":weightless", {"input_size": 12}, InvalidInput, "no weights", ""),
        (":fixed", {}, InvalidConfig, "does not say for which images", "--data"),
        (":net", {"width_multiplier": 0.5}, InvalidConfig, "takes no width_multiplier", ""),
        ("resnet20", {"input_size": (9, 14)}, InvalidConfig, "takes square images, not 9x14", "--input-size"),
        ("vgg16", {"input_size": 8}, InvalidConfig, "at least 32 pixels, got 8", ""),
        ("mobilenet_v9", {}, InvalidInput, "'mobilenet_v9'", "mobilenet_v2"),
        (
            "Net@0123456789ab",
            {},
            InvalidInput,
            "Net@0123456789ab was given as a Python object",
            "pass the module again",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_way_out(
    user_file: str, spec: str, options: dict[str, Any], error: type[Exception], message: str, next_step: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        load_model(user_file + spec if spec.startswith(":") else spec, **options)
    assert next_step in refused.value.next_step


def test_a_softmax_inside_the_network_is_warned_of(user_file: str, caplog: pytest.LogCaptureFixture) -> None:
    load_model(f"{user_file}:fixed", input_size=12)
    assert "softmax" not in caplog.text
    load_model(f"{user_file}:grey", input_size=12)
    assert "ends in a softmax" in caplog.text


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_not_installed_is_named(library: str) -> None:
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    with pytest.raises(MissingDependency, match=library) as caught:
        load_model(f"{library}:resnet18")
    minor = int(torch.__version__.split(".")[1])
    assert f"'torchvision==0.{minor + 15}.*'" in caught.value.next_step  # pip would take the newest and another torch
    assert ("timm" in caught.value.next_step) == (library == "timm")


def test_the_pages_install_the_torch_of_the_tests_and_the_torchvision_made_for_it() -> None:
    root = Path(__file__).parents[2]
    tested = re.findall(r"torch==([\d.]+)", (root / "scripts/setup").read_text())
    pages = "".join(page.read_text() for page in (root / "README.md", *(root / "docs").glob("*.md")))
    assert set(re.findall(r"torch==([\d.]+)", pages)) == set(tested)
    assert set(re.findall(r"torchvision==([\d.]+)", pages)) <= {f"0.{int(tested[0].split('.')[1]) + 15}.0"}


def test_a_library_that_does_not_fit_torch_is_told_apart_from_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(InvalidInput, match=r"timm is installed but cannot be imported with torch .*: RuntimeError"):
        load_model("timm:resnet18")


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18"])
def test_a_library_s_network_is_built(spec: str) -> None:
    library = spec.partition(":")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is an optional library and not installed")
    loaded = load_model(spec, num_classes=6, input_size=64)
    assert loaded.num_classes == 6


TORCHVISION = """
import enum
from types import SimpleNamespace
import torch


def net(value, classes):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                torch.nn.Linear(8, classes))
    torch.nn.init.constant_(model[0].weight, value)
    return model


BEST = SimpleNamespace(meta={"categories": list("abcd")})


def list_models(module):
    return ["tiny", "unreachable"]


def get_model_weights(name):
    return SimpleNamespace(DEFAULT=BEST)


def get_model(name, weights=None, num_classes=4):
    if weights is not None and name == "unreachable":
        raise OSError("no route to host")
    return net(0.25 if weights is BEST else 0.5, num_classes)
"""


def test_a_library_s_network_has_its_published_weights_where_the_classes_are_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("")
    (tmp_path / "torchvision/models.py").write_text(TORCHVISION)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def first_weight(name: str, classes: int) -> float:
        caplog.clear()
        return float(
            load_model(f"torchvision:{name}", num_classes=classes, input_size=8).module[0].weight.detach()[0, 0, 0, 0]
        )

    assert first_weight("tiny", 4) == 0.25
    assert "torchvision:tiny has its published weights" in caplog.text
    assert first_weight("tiny", 5) == 0.5
    assert not caplog.text
    assert first_weight("unreachable", 4) == 0.5
    assert "has random weights, since its published ones cannot be had: OSError: no route to host" in caplog.text


def test_guessing_is_told_from_having_learnt() -> None:
    labels = torch.arange(90) % 3
    answers = torch.nn.functional.one_hot(labels, 3).float()
    assert CLASSIFICATION.is_guessing(answers[:, [1, 2, 0]], labels)
    assert CLASSIFICATION.is_guessing(torch.eye(3)[torch.zeros(90, dtype=torch.int64)], labels)
    assert not CLASSIFICATION.is_guessing(answers, labels)


def test_a_module_object_is_known_by_its_class_and_weights_and_is_never_changed() -> None:
    module = build("Chain")
    name = name_module(module, (1, 3, 16, 16))
    assert name == f"Chain@{weights_sha256(module)[:12]}"
    loaded = load_model(name, num_classes=5)
    assert loaded.input_shape == (1, 3, 16, 16) and loaded.num_classes == 5 and expected_input(name).size == 16
    with torch.no_grad():
        next(loaded.module.parameters()).zero_()
    assert weights_sha256(load_model(name).module) == weights_sha256(module) != weights_sha256(loaded.module)


def test_an_example_input_that_is_no_batch_of_images_is_refused() -> None:
    with pytest.raises(InvalidInput, match="example input has the shape"):
        name_module(build("Chain"), (3, 16, 16))
