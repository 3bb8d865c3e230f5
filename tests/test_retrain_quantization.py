"""Quantization-aware training: equality with runs of the real AMCT, checkpoints, processes, and what is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model, run

torch = pytest.importorskip("torch")

from amct_onnx import (  # noqa: E402
    ArgumentError,
    ConfigError,
    DataError,
    ModelError,
    NotAvailableError,
    RetrainConfig,
    create_quant_retrain_config,
    create_quant_retrain_model,
    restore_quant_retrain_model,
    retrain_onnx,
    save_quant_retrain_model,
    to_onnx,
    verify_deploy_model,
)
from amct_onnx.formats.record import parse_record, read_record  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "retrain"
CASES = ["qat_arq", "qat_clip_fixed", "qat_ulq_weight"]
ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # the tensors are small

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=CASES)
def case(request):
    return GOLDEN / request.param


def steps(module, batches, *, lr=0.05):
    """Outputs and losses of SGD steps in train mode, as they were recorded."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    module.train()
    outputs, losses = [], []
    for x, t in batches:
        y = module(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(y, torch.from_numpy(t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        outputs.append(y.detach().numpy())
        losses.append(float(loss.detach()))
    return outputs, losses


def batches_of(case):
    data = np.load(case / "run.npz")
    return [(data[f"x_{i}"], data[f"t_{i}"]) for i in range(4)]


def distance(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def evaluated(module, x):
    with torch.no_grad():
        return module.eval()(torch.from_numpy(x)).numpy()


def test_the_configuration_is_that_of_amct(case, tmp_path):
    create_quant_retrain_config(tmp_path / "config.json", case / "model.onnx", config_defination=case / "retrain.cfg")
    assert (tmp_path / "config.json").read_text() == (case / "config.json").read_text()


@pytest.mark.parametrize("name", CASES[:2])
def test_four_steps_and_the_evaluation_after_them_are_those_of_amct(name):
    case = GOLDEN / name
    data = np.load(case / "run.npz")
    module = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    outputs, losses = steps(module, batches_of(case))
    for i, y in enumerate(outputs):
        assert distance(y, data[f"y_{i}"]) < 1e-4
    np.testing.assert_allclose(losses, data["losses"], rtol=1e-4)
    assert distance(evaluated(module, data["x_eval"]), data["y_eval"]) < 1e-4


def test_learned_scales_of_weights_step_as_those_of_amct():
    """Two steps, and the loss of the third: a millionth in a scale moves a weight to the next integer, and so on.

    AMCT's scales are negative from the second step on, ours count by magnitude: docs/compatibility.md, Training.
    """
    case = GOLDEN / "qat_ulq_weight"
    data = np.load(case / "run.npz")
    outputs, losses = steps(create_quant_retrain_model(case / "config.json", case / "model.onnx"), batches_of(case)[:3])
    assert distance(outputs[0], data["y_0"]) < 1e-3
    assert distance(outputs[1], data["y_1"]) < 1e-3
    np.testing.assert_allclose(losses, data["losses"][:3], rtol=1e-3)


def test_at_a_rate_that_fits_learned_scales_stay_positive():
    case = GOLDEN / "qat_ulq_weight"
    module = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    steps(module, batches_of(case), lr=0.0002)
    scales = [value for name, value in module.named_parameters() if name.endswith("weight_quantizer.scale")]
    assert len(scales) == 3
    assert all((scale > 0).all() for scale in scales)


@pytest.fixture(scope="module", params=CASES)
def saved(request):
    case = GOLDEN / request.param
    module = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    steps(module, batches_of(case))
    x = np.load(case / "run.npz")["x_eval"]
    return case, module, x, save_quant_retrain_model(module, None, data=x)


def test_the_fake_quant_model_computes_what_the_module_evaluates_to(saved):
    _, module, x, result = saved
    assert distance(run(result.fake_quant_model, {"x": x})["y"], evaluated(module, x)) < 0.01
    assert result.output_errors["y"].sqnr > 45


def test_the_deploy_model_has_the_operators_of_amct_and_breaks_no_rule(saved):
    case, _, _, result = saved
    ops = [node.op_type for node in result.deploy_model.graph.node]
    per_layer = ["AscendQuant", "Conv", "AscendDequant", "Relu"]
    third = ["Conv", "Relu"] if case.name == "qat_clip_fixed" else per_layer  # it is skipped there
    assert ops == per_layer * 2 + third + ["MaxPool", "Flatten", "AscendQuant", "Gemm", "AscendDequant"]
    assert verify_deploy_model(result.deploy_model).errors == ()


@pytest.mark.parametrize("saved", CASES[:2], indirect=True)
def test_the_record_is_that_of_amct(saved):
    case, _, _, result = saved
    ours, theirs = parse_record(result.record, "ours"), read_record(case / "record.txt")
    assert set(ours) == set(theirs)
    for layer, record in theirs.items():
        assert ours[layer].scale_d == pytest.approx(record.scale_d, rel=1e-4)
        assert ours[layer].offset_d == record.offset_d
        assert ours[layer].scale_w == pytest.approx(record.scale_w, rel=1e-4)


def test_files_are_written_where_they_shall_be(tmp_path):
    case = GOLDEN / "qat_arq"
    x = np.load(case / "run.npz")["x_0"]

    def train(module):
        steps(module, batches_of(case)[:1])

    result = retrain_onnx(case / "model.onnx", case / "retrain.cfg", train=train, save_path=tmp_path / "net", data=x)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "net_deploy_model.onnx",
        "net_fake_quant_model.onnx",
        "net_record.txt",
    ]
    assert result.deploy_model == tmp_path / "net_deploy_model.onnx"


def test_resumed_training_is_uninterrupted_training_bit_for_bit(case, tmp_path):
    batches = batches_of(case)
    whole = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    steps(whole, batches)
    half = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    steps(half, batches[:2])
    torch.save({"net": half.state_dict()}, tmp_path / "half.pth")
    resumed = restore_quant_retrain_model(case / "config.json", case / "model.onnx", tmp_path / "half.pth", "net")
    steps(resumed, batches[2:])
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_a_checkpoint_from_before_the_limits_are_found_resumes_to_the_bit(seen, tmp_path):
    case, cfg = GOLDEN / "qat_arq", {"batch_num": 3}
    batches = batches_of(case)
    whole, half = (create_quant_retrain_model(cfg, case / "model.onnx") for _ in range(2))
    steps(whole, batches)
    steps(half, batches[:seen])
    torch.save(half.state_dict(), tmp_path / "half.pth")
    resumed = restore_quant_retrain_model(cfg, case / "model.onnx", tmp_path / "half.pth")
    steps(resumed, batches[seen:])
    assert bool(resumed.activation_quantizer("c1").is_initialized)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_what_a_checkpoint_says_of_the_batches_seen_must_be_readable(tmp_path):
    case, cfg = GOLDEN / "qat_arq", {"batch_num": 2}
    module = create_quant_retrain_model(cfg, case / "model.onnx")
    steps(module, batches_of(case)[:1])
    state = module.state_dict()
    state["c1.activation_quantizer._extra_state"] = torch.arange(7)
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(ModelError, match=r"does not fit the module: the batches seen by layer 'c1' cannot be read"):
        restore_quant_retrain_model(cfg, case / "model.onnx", tmp_path / "half.pth")


def test_validation_between_epochs_changes_nothing_and_freezes_nothing(case):
    batches, x = batches_of(case), np.load(case / "run.npz")["x_eval"]
    plain = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    steps(plain, batches)
    watched = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    for batch in batches:
        steps(watched, [batch])
        evaluated(watched, x)
    for name, value in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[name], value), name
    record = parse_record(save_quant_retrain_model(watched, None, data=x).record, "ours")
    assert record["c1"].scale_d == pytest.approx(float(watched.activation_quantizer("c1").params().scale))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("c1.activation_quantizer.clip_max", float("nan"), "the limits of layer 'c1' reached nan"),
        ("c1.activation_quantizer.clip_max", 1e38, r"the limits of layer 'c1' reached 1e\+38"),
        ("c2.weight", float("inf"), "the weight of layer 'c2' reached inf"),
        ("c3.weight_quantizer.scale", float("nan"), "the learned scale of layer 'c3' reached nan"),
    ],
)
def test_what_training_drove_out_of_the_numbers_is_not_saved(name, value, said):
    case = GOLDEN / "qat_ulq_weight"
    module = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    steps(module, batches_of(case)[:1])
    with torch.no_grad():
        module.get_parameter(name).view(-1)[0] = value
    with pytest.raises(ModelError, match=said):
        save_quant_retrain_model(module, None)


def test_what_does_not_train_is_refused():
    with pytest.raises(ArgumentError, match="train must be a function"):
        retrain_onnx(GOLDEN / "qat_arq" / "model.onnx", train=3)


def test_what_is_no_batch_is_refused():
    module = create_quant_retrain_model(None, GOLDEN / "qat_arq" / "model.onnx")
    x = batches_of(GOLDEN / "qat_arq")[0][0]
    with pytest.raises(DataError, match="input 'x' must be a torch tensor, found ndarray"):
        module(x)
    with pytest.raises(DataError, match="the input of layer 'c1' is empty"):
        module(torch.from_numpy(x[:0]))
    with pytest.raises(DataError, match="the input of layer 'c1' holds NaN or infinity"):
        module(torch.from_numpy(x) * float("nan"))


def test_saving_leaves_the_module_as_it_is():
    case = GOLDEN / "qat_arq"
    module = create_quant_retrain_model(case / "config.json", case / "model.onnx")
    steps(module, batches_of(case)[:1])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    save_quant_retrain_model(module, None)
    assert module.training
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


PROCESSES = """
import sys
from datetime import timedelta
import numpy as np, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from amct_onnx import create_quant_retrain_model

rank, case, store, out = int(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
module = create_quant_retrain_model(f"{case}/retrain.cfg", f"{case}/model.onnx")
parallel = DistributedDataParallel(module)
data = np.load(f"{case}/run.npz")
if rank == 0:  # one process alone validates, before the training has begun
    module.eval()(torch.from_numpy(data["x_eval"]))
    module.train()
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
for i in range(3):
    half = slice(4 * rank, 4 * rank + 4)
    y = parallel(torch.from_numpy(data[f"x_{i}"][half]))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(y, torch.from_numpy(data[f"t_{i}"][half])).backward()
    optimizer.step()
torch.save(parallel.state_dict(), f"{out}/{rank}.pth")
distributed.destroy_process_group()
"""


def test_two_processes_train_one_module(tmp_path):
    case = GOLDEN / "qat_ulq_weight"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROCESSES]
    workers = [
        subprocess.Popen([*command, str(rank), str(case), str(tmp_path / "store"), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    parameters = [name for name in first if "running" not in name]  # statistics are those of each process's batches
    assert len(parameters) > 20
    for name in parameters:
        assert torch.equal(first[name], second[name]), name
    restored = restore_quant_retrain_model(case / "retrain.cfg", case / "model.onnx", tmp_path / "0.pth")
    x = np.load(case / "run.npz")["x_eval"]
    assert save_quant_retrain_model(restored, None, data=x).output_errors["y"].sqnr > 40


# other layers and settings


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mixed():
    """A transposed convolution in groups, a depthwise one, a 3-D one, and two readers of one tensor."""
    return model(
        """
        g (float[N, 4, 6, 6] x) => (float[N, 3] y) {
          [up] a = ConvTranspose <group=2, strides=[2,2]> (x, w_up)
          [dw] b = Conv <group=6> (a, w_dw, b_dw)
          [relu] c = Relu (b)
          [left] d = Conv (c, w_left)
          [right] e = Conv (c, w_right)
          [sum] f = Add (d, e)
          [lift] g5 = Unsqueeze (f, axes)
          [deep] h = Conv (g5, w_deep)
          [pool] i = GlobalAveragePool (h)
          [flat] j = Flatten (i)
          [fc] k = MatMul (j, w_fc)
          [bias] y = Add (k, b_fc)
        }
        """,
        {
            "w_up": draw(4, 3, 2, 2),
            "w_dw": draw(6, 1, 3, 3, seed=1),
            "b_dw": draw(6, seed=2),
            "w_left": draw(4, 6, 1, 1, seed=3),
            "w_right": draw(4, 6, 1, 1, seed=4),
            "w_deep": draw(5, 4, 1, 1, 1, seed=5),
            "w_fc": draw(5, 3, seed=6),
            "b_fc": draw(3, seed=7),
            "axes": np.array([2]),
        },
    )


LEARNED = {"retrain_weight_quant_config": {"ulq_retrain": {}}}


@pytest.mark.parametrize("cfg", [None, LEARNED, {"fakequant_precision_mode": "FORCE_FP16_QUANT"}])
def test_every_kind_of_layer_is_trained_and_saved(cfg):
    module = create_quant_retrain_model(cfg, mixed())
    assert list(module.plan.layers) == ["up", "dw", "left", "right", "deep", "fc"]
    steps(module, [(draw(4, 4, 6, 6, seed=n), np.array([0, 1, 2, 0])) for n in range(3)], lr=0.01)
    assert all(parameter.grad is not None for parameter in module.parameters())
    result = save_quant_retrain_model(module, None, data=draw(4, 4, 6, 6, seed=9))
    assert result.output_errors["y"].sqnr > 40


def test_layers_that_read_one_tensor_share_their_quantizer():
    module = create_quant_retrain_model(None, mixed())
    assert module.activation_quantizer("left") is module.activation_quantizer("right")
    assert "right.weight_quantizer" in dict(module.named_modules())
    assert "right.activation_quantizer" not in dict(module.named_modules())
    assert module.plan.layers["left"].fixed_min
    assert not module.plan.layers["dw"].fixed_min


def test_int4_weights_have_sixteen_values():
    module = create_quant_retrain_model({"retrain_weight_quant_config": {"arq_retrain": {"dst_type": "INT4"}}}, mixed())
    rounded = module.rounded_weights()["w_left"]
    assert all(len(row.unique()) <= 16 for row in rounded)
    assert module.plan.layers["dw"].weight.num_bits == 8
    assert "it has groups" in module.plan.notes["dw"][0]


def wide_activations():
    return {"retrain_data_quant_config": {"ulq_quantize": {"dst_type": "INT16"}}}


def test_activations_of_16_bits_are_trained_where_the_chip_takes_them():
    module = create_quant_retrain_model(wide_activations(), mixed())
    bits = {name: layer.activation.num_bits for name, layer in module.plan.layers.items()}
    assert bits == {"up": 16, "dw": 16, "left": 16, "right": 16, "deep": 8, "fc": 8}
    assert "dst_type INT16 is not possible for MatMul" in module.plan.notes["fc"][0]
    steps(module, [(draw(4, 4, 6, 6, seed=n), np.array([0, 1, 2, 0])) for n in range(2)], lr=0.01)
    result = save_quant_retrain_model(module, None, data=draw(4, 4, 6, 6, seed=9))
    assert result.output_errors["y"].sqnr > 40
    record = parse_record(result.record, "ours")
    assert (record["left"].act_type, record["fc"].act_type) == ("INT16", "INT8")
    assert verify_deploy_model(result.deploy_model).errors == ()


SIGNS = np.array([1, 1, -1, -1, 1, 1, -1, -1], np.float32)


def turned():
    """BatchNormalization and a Mul behind it that turn the signs of channels, and both the signs of one."""
    return model(
        """
        g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) {
          [c1] a = Conv (x, w1)
          [b1] b = BatchNormalization (a, s1, t1, m1, v1)
          [c2] c = Conv (b, w2, k2)
          [b2] d = BatchNormalization (c, s2, t1, m1, v1)
          [mul] e = Mul (d, m2)
          [all] y = Mul (e, minus)
        }
        """,
        {
            "w1": draw(8, 4, 1, 1) - 1,  # the largest magnitude is negative: it falls on -128
            "s1": np.array([1, -1, 2, -2, 0, -0.5, 1, -1], np.float32),
            "w2": draw(8, 8, 1, 1, seed=1) - 1,
            "k2": draw(8, seed=2),
            "s2": np.array([1, -1, 1, -1, 1, -1, 1, -1], np.float32),
            "m2": SIGNS.reshape(8, 1, 1),
            "minus": np.array(-1, np.float32),
            "t1": draw(8, seed=3),
            "m1": draw(8, seed=4),
            "v1": np.ones(8, np.float32),
        },
    )


@pytest.mark.parametrize("weight", [{"arq_retrain": {}}, {"ulq_retrain": {}}, {"arq_retrain": {"dst_type": "INT4"}}])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_channels_whose_sign_folding_turns_are_deployed_as_they_were_evaluated(weight, channel_wise):
    [(algorithm, settings)] = weight.items()
    cfg = {"retrain_weight_quant_config": {algorithm: {**settings, "channel_wise": channel_wise}}}
    module = create_quant_retrain_model(cfg, turned())
    x = draw(4, 4, 6, 6, seed=9)
    module.eval()(torch.from_numpy(x)).square().sum().backward()  # finds the limits, and the scales that are learned
    assert all(parameter.grad is not None for parameter in module.parameters())
    result = save_quant_retrain_model(module, None, data=x)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.fake_quant_model.graph.initializer}
    record, rounded = parse_record(result.record, "ours"), module.rounded_weights()
    factors = {"w1": module.get_parameter("s1"), "w2": module.get_parameter("s2") * torch.from_numpy(-SIGNS)}
    for layer, name in (("c1", "w1"), ("c2", "w2")):
        k = (factors[name] / np.sqrt(1 + 1e-5)).detach().numpy().reshape(-1, 1, 1, 1)
        integers = next(values for stored_name, values in stored.items() if stored_name.startswith(name))
        scales = np.array(record[layer].scale_w, np.float32).reshape(-1, 1, 1, 1)
        assert not channel_wise or integers.min() == (-8 if settings else -128)
        np.testing.assert_allclose(integers * scales, rounded[name].numpy() * k, rtol=1e-5, atol=1e-7)


def twins():
    """Two layers of one weight and bias, and a table that is the weight of a product too."""
    return model(
        """
        g (float[N, 4, 6, 6] x, int64[N] place) => (float[N, 4] y) {
          [first] a = Conv <pads=[1,1,1,1]> (x, w, b)
          [relu] c = Relu (a)
          [second] d = Conv <pads=[1,1,1,1]> (c, w, b)
          [pool] e = GlobalAveragePool (d)
          [flat] f = Flatten (e)
          [look] h = Gather (table, place)
          [sum] i = Add (f, h)
          [product] y = MatMul (i, table)
        }
        """,
        {"w": draw(4, 4, 3, 3), "b": draw(4, seed=1), "table": draw(4, 4, seed=2)},
    )


def test_a_weight_that_layers_share_stays_one_parameter(tmp_path):
    module = create_quant_retrain_model(None, twins())
    assert sum(1 for name, _ in module.named_parameters() if "quantizer" not in name) == 3
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    inputs = (torch.from_numpy(draw(4, 4, 6, 6)), torch.tensor([0, 1, 2, 3]))
    for _ in range(3):
        optimizer.zero_grad()
        module(*inputs).square().mean().backward()
        optimizer.step()
    torch.save(module.state_dict(), tmp_path / "net.pth")
    restored = restore_quant_retrain_model(None, twins(), tmp_path / "net.pth")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in to_onnx(restored).graph.initializer}
    assert not np.array_equal(weights["w"], draw(4, 4, 3, 3))
    for one, other in (("first.weight", "w"), ("first.bias", "b"), ("product.weight", "table")):
        np.testing.assert_array_equal(weights[one], weights[other])
    data = {"x": inputs[0].numpy(), "place": inputs[1].numpy()}
    assert save_quant_retrain_model(restored, None, data=data).output_errors["y"].sqnr > 40


def test_a_weight_that_is_also_read_transposed_is_warned_of(caplog):
    tied = model(
        """
        g (int64[N] place) => (float[N, 6] y) {
          [look] a = Gather (table, place)
          [turn] b = Transpose <perm=[1, 0]> (table)
          [product] y = MatMul (a, b)
        }
        """,
        {"table": draw(6, 4)},
    )
    create_quant_retrain_model(None, tied)
    assert "'table' is read by 'look' as it is, and transposed by 'turn'" in caplog.text


def test_limits_are_found_on_as_many_batches_as_asked_for():
    module = create_quant_retrain_model({"batch_num": 2}, mixed())
    module(torch.from_numpy(draw(4, 4, 6, 6)))
    with pytest.raises(ModelError, match="'up' has seen 1 of the 2 batches"):
        save_quant_retrain_model(module, None)
    module(torch.from_numpy(draw(4, 4, 6, 6)))
    save_quant_retrain_model(module, None)


def test_a_channel_that_training_left_without_weights_keeps_its_bias():
    network = turned()
    values = {tensor.name: tensor for tensor in network.graph.initializer}
    small = np.array([1, 1, 2, 2, 1e-9, 1, 1, 1], np.float32)
    values["s1"].CopyFrom(onnx.numpy_helper.from_array(small, "s1"))
    module = create_quant_retrain_model(None, network)
    x = draw(4, 4, 6, 6)
    module.eval()(torch.from_numpy(x))
    result = save_quant_retrain_model(module, None, data=x)
    assert result.plan.notes["c1"] == ("coarser weights in channel 4: the bias would leave int32 on their own scale",)
    assert result.output_errors["y"].sqnr > 40
    assert verify_deploy_model(result.deploy_model).errors == ()


# what a configuration may say


@pytest.mark.parametrize(
    ("cfg", "layers"),
    [
        ({"skip_layers": ["up", "dw"]}, ["left", "right", "deep", "fc"]),
        ({"quant_skip_types": ["Conv2d", "ConvTranspose2d"]}, ["deep", "fc"]),
        (
            {"skip_layer_types": ["Conv2d"], "override_layer_configs": [{"layer_name": "left", **LEARNED}]},
            ["up", "left", "deep", "fc"],
        ),
    ],
)
def test_layers_are_skipped_by_name_and_by_type_unless_an_override_names_them(cfg, layers):
    assert list(create_quant_retrain_model(cfg, mixed()).plan.layers) == layers


def test_what_an_override_does_not_say_comes_from_the_wider_block():
    limits = {"ulq_quantize": {"clip_max_min": {"clip_max": 3.0, "clip_min": -3.0}}}
    cfg = {"retrain_data_quant_config": limits, "override_layer_types": [{"layer_type": "Conv2d", **LEARNED}]}
    layers = create_quant_retrain_model(cfg, mixed()).plan.layers
    assert type(layers["left"].weight).__name__ == "UlqRetrain"
    assert layers["left"].activation.clip_max == 3.0
    assert type(layers["fc"].weight).__name__ == "ArqRetrain"


PER_CHANNEL = {"retrain_weight_quant_config": {"arq_retrain": {"channel_wise": True}}}


def test_per_channel_weights_of_a_matmul_are_a_note_for_all_and_an_error_for_one():
    plan = create_quant_retrain_model(PER_CHANNEL, mixed()).plan
    assert plan.notes["fc"] == ("channel_wise: true is not possible for MatMul: its weights have one scale",)
    with pytest.raises(ConfigError, match="layer 'fc': channel_wise: true is not possible"):
        create_quant_retrain_model({"override_layer_configs": [{"layer_name": "fc", **PER_CHANNEL}]}, mixed())


@pytest.mark.parametrize(
    ("cfg", "error", "said"),
    [
        ({"skip_layers": ["conv9"]}, ConfigError, "skip_layers names 'conv9'"),
        ({"batch_num": 0}, ConfigError, "batch_num"),
        ({"skip_layer_types": ["Conv9d"]}, ConfigError, "unknown layer type 'Conv9d'"),
        ({"override_layer_configs": [{"layer_name": "relu", **LEARNED}]}, ConfigError, "'relu' is configured, but"),
        (
            {"prune_config": {"n_out_of_m_pruner": {"l1_selective_prune": {}}}},
            ConfigError,
            "asks for sparsity",
        ),
        (
            {
                "retrain_data_quant_config": {"ulq_quantize": {"dst_type": "INT4"}},
                "retrain_weight_quant_config": {"arq_retrain": {"dst_type": "INT4"}},
                "skip_layers": ["up"],
            },
            NotAvailableError,
            "layer 'dw': activations of INT4 are not available; INT8 and INT16 are",
        ),
        (
            {"override_layer_configs": [{"layer_name": "deep", **wide_activations()}]},
            ConfigError,
            "layer 'deep': dst_type INT16 is not possible",
        ),
        ({"retrain_data_quant_config": {"ulq_quantize": {"dst_type": "INT4"}}}, ConfigError, "do not go together"),
        (
            {"retrain_data_quant_config": {"ulq_quantize": {"clip_max_min": {"clip_max": 1.0}}}},
            ConfigError,
            "clip_min is missing beside clip_max",
        ),
        ({"skip_layers": ["up", "dw", "left", "right", "deep", "fc"]}, ModelError, "no layer is left"),
    ],
)
def test_what_cannot_be_is_said(cfg, error, said):
    with pytest.raises(error, match=said):
        create_quant_retrain_model(cfg, mixed())


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c["c1"]["retrain_data_config"].update(clip_max=1.0), "clip_min is missing"),
        (lambda c: c["c1"]["retrain_data_config"].update(clip_max=-1, clip_min=-2), "clip_max must lie"),
        (lambda c: c["c1"]["retrain_data_config"].update(cli_max=1.0), "unknown key 'cli_max'"),
        (lambda c: c["c1"]["retrain_weight_config"].update(algo="arq"), "algo must be one of"),
        (lambda c: c["c1"].update(retrain_enable=1), "retrain_enable must be"),
        (lambda c: c.update(c9={}), "names 'c9'"),
        (
            lambda c: [c[k].update(retrain_enable=False) for k in ("c1", "c2", "c3", "fc")],
            "no layer has retrain_enable",
        ),
        (lambda c: c.update(version=2), "version"),
    ],
)
def test_what_is_wrong_in_an_edited_json_is_said(tmp_path, edit, said):
    case = GOLDEN / "qat_arq"
    config = json.loads((case / "config.json").read_text())
    edit(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=said):
        create_quant_retrain_model(tmp_path / "config.json", case / "model.onnx")


def test_an_edited_json_is_obeyed(tmp_path):
    case = GOLDEN / "qat_arq"
    config = json.loads((case / "config.json").read_text())
    config["c1"]["retrain_enable"] = False
    config["c2"]["retrain_data_config"].update(clip_max=3, clip_min=-1.5, fixed_min=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = create_quant_retrain_model(tmp_path / "config.json", case / "model.onnx")
    assert list(module.plan.layers) == ["c2", "c3", "fc"]
    quantizer = module.activation_quantizer("c2")
    assert (quantizer.clip_max.item(), quantizer.clip_min.item()) == (3.0, -1.5)
    assert not quantizer.fixed_min


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    case = GOLDEN / "qat_arq"
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "no.pth").write_text("no")
    for name, key, said in (
        ("other.pth", None, "does not fit"),
        ("other.pth", "net", "holds no 'net'"),
        ("no.pth", None, "cannot be read"),
    ):
        with pytest.raises(ModelError, match=said):
            restore_quant_retrain_model(RetrainConfig(), case / "model.onnx", tmp_path / name, key)


def test_the_trained_weights_can_be_had_as_a_float_model():
    case = GOLDEN / "qat_arq"
    module = create_quant_retrain_model(None, case / "model.onnx")
    assert [node.op_type for node in to_onnx(module).graph.node] == [
        node.op_type for node in onnx.load(case / "model.onnx").graph.node
    ]
