"""create_quant_config: a configuration with every layer in it, for the user to edit."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, overload

from amct_onnx.config import QuantConfig
from amct_onnx.errors import ArgumentError, ConfigError
from amct_onnx.formats.amct_json import format_json
from amct_onnx.formats.config_source import load_config
from amct_onnx.formats.model_file import write_files
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import make_plan
from amct_onnx.prepare import prepare
from amct_onnx.results import json_layers
from amct_onnx.stepwise.arguments import path_of, read_source, require_apart, require_type

_log = logging.getLogger("amct_onnx")


def _weights_may_come_third(function: Callable[..., None]) -> Callable[..., None]:
    """Take the order of AMCT for Caffe too, where `weights_file` stands behind `model_file`."""

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> None:
        if len(arguments) > 2 and _are_caffe_s(*arguments[1:3]):
            if "weights_file" in named:
                raise ArgumentError(f"weights_file is given twice: {arguments[2]!r} and {named['weights_file']!r}")
            named["weights_file"] = arguments[2]
            arguments = (*arguments[:2], *arguments[3:])
        function(*arguments, **named)

    return called


def _are_caffe_s(model_file: object, third: object) -> bool:
    """Whether the argument behind `model_file` is the path of Caffe's weights, not a list of layers."""
    if not isinstance(third, (str, os.PathLike)):
        return False
    return str(model_file).endswith(".prototxt") or str(third).endswith(".caffemodel")


@overload
def create_quant_config(
    config_file: str | os.PathLike[str],
    model_file: str | os.PathLike[str],
    skip_layers: Sequence[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | os.PathLike[str] | None = None,
    updated_model: str | os.PathLike[str] | None = None,
    *,
    weights_file: str | os.PathLike[str] | None = None,
) -> None: ...


@overload
def create_quant_config(
    config_file: str | os.PathLike[str],
    model_file: str | os.PathLike[str],
    weights_file: str | os.PathLike[str],
    skip_layers: Sequence[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | os.PathLike[str] | None = None,
    updated_model: str | os.PathLike[str] | None = None,
) -> None: ...


@_weights_may_come_third
def create_quant_config(
    config_file: str | os.PathLike[str],
    model_file: str | os.PathLike[str],
    skip_layers: Sequence[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | os.PathLike[str] | None = None,
    updated_model: str | os.PathLike[str] | None = None,
    *,
    weights_file: str | os.PathLike[str] | None = None,
) -> None:
    """Write a config.json with every layer that can be quantized, and how it would be.

    Args:
        config_file: the file to write; an existing one is replaced.
        model_file: the float model.
        skip_layers: layers that shall stay float, by the names of their nodes.
        batch_num: batches that calibration will run.
        activation_offset: quantize activations with an offset.
        config_defination: a .cfg that says all this in short; the three arguments above then mean nothing.
        updated_model: also write the model there with a name of its own for every node, which the configuration
            speaks of; an existing file is replaced. Use it as `model_file` from then on.
        weights_file: the .caffemodel where `model_file` is Caffe's .prototxt. By position it comes third, in front of
            `skip_layers`, as in AMCT for Caffe.

    Raises:
        ArgumentError: an argument has the wrong type.
        ConfigError, ModelError, OutputError, NotAvailableError: each names what was found, where, and what is allowed.
            Nothing is written then.
    """
    target = path_of("config_file", config_file)
    read = {"model_file": path_of("model_file", model_file)}
    if weights_file is not None:
        read["weights_file"] = path_of("weights_file", weights_file)
    if config_defination is not None:
        read["config_defination"] = path_of("config_defination", config_defination)
    written = {"config_file": target}
    if updated_model is not None:
        written["updated_model"] = path_of("updated_model", updated_model)
    require_apart(written, read)
    if config_defination is None:
        config = _config(skip_layers, batch_num, activation_offset)
    else:
        if (skip_layers, batch_num, activation_offset) not in ((None, 1, True), ([], 1, True)):
            _log.warning("skip_layers, batch_num and activation_offset are not used: config_defination says what holds")
        config = load_config(config_defination)
    source = read_source(model_file, weights_file)
    named = _with_names(source) if updated_model is not None else source
    state, _ = prepare(named)
    state = replace(state, plan=make_plan(state, config))
    contents: dict[os.PathLike[str], LightModel | str] = {target: format_json(config, json_layers(state.plan))}
    if updated_model is not None:
        contents[written["updated_model"]] = named
    write_files(contents)  # type: ignore[arg-type]


def _config(skip_layers: object, batch_num: object, activation_offset: object) -> QuantConfig:
    require_type("skip_layers", skip_layers, (list, tuple, type(None)), "a list of the names of layers")
    for name in skip_layers or ():  # type: ignore[attr-defined]
        require_type("an entry of skip_layers", name, str, "the name of a layer")
    require_type("batch_num", batch_num, int, "a whole number")
    if isinstance(batch_num, bool):
        raise ArgumentError(f"batch_num must be a whole number, found {batch_num}")
    require_type("activation_offset", activation_offset, bool, "True or False")
    assert isinstance(batch_num, int)
    assert isinstance(activation_offset, bool)
    if batch_num < 1:
        raise ConfigError(f"batch_num must be at least 1, found {batch_num}")
    return QuantConfig(
        skip_layers=tuple(dict.fromkeys(skip_layers or ())),  # type: ignore[call-overload]
        batch_num=batch_num,
        activation_offset=activation_offset,
        balance_batches=1,
    )


def _with_names(source: LightModel) -> LightModel:
    """The model in which every node has a name of its own."""
    state = QuantState(graph=Graph.of_model(source))
    run_passes((NAME_NODES,), state)
    return state.graph.to_light()
