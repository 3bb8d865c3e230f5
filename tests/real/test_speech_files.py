"""Networks with state, with bodies and with integer inputs: speech detection, denoising, kinds of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import sqnr

from real.inputs import batches, files_by_suffix, speech
from real.networks import Array, Feed, first_output, network, quantized, session_of, sqnrs

pytestmark = pytest.mark.network

SILERO_CALIBRATION, DTLN_CALIBRATION = 400, 600
"""Frames and hops at the beginning, which are calibrated with and not evaluated."""


def voice(model: Path | onnx.ModelProto, more: Feed) -> tuple[Array, list[Feed]]:
    """The probability of speech for each frame, with carried state, and what was fed."""
    session, feeds, found = session_of(model, threads=1), list[Feed](), []
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    for frame in speech()[0].reshape(-1, 512):
        feeds.append({"input": np.concatenate([context, frame])[None], "state": state, **more})
        probability, state = session.run(None, dict(feeds[-1]))
        found.append(probability.item())
        context = frame[-64:]
    return np.array(found), feeds


@pytest.mark.parametrize("file", ["model.onnx", "op15.onnx"])
def test_silero_vad_hears_the_same(file: str) -> None:
    path = network("silero-vad", file)
    more: Feed = {"sr": np.array(16000, np.int64)} if file == "op15.onnx" else {}
    before, feeds = voice(path, more)
    result = quantized(path, feeds[:SILERO_CALIBRATION])
    assert len(result.plan.layers) == 6
    assert sqnrs(path, result, feeds[SILERO_CALIBRATION:])["output"] > 20  # measured 24.8 dB
    heard_before, heard_after = before > 0.5, voice(result.fake_quant_model, more)[0] > 0.5
    right = [100 * (heard == speech()[1])[SILERO_CALIBRATION:].mean() for heard in (heard_before, heard_after)]
    assert 100 * (heard_before == speech()[1]).mean() == pytest.approx(84.7, abs=0.1)
    assert right[1] >= right[0] - 1.5  # measured 85.8 before, 85.4 after
    assert (heard_before == heard_after).mean() > 0.97  # measured 0.984


def test_silero_vad_hears_the_same_with_an_lstm_over_integers() -> None:
    path = network("silero-vad")
    before, feeds = voice(path, {})
    result = quantized(path, feeds[:SILERO_CALIBRATION], recurrent_layers=True)
    assert len(result.plan.layers) == 7
    assert sqnrs(path, result, feeds[SILERO_CALIBRATION:])["output"] > 20  # measured 24.7 dB, 24.8 with a float LSTM
    after = voice(result.fake_quant_model, {})[0]
    assert ((before > 0.5) == (after > 0.5)).mean() > 0.97  # measured 0.984


def noisy_speech() -> tuple[Array, Array]:
    """16 seconds of speech, clean and with white noise of 6.2 dB below it."""
    clean = speech()[0][: 500 * 512]
    noise = np.random.default_rng(0).normal(size=clean.size)
    noise *= np.sqrt((clean**2).mean() / (noise**2).mean()) * 10 ** (-6.2 / 20)
    return clean, (clean + noise).astype(np.float32)


def denoised(
    first: Path | onnx.ModelProto, second: Path | onnx.ModelProto, sound: Array
) -> tuple[Array, list[Feed], list[Feed]]:
    """The sound through both networks, 512 samples every 128, and what was fed to either."""
    masks, waves = session_of(first, threads=1), session_of(second, threads=1)
    fed: tuple[list[Feed], list[Feed]] = ([], [])
    states = [np.zeros((1, 2, 128, 2), np.float32)] * 2
    window, summed, found = np.zeros(512, np.float32), np.zeros(512, np.float32), []
    for hop in sound.reshape(-1, 128):
        window = np.concatenate([window[128:], hop])
        spectrum = np.fft.rfft(window)
        fed[0].append({"input_2": np.abs(spectrum).astype(np.float32).reshape(1, 1, 257), "input_3": states[0]})
        mask, states[0] = masks.run(None, dict(fed[0][-1]))
        wave = np.fft.irfft(spectrum * mask.ravel()).astype(np.float32)
        fed[1].append({"input_4": wave.reshape(1, 1, 512), "input_5": states[1]})
        wave, states[1] = waves.run(None, dict(fed[1][-1]))
        summed = np.concatenate([summed[128:], np.zeros(128, np.float32)]) + wave.ravel()
        found.append(summed[:128])
    return np.concatenate(found)[384:], *fed


def test_dtln_denoises_as_well() -> None:
    first, second = network("dtln"), network("dtln", "model2.onnx")
    clean, noisy = noisy_speech()
    before, *fed = denoised(first, second, noisy)
    results = [quantized(path, feeds[:DTLN_CALIBRATION:3]) for path, feeds in zip((first, second), fed, strict=True)]
    assert [len(result.plan.layers) for result in results] == [1, 7]
    after = denoised(results[0].fake_quant_model, results[1].fake_quant_model, noisy)[0]
    part = slice(DTLN_CALIBRATION * 128, before.size)
    gains = [sqnr(clean[part], sound[part]) for sound in (noisy, before, after)]
    assert gains[1] > 16  # measured 6.5 dB of noisy speech become 16.7
    assert gains[2] > gains[1] - 1  # measured 16.3
    assert sqnr(before[part], after[part]) > 22  # measured 26.9


SUFFIXES = (".py", ".pyc", ".so", ".h", ".json", ".txt", ".md", ".css", ".html", ".js", ".png", ".csv", ".gz", ".npz")


def start_and_end(path: Path) -> Array:
    """The first and the last 1024 bytes without white space around them, padded with 256 to the middle."""
    content = path.read_bytes()
    start, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    found = np.full(2048, 256, np.int32)
    found[: len(start)] = list(start)
    found[2048 - len(end) :] = list(end)
    return found


def file_feeds() -> tuple[list[Feed], list[Feed]]:
    """Files of many kinds, 8 a batch: some to calibrate with, others to evaluate."""
    files = np.stack([start_and_end(file) for file in files_by_suffix(SUFFIXES, 24)])
    calibration, evaluation = ([{"bytes": b} for b in batches(part, 8)] for part in (files[::4], files[1::2]))
    return calibration, evaluation


def test_magika_names_the_same_kinds_of_files() -> None:
    path = network("magika-v3")
    calibration, evaluation = file_feeds()
    result = quantized(path, calibration)
    assert len(result.plan.layers) == 3
    before, after = (first_output(model, evaluation) for model in (path, result.fake_quant_model))
    assert sqnr(before, after) > 25  # measured 35.0 dB; the files differ from machine to machine
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.95  # measured 0.987
