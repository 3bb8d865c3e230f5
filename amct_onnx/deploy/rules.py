"""Every rule, in order of number."""

from __future__ import annotations

from amct_onnx.deploy.container_rules import CONTAINER_RULES
from amct_onnx.deploy.dequant_rules import DEQUANT_RULES
from amct_onnx.deploy.layer_rules import LAYER_RULES
from amct_onnx.deploy.number_rules import NUMBER_RULES
from amct_onnx.deploy.quant_rules import QUANT_RULES
from amct_onnx.deploy.rule import Rule
from amct_onnx.deploy.wiring_rules import WIRING_RULES

_ALL = (*CONTAINER_RULES, *QUANT_RULES, *DEQUANT_RULES, *WIRING_RULES, *LAYER_RULES, *NUMBER_RULES)

RULES: tuple[Rule, ...] = tuple(sorted(_ALL, key=lambda rule: rule.number))
