"""What the observers of one session have seen, and what becomes of it in the record file.

Every session begins anew. It counts a batch when all of its nodes have seen it; after `batch_num` of them it writes the
factors, once, and looks at nothing more. A later session that gets as far replaces them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.dmq import Dmq, MaximaObserver, balance_factors
from amct_onnx.passes.calibration import why_unusable
from amct_onnx.passes.observation import Watch
from amct_onnx.passes.observe import RangeObserver, Scales, observer_for, scales_of
from amct_onnx.stepwise.observing_nodes import Observation
from amct_onnx.stepwise.record_state import BALANCING, CALIBRATION, note_progress, write_balances, write_scales

_log = logging.getLogger("amct_onnx")


@dataclass(slots=True, kw_only=True)
class _Node:
    """One node, and what it has seen."""

    observation: Observation
    observer: RangeObserver | MaximaObserver
    batches: int = 0
    lock: Lock = field(default_factory=Lock)


class Observing:
    """The observers of one session over one model. May be used from several threads at once.

    Attributes:
        passed: batches that all nodes have seen.
        error: what went wrong; nothing is looked at after it, for some nodes may have seen the batch and others not.
    """

    def __init__(self) -> None:
        self.passed = 0
        self.error: BaseException | None = None
        self._nodes: dict[int, _Node] = {}
        self._lock = Lock()

    def see(self, observation: Observation, array: NDArray[Any]) -> None:
        """Show a node its tensor for one batch.

        Raises:
            DataError: the batch does not fit those before it.
            RecordError, OutputError: the record cannot be read or written.
        """
        if self.error is None:
            try:
                self._see(observation, array)
            except BaseException as error:
                self.error = error
                raise

    def _see(self, observation: Observation, array: NDArray[Any]) -> None:
        with self._lock:
            node = self._nodes.get(observation.number)
            if node is None:
                node = _Node(observation=observation, observer=_observer(observation))
                self._nodes[observation.number] = node
        with node.lock:
            if node.batches >= observation.batch_num:
                return
            node.observer.update(array)
            node.batches += 1
        with self._lock:
            self._count(observation)

    def _count(self, observation: Observation) -> None:
        if len(self._nodes) < observation.total:
            return
        passed = min(node.batches for node in self._nodes.values())
        if passed == self.passed:
            return
        self.passed = passed
        phase = BALANCING if isinstance(observation.algorithm, Dmq) else CALIBRATION
        if passed < observation.batch_num:
            note_progress(observation.record_file, phase, passed, observation.batch_num)
        elif phase == BALANCING:
            write_balances(observation.record_file, self._factors())
        else:
            write_scales(observation.record_file, self._scales(), self._nodes[0].observation.tensors)

    def _scales(self) -> Scales:
        nodes = [self._nodes[number] for number in sorted(self._nodes)]
        served = [(_watch(node), _range(node), list(node.observation.places)) for node in nodes]
        first = nodes[0].observation
        scales = scales_of(served, first.joint, fp16=first.fp16_scales)
        for name, reason in scales.left_float.items():
            _log.warning("layer %r stays float: %s", name, reason)
        return scales

    def _factors(self) -> dict[str, NDArray[np.float32]]:
        """DMQ's factors of each layer, where any can be found."""
        found = {}
        for node in (self._nodes[number] for number in sorted(self._nodes)):
            ((layer, _),) = node.observation.places
            if reason := why_unusable(_watch(node)):
                _log.warning("layer %r stays float: %s", layer, reason)
            else:
                found[layer] = _factors(node)
        return found


def _observer(observation: Observation) -> RangeObserver | MaximaObserver:
    if isinstance(observation.algorithm, Dmq):
        return MaximaObserver(axis=observation.axis)
    return observer_for(observation.algorithm)


def _watch(node: _Node) -> Watch:
    return Watch(tensor=node.observation.tensor, observer=node.observer)


def _range(node: _Node) -> RangeObserver:
    assert not isinstance(node.observer, MaximaObserver), "it has no scale"
    return node.observer


def _factors(node: _Node) -> NDArray[np.float32]:
    assert isinstance(node.observer, MaximaObserver), "it has no maxima"
    assert isinstance(node.observation.algorithm, Dmq), "it balances nothing"
    weight = np.array(node.observation.weight_maxima, np.float32)
    strength = node.observation.algorithm.migration_strength
    return balance_factors(node.observer.maxima(), weight, strength=strength)
