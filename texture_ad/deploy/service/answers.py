"""The forms of the service's answers, for /openapi.json, of which clients are made."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from texture_ad.evaluation.regions import Region

Picture = Annotated[str | None, Field(description="PNG in base64, where it was asked for")]


class Answer(BaseModel):
    """Describe what is said of one photograph: the fields of `Result`, without an error, which is a refusal."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(description="that the client gave")]
    label: Literal["normal", "anomalous", "unsure"]
    anomalous: Annotated[bool, Field(description="whether the score is above the threshold")]
    score: Annotated[float, Field(description="higher is more anomalous")]
    level: Annotated[float, Field(ge=0, le=1, description="the score on a scale whose 0.5 is the threshold")]
    threshold: float
    size: Annotated[tuple[int, int], Field(description="height and width, pixels")]
    regions: Annotated[list[Region], Field(description="the highest peak first, in pixels of the photograph")]
    warning: Annotated[str, Field(description="how the photograph differs from the training images")]
    mask: Picture = None
    map: Picture = None


class Description(BaseModel):
    """Describe the detector and its thresholds."""

    model_config = ConfigDict(extra="forbid")

    version: str
    method: str
    source: Annotated[str, Field(description="of the photographs that it was fitted on")]
    threshold: float
    pixel_threshold: Annotated[float | None, Field(description="of the anomaly map; none for a method without maps")]
    scale: Annotated[float, Field(description="of the scores, by which levels are made")]
    min_area: Annotated[int, Field(description="pixels; smaller regions are left out")]
    promise: Annotated[str, Field(description="which rate of false alarms is to be expected")]
    calibration_levels: Annotated[list[float], Field(description="of the calibration images, ascending")]
    max_mb: Annotated[float, Field(description="largest photograph, megabytes")]
