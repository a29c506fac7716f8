"""Small graphs with one operator that a parser may refuse."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, INT4, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT4, TensorProto.INT64


def model(nodes, inputs, outputs, constants=(), opset=24):
    """A graph whose tensors have the types that they would have in a file."""
    values = [[helper.make_tensor_value_info(*spec) for spec in specs] for specs in (inputs, outputs)]
    domains = [helper.make_opsetid("com.microsoft", 1)] if any(node.domain for node in nodes) else []
    made = helper.make_model(
        helper.make_graph(nodes, "g", *values, list(constants)),
        opset_imports=[helper.make_opsetid("", opset), *domains],
        ir_version=10,
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def constant(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.array(values, dtype), name)


def attention(kind=HALF, inputs=("q", "k", "v"), outputs=("y",), **attributes):
    """Of two heads of 64 over five keys."""
    node = helper.make_node("Attention", inputs, outputs, "attend", **attributes)
    shapes = {
        "q": [1, 2, 3, 64],
        "k": [1, 2, 5, 64],
        "v": [1, 2, 5, 64],
        "pk": [1, 2, 4, 64],
        "pv": [1, 2, 4, 64],
    }
    specs = [(name, kind, shapes[name]) for name in inputs if name]
    return model([node], specs, [(name, kind, None) for name in outputs])


def quantised(zero=None, scale=(0.5, 0.5), kind=INT4, columns=4):
    """Two rows of weights, in blocks along the rows."""
    weights = helper.make_tensor("w", kind, [2, columns], [1] * (2 * columns))
    constants = [weights, constant("s", np.resize(np.array(scale), (1, columns)), np.float16)]
    if zero is not None:
        constants.append(helper.make_tensor("z", kind, [1, columns], [zero] * columns))
    inputs = ["w", "s", *(["z"] if zero is not None else [])]
    node = helper.make_node("DequantizeLinear", inputs, ["y"], "dequantise", axis=0, block_size=2)
    return model([node], [], [("y", HALF, [2, columns])], constants)


def scattered(kind=HALF, *, in_place=True, **attributes):
    """A cache of eight rows, and a new one."""
    nodes = [helper.make_node("TensorScatter", ["past", "new", "at"], ["present"], "write", **attributes)]
    if not in_place:
        nodes.append(helper.make_node("Identity", ["present"], ["copy"]))
    inputs = [("past", kind, [1, 2, 8, 4]), ("new", kind, [1, 2, 1, 4]), ("at", INT64, [1])]
    return model(nodes, inputs, [("present" if in_place else "copy", kind, [1, 2, 8, 4])])


def scatters(operator, reduction=None):
    """Two rows into four."""
    attributes = {"reduction": reduction} if reduction else {}
    node = helper.make_node(operator, ["x", "i", "u"], ["y"], "put", **attributes)
    inputs = [("x", FLOAT, [4, 1]), ("i", INT64, [2, 1]), ("u", FLOAT, [2, 1])]
    return model([node], inputs, [("y", FLOAT, [4, 1])])


def selection(k, is_sorted=1):
    """The K largest of 4096."""
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], "top", sorted=is_sorted)
    outputs = [("v", FLOAT, [2, k]), ("i", INT64, [2, k])]
    return model([node], [("x", FLOAT, [2, 4096])], outputs, [constant("k", [k])])
