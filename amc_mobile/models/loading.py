"""Networks by name, from the user's own file, from torchvision or from timm; with or without a checkpoint."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amc_mobile import store
from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, InvalidInput, MissingDependency
from amc_mobile.formats import ONNX, TFLITE_IDENTIFIER
from amc_mobile.models.task import CLASSIFICATION, OwnTask, Task
from amc_mobile.models.zoo.registry import IMAGENET, MODELS, Normalisation
from amc_mobile.packing import PackedModule, Shapes, pack
from amc_mobile.user_file import load_function, names_a_function

LOG = logging.getLogger(__name__)

# Keys under which training scripts keep the weights, the most usual first. Moving averages are taken last.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
AVERAGED = ("ema", "swa", "average", "teacher", "shadow")
MAX_NESTING = 3
SAVE_WEIGHTS = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
HEAD_BYTES = 64
NAMES_SHOWN = 6

DEFAULT_INPUT_SIZE = 224
DEFAULT_CLASSES = 1000
COLOURS = 3
SEVERAL_OUTPUTS = "pass --accuracy file.py:function, which reads the outputs"


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


def _kept_weights(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Every set of named tensors in a checkpoint and where it lies, the likeliest to be the network's weights first."""
    content = _content(path)
    sets = list(_sets_in(content, MAX_NESTING)) if isinstance(content, Mapping) else []
    if not sets:
        what = "dict without tensors" if isinstance(content, Mapping) else type(content).__name__
        raise InvalidInput(f"{path} holds a {what}, no state dict", next_step=SAVE_WEIGHTS)
    return sets


def _content(path: Path) -> Any:
    """What a checkpoint holds. Its form follows from its content, not from its name."""
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
    if head[4:8] == TFLITE_IDENTIFIER:
        return "a TFLite file", network
    if path.suffix == ONNX.suffix or (head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x3a")):
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
    place = WRAPPERS.index(name) if name in WRAPPERS else len(WRAPPERS)
    return any(word in name.lower() for word in AVERAGED), place


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
    _, problems = max(tried, key=lambda attempt: attempt[0])
    raise InvalidInput(
        f"{path} does not fit the network: {'; '.join(problems)}",
        next_step="check the model's name, its width and its number of classes",
    )


def _renamed(weights: dict[str, Tensor], own: set[str]) -> Iterator[dict[str, Tensor]]:
    """`weights` as they are, then without a prefix that some of them have, then with one that all of `own` have.

    What has another prefix belongs to something else, such as a loss function.
    """
    yield weights
    prefixes = dict.fromkeys(
        name[: end + 1] for name in weights for end, sign in enumerate(name) if sign == "." and name[end + 1 :] in own
    )
    count = {prefix: sum(name.startswith(prefix) for name in weights) for prefix in prefixes}
    for prefix in sorted(count, key=lambda name: (-count[name], len(name))):
        yield {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    heads = {name.partition(".")[0] for name in own}
    for head in heads if len(heads) == 1 else ():
        yield {f"{head}.{name}": value for name, value in weights.items()}


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


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network in evaluation mode.

    `normalisation`: the mean and deviation its weights expect (None: unknown, take the data set's own).
    """

    module: nn.Module
    input_shape: tuple[int, int, int, int]  # (1, C, H, W)
    num_classes: int
    spec: str
    normalisation: Normalisation | None = None
    task: Task = CLASSIFICATION


@dataclass(frozen=True, eq=False)
class ModuleObject:
    """A network that was given as an object. `input_shapes`: as in `load_model`."""

    module: nn.Module
    input_shape: tuple[int, int, int, int]
    input_shapes: Shapes
    task: OwnTask | None


OBJECTS: dict[str, ModuleObject] = {}  # networks that this process was given as objects, by name
OBJECT_DIGITS = 12  # of the weights' SHA-256


def name_module(
    module: nn.Module, example_input: Tensor | Sequence[int] | Sequence[Tensor], *, task: OwnTask | None = None
) -> str:
    """A name by which `load_model` finds a copy of `module` as it is now, as long as this process lives.

    The same for the same class and weights: `Net@3f2a91c04b7d`, the first digits of the weights' SHA-256.
    `example_input`: a tensor (N, C, H, W), its shape, or a tensor (N, ...) for each of several inputs. `task`: in
    place of the network's own. Raises InvalidInput.
    """
    several = not isinstance(example_input, Tensor) and any(isinstance(part, Tensor) for part in example_input)
    shapes = tuple(tuple(part.shape[1:]) for part in example_input if isinstance(part, Tensor)) if several else ()
    shape = (1, sum(math.prod(s) for s in shapes), 1, 1) if several else _input_shape(example_input)
    name = f"{type(module).__name__}@{weights_sha256(module)[:OBJECT_DIGITS]}"
    OBJECTS[name] = ModuleObject(copy.deepcopy(module).cpu(), shape, shapes, task)
    return name


def _input_shape(example: Any) -> tuple[int, int, int, int]:
    shape = [int(n) for n in (example.shape if isinstance(example, Tensor) else example)]
    if len(shape) != 4 or min(shape) < 1:
        raise InvalidInput(f"the example input has the shape {tuple(shape)}", next_step="give images: (N, C, H, W)")
    return (1, shape[1], shape[2], shape[3])


@dataclass(frozen=True)
class ExpectedInput:
    """What a network is made for, as far as it says so before it is built.

    `size`: pixels of both sides, None: whatever the images have. `channels`: None likewise.
    """

    size: int | None
    channels: int | None
    normalisation: Normalisation | None


def expected_input(spec: str, input_size: int | None = None) -> ExpectedInput:
    """The input of the network that `spec` names; `input_size`: pixels that are asked for, None: its own.

    A user's function says by the defaults of its parameters input_size and in_channels. Raises InvalidInput.
    """
    kind, _, name = spec.partition(":")
    if spec in OBJECTS:
        if OBJECTS[spec].input_shapes:
            return ExpectedInput(None, None, None)
        _, own_channels, height, width = OBJECTS[spec].input_shape
        return ExpectedInput(input_size or (height if height == width else None), own_channels, None)
    if spec in MODELS:
        return ExpectedInput(input_size or MODELS[spec].default_input_size, None, MODELS[spec].normalisation)
    if names_a_function(spec):
        taken = inspect.signature(load_function(spec)).parameters
        size, channels = (taken[key].default if key in taken else None for key in ("input_size", "in_channels"))
        own = size if isinstance(size, int) else None
        return ExpectedInput(input_size or own, channels if isinstance(channels, int) else None, None)
    if kind == "timm" and name:
        sides = (input_size, input_size) if input_size is not None else None
        built = _from_timm(spec, name, BuildOptions(DEFAULT_CLASSES, 1.0, sides, COLOURS, published=False))
        return ExpectedInput(built.input_shape[-1], None, built.normalisation)
    return ExpectedInput(input_size or DEFAULT_INPUT_SIZE, None, IMAGENET)


def load_model(
    spec: str,
    *,
    num_classes: int | None = None,
    width_multiplier: float = 1.0,
    input_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    task: OwnTask | None = None,
    input_shapes: Shapes = (),
) -> LoadedModel:
    """Builds the network `spec` names, with the weights of `checkpoint`, or else drawn by `seed`.

    `spec`: a name of the registry; one that `name_module` gave; `path/to/file.py:function`, called with those of
    num_classes, width_multiplier, input_size and in_channels that it takes; `torchvision:NAME`; `timm:NAME`. These two
    have their published weights, where there are any for this number of classes and no `checkpoint` is given.
    `input_size`: pixels, of both sides or (height, width). None: the network's own default.
    `task`: of the user's own, in place of the network's. `input_shapes`: of several inputs, (C, H, W) each; the module
    then takes them behind each other, see `amc_mobile.packing`.
    One image is run to see that what the task reads comes out; a softmax at the end of a classifier is warned of.
    Raises InvalidInput, InvalidConfig, or MissingDependency.
    """
    if not 0 < width_multiplier <= 4:
        raise InvalidConfig(f"width_multiplier is {width_multiplier}; it must be above 0 and at most 4")
    if num_classes is not None and num_classes < 1:
        raise InvalidConfig(f"num_classes is {num_classes}; it must be at least 1")
    sides = (input_size, input_size) if isinstance(input_size, int) else input_size
    if sides is not None and min(sides) < 1:
        raise InvalidConfig(f"input_size is {input_size}; it must be at least 1")
    if spec in OBJECTS:
        task, input_shapes = task or OBJECTS[spec].task, input_shapes or OBJECTS[spec].input_shapes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = BuildOptions(num_classes, width_multiplier, sides, in_channels, published=checkpoint is None)
        built = _build(spec, options)
    if checkpoint is not None:
        load_checkpoint(built.module, checkpoint)
    built.module.eval()
    if input_shapes:
        built = replace(built, input_shape=(1, sum(math.prod(shape) for shape in input_shapes), 1, 1))
    if task is not None or input_shapes:
        with _running(built) as image:
            module = pack(built.module, image, input_shapes)
        packing = module.packing if isinstance(module, PackedModule) else None
        if task is None and packing is not None and len(packing.output_shapes) > 1:
            raise InvalidInput(f"{spec} gives {len(packing.output_shapes)} outputs", next_step=SEVERAL_OUTPUTS)
        built = replace(built, module=module, task=replace(task, packing=packing) if task else built.task)
    classes = _classes_of(built)
    if None not in (num_classes, classes) and classes != num_classes:
        raise InvalidInput(f"{spec} gives {classes} outputs, {num_classes} classes were asked for")
    return replace(built, num_classes=classes or num_classes or 0)


@dataclass(frozen=True)
class BuildOptions:
    """What is asked of a network, None: its own. `sides`: height and width. `published`: with the library's weights."""

    num_classes: int | None
    width_multiplier: float
    sides: tuple[int, int] | None
    in_channels: int | None
    published: bool

    @property
    def input_size(self) -> int | None:
        """Of square images."""
        return self.sides[0] if self.sides is not None else None


def _build(spec: str, options: BuildOptions) -> LoadedModel:
    kind, _, name = spec.partition(":")
    sides, width_multiplier = options.sides, options.width_multiplier
    if names_a_function(spec):
        return _from_user_file(spec, options)
    if spec in OBJECTS:
        if width_multiplier != 1.0:
            raise InvalidConfig(f"{spec} is an object, whose width_multiplier cannot be changed")
        _, own_channels, *own_sides = OBJECTS[spec].input_shape
        height, width = sides or own_sides
        channels = options.in_channels or own_channels
        return _loaded(copy.deepcopy(OBJECTS[spec].module), channels, (height, width), spec, None)
    if re.fullmatch(rf".+@[0-9a-f]{{{OBJECT_DIGITS}}}", spec):
        raise InvalidInput(
            f"{spec} was given as a Python object, in another process", next_step="pass the module again"
        )
    if sides is not None and sides[0] != sides[1]:
        raise InvalidConfig(
            f"{spec} takes square images, not {sides[0]}x{sides[1]}", next_step="pass --input-size: images are resized"
        )
    if spec in MODELS:
        entry, channels = MODELS[spec], options.in_channels or COLOURS
        size = options.input_size or entry.default_input_size
        if size < entry.smallest_input_size:
            raise InvalidConfig(f"{spec} needs an input of at least {entry.smallest_input_size} pixels, got {size}")
        module = entry.factory(options.num_classes or entry.default_classes, width_multiplier, size, channels)
        return _loaded(module, channels, (size, size), spec, entry.normalisation)
    if kind in ("torchvision", "timm") and name:
        if width_multiplier != 1.0:
            raise InvalidConfig(f"{spec}: width_multiplier cannot be changed for {kind}'s models")
        build = _from_torchvision if kind == "torchvision" else _from_timm
        return build(spec, name, options)
    raise InvalidInput(
        f"no model {spec!r}",
        next_step=f"choose one of {', '.join(MODELS)}, path/to/file.py:function, torchvision:NAME, timm:NAME",
    )


def _from_user_file(spec: str, options: BuildOptions) -> LoadedModel:
    function, sides, width_multiplier = load_function(spec), options.sides, options.width_multiplier
    possible: dict[str, Any] = {
        "num_classes": options.num_classes,
        "width_multiplier": width_multiplier,
        "input_size": sides[0] if sides is not None and sides[0] == sides[1] else sides,
        "in_channels": options.in_channels,
    }
    taken = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if width_multiplier != 1.0 and "width_multiplier" not in taken and not takes_any:
        raise InvalidConfig(f"{spec} takes no width_multiplier, but {width_multiplier} was asked for")
    arguments = {name: value for name, value in possible.items() if value is not None and (name in taken or takes_any)}
    module = _called(spec, function, arguments)
    expected = expected_input(spec)
    if sides is None and expected.size is None:
        raise InvalidConfig(
            f"{spec} does not say for which images the network is made",
            next_step="pass --data, whose images tell it, or --input-size; or give the function a default input_size",
        )
    height, width = sides or (expected.size or 0, expected.size or 0)
    return _loaded(module, options.in_channels or expected.channels or COLOURS, (height, width), spec, None)


def _from_torchvision(spec: str, name: str, options: BuildOptions) -> LoadedModel:
    if options.in_channels not in (None, COLOURS):
        raise InvalidConfig(
            f"{spec} takes images of {COLOURS} channels, not of {options.in_channels}",
            next_step="give images of three channels, or wrap the network in a function of your own",
        )
    models = _imported("torchvision.models", "torchvision")
    if name not in models.list_models(module=models):
        raise InvalidInput(f"torchvision has no classification model {name!r}")
    best = getattr(models.get_model_weights(name), "DEFAULT", None) if options.published else None
    arguments = {"name": name, "weights": None, "num_classes": options.num_classes or DEFAULT_CLASSES}
    if best is not None and options.num_classes in (None, len(best.meta["categories"])):
        module = _with_published_weights(spec, models.get_model, arguments, {"name": name, "weights": best})
    else:
        module = _called(spec, models.get_model, arguments)
    size = options.input_size or DEFAULT_INPUT_SIZE
    return _loaded(module, COLOURS, (size, size), spec, IMAGENET)


def _from_timm(spec: str, name: str, options: BuildOptions) -> LoadedModel:
    timm = _imported("timm", "timm")
    if not timm.is_model(name):
        raise InvalidInput(f"timm has no model {name!r}")
    classes, in_channels = options.num_classes or DEFAULT_CLASSES, options.in_channels or COLOURS
    arguments = {"model_name": name, "pretrained": False, "num_classes": classes, "in_chans": in_channels}
    module = _called(spec, timm.create_model, arguments)
    described: dict[str, Any] = getattr(module, "pretrained_cfg", {})
    if options.published and in_channels == COLOURS and described.get("num_classes") == classes:
        module = _with_published_weights(spec, timm.create_model, arguments, {**arguments, "pretrained": True})
    normalisation = (tuple(described.get("mean", IMAGENET[0])), tuple(described.get("std", IMAGENET[1])))
    own_size = described.get("input_size", (3, DEFAULT_INPUT_SIZE, DEFAULT_INPUT_SIZE))[-1]
    size = options.input_size or own_size
    return _loaded(module, in_channels, (size, size), spec, normalisation)


def _with_published_weights(
    spec: str, function: Callable[..., Any], plain: dict[str, Any], published: dict[str, Any]
) -> nn.Module:
    """The library downloads them, unless it has them already."""
    try:
        module = function(**published)
    except Exception as error:  # of the network, the disk or the library itself
        LOG.warning(
            "warning: %s has random weights, since its published ones cannot be had: %s: %s", spec,
            type(error).__name__, error,
        )  # fmt: skip
        return _called(spec, function, plain)
    LOG.warning("%s has its published weights%s", spec, f" {published['weights']}" if "weights" in published else "")
    return module  # type: ignore[no-any-return]


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or package, "", next_step=_install(package)) from error
    # A build for another version of torch raises RuntimeError as well as ImportError.
    except Exception as error:
        raise InvalidInput(
            f"{package} is installed but cannot be imported with torch {torch.__version__}: {type(error).__name__}: "
            f"{error}",
            next_step=_install(package),
        ) from error


def _install(package: str) -> str:
    """With the torchvision that was made for the torch that runs here: pip would take the newest and another torch."""
    major, minor = torch.__version__.split(".")[:2]
    fitting = f"torchvision==0.{int(minor) + 15}.*" if major == "2" else "torchvision"  # 2.0 came with 0.15
    build = torch.__version__.partition("+")[2]  # "cpu", "cu130"; a build of torch takes that build of torchvision
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    also = f"; pip install {package}" if package != "torchvision" else ""
    return f"pip install '{fitting}'{index}{also}"


def _called(spec: str, function: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module:
    try:
        module = function(**arguments)
    except AmcMobileError:
        raise
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise InvalidInput(f"{spec} failed when called with ({given}): {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"{spec} must return a torch.nn.Module, it returned a {type(module).__name__}")
    return module


def _loaded(
    module: nn.Module, channels: int, sides: tuple[int, int], spec: str, normalisation: Normalisation | None
) -> LoadedModel:
    own = getattr(module, "task", None)  # of a user's network this may be something else
    task = own if isinstance(own, Task) else CLASSIFICATION
    return LoadedModel(module, (1, channels, *sides), 0, spec, normalisation, task)


@contextmanager
def _running(built: LoadedModel) -> Iterator[Tensor]:
    """An empty image, for a block that runs the network; what goes wrong there is the network's fault."""
    parameter = next(built.module.parameters(), None)
    if parameter is None:
        raise InvalidInput(f"{built.spec} has no weights: there is nothing to prune")
    try:
        yield torch.zeros(built.input_shape, device=parameter.device, dtype=parameter.dtype)
    except AmcMobileError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"{built.spec} fails on an input of {built.input_shape}: {type(error).__name__}: {error}",
            next_step="pass the --input-size that the network is made for, and --data with images of its channels",
        ) from error


def _classes_of(built: LoadedModel) -> int | None:
    with _running(built) as image, torch.inference_mode():
        output = built.module(image)
    if not isinstance(output, Tensor) or output.shape[:1] != (1,):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidInput(
            f"{built.spec} must give one tensor for one image, it gave {shape}",
            next_step=SEVERAL_OUTPUTS,
        )
    if built.task is CLASSIFICATION and is_softmax(output):
        LOG.warning(
            "warning: %s ends in a softmax. Its outputs are read as logits: leave the softmax out of the network, "
            "or training is slow and plans are hard to tell apart.", built.spec,
        )  # fmt: skip
    return built.task.num_classes(output)


def is_softmax(outputs: Tensor) -> bool:
    """Whether outputs (N, classes) are probabilities."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    return bool((outputs >= 0).all() and torch.allclose(outputs.sum(1), torch.ones(len(outputs)), atol=1e-4))
