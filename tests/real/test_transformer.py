"""A sentence encoder: 36 weights in MatMul nodes, outliers in the activations, integer inputs of dynamic sizes."""

from __future__ import annotations

import re
from pydoc_data.topics import topics

import numpy as np
import pytest

from amct_onnx import Dmq, LayerConfig
from real.minilm import embeddings, exported, feeds_of, pairs, score
from real.networks import quantized

pytestmark = pytest.mark.network


def test_minilm_follows_peoples_ratings() -> None:
    path, rated = exported(), pairs("test")
    sentences = [sentence for first, second, _ in pairs("dev") for sentence in (first, second)]
    result = quantized(path, feeds_of(sentences[::24], 8))
    assert len(result.plan.layers) == 36
    before, after = score(path, rated), score(result.fake_quant_model, rated)
    assert before == pytest.approx(82.03, abs=0.05)
    assert after >= before - 1.5  # measured 81.62


def test_minilm_embeds_the_manual_alike() -> None:
    """The same without data from elsewhere: sentences of Python's own manual."""
    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    sentences = [part for part in re.split(r"(?<=[.:]) ", text) if re.fullmatch(r"[A-Z][A-Za-z ,'()-]{30,150}\.", part)]
    path = exported()
    cosines = []
    for balancer in (None, Dmq()):
        common = LayerConfig(balancer=balancer)
        result = quantized(path, feeds_of(sentences[0:128:2], 8), common_config=common)
        before, after = (embeddings(model, sentences[1:128:2]) for model in (path, result.fake_quant_model))
        cosines.append(float(np.mean((before * after).sum(1))))
    assert cosines[0] > 0.93  # measured 0.962
    assert cosines[1] > cosines[0] + 0.01  # measured 0.979
