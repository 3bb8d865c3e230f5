"""quantize_preprocess and quantize_model: models that observe, and the record files that they fill in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from amct_onnx.config import QuantConfig
from amct_onnx.convert import run_once
from amct_onnx.errors import ConfigError, DataError, NotAvailableError, RecordError
from amct_onnx.formats.config_source import load_config
from amct_onnx.formats.model_file import write_files
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.passes.balance import balance_by, weight_maxima
from amct_onnx.passes.layer_types import RECURRENT
from amct_onnx.passes.layers import channel_axis, has_weight, weight_of
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.observe import joint_keys, places_by_tensor
from amct_onnx.passes.pipelines import FUSE
from amct_onnx.passes.quantize_weights import FIND_WEIGHT_SCALES, with_fake_weights
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import LayerPlan, QuantState
from amct_onnx.planning import make_plan
from amct_onnx.prepare import final_plan, prepare, require_same, warn_of_floats
from amct_onnx.results import layer_records
from amct_onnx.stepwise.arguments import path_of, read_source, require_apart
from amct_onnx.stepwise.observing_nodes import Observation, with_observers
from amct_onnx.stepwise.record_state import BALANCING, CALIBRATION, begun, read_complete

Paths = str | os.PathLike[str]


def quantize_preprocess(config_file: Paths, record_file: Paths, model_file: Paths, modified_onnx_file: Paths) -> None:
    """Write a model that finds the factors of DMQ, for a configuration that balances layers (`dmq_balancer`).

    Run it on one batch, through `calibration_session` or with `AMCT_SO`; then call `quantize_model` with the same
    record file.

    Args:
        config_file: what `create_quant_config` wrote.
        record_file: where the session writes the factors; an existing file is replaced.
        model_file: the float model.
        modified_onnx_file: the model to write; an existing file is replaced.

    Raises:
        ArgumentError: an argument has the wrong type.
        ConfigError, ModelError, OutputError, NotAvailableError: each names what was found, where, and what is allowed.
            Nothing is written then.
    """
    record, modified = path_of("record_file", record_file), path_of("modified_onnx_file", modified_onnx_file)
    read = {"config_file": path_of("config_file", config_file), "model_file": path_of("model_file", model_file)}
    require_apart({"record_file": record, "modified_onnx_file": modified}, read)
    state = _planned(model_file, load_config(config_file))
    layers = _balanced(state)
    if not layers:
        raise ConfigError(f"{config_file}: balances no layer (dmq_balancer_param); go on with quantize_model")
    nodes = {node.name: node for node in state.graph.nodes}
    batch_num = state.plan.balance_batches or state.plan.batch_num or 1
    observations = [
        Observation(
            tensor=nodes[layer.name].inputs[0].name,
            places=((layer.name, False),),
            algorithm=balancer,
            batch_num=batch_num,
            record_file=record.absolute(),
            number=number,
            total=len(layers),
            axis=channel_axis(nodes[layer.name]),
            weight_maxima=tuple(map(float, weight_maxima(nodes[layer.name], weight_of(nodes[layer.name])))),
        )
        for number, (layer, balancer) in enumerate((layer, layer.balancer) for layer in layers)
        if isinstance(balancer, Dmq)
    ]
    model = with_observers(state.graph.to_light(), observations, _half(state))
    write_files({record: begun({}, BALANCING, batch_num), modified: model})


def quantize_model(config_file: Paths, model_file: Paths, modified_onnx_file: Paths, record_file: Paths) -> None:
    """Write a model with quantized weights that finds the scales of the activations.

    Run it on `batch_num` batches, through `calibration_session` or with `AMCT_SO`; then call `save_model`.

    Args:
        config_file: what `create_quant_config` wrote.
        model_file: the float model.
        modified_onnx_file: the model to write; an existing file is replaced. It names the record file by its full
            path.
        record_file: gets the scales of the weights now, those of the activations by the session. It is replaced;
            where the configuration balances layers, it must hold the factors (`quantize_preprocess`).

    Raises:
        ArgumentError: an argument has the wrong type.
        ConfigError, ModelError, RecordError, OutputError, NotAvailableError: each names what was found, where, and
            what is allowed. Nothing is written then.
    """
    record, modified = path_of("record_file", record_file), path_of("modified_onnx_file", modified_onnx_file)
    read = {"config_file": path_of("config_file", config_file), "model_file": path_of("model_file", model_file)}
    require_apart({"record_file": record, "modified_onnx_file": modified}, read)
    state = _planned(model_file, load_config(config_file))
    factors = _read_factors(state, record) if _balanced(state) else {}
    run_passes((balance_by(factors), FIND_WEIGHT_SCALES), state)
    state = replace(state, plan=final_plan(state))
    warn_of_floats(state)
    batch_num = state.plan.batch_num or 1
    watched = places_by_tensor(state)
    keys = tuple(tensor.key for tensor in state.tensors())
    observations = [
        Observation(
            tensor=tensor,
            places=tuple(places),
            tensors=keys if number == 0 else (),
            joint=tuple(joint_keys(state.plan)) if number == 0 else (),
            algorithm=activation,
            batch_num=batch_num,
            record_file=record.absolute(),
            number=number,
            total=len(watched),
            folded=dict(state.plan.folded) if number == 0 else {},
            fp16_scales=state.plan.fp16_scales,
        )
        for number, ((tensor, activation), places) in enumerate(watched.items())
    ]
    model = with_observers(with_fake_weights(state).to_light(), observations, _half(state))
    write_files({record: begun(layer_records(state), CALIBRATION, batch_num), modified: model})


def _planned(model_file: Paths, config: QuantConfig) -> QuantState:
    """The float model as it will be quantized, and the plan for it."""
    source = read_source(model_file)
    state, session = prepare(source)
    state = replace(state, plan=make_plan(state, config))
    for layer in state.plan.layers.values():
        if layer.op_type in RECURRENT:
            raise NotAvailableError(
                f"layer {layer.name!r}: {layer.op_type} is not available step by step; use quantize_onnx, or list "
                "it in skip_layers"
            )
        if not isinstance(layer.weight, (Arq, Nuq)):
            raise NotAvailableError(
                f"layer {layer.name!r}: {type(layer.weight).__name__} learns from data, which are not at hand in this "
                "step; use quantize_onnx"
            )
    run_passes(FUSE, state)
    try:
        feed, expected = run_once(session, source, None)
    except DataError:  # the model does not run on random numbers, so nothing can be compared
        return state
    require_same(state, expected, feed)
    return state


def _balanced(state: QuantState) -> list[LayerPlan]:
    return [layer for layer in state.layers() if layer.balancer is not None]


def _read_factors(state: QuantState, record: Path) -> Mapping[str, NDArray[np.float32]]:
    """DMQ's factors of the layers that are to be balanced.

    Raises:
        RecordError: there are none yet, or they do not fit.
    """
    first = _balanced(state)[0].name
    advice = f"layer {first!r} is to be balanced (dmq_balancer): call quantize_preprocess and run its model first"
    if not record.exists():
        raise RecordError(f"{record}: no such file; {advice}")
    records = read_complete(record, BALANCING)
    nodes = {node.name: node for node in state.graph.nodes}
    found = {}
    for layer in _balanced(state):
        factors = records[layer.name].tensor_balance_factor if layer.name in records else ()
        if factors:
            channels = weight_maxima(nodes[layer.name], weight_of(nodes[layer.name])).size
            if len(factors) != channels:
                raise RecordError(
                    f"{record}: record of {layer.name!r}: {len(factors)} tensor_balance_factor, but the layer has "
                    f"{channels} input channels"
                )
            found[layer.name] = np.array(factors, np.float32)
    if not found:
        raise RecordError(f"{record}: it has no tensor_balance_factor; {advice}")
    return found


def _half(state: QuantState) -> frozenset[str]:
    """The tensors that are known to be float16: by inference, or since they meet a weight that is."""
    types = infer_types(state.graph)
    found = {name for name, known in types.items() if known.elem_type == TensorProto.FLOAT16}
    nodes = [node for node in state.graph.nodes if node.name in state.plan.layers]
    found.update(node.inputs[0].name for node in nodes if has_weight(node) and node.inputs[1].dtype == np.float16)
    return frozenset(found)
