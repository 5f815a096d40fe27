"""Stage 1 on a backbone that stays as it is: the flow learns the density of its patch features, the head CutPaste."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from texture_ad.data.batches import SEED_STEP
from texture_ad.data.cutpaste import chips, cutpaste
from texture_ad.data.datamodule import TextureDataModule
from texture_ad.errors import ParameterError
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.fusion.features import KeptFeatures, TrainingFeatures
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.flow import negative_log_likelihood
from texture_ad.parameters import Count, Positive, Range, checked
from texture_ad.training.distributed import gather
from texture_ad.training.schedules import one_cycle

PASTED = 0.25  # share of a position's cell from which on it counts as pasted
POOL = 200_000  # normal feature vectors, about, that are kept to draw from for flow and head each
WHITENING = "whitening."  # begins its keys in a checkpoint
CHUNK = 16  # images that are pasted on and extracted at a time
WATCHED = 20_000  # calibration patches, about, whose likelihood says when training ends


class FeatureDraws(IterableDataset):
    """Yield random whitened feature vectors: for the flow, and for the head, of normal and of pasted images.

    Args:
        flow: (N, D), what the flow models of the training images.
        normal: (N', C), of the training images; empty without a head.
        pasted: (M, C), of pasted positions; likewise.
        around: (M', C), of the other positions of pasted images; likewise.
        batch: of each step.
        steps: of an epoch.
        seed: of the draws.
    """

    def __init__(self, flow: Tensor, normal: Tensor, pasted: Tensor, around: Tensor, batch: int, steps: int, seed: int):
        self.pools = {"flow": flow, "normal": normal, "pasted": pasted, "around": around}
        self.counts = {"flow": batch, "normal": batch // 4, "pasted": batch // 2, "around": batch // 4}
        self.steps = steps
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Take the draws of another epoch; a resumed run sees those of an undisturbed one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * SEED_STEP + self.epoch)
        for _ in range(self.steps):
            yield {
                name: pool[torch.randint(len(pool), (self.counts[name],), generator=generator)]
                for name, pool in self.pools.items()
                if len(pool)
            }


@checked
class Density(L.LightningModule):
    """Train the flow and the head on whitened patch features, until calibration patches get no likelier or epochs end.

    The flow's loss is its negative log-likelihood per dimension (equation 6 of Guo, Song, Ma). The head's is the
    cross-entropy of telling pasted positions from normal ones. The flow's likelihood alone says when both stop.

    Args:
        detector: whose whitening, flow and head are trained.
        features: the training images' patch features.
        lr: of Adam, peak of a one-cycle schedule.
        batch: feature vectors in a step.
        epoch_steps: steps of an epoch, after which the calibration patches are looked at.
        patience: epochs without a better likelihood after which training ends.
        pasted_images: training images that patches are pasted on, one of each kind.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(
        self,
        detector: FusionDetector,
        features: TrainingFeatures,
        lr: Positive,
        batch: Annotated[int, Range(4)],
        epoch_steps: Count,
        patience: Count,
        pasted_images: Count,
    ):
        super().__init__()
        self.whitening = detector.whitening
        self.flow = detector.flow
        self.head = detector.head
        self._detector = [detector]  # not as a module: its backbone is not trained
        self.features = features
        self.lr = lr
        self.batch = batch
        self.epoch_steps = epoch_steps
        self.patience = patience
        self.pasted_images = pasted_images
        self.taught = detector.weight("head") > 0
        self.calibration_features = KeptFeatures(0)
        if not self.taught:  # DDP waits for the gradient of every parameter that asks for one
            self.head.requires_grad_(False)
        detector.backbone.requires_grad_(False)

    @property
    def detector(self) -> FusionDetector:
        """Return the detector whose parts are trained."""
        return self._detector[0]

    @torch.no_grad()
    def prepare(self, data: TextureDataModule, device: torch.device, seed: int) -> tuple[DataLoader, DataLoader]:
        """Fit the whitening; return loaders of the draws to train on and of the calibration images' features.

        Args:
            data: set up.
            device: of the backbone.
            seed: of pastes and draws.
        """
        self.detector.to(device)
        self._data = data
        self.whitening.fit(lambda: self.features.stream(data.normal_dataloader(), device), data.picture_numbers)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            flow, normal = self._normal(data, device)
            pasted, around = self._pasted(data, device) if self.taught else (normal, normal)
            calibration = self._calibration(data, device)
        draws = FeatureDraws(flow, normal, pasted, around, self.batch, self.epoch_steps, seed)
        return DataLoader(draws, batch_size=None), DataLoader(calibration, batch_size=None)  # type: ignore[arg-type]

    def _normal(self, data: TextureDataModule, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what flow (N, D) and head (N', C) model of the training images, on the CPU, about POOL of each.

        Without a head there is nothing for it.
        """
        flow = []
        head = []
        images = len(data.train_samples)
        for batch in data.normal_dataloader():
            patches = self.features.of_all_processes(batch, device)
            numbers = gather(batch["index"].to(device))
            whitened = self.whitening.cross_fitted(patches, numbers).flatten(0, 1)
            flow.append(_random_part(self.detector.flow_features(whitened), POOL * len(patches) / images).cpu())
            layers = self.detector.layer_features(whitened)
            head.append(_random_part(layers, self.taught * POOL * len(patches) / images).cpu())
        return torch.cat(flow), torch.cat(head)

    def _calibration(self, data: TextureDataModule, device: torch.device) -> list[Tensor]:
        """Return what the flow models of each batch of calibration images, (N, D) on the CPU, about WATCHED in all."""
        found = []
        # Tiles come in other batches later, where whole pictures are measured.
        room = 0 if self.detector.geometry.tiled else self.features.room
        self.calibration_features = KeptFeatures(room)
        for batch in data.calibration_dataloader():
            images = batch["image"].to(device)
            maps = self.detector.patch_features(images)
            self.calibration_features.keep(images, maps)
            features = self.detector.flow_features(self.whitening(flatten_patches(maps)))
            found.append(_random_part(features, WATCHED * len(maps) / len(data.calibration_samples)).cpu())
        return found

    def _pasted(self, data: TextureDataModule, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return whitened features of pasted and of the other positions of pasted images, (M, C) each, on the CPU.

        Raises:
            ParameterError: the grid is too coarse for both to occur.
        """
        numbers = torch.randperm(len(data.train_samples))[: self.pasted_images].tolist()
        chosen = torch.cat([batch["image"] for batch in data.chosen_dataloader(numbers)])
        on = []
        around = []
        for part in chosen.split(CHUNK):
            damaged, mask = paste_all(part.float() / 255)
            maps = self.detector.patch_features((damaged * 255).round().to(torch.uint8).to(device))
            grid = (maps.shape[2], maps.shape[3])
            cover = F.adaptive_avg_pool2d(mask[:, None].float().to(device), grid).flatten()
            features = self.detector.layer_features(self.whitening(flatten_patches(maps)))
            on.append(features[cover >= PASTED].cpu())
            outside = features[cover == 0]
            around.append(_random_part(outside, len(outside) / 2).cpu())
        pasted, others = torch.cat(on), torch.cat(around)
        if not len(pasted) or not len(others):
            problem = f"a grid of {grid[0]} x {grid[1]} is too coarse to tell pasted positions from others; expected 0"
            raise ParameterError("head_weight", self.detector.weight("head"), f"{problem}, or larger images")
        return pasted, others

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the images' fingerprint, which a fit without a data module leaves out, but no whitening.

        It is large, and fitted before the first step of a resumed run too.
        """
        checkpoint["images"] = self._data.state_dict()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: state[key] for key in state if not key.startswith(WHITENING)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the images are those of the checkpoint, and add the whitening that it lacks."""
        self._data.load_state_dict(checkpoint["images"])
        checkpoint["state_dict"] |= self.whitening.state_dict(prefix=WHITENING)

    def on_train_epoch_start(self) -> None:
        """Draw what belongs to this epoch."""
        self.trainer.train_dataloader.dataset.set_epoch(self.current_epoch)  # type: ignore[union-attr]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return Adam and its one-cycle schedule."""
        # Fused it takes a third of the time, but Lightning clips its gradients in single precision alone.
        fused = self.trainer.precision == "32-true"
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.lr, fused=fused)
        return one_cycle(optimizer, self.trainer.estimated_stepping_batches, rise=0.1)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of the flow and the head."""
        if self.global_step == 0:
            self.flow.track(batch["flow"], 1.0)
        loss = nll = self._nll(batch["flow"])
        if self.taught:
            examples = torch.cat((batch["pasted"], batch["around"], batch["normal"]))
            target = torch.zeros(len(examples), device=examples.device)
            target[: len(batch["pasted"])] = 1
            with torch.autocast(self.device.type, enabled=False):
                pretext = self.head.loss(examples, target)
            self.log("train/pretext", pretext, sync_dist=True)
            loss = nll + pretext
        self.log("train/nll", nll, prog_bar=True, sync_dist=True)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def _nll(self, features: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):  # a likelihood needs all digits
            return negative_log_likelihood(*self.flow(features)).mean() / self.flow.dim

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Log the negative log-likelihood per dimension of calibration patches."""
        self.log("val/nll", self._nll(batch), prog_bar=True, batch_size=len(batch), sync_dist=True)


def _random_part(rows: Tensor, count: float) -> Tensor:
    """Return about `count` random rows of (N, ...), all of them where there are fewer; one at least, unless it is 0."""
    return rows[torch.randperm(len(rows), device=rows.device)[: max(round(count), int(count > 0))]]


def paste_all(images: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle, a scar and a chip on each image, so that one pass of the backbone sees all three.

    Args:
        images: float (B, 3, H, W) in [0, 1].

    Returns:
        The pasted images, float (B, 3, H, W), and where they were pasted, bool (B, H, W).
    """
    pasted = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for paste in (partial(cutpaste, kind="cutpaste"), partial(cutpaste, kind="scar"), chips):
        images, mask = paste(images)
        pasted = pasted | mask
    return images, pasted
