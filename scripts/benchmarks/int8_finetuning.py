"""What `finetune --int8` keeps of a network's accuracy in int8 files, beside fine-tuning in float32 alone.

The same pruned network, the same number of epochs: all in float32, or the last fifth rounding as int8 files do. Both
are exported in int8 with ranges from the same images, and the files themselves classify the test images, without
measuring latencies. --data digits trains a small network here; --model resnet20 comes trained on CIFAR-10
(AMC_MOBILE_DATA names the folder). Goes on where it was killed: the workspace keeps runs and fine-tuned weights.
--quick: digits, one seed, two epochs.

Example: scripts/benchmarks/int8_finetuning.py --model mobilenet_v2 --width 0.5 --input-size 64 --data imagefolder:X.zip
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from cifar import WEIGHTS, data_folder, pretrained
from figures import print_document

import amc_mobile as amc

FORMATS = ("tflite", "onnx")


def accuracies(network: amc.Network, module: torch.nn.Module, folder: Path, seed: int) -> dict[str, float]:
    """On the test images: in float32, and of int8 files."""
    data = network.split(calibration=1500, reward=None, seed=seed)
    images, labels = data.test.normalised(), data.test.labels
    with torch.no_grad():
        found = {"float32": network.task.accuracy(torch.cat([module(part) for part in images.split(64)]), labels)}
    for form in FORMATS:
        path = amc.export_module(
            module, torch.zeros(network.input_shape), folder / f"model.{form}", precision="int8",
            images=data.calibration.normalised(),
        )  # fmt: skip
        found[form] = network.task.accuracy(torch.from_numpy(amc.run_file(path, images.numpy())), labels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v1")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--input-size", type=int, default=32)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--checkpoint", default="", help="of a trained network; without it one is trained here")
    parser.add_argument("--train-epochs", type=int, default=20)
    parser.add_argument("--macs-ratio", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workspace", type=Path, default=Path("int8-finetuning"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs, options.train_epochs = 1, 2, 4
    space = amc.Workspace(options.workspace)
    rows: dict[str, list[dict[str, float]]] = {"float32": [], "int8": []}
    with amc.progress_bars(quiet=options.json) as progress:
        if options.model in WEIGHTS:
            network = pretrained(space, options.model, data_folder())
        else:
            settings = {"width": options.width, "input_size": options.input_size, "data": options.data}
            if not options.checkpoint and not space.trained_checkpoint.exists():
                space.train(options.model, epochs=options.train_epochs, progress=progress, **settings)
            checkpoint = options.checkpoint or str(space.trained_checkpoint)
            network = space.network(options.model, checkpoint=checkpoint, **settings)
        for seed in range(options.seeds):
            for precision, found in rows.items():
                run = space.search(
                    network, amc.Budget(macs_ratio=options.macs_ratio), policy="uniform", seed=seed,
                    name=f"{precision}-{options.macs_ratio:g}-s{seed}", progress=progress,
                )  # fmt: skip
                kept = run.folder / f"int8-files-{options.epochs}.json"
                if not kept.exists():
                    run.finetune(epochs=options.epochs, precision=precision, progress=progress)
                    kept.write_text(json.dumps(accuracies(network, run.module("finetuned"), run.folder, seed)))
                found.append(json.loads(kept.read_text()))
    figures = {
        precision: {name: [one[name] for one in found] for name in ("float32", *FORMATS)}
        for precision, found in rows.items()
    }
    if options.json:
        conditions = {key: str(value) for key, value in vars(options).items() if key != "workspace"}
        print_document("int8_finetuning", figures["int8"], conditions, figures["float32"])
        return
    print("| fine-tuned | float32 | int8 .tflite | int8 .onnx |\n|---|---|---|---|")
    for precision, found in figures.items():
        cells = [f"{statistics.fmean(v):.1%} [{min(v):.1%} to {max(v):.1%}]" for v in found.values()]
        print(f"| {'the last fifth rounding' if precision == 'int8' else 'in float32'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
