"""What a detector keeps of its training images, also when a stranger wrote the file."""

import numpy as np
import pytest
import torch
from PIL import Image

from texture_ad.data.drift import ImageStatistics, brightness, differences, training_statistics
from texture_ad.data.images import header


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for i, shape in enumerate([(40, 50, 3), (44, 50, 3), (40, 52)]):
        found.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(100, 120, shape, np.uint8)).save(found[-1])
    return found


LEVELS = torch.tensor([[100.0, 10.0], [110.0, 12.0], [120.0, 14.0]])


def test_statistics_are_ranges_means_and_spreads(paths):
    found = training_statistics([header(path) for path in paths], LEVELS)
    assert (found.width, found.height, found.modes) == ((50, 52), (40, 44), ("L", "RGB"))
    assert found.brightness == pytest.approx((110, float(np.std([100, 110, 120]))))
    assert found.contrast == pytest.approx((12, float(np.std([10, 12, 14]))))


def test_equal_images_have_a_spread_of_one(paths):
    assert training_statistics([header(path) for path in paths], LEVELS[:1].repeat(3, 1)).brightness == (100.0, 1.0)


def test_brightness_is_mean_and_deviation_of_grey():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[..., 0] = 100
    assert torch.allclose(brightness(image), torch.tensor([[50.0, 100 / 3**0.5]]))


def test_differences_name_each_respect(paths, tmp_path):
    statistics = training_statistics([header(path) for path in paths], LEVELS)
    assert differences(statistics, header(paths[0]), LEVELS[1]) == {}
    Image.new("RGBA", (60, 40)).save(tmp_path / "other.png")
    found = differences(statistics, header(tmp_path / "other.png"), torch.tensor([200.0, 12.0]))
    assert found == {
        "size": "60 x 40 pixels, trained on 50 to 52 x 40 to 44",
        "mode": "mode RGBA, trained on L, RGB",
        "brightness": "brightness 200, trained on 110 with a spread of 8.2",
    }


def test_statistics_survive_a_file(paths):
    statistics = training_statistics([header(path) for path in paths], LEVELS)
    assert ImageStatistics.from_dict(statistics.to_dict()) == statistics
    assert {type(v) for v in statistics.to_dict().values()} == {list}


GOOD = {"width": [5, 6], "height": [5, 5], "modes": ["RGB"], "brightness": [100.0, 5.0], "contrast": [20.0, 1.0]}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {k: v for k, v in GOOD.items() if k != "modes"},
        GOOD | {"more": [1, 2]},
        GOOD | {"width": None},
        GOOD | {"width": "56"},
        GOOD | {"width": {5: 6}},
        GOOD | {"width": [5]},
        GOOD | {"width": [5, 6, 7]},
        GOOD | {"width": [6, 5]},
        GOOD | {"width": [0, 5]},
        GOOD | {"width": [True, 5]},
        GOOD | {"height": [5.0, 6.0]},
        GOOD | {"height": torch.tensor([5, 6])},
        GOOD | {"modes": []},
        GOOD | {"modes": "RGB"},
        GOOD | {"modes": [1]},
        GOOD | {"brightness": [float("nan"), 1.0]},
        GOOD | {"brightness": [100.0, float("inf")]},
        GOOD | {"brightness": [10**400, 1.0]},
        GOOD | {"contrast": [20.0, 0.0]},
        GOOD | {"contrast": [20.0]},
        GOOD | {"contrast": [[20.0], [1.0]]},
    ],
)
def test_what_no_detector_wrote_is_refused(content):
    assert ImageStatistics.from_dict(GOOD).width == (5, 6)
    with pytest.raises((LookupError, TypeError, ValueError)):
        ImageStatistics.from_dict(content)
