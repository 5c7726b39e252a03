from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.models.loading import load_checkpoint, load_model, save_checkpoint


def small_net(seed: int, num_classes: int = 4) -> nn.Module:
    """A MobileNetV2 with batch-norm statistics that differ from the initial 0 and 1."""
    model = load_model("mobilenet_v2", num_classes=num_classes, width_multiplier=0.125, input_size=32, seed=seed).module
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9)))
    return result


def folded_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights with every batch norm folded into the convolution before it."""
    weights, conv_name = dict(model.state_dict()), ""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            conv_name = name
        elif isinstance(module, nn.BatchNorm2d):
            scale = module.weight / (module.running_var + module.eps).sqrt()
            weights[f"{conv_name}.weight"] = (weights[f"{conv_name}.weight"] * scale[:, None, None, None]).detach()
            weights[f"{conv_name}.bias"] = (module.bias - module.running_mean * scale).detach()
            weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
    return weights


def test_saved_weights_give_the_same_outputs_when_loaded(tmp_path: Path) -> None:
    original, other = small_net(1), small_net(2)
    save_checkpoint(original, tmp_path / "net.safetensors")
    load_checkpoint(other, tmp_path / "net.safetensors")
    assert torch.equal(outputs(other), outputs(original))
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_weights_that_share_memory_are_saved_too(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    save_checkpoint(tied, tmp_path / "net.safetensors")
    assert len(load_file(tmp_path / "net.safetensors")) == 4


def forms(weights: dict[str, Tensor]) -> dict[str, Any]:
    """As training scripts and libraries save weights."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {prefix + name: value for name, value in weights.items()}

    other = {name: torch.zeros_like(value) for name, value in weights.items()}
    return {
        "lightning": {"epoch": 3, "state_dict": under("model."), "optimizer_states": [{"state": {}}], "loops": {}},
        "lightning with a loss": {"state_dict": {**under("model."), "loss.weight": torch.ones(3)}},
        "net": {"net": weights, "acc": 93.5, "epoch": 7},
        "network": {"network": under("backbone.")},
        "model_state_dict": {"model_state_dict": weights, "optimizer_state_dict": {"state": {0: torch.ones(2)}}},
        "nested": {"checkpoint": {"generation": 2, "model": under("module.")}},
        "a prefix of its own": under("student.body."),
        "ema": {"epoch": 1, "model_ema": under("module.")},
        "ema besides the model": {"ema": other, "model": weights},
        "averaged": {"n_averaged": torch.tensor(4), **under("module.")},
        "compiled": {"model": under("_orig_mod."), "best_accuracy": 0.5},
        "compiled in lightning": {"state_dict": under("model._orig_mod.")},
        "compiled and parallel": {"state_dict": under("module._orig_mod."), "best_accuracy": 0.5},
    }


@pytest.mark.parametrize("form", forms({}))
def test_weights_are_loaded_as_people_save_them(tmp_path: Path, form: str) -> None:
    original, other = small_net(1), small_net(2)
    torch.save(forms(original.state_dict())[form], tmp_path / "net.ckpt")
    load_checkpoint(other, tmp_path / "net.ckpt")
    assert torch.equal(outputs(other), outputs(original))


def test_of_two_sets_that_fit_the_one_taken_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original, average, other = small_net(1), small_net(2), small_net(3)
    both = {"state_dict": original.state_dict(), "state_dict_ema": average.state_dict(), "optimizer": {"lr": 0.1}}
    torch.save(both, tmp_path / "net.pt")
    load_checkpoint(other, tmp_path / "net.pt")
    assert torch.equal(outputs(other), outputs(original))
    assert "'state_dict' are taken" in caplog.text and "'state_dict_ema' fit as well" in caplog.text
    caplog.clear()
    torch.save(forms(original.state_dict())["lightning"], tmp_path / "net.pt")
    load_checkpoint(other, tmp_path / "net.pt")
    assert not caplog.text


def test_a_network_inside_a_module_takes_the_weights_of_the_bare_one(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.model = small_net(seed)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    original, other = Wrapper(1), Wrapper(2)
    torch.save(original.model.state_dict(), tmp_path / "net.pt")
    load_checkpoint(other, tmp_path / "net.pt")
    assert torch.equal(outputs(other), outputs(original))


@pytest.mark.parametrize(("name", "save"), [("net.pt", save_file), ("net.safetensors", torch.save)])
def test_the_content_tells_the_form_whatever_the_name(tmp_path: Path, name: str, save: Callable[..., None]) -> None:
    original, other = small_net(1), small_net(2)
    save({key: value.clone() for key, value in original.state_dict().items()}, tmp_path / name)
    load_checkpoint(other, tmp_path / name)
    assert torch.equal(outputs(other), outputs(original))


def test_programs_are_named_with_the_way_to_their_weights(tmp_path: Path) -> None:
    net, image = nn.Sequential(nn.Conv2d(1, 2, 1)).eval(), torch.zeros(1, 1, 2, 2)
    torch.jit.trace(net, image).save(tmp_path / "jit.pt")
    torch.export.save(torch.export.export(net, (image,)), tmp_path / "program.pt2")
    (tmp_path / "onnx.pt").write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x052.9.0:\x10")
    (tmp_path / "lite.pt").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    np.savez(tmp_path / "weights.npz", a=np.zeros(2))
    load = "save its weights: torch.save(torch.jit.load('jit.pt').state_dict(), 'weights.pt')"
    for name, kind, next_step in (
        ("jit.pt", "a TorchScript file", load),
        ("keras.h5", "an HDF5 file, as Keras writes", "torch.save("),
        ("lite.pt", "a TFLite file", "torch.save("),
        ("onnx.pt", "an ONNX file", "torch.save("),
        ("program.pt2", "a program of torch.export", "torch.save("),
        ("weights.npz", "a NumPy archive", "torch.save("),
    ):
        with pytest.raises(InvalidInput, match=f"{name} is {kind}, not a file of weights") as caught:
            load_checkpoint(nn.Linear(2, 2), tmp_path / name)
        assert next_step in caught.value.next_step


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_are_refused_without_the_advice_to_run_them(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"a": np.ones(2), "b": Path("x")}, protocol))
    torch.save({"state_dict": {}, "config": Path("x")}, tmp_path / "net.pt")
    for name in ("net.pkl", "net.pt"):
        with pytest.raises(InvalidInput, match="could run code") as caught:
            load_checkpoint(nn.Linear(2, 2), tmp_path / name)
        assert "weights_only" not in caught.value.message + caught.value.next_step


def test_a_file_with_folded_batch_norms_gives_the_original_s_outputs(tmp_path: Path) -> None:
    original, other = small_net(1), small_net(2)
    torch.save(folded_weights(original), tmp_path / "folded.pt")
    load_checkpoint(other, tmp_path / "folded.pt")
    torch.testing.assert_close(outputs(other), outputs(original), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in other.modules())
    torch.export.export(other, (torch.zeros(1, 3, 32, 32),))


def test_a_misfit_is_refused_with_every_name_and_changes_nothing(tmp_path: Path) -> None:
    model = small_net(1)
    before = outputs(model)
    weights = folded_weights(small_net(2, num_classes=5))
    del weights["features.0.0.weight"]
    weights["extra"] = torch.zeros(1)
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(InvalidInput) as caught:
        load_checkpoint(model, tmp_path / "net.pt")
    assert "missing features.0.0.weight" in caught.value.message
    assert "unknown extra" in caught.value.message
    assert "classifier.bias (5,) for (4,)" in caught.value.message
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize(
    ("content", "message", "next_step"),
    [
        (nn.Linear(2, 2), "more than tensors", "state_dict()"),
        ([1, 2], "holds a list", "state_dict()"),
        ({"weight": torch.ones(2, 2), "bias": torch.full((2,), torch.nan)}, "undefined values in bias", "train again"),
    ],
)
def test_what_holds_no_usable_weights_is_refused(tmp_path: Path, content: Any, message: str, next_step: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InvalidInput, match=message) as caught:
        load_checkpoint(nn.Linear(2, 2), tmp_path / "net.pt")
    assert next_step in caught.value.next_step


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, I am text\n", b"PK\x03\x04 broken"])
def test_a_broken_file_is_corrupt(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptFile, match="cannot be read as a checkpoint"):
        load_checkpoint(nn.Linear(2, 2), tmp_path / name)
