from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.data.images import FileImages, ImageSet
from amc_mobile.errors import CorruptFile, InvalidConfig, InvalidInput
from amc_mobile.models import training
from amc_mobile.models.task import CLASSIFICATION, augmented, evaluate, logits
from amc_mobile.models.training import (
    MOST_EPOCHS,
    EpochReport,
    TrainConfig,
    WeightAverage,
    best_epoch,
    flat_epochs,
    images_at_once,
    learning_rate_at,
    planned_epochs,
    train,
)

CONFIG = TrainConfig(epochs=4, learning_rate=0.1, batch_size=16, warmup_share=0.125, threads=1)


def small_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(32, 2),
        )


def stripes(count: int = 65, seed: int = 0) -> ImageSet:
    """Noisy 8x8 images: class 0 has horizontal stripes, class 1 vertical ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    ramp = (torch.arange(8) % 2 * 120)[:, None].expand(8, 8)
    pattern = torch.stack([ramp, ramp.T])[labels]
    images = (pattern + torch.randint(0, 130, (count, 8, 8), generator=generator)).to(torch.uint8)
    return ImageSet(images[:, None], labels, torch.tensor([0.4]), torch.tensor([0.25]))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


class StoppedError(Exception):
    pass


def stop_after(epoch: int) -> Callable[[EpochReport], None]:
    def on_epoch(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise StoppedError

    return on_epoch


@pytest.mark.parametrize("bf16", [False, True])
def test_training_learns_what_separates_the_classes_and_keeps_float32_weights(bf16: bool) -> None:
    model = small_net()
    reports = train(model, stripes(), replace(CONFIG, epochs=12, bf16=bf16), validate=stripes(40, seed=1))
    assert reports[-1].validation_top1 is not None
    assert reports[-1].validation_top1 > 0.9
    assert reports[-1].train_loss < reports[0].train_loss
    assert [report.epoch for report in reports] == list(range(1, 13))
    assert not model.training
    assert weights(model).dtype == torch.float32


def test_the_same_seed_gives_the_same_weights() -> None:
    models = [small_net() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train(model, stripes(), replace(CONFIG, seed=seed))
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path, ema_decay: float) -> None:
    config, held_out = replace(CONFIG, ema_decay=ema_decay), stripes(seed=1)
    whole, interrupted, continued, finished = small_net(), small_net(), small_net(seed=5), small_net(seed=6)
    expected = train(whole, stripes(), config, validate=held_out)
    resumed: dict[str, Any] = {"resume": tmp_path / "run", "validate": held_out}
    with pytest.raises(StoppedError):
        train(interrupted, stripes(), config, on_epoch=stop_after(2), **resumed)
    torch.manual_seed(123)  # another process has other random numbers
    seen: list[EpochReport] = []
    for model in (continued, finished):  # the second has nothing left to train
        reports = train(model, stripes(), config, on_epoch=seen.append, **resumed)
        assert torch.equal(weights(model), weights(whole))
        assert [replace(r, seconds=0.0) for r in reports] == [replace(r, seconds=0.0) for r in expected]
    assert [report.epoch for report in seen] == [3, 4]
    assert expected[-1].validation_top1 == evaluate(whole, held_out)  # of the averaged weights


def test_averaged_weights_are_others() -> None:
    plain, averaged = small_net(), small_net()
    train(plain, stripes(), CONFIG)
    train(averaged, stripes(), replace(CONFIG, ema_decay=0.9))
    assert not torch.equal(weights(plain), weights(averaged))


def test_images_decoded_in_every_epoch_train_as_those_in_memory() -> None:
    held = stripes()
    decoded: list[str] = []

    def decode(name: str) -> NDArray[np.uint8]:
        decoded.append(name)
        return held.images[int(name)].numpy()

    files = FileImages([str(i) for i in range(len(held))], decode, (1, 8, 8), workers=3, identity="stripes")
    nets = small_net(), small_net()
    for net, images in zip(nets, (held, replace(held, images=files)), strict=True):
        train(net, images, CONFIG)
    assert torch.equal(*map(weights, nets))
    counted = Counter(["0", "1"])  # on which the activations of an image are counted
    assert Counter(decoded) - counted == {str(i): CONFIG.epochs for i in range(len(held))}


def test_the_average_follows_the_weights_at_its_decay() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = WeightAverage(model, decay=0.5)
    value = model[0].weight.item()
    for step in (1, 2, 100):
        model[0].weight.data += 1
        model[1].num_batches_tracked += 1
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        value = decay * value + (1 - decay) * model[0].weight.item()
        assert average.module[0].weight.item() == pytest.approx(value)
    assert average.module[1].num_batches_tracked.item() == 3
    assert model[0].weight.item() != pytest.approx(value)


def test_a_killed_process_leaves_a_file_that_a_run_continues_from(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_training import CONFIG, replace, small_net, stripes, train\n"
        "train(small_net(), stripes(), replace(CONFIG, epochs=100_000), resume=Path(sys.argv[1]))\n"
    )
    file = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", program, str(file), str(Path(__file__).parent)])
    deadline_s = time.monotonic() + 240
    while not file.exists() and child.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    child.kill()
    child.wait()
    config = replace(CONFIG, epochs=100_000)
    reached: list[int] = []

    def stop_at_once(report: EpochReport) -> None:
        reached.append(report.epoch)
        raise StoppedError

    with pytest.raises(StoppedError):
        train(small_net(), stripes(), config, resume=file, on_epoch=stop_at_once)
    assert reached[0] > 1


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_net(), stripes(), CONFIG, resume=run)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    for model, images, config, difference in (
        (small_net(), stripes(), replace(CONFIG, learning_rate=0.2), r"learning_rate 0\.1 there, 0\.2 here"),
        (small_net(), stripes(seed=3), CONFIG, "images"),
        (flat, stripes(), CONFIG, "other layers or widths"),
    ):
        with pytest.raises(InvalidConfig, match=difference):
            train(model, images, config, resume=run)
    run.write_bytes(b"half a file")
    with pytest.raises(CorruptFile, match="not a training checkpoint"):
        train(small_net(), stripes(), CONFIG, resume=run)


def test_settings_that_cannot_train_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"distill_weight is 1\.5; it must be in \[0, 1\]"):
        TrainConfig(distill_weight=1.5)
    with pytest.raises(InvalidConfig, match="no teacher"):
        train(small_net(), stripes(), replace(CONFIG, distill_weight=0.5))
    with pytest.raises(InvalidConfig, match="diverged") as caught:
        train(small_net(), stripes(), replace(CONFIG, learning_rate=1e30, warmup_share=0.0))
    assert "lower the learning rate" in caught.value.next_step


def test_the_student_follows_its_teacher_rather_than_the_labels() -> None:
    teacher, student = small_net(), small_net(seed=1)
    train(teacher, stripes(), replace(CONFIG, epochs=12))
    before = weights(teacher).clone()
    images = stripes()
    contrary = replace(images, labels=1 - images.labels)
    train(student, contrary, replace(CONFIG, epochs=12, distill_weight=1.0), teacher=teacher)
    assert evaluate(student, images) > 0.9
    assert torch.equal(weights(teacher), before)


def test_the_distillation_loss_is_nothing_for_equal_outputs_and_follows_its_formula() -> None:
    targets = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    assert CLASSIFICATION.distillation_loss(targets + 7, targets, 4.0).item() == pytest.approx(0.0, abs=1e-6)
    p, q = (targets / 2).softmax(1), torch.full((2, 2), 0.5)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    assert CLASSIFICATION.distillation_loss(torch.zeros(2, 2), targets, 2.0).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_batches_computed_in_parts_train_as_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of parts add up to the batch's; only batch norms would see fewer images at a time."""
    nets = []
    for least in (10**6, 16):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            nets.append(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)))
        monkeypatch.setattr(training, "ACTIVATION_BYTES", 1)
        monkeypatch.setattr(training, "LEAST_AT_ONCE", least)
        train(nets[-1], stripes(), replace(CONFIG, batch_size=65))
    assert torch.allclose(weights(nets[0]), weights(nets[1]), atol=1e-5)
    assert not torch.equal(weights(nets[0]), weights(nets[1]))  # it was in parts


def test_as_many_images_at_once_as_their_activations_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image of 8x8: 256 bytes of input, 2048 of a convolution's output, 2048 behind the batch norm."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    before = weights(model).clone()
    monkeypatch.setattr(training, "ACTIVATION_BYTES", 100 * (256 + 2048 + 2048))
    assert 90 <= images_at_once(model, stripes()) <= 100
    monkeypatch.setattr(training, "ACTIVATION_BYTES", 1)
    assert images_at_once(model, stripes()) == 16
    assert torch.equal(weights(model), before)


def test_the_activations_of_a_large_batch_are_not_all_held_at_once() -> None:
    """In a process of its own, a network whose activations of one batch would take 1.2 GB."""
    program = """
import resource
import torch
from torch import nn
from amc_mobile.data.images import ImageSet
from amc_mobile.models.training import TrainConfig, train

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def unit(inputs):
    return [nn.Conv2d(inputs, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]

net = nn.Sequential(*unit(3), *unit(16), *unit(16), *unit(16), *unit(16), *unit(16), *unit(16), *unit(16), *unit(16),
                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
pixels = torch.zeros(128, 3, 64, 64, dtype=torch.uint8)
images = ImageSet(pixels, torch.arange(128) % 2, torch.full((3,), 0.5), torch.full((3,), 0.5))
before = peak_mb()
train(net, images, TrainConfig(epochs=1, batch_size=128, threads=1), validate=images)
print(peak_mb() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert float(done.stdout) < 1000  # whole: 1800


def test_the_learning_rate_rises_then_falls_to_nothing_within_a_single_epoch_too() -> None:
    config = TrainConfig(learning_rate=0.4, warmup_share=0.2)
    rates = [learning_rate_at(config, 30 * progress) for progress in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.2, 0.0])
    report = train(small_net(), stripes(640), TrainConfig(epochs=1, learning_rate=0.1, batch_size=16, threads=1))[0]
    assert report.learning_rate < 0.001


def of_accuracies(*top1: float) -> list[EpochReport]:
    return [EpochReport(n + 1, 0, 1.0, None, value, 0.1, 1.0) for n, value in enumerate(top1)]


def test_without_a_given_end_the_rate_falls_once_the_accuracy_has_not_risen_for_a_while() -> None:
    config = TrainConfig(epochs="auto", learning_rate=0.4)
    rising, still = [0.01 * n for n in range(1, 41)], [0.4] * 8
    assert flat_epochs([]) == 5
    assert flat_epochs(of_accuracies(*rising[:10])) == 15  # five epochs from now, if nothing rises
    assert flat_epochs(of_accuracies(*rising)) == 50  # a fifth of 50 after the 40th
    ended = of_accuracies(*rising[:10], *[0.1] * 5)
    assert (flat_epochs(ended), planned_epochs(config, ended)) == (15, 20)
    later = ended + of_accuracies(0.9, 0.95)  # what falls makes it rise, and does not put off the end
    assert planned_epochs(config, later) == 20
    rates = [learning_rate_at(config, epoch, ended) for epoch in (0, 0.25, 0.5, 14.9, 15, 17.5, 20)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.4, 0.4, 0.2, 0.0])
    assert flat_epochs(of_accuracies(*rising, *still, *[0.4 + 0.001 * n for n in range(400)])) == MOST_EPOCHS


def test_training_ends_by_itself_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    config, held_out = replace(CONFIG, epochs="auto"), stripes(seed=1)
    whole, cut, steps = small_net(), small_net(), list[tuple[int, int]]()
    reports = train(whole, stripes(), config, validate=held_out, on_step=lambda *step: steps.append(step))
    flat = flat_epochs(reports)
    assert len(reports) == reports[-1].epochs == planned_epochs(config, reports) > flat
    assert steps[-1] == (5 * len(reports), 5 * len(reports))  # batches
    assert {report.learning_rate for report in reports[1:flat]} == {0.1}
    assert reports[-1].learning_rate < 0.02
    assert evaluate(whole, held_out) > 0.9
    resumed: dict[str, Any] = {"resume": tmp_path / "run", "validate": held_out}
    for epoch in (2, flat + 1):
        with pytest.raises(StoppedError):
            train(cut, stripes(), config, on_epoch=stop_after(epoch), **resumed)
    cut = small_net(seed=5)
    assert len(train(cut, stripes(), config, **resumed)) == len(reports)
    assert torch.equal(weights(cut), weights(whole))
    with pytest.raises(InvalidConfig, match="the end"):
        train(small_net(), stripes(), config)


def test_norms_biases_and_depthwise_filters_do_not_decay() -> None:
    """A learning rate too small to learn anything, and a decay that halves what it touches."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm([4, 8, 8]),
        nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    config = TrainConfig(
        epochs=1, learning_rate=1e-6, batch_size=65, warmup_share=0, weight_decay=1e6, momentum=0, threads=1
    )
    train(model, stripes(), config)
    after = model.state_dict()
    shrunk = {n for n, _ in model.named_parameters() if after[n].norm() < 0.8 * before[n].norm()}
    assert shrunk == {"0.weight", "6.weight"}


def test_the_best_epoch_is_kept_also_by_a_run_that_was_interrupted(tmp_path: Path) -> None:
    """Contrary labels: a network that knows the classes unlearns them epoch by epoch."""
    start, held_out = small_net(), stripes(200, seed=1)
    train(start, stripes(), replace(CONFIG, epochs=12))
    contrary = replace(stripes(), labels=1 - stripes().labels)
    config = replace(CONFIG, epochs=6, learning_rate=0.01)
    last, best, cut = (copy.deepcopy(start) for _ in range(3))
    reports = train(last, contrary, config, validate=held_out)
    train(best, contrary, config, validate=held_out, keep_best=True)
    found = best_epoch(reports)
    assert found is not None
    assert found.epoch < 6
    assert evaluate(best, held_out) == found.validation_top1
    assert evaluate(last, held_out) < evaluate(best, held_out)
    resumed: dict[str, Any] = {"resume": tmp_path / "run", "validate": held_out, "keep_best": True}
    with pytest.raises(StoppedError):
        train(cut, contrary, config, on_epoch=stop_after(found.epoch + 1), **resumed)
    cut = small_net(seed=5)
    train(cut, contrary, config, **resumed)
    assert torch.equal(weights(cut), weights(best))


def test_equal_epochs_keep_the_last_and_no_images_no_best() -> None:
    reports = [EpochReport(n, 3, 1.0, 1.0, top1, 0.1, 1.0) for n, top1 in ((1, 0.5), (2, 0.9), (3, 0.9))]
    best = best_epoch(reports)
    assert best is not None
    assert best.epoch == 3
    assert best_epoch([replace(report, validation_top1=None) for report in reports]) is None
    with pytest.raises(InvalidConfig, match="best epoch"):
        train(small_net(), stripes(), CONFIG, keep_best=True)


# Augmentation


def test_augmented_images_are_shifted_or_mirrored_copies() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    batch = augmented(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0), mirrors=True)
    middles = {tuple(middle.flatten().tolist()) for middle in batch[:, 0, 2:6, 2:6]}
    possible = set()
    for source in (image[0, 0], image[0, 0].flip(1)):
        possible |= {tuple(source[r : r + 4, c : c + 4].flatten().tolist()) for r in (1, 2, 3) for c in (1, 2, 3)}
    assert middles == possible
    assert batch.dtype == torch.uint8


def test_images_that_must_not_be_mirrored_are_not() -> None:
    columns = torch.arange(8, dtype=torch.uint8).expand(50, 1, 8, 8)
    batch = augmented(columns, torch.Generator().manual_seed(0), mirrors=False)
    assert bool((batch[:, :, :, 6].int() > batch[:, :, :, 1].int()).all())


# Evaluation


def test_accuracy_does_not_depend_on_the_batch_size() -> None:
    model, images = small_net(), stripes()
    outputs = logits(model, images, batch_size=7)
    torch.testing.assert_close(outputs, logits(model, images))
    assert evaluate(model, images) == pytest.approx((outputs.argmax(1) == images.labels).float().mean().item())


def test_evaluation_leaves_the_mode_of_every_layer_as_it_was() -> None:
    model = small_net().train()
    model[1].eval()
    before = weights(model).clone()
    evaluate(model, stripes())
    assert model[0].training
    assert not model[1].training
    assert torch.equal(weights(model), before)


class Viewing(nn.Module):
    """Flattens a map in a way that the channels-last layout does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return self.fc(maps.view(len(x), -1))  # type: ignore[no-any-return]


def test_a_network_that_views_its_maps_is_evaluated_in_the_other_layout() -> None:
    model, images = Viewing(), stripes()
    with torch.no_grad():
        wanted = model(images.normalised().contiguous())
    torch.testing.assert_close(logits(model, images, batch_size=20), wanted)
    with pytest.raises(RuntimeError, match="view"):
        logits(model.to(memory_format=torch.channels_last), images, channels_last=True)


def test_no_images_to_evaluate_on_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="no images"):
        evaluate(small_net(), stripes().subset([]))
