from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from template_subjects import ALL, differences, graph_of, subject

from amc_mobile.channels.structure import CostModel
from amc_mobile.errors import InvalidInput
from amc_mobile.export.parity import run_tflite
from amc_mobile.formats import open_tflite

RUNTIME = "tflite"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra"),
]


@pytest.mark.parametrize("name", ALL)
def test_the_model_at_a_random_plan_is_the_true_export_of_the_pruned_network(name: str) -> None:
    it = subject(name, RUNTIME)
    file = it.template.model_at(it.kept)
    assert differences(graph_of(file, RUNTIME), graph_of(it.true_file, RUNTIME)) == []
    outputs = run_tflite(file, it.images)
    np.testing.assert_array_equal(outputs, run_tflite(it.true_file, it.images))
    np.testing.assert_allclose(outputs, it.logits, atol=1e-5 * np.abs(it.logits).max())


@pytest.mark.parametrize("name", ALL)
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


def test_padding_belongs_to_the_convolution_that_reads_it() -> None:
    template = subject("plain20", RUNTIME).template
    padded = [k for k in template.kernels(template.sizes) if k.operators[0].name == "PAD"]
    assert [[o.name for o in kernel.operators] for kernel in padded] == [["PAD", "CONV_2D"]] * 2  # one per stride 2
    assert {kernel.operator_type for kernel in padded} == {"convkxk"}


def test_weights_lie_aligned_in_the_file() -> None:
    from ai_edge_litert import schema_py_generated as schema

    file = subject("plain20", RUNTIME).template.model_at({})
    flat = schema.Model.GetRootAs(file, 0)
    buffers = [flat.Buffers(i) for i in range(flat.BuffersLength()) if flat.Buffers(i).DataLength()]
    assert len(buffers) > 20
    for buffer in buffers:
        start = buffer._tab.Vector(buffer._tab.Offset(4))
        assert start % 16 == 0


def one_run(file: bytes) -> list[np.ndarray]:
    interpreter = open_tflite(file)
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], np.ones(tensor["shape"], tensor["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(tensor["index"]) for tensor in interpreter.get_output_details()]
