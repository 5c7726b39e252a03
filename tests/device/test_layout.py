from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from amc_mobile.device.conditions import Conditions, readable
from amc_mobile.device.host import assumed_layout, layout_here
from amc_mobile.device.layout import BLOCKS, OnnxLayout, questions, read
from amc_mobile.errors import InvalidInput

LAYOUT = OnnxLayout(
    block=8, dense_from=8, dense_multiple=4, pool_multiples={"MaxPool": 8}, on_blocks=frozenset({"Relu"}),
    fused_after={"Conv": frozenset({"Relu", "Clip"})}, sums_fused_before=frozenset({""}), gated_sigmoid=True,
)  # fmt: skip
ORT = Conditions(
    device="host", soc="Abacus 9", os="Linux 6", runtime="onnxruntime", runtime_version="1.32.0", library_sha256="ab",
    delegate="CPUExecutionProvider", threads=1, cores="0-3", clock_mode="performance",
)  # fmt: skip


def test_a_layout_survives_its_text() -> None:
    assert OnnxLayout.parse(LAYOUT.text()) == LAYOUT
    assert OnnxLayout.parse("") == OnnxLayout()


@pytest.mark.parametrize(
    "change",
    [{"block": -1}, {"block": True}, {"block": "8"}, {"on_blocks": "Relu"}, {"fused_after": ["Conv"]}, {"more": 1},
     {"pool_multiples": {"MaxPool": "8"}}, {"gated_sigmoid": 1}],
)  # fmt: skip
def test_a_text_with_other_fields_or_types_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="not a layout"):
        OnnxLayout.parse(json.dumps(json.loads(LAYOUT.text()) | change))


@pytest.mark.parametrize("text", ["[]", "{", "8", '"x"', "[" * 100_000])
def test_what_is_no_layout_at_all_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a layout"):
        OnnxLayout.parse(text)


def test_a_graph_that_nobody_optimised_has_neither_fusions_nor_blocks() -> None:
    found = read(questions())
    assert found.block == 0
    assert not any(found.fused_after.values())
    assert not any(found.folded_after.values())
    assert not found.sums_fused_before
    assert not found.pads_fused
    assert not found.gated_sigmoid
    assert found.summary == "no blocks of channels"


def test_the_block_is_what_the_weights_of_a_blocked_convolution_are_filled_up_to() -> None:
    model = onnx.load_from_string(questions())
    (node,) = [node for node in model.graph.node if list(node.output) == ["dense.64"]]
    node.domain = BLOCKS
    filled = numpy_helper.from_array(np.zeros((32, 64, 1, 1), np.float32), "filled")
    model.graph.initializer.append(filled)
    node.input[1] = "filled"
    reorder = helper.make_node("ReorderInput", [node.input[0]], ["reordered"], domain=BLOCKS)
    node.input[0] = "reordered"
    model.graph.node.insert(0, reorder)
    found = read(model.SerializeToString())
    assert (found.block, found.dense_from, found.summary) == (32, 64, "blocks of 32 channels")


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(b"\xff" * 40)


def test_tables_of_other_layouts_are_not_mixed() -> None:
    eight, sixteen = (replace(ORT, layout=replace(LAYOUT, block=block).text()) for block in (8, 16))
    assert eight.key != sixteen.key
    assert list(eight.differences(sixteen)) == ["layout"]
    assert Conditions.from_document(eight.to_document()) == eight
    assert readable(eight.to_document())["layout"] == "blocks of 8 channels"


def test_conditions_that_tell_no_layout_keep_the_key_that_they_had() -> None:
    assert "layout" not in ORT.to_document()
    assert ORT.key == "078779f1e3ca352558c5a4bcb7bfb201855d0eae1e46892e5ac4db5e2478419f"
    assert Conditions.from_document(ORT.to_document()) == ORT


def test_a_layout_in_conditions_has_to_be_one() -> None:
    with pytest.raises(InvalidInput, match="not a layout"):
        Conditions.from_document({**ORT.to_document(), "layout": "blocks of 8"})


def test_litert_tells_no_layout() -> None:
    assert layout_here("tflite") == ""


def test_a_device_that_does_not_tell_is_taken_to_fuse_as_this_computer_does_without_blocks() -> None:
    here, assumed = (OnnxLayout.parse(text) for text in (layout_here("onnxruntime"), assumed_layout("onnxruntime")))
    assert assumed == replace(here, block=0)
    assert assumed_layout("tflite") == ""
