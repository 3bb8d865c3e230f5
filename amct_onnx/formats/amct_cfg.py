"""AMCT's simplified configuration, the .cfg file: protobuf text -> `QuantConfig`."""

from __future__ import annotations

import os

from amct_onnx.config import QuantConfig
from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.cfg_tree import config_from_tree, tree_from_message
from amct_onnx.formats.message_text import parse_message
from amct_onnx.formats.schema import load_schema
from amct_onnx.formats.text_file import read_text

SCHEMA = "calibration_config_onnx"
ROOT = "AMCTConfig"


def read_cfg(path: str | os.PathLike[str]) -> QuantConfig:
    """The configuration in the file at `path`.

    Raises:
        ConfigError: the file cannot be read or is empty, or what `parse_cfg` raises.
    """
    return parse_cfg(read_text(path, ConfigError), str(path))


def parse_cfg(text: str | bytes, source: str) -> QuantConfig:
    """The configuration that `text` writes; an empty text asks for AMCT's defaults.

    Args:
        text: the content of a .cfg file.
        source: what to call it in errors.

    Raises:
        ConfigError: not protobuf text, an unknown field, a value of the wrong type or out of its range, a required
            field missing, or a layer or type overridden twice. The message names the file and the place in it.
    """
    schema = load_schema(SCHEMA)
    message = parse_message(text, source, schema, ROOT, ConfigError)
    with located(source):
        return config_from_tree(tree_from_message(message, schema), batch_num=1)
