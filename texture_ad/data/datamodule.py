"""The LightningDataModule: where the images come from, how the normal ones are split, how they are batched."""

import difflib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from texture_ad.data import embedded
from texture_ad.data.images import read_image, read_mask, resize, resize_mask
from texture_ad.data.layouts import Sample, scan
from texture_ad.data.synthetic import synthetic_defects
from texture_ad.errors import UserError, check_number
from texture_ad.training.distributed import SharedBatches

SOURCES = ("auto", "mvtec", "folder", "embedded")


def locate(source: str, root: str | None, category: str | None) -> tuple[Path, str, str]:
    """Turns the data group's choice into a folder.

    Returns:
        The category's folder, its name, and the source's name as every table and figure shows it.

    Raises:
        UserError: a root or category that is missing or wrong.
    """
    if source not in SOURCES:
        raise UserError(f"data.source={source}: expected one of {', '.join(SOURCES)}")
    if source == "auto":
        source = "mvtec" if root else "embedded"
    if source == "embedded":
        if category not in embedded.TEXTURES:
            close = difflib.get_close_matches(str(category), embedded.TEXTURES, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"data.category={category}: {hint}embedded data has {', '.join(embedded.TEXTURES)}")
        return embedded.ensure(category), category, f"embedded {category} (generated, not a benchmark)"
    if not root:
        where = "set data.root or MVTEC_AD_ROOT" if source == "mvtec" else "set data.root"
        raise UserError(f"data={source}: no data.root was given; {where} to the folder with the images")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"data.root={root}: no such folder; import MVTec AD by python -m texture_ad.data.mvtec ARCHIVE ROOT"
        )
    if source == "folder":
        return folder, category or folder.resolve().name, f"folder {category or folder.resolve().name}"
    if not (folder / str(category)).is_dir():
        present = sorted(p.name for p in folder.iterdir() if p.is_dir())
        close = difflib.get_close_matches(str(category), present, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"data.category={category}: {hint}{folder} holds {', '.join(present) or 'no folder'}")
    return folder / category, category, f"MVTec AD {category}"


def load_sample(sample: Sample, size: int, training: bool = False) -> tuple[Tensor, Tensor]:
    """One sample as uint8 (3, size, size) and its mask, bool (size, size), False where there is none.

    Raises:
        UserError: unreadable, or a training image of one colour.
    """
    image = read_image(sample.path)
    if training and (image == image[0, 0]).all():
        raise UserError(f"{sample.path}: one colour all over, nothing to learn from; remove this exposure")
    mask = torch.zeros(size, size, dtype=torch.bool)
    if sample.mask:
        mask = resize_mask(read_mask(sample.mask, image.shape[:2]), size)
    return resize(image, size), mask


class _Batches(Dataset):
    """Samples as ready batches: from memory when they fit, else decoded when asked for."""

    def __init__(self, samples: list[Sample], size: int, cache: bool, training: bool = False):
        self.samples = samples
        self.size = size
        self.training = training
        self.labels = torch.tensor([s.label for s in samples])
        self.images = self.masks = None
        if cache:
            self.images = torch.empty(len(samples), 3, size, size, dtype=torch.uint8)
            self.masks = torch.empty(len(samples), size, size, dtype=torch.bool)
            with ThreadPoolExecutor() as pool:
                for i, (image, mask) in enumerate(pool.map(lambda s: load_sample(s, size, training), samples)):
                    self.images[i] = image
                    self.masks[i] = mask

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices)
        if self.images is not None:
            image = self.images[index]
            mask = self.masks[index]
        else:
            pairs = [load_sample(self.samples[i], self.size, self.training) for i in indices]
            image, mask = (torch.stack(part) for part in zip(*pairs, strict=True))
        return {"image": image, "label": self.labels[index], "mask": mask, "index": index}


class _WithDefects(Dataset):
    """Calibration images, then the same images with synthetic defects, the same ones in every epoch."""

    def __init__(self, normals: _Batches, seed: int):
        self.normals = normals
        self.seed = seed

    def __len__(self) -> int:
        return 2 * len(self.normals)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        n = len(self.normals)
        batch = self.normals.__getitems__([i % n for i in indices])
        batch["label"] = torch.tensor([i // n for i in indices])
        for row, i in enumerate(indices):
            if i >= n:
                # One generator an image, so that the defects don't depend on the batch size.
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
                image, mask = synthetic_defects(batch["image"][row : row + 1], generator)
                batch["image"][row] = image[0]
                batch["mask"][row] = mask[0]
        return batch


def _identity(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


class EpochShuffle(RandomSampler):
    """Shuffles by seed and epoch alone, so that a resumed run sees the order of an undisturbed one.

    Lightning calls `set_epoch` before each epoch.
    """

    def __init__(self, dataset: Dataset, seed: int):
        super().__init__(dataset, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed * 1_000_003 + epoch)


class TextureDataModule(L.LightningDataModule):
    """Normal images for training and validation, all images of the test folder for the final metrics.

    Batches are dicts: `image` uint8 (B, 3, size, size) RGB, `label` (B,) 0 or 1, `mask` bool (B, size, size),
    `index` (B,) into train_samples, calibration_samples or test_samples.

    Args:
        source: "auto" (MVTec AD where a root is given, else embedded), "mvtec", "folder" or "embedded".
        root: MVTec AD's folder, or for "folder" the category's own.
        category: the texture.
        size: side of the square images in pixels, 32 to 8192.
        batch_size: of training, at least 1; eval_batch_size: of everything else. Over all devices together.
        calibration_fraction: of the normal images to hold out, in (0, 0.9].
        cache_mb: budget for decoded images; beyond it they are decoded again in every epoch.
        num_workers: processes that decode when the images don't fit.
        seed: of the split, the shuffling and the synthetic defects.

    Raises:
        UserError: a parameter out of its range, or (in setup) data that is missing or wrong.
    """

    def __init__(
        self,
        source: str = "auto",
        root: str | None = None,
        category: str | None = None,
        size: int = 256,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        calibration_fraction: float = 0.2,
        cache_mb: int = 4096,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        for key, value, least in (
            ("size", size, 32),
            ("batch_size", batch_size, 1),
            ("cache_mb", cache_mb, 0),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            check_number(f"data.{key}", value, least, 8192 if key == "size" else None, whole=True)
        check_number("data.calibration_fraction", calibration_fraction, 0, 0.9, above=True)
        self.source = source
        self.root = root
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
        if self._ready:
            return
        self.layout = scan(self.folder)
        normal = self.layout.train
        order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(self.seed)).tolist()
        count = min(max(1, round(self.calibration_fraction * len(normal))), len(normal) - 1)
        self.calibration_samples = [normal[i] for i in sorted(order[:count])]
        self.train_samples = [normal[i] for i in sorted(order[count:])]
        self.test_samples = self.layout.test
        self.has_masks = self.layout.has_masks
        count = len(normal) + len(self.test_samples)
        cache = count * 4 * self.size**2 <= self.cache_mb * 2**20
        self._train = _Batches(self.train_samples, self.size, cache, training=True)
        self._val = _WithDefects(_Batches(self.calibration_samples, self.size, cache, training=True), self.seed)
        self._test = _Batches(self.test_samples, self.size, cache)
        self._ready = True

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the names and bytes of all training and test images."""
        total = hashlib.sha256()
        for sample in self.layout.train + self.layout.test:
            total.update(os.fsencode(sample.path.relative_to(self.folder)))
            total.update(hashlib.sha256(sample.path.read_bytes()).digest())
        return total.hexdigest()[:16]

    def state_dict(self) -> dict:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise UserError(f"{self.folder}: its images changed since this run's last checkpoint; give another run_dir")

    def _loader(self, dataset: Dataset, size: int, shuffle: bool = False) -> DataLoader:
        sampler = EpochShuffle(dataset, self.seed) if shuffle else SequentialSampler(dataset)
        workers = 0 if getattr(dataset, "images", None) is not None else self.num_workers
        batches = SharedBatches(sampler, size)
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_identity,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader(self._train, self.batch_size, shuffle=True)

    def normal_dataloader(self) -> DataLoader:
        """The training images in fixed order, in the dictionary's batches."""
        return self._loader(self._train, self.eval_batch_size)

    def calibration_dataloader(self) -> DataLoader:
        """The calibration images alone, for thresholds and standardisation."""
        return self._loader(self._val.normals, self.eval_batch_size)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._val, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self._test, self.eval_batch_size)

    def test_batch(self, indices: list[int]) -> dict[str, Tensor]:
        """The test images of these numbers, for pictures."""
        return self._test.__getitems__(indices)
