"""Which nodes of an .onnx file ONNX Runtime's CPU provider executes as one kernel, by the layout read on the device."""

from __future__ import annotations

from amc_mobile.device.layout import SUMS, OnnxLayout
from amc_mobile.kernels.graph import Graph, Node, Value
from amc_mobile.kernels.operator import CONVERSIONS

SHAPE_ONLY = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


def fused_units(graph: Graph, layout: OnnxLayout) -> list[list[int]]:
    """Groups of nodes that are executed as one, in order of their last node.

    Padding, convolution, the sum it ends in and the activation; or a matrix product and the activation. Nodes that
    only rename a shape belong to the node that reads them: they copy nothing. In QDQ files conversions belong to the
    unit between them; a converted activation that several units read belongs to each, as ONNX Runtime duplicates it.
    """
    return _with_conversions(graph, _Fusion(graph, layout).units())


def _with_conversions(graph: Graph, units: list[list[int]]) -> list[list[int]]:
    makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
    readers = graph.consumers()
    working = [unit for unit in units if any(graph.nodes[index].operator not in CONVERSIONS for index in unit)]
    found = []
    for unit in working:
        before = {makers[v] for index in unit for v in graph.nodes[index].inputs if v is not None and v in makers}
        after = {reader for index in unit for v in graph.nodes[index].outputs for reader in readers.get(v, [])}
        added = {index for index in before if graph.nodes[index].operator == "DequantizeLinear"}
        added |= {index for index in after if graph.nodes[index].operator == "QuantizeLinear"}
        found.append(sorted({*unit, *added}))
    taken = {index for unit in found for index in unit}
    alone = [unit for unit in units if unit not in working and not taken & set(unit)]  # at the network's ends
    return sorted([*found, *alone], key=lambda unit: unit[-1])


class _Fusion:
    def __init__(self, graph: Graph, layout: OnnxLayout) -> None:
        self._graph, self._layout = graph, layout
        self._readers = graph.consumers()
        self._makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
        self._unit: dict[int, list[int]] = {}
        self._blocked: set[Value] = set()

    def units(self) -> list[list[int]]:
        for index, node in enumerate(self._graph.nodes):
            unit = self._unit.setdefault(index, [index])
            for fused in self._fused_after(index):
                if fused in self._unit:
                    break
                unit.append(fused)
                self._unit[fused] = unit
            if self._gives_blocks(node):
                self._blocked.update(node.outputs)
        distinct = {id(unit): sorted(unit) for unit in self._unit.values()}
        return sorted(distinct.values(), key=lambda unit: unit[-1])

    def _gives_blocks(self, node: Node) -> bool:
        """Whether a node's output is laid out in blocks of channels."""
        if node.operator == "Conv":
            return bool(self._layout.block) and len(self._graph.shapes[node.outputs[0]]) == 4
        data = [value for slot, value in enumerate(node.inputs) if value is not None and slot not in node.constants]
        if not data or not all(value in self._blocked for value in data):
            return False
        if multiple := self._layout.part_multiple(node.operator):
            return all(self._graph.shapes[value][1] % multiple == 0 for value in data)
        # With a constant summand or factor they leave the blocks.
        return node.operator in self._layout.on_blocks and not (node.operator in SUMS and node.constants)

    def _only_reader(self, index: int) -> tuple[int, str] | tuple[None, str]:
        """The node that alone reads what `index` makes, and its operator."""
        value = self._graph.nodes[index].outputs[0]
        found = self._readers.get(value, [])
        if len(found) != 1 or value in self._graph.outputs:
            return None, ""
        return found[0], self._graph.nodes[found[0]].operator

    def _fused_after(self, index: int) -> list[int]:
        node = self._graph.nodes[index]
        operator = node.operator
        reader, kind = self._only_reader(index)
        if reader is None:
            return []
        if operator in SHAPE_ONLY or (operator == "Pad" and kind in self._layout.pads_fused):
            return [reader]
        if operator == "Sigmoid" and kind == "Mul" and self._layout.gated_sigmoid:
            return [reader] if node.inputs[0] in self._graph.nodes[reader].inputs else []
        if operator == "BatchNormalization" and node.inputs[0] in self._blocked:
            # On blocks it becomes a depthwise convolution.
            return [reader] if kind in self._layout.fused_after["Conv"] else []
        return self._fused_after_product(index) if operator in self._layout.fused_after else []

    def _fused_after_product(self, index: int) -> list[int]:
        nodes = self._graph.nodes
        operator, fused = nodes[index].operator, list[int]()
        last, (reader, kind) = index, self._only_reader(index)
        while reader is not None and kind in self._layout.folded_after[operator] and nodes[reader].constants:
            fused.append(reader)
            last, (reader, kind) = reader, self._only_reader(reader)
        bare = self._layout.sums_need_bias and len(nodes[index].inputs) < 3 and not fused
        if reader is not None and kind == "Add" and operator == "Conv" and not bare and self._adds(last, reader):
            following, kind = self._only_reader(reader)
            taken = self._layout.sums_fused_before
            if following is not None and kind in taken:
                return [*fused, reader, following]
            return [*fused, reader] if "" in taken else fused
        # A matrix product with a summand is a Gemm.
        product = "Gemm" if operator == "MatMul" and fused else operator
        if reader is not None and kind in self._layout.fused_after[product]:
            fused.append(reader)
        return fused

    def _adds(self, last: int, reader: int) -> bool:
        """Whether the convolution that ends at `last` may add what `reader` sums: nothing else is left to do first."""
        node, nodes = self._graph.nodes[reader], self._graph.nodes
        makers = [self._makers.get(value, -1) for value in node.inputs]
        if node.constants:
            return False
        if self._layout.block:
            # It is the later summand, and the other one is in blocks.
            others = [value for value in node.inputs if self._makers.get(value) != last]
            return max(makers) == last and all(value in self._blocked for value in others)
        # Of two convolutions the later one adds.
        return not any(nodes[maker].operator == "Conv" for maker in makers if maker > last)
