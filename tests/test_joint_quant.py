"""joint_quant: the inputs of an Add between two quantized layers share one scale."""

import numpy as np
import onnx
import pytest
from graphs import model, nodes_as_text, run, sqnr

from amct_onnx import Hfmg, Ifmr, LayerConfig, TensorConfig, cli, quantize_onnx
from amct_onnx.formats.record import parse_record

RNG = np.random.default_rng(6)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


NETWORK = model(
    """
    g (float[2, 4, 8, 8] x) => (float[2, 4, 8, 8] y, float[2, 4, 8, 8] z) {
      [a] t0 = Conv <pads = [1, 1, 1, 1]> (x, w)
      [norm] t1 = BatchNormalization (t0, s, t, m, v)
      [b] t2 = Conv (x, u)
      [both] t3 = Add (t1, t2)
      [relu] y = Relu (t3)
      [shortcut] z = Add (t3, x)
    }
    """,
    {
        "w": normal(4, 4, 3, 3),
        "u": normal(4, 4, 1, 1) * np.float32(20),
        **{name: np.abs(normal(4)) + np.float32(0.5) for name in "stmv"},
    },
)
FEEDS = [{"x": normal(2, 4, 8, 8)} for _ in range(3)]


def quantized(**options):
    return quantize_onnx(NETWORK, calibration=FEEDS, **options)


def expected_range(params):
    """What the integers of a scale cover."""
    return [(q - int(params.offset)) * float(params.scale) for q in (-128, 127)]


@pytest.mark.parametrize("activation", [Ifmr(search_range=(0.99, 1.0)), Hfmg()])
def test_both_inputs_share_the_scale_that_fits_both(activation):
    result = quantized(joint_quant=True, common_config=LayerConfig(activation=activation))
    assert [tensor.key for tensor in result.plan.tensors] == ["both:0", "both:1"]
    first, second = (result.params[key].activation for key in ("both:0", "both:1"))
    assert (first.scale, first.offset) == (second.scale, second.offset)
    alone = quantized(
        tensor_quantize=[TensorConfig(layer_name="both", input_index=i, activation=activation) for i in (0, 1)],
        common_config=LayerConfig(activation=activation),
    )
    small, large = (alone.params[key].activation for key in ("both:0", "both:1"))
    assert small.scale < large.scale / 2
    assert expected_range(first) == pytest.approx(expected_range(large), rel=0.2)
    assert sqnr(run(NETWORK, FEEDS[0])["y"], run(result.fake_quant_model, FEEDS[0])["y"]) > 25


def test_the_operators_stand_in_front_of_both_inputs():
    result = quantized(joint_quant=True)
    lines = [line for line in nodes_as_text(result.deploy_model) if line.startswith("[both")]
    assert [line.split("] ")[0] for line in lines] == [
        "[both.input0.quant",
        "[both.input0.anti_quant",
        "[both.input1.quant",
        "[both.input1.anti_quant",
        "[both",
    ]
    scale = float(result.params["both:0"].activation.scale)
    assert sum(f"scale={scale}" in line for line in lines) == 2
    records = parse_record(result.record, "record")
    assert records["both:0"] == records["both:1"]
    assert records["both:0"].is_tensor_quantize
    assert '"joint_quant":true' in result.config


def test_without_the_option_nothing_is_joined():
    assert quantized().plan.tensors == ()


def test_an_add_between_other_things_is_left_alone():
    assert quantized(joint_quant=True, skip_layers=["b"]).plan.tensors == ()
    assert quantized(joint_quant=True, skip_layers=["both"]).plan.tensors == ()


@pytest.mark.parametrize("bits", [8, 16])
def test_the_configuration_that_is_written_asks_for_the_same_scale(bits, tmp_path):
    common = LayerConfig(activation=Hfmg(num_of_bins=1024, asymmetric=False, num_bits=bits))
    first = quantized(joint_quant=True, common_config=common, save_path=tmp_path / "a")
    assert first.plan.tensors[0].activation == Hfmg(num_of_bins=1024, asymmetric=False)
    again = quantized(cfg=tmp_path / "a_config.json")
    assert again.record == first.record.read_text()
    assert again.config == first.config.read_text()


def test_an_input_that_is_listed_by_itself_goes_before():
    listed = [TensorConfig(layer_name="both", input_index=1)]
    result = quantized(joint_quant=True, tensor_quantize=listed)
    assert [(tensor.key, tensor.joint) for tensor in result.plan.tensors] == [("both:1", False)]


def test_one_input_that_is_not_finite_leaves_both_float():
    source = model(
        """
        g (float[2, 4] x) => (float[2, 3] y) {
          [a] t0 = Gemm (x, w) [b] t1 = Gemm (x, huge) [both] y = Add (t0, t1)
        }
        """,
        {"w": normal(4, 3), "huge": np.full((4, 3), 3e38, np.float32)},
    )
    feeds = [{"x": np.ones((2, 4), np.float32)}]
    result = quantize_onnx(source, calibration=feeds, joint_quant=True)
    assert result.plan.tensors == ()
    assert "holds NaN or inf" in result.plan.skipped["both:1"]
    assert "share its scale with 'both:1'" in result.plan.skipped["both:0"]


def test_a_layer_that_reads_one_of_them_keeps_its_own_scale():
    source = model(
        """
        g (float[2, 4] x) => (float[2, 3] y, float[2, 2] z) {
          [a] t0 = Gemm (x, w) [b] t1 = Gemm (x, u) [both] y = Add (t0, t1) [c] z = Gemm (t0, k)
        }
        """,
        {"w": normal(4, 3), "u": normal(4, 3) * np.float32(50), "k": normal(3, 2)},
    )
    feeds = [{"x": normal(2, 4)} for _ in range(3)]
    joined, plain = (quantize_onnx(source, calibration=feeds, joint_quant=on) for on in (True, False))
    assert joined.params["c"].activation.scale == plain.params["c"].activation.scale
    assert joined.params["both:0"].activation.scale > 2 * joined.params["c"].activation.scale


def test_the_plan_shows_tensors_and_balancing(tmp_path, capsys):
    onnx.save(NETWORK, tmp_path / "net.onnx")
    (tmp_path / "quant.cfg").write_text("joint_quant: true common_config { dmq_balancer { } nuq_quantize { } }")
    cli.main(["plan", str(tmp_path / "net.onnx"), "--config", str(tmp_path / "quant.cfg")])
    shown = capsys.readouterr().out
    for part in ("both:0", "both:1", "one scale with", "nuq, 32", "dmq"):
        assert part in shown
