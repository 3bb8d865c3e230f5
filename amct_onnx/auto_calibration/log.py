"""The file of trials: what was measured is not measured again when a run is interrupted and repeated.

It is replaced whole after every trial. What it says counts only for the same model, configuration, calibration data,
version of the engine, and metric of the float model; else it is begun anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amct_onnx import __version__
from amct_onnx.auto_calibration.metric_json import UnwritableError, decode, encode
from amct_onnx.data import Feed
from amct_onnx.formats.model_file import write_files
from amct_onnx.passes.weights import LightModel, loaded
from amct_onnx.selection import Ranking
from amct_onnx.trials import Mix

_log = logging.getLogger("amct_onnx")


def fingerprint(model: LightModel, config: str, feeds: Iterable[Feed]) -> dict[str, str]:
    """What the trials depend on, hashed."""
    of_model, of_data = hashlib.sha256(model.proto.SerializeToString(deterministic=True)), hashlib.sha256()
    for weight in model.weights.values():
        of_model.update(np.ascontiguousarray(loaded(weight)).tobytes())
    for feed in feeds:
        for name in sorted(feed):
            array = feed[name]
            of_data.update(f"{name} {array.dtype.str} {array.shape}".encode())
            of_data.update(np.ascontiguousarray(array).tobytes())
    of_config = hashlib.sha256(config.encode())
    found = {"model": of_model, "config": of_config, "data": of_data}
    return {"engine": __version__, **{name: hash_.hexdigest() for name, hash_ in found.items()}}


class TrialLog:
    """The trials of one run, and those of an interrupted one before it."""

    def __init__(self, path: Path, key: Mapping[str, str], original: Any) -> None:
        """Read the file where it is there and fits.

        original: the metric of the float model.
        """
        self._path = path
        self._metrics: dict[str, Any] = {}
        self._rankings: dict[str, Ranking] = {}
        self._head: dict[str, Any] | None = None
        try:
            self._head = {"key": dict(key), "original": encode(original)}
        except UnwritableError as kind:
            _log.warning("trials cannot be resumed: a metric of type %s cannot be written to a file", kind)
            return
        self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            same = all(_text(found[name]) == _text(value) for name, value in (self._head or {}).items())
            metrics = {_text(trial["mix"]): decode(trial["metric"]) for trial in found["trials"]}
            rankings = {name: [(str(n), float(v)) for n, v in pairs] for name, pairs in found["rankings"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            _log.warning("%s: not readable as a file of trials; it is begun anew", self._path)
            return
        if not same:
            _log.info("%s: is about another model, configuration, data or metric; it is begun anew", self._path)
            return
        self._metrics, self._rankings = metrics, rankings
        _log.info("%s: resumed with %d trials", self._path, len(metrics))

    def metrics(self, mix: Mix) -> list[Any]:
        """The metric of a trial: a list of one, or an empty one where it was not made yet."""
        key = _text(_written(mix))
        return [self._metrics[key]] if key in self._metrics else []

    def add(self, mix: Mix, metric: Any) -> None:
        """Note a trial, on disk too.

        Raises:
            OutputError: the file cannot be written.
        """
        self._metrics[_text(_written(mix))] = metric
        self._write()

    def ranking(self, name: str | None, find: Callable[[], Ranking]) -> Ranking:
        """A ranking that was found before, or what `find` gives, which is noted; None for what is never noted."""
        if name is None:
            return find()
        if name not in self._rankings:
            self._rankings[name] = find()
            self._write()
        return self._rankings[name]

    def _write(self) -> None:
        if self._head is None:
            return
        trials = []
        for key, metric in self._metrics.items():
            try:
                trials.append({"mix": json.loads(key), "metric": encode(metric)})
            except UnwritableError:
                continue  # it is measured again
        content = {**self._head, "rankings": self._rankings, "trials": trials}
        write_files({self._path: json.dumps(content, indent=1) + "\n"})


def _written(mix: Mix) -> dict[str, list[str]]:
    return {"float_layers": sorted(mix.float_layers), "int16_layers": sorted(mix.int16_layers)}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
