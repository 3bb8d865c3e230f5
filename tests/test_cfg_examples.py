"""The forms of quant.cfg that AMCT's manual shows, with real names: each runs, and each of its options counts."""

import re

import numpy as np
import pytest
from graphs import model, nodes_as_text

from amct_onnx import quantize_onnx, verify_deploy_model
from amct_onnx.results import LayerParams

RNG = np.random.default_rng(12)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def norm(channels, prefix):
    return {f"{prefix}{i}": np.abs(normal(channels)) + np.float32(0.5) for i in range(4)}


NETWORK = model(
    """
    g (float[2, 4, 8, 8] x) => (float[2, 3] y, float[2, 4, 8, 8] z) {
      [stem] c = Conv <pads = [1, 1, 1, 1]> (x, w)
      [stem_bn] n = BatchNormalization (c, n0, n1, n2, n3)
      [body] d = Conv <pads = [1, 1, 1, 1]> (n, u)
      [body_bn] e = BatchNormalization (d, m0, m1, m2, m3)
      [relu] r = Relu (e)
      [named] f = Conv (r, v)
      [kept] z = Conv (f, k)
      [up] t = ConvTranspose <strides = [2, 2]> (f, o)
      [pool] p = AveragePool <kernel_shape = [16, 16]> (t)
      [flat] q = Flatten (p)
      [fc] y = Gemm (q, a, b)
    }
    """,
    {
        "w": normal(6, 4, 3, 3),
        **norm(6, "n"),
        "u": normal(6, 6, 3, 3),
        **norm(6, "m"),
        "v": normal(4, 6, 1, 1),
        "k": normal(4, 4, 1, 1),
        "o": normal(4, 5, 2, 2),
        "a": normal(5, 3),
        "b": normal(3),
    },
)
FEEDS = [{"x": normal(2, 4, 8, 8) * scale} for scale in np.float32([1, 2, 5])]

SETTINGS = """
# global quantize parameter
batch_num : 2
activation_offset : true
skip_layers : "kept"
skip_layer_types:"AveragePool"
do_fusion: true
skip_fusion_layers : "body"
"""

IFMR = """ifmr_quantize : {
    search_range_start : %s
    search_range_end : %s
    search_step : %s
    max_percentile : 0.999999
    min_percentile : 0.999999
    asymmetric : %s
}"""

DMQ = "dmq_balancer : { migration_strength : 0.5 }"


def blocks(common, by_type, by_layer, layer_type):
    return f"""{SETTINGS}
common_config : {{ {common} {IFMR % ("0.7", "1.3", "0.01", "true")} {DMQ} }}
override_layer_types : {{
    layer_type : "{layer_type}"
    calibration_config : {{ {by_type} {IFMR % ("0.8", "1.2", "0.02", "false")} {DMQ} }}
}}
override_layer_configs : {{
    layer_name : "named"
    calibration_config : {{ {by_layer} {IFMR % ("0.8", "1.2", "0.02", "false")} {DMQ} }}
}}
"""


def arq(channel_wise, bits=""):
    return f"arq_quantize : {{ channel_wise : {channel_wise} {bits} }}"


UNIFORM = blocks(arq("true", "quant_bits : 7"), arq("false", "quant_bits : 6"), arq("true"), "Conv2d")
BALANCED = blocks(arq("true"), arq("false"), arq("true"), "Gemm")
HFMG = f"""{SETTINGS}
common_config : {{ {arq("true", "quant_bits : 7")} hfmg_quantize : {{ num_of_bins : 4096 asymmetric : false }} {DMQ} }}
"""


def run_cfg(tmp_path, text):
    path = tmp_path / "quant.cfg"
    path.write_text(text)
    return quantize_onnx(NETWORK, path, calibration=FEEDS)


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    return run_cfg(tmp_path_factory.mktemp("uniform"), UNIFORM)


def scales(params: LayerParams):
    assert params.weight is not None
    return params.weight.num_bits, params.weight.scale.size, int(params.activation.offset) != 0


@pytest.mark.parametrize("text", [UNIFORM, BALANCED, HFMG], ids=["uniform", "balanced", "hfmg"])
def test_the_example_runs_and_repeats(tmp_path, text):
    result = run_cfg(tmp_path, text)
    assert verify_deploy_model(result.deploy_model, float_model=NETWORK).errors == ()
    assert set(result.plan.layers) == {"stem", "body", "named", "up", "fc"}
    assert result.plan.skipped["kept"] == "listed in skip_layers"
    assert "skip_layer_types" in result.plan.skipped["pool"]
    left = {line.split("]")[0][1:] for line in nodes_as_text(result.deploy_model) if "BatchNorm" in line}
    assert left == {"body_bn"}
    assert all(result.params[name].balance is not None for name in result.plan.layers)
    (tmp_path / "config.json").write_text(result.config)
    again = quantize_onnx(NETWORK, tmp_path / "config.json", calibration=FEEDS)
    assert (again.record, again.config) == (result.record, result.config)
    assert again.deploy_model == result.deploy_model


def test_every_layer_has_the_block_that_wins(tmp_path):
    params = run_cfg(tmp_path, UNIFORM).params
    assert scales(params["stem"]) == scales(params["body"]) == (6, 1, False)
    assert scales(params["named"]) == (8, 4, False)
    assert scales(params["up"]) == (8, 5, True)
    params = run_cfg(tmp_path, BALANCED).params
    assert scales(params["stem"]) == (8, 6, True)
    assert scales(params["fc"]) == (8, 1, False)
    params = run_cfg(tmp_path, HFMG).params
    assert scales(params["stem"]) == (7, 6, False)


def nth(text, old, new, number):
    """`text` with one occurrence of `old` replaced, counted from 0."""
    places = [found.start() for found in re.finditer(re.escape(old), text)]
    start = places[number]
    return text[:start] + new + text[start + len(old) :]


PERCENTILES = "max_percentile : 0.999999\n    min_percentile : 0.999999"
EDITS = [
    ("batch_num : 2", "batch_num : 3", 0),
    ('skip_layers : "kept"', 'skip_layers : "fc"', 0),
    ('"AveragePool"', '"ConvTranspose"', 0),
    ("do_fusion: true", "do_fusion: false", 0),
    ('skip_fusion_layers : "body"', 'skip_fusion_layers : "stem"', 0),
    *[
        (f"{name} : {old}", f"{name} : {new}", 0)  # the numbers of the two blocks differ
        for start, end, step in [("0.7", "1.3", "0.01"), ("0.8", "1.2", "0.02")]
        for name, old, new in (
            ("search_range_start", start, "1.15"),
            ("search_range_end", end, "0.83"),
            ("search_step", step, "0.4"),
        )
    ],
    *[(f"{name} : 0.999999", f"{name} : 0.6", 0) for name in ("max_percentile", "min_percentile")],
    *[(PERCENTILES, PERCENTILES.replace("0.999999", "0.6"), i) for i in (1, 2)],  # the larger side counts, if symmetric
    *[("migration_strength : 0.5", "migration_strength : 0.8", block) for block in range(3)],
    ("asymmetric : true", "asymmetric : false", 0),
    ("asymmetric : false", "asymmetric : true", 0),
    ("asymmetric : false", "asymmetric : true", 1),
    ("channel_wise : true", "channel_wise : false", 0),
    ("channel_wise : true", "channel_wise : false", 1),
    ("channel_wise : false", "channel_wise : true", 0),
    ("quant_bits : 6", "quant_bits : 8", 0),
]


@pytest.mark.parametrize(("old", "new", "number"), EDITS, ids=lambda value: str(value).strip())
def test_every_option_counts(tmp_path, uniform, old, new, number):
    assert run_cfg(tmp_path, nth(UNIFORM, old, new, number)).record != uniform.record


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_of_bins : 4096", "num_of_bins : 1024"),
        ("asymmetric : false", "asymmetric : true"),
        ("asymmetric : false", "asymmetric : false dst_type : INT16"),
        ("quant_bits : 7", "quant_bits : 4"),
        ("num_of_bins : 4096 asymmetric : false", "num_of_bins : 4096"),  # activation_offset says so then
    ],
)
def test_every_option_of_the_histogram_form_counts(tmp_path, old, new):
    assert run_cfg(tmp_path, HFMG).record != run_cfg(tmp_path, HFMG.replace(old, new)).record


def test_activation_offset_counts_where_nothing_else_says(tmp_path):
    text = HFMG.replace(" asymmetric : false", "")
    offsets = [
        {int(params.activation.offset) for params in run_cfg(tmp_path, variant).params.values()}
        for variant in (text, text.replace("activation_offset : true", "activation_offset : false"))
    ]
    assert offsets[1] == {0}
    assert 0 not in offsets[0]
