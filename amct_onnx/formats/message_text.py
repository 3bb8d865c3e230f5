"""Protobuf's text format -> messages, with errors that say where, what was found and what is allowed."""

from __future__ import annotations

import re

from google.protobuf import text_format
from google.protobuf.message import Message

from amct_onnx.errors import nearest
from amct_onnx.formats.schema import Field, Schema
from amct_onnx.formats.text_file import TextError, decode

_NUMBERS = {"uint32": "a whole number from 0 to 4294967295", "int32": "a whole number from -2147483648 to 2147483647"}
_EXPECTED = {**_NUMBERS, "float": "a number", "bool": "true or false", "string": "a quoted text"}
_UNKNOWN_FIELD = re.compile(r'"(?:\w+\.)*(\w+)" has no field named "(.*)"\.$', re.DOTALL)
_UNKNOWN_VALUE = re.compile(r'^Enum type "(?:\w+\.)*(\w+)" has no value')
_FIELD_IN_FRONT = re.compile(r"(\w+)\s*(:?)\s*$")
_FOUND = re.compile(r""""[^"\n]*"?|'[^'\n]*'?|[^\s{}<>\[\],;:"']+|\S""")
_FIELDS_AND_BRACES = re.compile(
    r"""\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<open>[{<])|(?P<close>[}>])|(?P<field>\w+)(?=\s*[:{<])"""
)


def parse_message(
    data: str | bytes, source: str, schema: Schema, root: str, error: TextError, *, allow_unknown: bool = False
) -> Message:
    """The message `root` of `schema` that `data` writes: the last of repeated scalars wins, repeated messages merge.

    Args:
        data: the text, or the bytes of a file.
        source: what to call it in errors.
        schema: where `root` is defined.
        root: name of the message.
        error: what to raise.
        allow_unknown: skip fields that the schema does not have.

    Raises:
        ConfigError, RecordError, ModelError: as `error` says: not UTF-8, not in the text format, or not what the schema
            allows.
    """
    text = decode(data, source, error)
    message = schema.classes[root]()
    try:
        text_format.Merge(text, message, allow_unknown_field=allow_unknown)
    except text_format.ParseError as failure:
        raise error(f"{source}: {_explain(failure, text, schema)}") from failure
    except RecursionError as failure:
        raise error(f"{source}: blocks are nested too deeply") from failure
    # Escapes and numbers that the tokenizer accepts can still fail in the conversions behind it.
    except (ValueError, TypeError, AttributeError, Warning) as failure:
        raise error(f"{source}: not readable as protobuf text: {failure}") from failure
    return message


def allowed_values(field: Field, schema: Schema) -> str:
    """What may stand behind `field`, in words."""
    if field.type in schema.enums:
        return "one of " + ", ".join(schema.enums[field.type])
    if field.type in schema.messages:
        return f"a block {{ }} with fields among {', '.join(schema.messages[field.type])}"
    return _EXPECTED.get(field.type, f"of type {field.type}")


def unknown_field(name: str, message: str, schema: Schema) -> str:
    """The sentence about a field that `message` does not have."""
    known = schema.messages[message]
    return f"unknown field {name!r} in {message}{nearest(name, known) or ';'} known fields: {', '.join(known)}"


def _explain(failure: text_format.ParseError, text: str, schema: Schema) -> str:
    reason = re.sub(r"^\d+:\d+ : ", "", str(failure))
    line, column = failure.GetLine(), failure.GetColumn()
    if line is None or column is None:
        return reason
    here = f"line {line}, column {column}"
    if unknown := _UNKNOWN_FIELD.search(reason):
        return f"{here}: {unknown_field(unknown[2], unknown[1], schema)}"
    lines = text.split("\n")
    source_line = lines[line - 1] if line <= len(lines) else ""
    reason = reason.removeprefix(f"'{source_line}': ").removeprefix("'': ")
    if reason in ('Expected "}".', 'Expected ">".'):
        return f"{here}: the block is not closed ({reason})"
    in_front = "\n".join([*lines[: line - 1], source_line[: column - 1]])
    found = _FOUND.match(source_line[column - 1 :])
    shown = _shortened(found[0]) if found else "the end of the text"
    misfit = _misfit(in_front, shown, schema)
    if (unknown := _UNKNOWN_VALUE.search(reason)) and (match := _FIELD_IN_FRONT.search(in_front)):
        misfit = f"{match[1]} must be one of {', '.join(schema.enums[unknown[1]])}, found {shown}"
    return f"{here}: {misfit} ({_shortened(reason)})"


def _misfit(in_front: str, found: str, schema: Schema) -> str:
    """What is wrong with `found`, as far as the text in front of it tells."""
    match = _FIELD_IN_FRONT.search(in_front)
    field = _field_named(match[1], schema) if match else None
    if match is None or field is None:
        return f"cannot read on at {found}"
    if not match[2] and field.type not in schema.messages:
        return f"{field.name} lacks its colon, found {found}"
    return f"{field.name} must be {allowed_values(field, schema)}, found {found}"


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _field_named(name: str, schema: Schema) -> Field | None:
    return next((fields[name] for fields in schema.messages.values() if name in fields), None)


def fields_passed_over(text: str, schema: Schema, root: str) -> list[str]:
    """The unknown fields in a text that `parse_message` took, as "kernel in ConvolutionParameter (line 3 and 8 more)".

    Nothing is said of a block whose message has no fields: those take anything.
    """
    places: dict[str, list[int]] = {}
    inside: list[str | None] = [root]
    entered: str | None = None
    for match in _FIELDS_AND_BRACES.finditer(text):
        if match["open"]:
            inside.append(entered)
        elif match["close"]:
            inside.pop()
        elif (name := match["field"]) is not None:
            message = inside[-1]
            fields = schema.messages[message] if message else {}
            entered = fields[name].type if name in fields and fields[name].type in schema.messages else None
            if fields and name not in fields:
                places.setdefault(f"{name} in {message}", []).append(match.start())
    lines = {what: text.count("\n", 0, starts[0]) + 1 for what, starts in places.items()}
    more = {what: f" and {len(starts) - 1} more" if starts[1:] else "" for what, starts in places.items()}
    return [f"{what} (line {line}{more[what]})" for what, line in lines.items()]
