"""Weights in files: .safetensors, or PyTorch files that hold tensors alone."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amc_mobile import store
from amc_mobile.errors import CorruptFile, InvalidInput

# Keys under which training scripts keep the weights, beside epochs and optimizers.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
# Put before every name by nn.DataParallel and torch.compile.
PREFIXES = ("module.", "_orig_mod.")
NAMES_SHOWN = 6


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Puts the weights of `path` into `module`, in place; nothing is changed when they do not fit.

    A file whose batch norms are folded into the convolutions (no batch-norm values, a bias for each convolution) is
    accepted: the batch norms become nn.Identity and the convolutions get a bias.
    Raises InvalidInput that lists missing, unknown and misshapen names, and CorruptFile.
    """
    weights = read_weights(path)
    folded = _folded_batch_norms(module, weights)
    _refuse_misfits(module, weights, path, folded)
    for conv, norm in folded:
        convolution = module.get_submodule(conv)
        assert isinstance(convolution, nn.Conv2d)
        convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels, device=convolution.weight.device))
        parent, _, child = norm.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
    module.load_state_dict(weights, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, freed of wrappers and prefixes, on the CPU."""
    if not path.is_file():
        raise InvalidInput(f"no checkpoint file {path}")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # weights_only: no code in the file is run.
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Broken files make the reader raise nearly anything: KeyError, EOFError, RuntimeError, struct.error, ...
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise InvalidInput(
                f"{path} holds more than tensors, so reading it could run code from the file",
                next_step="save only the weights: torch.save(model.state_dict(), path)",
            ) from error
        why = str(error).partition("\n")[0] or type(error).__name__
        raise CorruptFile(path, f"cannot be read as a checkpoint ({why})") from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InvalidInput(
            f"{path} holds a {type(content).__name__} that is no state dict",
            next_step="save the weights with torch.save(model.state_dict(), path)",
        )
    weights = {str(name): value for name, value in content.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    not_finite = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if not_finite:
        raise InvalidInput(f"{path} holds infinite or undefined values in {_listed(not_finite)}")
    return weights


def save_checkpoint(module: nn.Module, path: Path) -> None:
    """Writes the weights as a .safetensors file, whole or not at all."""
    if path.suffix != ".safetensors":
        raise InvalidInput(f"checkpoints are written as .safetensors, not {path.name!r}")
    # Copies, because tied weights share memory, which the format refuses.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    with store.replacing(path) as temporary:
        save_file(weights, temporary)


def weights_sha256(module: nn.Module | None) -> str:
    """Equal for equal parameters and buffers; of no module: that of no bytes."""
    digest = hashlib.sha256()
    for value in module.state_dict().values() if module is not None else ():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _folded_batch_norms(module: nn.Module, weights: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """(convolution, batch norm) paths for which `weights` has a convolution's bias in the batch norm's place."""
    pairs, last_conv = [], ""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            last_conv = name if layer.bias is None else ""
        elif isinstance(layer, nn.BatchNorm2d):
            has_values = any(f"{name}.{key}" in weights for key in ("weight", "bias", "running_mean", "running_var"))
            # In every network here a batch norm is registered right behind the convolution it follows.
            if last_conv and not has_values and f"{last_conv}.bias" in weights:
                pairs.append((last_conv, name))
            last_conv = ""
    return pairs


def _refuse_misfits(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path, folded: Iterable[tuple[str, str]]
) -> None:
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for conv, norm in folded:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{norm}.")}
        shapes[f"{conv}.bias"] = shapes[f"{conv}.weight"][:1]
    # The counter of batches steers nothing here, and converted files lack it.
    missing = [name for name in shapes if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in shapes and not name.endswith("num_batches_tracked")]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} for {shape}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise InvalidInput(
            f"{path} does not fit the network: {'; '.join(problems)}",
            next_step="check the model's name, its width and its number of classes",
        )


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
