"""convert_qat_model: AMCT's name for the import of a model that was quantized in training."""

from __future__ import annotations

import os

from amct_onnx.convert import scaled_by_qdq, scaled_by_record
from amct_onnx.stepwise.arguments import path_of
from amct_onnx.stepwise.save import target_of, write_saved


def convert_qat_model(
    model_file: str | os.PathLike[str],
    save_path: str | os.PathLike[str],
    record_file: str | os.PathLike[str] | None = None,
) -> None:
    """Write <save_path>_deploy_model.onnx, _fake_quant_model.onnx and _quant.json; existing ones are replaced.

    Args:
        model_file: a model with QuantizeLinear and DequantizeLinear; with `record_file` a float model.
        save_path: directory and prefix of the files; the directory is made where it is not there.
        record_file: the factors of the layers, for a model that does not carry them itself.

    Raises:
        ArgumentError: an argument has the wrong type.
        ModelError, RecordError, OutputError, NotAvailableError: each names what was found, where, and what is allowed.
            Nothing is written then.
    """
    model = path_of("model_file", model_file)
    if record_file is None:
        target = target_of(save_path, {"model_file": model})
        done = scaled_by_qdq(model)
    else:
        record = path_of("record_file", record_file)
        target = target_of(save_path, {"model_file": model, "record_file": record})
        done = scaled_by_record(model, record)
    write_saved(done.state, target, done.expected, done.feed)
