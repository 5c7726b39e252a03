"""Which nodes of an .onnx file ONNX Runtime's CPU provider executes as one kernel."""

from __future__ import annotations

from amc_mobile.kernels.graph import Graph, Node, Value
from amc_mobile.kernels.operator import CONVERSIONS

# What it fuses into the convolution or the matrix product before it.
AFTER_PRODUCT = {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"}
ACTIVATIONS = {"Conv": AFTER_PRODUCT | {"Clip", "HardSwish"}, "Gemm": AFTER_PRODUCT, "MatMul": AFTER_PRODUCT}
# Arithmetic with constants that it folds into their weights.
FOLDED = {"Conv": {"BatchNormalization", "Mul", "Add"}, "Gemm": set[str](), "MatMul": {"Add"}}
PADDED = {"Conv", "AveragePool", "MaxPool"}  # take the Pad before them
SHAPE_ONLY = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}

# Convolutions give their output in blocks of this many channels (AVX-512; 8 on older processors), and what can work on
# blocks does: only there are sums fused into a convolution.
BLOCK = 16
BLOCKWISE = {"BatchNormalization", "Relu", "Sigmoid", "Tanh"}
WHOLE_BLOCKS = {"Concat", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}  # none of them part filled


def fused_units(graph: Graph) -> list[list[int]]:
    """Groups of nodes that are executed as one, in order of their last node.

    Padding, convolution, the sum it ends in and the activation; or a matrix product and the activation. Nodes that
    only rename a shape belong to the node that reads them: they copy nothing. In QDQ files conversions belong to the
    unit between them; a converted activation that several units read belongs to each, as ONNX Runtime duplicates it.
    """
    return _with_conversions(graph, _Fusion(graph).units())


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
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
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
            return len(self._graph.shapes[node.outputs[0]]) == 4
        data = [value for slot, value in enumerate(node.inputs) if value is not None and slot not in node.constants]
        if not data or not all(value in self._blocked for value in data):
            return False
        if node.operator in WHOLE_BLOCKS:
            return all(self._graph.shapes[value][1] % BLOCK == 0 for value in data)
        # With a constant summand or factor they leave the blocks.
        return node.operator in BLOCKWISE or (node.operator in ("Add", "Mul") and not node.constants)

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
        if operator in SHAPE_ONLY or (operator == "Pad" and kind in PADDED):
            return [reader]
        if operator == "Sigmoid" and kind == "Mul":  # x * sigmoid(x), one operator of its own
            return [reader] if node.inputs[0] in self._graph.nodes[reader].inputs else []
        if operator == "BatchNormalization" and node.inputs[0] in self._blocked:
            # On blocks it becomes a depthwise convolution.
            return [reader] if kind in ACTIVATIONS["Conv"] else []
        return self._fused_after_product(index) if operator in ACTIVATIONS else []

    def _fused_after_product(self, index: int) -> list[int]:
        nodes = self._graph.nodes
        operator, fused = nodes[index].operator, list[int]()
        last, (reader, kind) = index, self._only_reader(index)
        while reader is not None and kind in FOLDED[operator] and nodes[reader].constants:
            fused.append(reader)
            last, (reader, kind) = reader, self._only_reader(reader)
        if reader is not None and kind == "Add" and operator == "Conv" and self._takes_sum(last, reader):
            fused.append(reader)
            reader, kind = self._only_reader(reader)
        if reader is not None and kind in ACTIVATIONS[operator]:
            fused.append(reader)
        return fused

    def _takes_sum(self, last: int, reader: int) -> bool:
        """Whether the convolution that ends at `last` also adds: it is the later summand and the other is in blocks."""
        node = self._graph.nodes[reader]
        if node.constants or max(self._makers.get(value, -1) for value in node.inputs) != last:
            return False
        return all(value in self._blocked or self._makers.get(value) == last for value in node.inputs)
