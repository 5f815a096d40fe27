"""The suite has no GPU. On torch's meta device, too, a tensor that was left on the CPU is refused."""

import numpy as np
import pytest
import torch
from helpers import scored_on_meta, untrained_detector
from PIL import Image

from texture_ad.data.geometry import tiles
from texture_ad.data.pictures import Picture
from texture_ad.data.roi import read_roi

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{}, {"sigma": 4.0}, {"flow_centred": False}, {"features": "latent"}])
def test_the_fusion_scores_where_its_images_are(options, monkeypatch):
    scored_on_meta(untrained_detector(**options), IMAGES, monkeypatch)


def test_a_region_of_interest_lies_where_the_images_are(monkeypatch):
    detector = untrained_detector()
    detector.roi = read_roi(10, (64, 64), (64, 64))
    scored_on_meta(detector, IMAGES, monkeypatch)


def test_tiles_are_measured_where_the_detector_is(tmp_path):
    Image.fromarray(np.zeros((100, 150, 3), np.uint8)).save(tmp_path / "strip.png")
    detector = untrained_detector()
    detector.set_geometry(tiles((64, 64), 8, [(100, 150)]))
    parts = detector.to("meta").measure_picture(Picture(tmp_path / "strip.png")).parts
    assert parts.is_meta


def test_a_tensor_on_the_cpu_is_noticed(monkeypatch):
    detector = untrained_detector()
    map_floor = detector.map_floor.expand(2)[:, None, None]
    monkeypatch.setattr(detector, "raised", lambda maps: maps.maximum(map_floor))
    with pytest.raises(RuntimeError, match="meta"):
        scored_on_meta(detector, IMAGES, monkeypatch)
