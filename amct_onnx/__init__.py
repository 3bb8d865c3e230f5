"""Quantization and compression of ONNX models for Huawei Ascend NPUs."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amct_onnx.config import LayerConfig as LayerConfig
    from amct_onnx.config import NuqConfig as NuqConfig
    from amct_onnx.config import QuantConfig as QuantConfig
    from amct_onnx.config import TensorConfig as TensorConfig
    from amct_onnx.convert import convert_model as convert_model
    from amct_onnx.convert import import_qdq as import_qdq
    from amct_onnx.deploy.simulate import SimulatedSession as SimulatedSession
    from amct_onnx.deploy.verify import VerifyReport as VerifyReport
    from amct_onnx.deploy.verify import verify_deploy_model as verify_deploy_model
    from amct_onnx.errors import AmctError as AmctError
    from amct_onnx.errors import ConfigError as ConfigError
    from amct_onnx.errors import DataError as DataError
    from amct_onnx.errors import ModelError as ModelError
    from amct_onnx.errors import NotAvailableError as NotAvailableError
    from amct_onnx.errors import OutputError as OutputError
    from amct_onnx.errors import PassError as PassError
    from amct_onnx.errors import RecordError as RecordError
    from amct_onnx.kernels.adaround import AdaRound as AdaRound
    from amct_onnx.kernels.arq import Arq as Arq
    from amct_onnx.kernels.dmq import Dmq as Dmq
    from amct_onnx.kernels.hfmg import Hfmg as Hfmg
    from amct_onnx.kernels.ifmr import Ifmr as Ifmr
    from amct_onnx.kernels.nuq import Nuq as Nuq
    from amct_onnx.kernels.strategy import TensorStrategy as TensorStrategy
    from amct_onnx.quantize import quantize_onnx as quantize_onnx
    from amct_onnx.report.compare import compare_models as compare_models
    from amct_onnx.results import QuantizeResult as QuantizeResult
    from amct_onnx.strategy_config import StrategyConfig as StrategyConfig

# Where each name lives. Loaded on first use: importing the package stays cheap.
_HOMES = {
    "amct_onnx.config": "LayerConfig NuqConfig QuantConfig TensorConfig",
    "amct_onnx.convert": "convert_model import_qdq",
    "amct_onnx.deploy.simulate": "SimulatedSession",
    "amct_onnx.deploy.verify": "VerifyReport verify_deploy_model",
    "amct_onnx.kernels.adaround": "AdaRound",
    "amct_onnx.kernels.arq": "Arq",
    "amct_onnx.kernels.dmq": "Dmq",
    "amct_onnx.kernels.hfmg": "Hfmg",
    "amct_onnx.kernels.ifmr": "Ifmr",
    "amct_onnx.kernels.nuq": "Nuq",
    "amct_onnx.kernels.strategy": "TensorStrategy",
    "amct_onnx.errors": "AmctError ConfigError DataError ModelError NotAvailableError OutputError PassError "
    "RecordError",
    "amct_onnx.quantize": "quantize_onnx",
    "amct_onnx.report.compare": "compare_models",
    "amct_onnx.results": "QuantizeResult",
    "amct_onnx.strategy_config": "StrategyConfig",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)
__version__ = "0.1.0"

logging.getLogger("amct_onnx").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'amct_onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
