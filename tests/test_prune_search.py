"""The search for how many channels each layer shall lose: it reaches its target, and what it writes is obeyed."""

import numpy as np
import onnx
import pytest
from graphs import model
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from amct_onnx import (  # noqa: E402
    ArgumentError,
    ConfigError,
    DataError,
    auto_channel_prune_search,
    create_prune_retrain_model,
)

torch.set_num_threads(1)  # the tensors are small


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NETWORK = model(
    """
    g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
      [a] f = Conv <pads=[1,1,1,1]> (x, w_a)
      [r1] g1 = Relu (f)
      [b] h = Conv <pads=[1,1,1,1], strides=[2,2]> (g1, w_b)
      [r2] i = Relu (h)
      [c] j = Conv (i, w_c)
      [sum] k = Add (i, j)
      [pool] l = GlobalAveragePool (k)
      [flat] m = Flatten (l)
      [fc] y = Gemm (m, w_fc)
    }
    """,
    {
        "w_a": draw(32, 3, 3, 3),
        "w_b": draw(48, 32, 3, 3, seed=1),
        "w_c": draw(48, 48, 1, 1, seed=2),
        "w_fc": draw(48, 4, seed=3),
    },
)
DATA = [draw(3, 3, 8, 8, seed=4), draw(3, 4, seed=5)]
# products of the whole network: by place, output channels and weights of each
WHOLE = 64 * 32 * 27 + 16 * 48 * 32 * 9 + 16 * 48 * 48 + 48 * 4


def products(a, b):
    return 64 * a * 27 + 16 * b * a * 9 + 16 * b * b + b * 4


@pytest.mark.parametrize("target", [1.2, 2.0, 4.0])
def test_the_target_is_reached_and_hardly_more(target, tmp_path):
    config = {"compress_ratio": target, "ascend_optimized": False, "test_iteration": 3}
    result = auto_channel_prune_search(NETWORK, config, DATA, tmp_path / "found.cfg")
    module = create_prune_retrain_model(NETWORK, tmp_path / "found.cfg")
    removed = {row.layers: row.removed for row in module.pruning.rows}
    assert removed == {row.layers: row.removed for row in result.rows if row.removed}
    left = products(32 - removed.get(("a",), 0), 48 - removed.get(("b", "c"), 0))
    assert pytest.approx(WHOLE / left) == result.compress_ratio
    assert target <= result.compress_ratio <= 1.1 * target


def test_what_remains_is_a_multiple_of_16():
    result = auto_channel_prune_search(NETWORK, {"compress_ratio": 2}, DATA)
    assert all((row.channels - row.removed) % 16 == 0 for row in result.rows)
    assert result.compress_ratio >= 2


def test_channels_that_do_nothing_go_first():
    changed = onnx.ModelProto()
    changed.CopyFrom(NETWORK)
    for tensor in changed.graph.initializer:
        if tensor.name in ("w_b", "w_c"):
            values = numpy_helper.to_array(tensor).copy()
            values[:24] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    config = {"compress_ratio": 1.75, "ascend_optimized": False}
    result = auto_channel_prune_search(changed, config, DATA, loss=lambda y, label: (y * label).sum())
    a, b = result.rows
    assert a.removed == 0
    assert 20 < b.removed <= 24
    assert b.sensitivity == 0
    assert result.cfg == auto_channel_prune_search(changed, config, DATA, loss=lambda y, label: (y * label).sum()).cfg


def test_no_layer_loses_more_than_it_may(caplog):
    config = {"compress_ratio": 100, "ascend_optimized": False, "max_prune_ratio": 0.5}
    result = auto_channel_prune_search(NETWORK, config, DATA)
    assert [row.removed for row in result.rows] == [16, 24]
    assert result.compress_ratio == pytest.approx(WHOLE / products(16, 24))
    assert "compress_ratio 100 is too high" in caplog.text


def test_skipped_and_given_layers_stay_as_the_user_says(tmp_path):
    (tmp_path / "override.cfg").write_text(
        'regular_prune_skip_layers: "a" override_layer_configs { layer_name: "b" prune_config { filter_pruner '
        "{ balanced_l2_norm_filter_prune { prune_ratio: 0.25 ascend_optimized: false } } } }"
    )
    config = {"compress_ratio": 1.01, "override_prune_cfg": str(tmp_path / "override.cfg")}
    result = auto_channel_prune_search(NETWORK, config, DATA)
    rows = create_prune_retrain_model(NETWORK, result.config).pruning.rows
    assert {row.layers: row.removed for row in rows} == {("b", "c"): 12}


def test_the_table_names_layers_and_figures():
    lines = auto_channel_prune_search(NETWORK, {"compress_ratio": 2}, DATA).table().splitlines()
    assert lines[0].split() == ["layers", "channels", "removed", "sensitivity", "cost", "per", "channel"]
    assert lines[1].startswith("a ")
    assert lines[2].startswith("b, c ")
    assert lines[3].startswith("compress_ratio: ")


@pytest.mark.parametrize(
    ("config", "data", "error", "said"),
    [
        ({}, DATA, ConfigError, "compress_ratio is missing"),
        ({"compress_ratio": 1.0}, DATA, ConfigError, "compress_ratio must lie"),
        ({"compress_ratio": 2.0, "max_prune_ratio": 0.0}, DATA, ConfigError, "max_prune_ratio"),
        ({"compress_ratio": 2.0, "ratio": 1}, DATA, ConfigError, "ratio"),
        ({"compress_ratio": 2.0}, DATA[0], ArgumentError, r"\[data, label\]"),
        ({"compress_ratio": 2.0, "test_iteration": 4}, DATA, DataError, "holds 3 samples"),
        ({"compress_ratio": 2.0}, [DATA[0], np.zeros(3)], DataError, "give a loss"),
        ({"compress_ratio": 2.0}, [[DATA[0]] * 2, DATA[1]], DataError, "2 were given"),
        ({"compress_ratio": 2.0}, [{"z": DATA[0]}, DATA[1]], DataError, "no input 'z'"),
        ({"compress_ratio": 2.0}, [DATA[0], ["a", "b", "c"]], DataError, "label in input_data is no array of numbers"),
        ({"compress_ratio": 2.0}, [DATA[0], 3], DataError, "label in input_data must hold one sample after the other"),
        ({"compress_ratio": 2.0}, [DATA[0] * np.nan, DATA[1]], DataError, "the loss of sample 0 in input_data is nan"),
        (3, DATA, ConfigError, "found int"),
    ],
)
def test_what_cannot_be_is_said(config, data, error, said):
    with pytest.raises(error, match=said):
        auto_channel_prune_search(NETWORK, config, data)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("cross_entropy", "loss must be callable, or None; found 'cross_entropy'"),
        (lambda y, t: y, r"found a tensor of shape \[1, 4\]"),
        (lambda y, t: 3.0, "found 3.0"),
        (lambda y, t: t.sum(), "computed from the output"),
    ],
)
def test_what_is_no_loss_is_refused(loss, said):
    with pytest.raises(ArgumentError, match=said):
        auto_channel_prune_search(NETWORK, {"compress_ratio": 2.0}, DATA, loss=loss)


def test_an_override_file_holds_sparsity_only(tmp_path):
    (tmp_path / "override.cfg").write_text('quant_skip_layers: "a"')
    with pytest.raises(ConfigError, match=r"override.cfg: an override_prune_cfg takes"):
        auto_channel_prune_search(
            NETWORK, {"compress_ratio": 2.0, "override_prune_cfg": str(tmp_path / "override.cfg")}, DATA
        )
