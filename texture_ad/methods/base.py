"""The interface of every method: fitted, calibrated, saved, loaded and exported by the same calls.

A method is built, then `fit`. Calibration images are measured once (`measure`); `standardise` and `calibrate` take it
from there. A finished detector is called with images and returns a `Prediction`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.data.drift import ImageStatistics
from texture_ad.data.geometry import Geometry, Shape, Tiling, Window
from texture_ad.data.images import Reading
from texture_ad.data.pictures import Picture, read_scaled
from texture_ad.data.roi import Roi, checked_roi, counts, gather_pixels
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import Decision, FalseAlarmRate, conformal_threshold, false_alarms, spread_of
from texture_ad.evaluation.localization import top_positions
from texture_ad.files import save_atomic
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import Count, Score, arguments_of, checked

if TYPE_CHECKING:
    import lightning as L
    from optuna.trial import Trial

    from texture_ad.data.datamodule import TextureDataModule
    from texture_ad.training.cache import Cache

FORMAT = "texture_ad.detector"
VERSION = 14
Upsampling = Literal["bilinear", "bicubic"]
CPU_PIXELS = 2**20  # of the tiles that are measured at a time
GPU_PIXELS = 2**22
TILE_PRIOR = 8  # tiles: how much all positions weigh at each single one


class Prediction(NamedTuple):
    """Hold what a detector says of B images.

    Attributes:
        scores: (B,), higher is more anomalous.
        anomaly_maps: (B, H, W) at the images' size, None for a method without maps.
        positions: (B, top, 2) rows and columns of the highest positions of the patch map, None without maps.
        grid: (h, w) of the patch map, None without maps.
    """

    scores: Tensor
    anomaly_maps: Tensor | None
    positions: Tensor | None
    grid: tuple[int, int] | None

    @staticmethod
    def cat(predictions: "Sequence[Prediction]") -> "Prediction":
        """Join the predictions of several batches, all by one detector."""
        if len(predictions) == 1:
            return predictions[0]
        scores, maps, positions, grids = zip(*predictions, strict=True)
        return Prediction(
            torch.cat(scores),
            None if maps[0] is None else torch.cat(maps),
            None if positions[0] is None else torch.cat(positions),
            grids[0],
        )


class Measurement(NamedTuple):
    """Hold what a method measures of B images, before calibration brings it to a common scale.

    Attributes:
        scores: (B,), None where the image score comes from the patch map.
        parts: (B, P, h, w) patch maps of P parts, None for a method without maps.
    """

    scores: Tensor | None
    parts: Tensor | None

    @staticmethod
    def cat(measurements: "Sequence[Measurement]") -> "Measurement":
        """Join the measurements of several batches."""
        scores, parts = zip(*measurements, strict=True)
        return Measurement(
            None if scores[0] is None else torch.cat(scores),
            None if parts[0] is None else torch.cat(parts),
        )


@dataclass(frozen=True)
class Provenance:
    """Say what a detector was made from.

    Attributes:
        data_source: its name, as every table and figure shows it.
        category: the texture's name.
        data_fingerprint: of the images, 16 hex digits.
        seed: of the run.
        false_alarm_rate: share of normal images that was asked to lie above the threshold.
        pixel_false_alarm_rate: share of them that was asked to have a pixel above the pixel threshold.
        versions: package to version.
        training_images: what they look like, None if it is not known.
    """

    data_source: str
    category: str
    data_fingerprint: str
    seed: int
    false_alarm_rate: float
    pixel_false_alarm_rate: float
    versions: Mapping[str, str]
    training_images: ImageStatistics | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return asdict(self) | {"training_images": self.training_images and self.training_images.to_dict()}

    @classmethod
    def from_dict(cls, values: object) -> "Provenance":
        """Check and take over what `to_dict` returned.

        Raises:
            LookupError, TypeError, ValueError: another content.
        """
        if not isinstance(values, dict):
            raise TypeError("its provenance is no dict")
        kinds = {
            "data_source": str,
            "category": str,
            "data_fingerprint": str,
            "seed": int,
            "false_alarm_rate": float,
            "pixel_false_alarm_rate": float,
        }
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"its {name} is no {kind.__name__}")
        versions = values["versions"]
        if not isinstance(versions, dict) or not all(isinstance(v, str) for pair in versions.items() for v in pair):
            raise TypeError("its versions are no names")
        images = values["training_images"]
        return cls(
            **{name: values[name] for name in kinds},
            versions=versions,
            training_images=None if images is None else ImageStatistics.from_dict(images),
        )


class Fitting(Protocol):
    """Offer what a method may use while it is fitted; the pipeline's run is one.

    Attributes:
        data: set up; without calibration images where the method is fitted to all normal images.
        folder: of the run, for checkpoints.
        seed: of the run.
        cache: shared between runs, None for none.
        trial: of a search, whose training may be pruned, None for none.
        stage1_epochs: how many epochs of stage 1 are to be trained, None where calibration images tell.
    """

    data: "TextureDataModule"
    folder: Path
    cache: "Cache | None"
    trial: "Trial | None"
    stage1_epochs: int | None

    @property
    def seed(self) -> int:
        """Return the run's seed."""

    def make(self, part: str, **arguments: Any) -> Any:
        """Return the part of this name, made with the run's settings and these arguments."""

    def trainer(self, stage: str, callbacks: Sequence["L.Callback"] = (), **options: Any) -> "L.Trainer":
        """Return a trainer whose checkpoints lie in the stage's folder."""

    def clock(self) -> float:
        """Return seconds, as if this run made everything that it found in the cache."""

    def get_or_create_stage1(self, state: Mapping[str, Tensor], create: Callable[[], dict]) -> dict:
        """Return what `create` returns for the untrained modules' `state`, from the cache where it is there."""


def enlarge(maps: Tensor, size: Sequence[int], upsampling: Upsampling) -> Tensor:
    """Return maps (B, h, w) at another size, (B, H, W), by a matrix product a side: runtimes are slow at bicubic."""
    rows, columns = (
        F.interpolate(
            torch.eye(n, dtype=maps.dtype, device=maps.device)[None, None],
            (side, n),
            mode=upsampling,
            align_corners=False,
        )[0, 0]
        for n, side in zip(maps.shape[-2:], size, strict=True)
    )
    return rows @ maps @ columns.T


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Return maps (B, H, W) smoothed by a Gaussian of `sigma` pixels, along rows and then columns."""
    # Reflected at its borders, a map has no more than it holds.
    radius = min(int(4 * sigma + 0.5), *(side - 1 for side in maps.shape[-2:]))
    x = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = F.softmax(-0.5 * (x / sigma) ** 2, 0)
    padded = F.pad(maps[:, None], [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def _threshold_at(own: Tensor, scores: Tensor, false_alarm_rate: float | None) -> float:
    """Return a detector's own threshold, or that of another rate by the calibration scores (n,)."""
    return float(own) if false_alarm_rate is None else conformal_threshold(scores, false_alarm_rate)


def _highest(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Return the image scores (B,) and the highest score of each map, (B,), or (0,) without maps."""
    maps = prediction.anomaly_maps
    return prediction.scores, prediction.scores[:0] if maps is None else maps.amax((1, 2))


def _plain(value: Any) -> Any:
    """Return an argument as a file holds it: a part by its settings, a sequence as a list."""
    if isinstance(value, nn.Module):
        return value.settings
    return list(value) if isinstance(value, list | tuple) else value


def _examples(found: object, size: Shape) -> Tensor:
    """Check the example images of a file, uint8 (n, 3, H, W) of this size, none larger than the file.

    Raises:
        TypeError, ValueError: they are none.
    """
    if not isinstance(found, Tensor) or found.dtype != torch.uint8 or not found.is_contiguous():
        raise TypeError("its examples are no images")
    if len(found) and found.shape[1:] != (3, *size):
        raise ValueError(f"its examples are {tuple(found.shape)}, not of its size {size}")
    return found


class AnomalyDetector(nn.Module, ABC):
    """Score images by one method.

    A subclass defines `fit` and `measure`, and where its map has several parts, `standardise` and `fuse`.

    Its arguments are those of the subclass, which is `checked`.

    Attributes:
        name: of the method.
        uses_backbone: its first argument is a Backbone.
        uses_spams: whether SPAMS, which is GPL-3, learns its dictionary.
        mixed_precision: whether it can be trained in mixed precision.
        several_processes: whether several processes can fit it together.
        uses_positions: whether it learns every position of an image by itself, so that of tiles it takes those of
            strips alone.
        top: highest positions that are located.
        min_distance: between two of them, in positions.
        upsampling: of patch maps to anomaly maps. Bicubic ones may leave the range of the patches' scores a little.
        sigma: Gaussian smoothing of the anomaly map, in pixels at a size of 224; 0 for none.
        settings: the arguments as plain values, but for the backbone; those of a part are its own settings.
        geometry: from photographs to the images that it scores; `set_geometry` sets it.
        reading: how files of photographs are read.
        roi: the region of interest, outside which nothing has a score; None for whole pictures.
        provenance: what it was made from, None before it was.
        examples: (n, 3, H, W) uint8, some normal images, on which other runtimes are compared with it.
        threshold: (), an image is called anomalous where its score is greater.
        pixel_threshold: (), a pixel of such an image is called anomalous where its score is greater; NaN for a method
            without maps.
        calibration_scores: (n,), image scores of the calibration images.
        calibration_maxima: (n,), the highest score in each one's anomaly map; empty for a method without maps.
        tile_moments: (2 P h w,), mean and deviation of each part at each position of a tile; empty without tiles.
        map_floor: (), score of a typical normal position; pictures draw it dark.
    """

    name: ClassVar[str]
    uses_backbone: ClassVar[bool] = False
    uses_spams: bool = False
    mixed_precision: ClassVar[bool] = False
    several_processes: ClassVar[bool] = False
    uses_positions: bool = False
    top: int
    min_distance: int
    upsampling: Upsampling = "bilinear"
    sigma: float = 0.0
    backbone: Backbone
    geometry: Geometry
    threshold: Tensor
    pixel_threshold: Tensor
    calibration_scores: Tensor
    calibration_maxima: Tensor
    tile_moments: Tensor
    map_floor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.settings = {name: _plain(value) for name, value in arguments_of(self).items() if name != "backbone"}
        self.provenance: Provenance | None = None
        self.examples = torch.zeros(0, dtype=torch.uint8, device="cpu")
        self.reading = Reading()
        self.roi: Roi | None = None
        self._tile_grid: Shape | None = None
        for name in ("threshold", "pixel_threshold", "map_floor"):
            self.register_buffer(name, torch.tensor(float("nan")))
        for name in ("calibration_scores", "calibration_maxima", "tile_moments"):
            self.register_buffer(name, torch.zeros(0))

    @classmethod
    def assemble(cls, make: Callable[..., Any], **options: Any) -> "AnomalyDetector":
        """Return an untrained detector without a geometry.

        Args:
            make: returns the part of a name, such as "backbone".
            options: the method's own settings.
        """
        if cls.uses_backbone:
            options["backbone"] = make("backbone")
        return cls(**options)

    def set_geometry(self, geometry: Geometry) -> None:
        """Set what the detector sees of a photograph.

        Raises:
            ParameterError: the method can't work with it.
        """
        if self.uses_positions and not geometry.keeps_places:
            problem = f"{self.name} learns every position of an image by itself, which tiles don't have"
            raise ParameterError("tile", list(geometry.size), f"{problem}; leave tile out")
        self.geometry = geometry

    @property
    def device(self) -> torch.device:
        """Return where the detector's tensors are."""
        return self.threshold.device

    def fit_memory(self) -> tuple[int, int]:
        """Return the bytes that statistics of single positions take in the detector, and at most while it is fitted."""
        return 0, 0

    @abstractmethod
    def fit(self, fitting: Fitting) -> dict[str, float]:
        """Learn from the training images; return what was measured on the way."""

    @abstractmethod
    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""

    def check_updatable(self) -> None:
        """Check that `update` can add to what was learnt; a method that defines the one defines the other.

        Raises:
            ParameterError: the method, or its settings, keep too little to add to.
        """
        raise ParameterError("method", self.name, "can't be updated; fit it again on all images")

    def update(self, images: Iterable[Tensor]) -> None:
        """Add further normal images to what was learnt, without those of the fit.

        Args:
            images: batches, uint8 (B, 3, H, W) each, as `fill` returns them.

        Raises:
            ParameterError: by `check_updatable`.
        """
        self.check_updatable()

    def standardise(self, parts: Tensor) -> None:
        """Bring the parts (N, P, h, w) of all calibration images to one scale."""

    def shared(self, parts: Tensor) -> Tensor:
        """Return what all positions of each image have in common, (B,), of which the map may know nothing; here 0."""
        return parts.new_zeros(len(parts))

    def limit_shared(self, levels: Tensor) -> None:
        """Set up to where that is normal, by what it is in the calibration images, (n,)."""

    def fuse(self, parts: Tensor) -> Tensor:
        """Return the patch maps (B, h, w) of the parts (B, P, h, w)."""
        return parts[:, 0]

    def limit_areas(self, peaks: Tensor) -> bool:
        """Set from where wide areas of a map count, by the highest position of each calibration image's map, (n,).

        Returns:
            Whether anomaly maps have changed by it, and with them the pixel threshold.
        """
        return False

    def raised(self, patch_maps: Tensor) -> Tensor:
        """Return patch maps (B, h, w) as anomaly maps are made of them; scores and highest positions are not."""
        return patch_maps

    def score(self, anomaly_maps: Tensor, top_scores: Tensor, parts: Tensor) -> Tensor:
        """Return the image scores (B,) of a method that scores by its map: its maximum.

        Args:
            anomaly_maps: (B, H, W).
            top_scores: (B, top), of the highest positions.
            parts: (B, P, h, w), of which the maps are made.
        """
        return anomaly_maps.amax((1, 2))

    def predict(self, measured: Measurement, size: Sequence[int], peaks: Callable = top_positions) -> Prediction:
        """Return the prediction of what was measured of B images.

        Args:
            measured: by `measure`.
            size: (H, W) of the images.
            peaks: finds the highest positions of patch maps, `top_positions` or `separate_positions`.

        Raises:
            UserError: maps that are not finite.
        """
        sigma = self.sigma * min(size) / 224
        # A single tile does not know which part of the picture it is.
        roi = None if self.geometry.tiled else self.roi
        return self._predict(
            measured, lambda maps: enlarge(maps, size, self.upsampling), sigma, peaks, roi, self.geometry.view
        )

    def fill(self, images: Tensor) -> Tensor:
        """Return images (..., H, W) of the geometry's view as methods see them: without what lies outside the roi."""
        return images if self.roi is None else self.roi.fill(images)

    def counting(self, grid: Shape) -> Tensor | None:
        """Return which positions of a whole image's patch map count, bool (h, w); None for all, and for tiles."""
        if self.roi is None or self.geometry.tiled:
            return None
        return self.roi.positions(grid, self.geometry.view)[0].to(self.device)

    def _predict(
        self,
        measured: Measurement,
        enlarged: Callable[[Tensor], Tensor],
        sigma: float,
        peaks: Callable,
        roi: Roi | None,
        covered: Shape,
    ) -> Prediction:
        """Return the prediction of a measurement.

        Args:
            measured: of B images or pictures.
            enlarged: returns the anomaly maps (B, H, W) of patch maps (B, h, w).
            sigma: of their smoothing, in pixels.
            peaks: finds the highest positions of patch maps.
            roi: the region of interest, None for whole images.
            covered: size that a map has where the picture has the geometry's view.
        """
        if measured.parts is None:
            assert measured.scores is not None
            return Prediction(measured.scores, None, None, None)
        parts = measured.parts
        grid = (parts.shape[-2], parts.shape[-1])
        counting = None
        if roi is not None:
            counting, index = roi.positions(grid, covered)
            parts = gather_pixels(parts, index)
        patch_maps = self.fuse(parts)
        positions, top_scores = peaks(patch_maps, self.top, self.min_distance, counting)
        maps = enlarged(self.raised(patch_maps))
        if sigma:
            maps = smooth(maps, sigma)
        if roi is not None:
            # Outside, a map holds no more than a typical normal position's score, where that is known and not NaN.
            lowest = maps.amin((1, 2), keepdim=True)
            lowest = torch.where(self.map_floor < lowest, self.map_floor, lowest)
            maps = torch.where(roi.inside.to(maps.device), maps, lowest)
        scores = self.score(maps, top_scores, parts) if measured.scores is None else measured.scores
        return Prediction(scores, maps, positions, grid)

    @torch.no_grad()
    def forward(self, images: Tensor | Sequence[Picture]) -> Prediction:
        """Score images, uint8 (B, 3, H, W), or whole pictures that are cut into tiles; both are what `read` returns.

        Raises:
            UserError: scores that are not finite, or a picture that can't be read.
        """
        return Prediction.cat([self.conclude(*measured) for measured in self.measure_all(images)])

    @torch.no_grad()
    def measure_all(self, images: Tensor | Sequence[Picture]) -> list[tuple[Measurement, Shape]]:
        """Measure images at once, or whole pictures one after the other; return the size with each measurement.

        Raises:
            UserError: a picture that can't be read, or a tensor of another type or shape, or where tiles are cut.
        """
        if isinstance(images, Tensor):
            if self.geometry.tiled:  # it would be taken for a whole picture, or for a tile of one
                raise UserError("images: the detector cuts pictures into tiles; give what `read` returns, no tensor")
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
                told = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
                raise UserError(f"images: expected uint8 (B, 3, H, W), as `read` gives them, not {told}")
            return [(self.measure(self.fill(images.to(self.device))), (images.shape[-2], images.shape[-1]))]
        return [(self.measure_picture(picture), picture.shape) for picture in images]

    def conclude(self, measured: Measurement, size: Shape) -> Prediction:
        """Return the prediction of a measurement that `measure_all` returned with this size."""
        return self.predict_picture(measured, size) if self.geometry.tiled else self.predict(measured, size)

    def measure_picture(self, picture: Picture) -> Measurement:
        """Measure a picture tile by tile: its tiles' patch maps joined, (1, P, h, w), or the highest of their scores.

        Raises:
            UserError: a picture that can't be read.
        """
        if self.uses_positions and not self.geometry.one_row(picture.shape):
            high, wide = self.geometry.size
            problem = f"the detector knows strips that fit into its tiles of {high} x {wide} px in height or width"
            raise UserError(f"{picture.path}: {problem}; fit again with larger tiles and such pictures")
        pixels = CPU_PIXELS if self.device.type == "cpu" else GPU_PIXELS
        count = max(1, pixels // math.prod(self.geometry.size))
        tiling = self._tiling(picture.shape)
        windows = {n: w for n, w in enumerate(tiling.windows()) if counts(self.roi, picture.shape, w)}
        chosen = list(windows)
        if not chosen:
            problem = "so small that nothing of it lies in the region of interest; remove it"
            raise UserError(f"{picture.path}: {problem}")
        found = []
        for start in range(0, len(chosen), count):
            tiles = torch.stack([self._tile(picture, windows[n]) for n in chosen[start : start + count]])
            found.append(self.measure_tiles(tiles.to(self.device)))
        picture.release()
        scores, parts = Measurement.cat(found)
        return Measurement(
            None if scores is None else scores.amax(0, keepdim=True),
            None if parts is None else tiling.join(parts, chosen)[None],
        )

    def _tile(self, picture: Picture, window: Window) -> Tensor:
        """Return a window of a picture, uint8 (3, height, width), without what lies outside the roi."""
        tile = picture.window(window)
        return tile if self.roi is None else self.roi.fill_window(tile, picture.shape, window)

    def measure_tiles(self, tiles: Tensor) -> Measurement:
        """Measure tiles, uint8 (B, 3, h, w), by `measure`, and make their positions equal: see `learn_tile_moments`."""
        measured = self.measure(tiles)
        if measured.parts is None or not len(self.tile_moments):
            return measured
        mean, deviation = self.tile_moments.view(2, *measured.parts.shape[1:])
        return measured._replace(parts=(measured.parts - mean) / deviation)

    @torch.no_grad()
    def learn_tile_moments(self, parts: Sequence[Tensor]) -> None:
        """Learn how each position of a tile is measured, since backbones see padding at the edges of every tile.

        Mean and deviation at a position are brought to those of all positions. They are drawn towards the latter, as if
        TILE_PRIOR more tiles had shown them.

        Args:
            parts: by `measure`, of batches of normal tiles, (B, P, h, w) each.
        """
        values = torch.cat(list(parts)).double()
        own = len(values) / (len(values) + TILE_PRIOR)
        mean = values.mean(0)
        square = values.square().mean(0)
        overall, overall_square = (value.mean((1, 2), keepdim=True) for value in (mean, square))
        spread = (overall_square - overall.square()).clamp(min=1e-12).sqrt()
        deviation = torch.lerp(spread.expand_as(mean), (square - mean.square()).clamp(min=0).sqrt(), own) / spread
        shift = torch.lerp(overall.expand_as(mean), mean, own)
        moments = torch.stack((shift - overall * deviation, deviation))
        self.tile_moments = moments.flatten().float().to(self.device)

    def predict_picture(self, measured: Measurement, picture: Shape) -> Prediction:
        """Return the prediction of a whole picture, whose map has the size of the geometry's view.

        Args:
            measured: by `measure_picture`.
            picture: its (H, W) in pixels.

        Raises:
            UserError: maps that are not finite.
        """
        height, width = view = self.geometry.view
        covered = self._tiling(picture).covered(view)

        def enlarged(patch_maps: Tensor) -> Tensor:
            if covered[0] < patch_maps.shape[-2] or covered[1] < patch_maps.shape[-1]:
                maps = F.adaptive_max_pool2d(patch_maps[:, None], covered)[:, 0]  # so that no peak is lost
            else:
                maps = enlarge(patch_maps, covered, self.upsampling)
            return maps[:, :height, :width]

        sigma = self.sigma * min(self.geometry.size) / 224 * height / picture[0]
        found = self._predict(measured, enlarged, sigma, top_positions, self.roi, covered)
        if found.positions is None or found.grid is None:
            return found
        # Pictures differ in size: positions are those of a typical one's map.
        assert self.geometry.picture is not None
        grid = self._tiling(self.geometry.picture).shape
        scale = torch.tensor([n / m for n, m in zip(grid, found.grid, strict=True)])
        at = found.positions
        located = ((at + 0.5) * scale.to(at.device)).long().masked_fill(at < 0, -1)
        return found._replace(positions=located, grid=grid)

    @torch.no_grad()
    def _tiling(self, picture: Shape) -> Tiling:
        """Return where the tiles of a picture lie; the grid of a tile's map is found by an empty one."""
        if self._tile_grid is None:
            height, width = self.geometry.size
            parts = self.measure(torch.zeros(1, 3, height, width, dtype=torch.uint8, device=self.device)).parts
            self._tile_grid = (height, width) if parts is None else (parts.shape[2], parts.shape[3])
        return self.geometry.tiling(picture, self._tile_grid)

    @torch.no_grad()
    def calibrate_on(
        self,
        measured: Sequence[tuple[Measurement, Shape]],
        false_alarm_rate: float,
        pixel_false_alarm_rate: float,
        gather: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        """Bring the scores to one scale and set both thresholds by what was measured of calibration images.

        Args:
            measured: by `measure_all`, of this detector or of others that were fitted likewise to other images.
            false_alarm_rate: share of normal images above the threshold.
            pixel_false_alarm_rate: share of them with a pixel above the pixel threshold.
            gather: returns the rows of all processes.

        Raises:
            ParameterError: a rate out of its range.
            UserError: scores that are not finite.
        """
        mapped = [(one.parts, size) for one, size in measured if one.parts is not None]
        if mapped:
            # Pictures may differ in size: the values of all their positions in one row, (1, P, positions, 1).
            values = torch.cat([self._counted(parts, size) for parts, size in mapped], 1)
            self.standardise(gather(values.T).T[None, :, :, None])
            self.limit_shared(gather(torch.cat([self.shared(self._inside(*one)) for one in mapped])))
            fused = [(self.fuse(self._inside(parts, size)), size) for parts, size in mapped]
            values = torch.cat([self._counted(maps[:, None], size) for maps, size in fused], 1)
            self.map_floor.copy_(gather(values.T).median())

        def set_thresholds() -> None:
            found = [_highest(self.conclude(*one)) for one in measured]
            scores, maxima = (gather(torch.cat(values)) for values in zip(*found, strict=True))
            self.calibrate(scores, maxima if len(maxima) else None, false_alarm_rate, pixel_false_alarm_rate)

        set_thresholds()
        if mapped and self.limit_areas(gather(torch.cat([maps.amax((1, 2)) for maps, _ in fused]))):
            set_thresholds()

    def _counted(self, parts: Tensor, size: Shape) -> Tensor:
        """Return the values (P, n) of the positions that count, of what was measured of images or of a picture."""
        rows = parts.transpose(0, 1)
        return rows.flatten(1) if self.roi is None else rows[:, :, self._positions(self.roi, parts, size)[0]].flatten(1)

    def _inside(self, parts: Tensor, size: Shape) -> Tensor:
        """Return parts (B, P, h, w) in which positions that don't count are replaced by some that do."""
        return parts if self.roi is None else gather_pixels(parts, self._positions(self.roi, parts, size)[1])

    def _positions(self, roi: Roi, parts: Tensor, size: Shape) -> tuple[Tensor, Tensor]:
        """Return `roi.positions` of what was measured of images or of a picture."""
        view = self.geometry.view
        covered = self._tiling(size).covered(view) if self.geometry.tiled else view
        return roi.positions((parts.shape[-2], parts.shape[-1]), covered)

    def calibrate(
        self, scores: Tensor, maxima: Tensor | None, false_alarm_rate: float, pixel_false_alarm_rate: float
    ) -> None:
        """Set both thresholds by the scores of calibration images, and keep these for other decisions.

        Args:
            scores: (n,) image scores.
            maxima: (n,) the highest score in each anomaly map, None for a method without maps.
            false_alarm_rate: share of normal images above the threshold.
            pixel_false_alarm_rate: share of them with a pixel above the pixel threshold.

        Raises:
            ParameterError: a rate out of its range.
            UserError: scores that are not finite.
        """
        self.calibration_scores = scores.detach().clone()
        self.threshold.fill_(conformal_threshold(scores, false_alarm_rate))
        if maxima is not None:
            self.calibration_maxima = maxima.detach().clone()
            self.pixel_threshold.fill_(conformal_threshold(maxima, pixel_false_alarm_rate))

    @checked
    def decision(
        self,
        *,
        false_alarm_rate: FalseAlarmRate | None = None,
        pixel_false_alarm_rate: FalseAlarmRate | None = None,
        threshold: Score | None = None,
        pixel_threshold: Score | None = None,
        min_area: Count = 1,
    ) -> Decision:
        """Return from which scores on images and pixels are called anomalous; without arguments as calibrated.

        Args:
            false_alarm_rate: sets the threshold anew from the kept calibration scores.
            pixel_false_alarm_rate: likewise that of pixels.
            threshold: of image scores, instead.
            pixel_threshold: of pixels' scores, instead.
            min_area: pixels of the smallest region that counts.

        Raises:
            ParameterError: an argument out of its range, one that is about pixels for a method without maps, or a rate
                beside the threshold that it sets.
        """
        maxima = self.calibration_maxima
        for name, value in (
            ("pixel_threshold", pixel_threshold),
            ("pixel_false_alarm_rate", pixel_false_alarm_rate),
        ):
            if value is not None and not len(maxima):
                raise ParameterError(name, value, f"method {self.name} has no anomaly map")
        own = self.provenance
        rate = pixel_rate = None  # that the thresholds are for
        for name, value, given in (
            ("false_alarm_rate", false_alarm_rate, threshold),
            ("pixel_false_alarm_rate", pixel_false_alarm_rate, pixel_threshold),
        ):
            if value is not None and given is not None:
                raise ParameterError(name, value, f"sets a threshold, which is given as {given:g}; give one of the two")
        if threshold is None:
            threshold = _threshold_at(self.threshold, self.calibration_scores, false_alarm_rate)
            rate = false_alarm_rate or (own.false_alarm_rate if own else None)
        if pixel_threshold is None and len(maxima):
            pixel_threshold = _threshold_at(self.pixel_threshold, maxima, pixel_false_alarm_rate)
            pixel_rate = pixel_false_alarm_rate or (own.pixel_false_alarm_rate if own else None)
        return Decision(
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            min_area=min_area,
            scale=spread_of(self.calibration_scores),
            false_alarms=false_alarms(self.calibration_scores, threshold),
            pixel_false_alarms=None if pixel_threshold is None else false_alarms(maxima, pixel_threshold),
            false_alarm_rate=rate,
            pixel_false_alarm_rate=pixel_rate,
        )

    def read(self, *paths: Path | str) -> Tensor | list[Picture]:
        """Read photographs for `forward`: uint8 (B, 3, H, W) on its device, or pictures that it cuts into tiles.

        Raises:
            UserError: a file that can't be read as an image.
        """
        if self.geometry.tiled:
            return [Picture(Path(path), self.reading) for path in paths]
        images = [read_scaled(Path(path), self.geometry.size, self.reading)[0] for path in paths]
        return torch.stack(images).to(self.device)

    def save(self, path: Path) -> None:
        """Write one file of tensors and plain values, atomically."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.name,
            "settings": self.settings,
            "geometry": self.geometry.to_dict(),
            "reading": self.reading.to_dict(),
            "roi": None if self.roi is None else self.roi.inside,
            "backbone": self.backbone.settings if self.uses_backbone else None,
            "provenance": self.provenance and self.provenance.to_dict(),
            "examples": self.examples.contiguous(),
            "state": {key: value.contiguous() for key, value in self.state_dict().items()},
        }
        save_atomic(path, content)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], state: Mapping[str, Tensor], **parts: Any) -> "AnomalyDetector":
        """Return a detector with the settings of a file, not yet with its tensors.

        Args:
            settings: of the file.
            state: the file's tensors, by which its settings can be checked before anything of their sizes is made.
            parts: `backbone`, where the method uses one.

        Raises:
            LookupError, TypeError, ValueError, UserError: the settings were not written by `save`.
        """
        return cls(**parts, **settings)

    @classmethod
    def from_content(cls, content: dict[str, Any], backbone: type[Backbone] = Backbone) -> "AnomalyDetector":
        """Return the detector that `save` wrote, on the CPU.

        Args:
            content: of the file.
            backbone: class of its backbone.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError: not written by `save`.
        """
        state = content["state"]
        parts = {}
        if cls.uses_backbone:
            options = {name: value for name, value in content["backbone"].items() if name != "_target_"}
            parts["backbone"] = backbone(weights="none", **options)
        # Nothing of the sizes that the file claims is made: its own tensors take their places.
        with torch.device("meta"):
            detector = cls.from_settings(content["settings"], state, **parts)
        detector.set_geometry(Geometry.from_dict(content["geometry"]))
        detector.reading = Reading.from_dict(content["reading"])
        detector.roi = checked_roi(content["roi"], detector.geometry.view)
        for name, buffer in list(detector.named_buffers()):
            if buffer.shape[:1] == (0,):  # filled by `fit`, of any length
                setattr(detector, name, buffer.new_empty(len(state[name]), *buffer.shape[1:]))
        detector.load_state_dict(state, assign=True)
        if content["provenance"] is not None:
            detector.provenance = Provenance.from_dict(content["provenance"])
        detector.examples = _examples(content["examples"], detector.geometry.size)
        return detector
