"""verify_deploy_model: whether ATC will take a deploy model, and mean what was meant."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from amct_onnx.deploy.container_rules import LARGEST_FILE
from amct_onnx.deploy.flow import flow_of
from amct_onnx.deploy.rule import FloatModel, Gap, Problem, Rule, Severity, Subject
from amct_onnx.deploy.rules import RULES
from amct_onnx.deploy.tensors import TensorData, stored_bytes
from amct_onnx.deploy.view import View, view_of
from amct_onnx.errors import ModelError
from amct_onnx.formats.model_file import ModelSource, read_without_data
from amct_onnx.formats.record import LayerRecord, read_record
from amct_onnx.passes.weights import Weight

MOST_FINDINGS = 200
"""Findings of one rule that are listed; a file that breaks a rule oftener is broken as a whole."""

_MOST_NODES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that the model breaks.

    node: the node or tensor, empty for the model itself.
    """

    rule: int
    severity: Severity
    node: str
    found: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A rule that could not be checked, and why.

    nodes: where; the first ones of `count`. Empty for the whole model.
    """

    rule: int
    reason: str
    nodes: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify_deploy_model` found.

    model: the path, or "the model".
    layers: number of quantized layers.
    findings: by number of the rule.
    unchecked: what could not be looked at, by number of the rule.
    """

    model: str
    layers: int
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are errors."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are warnings."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def to_json(self) -> str:
        """The report as JSON text, each finding with its rule's sentence and source."""
        rules = {rule.number: {"sentence": rule.sentence, "source": rule.source} for rule in RULES}
        content = {
            "model": self.model,
            "ok": self.ok,
            "layers": self.layers,
            "findings": [{**asdict(finding), **rules[finding.rule]} for finding in self.findings],
            "unchecked": [asdict(entry) for entry in self.unchecked],
        }
        return json.dumps(content, indent=2) + "\n"


def verify_deploy_model(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    record: str | os.PathLike[str] | Mapping[str, LayerRecord] | None = None,
    float_model: ModelSource | None = None,
    weights: Mapping[str, Weight] | None = None,
) -> VerifyReport:
    """Check a deploy model against the rules of docs/verify.md, without ATC and without a chip.

    Nothing is read that no rule needs, and nothing outside the model's folder.

    Args:
        model: the deploy model of this engine, of AMCT, or of any other tool: a file, or a model in memory.
        record: the record file that belongs to it, or what was read from it; lets the scales be checked.
        float_model: the model before quantization; lets the biases be checked.
        weights: initializer -> values, or where they are, for a model in memory whose large data are not in it.

    Raises:
        ModelError: a model cannot be read, or is no graph: a tensor is read that nothing produces, or produced
            twice, or a node depends on itself.
        RecordError: the record cannot be read.
    """
    name = str(model) if isinstance(model, (str, os.PathLike)) else "the model"
    factors = read_record(record) if isinstance(record, (str, os.PathLike)) else record
    original = None if float_model is None else _float_model(float_model)
    size = os.path.getsize(model) if isinstance(model, (str, os.PathLike)) and os.path.isfile(model) else 0
    if size > LARGEST_FILE:
        return _too_large(name, size)
    view, data = _opened(model, weights or {})
    if not isinstance(model, (str, os.PathLike)):
        size = sum(stored_bytes(tensor) for _, tensor in view.tensors)
    subject = Subject(view=view, flow=flow_of(view), data=data, size=size, record=factors, float_model=original)
    findings: list[Finding] = []
    unchecked: list[Unchecked] = []
    for rule in RULES:
        problems, gaps = _outcome(rule, subject)
        findings.extend(problems)
        unchecked.extend(gaps)
    return VerifyReport(
        model=name, layers=len(subject.flow.layers), findings=tuple(findings), unchecked=tuple(unchecked)
    )


def _opened(model: ModelSource, weights: Mapping[str, Weight]) -> tuple[View, TensorData]:
    folder = Path(model).parent if isinstance(model, (str, os.PathLike)) else None
    proto = read_without_data(model)
    try:
        return view_of(proto), TensorData(folder, weights)
    except ModelError as error:
        name = "the model" if folder is None else str(model)
        raise ModelError(f"{name}: {error}") from error


def _float_model(model: ModelSource) -> FloatModel:
    view, data = _opened(model, {})
    return FloatModel(nodes={node.name: node for node in view.nodes if node.name}, data=data)


def _too_large(name: str, size: int) -> VerifyReport:
    """The report on a file that protobuf cannot hold, so that nothing else of it can be read."""
    (rule,) = (rule for rule in RULES if rule.number == 40)
    found = Finding(
        rule=rule.number,
        severity="error",
        node="",
        found=f"{size} bytes",
        expected=f"at most {LARGEST_FILE}; larger weights in files of their own",
    )
    reason = "the file is too large to be read"
    others = [Unchecked(rule=r.number, reason=reason, nodes=(), count=0) for r in RULES if r is not rule]
    return VerifyReport(model=name, layers=0, findings=(found,), unchecked=tuple(others))


def _outcome(rule: Rule, subject: Subject) -> tuple[list[Finding], list[Unchecked]]:
    """What one rule finds, and what it cannot look at."""
    findings: list[Finding] = []
    gaps: dict[str, list[str]] = {}
    for result in rule.check(subject):
        if isinstance(result, Gap):
            gaps.setdefault(result.reason, []).append(result.where)
        elif len(findings) < MOST_FINDINGS:
            findings.append(_finding(rule, result))
        else:
            gaps.setdefault(f"{MOST_FINDINGS} findings are enough", [])
            break
    unchecked = []
    for reason, nodes in gaps.items():
        named = [node for node in nodes if node]
        entry = Unchecked(rule=rule.number, reason=reason, nodes=tuple(named[:_MOST_NODES]), count=len(named))
        unchecked.append(entry)
    return findings, unchecked


def _finding(rule: Rule, problem: Problem) -> Finding:
    return Finding(
        rule=rule.number,
        severity=problem.severity or rule.severities[0],
        node=problem.where,
        found=problem.found,
        expected=problem.expected,
    )
