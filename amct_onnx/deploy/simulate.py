"""Runs deploy models without the chip, by its own integer arithmetic."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray

from amct_onnx.deploy.lowering import lower
from amct_onnx.deploy.profiles import Profile, profile_of
from amct_onnx.deploy.view import view_of
from amct_onnx.errors import ModelError, NotAvailableError
from amct_onnx.formats.model_file import read_model
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.session import open_session
from amct_onnx.passes.weights import LightModel


def simulated(
    model: str | os.PathLike[str] | onnx.ModelProto | LightModel, profile: str | Profile = "ideal"
) -> LightModel:
    """A deploy model as one of standard operators that computes what a chip does.

    Args:
        model: of any emitter: AscendQuant and AscendDequant around layers with int8 weights.
        profile: which chip, see `profiles.PROFILES`.

    Raises:
        ModelError: it cannot be read, or is no deploy model.
        ConfigError: there is no such profile.
        NotAvailableError: a form that is not simulated.
    """
    chosen = profile if isinstance(profile, Profile) else profile_of(profile)
    light = read_model(model)
    try:
        return _lowered(light, chosen)
    except (ModelError, NotAvailableError) as error:
        raise type(error)(f"{name_of(model)}: {error}") from error
    except Exception as error:
        raise ModelError(f"{name_of(model)}: cannot be simulated: {error}") from error


def name_of(model: object) -> str:
    """How errors name a model."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else "the model"


def _lowered(light: LightModel, profile: Profile) -> LightModel:
    if not any(node.op_type in ("AscendDequant", "AscendAntiQuant") for node in light.proto.graph.node):
        raise ModelError("not a deploy model: it has no AscendDequant")
    graph = Graph.of_model(in_order(light))
    lower(graph, profile)
    return graph.to_light()


def in_order(light: LightModel) -> LightModel:
    """The model with every node behind those that it depends on, which not all emitters see to.

    Raises:
        ModelError: the graph runs in a circle, or reads what nothing produces.
    """
    order = [node.position for node in view_of(light.proto).nodes if node.body == 0]
    if order == sorted(order):
        return light
    proto = onnx.ModelProto()
    proto.CopyFrom(light.proto)
    del proto.graph.node[:]
    proto.graph.node.extend(light.proto.graph.node[position] for position in order)
    return replace(light, proto=proto)


class SimulatedSession:
    """A deploy model that runs on the CPU, with onnxruntime's own interface.

    Layers are computed by exact integers; what the profiles add is how scales and results are rounded. Float operators
    between the layers are computed in float32.
    """

    def __init__(
        self, model: str | os.PathLike[str] | onnx.ModelProto, profile: str = "ideal", *, threads: int = 0
    ) -> None:
        """Open a model; `threads` work on one run, 0 for one per core.

        Raises:
            ModelError, ConfigError, NotAvailableError: see `simulated`.
        """
        self.profile: Profile = profile_of(profile)
        light = simulated(model, profile)
        self._session = open_session(light, f"{name_of(model)} as it is simulated", threads=threads)

    def run(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]], run_options: Any = None
    ) -> list[Any]:
        """The outputs of these names, all for None or an empty list, for one feed.

        Raises:
            Exception: of onnxruntime's own, where names or feeds do not fit the model, as from its sessions.
        """
        return list(self._session.inner.run(list(output_names or []), dict(feeds), run_options))

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        """What to feed."""
        return list(self._session.inner.get_inputs())

    def get_outputs(self) -> list[onnxruntime.NodeArg]:
        """What it gives."""
        return list(self._session.inner.get_outputs())
