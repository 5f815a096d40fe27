"""Listen for requests until a signal ends the service; those that are under way are finished first."""

import signal
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI

from texture_ad.deploy.notify import Tell
from texture_ad.deploy.scorer import Scorer
from texture_ad.deploy.service.app import Service, create_app
from texture_ad.deploy.service.limits import Limits, check_token
from texture_ad.errors import ParameterError
from texture_ad.evaluation.calibration import Decision
from texture_ad.methods.base import AnomalyDetector

PATIENCE = 30  # seconds for requests under way when the service ends


def serve(
    detector: AnomalyDetector,
    decision: Decision,
    limits: Limits,
    host: str,
    port: int,
    token: str | None,
    batch_size: int,
    unsure: bool,
    tell: Tell,
) -> None:
    """Answer requests about a detector until SIGINT or SIGTERM, then print a summary.

    Args:
        detector: loaded, on its device.
        decision: thresholds.
        limits: on requests.
        host: name or address to listen at.
        port: 0 for any that is free.
        token: that requests have to bring, None for none.
        batch_size: photographs that are scored together, at most.
        unsure: whether a photograph unlike the training images gets no other verdict.
        tell: called with each answer.

    Raises:
        ParameterError: a host that others can reach without a token, or an address that can't be listened at.
    """
    check_token(host, token)
    with TemporaryDirectory(prefix="texture_ad_") as folder, listen(host, port) as listening:
        scorer = Scorer(detector, Path(folder), None, decision, unsure=unsure, keep_maps=True)
        service = Service(scorer, limits, token, host, batch_size, tell)
        print(f"serving  http://{address(listening)}  {scorer.source}; Ctrl-C ends", flush=True)
        run(create_app(service), listening)
        scorer.report()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ParameterError: the address is taken or none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise ParameterError("port", port, f"can't listen at {host} ({error}); give another port or host") from error


def address(listening: socket.socket) -> str:
    """Return a socket's address as it stands in a URL."""
    host, port, *_ = listening.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def run(app: FastAPI, listening: socket.socket) -> None:
    """Serve an application until SIGINT or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again at its end, which then does nothing
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=PATIENCE
    )
    uvicorn.Server(config).run(sockets=[listening])
