"""The LightningDataModule: where the images come from, how the normal ones are split, how they are batched."""

import difflib
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader, SequentialSampler

from texture_ad.data import embedded
from texture_ad.data.batches import Batch, EpochShuffle, ImageBatches, Order, SharedBatches, WithSyntheticDefects
from texture_ad.data.geometry import Geometry, Shape, checked_shape, same_aspect, scaled_shape
from texture_ad.data.images import shapes_of
from texture_ad.data.layouts import Layout, Sample, fingerprint, scan, split_calibration
from texture_ad.errors import ParameterError, UserError
from texture_ad.parameters import Count, NonNegativeInt, Range, checked

T = TypeVar("T")
Source = Literal["auto", "mvtec", "folder", "embedded"]


def _hint(category: object, present: Sequence[str]) -> str:
    """Return a question that names the category most like the one given, or nothing if none is like it."""
    close = difflib.get_close_matches(str(category), present, 1)
    return f"did you mean {close[0]}? " if close else ""


def _locate_embedded(category: str | None) -> tuple[Path, str, str]:
    """Return `locate`'s answer for the embedded data."""
    if category is None or category not in embedded.TEXTURES:
        hint = _hint(category, embedded.TEXTURES)
        raise ParameterError("category", category, f"{hint}embedded data has {', '.join(embedded.TEXTURES)}")
    return embedded.ensure(category), category, f"embedded {category} (generated, not a benchmark)"


def _locate_category(folder: Path, category: str | None) -> tuple[Path, str, str]:
    """Return `locate`'s answer for a category in MVTec AD's folder."""
    name = str(category)
    if not (folder / name).is_dir():
        present = sorted(p.name for p in folder.iterdir() if p.is_dir())
        holds = f"{folder} holds {', '.join(present) or 'no folder'}"
        raise ParameterError("category", category, f"{_hint(category, present)}{holds}")
    return folder / name, name, f"MVTec AD {name}"


def locate(source: Source, root: str | None, category: str | None) -> tuple[Path, str, str]:
    """Find the folder with the images.

    Args:
        source: of the images, as in `TextureDataModule`.
        root: MVTec AD's folder, or for "folder" the category's own.
        category: the texture.

    Returns:
        The category's folder, its name, and the source's name as every table and figure shows it.

    Raises:
        ParameterError: a root or category that is missing or wrong.
    """
    if source == "embedded" or (source == "auto" and not root):
        return _locate_embedded(category)
    if not root:
        raise ParameterError("root", root, f"no folder was given, and {source} needs the folder with the images")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ParameterError("root", root, "no such folder")
    if source == "folder":
        name = category or folder.resolve().name
        return folder, name, f"folder {name}"
    return _locate_category(folder, category)


def _unchanged(batch: T) -> T:
    """Return a batch as the data set gave it, where a loader expects to join single images."""
    return batch


@checked
class TextureDataModule(L.LightningDataModule):
    """Give normal images for training and validation, and all images of the test folder for the final metrics.

    Batches are those of `texture_ad.data.batches`. Batch sizes count all devices together.

    Args:
        source: "auto" (MVTec AD where a root is given, else embedded), "mvtec", "folder" or "embedded".
        root: MVTec AD's folder, or for "folder" the category's own.
        category: the texture; for "folder" a name, None for the folder's.
        size: of the images in pixels: the shorter side, or [height, width]. A side alone keeps the median aspect of the
            training images; images of another aspect are scaled to the same size.
        batch_size: of training.
        eval_batch_size: of everything else.
        calibration_fraction: share of the normal images that are calibration images.
        cache_mb: MiB that decoded images may take; if they need more, they are decoded again in every epoch.
        num_workers: processes that decode when the images don't fit.
        seed: of the split, the shuffling and the synthetic defects.

    Attributes:
        folder: of the category.
        category: the texture's name.
        source_name: the source's name as every table and figure shows it.
        layout: the images of the category, once `setup` has run, as the attributes below.
        geometry: from photographs to images.
        stretched: (height, width) of each image whose aspect is not that of the geometry.
        train_samples: the normal images for training.
        calibration_samples: the normal images for calibration.
        test_samples: the images of the test folder.
        has_masks: whether the anomalous test images have masks.

    Raises:
        ParameterError: a parameter out of its range, or a root or category that is missing or wrong.
        UserError: in `setup`, images that are missing or can't be worked with.
    """

    layout: Layout
    geometry: Geometry
    stretched: dict[Path, Shape]
    train_samples: list[Sample]
    calibration_samples: list[Sample]
    test_samples: list[Sample]
    has_masks: bool

    def __init__(
        self,
        source: Source,
        root: str | None,
        category: str | None,
        size: int | Sequence[int],
        batch_size: Count,
        eval_batch_size: Count,
        calibration_fraction: Annotated[float, Range(0, 0.9, above=True)],
        cache_mb: NonNegativeInt,
        num_workers: NonNegativeInt,
        seed: NonNegativeInt,
    ):
        super().__init__()
        self.source = source
        self.root = root
        checked_shape("size", size)
        self.size = size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.calibration_fraction = calibration_fraction
        self.cache_mb = cache_mb
        self.num_workers = num_workers
        self.seed = seed
        self.folder, self.category, self.source_name = locate(source, root, category)
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """List, split and, where they fit into memory, decode the images; a second call does nothing.

        Args:
            stage: of Lightning's trainer; all stages need the same.

        Raises:
            UserError: images that are missing or can't be worked with.
        """
        if self._ready:
            return
        self.layout = scan(self.folder)
        self.train_samples, self.calibration_samples = split_calibration(
            self.layout.train, self.calibration_fraction, self.seed
        )
        self.test_samples = self.layout.test
        self.has_masks = self.layout.has_masks
        self.geometry = self._find_geometry()
        self._make_batches()
        self._ready = True

    def _find_geometry(self) -> Geometry:
        """Return the geometry that `size` asks for, and note which images have another aspect."""
        shapes = shapes_of([sample.path for sample in self.layout.train + self.test_samples])
        trained = [shapes[sample.path] for sample in self.layout.train if sample.path in shapes]
        if isinstance(self.size, int):
            size = scaled_shape(self.size, trained or [(1, 1)])
        else:
            size = checked_shape("size", self.size)
        self.stretched = {path: shape for path, shape in shapes.items() if not same_aspect(shape, size)}
        return Geometry(size)

    def _make_batches(self) -> None:
        """Make the data sets of training, calibration and test images."""
        count = len(self.layout.train) + len(self.test_samples)
        # An image has three bytes a pixel, its mask one.
        size = self.geometry.size
        in_memory = count * 4 * math.prod(size) <= self.cache_mb * 2**20
        self._train = ImageBatches(self.train_samples, size, in_memory, training=True)
        self._calibration = ImageBatches(self.calibration_samples, size, in_memory, training=True)
        self._validation = WithSyntheticDefects(self._calibration, self.seed)
        self._test = ImageBatches(self.test_samples, size, in_memory)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for the names and bytes of all training and test images."""
        return fingerprint(self.layout, self.folder)

    def state_dict(self) -> dict[str, str]:
        """Return what a checkpoint keeps of the data: their fingerprint."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Check that the images are those of a checkpoint.

        Raises:
            UserError: they changed.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise UserError(f"{self.folder}: its images changed since this run's last checkpoint; start another run")

    def _loader(
        self, dataset: ImageBatches | WithSyntheticDefects, size: int, order: Order | None = None
    ) -> DataLoader:
        """Return a loader of batches of `size` images over all devices, in fixed order where no other is given."""
        order = SequentialSampler(dataset) if order is None else order
        workers = 0 if dataset.in_memory else self.num_workers
        return DataLoader(
            dataset,
            batch_sampler=SharedBatches(order, size),
            collate_fn=_unchanged,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def train_dataloader(self) -> DataLoader:
        """Return a loader of the training images, shuffled."""
        return self._loader(self._train, self.batch_size, EpochShuffle(self._train, self.seed))

    def normal_dataloader(self) -> DataLoader:
        """Return a loader of the training images in fixed order, in batches of `eval_batch_size`."""
        return self._loader(self._train, self.eval_batch_size)

    def calibration_dataloader(self) -> DataLoader:
        """Return a loader of the calibration images alone, for thresholds and standardisation."""
        return self._loader(self._calibration, self.eval_batch_size)

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the validation images: calibration images, then the same with synthetic defects."""
        return self._loader(self._validation, self.eval_batch_size)

    def synthetic_dataloader(self) -> DataLoader:
        """Return a loader of the calibration images with synthetic defects, those of the validation images."""
        count = len(self._calibration)
        return self._loader(self._validation, self.eval_batch_size, range(count, 2 * count))

    def test_dataloader(self) -> DataLoader:
        """Return a loader of the test images in fixed order."""
        return self._loader(self._test, self.eval_batch_size)

    def test_batch(self, indices: list[int]) -> Batch:
        """Return the test images of these numbers as one batch."""
        return self._test.__getitems__(indices)
