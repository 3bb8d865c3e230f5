"""Runs a simulated model over data: its outputs into a file, their differences from a reference into a table."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amct_onnx.deploy.simulate import SimulatedSession
from amct_onnx.errors import ModelError, OutputError
from amct_onnx.formats.model_file import staged
from amct_onnx.passes.session import Session
from amct_onnx.report.compare import RunningError, TensorError

Array = NDArray[Any]
Feed = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRange:
    """What an output was over all batches: its last shape, smallest and largest value."""

    shape: tuple[int, ...]
    smallest: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What a run gave: number of batches, and of every output its range and, with a reference, its difference."""

    batches: int
    ranges: Mapping[str, OutputRange]
    errors: Mapping[str, TensorError]


class _Write(Protocol):
    def __call__(self, name: str, values: Array) -> None: ...


def run_simulation(
    session: SimulatedSession, feeds: Iterable[Feed], *, reference: Session | None = None, save: Path | None = None
) -> Simulation:
    """Run every batch.

    Args:
        session: the simulated model.
        feeds: the batches.
        reference: a float or fake-quant model with outputs of the same names.
        save: an .npz file that will hold the outputs as <output>_<batch>; it appears when all of them are there.

    Raises:
        ModelError: a model does not run, or the reference has no output in common.
        OutputError: the file cannot be written.
    """
    names = [output.name for output in session.get_outputs()]
    shared = [name for name in names if reference is not None and name in reference.outputs]
    if reference is not None and not shared:
        raise ModelError(f"the reference has none of the outputs {', '.join(names)}")
    ranges: dict[str, OutputRange] = {}
    sums = {name: RunningError() for name in shared}
    batches = 0
    with _archive(save) as write:
        for feed in feeds:
            found = dict(zip(names, _run(session, feed, f"batch {batches}"), strict=True))
            for name, values in found.items():
                write(f"{name}_{batches}", values)
                ranges[name] = _widened(ranges.get(name), values)
            if reference is not None:
                expected = reference.run(feed, f"batch {batches}")
                for name, running in sums.items():
                    running.add(expected[name], found[name])
            batches += 1
    return Simulation(batches=batches, ranges=ranges, errors={name: s.error() for name, s in sums.items()})


def _run(session: SimulatedSession, feed: Feed, what: str) -> list[Array]:
    try:
        return [np.asarray(values) for values in session.run(None, feed)]
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"onnxruntime fails to run the simulated model on {what}: {reason}") from error


def _widened(known: OutputRange | None, values: Array) -> OutputRange:
    if values.size == 0 or values.dtype.kind not in "fiub":
        return known or OutputRange(shape=values.shape, smallest=np.nan, largest=np.nan)
    low, high = float(values.min()), float(values.max())
    if known is not None:
        low, high = float(np.fmin(low, known.smallest)), float(np.fmax(high, known.largest))
    return OutputRange(shape=values.shape, smallest=low, largest=high)


@contextmanager
def _archive(path: Path | None) -> Iterator[_Write]:
    """Writes arrays into an .npz file one by one, which appears at the end; into nothing for None."""
    if path is None:
        yield lambda name, values: None
        return
    if path.suffix != ".npz":
        raise OutputError(f"{path}: outputs are written to an .npz file; choose a name that ends in .npz")
    with staged(path.parent, [path.name]) as folder, zipfile.ZipFile(folder / path.name, "w") as archive:

        def write(name: str, values: Array) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)

        yield write
