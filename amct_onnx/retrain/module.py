"""ONNX models as torch modules, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from amct_onnx.data import input_specs
from amct_onnx.errors import DataError, ModelError, NotAvailableError, nearest
from amct_onnx.formats.model_file import read_model
from amct_onnx.passes.protos import all_graphs
from amct_onnx.passes.weights import LightModel, loaded
from amct_onnx.retrain.program import constant_of, program_of
from amct_onnx.retrain.trained import Role, roles_of

_LOWEST_OPSET = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a stored tensor is: an attribute of a module."""

    holder: nn.Module
    attribute: str

    def tensor(self) -> Tensor:
        found: Tensor = getattr(self.holder, self.attribute)
        return found


class OnnxModule(nn.Module):
    """A model that torch carries out and trains.

    Parameters are named as the initializers, or the outputs of the Constant nodes, that they come from: weights and
    biases of layers, scales and shifts of normalizations, tables of Gather, and vectors that are added or multiplied.
    Running means and variances are buffers. All else, as shapes and limits, is kept but not trained, and not in the
    `state_dict`.

    In train mode BatchNormalization normalises with the batch and moves its statistics, and Dropout drops; in eval mode
    the module computes what onnxruntime does.

    Attributes:
        input_names, output_names: of the model, in order.
        names: initializer or output of a Constant -> name in the `state_dict`, where it has one.
    """

    def __init__(self, source: LightModel, ties: Mapping[str, str] = MappingProxyType({})) -> None:
        """`ties`: initializers -> others that they are one parameter with, under both names."""
        super().__init__()
        self._source = source
        self._places: dict[str, _Place] = {}
        self._order: list[tuple[str, str]] = []  # name and key of every stored tensor, as `_stored` lists them
        self.names: dict[str, str] = {}
        self.input_names = [spec.name for spec in input_specs(source.proto)]
        self.output_names = [value.name for value in source.proto.graph.output]
        roles = roles_of(source.proto.graph)

        def store(name: str, tensor: TensorProto) -> str:
            return self._store(name, _torch_tensor(name, self._values(name, tensor)), roles.get(name, Role.CONSTANT))

        self._program = program_of(source.proto.graph, _opset_of(source.proto), store)
        self._order_as_stored()
        for name, other in ties.items():
            place, parameter = self._places[self.names[name]], self._fetch(self.names[other])
            place.holder.register_parameter(place.attribute, cast(nn.Parameter, parameter))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The output of the model, or a tuple of all where there are several.

        Args:
            inputs: in the order of the model's inputs.
            named: inputs by name.

        Raises:
            DataError: inputs are missing, or too many, or no tensors.
            ModelError: a node fails, as where shapes do not fit.
        """
        outputs = self._program.run(self._given(inputs, named), self._fetch, training=self.training)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _given(self, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> dict[str, Tensor]:
        given = dict(zip(self.input_names, inputs, strict=False)) | named
        if len(inputs) > len(self.input_names) or len(given) != len(inputs) + len(named):
            raise DataError(f"the model has the inputs {self.input_names}; {len(inputs) + len(named)} were given")
        for name, value in given.items():
            if name not in self.input_names:
                raise DataError(f"the model has no input {name!r}{nearest(name, self.input_names)}")
            if not isinstance(value, Tensor):
                raise DataError(f"input {name!r} must be a torch tensor, found {type(value).__name__}")
        if missing := [name for name in self.input_names if name not in given]:
            raise DataError(f"the model's inputs {missing} are missing")
        return given

    def _fetch(self, key: str) -> Tensor:
        return self._places[key].tensor()

    def _values(self, name: str, tensor: TensorProto) -> np.ndarray[Any, Any]:
        if name in self._source.weights:
            return loaded(self._source.weights[name])
        return numpy_helper.to_array(tensor)

    def _store(self, name: str, values: Tensor, role: Role) -> str:
        kept = role is not Role.CONSTANT
        holder, attribute, key = _free_place(self, name if kept else f"constant {len(self._places)}")
        if role is Role.TRAINED:
            holder.register_parameter(attribute, nn.Parameter(values))
        else:
            holder.register_buffer(attribute, values, persistent=kept)
        self._places[key] = _Place(holder=holder, attribute=attribute)
        self._order.append((name, key))
        if kept:
            self.names.setdefault(name, key)
        return key

    def add_module_at(self, name: str, module: nn.Module) -> str:
        """Register `module` under a dotted name, or one like it that is free; returns that."""
        holder, attribute, key = _free_place(self, name)
        holder.add_module(attribute, module)
        return key

    def _order_as_stored(self) -> None:
        """Bring `_order` into the order in which the model lists its tensors; the program met them in another."""
        remaining: dict[str, list[str]] = {}
        for name, key in self._order:
            remaining.setdefault(name, []).append(key)
        self._order = [(name, remaining[name].pop(0)) for name, _ in _stored(self._source.proto)]

    def trained_model(self, instead: Mapping[str, Tensor] = MappingProxyType({})) -> LightModel:
        """The model with the present values of parameters and statistics, or for those named with others."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._source.proto)
        weights = dict(self._source.weights)
        for (name, key), (_, tensor) in zip(self._order, _stored(proto), strict=True):
            if self.names.get(name) is None:
                continue
            values = instead.get(name, self._fetch(key)).detach().cpu().numpy()
            if np.array_equal(values, self._values(name, tensor), equal_nan=True):
                continue  # the bytes stay as they are
            if name in weights:
                weights[name] = np.ascontiguousarray(values)
            else:
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return replace(self._source, proto=proto, weights=weights)


def to_torch(model: str | os.PathLike[str] | onnx.ModelProto) -> OnnxModule:
    """An ONNX model as a torch module with trainable parameters, named as its initializers.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.

    Raises:
        ModelError: the model cannot be read.
        NotAvailableError: an operator is not available for training; the message names the node.
    """
    return OnnxModule(read_model(model))


def to_onnx(module: nn.Module) -> onnx.ModelProto:
    """The model that a module was made from, with the weights that it has now: nodes, names and structure are the same.

    Args:
        module: from `to_torch`, also inside of DistributedDataParallel.

    Raises:
        ModelError: the module was not made by `to_torch`.
    """
    return onnx_module(module).trained_model().whole()


def onnx_module(module: nn.Module) -> OnnxModule:
    """The module itself, or what DistributedDataParallel wraps.

    Raises:
        ModelError: it is not one of ours.
    """
    inner = getattr(module, "module", module)
    if not isinstance(inner, OnnxModule):
        raise ModelError(f"the module is a {type(module).__name__}; only one made by to_torch can be turned back")
    return inner


def _stored(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every initializer and Constant, those of bodies too, with its name."""
    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            yield tensor.name, tensor
        for node in graph.node:
            if (held := constant_of(node)) is not None:
                yield node.output[0], held


def _opset_of(model: onnx.ModelProto) -> int:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if opset < _LOWEST_OPSET:
        raise NotAvailableError(f"the model is of opset {opset}; models from opset {_LOWEST_OPSET} on can be trained")
    return opset


def _torch_tensor(name: str, values: np.ndarray[Any, Any]) -> Tensor:
    try:
        return torch.from_numpy(np.array(values))
    except TypeError as error:
        raise NotAvailableError(
            f"{name!r} holds {values.dtype}, an element type that is not available for training"
        ) from error


def _free_place(root: nn.Module, name: str) -> tuple[nn.Module, str, str]:
    """A module, an attribute of it that is free, and the dotted name of both: `name` itself where that can be.

    torch joins names with dots, so "conv1.weight" becomes the attribute "weight" of a module "conv1". Names that are
    taken, or that modules use themselves, are written without dots and with a number behind them.
    """
    *path, attribute = name.split(".")
    holder = root
    for part in path:
        holder = _holder_in(holder, part) or root
        if holder is root:
            break
    is_whole = holder is not root or not path
    if is_whole and attribute and not hasattr(holder, attribute):
        return holder, attribute, name
    plain, number = name.replace(".", "_") or "unnamed", 0
    while hasattr(root, attribute := f"{plain}_{number}" if number else plain):
        number += 1
    return root, attribute, attribute


def _holder_in(holder: nn.Module, part: str) -> nn.Module | None:
    """The module called `part`, made where there is none yet; None where that name cannot be had."""
    found = getattr(holder, part, None) if part else None
    if found is None and part and not hasattr(holder, part):
        found = nn.Module()
        holder.add_module(part, found)
    return found if type(found) is nn.Module else None
