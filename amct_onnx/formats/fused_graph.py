"""The mapping file of NUQ: the fused graph that ATC writes as JSON. It tells whose weights the chip can compress."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.text_file import read_text

_FLAG = "fe_weight_compress"
_ORIGINS = "_datadump_original_op_names"


def read_compressible(path: str) -> frozenset[str]:
    """The layers that carry `fe_weight_compress` in the file at `path`, under all names that it has for them.

    Raises:
        ConfigError: the file cannot be read, is no JSON, or holds no graph with operators.
    """
    text = read_text(path, ConfigError)
    with located(path):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as failure:
            raise ConfigError(f"not readable as JSON: {failure}") from failure
        graphs = found.get("graph") if isinstance(found, Mapping) else None
        if not isinstance(graphs, list) or not all(isinstance(g, Mapping) for g in graphs):
            raise ConfigError('no fused graph of ATC: it has a list "graph" of objects with a list "op"')
        return frozenset(name for graph in graphs for op in _objects(graph.get("op")) for name in _names(op))


def _names(op: Mapping[str, Any]) -> Iterator[str]:
    attributes = {a.get("key"): a.get("value") for a in _objects(op.get("attr")) if isinstance(a.get("key"), str)}
    if not _is_set(attributes.get(_FLAG)):
        return
    origins = attributes.get(_ORIGINS)
    listed = origins.get("list") if isinstance(origins, Mapping) else None
    names = listed.get("s") if isinstance(listed, Mapping) else None
    for name in (op.get("name"), *(names if isinstance(names, list) else ())):
        if isinstance(name, str):
            yield name


def _is_set(value: object) -> bool:
    """Whether an attribute is there and neither false nor 0: {"b": true}, {"i": 1}."""
    if isinstance(value, Mapping):
        return any(bool(item) for item in value.values())
    return bool(value)


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
