"""Model card and data card: they state the run's facts, and what can't be known they call unknown."""

from pathlib import Path

import pytest

from texture_ad.data.drift import ImageStatistics
from texture_ad.data.layouts import Sample
from texture_ad.reporting.cards import Facts, data_card, markdown, model_card
from texture_ad.reporting.report import write_report

HOSTILE = "<b>[x](y)|*\n# z"


def facts(**changes):
    """The facts of a run with 3 training, 2 calibration and 3 test images, but for these changes."""
    test = [Sample(Path("a.png")), *(Sample(Path(f"{i}.png"), 1, HOSTILE, Path("m.png")) for i in range(2))]
    metrics = {
        "method": "fusion",
        "data_source": f"folder {HOSTILE}",
        "data_fingerprint": "0123456789abcdef",
        "seed": 7,
        "threshold": 2.5,
        "threshold_origin": "for a false-alarm rate of 0.05",
        "threshold_promise": "of normal images 33.3% are expected",
        "versions": {"texture_ad": "0.1.0", "torch": "2"},
        "normal_images": 1,
        "anomalous_images": 2,
        "image_auroc": 0.75,
    }
    config = {
        "backbone": {
            "_target_": "texture_ad.models.backbone.Backbone",
            "name": "resnet18",
            "layers": ["layer1"],
            "weights": "pretrained",
        },
        "data": {"size": 64, "tile": None},
    }
    given = {
        "metrics": metrics,
        "config": config,
        "cross_fit": False,
        "command": "texture-ad run",
        "train": [Path(f"{i}.png") for i in range(3)],
        "calibration": [Sample(Path("4.png")), Sample(Path("5.png"))],
        "test": test,
        "copies": 0,
        "division": ["Of 5 normal images, 2 were drawn."],
        "left_out": {"files": 4},
        "images": ImageStatistics((60, 80), (64, 64), ("L", "RGB"), (90.0, 5.0), (15.0, 2.0)),
        "uses_backbone": True,
        "uses_spams": True,
        "uses_positions": True,
    }
    return Facts(**(given | changes))


def weights(**backbone):
    """The model card of a run with these settings of its backbone."""
    base = facts()
    return markdown(model_card(facts(config={**base.config, "backbone": {**base.config["backbone"], **backbone}})))


def test_the_model_card_states_the_runs_facts():
    text = markdown(model_card(facts()))
    for fact in (
        "3 photographs without defects",
        "0123456789abcdef",
        "The threshold, 2.5, is set for a false-alarm rate of 0.05 by 2 calibration images: other photographs",
        "of normal images 33.3% are expected",
        "On 1 normal and 2 anomalous test images.",
        "0.750",
        "each position of the image",
        "SPAMS",
        "texture-ad run",
    ):
        assert fact in text, fact
    everything = [Path(f"{i}.png") for i in range(5)]
    text = markdown(model_card(facts(cross_fit=True, train=everything, calibration=[])))
    assert "by all 5 photographs without defects, each scored by a detector that was fitted without it." in text
    assert "held out of training" not in text


def test_both_cards_tell_which_images_calibrate():
    told = "each scored by a detector that was fitted without it"
    for card in (model_card, data_card):
        assert told in markdown(card(facts(cross_fit=True))) and told not in markdown(card(facts()))


def test_limits_follow_the_facts():
    alone = markdown(model_card(facts(test=[], uses_spams=False, uses_backbone=False, copies=0)))
    assert "is unknown" in alone and "SPAMS" not in alone and "backbone's weights" not in alone
    one_kind = markdown(model_card(facts(test=[Sample(Path("a.png"))], copies=3)))
    assert "No anomalous test image was there" in one_kind and "3 test images are copies" in one_kind
    generated = facts(metrics=facts().metrics | {"data_source": "embedded carpet (generated, not a benchmark)"})
    assert "no figure here says anything of real surfaces" in markdown(model_card(generated))
    assert "texture\\_ad drew the images" in markdown(data_card(generated))
    assert "no figure here" not in markdown(model_card(facts()))
    assert "at each position of the image" in markdown(model_card(facts()))
    assert "at each position" not in markdown(model_card(facts(uses_positions=False)))


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({}, "terms derived from ImageNet"),
        ({"weights": "none"}, "random"),
        ({"weights": "/own/file.pt"}, "/own/file.pt, whose licence is not known"),
        ({"name": "efficientnet_lite0"}, "Apache License 2.0 as their package states"),
        ({"name": "vit_small_patch14_dinov2.lvd142m", "library": "timm"}, "page on the hub"),
    ],
)
def test_the_weights_licence_is_what_is_known_of_it(backbone, words):
    assert words in weights(**backbone).replace("\\", "")


def test_the_data_card_counts_every_image_once():
    text = markdown(data_card(facts()))
    rows = dict(
        [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(("| t", "| c", "| u"))
    )
    assert rows["training (normal)"] == "3" and rows["calibration (normal)"] == "2" and rows["test: good"] == "1"
    assert rows["used for nothing: files"] == "4"
    assert "Of 5 normal images, 2 were drawn." in text
    assert "3 images, 2 of them anomalous; 2 have a mask" in text and "60 to 80" in text and "L, RGB" in text
    assert "Who took the photographs" in text


def test_a_name_forms_no_markup(tmp_path):
    text = markdown(model_card(facts()))
    assert text.count("\n# ") == 0 and "<b>" not in text.replace("\\<", "")
    metrics = facts().metrics | {"recall": 1.0, "false_positive_rate": 0.0}
    page = write_report(tmp_path, metrics, [], "again", [model_card(facts()), data_card(facts())]).read_text("utf-8")
    assert "<b>" not in page and "Data card: folder" in page and "<details><summary>Model card" in page
