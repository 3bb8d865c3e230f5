"""accuracy_based_auto_calibration as AMCT's scripts call it."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import amct_onnx as amct
from amct_onnx.common.auto_calibration import (
    AutoCalibrationEvaluatorBase,
    AutoCalibrationStrategyBase,
    BinarySearchStrategy,
    CosineSimilaritySensitivity,
    SensitivityBase,
)
from amct_onnx.errors import ArgumentError, ConfigError, DataError, EvaluatorError, OutputError
from amct_onnx.quantize import quantize_onnx
from amct_onnx.stepwise.create_config import create_quant_config

DIGITS = Path(__file__).parents[1] / "models" / "digits"
TEST = np.load(DIGITS / "test.npz")["image"]
CALIBRATION = np.load(DIGITS / "calibration.npz")["image"]
STEM = "accuracy_based_auto_calibration_"


class Evaluator(AutoCalibrationEvaluatorBase):
    """Satisfied when the outputs are `target` dB from the float ones; counts what it is called for."""

    def __init__(self, target=0.0, batches=2):
        super().__init__()
        self.target, self.batches = target, batches
        self.reference = None
        self.evaluated = []

    def calibration(self, model_file):
        with amct.calibration_session(model_file) as session:
            for part in np.array_split(CALIBRATION, self.batches):
                session.run(None, {"image": part})

    def evaluate(self, model_file):
        session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {"image": TEST[:100]})
        if self.reference is None:
            self.reference = scores.astype(np.float64)
        self.evaluated.append(model_file)
        noise = ((self.reference - scores) ** 2).sum()
        return 10 * math.log10((self.reference**2).sum() / noise) if noise else 200.0

    def metric_eval(self, original_metric, new_metric):
        return new_metric >= self.target, original_metric - new_metric


@pytest.fixture
def flow(tmp_path):
    """Calls it in a folder with a configuration for two batches."""
    create_quant_config(tmp_path / "config.json", DIGITS / "digits.onnx", batch_num=2)

    def call(evaluator, **options):
        given = {
            "model_file": str(DIGITS / "digits.onnx"),
            "model_evaluator": evaluator,
            "config_file": str(tmp_path / "config.json"),
            "record_file": str(tmp_path / "record.txt"),
            "save_dir": str(tmp_path / "out" / "net"),
        }
        return amct.accuracy_based_auto_calibration(**{**given, **options})

    return call


def text(path):
    return Path(path).read_text(encoding="utf-8")


def test_a_model_that_will_do_with_all_layers_quantized_is_that_of_quantize_onnx(flow, tmp_path):
    result = flow(Evaluator())
    assert result.trial.mix.float_layers == frozenset()
    assert len(result.trials) == 1
    batches = [{"image": part} for part in np.array_split(CALIBRATION, 2)]
    same = quantize_onnx(DIGITS / "digits.onnx", tmp_path / "config.json", calibration=batches)
    assert onnx.load(tmp_path / "out" / "net_fake_quant_model.onnx") == same.fake_quant_model
    assert onnx.load(tmp_path / "out" / "net_deploy_model.onnx") == same.deploy_model
    assert text(tmp_path / "record.txt") == same.record
    assert text(tmp_path / "out" / f"{STEM}final_config.json") == text(tmp_path / "config.json")


def test_exactly_the_documented_files_are_written(flow, tmp_path):
    before = (tmp_path / "config.json").read_bytes()
    (tmp_path / "out").mkdir()
    own = [tmp_path / "out" / name for name in ("my_deploy_notes.txt", "fake_quant.bin", "temp20260101")]
    for path in own:
        path.write_text("mine")
    result = flow(Evaluator(37.5))
    names = {"net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_quant.json"}
    names |= {f"{STEM}{what}.json" for what in ("ranking_information", "final_config", "trials")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {path.name for path in own}
    assert all(path.read_text() == "mine" for path in own)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "record.txt", "out"}
    assert (tmp_path / "config.json").read_bytes() == before
    assert {path.name for path in result.files} == names - {f"{STEM}trials.json"} | {"record.txt"}


@pytest.mark.parametrize("strategy", ["BinarySearch", "Greedy"])
def test_what_is_written_satisfies_and_leaves_layers_float(flow, tmp_path, strategy):
    evaluator = Evaluator(37.5)
    result = flow(evaluator, strategy=strategy)
    assert result.trial.satisfied
    assert not result.trials[0].satisfied
    off = result.trial.mix.float_layers
    assert 0 < len(off) < 6
    assert evaluator.evaluate(str(tmp_path / "out" / "net_fake_quant_model.onnx")) == result.trial.metric
    config = json.loads(text(tmp_path / "out" / f"{STEM}final_config.json"))
    assert {name for name, value in config.items() if isinstance(value, dict) and not value["quant_enable"]} == off
    assert all(f'key: "{name}"' not in text(tmp_path / "record.txt") for name in off)
    assert not amct.verify_deploy_model(str(tmp_path / "out" / "net_deploy_model.onnx")).errors


def test_the_greedy_choice_needs_no_more_float_layers(flow):
    for target in (37.5, 40):
        greedy, binary = (flow(Evaluator(target), strategy=name).trial for name in ("Greedy", "BinarySearch"))
        assert greedy is not None
        assert len(greedy.mix.float_layers) <= len(binary.mix.float_layers)


def test_16_bit_activations_take_the_place_of_float_layers(flow, tmp_path):
    target = 37
    assert flow(Evaluator(target), strategy="Greedy").trial.mix.float_layers
    result = flow(Evaluator(target), strategy="GreedyInt16")
    assert result.trial.satisfied
    assert result.trial.mix.float_layers == frozenset()
    wide = result.trial.mix.int16_layers
    assert 0 < len(wide) < 6
    config = json.loads(text(tmp_path / "out" / f"{STEM}final_config.json"))
    layers = {name: value for name, value in config.items() if isinstance(value, dict)}
    assert {name for name, value in layers.items() if value["activation_quant_params"]["num_bits"] == 16} == wide
    assert text(tmp_path / "record.txt").count('act_type: "INT16"') == len(wide)
    again = Evaluator(target)
    assert flow(again, strategy="GreedyInt16").trial.mix == result.trial.mix
    assert len(again.evaluated) == 1


def test_the_ranking_is_sorted_and_names_every_layer(flow, tmp_path):
    result = flow(Evaluator())
    ranking = json.loads(text(tmp_path / "out" / f"{STEM}ranking_information.json"))
    assert [tuple(pair) for pair in ranking] == result.ranking
    assert len(ranking) == 6
    values = [value for _, value in ranking]
    assert values == sorted(values)
    assert all(0.9 < value < 1 for value in values)


def test_binary_search_takes_as_many_steps_as_a_bisection(flow):
    result = flow(Evaluator(39.5))
    sizes = [len(trial.mix.float_layers) for trial in result.trials]
    assert sizes[:2] == [0, 3]
    assert len(sizes) <= 2 + math.ceil(math.log2(6))


def test_where_all_layers_would_be_float_there_is_no_model(flow, tmp_path, caplog):
    flow(Evaluator())
    other = tmp_path / "out" / "another_deploy_model.onnx"
    other.write_text("mine")
    for strategy in ("BinarySearch", "Greedy"):
        result = flow(Evaluator(150), strategy=strategy)
        assert result.trial is None
    assert "no model" in caplog.text
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_quant.json"} & left
    assert other.read_text() == "mine"


class Interrupted(Evaluator):
    """Is stopped by the user at some evaluation."""

    def __init__(self, target, at):
        super().__init__(target)
        self.at = at

    def evaluate(self, model_file):
        if len(self.evaluated) == self.at:
            raise KeyboardInterrupt
        return super().evaluate(model_file)


def test_an_interrupted_run_goes_on_where_it_was(flow, tmp_path):
    whole = Evaluator(39.5)
    expected = flow(whole, save_dir=str(tmp_path / "whole" / "net"), strategy="Greedy")
    with pytest.raises(KeyboardInterrupt):
        flow(Interrupted(39.5, 3), strategy="Greedy")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{STEM}trials.json"}
    second = Evaluator(39.5)
    result = flow(second, strategy="Greedy")
    assert result.trial.mix == expected.trial.mix
    assert [trial.metric for trial in result.trials] == [trial.metric for trial in expected.trials]
    assert len(second.evaluated) == len(whole.evaluated) - 2  # the float model is evaluated again, to be sure
    third = Evaluator(39.5)
    flow(third, strategy="Greedy")
    assert len(third.evaluated) == 1


@pytest.mark.parametrize("change", ["config", "data", "metric", "damage"])
def test_trials_of_anything_else_are_not_taken(flow, tmp_path, change):
    flow(Evaluator(39.5))
    evaluator = Evaluator(39.5)
    if change == "config":
        create_quant_config(tmp_path / "config.json", DIGITS / "digits.onnx", batch_num=2, activation_offset=False)
    elif change == "data":
        evaluator = Evaluator(39.5, batches=3)
    elif change == "metric":
        evaluator.reference = np.ones((100, 10))
    else:
        (tmp_path / "out" / f"{STEM}trials.json").write_text('{"key": [], "trials": 7}')
    if change == "metric":
        evaluator.target = -100
    result = flow(evaluator)
    assert len(evaluator.evaluated) == 1 + len(result.trials)


def test_another_demand_uses_the_same_trials(flow):
    flow(Evaluator(39.5))
    evaluator = Evaluator(0.0)
    assert flow(evaluator).trial.mix.float_layers == frozenset()
    assert len(evaluator.evaluated) == 1


class Incremental(AutoCalibrationStrategyBase):
    """A strategy as users write them: one more layer at a time, changing and returning one dict."""

    def __init__(self):
        super(Incremental, self).__init__()  # noqa: UP008
        self.count = 0

    def initialize(self, ranking_info):
        self.order = [name for name, _ in sorted(ranking_info.items(), key=lambda item: item[1])]
        self.config = dict.fromkeys(self.order, True)

    def update_quant_config(self, metric_eval):
        satisfied, _ = metric_eval
        if not satisfied:
            self.config[self.order[self.count]] = False
            self.count += 1
        self.result["stop_flag"] = satisfied
        self.result["roll_back_config"] = self.config
        return self.result


class Largest(SensitivityBase):
    """A comparison of the user's own, smaller for what is worse."""

    def compare(self, data, other):
        return -np.abs(data - other).max()


def test_strategies_and_comparisons_of_the_users_own(flow):
    result = flow(Evaluator(39.5), strategy=Incremental(), sensitivity=Largest())
    sizes = [len(trial.mix.float_layers) for trial in result.trials]
    assert sizes == list(range(len(sizes)))
    assert result.trial is result.trials[-1]
    assert all(value < 0 for _, value in result.ranking)


def test_amcts_paths_of_the_classes():
    from amct_onnx.common.auto_calibration.auto_calibration_evaluator_base import AutoCalibrationEvaluatorBase as One
    from amct_onnx.common.auto_calibration.auto_calibration_strategy_base import AutoCalibrationStrategyBase as Two
    from amct_onnx.common.auto_calibration.binary_search_strategy import BinarySearchStrategy as Three
    from amct_onnx.common.auto_calibration.cosine_similarity_sensitivity import CosineSimilaritySensitivity as Four
    from amct_onnx.common.auto_calibration.sensitivity_base import SensitivityBase as Five

    assert One is AutoCalibrationEvaluatorBase
    assert Two is AutoCalibrationStrategyBase
    assert Three is BinarySearchStrategy
    assert Four is CosineSimilaritySensitivity
    assert Five is SensitivityBase


@pytest.mark.parametrize("enough_from", range(1, 9))
def test_binary_search_is_amcts(enough_from):
    """Half of the layers first; the shortest sufficient beginning at the end."""
    ranking = {f"layer{i}": i / 10 for i in range(8)}
    strategy, tried, satisfied = BinarySearchStrategy(), [], False
    strategy.initialize(ranking)
    while True:
        found = strategy.update_quant_config((satisfied, 0.0))
        off = [name for name, enabled in found["roll_back_config"].items() if not enabled]
        assert off == list(ranking)[: len(off)]
        if found["stop_flag"]:
            break
        tried.append(len(off))
        satisfied = len(off) >= enough_from
    assert tried[0] == 4
    assert len(off) == enough_from
    assert len(tried) <= 4


def test_cosine_similarity_is_amcts():
    compare = CosineSimilaritySensitivity().compare
    x = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    assert compare(x, 2 * x) == pytest.approx(1)
    assert compare(x, -x) == pytest.approx(0)
    assert compare(np.zeros(3), np.ones(3)) == 1
    assert compare(np.ones(3), np.zeros(3)) == 0
    assert compare(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5 + 0.5 / math.sqrt(2))


TWO_INPUTS = """<ir_version: 8, opset_import: ["" : 13]>
g (float[N,4] a, int64[M] rows) => (float[M,3] y)
<float[4,5] w = {1,-2,3,-4,5,6,-7,8,-9,1,2,-3,4,-5,6,7,-8,9,1,-2}, float[5,3] v = {1,2,-3,4,5,-6,7,8,-9,1,2,-3,4,5,-6}>
{
    [first] b = MatMul(a, w)
    c = Relu(b)
    d = Gather(c, rows)
    [second] y = MatMul(d, v)
}"""


class TwoInputs(AutoCalibrationEvaluatorBase):
    """Batches of other sizes each time, for a model with two inputs of different types."""

    def feeds(self, seed):
        rng = np.random.default_rng(seed)
        for count in (3, 5, 2):
            yield {"a": rng.normal(size=(count, 4)).astype(np.float32), "rows": rng.integers(0, count, count + 1)}

    def calibration(self, model_file):
        with amct.calibration_session(model_file) as session:
            for feed in self.feeds(0):
                session.run(["y"], feed)

    def evaluate(self, model_file):
        session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
        return [session.run(None, feed)[0] for feed in self.feeds(1)]

    def metric_eval(self, original_metric, new_metric):
        loss = np.max([np.abs(a - b).max() for a, b in zip(original_metric, new_metric, strict=True)])
        return np.bool_(loss < self.limit), loss


@pytest.mark.parametrize("strategy", ["BinarySearch", "Greedy"])
def test_many_inputs_and_batches(tmp_path, strategy):
    onnx.save(onnx.parser.parse_model(TWO_INPUTS), tmp_path / "two.onnx")
    create_quant_config(tmp_path / "config.json", tmp_path / "two.onnx", batch_num=3)
    arguments = [
        tmp_path / "two.onnx",
        TwoInputs(),
        tmp_path / "config.json",
        tmp_path / "record.txt",
        tmp_path / "o/n",
    ]
    arguments[1].limit = math.inf
    loss = float(amct.accuracy_based_auto_calibration(*arguments, strategy).trial.loss)
    arguments[1].limit = loss * 0.9
    result = amct.accuracy_based_auto_calibration(*arguments, strategy)
    assert [name for name, _ in result.ranking] in (["first", "second"], ["second", "first"])
    assert result.trial is None or len(result.trial.mix.float_layers) == 1


def raising(error):
    def method(*_):
        raise error

    return method


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"calibration": raising(KeyError("no such file"))},
            [r"calibration\(\) of Evaluator failed for 2 batches: KeyE"],
        ),
        (
            {"evaluate": raising(RuntimeError("boom"))},
            [r"evaluate\(\) of Evaluator failed for the float model .*: Run"],
        ),
        ({"metric_eval": raising(ZeroDivisionError("x"))}, ["metric_eval.. of Evaluator failed for the metrics 200"]),
        ({"metric_eval": lambda a, b: True}, [r"metric_eval\(\) of Evaluator must return two values", "found True"]),
        ({"metric_eval": lambda a, b: (np.array([True, False]), 0.0)}, ["must return two values"]),
        ({"evaluate": AutoCalibrationEvaluatorBase().evaluate}, ["evaluate.. of Evaluator", "is not implemented"]),
    ],
)
def test_what_fails_in_the_users_code_is_said(flow, tmp_path, change, said):
    evaluator = Evaluator(39.5)
    for name, method in change.items():
        setattr(evaluator, name, method)
    with pytest.raises(EvaluatorError) as caught:
        flow(evaluator)
    for part in said:
        caught.match(part)
    assert not list(tmp_path.glob("out/net*"))
    assert not (tmp_path / "record.txt").exists()


def test_a_trial_that_fails_is_named(flow):
    evaluator = Evaluator(39.5)
    good, calls = evaluator.evaluate, []

    def evaluate(path):
        calls.append(path)
        if len(calls) == 3:
            raise ValueError("out of memory")
        return good(path)

    evaluator.evaluate = evaluate
    with pytest.raises(EvaluatorError, match="failed for a trial model with 3 float layers: ValueError: out of memory"):
        flow(evaluator)


def test_a_metric_that_the_float_model_does_not_satisfy_is_refused(flow):
    with pytest.raises(ConfigError, match="not satisfied with the float model's own metric"):
        flow(Evaluator(1000))


def test_too_few_batches_are_refused(flow):
    with pytest.raises(DataError, match=r"calibration\(\) of Evaluator has run 1 of 2 batches"):
        flow(Evaluator(batches=1))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"model_evaluator": object()}, ArgumentError, "subclass of AutoCalibrationEvaluatorBase"),
        ({"model_evaluator": Evaluator}, ArgumentError, "is the class Evaluator; give an instance"),
        ({"strategy": "Linear"}, ConfigError, "'BinarySearch' or 'Greedy' or 'GreedyInt16'.*found 'Linear'"),
        ({"strategy": 3}, ArgumentError, "AutoCalibrationStrategyBase; found int 3"),
        ({"strategy": Incremental}, ArgumentError, "strategy is the class Incremental"),
        ({"sensitivity": "Mse"}, ConfigError, "'CosineSimilarity'"),
        ({"sensitivity": None}, ArgumentError, "SensitivityBase; found NoneType"),
        ({"sensitivity": Largest(), "strategy": "Greedy"}, ConfigError, "ranks layers by the outputs"),
        ({"config_file": "missing.json"}, ConfigError, "missing.json"),
        ({"config_file": 5}, ArgumentError, "config_file"),
        ({"record_file": ""}, ConfigError, "record_file"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(flow, options, kind, said):
    evaluator = Evaluator()
    with pytest.raises(kind, match=said):
        flow(
            **{"evaluator": evaluator, **options}
            if "model_evaluator" not in options
            else {"evaluator": None, **options}
        )
    assert evaluator.evaluated == []


def test_files_that_are_read_are_not_written(flow, tmp_path):
    with pytest.raises(OutputError, match=r"config\.json"):
        flow(Evaluator(), record_file=str(tmp_path / "config.json"))


class Endless(Incremental):
    def update_quant_config(self, metric_eval):
        return {"stop_flag": False, "roll_back_config": {self.order[0]: False}}


class Wrong(Incremental):
    found = None

    def update_quant_config(self, metric_eval):
        return self.found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "must return a dict with stop_flag and roll_back_config, found None"),
        ({"stop_flag": True}, "must return a dict"),
        ({"stop_flag": True, "roll_back_config": []}, "roll_back_config must map layers"),
        ({"stop_flag": True, "roll_back_config": {"stem.con": False}}, "names 'stem.con', no quantized layer; did you"),
    ],
)
def test_a_strategy_that_decides_nothing_is_refused(flow, found, said):
    strategy = Wrong()
    strategy.found = found
    with pytest.raises(EvaluatorError, match=said):
        flow(Evaluator(39.5), strategy=strategy)


def test_a_strategy_that_never_stops_is_stopped(flow):
    with pytest.raises(EvaluatorError, match="has set no stop_flag in 1000 steps"):
        flow(Evaluator(39.5), strategy=Endless())


def test_a_comparison_that_gives_no_number_is_refused(flow):
    class Nothing(SensitivityBase):
        def compare(self, data, other):
            return math.nan

    with pytest.raises(EvaluatorError, match=r"compare\(\) of Nothing gave NaN for layer"):
        flow(Evaluator(), sensitivity=Nothing())
