from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from template_subjects import ALL, differences, graph_of, subject
from torch import Tensor, nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import CostModel
from amc_mobile.device.host import layout_here
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.errors import CorruptFile, InvalidConfig, InvalidInput
from amc_mobile.export.parity import run_onnx, run_tflite
from amc_mobile.formats import open_tflite
from amc_mobile.kernels.onnx import fused_units
from amc_mobile.kernels.template import Template, load_or_build

SHAPE = (1, 3, 8, 8)
slow = pytest.mark.slow
NEEDS_TFLITE = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
RUNTIMES = pytest.mark.parametrize("runtime", [pytest.param("tflite", marks=NEEDS_TFLITE), "onnxruntime"])
RUN = {"tflite": run_tflite, "onnxruntime": run_onnx}


class Net(nn.Module):
    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12, 5)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) if self._activation == "relu" else torch.tanh(self.first(x))
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


def net(activation: str = "relu", seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(activation).eval()


def build(model: nn.Module, folder: Path, stages: list[tuple[str, int, int]] | None = None) -> Template:
    groups = find_groups(model, torch.zeros(SHAPE))
    return load_or_build(
        model, groups, "onnxruntime", folder, progress=None if stages is None else lambda *s: stages.append(s)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates")
    build(net(), path)
    return path


def exports(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.onnx")}


def test_a_second_load_exports_nothing_and_gives_the_same_kernels(folder: Path) -> None:
    before, stages = exports(folder), list[tuple[str, int, int]]()
    one, other = build(net(), folder), build(net(), folder, stages)
    assert exports(folder) == before
    assert stages[-1] == ("export for onnxruntime", 2, 2)
    assert [k.key for k in one.kernels(one.sizes)] == [k.key for k in other.kernels(other.sizes)]
    assert one.model_at({}) == other.model_at({})


def test_other_weights_get_files_of_their_own(folder: Path) -> None:
    before = exports(folder)
    build(net(seed=1), folder)
    assert before.items() < exports(folder).items()


def test_an_edited_forward_is_exported_anew(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "templates")
    edited = build(net("tanh"), place)
    assert "Tanh" in [o.name for kernel in edited.kernels(edited.sizes) for o in kernel.operators]
    assert len(exports(place)) == len(exports(folder))


def test_a_broken_file_is_named_and_made_anew_once_deleted(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "templates")
    files = list(place.rglob("original.onnx"))  # other tests may have added templates of other weights
    for broken in files:
        broken.write_bytes(b"not a model")
    with pytest.raises(CorruptFile, match=r"original\.onnx"):
        build(net(), place)
    for broken in files:
        broken.unlink()
    assert build(net(), place).sites


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(InvalidConfig, match="ncnn"):
        load_or_build(model, find_groups(model, torch.zeros(SHAPE)), "ncnn", tmp_path)


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    model = net()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    build(model, folder)
    assert model.training
    assert all(np.array_equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Against true exports of pruned networks


@slow
@RUNTIMES
@pytest.mark.parametrize("name", ALL)
def test_the_model_at_a_random_plan_is_the_true_export_of_the_pruned_network(runtime: str, name: str) -> None:
    it = subject(name, runtime)
    file = it.template.model_at(it.kept)
    assert differences(graph_of(file, runtime), graph_of(it.true_file, runtime)) == []
    outputs = RUN[runtime](file, it.images)
    np.testing.assert_array_equal(outputs, RUN[runtime](it.true_file, it.images))
    np.testing.assert_allclose(outputs, it.logits, atol=1e-5 * np.abs(it.logits).max())


@slow
@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        *(pytest.param("tflite", name, marks=NEEDS_TFLITE) for name in ALL),
        *(("onnxruntime", name) for name in (*ALL, "FoldedSpace", "DepthwiseUpsampling")),
    ],
)
def test_the_kernels_of_a_plan_have_the_macs_of_the_pruned_network(runtime: str, name: str) -> None:
    it = subject(name, runtime)
    kernels = it.template.kernels(it.widths)
    assert sum(kernel.macs for kernel in kernels) == CostModel(it.model, it.groups).macs(it.widths)


@slow
@RUNTIMES
@pytest.mark.parametrize("name", ["plain20", "ShuffleLike", "SqueezeExcite"])
def test_every_kernel_that_is_cut_out_runs_and_has_the_shapes_it_is_known_by(runtime: str, name: str) -> None:
    it = subject(name, runtime)
    for site in it.template.sites:
        file = it.template.cut(site.index, it.kept)
        graph, kernel = graph_of(file, runtime), it.template.kernel_at(site.index, it.widths)
        assert [node.operator for node in graph.nodes] == [operator.name for operator in kernel.operators]
        last = kernel.operators[-1]
        assert tuple(graph.shapes[value] for value in graph.nodes[-1].outputs) == last.outputs
        assert all(np.isfinite(output).all() for output in ONE_RUN[runtime](file))


@slow
@RUNTIMES
@pytest.mark.parametrize("name", ALL)
def test_layers_are_named_by_their_module_path(runtime: str, name: str) -> None:
    it = subject(name, runtime)
    kernels = it.template.kernels(it.template.sizes)
    working = [site.name for site, kernel in zip(it.template.sites, kernels, strict=True) if kernel.macs]
    assert sorted(working) == sorted(layer.name for layer in it.groups.layers)


@slow
@RUNTIMES
def test_equal_axes_mean_equal_kernels_and_other_groups_do_not_matter(runtime: str) -> None:
    it = subject("DenseLike", runtime)
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


@slow
@RUNTIMES
def test_layers_of_equal_shape_share_a_kernel(runtime: str) -> None:
    template = subject("plain20", runtime).template
    first, second = (
        template.kernel_at(site.index, template.sizes).key
        for site in template.sites
        if site.name in ("layer1.0.conv1", "layer1.1.conv1")
    )
    assert first == second


@slow
@RUNTIMES
@pytest.mark.parametrize("channels", [[3], [], [0, 99], [-1, 2]])
def test_channels_that_cannot_be_kept_are_refused(runtime: str, channels: list[int]) -> None:
    it = subject("plain20", runtime)
    with pytest.raises(InvalidInput, match="cannot keep"):
        it.template.model_at({it.groups.names[0]: np.array(channels, dtype=np.int64)})


@slow
@RUNTIMES
def test_a_group_that_does_not_exist_is_refused(runtime: str) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        subject("plain20", runtime).template.model_at({"nowhere": np.arange(4)})


@slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "InceptionLike", "resnet20", "resnet50", "DenseLike", "ShuffleLike"])
def test_units_are_what_onnx_runtime_executes(name: str, tmp_path: Path) -> None:
    it = subject(name, "onnxruntime")
    whole = it.template.model_at({})
    # Conversions of the layout belong to no operator of ours; renaming a shape is free.
    free = ("ReorderInput", "ReorderOutput", "Reshape")
    units = fused_units(graph_of(whole, "onnxruntime"), OnnxLayout.parse(layout_here("onnxruntime")))
    assert len(units) == sum(name not in free for name, _ in executed(whole, tmp_path))


@slow
def test_a_hard_swish_is_cut_out_as_it_is_fused_in_the_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Hardswish(), nn.Conv2d(16, 32, 1), nn.AdaptiveAvgPool2d(1))
    groups = find_groups(model.eval(), torch.zeros(1, 3, 8, 8))
    template = load_or_build(model, groups, "onnxruntime", tmp_path, layout=layout_here("onnxruntime"))
    assert [kernel.label.split()[0] for kernel in template.kernels(template.sizes)][:2] == ["Conv+HardSwish", "Conv"]
    alone, whole = (executed(file, tmp_path) for file in (template.cut(0, {}), template.model_at({})))
    assert [one for one in alone if one[0] == "Conv"] == [one for one in whole if one[0] == "Conv"][:1]
    assert [output.shape for output in onnx_run(template.cut(0, {}))] == [(1,)]


def executed(file: bytes, folder: Path) -> list[tuple[str, bytes]]:
    """(operator, activation fused into it) of the nodes that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that an optimised file should not leave this machine
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimised.onnx").graph.node
    return [(node.op_type, next((a.s for a in node.attribute if a.name == "activation"), b"")) for node in nodes]


def onnx_run(file: bytes) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return list(session.run(None, {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}))


@slow
@NEEDS_TFLITE
def test_padding_belongs_to_the_convolution_that_reads_it() -> None:
    template = subject("plain20", "tflite").template
    padded = [k for k in template.kernels(template.sizes) if k.operators[0].name == "PAD"]
    assert [[o.name for o in kernel.operators] for kernel in padded] == [["PAD", "CONV_2D"]] * 2  # one per stride 2
    assert {kernel.operator_type for kernel in padded} == {"convkxk"}


@slow
@NEEDS_TFLITE
def test_weights_lie_aligned_in_the_file() -> None:
    from ai_edge_litert import schema_py_generated as schema

    file = subject("plain20", "tflite").template.model_at({})
    flat = schema.Model.GetRootAs(file, 0)
    buffers = [flat.Buffers(i) for i in range(flat.BuffersLength()) if flat.Buffers(i).DataLength()]
    assert len(buffers) > 20
    for buffer in buffers:
        start = buffer._tab.Vector(buffer._tab.Offset(4))
        assert start % 16 == 0


def tflite_run(file: bytes) -> list[np.ndarray]:
    interpreter = open_tflite(file)
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], np.ones(tensor["shape"], tensor["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(tensor["index"]) for tensor in interpreter.get_output_details()]


ONE_RUN = {"tflite": tflite_run, "onnxruntime": onnx_run}
