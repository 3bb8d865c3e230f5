"""An ONNX graph as a list of steps that torch carries out one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from amct_onnx.errors import AmctError, ModelError, NotAvailableError
from amct_onnx.retrain.operators import OPERATORS
from amct_onnx.retrain.operators.call import Call, Result

Fetch = Callable[[str], Tensor]
"""Key of a stored tensor -> its present value."""

Store = Callable[[str, TensorProto], str]
"""Name and values of an initializer or Constant -> the key that it can be fetched with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node, or one module that was put between nodes.

    inputs, outputs: names of tensors; an omitted optional one is "".
    reads: the inputs, and what bodies read from outside of them.
    bodies: graphs among the attributes.
    module: called with the inputs instead of an operator.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    bodies: Mapping[str, Program] = field(default_factory=dict)
    module: nn.Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The steps of a graph.

    constants: name of a stored tensor -> its key.
    outputs: the results, by name.
    opset: version of the default operator set.
    frees: for each step, the tensors that are not needed behind it.
    """

    steps: tuple[Step, ...]
    constants: Mapping[str, str]
    outputs: tuple[str, ...]
    opset: int
    frees: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        last: dict[str, int] = {}
        for number, step in enumerate(self.steps):
            last |= dict.fromkeys([*step.reads, *step.outputs], number)
        frees: list[list[str]] = [[] for _ in self.steps]
        for name, number in last.items():
            if name and name not in self.outputs:
                frees[number].append(name)
        object.__setattr__(self, "frees", tuple(map(tuple, frees)))

    def run(self, given: Mapping[str, Tensor], fetch: Fetch, *, training: bool) -> list[Tensor]:
        """Carry out all steps.

        Args:
            given: inputs of the graph, and what a body sees from outside.
            fetch: gives the stored tensors.
            training: whether BatchNormalization and Dropout train.

        Raises:
            ModelError: a node fails; the message names it.
            NotAvailableError: a node is of a form that training does not have.
        """
        values = {**given, **{name: fetch(key) for name, key in self.constants.items()}}
        for step, freed in zip(self.steps, self.frees, strict=True):
            results = self._carry_out(step, values, fetch, training)
            values.update(zip(step.outputs, results, strict=False))
            for name in freed:
                values.pop(name, None)
        return [_taken(values, name, "the model's outputs") for name in self.outputs]

    def _carry_out(self, step: Step, values: dict[str, Tensor], fetch: Fetch, training: bool) -> tuple[Tensor, ...]:
        where = f"node {step.name!r} ({step.op})"
        inputs = [_taken(values, name, where) if name else None for name in step.inputs]
        try:
            result = self._result(step, inputs, values, fetch, training)
        except NotAvailableError as error:
            raise NotAvailableError(f"{where}: {error}") from error
        except (AmctError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ModelError(f"{where} fails: {error}") from error
        return result if isinstance(result, tuple) else (result,)

    def _result(
        self, step: Step, inputs: Sequence[Tensor | None], values: Mapping[str, Tensor], fetch: Fetch, training: bool
    ) -> Result:
        if step.module is not None:
            result: Result = step.module(*inputs)
            return result
        if step.op == "If":
            assert inputs[0] is not None, "an If has a condition"
            body = step.bodies["then_branch" if bool(inputs[0]) else "else_branch"]
            return tuple(body.run(values, fetch, training=training))
        call = Call(attributes=step.attributes, opset=self.opset, outputs=len(step.outputs), training=training)
        return OPERATORS[step.op](call, *inputs)


def _taken(values: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in values:
        raise NotAvailableError(f"{where}: needs {name!r}, an output that is not available for training")
    return values[name]


def program_of(graph: onnx.GraphProto, opset: int, store: Store) -> Program:
    """The program of a graph; `store` is handed every initializer and Constant, those of bodies too.

    Raises:
        NotAvailableError: an operator is not available; the message names the node.
    """
    if graph.sparse_initializer:
        raise NotAvailableError(f"sparse initializers are not available for training: {graph.name!r} has some")
    constants = {tensor.name: store(tensor.name, tensor) for tensor in graph.initializer}
    for node in graph.node:
        if (tensor := constant_of(node)) is not None:
            constants[node.output[0]] = store(node.output[0], tensor)
    steps = [_step(number, node, opset, store) for number, node in enumerate(graph.node) if constant_of(node) is None]
    return Program(
        steps=tuple(steps), constants=constants, outputs=tuple(value.name for value in graph.output), opset=opset
    )


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds; None for other nodes, and for Constants of other forms."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _step(number: int, node: NodeProto, opset: int, store: Store) -> Step:
    name = node.name or f"{node.op_type}_{number}"
    if node.domain not in ("", "ai.onnx") or (node.op_type not in OPERATORS and node.op_type != "If"):
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        raise NotAvailableError(f"node {name!r}: the operator {op} is not available for training")
    bodies = {a.name: program_of(a.g, opset, store) for a in node.attribute if a.type == AttributeProto.GRAPH}
    captured = [name for body in bodies.values() for name in _captured(body)]
    return Step(
        name=name,
        op=node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes={a.name: _value(a) for a in node.attribute if a.type != AttributeProto.GRAPH},
        reads=(*node.input, *captured),
        bodies=bodies,
    )


def _captured(body: Program) -> list[str]:
    made = {*body.constants, *(name for step in body.steps for name in step.outputs)}
    read = [*(name for step in body.steps for name in step.reads), *body.outputs]
    return [name for name in read if name not in made]


def _value(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    if attribute.type == AttributeProto.STRINGS:
        return [text.decode() for text in value]
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value
