"""What experiments.criterion makes of patch maps: it must say of the default what the detector itself says."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import untrained_detector

from experiments.criterion import (
    Maps,
    Variant,
    chosen,
    correlations,
    criteria,
    fused_weights,
    leave_one_out,
    map_metrics,
    means_of_top,
    only,
    patch_maps,
    simplex,
    variants,
    weightings,
)
from texture_ad.data.geometry import Geometry
from texture_ad.evaluation.localization import image_scores, top_positions


def maps_with_defects(part: int) -> Maps:
    """Return maps of noise; a defect stands out in one part alone, by far."""
    generator = torch.Generator().manual_seed(0)
    normal, synthetic, test = (torch.randn(n, 4, 6, 6, generator=generator) for n in (10, 20, 12))
    synthetic[:, part, 2:5, 2] += 30
    test[6:, part, 1, 1:4] += 30
    defects = torch.zeros(20, 6, 6)
    defects[:, 2:5, 2] = 1
    labels = torch.tensor([0] * 6 + [1] * 6)
    excess = {"normal": torch.zeros(10), "synthetic": torch.zeros(20), "test": torch.zeros(12)}
    return Maps(normal, synthetic, defects, test, excess, labels, learnt=0.5, weights=(3.0, 1.0, 1.0, 1.0))


@pytest.mark.parametrize("part", range(4))
def test_a_part_that_sees_the_defects_alone_is_missed_by_every_figure(part):
    maps = maps_with_defects(part)
    every = variants()
    name = ("gaussian", "head", "flow", "dictionary")[part]
    found = {key: criteria(maps, every[key]) for key in ("default", f"-{name}", name)}
    assert found["default"]["test"] == found[name]["test"] == found["default"]["synthetic positions"] == 1
    for key in ("test", "synthetic AUROC", "synthetic positions"):
        assert found[f"-{name}"][key] < 0.85
    assert found["default"]["synthetic distance"] > 3 > found[f"-{name}"]["synthetic distance"]


@pytest.mark.parametrize("trust", [0, 40])
def test_the_default_scores_as_the_detector_does(trust):
    detector = untrained_detector(gaussian_weight=3.0, head_weight=0.5, flow_weight=2.0, trust=trust)
    detector.set_trust(60)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    parts = detector.measure(images).parts
    detector.shared_limit.fill_(detector.shared(parts).median())
    known = SimpleNamespace(learnt=float(detector.learnt), weights=detector.weights)
    fused = patch_maps(detector.standardised(parts), fused_weights(known))
    assert torch.allclose(fused, detector.fuse(parts), atol=1e-4)
    expected = image_scores(top_positions(detector.fuse(parts), 5, 1)[1])
    assert torch.allclose(means_of_top(fused, 5), expected, atol=1e-4)
    excess = detector.excess(parts)
    assert torch.allclose(detector(images).scores, expected + fused_weights(known)[2] * excess, atol=1e-4)
    assert excess.min() == 0 < excess.max()


def test_what_a_centred_map_lacks_counts_by_the_flows_weight():
    maps = maps_with_defects(1)
    maps.excess["test"] += 100 * maps.labels
    every = variants()
    assert criteria(maps, every["flow"])["test"] == criteria(maps, every["-head"])["test"] == 1
    assert criteria(maps, every["gaussian"])["test"] < 0.85


def test_smoothing_keeps_a_constant_map_and_the_mean_of_any_other():
    flat = torch.full((1, 4, 9, 9), 2.0)
    assert torch.allclose(patch_maps(flat, (1, 1, 0, 0), sigma=1.5), torch.full((1, 9, 9), 4.0), atol=1e-5)
    spike = torch.zeros(1, 4, 21, 21)
    spike[0, 2, 10, 10] = 1
    smoothed = patch_maps(spike, (0, 0, 1, 0), sigma=1.0)
    assert float(smoothed.sum()) == pytest.approx(1, abs=1e-5) and 0.1 < float(smoothed.max()) < 0.2


def test_a_grid_of_weights_is_complete():
    found = simplex(3, 0.25)
    assert len(set(found)) == len(found) == 15 and all(sum(w) == pytest.approx(1) for w in found)
    assert (0.25, 0.25, 0.5) in found and (0, 0, 1) in found


def test_maps_are_judged_with_all_parts_and_without_each(monkeypatch):
    def true_masks(numbers):
        for number in numbers:
            mask = np.zeros((48, 48), bool)
            mask[8:16, 8:32] = number >= 6
            yield mask

    data = SimpleNamespace(test_samples=range(12), has_masks=True, true_masks=true_masks, geometry=Geometry((48, 48)))
    monkeypatch.setattr("experiments.criterion.data_of", lambda folder: data)
    found = map_metrics(Path(), maps_with_defects(2))
    assert found.keys() == {"default", "-gaussian", "-head", "-flow", "-dictionary"}
    assert found["-flow"]["aupro_05"] < 0.3 < 0.7 < min(found[n]["aupro_05"] for n in ("default", "-gaussian", "-head"))
    data.has_masks = False
    assert map_metrics(Path(), maps_with_defects(2)) == {}


def test_tables_say_what_a_part_adds_and_how_a_criterion_ranks():
    maps = maps_with_defects(3)
    found = [
        {"texture": t, "seed": s, "variants": {n: criteria(maps, v) for n, v in variants().items()}}
        for t in ("a", "b")
        for s in (0, 1)
    ]
    *rows, mean = leave_one_out(found, "image AUROC", "variants", "test")
    assert [row["image AUROC"] for row in rows] == ["a", "b"] and mean["default"] == 1
    assert mean["-dictionary"] > 0.2 > abs(mean["-head"])
    ranked = correlations(found)
    assert (
        ranked[0]["synthetic positions"] == ranked[1]["synthetic positions"] and ranked[0]["synthetic AUROC"][0] > 0.3
    )
    # On the only other texture another part tells the defects: what is best there is worse here than the oracle.
    other = maps_with_defects(0)
    pair = [
        {"texture": name, "variants": {"default": criteria(m, variants()["default"])}, "weightings": weightings(m)}
        for name, m in (("a", maps), ("b", other))
    ]
    first, second, mean = chosen(pair)
    best = [w for w, test in zip(simplex(4, 0.1), pair[1]["weightings"]["grid"], strict=True) if test == 1]
    assert first["by the other textures"] == [criteria(maps, Variant(lambda _: best[0]))["test"]]
    assert first["oracle"] == second["oracle"] == [1] and mean["by the other textures"] < 1
    assert "by the other textures" not in chosen(pair[:1])[0]
    alone = Variant(lambda _: only(maps, ["dictionary"]))
    assert criteria(maps, alone)["test"] == 1
