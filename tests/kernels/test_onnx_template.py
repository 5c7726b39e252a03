from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from template_subjects import ALL, differences, graph_of, subject
from torch import nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import CostModel
from amc_mobile.device.host import layout_here
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.errors import InvalidInput
from amc_mobile.export.parity import run_onnx
from amc_mobile.kernels.onnx import fused_units
from amc_mobile.kernels.template import load_or_build

RUNTIME = "onnxruntime"


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ALL)
def test_the_model_at_a_random_plan_is_the_true_export_of_the_pruned_network(name: str) -> None:
    it = subject(name, RUNTIME)
    file = it.template.model_at(it.kept)
    assert differences(graph_of(file, RUNTIME), graph_of(it.true_file, RUNTIME)) == []
    outputs = run_onnx(file, it.images)
    np.testing.assert_array_equal(outputs, run_onnx(it.true_file, it.images))
    np.testing.assert_allclose(outputs, it.logits, atol=1e-5 * np.abs(it.logits).max())


@pytest.mark.parametrize("name", [*ALL, "FoldedSpace", "DepthwiseUpsampling"])
def test_the_kernels_of_a_plan_have_the_macs_of_the_pruned_network(name: str) -> None:
    it = subject(name, RUNTIME)
    kernels = it.template.kernels(it.widths)
    assert sum(kernel.macs for kernel in kernels) == CostModel(it.model, it.groups).macs(it.widths)


@pytest.mark.parametrize("name", ["plain20", "ShuffleLike", "SqueezeExcite"])
def test_every_kernel_that_is_cut_out_runs_and_has_the_shapes_it_is_known_by(name: str) -> None:
    it = subject(name, RUNTIME)
    for site in it.template.sites:
        file = it.template.cut(site.index, it.kept)
        graph, kernel = graph_of(file, RUNTIME), it.template.kernel_at(site.index, it.widths)
        assert [node.operator for node in graph.nodes] == [operator.name for operator in kernel.operators]
        last = kernel.operators[-1]
        assert tuple(graph.shapes[value] for value in graph.nodes[-1].outputs) == last.outputs
        assert all(np.isfinite(output).all() for output in one_run(file))


@pytest.mark.parametrize("name", ALL)
def test_layers_are_named_by_their_module_path(name: str) -> None:
    it = subject(name, RUNTIME)
    kernels = it.template.kernels(it.template.sizes)
    working = [site.name for site, kernel in zip(it.template.sites, kernels, strict=True) if kernel.macs]
    assert sorted(working) == sorted(layer.name for layer in it.groups.layers)


def test_equal_axes_mean_equal_kernels_and_other_groups_do_not_matter() -> None:
    it = subject("DenseLike", RUNTIME)
    rng = np.random.default_rng(0)
    for site in it.template.sites:
        widths = it.template.sizes.copy()
        others = [g for g in range(len(widths)) if g not in site.group_indices]
        kernel = it.template.kernel_at(site.index, widths)
        widths[others] = rng.integers(2, widths[others] + 1)
        assert it.template.kernel_at(site.index, widths) == kernel
        if site.group_indices:
            widths[site.group_indices[0]] -= 1
            assert it.template.kernel_at(site.index, widths).key != kernel.key


def test_layers_of_equal_shape_share_a_kernel() -> None:
    template = subject("plain20", RUNTIME).template
    first, second = (
        template.kernel_at(site.index, template.sizes).key
        for site in template.sites
        if site.name in ("layer1.0.conv1", "layer1.1.conv1")
    )
    assert first == second


@pytest.mark.parametrize("channels", [[3], [], [0, 99], [-1, 2]])
def test_channels_that_cannot_be_kept_are_refused(channels: list[int]) -> None:
    it = subject("plain20", RUNTIME)
    with pytest.raises(InvalidInput, match="cannot keep"):
        it.template.model_at({it.groups.names[0]: np.array(channels, dtype=np.int64)})


def test_a_group_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        subject("plain20", RUNTIME).template.model_at({"nowhere": np.arange(4)})


@pytest.mark.parametrize("name", ["mobilenet_v2", "InceptionLike", "resnet20", "resnet50", "DenseLike", "ShuffleLike"])
def test_units_are_what_onnx_runtime_executes(name: str, tmp_path: Path) -> None:
    it = subject(name, RUNTIME)
    whole = it.template.model_at({})
    # Conversions of the layout belong to no operator of ours; renaming a shape is free.
    free = ("ReorderInput", "ReorderOutput", "Reshape")
    units = fused_units(graph_of(whole, RUNTIME), OnnxLayout.parse(layout_here(RUNTIME)))
    assert len(units) == sum(name not in free for name, _ in executed(whole, tmp_path))


def test_a_hard_swish_is_cut_out_as_it_is_fused_in_the_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Hardswish(), nn.Conv2d(16, 32, 1), nn.AdaptiveAvgPool2d(1))
    groups = find_groups(model.eval(), torch.zeros(1, 3, 8, 8))
    template = load_or_build(model, groups, RUNTIME, tmp_path, layout=layout_here(RUNTIME))
    assert [kernel.label.split()[0] for kernel in template.kernels(template.sizes)][:2] == ["Conv+HardSwish", "Conv"]
    alone, whole = (executed(file, tmp_path) for file in (template.cut(0, {}), template.model_at({})))
    assert [one for one in alone if one[0] == "Conv"] == [one for one in whole if one[0] == "Conv"][:1]
    assert [output.shape for output in one_run(template.cut(0, {}))] == [(1,)]


def executed(file: bytes, folder: Path) -> list[tuple[str, bytes]]:
    """(operator, activation fused into it) of the nodes that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that an optimised file should not leave this machine
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimised.onnx").graph.node
    return [(node.op_type, next((a.s for a in node.attribute if a.name == "activation"), b"")) for node in nodes]


def one_run(file: bytes) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return list(session.run(None, {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}))
