"""Types of layers and names of modules as torch has them, and the nodes of an ONNX graph that they stand for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from amct_onnx.errors import ConfigError, nearest

_log = logging.getLogger("amct_onnx")

_TYPES: dict[str, tuple[tuple[str, ...], int | None]] = {
    "Conv1d": (("Conv",), 1),
    "Conv2d": (("Conv",), 2),
    "Conv3d": (("Conv",), 3),
    "ConvTranspose1d": (("ConvTranspose",), 1),
    "ConvTranspose2d": (("ConvTranspose",), 2),
    "ConvTranspose3d": (("ConvTranspose",), 3),
    "Linear": (("Gemm", "MatMul"), None),
    **dict.fromkeys(("BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), (("BatchNormalization",), None)),
    "InstanceNorm": (("InstanceNormalization",), None),
    "GroupNorm": (("GroupNormalization",), None),
    "LayerNorm": (("LayerNormalization",), None),
    "ReLU": (("Relu",), None),
    "ReLU6": (("Clip",), None),
    "Hardtanh": (("Clip",), None),
    "LeakyReLU": (("LeakyRelu",), None),
    "PReLU": (("PRelu",), None),
    "GELU": (("Gelu",), None),
    "Hardswish": (("HardSwish",), None),
    "Hardsigmoid": (("HardSigmoid",), None),
    "LogSoftmax": (("LogSoftmax",), None),
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "MaxPool3d"), (("MaxPool",), None)),
    **dict.fromkeys(("AvgPool1d", "AvgPool2d", "AvgPool3d"), (("AveragePool",), None)),
    "AdaptiveAvgPool2d": (("GlobalAveragePool", "AveragePool", "ReduceMean"), None),
    "add": (("Add",), None),
    "sub": (("Sub",), None),
    "mul": (("Mul",), None),
    "div": (("Div",), None),
    "matmul": (("MatMul",), None),
    "cat": (("Concat",), None),
    "flatten": (("Flatten",), None),
    "reshape": (("Reshape",), None),
    "permute": (("Transpose",), None),
    "transpose": (("Transpose",), None),
    "squeeze": (("Squeeze",), None),
    "unsqueeze": (("Unsqueeze",), None),
    "split": (("Split",), None),
    "chunk": (("Split",), None),
    "strided_slice": (("Slice",), None),
    "interpolate": (("Resize",), None),
    "pad": (("Pad",), None),
    "clamp": (("Clip",), None),
    "Embedding": (("Gather",), None),
    "PixelShuffle": (("DepthToSpace",), None),
}
"""Name -> (operators it stands for, number of spatial axes where the name says it)."""

_PART = re.compile(r"(?P<type>[^\[\]/]+)(?:\[(?P<attribute>[^\]]*)\])?$")
_MOST_LISTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedNode:
    """What a node can be recognised by.

    name, op: of the node.
    weight: name of its weight; empty where it has none.
    axes: its spatial axes, where they are known.
    """

    name: str
    op: str
    weight: str = ""
    axes: int | None = None


def check_type(name: str, ops: Iterable[str]) -> None:
    """Raise ConfigError unless `name` is a type of torch or an operator, such as those of the graph."""
    known = {*_TYPES, *ops, *(op for operators, _ in _TYPES.values() for op in operators)}
    known |= {"Sigmoid", "Tanh", "Softmax", "Mish", "Dropout"}
    if name not in known:
        raise ConfigError(f"layer_type {name!r} is unknown{nearest(name, known)}")


def is_of_torch_type(node: NamedNode, name: str) -> bool:
    """Whether a node is what a type stands for; a depthwise convolution is a Conv2d too, a Linear has a weight."""
    operators, axes = _TYPES.get(name, ((name,), None))
    if name == "Linear" and not node.weight:
        return False
    return node.op in operators and (axes is None or node.axes is None or axes == node.axes)


def nodes_named(name: str, nodes: Sequence[NamedNode]) -> list[str]:
    """The nodes that a layer_name stands for: a node's own name, or a module's path.

    `Net::Net/Layer[layer1]/Conv2d[conv1]/input.2` is the path layer1.conv1 of type Conv2d; the last part is a name of
    one trace and tells nothing. A module that is used several times is all of its nodes.

    Raises:
        ConfigError: no node is meant, or nodes of several modules could be; lists the candidates.
    """
    if any(node.name == name for node in nodes):
        return [name]
    path, kind = _module_of(name)
    if not path:
        raise ConfigError(f"layer_name {name!r} names no node and no module{_candidates(name, nodes)}")
    exact = [node for node in nodes if _weight_path(node) == path] or [n for n in nodes if _node_path(n) == path]
    typed = [node for node in exact if kind is None or kind not in _TYPES or is_of_torch_type(node, kind)]
    if typed:
        return [node.name for node in (*typed, *_later_uses(typed, nodes))]
    if exact:
        found = ", ".join(f"{node.name!r} ({node.op})" for node in exact)
        raise ConfigError(f"layer_name {name!r} says {kind}, but module {path!r} is {found}")
    ends = [node for node in nodes if any(_ends_with(known, path) for known in (_weight_path(node), _node_path(node)))]
    ends = [node for node in ends if kind is None or kind not in _TYPES or is_of_torch_type(node, kind)]
    modules = {_weight_path(node) or _node_path(node) for node in ends}
    if len(modules) == 1:
        return [node.name for node in ends]
    if ends:
        listed = ", ".join(repr(node.name) for node in ends[:_MOST_LISTED])
        raise ConfigError(f"layer_name {name!r} could be any of {listed}; write the name of the node")
    raise ConfigError(f"layer_name {name!r}: no node belongs to module {path!r}{_candidates(path, nodes)}")


def _module_of(name: str) -> tuple[str, str | None]:
    """The path of a module, and its type where it is said."""
    if "::" not in name:
        return (name, None) if re.fullmatch(r"[\w.]+", name) else ("", None)
    parts = [match for part in name.partition("::")[2].split("/") if (match := _PART.fullmatch(part))]
    named = [part for part in parts if part["attribute"] is not None]
    return ".".join(part["attribute"] for part in named), named[-1]["type"] if named else None


def _weight_path(node: NamedNode) -> str:
    return node.weight.removesuffix(".weight") if node.weight.endswith(".weight") else ""


def _node_path(node: NamedNode) -> str:
    """`/layer1/layer1.0/conv1/Conv` -> layer1.0.conv1, as torch names nodes when it exports."""
    parts = node.name.strip("/").split("/")[:-1]
    kept: list[str] = []
    for part in parts:
        if kept and part.startswith(f"{kept[-1]}."):
            kept.pop()
        kept.append(part)
    return ".".join(kept)


def _later_uses(first: Sequence[NamedNode], nodes: Sequence[NamedNode]) -> list[NamedNode]:
    """Where modules without a weight are called again: torch exports `/block/relu/Relu`, then `/block/relu_1/Relu`."""
    paths = {(node.op, _node_path(node)) for node in first if not node.weight}
    found = [node for node in nodes if (node.op, re.sub(r"_\d+$", "", _node_path(node))) in paths]
    later = [node for node in found if all(node.name != own.name for own in first)]
    if later:
        listed = ", ".join(repr(node.name) for node in (*first, *later))
        _log.warning("layer_quantize_config: %s are taken for one module, called several times", listed)
    return later


def _ends_with(known: str, path: str) -> bool:
    return known.endswith(f".{path}")


def _candidates(name: str, nodes: Sequence[NamedNode]) -> str:
    """The nodes that are called alike, else the first ones with a weight."""
    names = {node.name: _weight_path(node) for node in nodes}
    last = name.rpartition(".")[2].rpartition("/")[2]
    close = [own for own, path in names.items() if last and (last in own or last in path)]
    if not close:
        found = get_close_matches(name, [*names, *names.values()], n=_MOST_LISTED)
        close = [own for own, path in names.items() if own in found or path in found]
    close = close or [node.name for node in nodes if node.weight]
    more = ", ..." if len(close) > _MOST_LISTED else ""
    return f"; candidates: {', '.join(map(repr, close[:_MOST_LISTED]))}{more}" if close else ""
