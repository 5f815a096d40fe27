"""What the service answers: POST /predict, GET /health, /detector, /metrics, and the page.

Order of reading: `create_app`, then `Service.predict`, which follows one photograph from its bytes to its answer.
"""

import asyncio
import base64
import io
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from texture_ad import __version__
from texture_ad.data.images import header
from texture_ad.deploy.notify import Tell
from texture_ad.deploy.outputs import as_bytes
from texture_ad.deploy.results import Result, message
from texture_ad.deploy.scorer import Content, Scorer
from texture_ad.deploy.service.answers import Answer, Description
from texture_ad.deploy.service.limits import (
    Limits,
    RateLimit,
    Refusal,
    authorise,
    check_host,
    check_size,
    drain,
    receive,
)
from texture_ad.deploy.service.worker import Worker
from texture_ad.errors import UserError
from texture_ad.evaluation.regions import enlarged_map
from texture_ad.files import reason
from texture_ad.reporting.tables import printable

DECODERS = 2  # photographs that are decoded or drawn at a time: each may take a gigabyte
RETRY = 10  # seconds after which a full disk may have room again
MAP_SIDE = 512  # pixels, of the longer side of a map in an answer
OWN = files("texture_ad.deploy.service") / "page"
PAGE = {
    "/": (OWN / "index.html", "text/html"),
    "/common.css": (files("texture_ad.reporting") / "common.css", "text/css"),  # the reports' as well
    "/page.css": (OWN / "page.css", "text/css"),
    "/page.js": (OWN / "page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REFUSED: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Refused: what was wrong, and what to do",
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
            }
        },
    }
}
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Job(NamedTuple):
    """Hold a photograph that waits to be scored."""

    path: Path
    content: Content


class Metrics:
    """Count what the service did, in Prometheus' terms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: Any = {"namespace": "texture_ad", "registry": self.registry}
        self.requests = Counter("requests", "Requests of /predict by HTTP status", ["status"], **of)
        self.images = Counter("images", "Scored photographs by verdict", ["label"], **of)
        self.warned = Counter("warned_images", "Scored photographs unlike the training images", **of)
        self.seconds = Histogram("request_seconds", "Seconds from a request's headers to its answer", **of)
        tenths = [i / 10 for i in range(1, 11)]
        self.levels = Histogram("level", "Levels of scored photographs, 0.5 at the threshold", buckets=tenths, **of)
        self.batches = Histogram("batch_images", "Photographs scored together", buckets=[1, 2, 4, 8, 16, 32], **of)
        self.active = Gauge("active_requests", "Requests of /predict that are being received or scored", **of)

    def count(self, result: Result) -> None:
        """Count a scored photograph."""
        self.images.labels(result.label).inc()
        self.levels.observe(result.level or 0)
        if result.warning:
            self.warned.inc()


class Service:
    """Score the photographs of requests.

    Args:
        scorer: with the detector, which keeps maps; its root is the folder that photographs are received in.
        limits: on requests.
        token: that requests have to bring, None for none.
        host: that the service listens at.
        batch_size: photographs that are scored together, at most.
        tell: called with each answer, without its pictures.
    """

    def __init__(
        self,
        scorer: Scorer,
        limits: Limits,
        token: str | None,
        host: str,
        batch_size: int,
        tell: Tell,
    ):
        self.scorer = scorer
        self.limits = limits
        self.token = token
        self.host = host
        self.tell = tell
        self.rate = RateLimit(limits.rate)
        self.metrics = Metrics()
        self.worker: Worker[Job, Result] = Worker(self._score, batch_size)
        self.decoders = ThreadPoolExecutor(DECODERS)
        self.active = 0
        self._owner = scorer.root.stat().st_uid
        self._numbers = itertools.count()

    def close(self) -> None:
        """Finish what is waiting."""
        self.worker.close()
        self.decoders.shutdown()

    def _score(self, jobs: Sequence[Job]) -> list[Result]:
        """Return the results of a batch; called in the scorer's thread alone."""
        results = self.scorer.score([job.path for job in jobs], [job.content for job in jobs])
        self.scorer.failed.clear()  # each client is told of its own
        self.metrics.batches.observe(len(jobs))
        return results

    async def predict(self, request: Request, name: str, mask: bool, map: bool) -> dict[str, Any]:
        """Return the answer about the photograph in a request's body.

        Raises:
            Refusal: 401, 408, 413, 415, 422, 429, 503.
        """
        chunks = request.stream()
        try:
            self.admit(request)
            with self._place(), self._file(name) as path:
                await receive(chunks, path, self.limits)
                return await self._answer(path, name, mask, map)
        except Refusal as error:
            # A client that is still sending would not see the answer; strangers are not waited for.
            if error.status not in (401, 408) and "expect" not in request.headers:
                await drain(chunks, self.limits)
            raise

    def check_health(self) -> None:
        """Check that photographs can be received and scored.

        Raises:
            Refusal: 503, they can't.
        """
        self._check_worker()
        with self._file("") as path:
            path.write_bytes(b"1")  # a full disk takes an empty file

    def _check_worker(self) -> None:
        if not self.worker.alive:
            raise Refusal(503, "the thread that scores has ended; start the service again")

    def admit(self, request: Request) -> None:
        """Check a request before any of its body is read.

        Raises:
            Refusal: 401, 413, 415, 429, 503.
        """
        authorise(request.headers.get("authorization"), self.token)
        self.rate.check(request.client.host if request.client else "")
        check_headers(request, self.limits)
        self._check_worker()

    async def _answer(self, path: Path, name: str, mask: bool, map: bool) -> dict[str, Any]:
        """Return the answer about a photograph's file."""
        content = await self._in_decoder(self._read, path)
        result = await asyncio.wrap_future(self.worker.submit(Job(path, content)))
        if result.error:
            raise Refusal(422, result.error.replace(f"{path}: ", ""))
        self.metrics.count(result)
        told = message(result, self.scorer.decision) | {"name": name}
        self.tell(told)
        answer = {key: value for key, value in told.items() if key != "error"}  # which is a status of its own
        if mask:
            answer = answer | {"mask": await self._in_decoder(self._mask, result)}
        if map:
            answer = answer | {"map": await self._in_decoder(self._map, result)}
        return answer

    @contextmanager
    def _place(self) -> Any:
        """Take one of the places for requests.

        Raises:
            Refusal: 503, there is none.
        """
        if self.active >= self.limits.max_requests:
            raise Refusal(503, f"{self.active} requests are being answered; try again", 1)
        self.active += 1
        self.metrics.active.set(self.active)
        try:
            yield
        finally:
            self.active -= 1
            self.metrics.active.set(self.active)

    @contextmanager
    def _file(self, name: str) -> Any:
        """Give the path of a file that is removed at the end, and that the client calls so.

        Raises:
            Refusal: 503, the system refuses what is done with it.
        """
        path = self.scorer.root / str(next(self._numbers))
        self.scorer.names[path] = printable(name)
        try:
            self._make_folder()
            yield path
        except OSError as error:
            problem = f"the service can't keep a photograph ({reason(error)}); try again later"
            raise Refusal(503, problem, RETRY) from error
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            del self.scorer.names[path]

    def _make_folder(self) -> None:
        """Make the folder of the photographs anew where a cleaner of temporary files has removed it.

        Raises:
            OSError: it can't be made, or a stranger has made it meanwhile and could put links in it.
        """
        folder = self.scorer.root
        folder.mkdir(0o700, parents=True, exist_ok=True)
        if folder.lstat().st_uid != self._owner:
            raise PermissionError("its temporary folder is another user's")

    async def _in_decoder(self, function: Callable, *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *arguments)

    def _read(self, path: Path) -> Content:
        """Return a photograph as the detector wants it.

        Raises:
            Refusal: 413, too many pixels; 422, no image.
        """
        try:
            height, width = header(path).shape
            if width * height > self.limits.max_pixels:
                raise Refusal(413, f"{width} x {height} pixels, at most {self.limits.max_pixels}; send a smaller image")
            content = self.scorer.read([path])[0]
            if isinstance(content, UserError):
                raise content
            return content
        except UserError as error:
            raise Refusal(422, str(error).replace(f"{path}: ", "")) from error

    def _mask(self, result: Result) -> str | None:
        return None if result.mask is None else png(as_bytes(result.mask))

    def _map(self, result: Result) -> str | None:
        """Return an anomaly map as levels, 0..255 for 0..1, at the photograph's aspect."""
        threshold = self.scorer.decision.pixel_threshold
        if result.anomaly_map is None or result.size is None or threshold is None:
            return None
        scale = min(1.0, MAP_SIDE / max(result.size))
        size = (max(1, round(result.size[0] * scale)), max(1, round(result.size[1] * scale)))
        x = (enlarged_map(result.anomaly_map, size, result.roi) - threshold) / self.scorer.decision.scale
        return png(np.rint(255 * (0.5 + 0.5 * x / (1 + np.abs(x)))).astype(np.uint8))

    def about(self) -> dict[str, Any]:
        """Return what the page says of the detector."""
        decision = self.scorer.decision
        levels = [decision.level(score) for score in self.scorer.detector.calibration_scores.sort().values.tolist()]
        return {
            "version": __version__,
            "method": self.scorer.detector.name,
            "source": self.scorer.source,
            "threshold": decision.threshold,
            "pixel_threshold": decision.pixel_threshold,
            "scale": decision.scale,
            "min_area": decision.min_area,
            "promise": decision.promise(),
            "calibration_levels": levels,
            "max_mb": self.limits.max_mb,
        }


def png(picture: np.ndarray) -> str:
    """Return a picture, uint8 (H, W), as PNG in base64."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def check_headers(request: Request, limits: Limits) -> None:
    """Check what a request says of its body before any of it is read.

    Raises:
        Refusal: 415, no image; 413, too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        found = f"Content-Type {kind}" if kind else "no Content-Type"
        raise Refusal(415, f"{found}; send the bytes of one image as image/png, image/jpeg, ...")
    length = request.headers.get("content-length", "")
    if length.isdigit():
        check_size(int(length), int(limits.max_mb * 1e6))


def refused(error: Refusal) -> JSONResponse:
    """Return the answer to a request that is refused."""
    headers = {} if error.retry_after is None else {"Retry-After": str(math.ceil(error.retry_after))}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.problem}, error.status, headers)


def create_app(service: Service) -> FastAPI:
    """Return the application of a service, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    # Its own pages of documentation would fetch scripts from elsewhere.
    app = FastAPI(
        title="texture_ad", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=REFUSED
    )

    @app.middleware("http")
    async def guard(request: Request, answer: Callable) -> Response:
        start = time.perf_counter()
        try:
            check_host(request.headers.get("host", ""), service.host)
            response = await answer(request)
        except Refusal as error:
            response = refused(error)
        if request.url.path == "/predict":
            service.metrics.requests.labels(response.status_code).inc()
            service.metrics.seconds.observe(time.perf_counter() - start)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(Refusal)
    async def refuse(_: Request, error: Refusal) -> JSONResponse:
        return refused(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        problem = f"{request.method} {request.url.path}: {error.detail}; GET /openapi.json lists what is answered"
        return JSONResponse({"error": problem}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refused(Refusal(422, f"{first['loc'][-1]}: {first['msg']}"))

    @app.exception_handler(ClientDisconnect)
    async def gone(*_: object) -> JSONResponse:
        return refused(Refusal(400, "the client left"))

    @app.exception_handler(UserError)
    async def failed(_: Request, error: UserError) -> JSONResponse:
        return refused(Refusal(422, str(error)))

    body = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}

    # Answers are described, not made, by these forms: to check each would cost time.
    @app.post("/predict", openapi_extra={"requestBody": body}, response_model=None, responses={200: {"model": Answer}})
    async def predict(
        request: Request,
        name: Annotated[str, Query(max_length=255, description="of the photograph, returned as it is")] = "",
        mask: Annotated[bool, Query(description="add the mask of the regions, a PNG in base64")] = False,
        map: Annotated[bool, Query(description="add the anomaly map as levels, a grey PNG in base64")] = False,
    ) -> dict[str, Any]:
        """Score one photograph, the request's body."""
        unknown = sorted(request.query_params.keys() - {"name", "mask", "map"})
        if unknown:
            raise Refusal(422, f"{unknown[0]}: no such parameter; expected name, mask or map")
        return await service.predict(request, name, mask, map)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the service can receive and score photographs."""
        service.check_health()
        return {"status": "ok"}

    @app.get("/detector", response_model=None, responses={200: {"model": Description}})
    async def detector(request: Request) -> dict[str, Any]:
        """Describe the detector and its threshold."""
        authorise(request.headers.get("authorization"), service.token)
        return service.about()

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Return counts and times in Prometheus' text format."""
        authorise(request.headers.get("authorization"), service.token)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, (file, kind) in PAGE.items():
        app.add_api_route(path, _constant(file.read_bytes(), kind), include_in_schema=False)
    return app


def _constant(content: bytes, kind: str) -> Callable[[], Any]:
    async def answer() -> Response:
        return Response(content, media_type=kind)

    return answer
