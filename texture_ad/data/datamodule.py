"""The LightningDataModule: where the images come from, how the normal ones are split, how they are batched."""

import copy
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from texture_ad.data import embedded
from texture_ad.data.augmentation import Augmentation
from texture_ad.data.batches import (
    Batch,
    EpochShuffle,
    ImageBatches,
    Order,
    PictureBatches,
    SharedBatches,
    WithCopies,
    WithSyntheticDefects,
    load_tiles,
)
from texture_ad.data.geometry import (
    Geometry,
    Shape,
    Window,
    checked_shape,
    grid_windows,
    same_aspect,
    scaled_shape,
    tiles,
    typical_shape,
)
from texture_ad.data.images import (
    Frames,
    Reading,
    checked_levels,
    header,
    headers_of,
    resize_mask,
    training_levels,
)
from texture_ad.data.inspection import without_unusable
from texture_ad.data.layouts import (
    LAYOUTS,
    Layout,
    Places,
    Sample,
    calibration_folds,
    check_groups,
    check_masks,
    enough,
    fingerprint,
    layout_name,
    listed,
    scan,
    split_calibration,
    with_frames,
    with_groups,
    with_test_images,
)
from texture_ad.data.mvtec import is_published
from texture_ad.data.pictures import Picture
from texture_ad.data.roi import Area, Roi, counts, read_roi
from texture_ad.errors import ParameterError, UserError, did_you_mean
from texture_ad.parameters import Count, NonNegativeInt, Range, check, checked

T = TypeVar("T")
Images = ImageBatches | WithCopies | PictureBatches | WithSyntheticDefects
Source = Literal["auto", "mvtec", "folder", "embedded"]
FEW = 6  # pictures, too few to fit anything to some of them alone
DESCRIPTIONS = (".csv", ".md", ".pdf", ".txt")  # of files at the top of a folder that tell of it
LayoutName = Literal["auto", "mvtec", "mvtec2", "visa", "btad", "kolektorsdd2", "flat", "table"]


BTAD = ("01", "02", "03")  # its categories


def _locate_embedded(category: str | None) -> tuple[Path, str, str]:
    """Return `locate`'s answer for the embedded data."""
    if category is None or category not in embedded.TEXTURES:
        hint = did_you_mean(category, embedded.TEXTURES)
        raise ParameterError("category", category, f"{hint}embedded data has {', '.join(embedded.TEXTURES)}")
    return embedded.ensure(category), category, f"embedded {category} (generated, not a benchmark)"


def _has_layout(folder: Path) -> bool:
    """Return whether a folder is that of one texture, by itself."""
    return any(known.recognise(folder) for known in LAYOUTS.values())


def _locate_category(folder: Path, category: str | None, layout: str) -> tuple[Path, str, str]:
    """Return `locate`'s answer for a category in a data set's folder."""
    name = str(category)
    if not (folder / name).is_dir():
        if _has_layout(folder):
            raise ParameterError("category", category, f"{folder} is itself the folder of one texture")
        present = sorted(p.name for p in folder.iterdir() if p.is_dir())
        holds = f"{folder} holds {', '.join(present) or 'no folder'}"
        raise ParameterError("category", category, f"{did_you_mean(category, present)}{holds}")
    layout = layout_name(folder / name, layout)
    own = (layout == "mvtec" and not is_published(folder / name)) or (layout == "btad" and name not in BTAD)
    return folder / name, name, f"{'folder' if own else LAYOUTS[layout].title} {name}"


def locate(
    source: Source, root: str | None, category: str | None, layout: LayoutName, table: str | None
) -> tuple[Path, str, str]:
    """Find the folder with the images.

    Args:
        source: of the images, as in `TextureDataModule`.
        root: the data set's folder, or for "folder" the category's own.
        category: the texture.
        layout: of the category's folder.
        table: for "folder", the file that lists the images; without a root, they lie relative to its folder.

    Returns:
        The category's folder, its name, and the source's name as every table and figure shows it.

    Raises:
        ParameterError: a root or category that is missing or wrong.
        UserError: the layout is not known.
    """
    if source == "embedded" or (source == "auto" and not root):
        return _locate_embedded(category)
    if not root and table and source == "folder":
        root = str(Path(table).parent)
    if not root:
        raise ParameterError("root", root, f"no folder was given, and {source} needs the folder with the images")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ParameterError("root", root, "no such folder")
    if source == "folder":
        name = category or folder.resolve().name
        return folder, name, f"folder {name}"
    return _locate_category(folder, category, layout)


def _numbers(keys: Iterable[Hashable]) -> list[int]:
    """Return for each key its number, by the order in which they first occur."""
    found: dict[Hashable, int] = {}
    return [found.setdefault(key, len(found)) for key in keys]


def _unchanged(batch: T) -> T:
    """Return a batch as the data set gave it, where a loader expects to join single images."""
    return batch


@checked
class TextureDataModule(L.LightningDataModule):
    """Give normal images for training and validation, and all images of the test folder for the final metrics.

    Batches are those of `texture_ad.data.batches`. Batch sizes count all devices together.

    Args:
        source: "auto" (a data set where a root is given, else embedded), "mvtec" (MVTec AD or another data set with a
            folder for each category), "folder" or "embedded".
        root: the data set's folder, or for "folder" the category's own.
        category: the texture; for "folder" a name, None for the folder's, or a folder in a root that has no layout.
        layout: of the category's folder; "auto" tells it from what the folder holds.
        table: for "folder", CSV file with a row for each image: path, label and, optional, mask, split and group.
        normal: for "folder", where normal images lie: a folder, a file or a glob below the root, or a list of them.
        anomalous: likewise for anomalous images.
        masks: likewise for masks.
        group: regular expression; what it finds in a file's name or, where it has a slash, in the path below the root,
            is the image's group, such as a roll or an item. No group is both trained on and calibrated or tested on.
        test_fraction: share of the normal images that test, where the layout leaves that open.
        size: of the images in pixels: the shorter side, or [height, width]. A side alone keeps the median aspect of the
            training images; images of another aspect are scaled to the same size.
        tile: size in pixels of the tiles that pictures are cut into at their own resolution, a side or [height, width];
            None scales whole pictures to `size`.
        overlap: of neighbouring tiles in pixels.
        max_tiles: training tiles; of more, so many are drawn at random.
        batch_size: of training.
        eval_batch_size: of everything else.
        calibration_fraction: share of the other normal images that are calibration images, where the layout has none.
        roi: the region of interest, outside which nothing is learnt, scored or drawn: a mask's file, not 0 where
            pictures count; a box [top, left, bottom, right] or the width of a border that doesn't count, in pixels of a
            typical training image; None for whole pictures.
        range: [low, high], the values of images with more than 8 bits that become black and white; None takes them from
            the training images.
        frames: which images are read of a file that holds several: the "first", or "all"; "error" refuses it.
        unusable: what an image that can't be read, or a normal one of one colour in the roi, does: "error" ends the
            run, "skip" leaves it out, which takes a look at all pixels beforehand.
        strict: refuse anomalous images without a mask where others have one.
        cache_mb: MiB that decoded images may take; if they need more, they are decoded again in every epoch.
        num_workers: processes that decode when the images don't fit.
        seed: of the split, the shuffling, the synthetic defects and the changed copies.
        augmentation: changes copies of the training images, which every fit sees beside them; None for none.

    Attributes:
        folder: of the category.
        category: the texture's name.
        source_name: the source's name as every table and figure shows it.
        layout: the images of the category, once `setup` has run, as the attributes below.
        draws_test: whether the normal test images were drawn by the seed.
        reading: how files are read.
        interest: the region of interest, None for whole pictures.
        warnings: what was left out, or is not as it should be, a sentence each.
        geometry: from photographs to images.
        train_samples: the normal images for training, or their tiles, and once more for each changed copy.
        num_originals: how many of them are no copies.
        calibration_samples: the normal images for calibration.
        test_samples: the images of the test folder.
        has_masks: whether any anomalous test image has a mask.

    Raises:
        ParameterError: a parameter out of its range, or a root or category that is missing or wrong.
        UserError: in `setup`, images that are missing or can't be worked with.
    """

    layout: Layout
    draws_test: bool
    reading: Reading
    interest: Roi | None
    warnings: list[str]
    geometry: Geometry
    train_samples: list[Sample]
    num_originals: int
    calibration_samples: list[Sample]
    test_samples: list[Sample]
    has_masks: bool

    def __init__(
        self,
        source: Source,
        root: str | None,
        category: str | None,
        layout: LayoutName,
        table: str | None,
        normal: Places | None,
        anomalous: Places | None,
        masks: Places | None,
        group: str | None,
        test_fraction: Annotated[float, Range(0, 0.9, above=True)],
        size: int | Sequence[int],
        tile: int | Sequence[int] | None,
        overlap: NonNegativeInt,
        max_tiles: Count,
        batch_size: Count,
        eval_batch_size: Count,
        calibration_fraction: Annotated[float, Range(0, 0.9, above=True)],
        roi: Area,
        range: Sequence[float] | None,
        frames: Frames,
        unusable: Literal["error", "skip"],
        strict: bool,
        cache_mb: NonNegativeInt,
        num_workers: NonNegativeInt,
        seed: NonNegativeInt,
        augmentation: Augmentation | None = None,
    ):
        super().__init__()
        self.source = source
        self.root = root
        checked_shape("size", size)
        self.size = size
        self.tile = None if tile is None else checked_shape("tile", tile)
        if self.tile is not None:
            check("overlap", overlap, Annotated[int, Range(0, min(self.tile) - 1)])
        self.overlap = overlap
        self.max_tiles = max_tiles
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.calibration_fraction = calibration_fraction
        self.roi = roi
        self.range = checked_levels("range", range)
        self.frames = frames
        self.unusable = unusable
        self.strict = strict
        self.cache_mb = cache_mb
        self.num_workers = num_workers
        self.seed = seed
        self.augmentation = augmentation
        self.table = table
        self.places = {"normal": normal, "anomalous": anomalous, "masks": masks}
        self.group = group
        self.test_fraction = test_fraction
        own = {"table": table, **self.places, "layout": layout if layout == "table" else None}
        for name, value in own.items():
            if value is not None and source != "folder":
                raise ParameterError(name, value, f"is for the source folder, not for {source}")
        self.folder, self.category, self.source_name = locate(source, root, category, layout, table)
        self._overlooked = self._folder_named(category)
        if self._overlooked and not _has_layout(self.folder):
            self.folder, self._overlooked = self._overlooked, None
        self.layout_name = layout_name(self.folder, layout, table, self.places)
        self._ready = False

    def _folder_named(self, category: str | None) -> Path | None:
        """Return the folder in that of the source "folder" that is called as its category, if no places are given."""
        if self.source != "folder" or self.table or any(self.places.values()):
            return None
        return next((path for path in self.folder.iterdir() if path.name == category and path.is_dir()), None)

    def setup(self, stage: str | None = None) -> None:
        """List, split and, where they fit into memory, decode the images; a second call does nothing.

        Args:
            stage: of Lightning's trainer; all stages need the same.

        Raises:
            UserError: images that are missing or can't be worked with.
        """
        if self._ready:
            return
        self._find_images()
        if self.unusable == "skip" and self.interest is not None:  # which the sizes of usable images have told
            self._find_images(self.interest)
        self.warnings += self._outside()
        self.warnings += self._of_other_depth()
        pictures = (sample.picture for sample in self.train_samples)
        deep = (one for one in pictures if one not in self._headers or self._headers[one].deep)
        self.reading = Reading(self.range or training_levels(deep, self.interest), self.frames)
        self._make_batches()
        self._ready = True

    def _find_images(self, roi: Roi | None = None) -> None:
        """List and split the images, and find their geometry and region of interest.

        Args:
            roi: that normal images have to vary in, where unusable ones are left out.
        """
        self.layout = self._list_images(roi)
        self.warnings = [*self._about_left_out(), *self._read_headers()]
        if self._overlooked:
            whole = f"all of {self.folder} is read, and data.category={self.category} is a name for it"
            self.warnings.append(f"{whole}; to read its folder of that name alone, give data.root={self._overlooked}")
        self.train_samples, self.calibration_samples = self._split_calibration()
        self.test_samples, without = check_masks(self.layout.test)
        self.warnings += self._without_mask(without)
        self.has_masks = any(sample.mask for sample in self.test_samples)
        self.geometry = self._find_geometry()
        self.interest = read_roi(self.roi, self._typical, self.geometry.view)

    def _list_images(self, roi: Roi | None) -> Layout:
        """Return the layout, in which normal images test, and groups lie on one side."""
        found = scan(self.folder, self.layout_name, self.table, **self.places)
        if self.unusable == "skip":
            found = enough(self.folder, without_unusable(found, self.frames, roi))
        found = with_groups(found, self.group, self.folder)
        self.draws_test = found.undivided
        found = with_test_images(found, self.test_fraction, self.seed)
        check_groups(found)
        return found

    def _split_calibration(self) -> tuple[list[Sample], list[Sample]]:
        """Return the training images and the calibration images, which are the layout's own where it has some."""
        if self.layout.calibration:
            return self.layout.train, self.layout.calibration
        return split_calibration(self.layout.train, self.calibration_fraction, self.seed)

    @property
    def division(self) -> list[str]:
        """Return sentences on how the images were divided."""
        told = []
        left = len(self.layout.train)
        if self.draws_test:
            tested = sum(not sample.label for sample in self.test_samples)
            told.append(f"Of {left + tested} normal images, {tested} were drawn for testing by seed {self.seed}.")
        if self.layout.calibration and self.calibration_samples:
            told.append("The calibration images are those that the data set keeps for validation.")
        elif self.calibration_samples:
            held_out = len(self.calibration_samples)
            told.append(f"Of {left} normal images, {held_out} were drawn for calibration by seed {self.seed}.")
        if any(sample.group for sample in self.layout.samples):
            told.append("Images of one group are all training, all calibration or all test images.")
        return [*told, "Test images took no part in training or calibration."]

    @property
    def normal_samples(self) -> list[Sample]:
        """Return the images that train or calibrate."""
        return self.layout.train + self.layout.calibration

    def folds(self) -> list[list[Sample]]:
        """Return the normal images in folds: the calibration images, and others of about as many."""
        first = self.calibration_samples
        return [first, *calibration_folds(self._normal_but(first), len(first), self.seed)]

    def with_calibration(self, samples: list[Sample]) -> "TextureDataModule":
        """Return this data with other calibration images, none too, and all other normal images for training."""
        other = copy.copy(self)
        other.calibration_samples = samples
        other.train_samples = self._normal_but(samples)
        other._make_normal_batches()
        return other

    def _normal_but(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return the normal images without these."""
        left_out = set(samples)
        return [sample for sample in self.normal_samples if sample not in left_out]

    def _about_left_out(self) -> Iterator[str]:
        """Yield a sentence about each kind of file that is used for nothing."""
        for what, files in self.left_out.items():
            yield f"{len(files)} {what} of {self.folder} are used for nothing: {listed(files)}"

    @property
    def left_out(self) -> dict[str, list[Path]]:
        """Return what is used for nothing: a word for it to the files, but for those that describe the folder."""
        found = {}
        for what, paths in self.layout.left_out.items():
            files = [path.relative_to(self.folder) if path.is_relative_to(self.folder) else path for path in paths]
            files = [path for path in files if path.suffix not in DESCRIPTIONS or len(path.parts) > 1]
            if files:
                found[what] = files
        return found

    def _read_headers(self) -> Iterator[str]:
        """Make all frames of a file samples where that is asked for, or yield a sentence about those not read."""
        if self.frames == "all":
            self.layout = with_frames(self.layout)
        self._headers = headers_of(sample.picture for sample in self.layout.samples)
        if self.frames == "first":
            several = [path for (path, _), image in self._headers.items() if image.frames > 1]
            if several:
                yield f"{len(several)} files hold several images, of which the first alone is read: {listed(several)}"

    def _without_mask(self, samples: list[Sample]) -> Iterator[str]:
        """Yield a sentence about anomalous images without a mask where others have one, or refuse them."""
        if samples:
            problem = f"{len(samples)} anomalous images have no mask, or one that marks no pixel"
            files = listed([sample.path for sample in samples])
            if self.strict:
                raise UserError(f"{problem}: {files}; add their masks, or remove the images")
            yield f"{problem}; pixel metrics are without them: {files}"

    def _outside(self) -> Iterator[str]:
        """Yield a sentence about anomalous images whose defect lies outside the region of interest."""
        if self.interest is None:
            return
        masked = [sample for sample in self.test_samples if sample.mask]
        outside = [
            sample.path
            for sample in masked
            if not sample.read_mask(shape := self._shape(sample))[self.interest.at(shape).numpy()].any()
        ]
        if outside:
            yield (
                f"{len(outside)} anomalous images have no defect within data.roi, and count as anomalous all the same: "
                f"{listed(outside)}"
            )

    def _shape(self, sample: Sample) -> Shape:
        """Return (height, width) of a sample's picture.

        Raises:
            UserError: it can't be read.
        """
        return (self._headers.get(sample.picture) or header(*sample.picture)).shape

    def _find_geometry(self) -> Geometry:
        """Return the geometry that `size` asks for, and warn of images that have another aspect."""
        shapes = {picture: image.shape for picture, image in self._headers.items()}
        trained = [shapes[sample.picture] for sample in self.layout.train if sample.picture in shapes] or [(1, 1)]
        self._typical = typical_shape(trained)
        if self.tile is not None:
            return tiles(self.tile, self.overlap, trained, shapes.values())
        size = scaled_shape(self.size, trained) if isinstance(self.size, int) else checked_shape("size", self.size)
        stretched = [picture for picture, shape in shapes.items() if not same_aspect(shape, size)]
        if stretched:
            path, (height, width) = stretched[0][0], shapes[stretched[0]]
            self.warnings.append(
                f"{len(stretched)} of {len(self.layout.samples)} images have another aspect than {size[1]} x {size[0]} "
                f"px and are stretched or squeezed to it, first {path} ({width} x {height})"
            )
        return Geometry(size)

    def _of_other_depth(self) -> Iterator[str]:
        """Yield a sentence about files of another depth than most, whose brightness doesn't compare with theirs."""
        files = {path: image.deep for (path, _), image in self._headers.items()}
        deep, plain = ([path for path, one in files.items() if one is depth] for depth in (True, False))
        if deep and plain:
            count = len({sample.path for sample in self.layout.samples})
            few, depth = (deep, "more than 8 bits") if len(deep) < len(plain) else (plain, "8 bits")
            yield (
                f"{len(few)} of {count} files have {depth} a channel and the others have not, so that black and white "
                f"don't mean the same; give all one depth: {listed(few)}"
            )

    def _make_batches(self) -> None:
        """Make the data sets of training, calibration and test images."""
        self._make_normal_batches()
        self._test: Images = (
            PictureBatches(self.test_samples, self.geometry, reading=self.reading)
            if self.geometry.tiled
            else ImageBatches(self.test_samples, self.geometry.size, self._calibration.in_memory, reading=self.reading)
        )

    def _make_normal_batches(self) -> None:
        """Make the data sets of training and calibration images."""
        held_out = self.calibration_samples
        if self.geometry.tiled:
            self.train_samples = self._tiles(self.train_samples, self.max_tiles)
            held_out = self._tiles(held_out, max(1, round(self.max_tiles * self.calibration_fraction)))
        count = len(self.train_samples) + len(held_out) + (0 if self.geometry.tiled else len(self.test_samples))
        # An image has three bytes a pixel, its mask one.
        size = self.geometry.size
        in_memory = count * 4 * math.prod(size) <= self.cache_mb * 2**20
        learnt = partial(
            ImageBatches, size=size, in_memory=in_memory, training=True, reading=self.reading, roi=self.interest
        )
        originals = learnt(self.train_samples)
        self.num_originals = len(originals)
        self._train: Images = originals
        if self.augmentation is not None and self.augmentation.copies:
            self._train = WithCopies(originals, self.augmentation, self.seed)
            self.train_samples = self.train_samples * (1 + self.augmentation.copies)
        self._calibration = learnt(held_out)
        self._validation = WithSyntheticDefects(self._calibration, self.seed)

    def _tiles(self, samples: list[Sample], most: int) -> list[Sample]:
        """Return tiles of pictures as samples, `most` of them drawn at random where there are more, in order."""
        found = [
            replace(sample, window=window)
            for sample, shape in ((sample, self._shape(sample)) for sample in samples)
            for window in grid_windows(shape, self.geometry.size, self.overlap)
            if counts(self.interest, shape, window)
        ]
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(found), generator=generator)[:most].sort().values
        return [found[i] for i in chosen.tolist()]

    @property
    def picture_numbers(self) -> Tensor:
        """Return a number for each training image, (N,), that its changed copies share.

        So do all tiles of a picture, but where there are FEW pictures.
        """
        pictures = [sample.picture for sample in self.train_samples[: self.num_originals]]
        numbers = _numbers(pictures)
        if max(numbers) + 1 < FEW:
            numbers = list(range(len(pictures)))
        return torch.tensor(numbers).repeat(len(self.train_samples) // len(pictures))

    @property
    def training_pictures(self) -> list[tuple[Path, int]]:
        """Return the files of the training images and which frame of them, each once, in order."""
        return list(dict.fromkeys(sample.picture for sample in self.train_samples))

    def training_views(self) -> Iterator[Tensor]:
        """Yield whole training images as they are shown, uint8 (B, 3, H, W); of several processes each its own part."""
        if not self.geometry.tiled:
            yield from (batch["image"] for batch in self.normal_dataloader())
            return
        whole = list(dict.fromkeys(replace(sample, window=None) for sample in self.train_samples))
        pictures = PictureBatches(whole, self.geometry, reading=self.reading)
        for batch in self._loader(pictures, self.eval_batch_size):
            views = torch.stack([picture.view(self.geometry.view) for picture in batch["image"]])
            yield views if self.interest is None else self.interest.fill(views)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for all images, what each is for, their masks and the roi's file."""
        others = [Path(self.roi).expanduser()] if isinstance(self.roi, str) else []
        return fingerprint(self.layout, self.folder, others)

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

    def _loader(self, dataset: Images, size: int, order: Order | None = None) -> DataLoader:
        """Return a loader of batches of `size` images over all devices, in fixed order where no other is given."""
        order = SequentialSampler(dataset) if order is None else order
        return self._loader_of(dataset, SharedBatches(order, size))

    def _loader_of(self, dataset: Images, batches: Iterable[list[int]]) -> DataLoader:
        """Return a loader of these batches of numbers."""
        workers = 0 if dataset.in_memory else self.num_workers
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_unchanged,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def train_dataloader(self) -> DataLoader:
        """Return a loader of the training images, shuffled."""
        return self._loader(self._train, self.batch_size, EpochShuffle(self._train, self.seed))

    def normal_dataloader(self) -> DataLoader:
        """Return a loader of the training images in fixed order, in batches of `eval_batch_size`."""
        return self._loader(self._train, self.eval_batch_size)

    def chosen_dataloader(self, numbers: Sequence[int]) -> DataLoader:
        """Return a loader of the training images of these numbers; of several processes each gets all of them."""
        return self._loader_of(self._train, BatchSampler(numbers, self.eval_batch_size, drop_last=False))

    def calibration_dataloader(self) -> DataLoader:
        """Return a loader of the calibration images as the method is given them: scaled, or tiles of them."""
        return self._loader(self._calibration, self.eval_batch_size)

    def picture_dataloader(self) -> DataLoader:
        """Return a loader of the calibration images, for thresholds and standardisation; not of their tiles."""
        if self.geometry.tiled:
            pictures = PictureBatches(self.calibration_samples, self.geometry, reading=self.reading)
            return self._loader(pictures, self.eval_batch_size)
        return self.calibration_dataloader()

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the validation images: calibration images, then the same with synthetic defects."""
        return self._loader(self._validation, self.eval_batch_size)

    def synthetic_dataloader(self) -> DataLoader:
        """Return a loader of the calibration images with synthetic defects; not of their tiles."""
        if self.geometry.tiled:
            damaged = PictureBatches(self.calibration_samples, self.geometry, self.seed, self.reading, self.interest)
            return self._loader(damaged, self.eval_batch_size)
        count = len(self._calibration)
        return self._loader(self._validation, self.eval_batch_size, range(count, 2 * count))

    def test_dataloader(self) -> DataLoader:
        """Return a loader of the test images in fixed order."""
        return self._loader(self._test, self.eval_batch_size)

    def true_masks(self, indices: Iterable[int]) -> Iterator[np.ndarray | None]:
        """Yield the masks of these test images one by one, (H, W) bool in pixels of the files, True = defect.

        That of an anomalous image without a mask is None. Pixels outside the region of interest are masked entries.
        """
        for sample in (self.test_samples[index] for index in indices):
            shape = self._shape(sample)
            normal = None if sample.label else np.zeros(shape, bool)
            mask = sample.read_mask(shape) if sample.mask else normal
            if mask is not None and self.interest is not None:
                mask = np.ma.array(mask, mask=~self.interest.at(shape).numpy())
            yield mask

    def test_batch(self, indices: list[int]) -> Batch:
        """Return the test images of these numbers as the method is given them; of pictures that are cut, a tile each.

        Raises:
            UserError: it is not known which tile of an anomalous picture holds the defect.
        """
        if not self.geometry.tiled:
            batch = self._test.__getitems__(indices)
            return batch if self.interest is None else batch | {"image": self.interest.fill(batch["image"])}
        telling = [self._telling_tile(self.test_samples[i]) for i in indices]
        found = [load_tiles([sample], reading=self.reading, roi=self.interest)[0] for sample in telling]
        image, mask = (torch.stack(part) for part in zip(*found, strict=True))
        labels = torch.tensor([self.test_samples[i].label for i in indices])
        return {"image": image, "label": labels, "mask": mask, "index": torch.tensor(indices)}

    def _telling_tile(self, sample: Sample) -> Sample:
        """Return the tile round the middle of a picture's defect, or of a normal picture the tile in its middle."""
        if sample.label and sample.mask is None:
            raise UserError(f"{sample.path}: without a mask it is not known which tile holds the defect")
        shape = Picture(sample.path, self.reading, sample.frame).shape
        middle: Sequence[float] = [side / 2 for side in shape]
        if sample.mask is not None:
            middle = [float(np.median(where)) for where in sample.read_mask(shape).nonzero()]
        top, left = (
            min(max(0, round(at - length / 2)), max(0, side - length))
            for at, side, length in zip(middle, shape, self.geometry.size, strict=True)
        )
        return replace(sample, window=Window(top, left, *self.geometry.size))

    def test_shape(self, number: int) -> Shape:
        """Return (H, W) of the file of the test image of this number, in pixels."""
        return self._shape(self.test_samples[number])

    def test_mask(self, number: int) -> np.ndarray | None:
        """Return the mask of the test image of this number for drawings, bool (H, W) of the view, None without one."""
        sample = self.test_samples[number]
        if sample.mask is None:
            return None
        return resize_mask(sample.read_mask(self._shape(sample)), self.geometry.view).numpy()

    def test_view(self, number: int) -> np.ndarray:
        """Return the test image of this number for drawings, uint8 (H, W, 3) of the view, dark outside the roi."""
        if self.geometry.tiled:
            sample = self.test_samples[number]
            view = Picture(sample.path, self.reading, sample.frame).view(self.geometry.view)
        else:
            view = self._test.__getitems__([number])["image"][0]
        shown = view if self.interest is None else self.interest.shade(view)
        return shown.permute(1, 2, 0).numpy()
