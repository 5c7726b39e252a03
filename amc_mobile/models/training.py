"""Training from scratch and fine-tuning, on the device that the model is on; resumable after every epoch."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from amc_mobile.errors import CorruptFile, InvalidConfig
from amc_mobile.models.loading import weights_sha256, write_tensors
from amc_mobile.models.task import CLASSIFICATION, LabelledImages, StoredImages, Task, evaluate
from amc_mobile.store import parse_json, parse_object


def fetched(images: StoredImages, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(index, pixels) of each batch, in order. Images that are not in memory are read one batch ahead."""
    if isinstance(images, Tensor):
        yield from ((index, images[index]) for index in batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as ahead:
        coming = ahead.submit(images.__getitem__, batches[0])
        for position, index in enumerate(batches):
            pixels = coming.result()
            if position + 1 < len(batches):
                coming = ahead.submit(images.__getitem__, batches[position + 1])
            yield index, pixels


# 1: tensors `model.NAME` and `momentum.NAME`; metadata `identity` and `reports` as JSON
# 2: tensors `average.NAME` where weights are averaged
# 3: tensors `best.NAME` where the best epoch is kept
FORMAT_VERSION = 3


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of training gave. Accuracies, in [0, 1], are top-1 unless the task has another.

    `train_top1` is on the augmented images; None for an accuracy that takes a whole set.
    """

    epoch: int  # the first is 1
    epochs: int
    train_loss: float
    train_top1: float | None
    validation_top1: float | None
    learning_rate: float  # in its last step
    seconds: float  # validation included


@dataclass
class TrainingState:
    """`model`, `optimizer` (SGD with momentum) and averaged weights of one run, with the reports of the epochs done.

    `identity`: what must be equal in the file and in the run that wants to continue from it. `best`: the state dict
    that `keep_as_best` copied last.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, str]
    reports: list[EpochReport] = field(default_factory=list)
    averaged: nn.Module | None = None
    best: dict[str, Tensor] | None = None

    def keep_as_best(self) -> None:
        """Copies the weights as they are now, or their moving average."""
        self.best = copy.deepcopy((self.averaged or self.model).state_dict())

    def save(self, path: Path) -> None:
        """Replaces `path`, whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"average.{name}": value for name, value in self.averaged.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in (self.best or {}).items()}
        for name, parameter in self.model.named_parameters():
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "identity": json.dumps(self.identity),
            "reports": json.dumps([asdict(report) for report in self.reports]),
        }
        write_tensors(path, tensors, metadata)

    def load(self, path: Path) -> None:
        """Puts the file's weights, momentum and reports in place of this state's.

        Raises CorruptFile, and InvalidConfig when the file is of another run.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            version = int(metadata["format_version"])
            identity: dict[str, str] = parse_object(metadata["identity"])
            reports = [EpochReport(**report) for report in parse_json(metadata["reports"])]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise CorruptFile(
                path, f"not a training checkpoint ({error})", next_step="delete the file to start the training anew"
            ) from error
        if version > FORMAT_VERSION:
            raise CorruptFile(path, f"has format {version}, this version reads up to {FORMAT_VERSION}")
        self._refuse_another_run(path, identity, tensors)
        self.model.load_state_dict(_under("model.", tensors))
        if self.averaged is not None:
            self.averaged.load_state_dict(_under("average.", tensors))
        self.best = _under("best.", tensors) or None
        for name, parameter in self.model.named_parameters():
            momentum = tensors.get(f"momentum.{name}")
            if momentum is not None:
                # Laid out in memory as the parameter is: the sums of the next steps then come out bit for bit alike.
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        self.reports = reports

    def _refuse_another_run(self, path: Path, identity: dict[str, str], tensors: dict[str, Tensor]) -> None:
        keys = sorted({*identity, *self.identity})
        differences = [
            f"{key} {str(identity.get(key))[:20]} there, {str(self.identity.get(key))[:20]} here"
            for key in keys
            if identity.get(key) != self.identity.get(key)
        ]
        shapes = {f"model.{name}": tuple(value.shape) for name, value in self.model.state_dict().items()}
        if not differences and shapes != {n: tuple(t.shape) for n, t in tensors.items() if n.startswith("model.")}:
            differences = ["the model has other layers or widths"]
        if differences:
            raise InvalidConfig(
                f"{path} is of another training run: {'; '.join(differences)}",
                next_step="delete the file to start anew, or use the settings it was made with",
            )


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class WeightAverage:
    """`module` holds the exponential moving average of another's parameters and buffers; counters are copied.

    The decay rises to `decay` with the number of steps n as (1 + n) / (10 + n), so that a short training is not held
    back by the weights that it started from. Not torch's AveragedModel: that copies the weights of its first update,
    counts updates itself, so that a resumed training would begin to count again, and puts a prefix before every name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Takes in the weights of `model` after its step number `steps` (from 1)."""
        weight = 1 - min(self._decay, (1 + steps) / (10 + steps))
        for mine, theirs in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, weight)
            else:
                mine.copy_(theirs)


# What backpropagation keeps of a batch may occupy this much; larger batches are computed in parts, whose gradients add
# up. Batch norms see the parts: no fewer images than this.
ACTIVATION_BYTES = 192 * 2**20
LEAST_AT_ONCE = 16


# "auto": until the accuracy on the images to validate on stops rising. The learning rate stays at its highest until no
# epoch has been the best for a fifth of the epochs so far (5 or more), then falls linearly to 0 over a third of them:
# as good as a cosine schedule, whose length must be known at its beginning (Hägele et al. 2024).
Epochs = int | Literal["auto"]
FLAT_SHARE, FEWEST_FLAT = 0.2, 5
DECAY_SHARE = 1 / 3
MOST_EPOCHS = 300  # at the highest learning rate


@dataclass(frozen=True)
class TrainConfig:
    """SGD with Nesterov momentum, under a cosine schedule where the epochs are given."""

    epochs: Epochs = 30
    learning_rate: float = 0.1  # at its highest, for this `batch_size`
    batch_size: int = 128
    weight_decay: float = 5e-4  # of weights; biases, norms and depthwise convolutions have none
    momentum: float = 0.9
    warmup_share: float = 0.05  # of all steps, or with "auto" of ten epochs; the learning rate rises linearly from 0
    distill_weight: float = 0.0  # share of the loss that asks for the teacher's outputs, in [0, 1]
    temperature: float = 4.0  # softens both outputs in that part (Hinton et al. 2015)
    label_smoothing: float = 0.0
    ema_decay: float = 0.0  # above 0: validate and end with the moving average of the weights, e.g. 0.999
    augment: bool = True  # as the task does: random shifts, and mirroring where the images allow it
    seed: int = 0
    bf16: bool = False  # forward pass in bfloat16 where that is safe: 1.3 to 2 times faster on CPUs with AVX512-BF16
    threads: int | None = None  # CPU threads; None leaves torch's setting

    def __post_init__(self) -> None:
        allowed = {
            "epochs": (self.epochs == "auto" or self.epochs >= 0, "0 or more"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "batch_size": (self.batch_size >= 2, "2 or more: batch norm needs several images"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "warmup_share": (0 <= self.warmup_share < 1, "in [0, 1)"),
            "distill_weight": (0 <= self.distill_weight <= 1, "in [0, 1]"),
            "temperature": (self.temperature > 0, "above 0"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "threads": (self.threads is None or self.threads >= 1, "1 or more"),
        }
        for name, (is_allowed, rule) in allowed.items():
            if not is_allowed:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be {rule}")


def train(
    model: nn.Module,
    images: LabelledImages,
    config: TrainConfig,
    *,
    task: Task = CLASSIFICATION,
    teacher: nn.Module | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    resume: Path | None = None,
    validate: LabelledImages | None = None,
    keep_best: bool = False,
) -> list[EpochReport]:
    """Trains `model` in place and leaves it in evaluation mode; gives one report per epoch.

    `resume`: a file rewritten after every epoch. A call that finds it there continues after its last epoch, and ends
    with the weights of a run that was never interrupted: each epoch draws its random numbers from `config.seed` and
    its own number alone. `on_epoch` is called for epochs run now, not for those read from the file. `on_step`: with the
    steps that are done and with those of all epochs, before the first step and after every one. The accuracy on
    `validate` is reported and, with `keep_best`, decides: the model ends with the weights of `best_epoch`. Otherwise
    they are those of the last epoch. Either way their moving average, where there is one.
    Raises InvalidConfig when the file belongs to another configuration, model or data set, when distillation lacks a
    teacher, when there is nothing to tell the end of a training by, and when the loss is no longer finite.
    """
    if config.distill_weight > 0 and teacher is None:
        raise InvalidConfig(f"distill_weight is {config.distill_weight}, but there is no teacher to learn from")
    if validate is None and (keep_best or config.epochs == "auto"):
        raise InvalidConfig("the best epoch or the end is asked for, but there are no images to tell which it is")
    # The teacher's own mode is left alone, and as a copy it cannot be the model that changes here.
    tutor = copy.deepcopy(teacher).eval().requires_grad_(False) if teacher and config.distill_weight > 0 else None
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        _parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
    )
    average = WeightAverage(model, config.ema_decay) if config.ema_decay > 0 else None
    averaged = average.module if average else None
    identity = _identity(config, images, tutor) | ({"keeps": "the best epoch"} if keep_best else {})
    state = TrainingState(model, optimizer, identity, averaged=averaged)
    if resume is not None and resume.exists():
        state.load(resume)
    is_done = len(state.reports) >= planned_epochs(config, state.reports)
    part_size = config.batch_size if is_done else images_at_once(model, images)
    with _threads(config.threads):
        while (epoch := len(state.reports)) < (epochs := planned_epochs(config, state.reports)):
            started = time.perf_counter()
            loss, top1 = _run_epoch(
                model, tutor, task, images, optimizer, config, state.reports, average, on_step, part_size
            )
            state.reports.append(
                EpochReport(
                    epoch=epoch + 1,
                    epochs=epochs,
                    train_loss=loss,
                    train_top1=top1,
                    validation_top1=None if validate is None else evaluate(averaged or model, validate, task=task),
                    learning_rate=optimizer.param_groups[0]["lr"],
                    seconds=time.perf_counter() - started,
                )
            )
            if keep_best and best_epoch(state.reports) is state.reports[-1]:
                state.keep_as_best()
            if resume is not None:
                state.save(resume)
            if on_epoch is not None:
                on_epoch(state.reports[-1])
    if state.best is not None:
        model.load_state_dict(state.best)
    elif averaged is not None:
        model.load_state_dict(averaged.state_dict())
    model.eval()
    return list(state.reports)


def best_epoch(reports: Sequence[EpochReport]) -> EpochReport | None:
    """The epoch of the highest held-out accuracy, the last of equal ones; None where none was measured."""
    measured = [report for report in reports if report.validation_top1 is not None]
    return max(measured, key=lambda report: (report.validation_top1 or 0.0, report.epoch), default=None)


def flat_epochs(reports: Sequence[EpochReport]) -> int:
    """After how many epochs "auto" lowers the learning rate: when the accuracy has not risen
    for a while. Of epochs to come it is taken not to rise."""
    best, top1 = 0, -math.inf
    for epoch in range(1, MOST_EPOCHS):
        if epoch <= len(reports) and (reports[epoch - 1].validation_top1 or 0.0) > top1:
            best, top1 = epoch, reports[epoch - 1].validation_top1 or 0.0
        if epoch - best >= max(FEWEST_FLAT, FLAT_SHARE * epoch):
            return epoch
    return MOST_EPOCHS


def planned_epochs(config: TrainConfig, reports: Sequence[EpochReport]) -> int:
    """How many epochs there are, or of "auto" would be if the accuracy rose no further."""
    if config.epochs != "auto":
        return config.epochs
    flat = flat_epochs(reports)
    return flat + math.ceil(DECAY_SHARE * flat)


def learning_rate_at(config: TrainConfig, epoch: float, reports: Sequence[EpochReport] = ()) -> float:
    """Linear warm-up to `learning_rate`, then half a cosine to 0 at the last step (Loshchilov and Hutter 2017).

    `epoch`: how many are done, a fraction within one. `reports`: of those before; with "auto" they tell when the rate,
    highest until then, begins to fall.
    """
    if config.epochs == "auto":
        flat, epochs = flat_epochs(reports), planned_epochs(config, reports)
        rising = epoch / (10 * config.warmup_share) if config.warmup_share else 1.0
        return config.learning_rate * min(rising, 1.0, (epochs - epoch) / (epochs - flat))
    progress = epoch / config.epochs
    if progress < config.warmup_share:
        return config.learning_rate * progress / config.warmup_share
    after = (progress - config.warmup_share) / (1 - config.warmup_share)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))


def _run_epoch(
    model: nn.Module,
    tutor: nn.Module | None,
    task: Task,
    images: LabelledImages,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    reports: Sequence[EpochReport],
    average: WeightAverage | None,
    on_step: Callable[[int, int], None] | None,
    part_size: int,
) -> tuple[float, float | None]:
    """Mean loss and accuracy over the (augmented) training images of the epoch after those of `reports`; None for what
    takes a whole set."""
    epoch, epochs = len(reports), planned_epochs(config, reports)
    device = next(model.parameters()).device
    model.train()
    # Near-equal batches: a last batch of one image would break batch norm.
    batches = math.ceil(len(images) / config.batch_size)
    total_loss, correct = torch.zeros(2, device=device)
    if on_step is not None:
        on_step(epoch * batches, epochs * batches)
    with _seeded(config.seed, epoch) as generator:
        order = torch.randperm(len(images), generator=generator)
        for step, (index, pixels) in enumerate(fetched(images.images, torch.tensor_split(order, batches))):
            for group in optimizer.param_groups:
                # The middle of the step, so that neither the first nor the last step is wasted.
                group["lr"] = learning_rate_at(config, epoch + (step + 0.5) / batches, reports)
            labels = images.labels[index].to(device)
            if config.augment:
                pixels, labels = task.augmented(pixels, labels, generator, mirrors=images.mirrors)
            parts = -(-len(index) // part_size)
            optimizer.zero_grad(set_to_none=True)
            for part, targets in zip(torch.tensor_split(pixels, parts), torch.tensor_split(labels, parts), strict=True):
                batch = images.normalise(part.to(device))
                with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                    outputs = model(batch)
                outputs = outputs.float()
                loss = task.loss(outputs, targets, config.label_smoothing)
                if tutor is not None:
                    with torch.no_grad():
                        taught = tutor(batch)
                    soft = task.distillation_loss(outputs, taught, config.temperature)
                    loss = (1 - config.distill_weight) * loss + config.distill_weight * soft
                share = len(part) / len(index)
                (loss * share if parts > 1 else loss).backward()  # type: ignore[no-untyped-call]
                total_loss += loss.detach() * len(part)
                if task.of_single_images:
                    correct += task.right(outputs.detach(), targets).sum()
            optimizer.step()
            if average is not None:
                average.update(model, epoch * batches + step + 1)
            if on_step is not None:
                on_step(epoch * batches + step + 1, epochs * batches)
    mean_loss = float(total_loss) / len(images)
    if not math.isfinite(mean_loss):
        raise InvalidConfig(
            f"training diverged in epoch {epoch + 1}: the loss is {mean_loss}",
            next_step=f"lower the learning rate ({config.learning_rate})",
        )
    return mean_loss, float(correct) / len(images) if task.of_single_images else None


def images_at_once(model: nn.Module, images: LabelledImages) -> int:
    """How many images' activations fit in ACTIVATION_BYTES, LEAST_AT_ONCE or more: batches are computed in such parts.

    Depends on the network and the size of the images alone. What backpropagation needs is counted on a copy.
    """
    few = min(len(images), 2)
    probe = copy.deepcopy(model).train()
    own = {tensor.data_ptr() for tensor in (*probe.parameters(), *probe.buffers())}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(model.parameters()).device
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = probe(images.normalised(slice(0, few)).to(device))  # alive, so that no storage is counted as another
    del kept
    return max(LEAST_AT_ONCE, int(ACTIVATION_BYTES * few / max(sum(saved.values()), 1)))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    decaying = {id(parameter) for module in model.modules() for parameter in _decaying(module)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if id(parameter) in decaying], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if id(parameter) not in decaying], "weight_decay": 0.0},
    ]


def _decaying(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of this module alone that weight decay shrinks."""
    # A depthwise filter has some ten weights, which decay holds from their task (MobileNet, Howard et al. 2017).
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels
    if not depthwise and "Norm" not in type(module).__name__:
        yield from (parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1)


def _identity(config: TrainConfig, images: LabelledImages, tutor: nn.Module | None) -> dict[str, str]:
    """What must be equal for a run to be continued. The number of threads may differ."""
    values = {name: str(value) for name, value in asdict(config).items() if name != "threads"}
    return {**values, "images": images.fingerprint(), "teacher": weights_sha256(tutor)}


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[torch.Generator]:
    """A generator for this epoch; torch's own (which dropout draws from) is seeded alike and put back afterwards."""
    epoch_seed = (seed * 1_000_003 + epoch) % 2**63
    with torch.random.fork_rng():
        torch.manual_seed(epoch_seed)
        yield torch.Generator().manual_seed(epoch_seed)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
