"""Sparse training: equality with runs of the real AMCT, the forms of its .cfg, files, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model, run

torch = pytest.importorskip("torch")

from amct_onnx import (  # noqa: E402
    ConfigError,
    ModelError,
    RecordError,
    create_compressed_retrain_model,
    create_prune_retrain_model,
    create_quant_retrain_model,
    restore_compressed_retrain_model,
    restore_prune_retrain_model,
    save_compressed_retrain_model,
    save_prune_retrain_model,
    to_onnx,
)
from amct_onnx.formats.prune_record import parse_prune_record  # noqa: E402
from amct_onnx.retrain.compressed_module import WeightMask  # noqa: E402
from amct_onnx.retrain_config import SelectivePrune  # noqa: E402

torch.set_num_threads(1)  # the tensors are small
GOLDEN = Path(__file__).parent / "golden" / "retrain"


def filters(ratio, ascend_optimized=False):
    pruner = {"prune_ratio": ratio, "ascend_optimized": ascend_optimized}
    return {"prune_config": {"filter_pruner": {"balanced_l2_norm_filter_prune": pruner}}}


SELECTIVE = {"prune_config": {"n_out_of_m_pruner": {"l1_selective_prune": {}}}}
QUANT = {"retrain_weight_quant_config": {"arq_retrain": {}}}


def steps(module, data, first=0, last=4, lr=0.05):
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    module.train()
    outputs, losses = [], []
    for i in range(first, last):
        y = module(torch.from_numpy(data[f"x_{i}"]))
        loss = torch.nn.functional.cross_entropy(y, torch.from_numpy(data[f"t_{i}"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        outputs.append(y.detach().numpy())
        losses.append(loss.item())
    return outputs, losses


def evaluated(module, x):
    module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


# runs of AMCT


@pytest.mark.parametrize("name", ["prune_half", "prune_ascend", "sparse_2_4"])
def test_what_is_taken_away_and_written_down_is_what_amct_does(name, tmp_path):
    case = GOLDEN / name
    module = create_prune_retrain_model(case / "model.onnx", case / "prune.cfg", tmp_path / "record.txt")
    assert (tmp_path / "record.txt").read_text() == (case / "record.txt").read_text()
    data = np.load(case / "run.npz")
    np.testing.assert_allclose(evaluated(module, data["x"]), data["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["compressed_prune_int8", "compressed_2_4_int8"])
def test_combined_training_is_that_of_amct(name):
    case = GOLDEN / name
    module = create_compressed_retrain_model(case / "model.onnx", case / "compressed.cfg")
    data = np.load(case / "run.npz")
    outputs, losses = steps(module, data)
    for i, y in enumerate(outputs):
        np.testing.assert_allclose(y, data[f"y_{i}"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(losses, data["losses"], rtol=1e-3)
    np.testing.assert_allclose(evaluated(module, data["x_eval"]), data["y_eval"], rtol=1e-3, atol=1e-5)
    result = save_compressed_retrain_model(module, None, data=data["x_eval"])
    assert result.output_errors["y"].sqnr > 60
    ours, theirs = (parse_prune_record(text, "record") for text in (result.record, (case / "record.txt").read_text()))
    assert ours.groups == theirs.groups
    assert list(ours.masks) == list(theirs.masks)
    assert all(np.array_equal(ours.masks[layer], mask) for layer, mask in theirs.masks.items())


# files and checkpoints


def test_a_pruned_model_is_trained_saved_and_restored(tmp_path):
    case, data = GOLDEN / "prune_half", np.load(GOLDEN / "compressed_2_4_int8" / "run.npz")
    arguments = (case / "model.onnx", tmp_path / "record.txt", case / "prune.cfg", tmp_path / "half.pth", "net")
    whole = create_prune_retrain_model(case / "model.onnx", case / "prune.cfg")
    steps(whole, data)
    half = create_prune_retrain_model(case / "model.onnx", case / "prune.cfg", tmp_path / "record.txt")
    steps(half, data, 0, 2)
    torch.save({"net": half.state_dict()}, tmp_path / "half.pth")
    resumed = restore_prune_retrain_model(*arguments)
    steps(resumed, data, 2, 4)
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())
    result = save_prune_retrain_model(resumed, tmp_path / "out" / "net")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "net_deploy_model.onnx",
        "net_fake_quant_model.onnx",
        "net_record.txt",
    ]
    saved = onnx.load(result.deploy_model)
    assert "BatchNormalization" not in [node.op_type for node in saved.graph.node]
    x = data["x_eval"]
    np.testing.assert_allclose(run(saved, {"x": x})["y"], evaluated(resumed, x), rtol=1e-4, atol=1e-5)


def test_a_combined_model_is_restored_with_its_masks(tmp_path):
    case = GOLDEN / "compressed_2_4_int8"
    data = np.load(case / "run.npz")
    module = create_compressed_retrain_model(case / "model.onnx", case / "compressed.cfg", tmp_path / "record.txt")
    steps(module, data, 0, 2)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    restored = restore_compressed_retrain_model(
        case / "model.onnx", case / "compressed.cfg", tmp_path / "record.txt", tmp_path / "net.pth"
    )
    for one in (module, restored):
        steps(one, data, 2, 4)
    np.testing.assert_array_equal(*(evaluated(one, data["x_eval"]) for one in (module, restored)))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in to_onnx(restored).graph.initializer}
    assert (weights["b.weight"] == 0).mean() == 0.5


# masks


def test_masked_weights_have_no_gradient_and_keep_their_value():
    weight = torch.tensor([[3.0, 1.0, -4.0, 2.0]], requires_grad=True)
    mask = WeightMask(SelectivePrune(), weight, 1)
    y = mask(weight)
    (y * torch.tensor([[1.0, 10.0, 100.0, 1000.0]])).sum().backward()
    assert y.tolist() == [[3.0, 0.0, -4.0, 0.0]]
    assert weight.grad.tolist() == [[1.0, 0.0, 100.0, 0.0]]


@pytest.mark.parametrize(("update_freq", "chosen_anew"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_the_choice_is_made_anew_every_so_many_training_steps(update_freq, chosen_anew):
    mask = WeightMask(SelectivePrune(update_freq=update_freq), torch.tensor([[4.0, 3.0, 2.0, 1.0]]), 1)
    values, seen = [torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])], []
    mask(values[0])
    for step in range(1, 5):
        before = mask.mask.clone()
        mask.eval()
        mask(values[0])  # evaluation counts for nothing
        mask.train()
        mask(values[0 if before[0, 3] else 1])  # what the mask would not choose
        if not torch.equal(before, mask.mask):
            seen.append(step)
    assert seen == chosen_anew


# the forms of .cfg that AMCT's manual shows


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NETWORK = model(
    """
    g (float[N, 4, 8, 8] x) => (float[N, 3] y) {
      [stem] a = Conv <pads=[1,1,1,1]> (x, w_stem, b_stem)
      [norm] b = BatchNormalization (a, s, t, m, v)
      [relu] c = Relu (b)
      [left] d = Conv <pads=[1,1,1,1]> (c, w_left)
      [right] e = Conv (c, w_right)
      [sum] f = Add (d, e)
      [up] h = ConvTranspose <strides=[2,2]> (f, w_up)
      [relu2] i = Relu (h)
      [pool] j = GlobalAveragePool (i)
      [flat] k = Flatten (j)
      [fc1] l = Gemm <transB=1> (k, w_fc1, b_fc1)
      [relu3] n = Relu (l)
      [fc2] y = Gemm <transB=1> (n, w_fc2, b_fc2)
    }
    """,
    {
        "w_stem": draw(40, 4, 3, 3, seed=1),
        "b_stem": draw(40, seed=2),
        "s": draw(40, seed=3),
        "t": draw(40, seed=4),
        "m": draw(40, seed=5),
        "v": np.abs(draw(40, seed=6)) + 0.5,
        "w_left": draw(40, 40, 3, 3, seed=7) / 10,
        "w_right": draw(40, 40, 1, 1, seed=8),
        "w_up": draw(40, 24, 2, 2, seed=9) / 10,
        "w_fc1": draw(64, 24, seed=10),
        "b_fc1": draw(64, seed=11),
        "w_fc2": draw(3, 64, seed=12),
        "b_fc2": draw(3, seed=13),
    },
)


FILTER = """filter_pruner: { balanced_l2_norm_filter_prune: { prune_ratio: %s ascend_optimized: True } }"""
TWO_OF_FOUR = "n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: M4N2 update_freq: %d } }"
LIMITS = "ulq_quantize : { clip_max_min : { clip_max : 6.0 clip_min : -6.0 } }"

QUANT_CFG = """
retrain_data_quant_config: {
    ulq_quantize: { clip_max_min: { clip_max: 6.0 clip_min: -6.0 } fixed_min: true dst_type: INT8 }
}
retrain_weight_quant_config: { arq_retrain: { channel_wise: true dst_type: INT8 } }
skip_layers: "stem"
skip_layer_types: "ConvTranspose2d"
override_layer_types : {
    layer_type: "Linear"
    retrain_weight_quant_config: { arq_retrain: { channel_wise: false dst_type: INT8 } }
}
override_layer_configs : {
    layer_name: "left"
    retrain_data_quant_config: { ulq_quantize: { clip_max_min: { clip_max: 3.0 clip_min: -3.0 } dst_type: INT8 } }
}
"""
PRUNE_CFG = f"""
prune_config{{ {FILTER % 0.3} }}
regular_prune_skip_layers: "up"
regular_prune_skip_layers: "fc2"
override_layer_configs: {{ layer_name: "fc1" prune_config : {{ {FILTER % 0.5} }} }}
"""
SELECTIVE_CFG = f"""
prune_config{{ {TWO_OF_FOUR % 0} }}
regular_prune_skip_layers: "stem"
regular_prune_skip_layers: "fc2"
override_layer_configs: {{ layer_name: "left" prune_config : {{ {TWO_OF_FOUR % 1} }} }}
"""
COMBINED_CFG = """
prune_config : { %s }
skip_layer_types: "ConvTranspose2d"
quant_skip_layers: "stem"
quant_skip_types: "%s"
retrain_weight_quant_config: { arq_retrain: { channel_wise: true dst_type: INT8 } }
override_layer_types : {
    layer_type: "%s"
    retrain_weight_quant_config: { arq_retrain: { channel_wise: false dst_type: INT8 } }
    retrain_data_quant_config : { %s }
    prune_config : { %s }
}
"""
COMPRESSED_1_CFG = COMBINED_CFG % (FILTER % 0.3, "Conv1d", "Linear", LIMITS, FILTER % 0.5)
COMPRESSED_2_CFG = COMBINED_CFG % (TWO_OF_FOUR % 0, "Conv1d", "Linear", LIMITS, TWO_OF_FOUR % 1)


def written(tmp_path, text):
    path = tmp_path / "example.cfg"
    path.write_text(text)
    return path


def trained(module):
    data = {f"x_{i}": draw(6, 4, 8, 8, seed=i) for i in range(2)} | {f"t_{i}": np.arange(6) % 3 for i in range(2)}
    steps(module, data, 0, 2, lr=1e-3)
    return module


def test_the_example_of_quantization(tmp_path):
    plan = trained(create_quant_retrain_model(written(tmp_path, QUANT_CFG), NETWORK)).plan
    assert list(plan.layers) == ["left", "right", "fc1", "fc2"]
    assert [layer.activation.clip_max for layer in plan.layers.values()] == [3.0, 6.0, 6.0, 6.0]


def test_the_example_of_channels(tmp_path):
    module = trained(create_prune_retrain_model(NETWORK, written(tmp_path, PRUNE_CFG)))
    assert [(row.layers, row.removed) for row in module.pruning.rows] == [
        (("stem",), 8),
        (("left", "right"), 8),
        (("fc1",), 32),
    ]
    result = save_prune_retrain_model(module, None)
    shapes = {tensor.name: list(tensor.dims) for tensor in result.deploy_model.graph.initializer}
    assert [shapes[name] for name in ("w_left", "w_up", "w_fc1")] == [[32, 32, 3, 3], [32, 24, 2, 2], [24, 32]]


def test_the_example_of_two_in_four(tmp_path):
    module = trained(create_prune_retrain_model(NETWORK, written(tmp_path, SELECTIVE_CFG)))
    plan = module.pruning.plan
    assert {name: wish.update_freq for name, wish in plan.selective.items()} == {
        "left": 1, "right": 0, "up": 0, "fc1": 0,
    }  # fmt: skip
    result = save_prune_retrain_model(module, None)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in result.deploy_model.graph.initializer}
    for name in ("w_left", "w_right", "w_up", "w_fc1"):
        assert (weights[name] == 0).mean() == 0.5
    assert (weights["w_stem"] == 0).mean() < 0.1
    fours = weights["w_up"].reshape(10, 4, -1)
    assert ((fours != 0).sum(1) == 2).all()


def test_the_example_of_channels_and_quantization(tmp_path):
    module = trained(create_compressed_retrain_model(NETWORK, written(tmp_path, COMPRESSED_1_CFG)))
    assert list(module.plan.layers) == ["left", "right", "fc1", "fc2"]
    assert module.plan.layers["fc1"].activation.clip_max == 6.0
    assert {row.layers: row.removed for row in module.pruning.rows} == {
        ("stem",): 8, ("left", "right"): 8, ("fc1",): 32,
    }  # fmt: skip
    result = save_compressed_retrain_model(module, None, data=draw(6, 4, 8, 8))
    assert result.output_errors["y"].sqnr > 30
    assert parse_prune_record(result.record, "record").groups == module.pruning.groups


def test_the_example_of_two_in_four_and_quantization(tmp_path):
    module = trained(create_compressed_retrain_model(NETWORK, written(tmp_path, COMPRESSED_2_CFG)))
    assert list(module.plan.layers) == ["left", "right", "fc1", "fc2"]
    assert list(module.pruning.plan.selective) == ["stem", "left", "right", "fc1", "fc2"]
    result = save_compressed_retrain_model(module, None, data=draw(6, 4, 8, 8))
    assert result.output_errors["y"].sqnr > 30
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in result.fake_quant_model.graph.initializer}
    assert any(values.shape[:2] == (40, 40) and (values == 0).mean() >= 0.5 for values in weights.values())


# which wish counts


def test_a_skip_list_goes_before_an_override():
    cfg = filters(0.5) | {"regular_prune_skip_layers": ["stem"]}
    cfg["override_layer_configs"] = [{"layer_name": "stem", **filters(0.2)}]
    plan = create_prune_retrain_model(NETWORK, cfg).pruning.plan
    assert plan.skipped["stem"] == "listed in regular_prune_skip_layers"


def test_the_least_ratio_of_a_group_counts():
    cfg = filters(0.5) | {"override_layer_configs": [{"layer_name": "right", **filters(0.25)}]}
    rows = {row.layers: row.removed for row in create_prune_retrain_model(NETWORK, cfg).pruning.rows}
    assert rows[("left", "right")] == 10


def test_a_layer_may_be_masked_while_others_lose_channels():
    cfg = filters(0.5) | {"override_layer_configs": [{"layer_name": "fc2", **SELECTIVE}]}
    module = create_prune_retrain_model(NETWORK, cfg)
    assert list(module.pruning.plan.selective) == ["fc2"]
    assert module.mask("fc2").shape == (3, 32)


def test_an_override_of_sparsity_alone_quantizes_nothing():
    cfg = filters(0.5) | QUANT | {"quant_skip_layers": ["left"]}
    cfg["override_layer_configs"] = [{"layer_name": "left", **filters(0.25)}]
    assert "left" not in create_compressed_retrain_model(NETWORK, cfg).plan.layers


def test_only_overrides_that_quantize_leave_the_rest_float():
    cfg = filters(0.5) | {"override_layer_configs": [{"layer_name": "left", **QUANT}]}
    module = create_compressed_retrain_model(NETWORK, cfg)
    assert list(module.plan.layers) == ["left"]
    assert module.plan.skipped["fc1"] == "the configuration does not ask for it"


def test_layers_of_one_weight_keep_their_channels_and_its_readers_too():
    network = model(
        """
        g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) {
          [first] a = Conv (x, v)
          [second] b = Conv (a, w)
          [third] c = Conv (b, w)
          [fourth] d = Conv (c, u)
          [last] y = Conv (d, w)
        }
        """,
        {"v": draw(8, 4, 1, 1), "w": draw(8, 8, 1, 1, seed=1), "u": draw(8, 8, 1, 1, seed=2)},
    )
    with pytest.raises(ConfigError, match=r"layer 'third' cannot be pruned .* 'second' has the same weight"):
        create_prune_retrain_model(network, {"override_layer_configs": [{"layer_name": "third", **filters(0.5)}]})
    module = create_prune_retrain_model(network, filters(0.5))
    assert module.pruning.rows == ()
    assert module.pruning.plan.skipped["second"] == "'third' has the same weight"
    assert "'second' (Conv) needs all of its channels" in module.pruning.plan.skipped["first"]
    assert len(list(module.parameters())) == 3


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_weights_that_are_no_numbers_have_no_norm(value, kind):
    weights = draw(8, 4, 1, 1)
    weights[3, 2] = value
    text = "g (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) { [a] b = Conv (x, v) [c] y = Conv (b, w) }"
    with pytest.raises(ModelError, match=f"the weight 'v' of layer 'a' holds {kind}"):
        create_prune_retrain_model(model(text, {"v": weights, "w": draw(3, 8, 1, 1)}), filters(0.5))


def test_layers_that_keep_their_channels_say_why():
    skipped = create_prune_retrain_model(NETWORK, filters(0.5)).pruning.plan.skipped
    assert skipped == {"fc2": "its channels stay: 'y' is an output of the model"}


@pytest.mark.parametrize(
    ("create", "cfg", "error", "said"),
    [
        (create_prune_retrain_model, QUANT, ConfigError, "asks for quantization too"),
        (create_prune_retrain_model, {}, ConfigError, "asks for no sparsity"),
        (create_compressed_retrain_model, {"skip_layers": ["stem"]}, ConfigError, "asks neither for sparsity"),
        (create_prune_retrain_model, filters(1.0), ConfigError, "prune_ratio"),
        (create_prune_retrain_model, filters(0.5) | {"skip_layers": ["stm"]}, ConfigError, "did you mean 'stem'"),
        (
            create_prune_retrain_model,
            {"override_layer_configs": [{"layer_name": "relu", **filters(0.5)}]},
            ConfigError,
            "Relu is no layer with a weight",
        ),
        (
            create_prune_retrain_model,
            filters(0.5) | {"skip_layer_types": ["Conv", "ConvTranspose", "Linear"]},
            ModelError,
            "no layer is left to prune",
        ),
    ],
)
def test_what_cannot_be_is_said(create, cfg, error, said):
    with pytest.raises(error, match=said):
        create(NETWORK, cfg)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.replace('name: "a"', 'name: "z"'), "no layer that this configuration prunes"),
        (lambda t: t.replace("      ints: 2\n", "      ints: 99\n", 1), r"must lie in \[0, 31\]"),
        (lambda t: t.replace("begin", "start", 1), "begin is missing"),
        (lambda t: t + "}", "record.txt"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(edit, said, tmp_path):
    case = GOLDEN / "prune_half"
    (tmp_path / "record.txt").write_text(edit((case / "record.txt").read_text()))
    with pytest.raises(RecordError, match=said):
        restore_prune_retrain_model(
            case / "model.onnx", tmp_path / "record.txt", case / "prune.cfg", tmp_path / "no.pth"
        )


def test_modules_of_other_kinds_are_not_saved():
    with pytest.raises(ModelError, match="not sparse"):
        save_prune_retrain_model(create_quant_retrain_model(None, NETWORK), None)
    with pytest.raises(ModelError, match="save_compressed_retrain_model"):
        save_prune_retrain_model(create_compressed_retrain_model(NETWORK, filters(0.5) | QUANT), None)


def test_a_wrong_graph_would_be_noticed(monkeypatch):
    """The proof fails if the wrong inputs of a reader were taken: here the last instead of the chosen ones."""
    from amct_onnx.passes import channel_groups

    def wrong(stays, values, axis):
        return np.take(values, range(int(stays.sum())), axis=axis)

    monkeypatch.setattr(channel_groups.np, "compress", wrong)
    with pytest.raises(ModelError, match="regular_prune_skip_layers"):
        create_prune_retrain_model(NETWORK, filters(0.5))
