"""Quantization and compression of ONNX models for Huawei Ascend NPUs."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amct_onnx.accuracy_target import AccuracyTarget as AccuracyTarget
    from amct_onnx.auto_calibration.run import accuracy_based_auto_calibration as accuracy_based_auto_calibration
    from amct_onnx.caffe import import_caffe as import_caffe
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
    from amct_onnx.errors import ArgumentError as ArgumentError
    from amct_onnx.errors import ConfigError as ConfigError
    from amct_onnx.errors import DataError as DataError
    from amct_onnx.errors import EvaluatorError as EvaluatorError
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
    from amct_onnx.retrain.module import to_onnx as to_onnx
    from amct_onnx.retrain.module import to_torch as to_torch
    from amct_onnx.retrain.prune_search import auto_channel_prune_search as auto_channel_prune_search
    from amct_onnx.retrain.pruning import create_compressed_retrain_model as create_compressed_retrain_model
    from amct_onnx.retrain.pruning import create_prune_retrain_model as create_prune_retrain_model
    from amct_onnx.retrain.pruning import restore_compressed_retrain_model as restore_compressed_retrain_model
    from amct_onnx.retrain.pruning import restore_prune_retrain_model as restore_prune_retrain_model
    from amct_onnx.retrain.pruning import save_compressed_retrain_model as save_compressed_retrain_model
    from amct_onnx.retrain.pruning import save_prune_retrain_model as save_prune_retrain_model
    from amct_onnx.retrain.quantization import create_quant_retrain_config as create_quant_retrain_config
    from amct_onnx.retrain.quantization import create_quant_retrain_model as create_quant_retrain_model
    from amct_onnx.retrain.quantization import restore_quant_retrain_model as restore_quant_retrain_model
    from amct_onnx.retrain.quantization import retrain_onnx as retrain_onnx
    from amct_onnx.retrain.quantization import save_quant_retrain_model as save_quant_retrain_model
    from amct_onnx.retrain_config import RetrainConfig as RetrainConfig
    from amct_onnx.retrain_config import RetrainLayerConfig as RetrainLayerConfig
    from amct_onnx.stepwise.convert_qat import convert_qat_model as convert_qat_model
    from amct_onnx.stepwise.create_config import create_quant_config as create_quant_config
    from amct_onnx.stepwise.custom_ops import AMCT_SO as AMCT_SO
    from amct_onnx.stepwise.modified_model import quantize_model as quantize_model
    from amct_onnx.stepwise.modified_model import quantize_preprocess as quantize_preprocess
    from amct_onnx.stepwise.save import save_model as save_model
    from amct_onnx.stepwise.session import calibration_session as calibration_session
    from amct_onnx.strategy_config import StrategyConfig as StrategyConfig

# Where each name lives. Loaded on first use: importing the package stays cheap.
_HOMES = {
    "amct_onnx.accuracy_target": "AccuracyTarget",
    "amct_onnx.auto_calibration.run": "accuracy_based_auto_calibration",
    "amct_onnx.caffe": "import_caffe",
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
    "amct_onnx.errors": "AmctError ArgumentError ConfigError DataError EvaluatorError ModelError NotAvailableError "
    "OutputError PassError RecordError",
    "amct_onnx.quantize": "quantize_onnx",
    "amct_onnx.report.compare": "compare_models",
    "amct_onnx.results": "QuantizeResult",
    "amct_onnx.retrain_config": "RetrainConfig RetrainLayerConfig",
    "amct_onnx.stepwise.convert_qat": "convert_qat_model",
    "amct_onnx.stepwise.create_config": "create_quant_config",
    "amct_onnx.stepwise.modified_model": "quantize_model quantize_preprocess",
    "amct_onnx.stepwise.save": "save_model",
    "amct_onnx.stepwise.session": "calibration_session",
    "amct_onnx.strategy_config": "StrategyConfig",
}
# Those that need an extra (`retrain`, `stepwise`): a star import must neither load it nor fail where it is missing.
_HOMES_WITH_EXTRA = {
    "amct_onnx.retrain.module": "to_onnx to_torch",
    "amct_onnx.retrain.prune_search": "auto_channel_prune_search",
    "amct_onnx.retrain.pruning": "create_compressed_retrain_model create_prune_retrain_model "
    "restore_compressed_retrain_model restore_prune_retrain_model save_compressed_retrain_model "
    "save_prune_retrain_model",
    "amct_onnx.retrain.quantization": "create_quant_retrain_config create_quant_retrain_model "
    "restore_quant_retrain_model retrain_onnx save_quant_retrain_model",
    "amct_onnx.stepwise.custom_ops": "AMCT_SO",
}
_HOME_OF = {
    name: home for homes in (_HOMES, _HOMES_WITH_EXTRA) for home, names in homes.items() for name in names.split()
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())
__version__ = "0.1.0"

logging.getLogger("amct_onnx").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'amct_onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
