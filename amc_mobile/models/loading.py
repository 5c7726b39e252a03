"""Networks by name, from the user's own file, from torchvision or from timm; with or without a checkpoint."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc_mobile.errors import AmcMobileError, InvalidConfig, InvalidInput, MissingDependency
from amc_mobile.models.checkpoints import load_checkpoint, read_weights, save_checkpoint
from amc_mobile.models.registry import IMAGENET, MODELS, Normalisation
from amc_mobile.models.task import CLASSIFICATION, OwnTask, Task
from amc_mobile.packing import PackedModule, Shapes, pack
from amc_mobile.user_file import load_function, names_a_function

__all__ = ["LoadedModel", "load_checkpoint", "load_model", "read_weights", "save_checkpoint"]

LOG = logging.getLogger(__name__)
DEFAULT_INPUT_SIZE = 224
DEFAULT_CLASSES = 1000
COLOURS = 3
SEVERAL_OUTPUTS = "pass --accuracy file.py:function, which reads the outputs"


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
    if spec in MODELS:
        return ExpectedInput(input_size or MODELS[spec].default_input_size, None, MODELS[spec].normalisation)
    if names_a_function(spec):
        taken = inspect.signature(load_function(spec)).parameters
        size, channels = (taken[key].default if key in taken else None for key in ("input_size", "in_channels"))
        own = size if isinstance(size, int) else None
        return ExpectedInput(input_size or own, channels if isinstance(channels, int) else None, None)
    if kind == "timm" and name:
        built = _from_timm(spec, name, DEFAULT_CLASSES, input_size, COLOURS, published=False)
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

    `spec`: a name of the registry; `path/to/file.py:function`, called with those of num_classes, width_multiplier,
    input_size and in_channels that it takes; `torchvision:NAME`; `timm:NAME`. These two
    have their published weights, where there are any for so many classes and no `checkpoint` is given.
    `input_size`: pixels, of both sides or (height, width). None stands for the network's own default.
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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = _build(spec, num_classes, width_multiplier, sides, in_channels, published=checkpoint is None)
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


def _build(
    spec: str,
    num_classes: int | None,
    width_multiplier: float,
    sides: tuple[int, int] | None,
    in_channels: int | None,
    *,
    published: bool,
) -> LoadedModel:
    kind, _, name = spec.partition(":")
    if names_a_function(spec):
        return _from_user_file(spec, num_classes, width_multiplier, sides, in_channels)
    if sides is not None and sides[0] != sides[1]:
        raise InvalidConfig(
            f"{spec} takes square images, not {sides[0]}x{sides[1]}", next_step="pass --input-size: images are resized"
        )
    input_size, channels = sides and sides[0], in_channels or COLOURS
    if spec in MODELS:
        entry = MODELS[spec]
        size = input_size or entry.default_input_size
        if size < entry.smallest_input_size:
            raise InvalidConfig(f"{spec} needs an input of at least {entry.smallest_input_size} pixels, got {size}")
        module = entry.factory(num_classes or entry.default_classes, width_multiplier, size, channels)
        return _loaded(module, channels, (size, size), spec, entry.normalisation)
    if kind in ("torchvision", "timm") and name:
        if width_multiplier != 1.0:
            raise InvalidConfig(f"{spec}: width_multiplier cannot be changed for {kind}'s models")
        build = _from_torchvision if kind == "torchvision" else _from_timm
        return build(spec, name, num_classes, input_size, channels, published=published)
    raise InvalidInput(
        f"no model {spec!r}",
        next_step=f"choose one of {', '.join(MODELS)}, path/to/file.py:function, torchvision:NAME, timm:NAME",
    )


def _from_user_file(
    spec: str,
    num_classes: int | None,
    width_multiplier: float,
    sides: tuple[int, int] | None,
    in_channels: int | None,
) -> LoadedModel:
    function = load_function(spec)
    wanted: dict[str, Any] = {
        "num_classes": num_classes,
        "width_multiplier": width_multiplier,
        "input_size": sides[0] if sides is not None and sides[0] == sides[1] else sides,
        "in_channels": in_channels,
    }
    taken = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if width_multiplier != 1.0 and "width_multiplier" not in taken and not takes_any:
        raise InvalidConfig(f"{spec} takes no width_multiplier, but {width_multiplier} was asked for")
    arguments = {name: value for name, value in wanted.items() if value is not None and (name in taken or takes_any)}
    module = _called(spec, function, arguments)
    expected = expected_input(spec)
    if sides is None and expected.size is None:
        raise InvalidConfig(
            f"{spec} does not say for which images the network is made",
            next_step="pass --data, whose images tell it, or --input-size; or give the function a default input_size",
        )
    height, width = sides or (expected.size or 0, expected.size or 0)
    return _loaded(module, in_channels or expected.channels or COLOURS, (height, width), spec, None)


def _from_torchvision(
    spec: str, name: str, num_classes: int | None, input_size: int | None, in_channels: int, *, published: bool
) -> LoadedModel:
    if in_channels != COLOURS:
        raise InvalidConfig(
            f"{spec} takes images of {COLOURS} channels, not of {in_channels}",
            next_step="give images of three channels, or wrap the network in a function of your own",
        )
    models = _imported("torchvision.models", "torchvision")
    if name not in models.list_models(module=models):
        raise InvalidInput(f"torchvision has no classification model {name!r}")
    best = getattr(models.get_model_weights(name), "DEFAULT", None) if published else None
    arguments = {"name": name, "weights": None, "num_classes": num_classes or DEFAULT_CLASSES}
    if best is not None and num_classes in (None, len(best.meta["categories"])):
        module = _with_published_weights(spec, models.get_model, arguments, {"name": name, "weights": best})
    else:
        module = _called(spec, models.get_model, arguments)
    size = input_size or DEFAULT_INPUT_SIZE
    return _loaded(module, in_channels, (size, size), spec, IMAGENET)


def _from_timm(
    spec: str, name: str, num_classes: int | None, input_size: int | None, in_channels: int, *, published: bool
) -> LoadedModel:
    timm = _imported("timm", "timm")
    if not timm.is_model(name):
        raise InvalidInput(f"timm has no model {name!r}")
    classes = num_classes or DEFAULT_CLASSES
    arguments = {"model_name": name, "pretrained": False, "num_classes": classes, "in_chans": in_channels}
    module = _called(spec, timm.create_model, arguments)
    described: dict[str, Any] = getattr(module, "pretrained_cfg", {})
    if published and in_channels == COLOURS and described.get("num_classes") == classes:
        module = _with_published_weights(spec, timm.create_model, arguments, {**arguments, "pretrained": True})
    normalisation = (tuple(described.get("mean", IMAGENET[0])), tuple(described.get("std", IMAGENET[1])))
    own_size = described.get("input_size", (3, DEFAULT_INPUT_SIZE, DEFAULT_INPUT_SIZE))[-1]
    size = input_size or own_size
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
    if built.task is CLASSIFICATION and _is_softmax(output):
        LOG.warning(
            "warning: %s ends in a softmax. Its outputs are read as logits: leave the softmax out of the network, "
            "or training is slow and plans are hard to tell apart.", built.spec,
        )  # fmt: skip
    return built.task.num_classes(output)


def _is_softmax(outputs: Tensor) -> bool:
    """Whether outputs (N, classes) are probabilities."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    return bool((outputs >= 0).all() and torch.allclose(outputs.sum(1), torch.ones(len(outputs)), atol=1e-4))
