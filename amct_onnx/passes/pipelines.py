"""The pipelines, each a table of contents. What they start from is what the one before ensures."""

from __future__ import annotations

from amct_onnx.passes.align_positions import ALIGN_POSITIONS
from amct_onnx.passes.balance import BALANCE_GIVEN, balance
from amct_onnx.passes.calibrate_tensors import FIND_PARAMETER_GRIDS, calibrate_tensors
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.compute_as_dpu import COMPUTE_AS_DPU
from amct_onnx.passes.correct_biases import CORRECT_BIASES, FIND_BIAS_SHIFTS
from amct_onnx.passes.drop_unreached import DROP_UNREACHED
from amct_onnx.passes.equalise_layers import EQUALISE_LAYERS
from amct_onnx.passes.fit_ascend import FIT_ASCEND
from amct_onnx.passes.fit_biases import CHECK_BIASES, FIT_BIASES
from amct_onnx.passes.fold_constants import FOLD_CONSTANTS
from amct_onnx.passes.fold_pads import FOLD_PADS
from amct_onnx.passes.fuse_batch_norm import FUSE_BATCH_NORM
from amct_onnx.passes.insert_dequant import INSERT_DEQUANT
from amct_onnx.passes.insert_grid_qdq import INSERT_GRID_QDQ
from amct_onnx.passes.insert_grids import INSERT_GRIDS
from amct_onnx.passes.insert_qdq import INSERT_QDQ
from amct_onnx.passes.insert_quant import INSERT_QUANT
from amct_onnx.passes.lower_ascend import LOWER_ASCEND
from amct_onnx.passes.merge_quants import MERGE_QUANTS
from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.normalise_gemm import NORMALISE_GEMM
from amct_onnx.passes.observe import observe
from amct_onnx.passes.pack_int4 import PACK_INT4
from amct_onnx.passes.quantize_weights import FIND_WEIGHT_SCALES, STORE_INTEGER_WEIGHTS
from amct_onnx.passes.recurrent import FAKE_RECURRENT, REPLACE_RECURRENT
from amct_onnx.passes.remove_identities import REMOVE_IDENTITIES
from amct_onnx.passes.replace_relu6 import REPLACE_RELU6
from amct_onnx.passes.round_weights import round_weights
from amct_onnx.passes.soften_weights import soften_weights
from amct_onnx.passes.split_shared import SPLIT_SHARED
from amct_onnx.passes.state import Pass
from amct_onnx.passes.take_given import TAKE_GIVEN
from amct_onnx.passes.write_kernel_shapes import WRITE_KERNEL_SHAPES

PREPARE: tuple[Pass, ...] = (
    NAME_NODES,  # everything after speaks of nodes by name
    DROP_UNREACHED,
    FOLD_CONSTANTS,  # weights and paddings become initializers
    REMOVE_IDENTITIES,
    NORMALISE_GEMM,
    FOLD_PADS,
    WRITE_KERNEL_SHAPES,
    SPLIT_SHARED,  # last: folding may have made two layers read one initializer
)
"""Simplifies the graph without changing what it computes; knows no configuration."""

BEFORE_READING: tuple[Pass, ...] = (NAME_NODES, DROP_UNREACHED, FOLD_CONSTANTS)
"""What must be done before QuantizeLinear and DequantizeLinear are read: their parameters become initializers."""

FUSE: tuple[Pass, ...] = (FUSE_BATCH_NORM,)
"""Folds what the plan allows; after it only balancing changes the float graph."""


def calibrate(run: CalibrationRun) -> tuple[Pass, ...]:
    """Fills in the parameters of every layer from calibration data."""
    return (
        EQUALISE_LAYERS,  # both change weights, so they come before anything that looks at them
        balance(run),
        FIND_WEIGHT_SCALES,  # first: activations are observed behind quantized weights
        soften_weights(run),
        observe(run),
        FIND_BIAS_SHIFTS,
        FIT_BIASES,
        round_weights(run),  # last: each layer is rounded for the scales and biases that it will have
    )


REWRITE: tuple[Pass, ...] = (
    REPLACE_RELU6,  # first: Relu lets factors through
    EQUALISE_LAYERS,
    COMPUTE_AS_DPU,
)
"""The rewrites of the float graph that a Vitis AI strategy asks for; its tensors then have their final names."""


def calibrate_by_strategy(run: CalibrationRun) -> tuple[Pass, ...]:
    """Fills in the grids of a Vitis AI strategy."""
    return (
        FIND_PARAMETER_GRIDS,
        calibrate_tensors(run),
        ALIGN_POSITIONS,
    )


GIVEN: tuple[Pass, ...] = (BALANCE_GIVEN, TAKE_GIVEN, CHECK_BIASES)
"""Fills in the parameters that the plan knows: takes the place of calibration."""

TRAINED: tuple[Pass, ...] = (TAKE_GIVEN, FIT_BIASES)
"""The same for what training found; channels left all but without weights get the scale that their bias needs."""

INTEGER: tuple[Pass, ...] = (
    CORRECT_BIASES,
    INSERT_QUANT,
    INSERT_DEQUANT,  # biases too: their scale is the dequantization scale
    STORE_INTEGER_WEIGHTS,
    MERGE_QUANTS,
)
"""Rewrites the float graph into one of integer layers between Ascend's operators."""

DEPLOY: tuple[Pass, ...] = (*INTEGER, PACK_INT4, REPLACE_RECURRENT)
"""Rewrites the float graph into Ascend's deploy form."""

FAKE_QUANT: tuple[Pass, ...] = (*INTEGER, FAKE_RECURRENT, LOWER_ASCEND)
"""Rewrites the float graph into one of standard operators that computes what the chip will."""

TAKE_OVER_GRIDS: tuple[Pass, ...] = (FIT_ASCEND, FIT_BIASES)
"""Takes the decisions of a strategy over where Ascend's operators compute them; DEPLOY then rewrites the graph."""

FAKE_QUANT_GRIDS: tuple[Pass, ...] = (INSERT_GRIDS,)
"""Rewrites the float graph into one of standard operators on a strategy's grids."""

QDQ_GRIDS: tuple[Pass, ...] = (INSERT_GRID_QDQ,)
"""The same with QuantizeLinear and DequantizeLinear."""

QDQ: tuple[Pass, ...] = (CORRECT_BIASES, INSERT_QDQ)
"""Rewrites the float graph into one with QuantizeLinear and DequantizeLinear."""
