"""Runs deploy models without the chip, by its own integer arithmetic."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray

from amct_onnx.deploy.lowering import lower
from amct_onnx.deploy.merging import merge_requants
from amct_onnx.deploy.profiles import Profile, profile_of
from amct_onnx.errors import ModelError
from amct_onnx.formats.model_file import read_model
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.session import open_session
from amct_onnx.passes.weights import LightModel


def simulated(model: str | os.PathLike[str] | onnx.ModelProto | LightModel, profile: str = "ideal") -> LightModel:
    """A deploy model as one of standard operators that computes what a chip does.

    Args:
        model: of any emitter: AscendQuant and AscendDequant around layers with int8 weights.
        profile: which chip, see `profiles.PROFILES`.

    Raises:
        ModelError: it cannot be read, or is no deploy model.
        ConfigError: there is no such profile.
        NotAvailableError: a form that is not simulated.
    """
    chosen = profile_of(profile)
    light = read_model(model)
    if not any(node.op_type == "AscendDequant" for node in light.proto.graph.node):
        raise ModelError("not a deploy model: it has no AscendDequant")
    graph = Graph.of_model(light)
    merge_requants(graph, chosen)
    lower(graph, chosen)
    return graph.to_light()


class SimulatedSession:
    """A deploy model that runs on the CPU, with onnxruntime's own interface.

    Layers are computed by exact integers; what the profiles add is how scales and results are rounded. Float operators
    between the layers are computed in float32.
    """

    def __init__(
        self, model: str | os.PathLike[str] | onnx.ModelProto | LightModel, profile: str = "ideal", *, threads: int = 0
    ) -> None:
        """Open a model; `threads` work on one run, 0 for one per core.

        Raises:
            ModelError, ConfigError, NotAvailableError: see `simulated`.
        """
        self.profile: Profile = profile_of(profile)
        self._session = open_session(simulated(model, profile), "the simulated model", threads=threads)

    def run(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]], run_options: Any = None
    ) -> list[Any]:
        """The outputs of these names, all for None or an empty list, for one feed."""
        return list(self._session.inner.run(list(output_names or []), dict(feeds), run_options))

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        """What to feed."""
        return list(self._session.inner.get_inputs())

    def get_outputs(self) -> list[onnxruntime.NodeArg]:
        """What it gives."""
        return list(self._session.inner.get_outputs())
