"""Images as ready batches, and which images each batch holds, in what order, on one process or several.

A batch is a dict: `image` uint8 (B, 3, H, W) RGB, `label` (B,) 0 or 1, `mask` bool (B, H, W), and `index` (B,) into the
samples. Of whole pictures that the detector cuts into tiles, `image` is a list of B `Picture`s.
"""

from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler, Sampler, SequentialSampler

from texture_ad.data.augmentation import Augmentation
from texture_ad.data.geometry import Geometry, Shape
from texture_ad.data.images import Reading, in_turn, resize_mask
from texture_ad.data.layouts import Sample
from texture_ad.data.pictures import DamagedPicture, Picture, read_scaled
from texture_ad.data.roi import Roi, one_colour
from texture_ad.data.synthetic import synthetic_defects
from texture_ad.errors import ParameterError, UserError

Batch = dict[str, Any]
SEED_STEP = 1_000_003  # between the random streams of two seeds, more than there are epochs or images


def load_sample(
    sample: Sample, size: Shape, training: bool = False, reading: Reading | None = None, roi: Roi | None = None
) -> tuple[Tensor, Tensor]:
    """Read one sample and its mask.

    Args:
        sample: which files to read.
        size: (h, w) of the image in pixels.
        training: refuse an image of one colour.
        reading: how files are read, None for the limits of their types.
        roi: the region of interest, whose pixels replace all others.

    Returns:
        The image, uint8 (3, h, w), and its mask, bool (h, w), False everywhere if it has none.

    Raises:
        UserError: unreadable, or a training image of one colour.
    """
    image, shape = read_scaled(sample.path, size, reading, sample.frame)
    image = image if roi is None else roi.fill(image)
    if training and (image == image[:, :1, :1]).all():
        raise UserError(one_colour(sample.path, roi))
    mask = torch.zeros(size, dtype=torch.bool)
    if sample.mask:
        mask = resize_mask(sample.read_mask(shape), size)
    return image, mask


def load_tiles(
    samples: Sequence[Sample], training: bool = False, reading: Reading | None = None, roi: Roi | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Read tiles of one picture, which is decoded once.

    Args:
        samples: the picture's, each with its window.
        training: refuse a picture of one colour.
        reading: how files are read, None for the limits of their types.
        roi: the region of interest of the picture, whose pixels replace all others; something of each tile counts.

    Returns:
        Each tile, uint8 (3, h, w), and its mask, bool (h, w), False everywhere if the picture has none.

    Raises:
        UserError: unreadable, or a training picture whose tiles are all of one colour.
    """
    picture = Picture(samples[0].path, reading, samples[0].frame)
    windows = [sample.window for sample in samples if sample.window is not None]
    tiles = [picture.window(window) for window in windows]
    if roi is not None:
        tiles = [roi.fill_window(tile, picture.shape, window) for tile, window in zip(tiles, windows, strict=True)]
    if training and all((tile == tiles[0][:, :1, :1]).all() for tile in tiles):
        raise UserError(one_colour(picture.path, roi))
    masks = [torch.zeros(tile.shape[1:], dtype=torch.bool) for tile in tiles]
    if samples[0].mask:
        truth = samples[0].read_mask(picture.shape)
        for mask, (top, left, height, width) in zip(masks, windows, strict=True):
            part = truth[top : top + height, left : left + width]
            mask[: part.shape[0], : part.shape[1]] = torch.from_numpy(part)
    return list(zip(tiles, masks, strict=True))


class ImageBatches(Dataset[Batch]):
    """Give samples as ready batches: from memory, or decoded when asked for.

    Args:
        samples: which images.
        size: (h, w) of the images in pixels.
        in_memory: decode all images now and keep them.
        training: refuse images of one colour.
        reading: how files are read, None for the limits of their types.
        roi: the region of interest, whose pixels replace all others.

    Raises:
        UserError: an image that can't be worked with, now or when it is asked for.
    """

    def __init__(
        self,
        samples: list[Sample],
        size: Shape,
        in_memory: bool,
        training: bool = False,
        reading: Reading | None = None,
        roi: Roi | None = None,
    ):
        self.samples = samples
        self.reading = reading
        self.roi = roi
        self.size = size
        self.training = training
        self.labels = torch.tensor([s.label for s in samples])
        self._memory = self._decode_all() if in_memory else None

    def _decode_all(self) -> tuple[Tensor, Tensor]:
        """Return all images, uint8 (N, 3, h, w), and all masks, bool (N, h, w)."""
        images = torch.empty(len(self.samples), 3, *self.size, dtype=torch.uint8)
        masks = torch.empty(len(self.samples), *self.size, dtype=torch.bool)
        with ThreadPoolExecutor() as pool:
            # Tiles of one picture follow one another.
            files = [list(group) for _, group in groupby(self.samples, lambda sample: (sample.path, sample.frame))]
            loaded = (pair for pairs in pool.map(self._load, files) for pair in pairs)
            for i, (image, mask) in enumerate(loaded):
                images[i] = image
                masks[i] = mask
        return images, masks

    def _load(self, samples: list[Sample]) -> list[tuple[Tensor, Tensor]]:
        """Read the samples of one file and their masks."""
        with in_turn(samples[0].path):
            if samples[0].window is not None:
                return load_tiles(samples, self.training, self.reading, self.roi)
            return [load_sample(sample, self.size, self.training, self.reading, self.roi) for sample in samples]

    def roi_of(self, number: int) -> Roi | None:
        """Return the region of interest of one image, or tile."""
        sample = self.samples[number]
        if self.roi is None or sample.window is None:
            return self.roi
        return Roi(self.roi.at(Picture(sample.path, frame=sample.frame).shape, sample.window))

    @property
    def in_memory(self) -> bool:
        """Return whether a batch is a mere copy, for which worker processes are of no use."""
        return self._memory is not None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the batch of these images."""
        index = torch.tensor(indices)
        if self._memory is not None:
            image, mask = (part[index] for part in self._memory)
        else:
            pairs = [pair for i in indices for pair in self._load([self.samples[i]])]
            image, mask = (torch.stack(part) for part in zip(*pairs, strict=True))
        return {"image": image, "label": self.labels[index], "mask": mask, "index": index}


class WithCopies(Dataset[Batch]):
    """Give training images, then changed copies of them, the same ones in every epoch.

    Args:
        images: the training images.
        augmentation: changes them.
        seed: of the changes.
    """

    in_memory = False  # worker processes can change them

    def __init__(self, images: ImageBatches, augmentation: Augmentation, seed: int):
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of images and copies."""
        return len(self.images) * (1 + self.augmentation.copies)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the batch of these images; those after the training images are copies."""
        n = len(self.images)
        batch = self.images.__getitems__([i % n for i in indices])
        for row, i in enumerate(indices):
            if i >= n:
                generator = torch.Generator().manual_seed(self.seed * SEED_STEP + i)
                batch["image"][row] = self.augmentation(batch["image"][row], generator)
        batch["index"] = torch.tensor(indices)
        return batch


class PictureBatches(Dataset[Batch]):
    """Give whole pictures that the detector cuts into tiles, as `Picture`s, which decode themselves.

    Args:
        samples: which pictures.
        geometry: of the tiles.
        seed: of synthetic defects, one on every picture; None for pictures as they are.
        reading: how files are read, None for the limits of their types.
        roi: the region of interest, in which synthetic defects lie; the detector leaves out all else by itself.
    """

    in_memory = True  # nothing to do for worker processes

    def __init__(
        self,
        samples: list[Sample],
        geometry: Geometry,
        seed: int | None = None,
        reading: Reading | None = None,
        roi: Roi | None = None,
    ):
        self.samples = samples
        self.roi = roi
        self.reading = reading
        self.geometry = geometry
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the batch of these pictures; masks have the size of the geometry's view."""
        pictures = [self._picture(i) for i in indices]
        labels = [self.samples[i].label if self.seed is None else 1 for i in indices]
        masks = [self._mask(self.samples[i], picture) for i, picture in zip(indices, pictures, strict=True)]
        return {
            "image": pictures,
            "label": torch.tensor(labels),
            "mask": torch.stack(masks),
            "index": torch.tensor(indices),
        }

    def _picture(self, number: int) -> Picture:
        sample = self.samples[number]
        if self.seed is None:
            return Picture(sample.path, self.reading, sample.frame)
        seed = self.seed * SEED_STEP + number
        return DamagedPicture(sample.path, self.geometry.size, seed, self.reading, sample.frame, self.roi)

    def _mask(self, sample: Sample, picture: Picture) -> Tensor:
        if sample.mask is None:
            return torch.zeros(self.geometry.view, dtype=torch.bool)
        return resize_mask(sample.read_mask(picture.shape), self.geometry.view)


class WithSyntheticDefects(Dataset[Batch]):
    """Give calibration images, then the same images with synthetic defects, the same ones in every epoch.

    Args:
        normals: the calibration images.
        seed: of the defects.
    """

    in_memory = False  # worker processes can draw the defects

    def __init__(self, normals: ImageBatches, seed: int):
        self.normals = normals
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of images, with and without defects."""
        return 2 * len(self.normals)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the batch of these images; those from the second half on have defects."""
        n = len(self.normals)
        batch = self.normals.__getitems__([i % n for i in indices])
        batch["label"] = torch.tensor([i // n for i in indices])
        for row, i in enumerate(indices):
            if i >= n:
                # One generator an image, so that the defects don't depend on the batch size.
                generator = torch.Generator().manual_seed(self.seed * SEED_STEP + i)
                roi = self.normals.roi_of(i - n)
                inside = None if roi is None else roi.inside
                image, mask = synthetic_defects(batch["image"][row : row + 1], generator, inside)
                batch["image"][row] = image[0] if roi is None else roi.fill(image[0])
                batch["mask"][row] = mask[0]
        return batch


class EpochShuffle(RandomSampler):
    """Shuffle by seed and epoch alone, so that a resumed run sees the order of an undisturbed one.

    Args:
        dataset: whose length counts.
        seed: of the order.
    """

    generator: torch.Generator

    def __init__(self, dataset: Sized, seed: int):
        super().__init__(dataset, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the order to that of one epoch; Lightning calls this before each epoch."""
        self.generator.manual_seed(self.seed * SEED_STEP + epoch)


Order = SequentialSampler | EpochShuffle | range  # gives the indices of an epoch's images


class SharedBatches(Sampler[list[int]]):
    """Give batches of indices, of which each process takes its part: no sample is lost, none is seen twice.

    A last batch with fewer samples than there are processes joins the one before, so that every process has something
    to do.

    Args:
        sampler: of the whole data set, in the same order in every process.
        batch_size: of all processes together.
    """

    def __init__(self, sampler: Order, batch_size: int):
        self.sampler = sampler
        self.batch_size = batch_size

    def _bounds(self) -> list[int]:
        """Return where each batch starts, and the end of the last.

        Raises:
            ParameterError: more processes, one a device, than images in a batch.
        """
        count = len(self.sampler)
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if count and min(count, self.batch_size) < processes:
            raise ParameterError(
                "devices",
                processes,
                f"more than there are images in a batch (batch size {self.batch_size}, {count} images); use fewer "
                "devices or a larger batch",
            )
        bounds = list(range(0, count, self.batch_size))
        if len(bounds) > 1 and count - bounds[-1] < processes:
            bounds.pop()
        return [*bounds, count]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._bounds()) - 1

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's part of each batch."""
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        order = list(self.sampler)
        for start, end in pairwise(self._bounds()):
            size = end - start
            yield order[start + size * rank // processes : start + size * (rank + 1) // processes]
