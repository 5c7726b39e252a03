"""Weights in files: .safetensors, or PyTorch files that hold tensors alone."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amc_mobile import store
from amc_mobile.errors import CorruptFile, InvalidInput

LOG = logging.getLogger(__name__)

# Keys under which training scripts keep the weights, the most usual first. Moving averages are taken last.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
AVERAGED = ("ema", "swa", "average", "teacher", "shadow")
MAX_NESTING = 3
# Put before every name by nn.DataParallel and torch.compile.
PREFIXES = ("module.", "_orig_mod.")
SAVE_WEIGHTS = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
HEAD_BYTES = 64
NAMES_SHOWN = 6


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Puts the weights of `path` into `module`, in place; nothing is changed when they do not fit.

    They may lie in a dict of a training script, under names with one prefix more or less, as those of a Lightning
    module; of several sets that fit the first is taken, a moving average last, and a line on stderr says so.
    A file whose batch norms are folded into the convolutions (no batch-norm values, a bias for each convolution) is
    accepted: the batch norms become nn.Identity and the convolutions get a bias.
    Raises InvalidInput that lists missing, unknown and misshapen names, and CorruptFile.
    """
    weights, folded = _fitting(module, _kept_weights(path), path)
    _refuse_undefined(weights, path)
    for conv, norm in folded:
        convolution = module.get_submodule(conv)
        assert isinstance(convolution, nn.Conv2d)
        convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels, device=convolution.weight.device))
        parent, _, child = norm.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
    module.load_state_dict(weights, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, freed of wrappers and prefixes, on the CPU."""
    _, weights = _kept_weights(path)[0]
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    _refuse_undefined(weights, path)
    return weights


def _kept_weights(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Every set of named tensors in a checkpoint and where it lies, the likeliest to be the network's weights first."""
    content = _content(path)
    found = list(_sets_in(content, MAX_NESTING)) if isinstance(content, Mapping) else []
    if not found:
        what = "dict without tensors" if isinstance(content, Mapping) else type(content).__name__
        raise InvalidInput(f"{path} holds a {what}, no state dict", next_step=SAVE_WEIGHTS)
    return found


def _content(path: Path) -> Any:
    """What a checkpoint holds. Its form is told by its content: names lie."""
    if not store.is_file(path):
        raise InvalidInput(f"no checkpoint file {path}", next_step="check --checkpoint")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CorruptFile(path, f"cannot be read ({error.strerror})") from error
    if other := _other_form(path, head):
        kind, way_out = other
        raise InvalidInput(f"{path} is {kind}, not a file of weights", next_step=way_out)
    try:
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            return load_file(path)
        with path.open("rb") as file:  # by its path, torch would go by the name
            # weights_only: no code in the file is run.
            return torch.load(file, map_location="cpu", weights_only=True)
    # Broken files make the reader raise nearly anything: KeyError, EOFError, RuntimeError, struct.error, ...
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and (head[:2] == b"PK" or head[:1] == b"\x80"):
            raise InvalidInput(
                f"{path} holds more than tensors, so reading it could run code from the file", next_step=SAVE_WEIGHTS
            ) from error
        why = "damaged, or not made by torch.save or safetensors"
        raise CorruptFile(path, f"cannot be read as a checkpoint ({why})", next_step=SAVE_WEIGHTS) from error


def _other_form(path: Path, head: bytes) -> tuple[str, str] | None:
    """What a file is that holds a program or another library's weights, and how to get weights from it."""
    network = "give the checkpoint that it was made from, " + SAVE_WEIGHTS.removeprefix("save ")
    if head[4:8] == b"TFL3":
        return "a TFLite file", network
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x3a")):
        return "an ONNX file", network
    if head.startswith(b"\x89HDF\r\n"):
        return "an HDF5 file, as Keras writes", network
    if head.startswith(b"PK"):
        with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any("/code/" in name for name in names) or any(name.endswith("/constants.pkl") for name in names):
                saved = f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"
                return "a TorchScript file", f"save its weights: {saved}"
            if any(name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names):
                saved = f"torch.save(torch.export.load({path.name!r}).state_dict, 'weights.pt')"
                return "a program of torch.export", f"save its weights: {saved}"
            if any(name.endswith(".npy") for name in names):
                return "a NumPy archive", SAVE_WEIGHTS
    return None


def _sets_in(content: Mapping[Any, Any], depth: int, place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    inner = {str(name): value for name, value in content.items() if isinstance(value, Mapping)}
    if tensors and len(tensors) >= len(content) / 2:
        yield place, tensors
    if depth:
        for name in sorted(inner, key=_rank):
            yield from _sets_in(inner[name], depth - 1, f"{place}.{name}" if place else name)
    if tensors and len(tensors) < len(content) / 2:
        yield place, tensors


def _rank(name: str) -> tuple[bool, int]:
    known = WRAPPERS.index(name) if name in WRAPPERS else len(WRAPPERS)
    return any(word in name.lower() for word in AVERAGED), known


def _fitting(
    module: nn.Module, sets: list[tuple[str, dict[str, Tensor]]], path: Path
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The first set that fits the module, and its folded batch norms. One prefix of names may be off by: the wrapper's
    in the file or in the module. Raises InvalidInput about the set that fits best."""
    own = set(module.state_dict())
    tried: list[tuple[int, list[str]]] = []
    fitting: dict[str, tuple[dict[str, Tensor], list[tuple[str, str]]]] = {}
    for place, weights in sets:
        for renamed in _renamed(weights, own):
            folded = _folded_batch_norms(module, renamed)
            problems = _misfits(module, renamed, folded)
            if not problems:
                fitting[place] = (renamed, folded)
                break
            tried.append((len(own & renamed.keys()), problems))
    if fitting:
        taken, *others = fitting
        if others:
            LOG.warning(
                "%s: the weights under %r are taken; those under %s fit as well: save them alone to use them", path,
                taken, " and ".join(map(repr, others)),
            )  # fmt: skip
        return fitting[taken]
    _, problems = max(tried, key=lambda one: one[0])
    raise InvalidInput(
        f"{path} does not fit the network: {'; '.join(problems)}",
        next_step="check the model's name, its width and its number of classes",
    )


def _renamed(weights: dict[str, Tensor], own: set[str]) -> Iterator[dict[str, Tensor]]:
    """`weights` as they are, then without a prefix that some of them have, then with one that all of `own` have.

    What has another prefix belongs to something else, such as a loss function.
    """
    yield weights
    prefixes = dict.fromkeys(name[: end + 1] for name in weights for end, sign in enumerate(name) if sign == ".")
    count = {prefix: sum(name.startswith(prefix) for name in weights) for prefix in _likely(prefixes, weights, own)}
    for prefix in sorted(count, key=lambda one: (-count[one], len(one))):
        yield {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    heads = {name.partition(".")[0] for name in own}
    for head in heads if len(heads) == 1 else ():
        yield {f"{head}.{name}": value for name, value in weights.items()}


def _likely(prefixes: Iterable[str], weights: Mapping[str, Tensor], own: set[str]) -> list[str]:
    """Those that make a name of the module out of a name of the file."""
    return [prefix for prefix in prefixes if any(n.startswith(prefix) and n[len(prefix) :] in own for n in weights)]


def _refuse_undefined(weights: Mapping[str, Tensor], path: Path) -> None:
    not_finite = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if not_finite:
        raise InvalidInput(
            f"{path} holds infinite or undefined values in {_listed(not_finite)}", next_step="train again, more slowly"
        )


def save_checkpoint(module: nn.Module, path: Path) -> None:
    """Writes the weights as a .safetensors file, whole or not at all."""
    if path.suffix != ".safetensors":
        raise InvalidInput(f"checkpoints are written as .safetensors, not {path.name!r}")
    write_tensors(path, module.state_dict())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file, whole or not at all. Raises OSError where the disk does not take it."""
    # Copies, because tied weights share memory, which the format refuses.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with store.replacing(path) as temporary:
        try:
            save_file(copies, temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:  # has the number of the system's error in its text alone
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise


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


def _misfits(module: nn.Module, weights: Mapping[str, Tensor], folded: Iterable[tuple[str, str]]) -> list[str]:
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
    return [
        f"{what} {_listed(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
