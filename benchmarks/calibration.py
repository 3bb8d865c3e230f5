"""Time and memory of a whole quantization, beside bare inference and onnxruntime's own quantizer.

    python benchmarks/calibration.py                        # both built-in networks, 32 samples
    python benchmarks/calibration.py --samples 32 128 512 --batch 1 8 --json figures.json
    python benchmarks/calibration.py --model net.onnx --data samples.npy

Every measurement is a process of its own, so that peak memory is its own, and the contenders take turns, so that a
machine that slows down slows all of them. Only the call itself is timed: imports and the making of the data are not.
The smallest of the rounds counts. Ratios within one run are what to look at; seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

CONTENDERS = ("bare", "ours", "ort-minmax", "ort-percentile", "ort-entropy")


def main() -> None:
    options = _parser().parse_args()
    if options.one:
        print(json.dumps(_measure(options.one, Path(options.model), Path(options.data), options.batch[0])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, data in _cases(options, Path(folder)):
            for batch in options.batch:
                rows += _take_turns(name, model, data, batch, options)
    _print(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="*", default=["resnet50", "efficientnet_lite0"], help="built-in networks")
    parser.add_argument("--model", help="an .onnx file with one float input instead")
    parser.add_argument("--data", help="a .npy file of samples for --model [n, ...]; random numbers without it")
    parser.add_argument("--samples", type=int, nargs="+", default=[32])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures here too")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser


def _cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, model file and data file of every network and number of samples."""
    import onnx
    from networks import NETWORKS

    models = {}
    if options.model:
        models[Path(options.model).stem] = Path(options.model)
    else:
        for name in options.network:
            models[name] = folder / f"{name}.onnx"
            onnx.save(NETWORKS[name](), models[name])
    for name, model in models.items():
        for samples in options.samples:
            data = folder / f"{name}_{samples}.npy"
            np.save(data, _samples(model, samples, options.data))
            yield f"{name} n={samples}", model, data
            data.unlink()


def _samples(model: Path, count: int, source: str | None) -> np.ndarray:
    if source:
        return np.load(source)[:count]
    import onnx

    dims = onnx.load(str(model), load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    shape = [count, *(d.dim_value or 224 for d in list(dims)[1:])]
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _take_turns(name: str, model: Path, data: Path, batch: int, options: argparse.Namespace) -> list[dict[str, object]]:
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for contender in options.contenders:
            command = [sys.executable, __file__, "--one", contender, "--model", str(model), "--data", str(data)]
            run = subprocess.run([*command, "--batch", str(batch)], capture_output=True, text=True, check=False)
            if run.returncode:
                print(f"{contender} failed on {name}: {run.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            found = json.loads(run.stdout.strip().splitlines()[-1])
            kept = best.setdefault(contender, found)
            for key, value in found.items():
                kept[key] = min(kept[key], value)
    bare = best.get("bare", {}).get("wall", float("nan"))
    return [
        {"case": f"{name} batch={batch}", "contender": contender, **figures, "times bare": figures["wall"] / bare}
        for contender, figures in best.items()
    ]


def _measure(contender: str, model: Path, data: Path, batch: int) -> dict[str, float]:
    """Run one contender once, in this process."""
    samples = np.load(data, mmap_mode="r")
    batches = [np.ascontiguousarray(samples[i : i + batch]) for i in range(0, len(samples), batch)]
    with tempfile.TemporaryDirectory() as folder:
        call = _call(contender, model, batches, Path(folder))
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak MB": peak()}


def peak() -> float:
    """Largest resident memory in MB. Linux's own count: getrusage's starts from that of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _call(contender: str, model: Path, batches: list[np.ndarray], folder: Path) -> Callable[[], object]:
    if contender == "bare":
        return lambda: _infer(model, batches)
    if contender == "ours":
        from amct_onnx import quantize_onnx

        return lambda: quantize_onnx(model, calibration=batches, save_path=folder / "ours", progress=False)
    return _onnxruntime_call(contender.removeprefix("ort-"), model, batches, folder)


def _infer(model: Path, batches: list[np.ndarray]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in batches:
        session.run(None, {name: batch})


def _onnxruntime_call(method: str, model: Path, batches: list[np.ndarray], folder: Path) -> Callable[[], object]:
    import onnxruntime
    from onnxruntime import quantization

    name = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter([{name: batch} for batch in batches])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    methods = quantization.CalibrationMethod
    chosen = {"minmax": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[method]
    return lambda: quantization.quantize_static(
        str(model), str(folder / "ort.onnx"), Reader(), per_channel=True, calibrate_method=chosen
    )


def _print(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "contender", "wall s", "CPU s", "peak MB", "times bare")
    for row in rows:
        figures = (f"{row['wall']:.2f}", f"{row['cpu']:.2f}", f"{row['peak MB']:.0f}", f"{row['times bare']:.1f}")
        table.add_row(str(row["case"]), str(row["contender"]), *figures)
    Console(width=None if os.isatty(1) else 110).print(table)


if __name__ == "__main__":
    main()
