"""The steps of AMCT's samples, as a user's scripts take them, each of which may run in a process of its own."""

import os
import sys
import traceback
from pathlib import Path

import numpy as np
import onnxruntime

import amct_onnx as amct


class Files:
    """Where a flow has its files."""

    def __init__(self, folder, model):
        self.folder, self.model = Path(folder), str(model)
        self.config, self.modified, self.record = (
            str(self.folder / name) for name in ("config.json", "modified.onnx", "record.txt")
        )
        self.save_path = str(self.folder / "out" / "net")

    def outputs(self):
        """Every file that there is -> its bytes, without what stages of killed runs left."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        names = [path for path in paths if not any(part.startswith(".amct") for part in path.parts)]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in names}


def feeds_of(case):
    data = np.load(case / "calibration.npz")
    batches = max(int(key.rsplit("_", 1)[1]) for key in data.files) + 1
    names = sorted({key.rsplit("_", 1)[0] for key in data.files})
    return [{name: data[f"{name}_{batch}"] for name in names} for batch in range(batches)]


def loop_with_amct_so(model, feeds):
    session = onnxruntime.InferenceSession(model, amct.AMCT_SO, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def loop_with_our_session(model, feeds):
    with amct.calibration_session(model) as session:
        return [session.run(None, feed) for feed in feeds]


LOOPS = {"AMCT_SO": loop_with_amct_so, "calibration_session": loop_with_our_session}


def steps(files, feeds, loop, *, cfg=None, batch_num=1, dmq=False):
    """The calls of a flow, in their order."""
    given = {"batch_num": batch_num} if cfg is None else {"config_defination": str(cfg)}
    yield lambda: amct.create_quant_config(files.config, files.model, **given)
    if dmq:
        yield lambda: amct.quantize_preprocess(files.config, files.record, files.model, files.modified)
        yield lambda: loop(files.modified, feeds[:1])
    yield lambda: amct.quantize_model(files.config, files.model, files.modified, files.record)
    yield lambda: loop(files.modified, feeds)
    yield lambda: amct.save_model(files.modified, files.record, files.save_path)


def run_all(*arguments, **options):
    for step in steps(*arguments, **options):
        step()


def in_own_process(step):
    """Run a call in a fork of this process; the exit status of the fork. Nothing may run threads here yet."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            step()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child
