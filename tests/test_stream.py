"""The report of a watched stream: its control charts against simulated streams, its page, its memory over restarts."""

import numpy as np
import pytest

from texture_ad.evaluation.stream import BLOCK, rank_chart, ranks, share_chart


def test_ranks_are_uniform_for_normal_images_whatever_their_scores():
    rng = np.random.default_rng(0)
    calibration, stream = np.exp(rng.normal(size=(2, 3000)))
    found = ranks(stream, calibration)
    assert found.mean() == pytest.approx(0.5, abs=0.02) and found.var() == pytest.approx(1 / 12, abs=0.005)
    assert np.allclose(ranks([0.5, 2.0, 9.0], [1.0, 2.0, 3.0]), [0.125, 0.5, 0.875])


@pytest.mark.parametrize("count", [20, 200])
def test_a_normal_stream_stays_in_control(count):
    """Few calibration images are no reason for an alarm: the limits know how few they are."""
    rng = np.random.default_rng(1)
    out = [rank_chart(rng.normal(size=300), rng.normal(size=count)).out().mean() for _ in range(200)]
    assert np.mean(out) < 0.01


def test_a_drift_below_the_threshold_is_seen_in_the_ranks_and_not_in_the_shares():
    rng = np.random.default_rng(2)
    calibration = rng.normal(size=200)
    stream = np.concatenate((rng.normal(size=300), rng.normal(loc=1.0, size=100)))
    chart = rank_chart(stream, calibration, first=1001)
    assert not chart.out()[:300].any() and chart.out()[-50:].mean() > 0.9 and chart.number[-1] == 1400
    assert not share_chart(stream > 4, 1 / 201).out().any()


def test_shares_are_those_of_blocks():
    above = np.zeros(2 * BLOCK + 10, bool)
    above[BLOCK : BLOCK + 20] = True
    chart = share_chart(above, 0.05, first=11)
    assert np.array_equal(chart.value, [0, 20 / BLOCK, 0]) and np.array_equal(chart.out(), [False, True, False])
    assert chart.number.tolist() == [10 + BLOCK, 10 + 2 * BLOCK, 20 + 2 * BLOCK]
    assert chart.high[2] > chart.high[0]  # a block of few images says less
