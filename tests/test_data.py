"""Calibration data: every source that is taken, in which order, and what is said of data that do not fit."""

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model

from amct_onnx import DataError, quantize_onnx
from amct_onnx.data import InputSpec, checked_feeds, input_specs


def spec(name="x", dtype=np.float32, shape=(None, 3)):
    return InputSpec(name=name, dtype=np.dtype(dtype), shape=shape)


def rows(first, count=2):
    """[count, 3], counting up from `first`: each batch can be told from the others."""
    return np.arange(first, first + 3 * count, dtype=np.float32).reshape(count, 3)


A, B, C = rows(0), rows(100), rows(200)
ONE = [spec()]
TWO = [spec("x"), spec("ids", np.int64, (None,))]
IDS = np.array([5, 7])


def read(source, specs=ONE, batch_num=None):
    return list(checked_feeds(source, specs, batch_num))


def assert_feeds(source, expected, specs=ONE, batch_num=None):
    found = read(source, specs, batch_num)
    assert len(found) == len(expected)
    for feed, arrays in zip(found, expected, strict=True):
        assert list(feed) == list(arrays)
        for name, array in arrays.items():
            assert feed[name].dtype == array.dtype
            np.testing.assert_array_equal(feed[name], array)


def refused(source, specs=ONE, batch_num=None):
    """The message of the DataError."""
    with pytest.raises(DataError) as caught:
        read(source, specs, batch_num)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self):
        self.feeds = iter([{"x": A}, {"x": B}])
        self.asked = 0

    def get_next(self):
        self.asked += 1
        return next(self.feeds, None)


class Shaped:
    """An array of another library: has a shape, and numpy can convert it."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


# Sources in memory

TWO_BATCHES = [{"x": A}, {"x": B}]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param([{"x": A}, {"x": B}], id="list of dicts"),
        pytest.param(({"x": A}, {"x": B}), id="tuple of dicts"),
        pytest.param([A, B], id="list of arrays"),
        pytest.param((A, B), id="tuple of arrays"),
        pytest.param([(A,), (B,)], id="list of tuples"),
        pytest.param([[A], [B]], id="list of lists"),
        pytest.param([Shaped(A), Shaped(B)], id="arrays of another library"),
        pytest.param(np.stack([A, B]), id="stack"),
        pytest.param(iter([A, B]), id="iterator"),
        pytest.param({1: A, 2: B}.values(), id="view"),
        pytest.param(Reader(), id="reader"),
        pytest.param(lambda: [A, B], id="callable that returns a list"),
        pytest.param(lambda: Reader(), id="callable that returns a reader"),
        pytest.param(lambda: lambda: np.stack([A, B]), id="callable that returns a callable"),
        pytest.param([{"x": A}, (B,)], id="of several forms"),
    ],
)
def test_two_batches_come_out_in_order(source):
    assert_feeds(source, TWO_BATCHES)


def test_a_generator_is_read_once_and_no_further_than_asked():
    produced = []

    def generate():
        for batch in (A, B, C):
            produced.append(batch)
            yield batch

    assert_feeds(generate(), TWO_BATCHES, batch_num=2)
    assert len(produced) == 2


def test_a_reader_is_asked_no_oftener_than_batches_are_wanted():
    reader = Reader()
    assert_feeds(reader, [{"x": A}], batch_num=1)
    assert reader.asked == 1


def test_a_class_of_readers_is_a_callable_that_returns_one():
    assert_feeds(Reader, TWO_BATCHES)


def test_an_endless_generator_ends_with_batch_num():
    def generate():
        while True:
            yield A

    assert len(read(generate(), batch_num=5)) == 5


def test_a_dict_is_one_batch():
    assert_feeds({"x": A}, [{"x": A}])
    assert_feeds({"ids": IDS, "x": A}, [{"ids": IDS, "x": A}], TWO)


def test_an_array_of_the_rank_of_the_input_is_one_batch():
    assert_feeds(A, [{"x": A}])


def test_an_array_with_one_axis_more_is_a_stack_also_over_a_fixed_batch():
    fixed = [spec(shape=(1, 3))]
    assert_feeds(A[:, np.newaxis], [{"x": A[:1]}, {"x": A[1:]}], fixed)


def test_an_array_for_an_input_of_unknown_rank_is_one_batch():
    assert_feeds(np.stack([A, B]), [{"x": np.stack([A, B])}], [spec(shape=None)])


def test_tuples_go_to_the_inputs_in_their_order():
    assert_feeds([(A, IDS), (B, IDS)], [{"x": A, "ids": IDS}, {"x": B, "ids": IDS}], TWO)


def test_the_last_batch_may_be_smaller():
    assert_feeds([A, B[:1]], [{"x": A}, {"x": B[:1]}])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.bool_, np.float16, np.float64])
def test_every_element_type_is_handed_on_as_it_is(dtype):
    batch = np.ones((2, 3), dtype)
    assert_feeds([batch], [{"x": batch}], [spec(dtype=dtype)])


def test_an_input_without_axes_takes_a_number():
    scalar = [spec(shape=())]
    assert_feeds([{"x": np.float32(3)}], [{"x": np.array(3, np.float32)}], scalar)
    assert_feeds([np.array(3, np.float32)], [{"x": np.array(3, np.float32)}], scalar)
    assert_feeds(np.array([3, 4], np.float32), [{"x": np.array(v, np.float32)} for v in (3, 4)], scalar)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.asfortranarray(A), id="columns first"),
        pytest.param(rows(0, 4)[::2], id="every second row"),
        pytest.param(rows(0)[:, ::-1], id="backwards"),
    ],
)
def test_the_layout_in_memory_does_not_matter(array):
    assert_feeds([array], [{"x": array}])


# Files


def test_an_npz_file_with_an_array_per_input_is_one_batch(tmp_path):
    np.savez(tmp_path / "data.npz", x=A, ids=IDS, label=IDS)
    assert_feeds(tmp_path / "data.npz", [{"x": A, "ids": IDS}], TWO)
    assert_feeds(str(tmp_path / "data.npz"), [{"x": A}])


def test_an_npz_file_with_numbered_arrays_is_as_many_batches_in_the_order_of_their_numbers(tmp_path):
    batches = [rows(1000 * i) for i in range(11)]
    np.savez(tmp_path / "data.npz", **{f"x_{i}": batches[i] for i in reversed(range(11))})
    assert_feeds(tmp_path / "data.npz", [{"x": batch} for batch in batches])


def test_numbered_arrays_of_several_inputs_are_put_together(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x_0=A, ids_0=IDS, x_1=B, ids_1=IDS)
    assert_feeds(tmp_path / "data.npz", [{"x": A, "ids": IDS}, {"x": B, "ids": IDS}], TWO)


def test_an_input_whose_own_name_ends_in_a_number_is_no_numbered_array(tmp_path):
    np.savez(tmp_path / "data.npz", x_0=A, x_1=B)
    expected = [{"x_0": A, "x_1": B}]
    assert_feeds(tmp_path / "data.npz", expected, [spec("x_0"), spec("x_1")])


def test_an_npy_file_is_one_batch_or_a_stack(tmp_path):
    np.save(tmp_path / "one.npy", A)
    np.save(tmp_path / "stack.npy", np.stack([A, B]))
    assert_feeds(tmp_path / "one.npy", [{"x": A}])
    assert_feeds(tmp_path / "stack.npy", TWO_BATCHES)


def test_a_directory_is_read_file_by_file_in_the_order_of_their_names(tmp_path):
    np.save(tmp_path / "b.npy", B)
    np.savez(tmp_path / "c.npz", x=C)
    A.tofile(tmp_path / "a.bin")
    (tmp_path / ".hidden").write_text("no data")
    assert_feeds(tmp_path, [{"x": A}, {"x": B}, {"x": C}])


def test_names_are_ordered_letter_by_letter_and_not_by_number(tmp_path):
    for name, batch in (("10", A), ("2", B), ("1", C)):
        np.save(tmp_path / f"{name}.npy", batch)
    assert_feeds(tmp_path, [{"x": C}, {"x": A}, {"x": B}])


@pytest.mark.parametrize("ending", ["bin", "raw", "dat"])
def test_raw_files_take_type_and_shape_from_the_input(tmp_path, ending):
    IDS.tofile(tmp_path / f"a.{ending}")
    assert_feeds(tmp_path, [{"ids": IDS}], [spec("ids", np.int64, (2,))])


def test_the_free_axis_of_a_raw_file_follows_from_its_size(tmp_path):
    rows(0, 5).tofile(tmp_path / "a.bin")
    rows(50, 1).tofile(tmp_path / "b.bin")
    assert_feeds(tmp_path, [{"x": rows(0, 5)}, {"x": rows(50, 1)}])


def test_a_raw_file_may_hold_an_input_without_axes(tmp_path):
    np.array(3, np.float32).tofile(tmp_path / "a.bin")
    assert_feeds(tmp_path, [{"x": np.array(3, np.float32)}], [spec(shape=())])


def test_several_inputs_come_from_npz_files(tmp_path):
    np.savez(tmp_path / "0.npz", x=A, ids=IDS)
    np.savez(tmp_path / "1.npz", ids=IDS, x=B)
    assert_feeds(tmp_path, [{"x": A, "ids": IDS}, {"ids": IDS, "x": B}], TWO)


def test_several_inputs_come_from_subdirectories_of_their_names(tmp_path):
    for name in ("x", "ids"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "x" / "0.npy", A)
    B.tofile(tmp_path / "x" / "1.bin")
    for batch in ("first", "second"):
        IDS.tofile(tmp_path / "ids" / f"{batch}.bin")
    assert_feeds(tmp_path, [{"x": A, "ids": IDS}, {"x": B, "ids": IDS}], TWO)


def test_a_path_may_hold_spaces_and_letters_beyond_ascii(tmp_path):
    np.save(tmp_path / "数据 é.npy", A)
    assert_feeds(tmp_path / "数据 é.npy", [{"x": A}])


# The inputs of a model


def test_inputs_with_a_value_in_the_model_need_no_data():
    m = model("g (float[N, 3] x, float[3] w) => (float[N, 3] y) { y = Mul(x, w) }", {"w": np.ones(3, np.float32)})
    assert input_specs(m) == [spec()]


def test_shapes_and_types_of_the_inputs_are_taken_as_declared():
    m = model("g (int64[N, 2] a, bool[0] b) => (int64[N, 2] y) { y = Identity(a) }")
    for name, shape in (("c", ()), ("d", None)):
        m.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, shape))
    assert input_specs(m) == [
        spec("a", np.int64, (None, 2)),
        spec("b", np.bool_, (None,)),
        spec("c", np.float16, ()),
        spec("d", np.float16, None),
    ]


def test_an_input_that_is_no_tensor_is_refused_by_name():
    m = model("g (seq(float[N]) parts) => (float[M] y) { y = ConcatFromSequence<axis=0>(parts) }")
    with pytest.raises(DataError, match="input 'parts' of the model is no tensor"):
        input_specs(m)


def test_an_input_without_an_element_type_is_refused_by_name():
    m = model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    m.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(DataError, match="'x'"):
        input_specs(m)


# What does not fit: batch, input, what the model takes, what was found


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        pytest.param(A.astype(np.float64), ("'x'", "float64", "float32", "astype"), id="element type"),
        pytest.param(A.astype(np.int32), ("'x'", "int32", "float32"), id="whole numbers"),
        pytest.param(A[:, :2], ("'x'", "[2, 2]", "[N, 3]"), id="size of an axis"),
        pytest.param(A[0], ("'x'", "[3]", "[N, 3]"), id="an axis too few"),
        pytest.param(A[np.newaxis], ("'x'", "[1, 2, 3]", "[N, 3]"), id="an axis too many"),
        pytest.param(A[:0], ("'x'", "empty", "[0, 3]"), id="no rows"),
        pytest.param(np.where(A == 4, np.nan, A), ("'x'", "NaN"), id="NaN"),
        pytest.param(np.where(A == 4, np.inf, A), ("'x'", "inf"), id="infinity"),
        pytest.param({"z": A}, ("no input 'z'", "inputs: x"), id="wrong name"),
        pytest.param({"x": A, "y": A}, ("'y'",), id="a name too many"),
        pytest.param({}, ("'x'", "float32 [N, 3]"), id="an empty dict"),
        pytest.param((A, A), ("2 arrays", "1 inputs"), id="an array too many"),
        pytest.param("text", ("str",), id="text"),
        pytest.param(None, ("NoneType",), id="nothing"),
        pytest.param(5, ("int",), id="a number"),
        pytest.param({"x": None}, ("'x'", "float32"), id="no array"),
        pytest.param({"x": "text"}, ("'x'", "float32"), id="text for an array"),
        pytest.param({"x": [[1.0, 2.0], [3.0]]}, ("'x'",), id="a ragged list"),
    ],
)
def test_the_message_names_batch_input_and_both_sides(bad, parts):
    message = refused([A, bad])
    for part in ("batch 1", *parts):
        assert part in message


def test_numbers_in_the_byte_order_of_other_machines_are_taken():
    (found,) = checked_feeds([A.astype(">f4")], [spec("x")], None)
    assert found["x"].dtype.isnative
    np.testing.assert_array_equal(found["x"], A)


def test_a_wrong_name_is_told_the_nearest_one():
    message = refused([{"imag": A}], [spec("image"), spec("mask")])
    for part in ("batch 0", "'imag'", "'image'"):
        assert part in message


def test_one_array_is_too_few_for_two_inputs():
    message = refused([A], TWO)
    for part in ("batch 0", "x, ids", "dict"):
        assert part in message


def test_a_missing_input_is_named_with_what_it_takes():
    message = refused([{"x": A}], TWO)
    for part in ("batch 0", "'ids'", "int64 [N]"):
        assert part in message


@pytest.mark.parametrize("source", [[], iter(()), (), np.zeros((0, 2, 3), np.float32), list])
def test_no_batch_at_all_is_an_error(source):
    assert "no batch" in refused(source)


def test_too_few_batches_are_counted():
    message = refused([A, B], batch_num=3)
    assert "3" in message
    assert "2" in message


@pytest.mark.parametrize("source", [5, 2.5, object(), lambda: None, lambda: 5])
def test_what_is_no_source_is_named_by_its_type(source):
    message = refused(source)
    assert any(kind in message for kind in ("int", "float", "object", "NoneType"))
    assert "get_next" in message


def test_what_fails_inside_the_source_is_no_fault_of_the_engine():
    """The same sentence, whichever batch it is: the first is read before calibration begins, the others during it."""
    net = model("g (float[N, 3] x) => (float[N, 2] y) { [fc] y = MatMul(x, w) }", {"w": np.ones((3, 2), np.float32)})

    def broken(after):
        yield from [A, B, C][:after]
        raise OSError("the disk is gone")

    for after in (0, 1, 2):
        with pytest.raises(DataError, match=f"batch {after}.*the disk is gone"):
            quantize_onnx(net, calibration=broken(after))


# Files that do not fit


def test_a_missing_file_is_named(tmp_path):
    assert str(tmp_path / "none.npz") in refused(tmp_path / "none.npz")


def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", A)
    refused("")


def test_an_empty_directory_is_named(tmp_path):
    message = refused(tmp_path)
    assert str(tmp_path) in message
    assert "no files" in message


def test_a_raw_file_by_itself_is_sent_into_a_directory(tmp_path):
    A.tofile(tmp_path / "a.bin")
    message = refused(tmp_path / "a.bin")
    for part in ("a.bin", ".npz", ".npy", "directory"):
        assert part in message


@pytest.mark.parametrize("size", [0, 5, 13])
def test_a_raw_file_of_a_wrong_size_says_what_would_fit(tmp_path, size):
    (tmp_path / "a.bin").write_bytes(bytes(size))
    message = refused(tmp_path)
    for part in ("a.bin", f"{size} bytes", "12 bytes", "'x'", "float32 [N, 3]"):
        assert part in message


def test_a_raw_file_must_fill_a_fixed_shape_exactly(tmp_path):
    rows(0, 2).tofile(tmp_path / "a.bin")
    message = refused(tmp_path, [spec(shape=(1, 3))])
    assert "24 bytes" in message
    assert "12 bytes" in message


@pytest.mark.parametrize("shape", [None, (None, None)])
def test_raw_files_need_a_shape_with_one_free_axis_at_most(tmp_path, shape):
    A.tofile(tmp_path / "a.bin")
    message = refused(tmp_path, [spec(shape=shape)])
    assert "'x'" in message
    assert "shape" in message


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("content", [b"", b"not numpy at all", b"PK\x03\x04 half of an archive"])
def test_a_damaged_file_is_named_and_closed(tmp_path, ending, content):
    (tmp_path / f"a.{ending}").write_bytes(content)
    assert f"a.{ending}" in refused(tmp_path / f"a.{ending}")
    assert f"a.{ending}" in refused(tmp_path)
    gc.collect()  # a file left open would warn now, which counts as an error


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_a_truncated_file_is_named_and_closed(tmp_path, ending, share):
    path = tmp_path / f"a.{ending}"
    np.save(path, rows(0, 100)) if ending == "npy" else np.savez(path, x=rows(0, 100))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert f"a.{ending}" in refused(path)
    gc.collect()


def test_an_archive_with_a_damaged_array_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(0, 100))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300:340] = b"\xff" * 40
    (tmp_path / "a.npz").write_bytes(content)
    assert "a.npz" in refused(tmp_path / "a.npz")


def test_python_objects_in_a_file_are_not_loaded(tmp_path):
    objects = np.array([1, "two", None], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=objects)
    for name in ("a.npy", "b.npz"):
        assert name in refused(tmp_path / name)


def test_an_archive_called_npy_and_an_array_called_npz_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=A)
    np.save(tmp_path / "b.npy", A)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    for name in ("a.npy", "b.npz"):
        assert name in refused(tmp_path / name)


def test_an_archive_without_the_inputs_shows_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", image=A, label=IDS)
    message = refused(tmp_path / "a.npz")
    for part in ("a.npz", "image, label", "x", "<batch>"):
        assert part in message


def test_a_numbered_array_behind_a_gap_is_not_dropped(tmp_path):
    np.savez(tmp_path / "a.npz", x_0=A, x_2=C)
    message = refused(tmp_path / "a.npz")
    assert "x_1" in message or "x_2" in message


def test_a_batch_that_lacks_an_input_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", x_0=A, ids_0=IDS, x_1=B)
    message = refused(tmp_path / "a.npz", TWO)
    assert "batch 1" in message
    assert "ids" in message


def test_loose_files_are_too_few_for_two_inputs(tmp_path):
    np.save(tmp_path / "a.npy", A)
    message = refused(tmp_path, TWO)
    assert "subdirectory" in message
    assert "x, ids" in message


def test_different_numbers_of_files_are_counted(tmp_path):
    for name, count in (("x", 2), ("ids", 1)):
        (tmp_path / name).mkdir()
        for batch in range(count):
            np.save(tmp_path / name / f"{batch}.npy", A if name == "x" else IDS)
    message = refused(tmp_path, TWO)
    for part in (f"{tmp_path / 'x'}: 2", f"{tmp_path / 'ids'}: 1"):
        assert part in message


def test_the_directory_of_an_input_holds_no_archives(tmp_path):
    for name in ("x", "ids"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "0.npz", x=A, ids=IDS)
    message = refused(tmp_path, TWO)
    assert "0.npz" in message
    assert "'x'" in message


def test_a_wrong_array_in_a_file_is_told_with_the_batch(tmp_path):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", B.astype(np.float64))
    message = refused(tmp_path)
    for part in ("batch 1", "'x'", "float64", "float32"):
        assert part in message


def test_the_digits_data_fit_their_network():
    digits = Path(__file__).parents[1] / "models" / "digits"
    (feed,) = read(digits / "calibration.npz", input_specs(onnx.load(digits / "digits.onnx")))
    assert feed["image"].shape == (64, 1, 8, 8)
