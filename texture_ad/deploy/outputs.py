"""Files of what was found, where they are asked for: masks, anomaly maps, lists of regions, MVTec AD 2's submission.

All of them are in pixels of the photographs. tifffile and Pillow are imported where they are used.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from texture_ad.deploy.results import Result, message
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import Decision
from texture_ad.evaluation.regions import enlarged_map
from texture_ad.files import atomic_path, write_text

# Below the folder of results, by what asks for it.
FOLDERS = {
    "overlays": "pictures",
    "masks": "masks",
    "maps": "maps",
    "anomaly_images": "submission",
    "anomaly_images_thresholded": "submission",
}
LISTS = {"regions.json": "regions", "coco.json": "regions"}
SCORES = b"path,score,"  # as scores.csv begins

WATCHED = "watched.json"  # beside a watched folder's scores.csv: which folder that is, and the states of its files


class Wanted(NamedTuple):
    """Say which files are written beside scores.csv.

    Attributes:
        pictures: overlays/, a panel of each photograph.
        masks: masks/, PNG, 255 where a region is, else 0.
        maps: maps/, TIFF of float16 scores.
        regions: regions.json, and coco.json for tools that read COCO's format.
        submission: anomaly_images/ and anomaly_images_thresholded/ as MVTec AD 2's server wants them.
    """

    pictures: bool = False
    masks: bool = False
    maps: bool = False
    regions: bool = False
    submission: bool = False


def holds_results(folder: Path) -> bool:
    """Return whether `predict` wrote its results into a folder: no picture in those of FOLDERS is a photograph."""
    try:
        with open(folder / "scores.csv", "rb") as file:
            return file.read(len(SCORES)) == SCORES
    except OSError:
        return False


def written_at(output: Path, wanted: Wanted) -> dict[Path, int]:
    """Return when each file in the folders of what is wanted was written, in nanoseconds."""
    folders = (output / name for name, by in FOLDERS.items() if getattr(wanted, by))
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def left_before(output: Path, wanted: Wanted, before: dict[Path, int]) -> list[str]:
    """Return what lies in `output` of an earlier command, and was not written anew.

    Args:
        output: folder of results.
        wanted: which files the command wrote.
        before: `written_at` at its start.
    """
    left = [name for name, by in (FOLDERS | LISTS).items() if not getattr(wanted, by) and (output / name).exists()]
    now = written_at(output, wanted)
    kept = Counter(path.relative_to(output).parts[0] for path, time in before.items() if now.get(path) == time)
    return [*left, *(f"{count} files of {name}" for name, count in kept.items())]


def watched_folder(output: Path) -> str | None:
    """Return the folder whose record scores.csv in `output` is, None where it is none of a watched folder.

    Raises:
        UserError: the file that says so is damaged.
    """
    path = output / WATCHED
    if not (path.is_file() and (output / "scores.csv").is_file()):
        return None
    try:
        with open(path, encoding="utf-8") as lines:
            return str(json.loads(lines.readline())["folder"])
    except (ValueError, TypeError, KeyError) as error:
        problem = "damaged, so that it is not known whose record scores.csv beside it is; give another output"
        raise UserError(f"{path}: {problem}") from error


def check_unwatched(output: Path) -> None:
    """Check that scores.csv in `output` may be replaced.

    Raises:
        ParameterError: it is the record of a watched folder.
    """
    folder = watched_folder(output)
    if folder is not None:
        problem = f"its scores.csv is the record of the watched folder {folder}; give another folder"
        raise ParameterError("output", output, problem)


def check_distinct(paths: Sequence[Path]) -> None:
    """Check that no two photographs share a name but for its suffix, which a submission's files don't keep.

    Raises:
        ParameterError: two do.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.with_suffix(""), path)
        if other != path:
            problem = f"{other} and {path} would be one file; rename one"
            raise ParameterError("submission", True, problem)


def write_files(result: Result, name: Path, source: Path, output: Path, wanted: Wanted) -> None:
    """Write mask and map of a photograph below `output`, where they are wanted and its method has a map.

    Args:
        result: with its map and mask.
        name: of the photograph, relative to `source`.
        source: the folder that is scored; a submission names <object>/<split>, its last two parts.
        output: folder.
        wanted: which files.
    """
    if result.anomaly_map is None or result.mask is None or result.size is None:
        return
    masks = [Path("masks", f"{name}.png")] if wanted.masks else []
    maps = [Path("maps", f"{name}.tiff")] if wanted.maps else []
    if wanted.submission:
        place = Path(*source.resolve().parts[-2:], name)
        masks.append(Path("anomaly_images_thresholded", place.with_suffix(".png")))
        maps.append(Path("anomaly_images", place.with_suffix(".tiff")))
    for path in masks:
        write_mask(output / path, result.mask)
    for path in maps:
        write_map(output / path, enlarged_map(result.anomaly_map, result.size, result.roi))


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) bool as PNG, 255 where it is True."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(as_bytes(mask)).save(temporary, format="PNG")


def as_bytes(mask: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) bool as uint8, 255 where it is True: in a picture of one bit some readers see 1 there."""
    return mask.astype(np.uint8) * 255


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Write an anomaly map (H, W) as TIFF of float16; scores beyond float16's range become its largest."""
    import tifffile

    limit = float(np.finfo(np.float16).max)
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, anomaly_map.clip(-limit, limit).astype(np.float16), compression="zlib")


def write_regions(results: Sequence[Result], decision: Decision, output: Path) -> None:
    """Write regions.json, the results as a webhook gets them, and coco.json."""
    told = [message(result, decision) for result in results]
    write_text(output / "regions.json", json.dumps(told, indent=1) + "\n")
    write_text(output / "coco.json", json.dumps(coco(results), indent=1) + "\n")


def coco(results: Sequence[Result]) -> dict[str, list[dict[str, Any]]]:
    """Return images and regions in COCO's format of detections; each region's `score` is its peak."""
    sizes = {result.name: result.size for result in results if result.size}
    images = [
        {"id": number, "file_name": name, "height": height, "width": width}
        for number, (name, (height, width)) in enumerate(sizes.items(), 1)
    ]
    numbers = {image["file_name"]: image["id"] for image in images}
    found = [(numbers[result.name], region) for result in results for region in result.regions]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "bbox": list(region.box),
            "area": region.area,
            "score": region.peak,
            "iscrowd": 0,
        }
        for number, (image, region) in enumerate(found, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "anomaly"}]}
