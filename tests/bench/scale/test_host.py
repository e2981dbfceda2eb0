"""The host's work is measured whole, and its parts are those of a real answer."""

import numpy as np
import pytest

from bench.scale.host import A4, LARGEST, host_costs, mask_costs, table
from calib_data import READER
from runtime.inputs.images import ImageSettings, image_grid

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def costs():
    return host_costs(vocabulary=5000, repetitions=2)


def test_every_piece_of_work_takes_time(costs):
    assert len(costs) == 13
    assert all(0 < cost.low <= cost.median <= cost.high < 10 for cost in costs.values())


def test_masks_of_an_answer_take_time():
    """The answer is written, token by token, in the grammar: the measurement checks that."""
    (cost,) = mask_costs(vocabulary=5000, repetitions=2).values()
    assert 0 < cost.low <= cost.median <= cost.high < 0.1


def test_a_page_costs_more_than_a_token(costs):
    """By how much is the machine's: but a picture of 3 million pixels is no less than 1000 single rows."""
    by_name = {name: cost.median for name, cost in costs.items()}
    assert by_name["embed a prompt of 4096 tokens"] > 50 * by_name["embed a token"]
    assert by_name["prepare the largest image"] > by_name["prepare an A4 page"] > by_name["sample, greedy"]


def test_pictures_are_of_the_sizes_that_are_named():
    settings = ImageSettings.from_folder(READER)
    a4, largest = (np.prod(image_grid(size[1], size[0], settings)) for size in (A4, LARGEST))
    assert a4 == 4 * 2772  # "about 2800 tokens"
    assert largest == 16384


def test_a_line_for_each(costs):
    assert len(table(costs).splitlines()) == 2 + len(costs)
    name, cost = next(iter(costs.items()))
    assert f"| {name} | {1000 * cost.median:.3g} |" in table(costs)
