"""Which batches calibration sees, and which are held back."""

import numpy as np
import pytest

from amct_onnx.data import Feeds, InputSpec
from amct_onnx.errors import DataError
from amct_onnx.held_back import Divided

SPECS = [InputSpec(name="x", dtype=np.dtype(np.float32), shape=(1,))]


def data(count):
    """Batches that hold their numbers, all in the same array."""
    array = np.zeros(1, np.float32)
    for index in range(count):
        array[0] = index
        yield {"x": array}


def numbers(feeds):
    return [int(feed["x"][0]) for feed in feeds]


@pytest.mark.parametrize(
    ("total", "batch_num", "held", "says"),
    [
        (1, None, [], "1 batch of the calibration data: too few to hold any back"),
        (7, None, [], "7 batches of the calibration data: too few to hold any back"),
        (8, None, [3, 7], "2 batches held back"),
        (9, None, [3, 7], "2 batches held back"),
        (100, None, list(range(3, 64, 4)), "16 batches held back"),
        (40, 40, [], "16 batches of the calibration data: too few to hold any back"),
        (4, 3, [3], "1 batch held back"),
        (40, 3, list(range(3, 19)), "16 batches held back"),
    ],
)
def test_batches_are_held_back_where_there_are_enough(total, batch_num, held, says):
    divided = Divided(lambda: data(total), SPECS, batch_num, "to try")
    assert divided.says == says
    used = range(total if batch_num is None else batch_num)
    assert numbers(divided.held) == (held or list(used)[:16])
    for _ in range(2):
        assert numbers(Feeds(divided.rest, SPECS, batch_num)) == [index for index in used if index not in held]
    assert numbers(divided.all()) == list(range(total))
    assert divided.withholds == (bool(held) and batch_num is None)


def test_fewer_batches_than_asked_for_are_an_error_where_calibration_reads_them():
    divided = Divided(lambda: data(2), SPECS, 3, "to try")
    with pytest.raises(DataError, match="3"):
        list(Feeds(divided.rest, SPECS, 3))


def test_data_that_can_be_read_once_are_refused():
    with pytest.raises(DataError, match="read only once, but are needed again, to try"):
        Divided(data(9), SPECS, None, "to try")
