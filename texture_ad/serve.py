"""`python -m texture_ad.serve detector=DETECTOR.pt`: a web service, and a page for people, over a saved detector."""

from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main
from texture_ad.environment import not_installed
from texture_ad.errors import ParameterError, UserError
from texture_ad.parameters import Count, Range, check
from texture_ad.predict import DECISION

Port = Annotated[int, Range(0, 65535)]


@hydra_main("serve")
def main(config: DictConfig) -> None:
    """Serve the detector that the configuration names until Ctrl-C."""
    try:
        from texture_ad.deploy.service.server import serve
    except ImportError as error:
        raise UserError(f"serve: {not_installed(error.name or 'a package', 'serve')}") from error
    from texture_ad.deploy.engines import FEW, EngineName, leave_cores, use_engine
    from texture_ad.deploy.notify import notifier
    from texture_ad.deploy.service.limits import Limits, check_token
    from texture_ad.methods.registry import load
    from texture_ad.training.resources import keep_freed_memory

    # Before the detector is read, which takes seconds.
    if not isinstance(config.host, str):
        raise ParameterError("host", config.host, "expected a name or an address")
    check_token(config.host, config.token)
    check("port", config.port, Port)
    check("batch_size", config.batch_size, Count)
    check("engine", config.engine, EngineName)
    check("unsure", config.unsure, bool)
    limits = Limits(config.max_mb, config.max_pixels, config.max_requests, config.rate, config.timeout)
    keep_freed_memory()
    detector = load(config.detector, config.device, config.allow)
    decision = detector.decision(**{name: config[name] for name in DECISION})
    # A service answers at once: by itself it uses an engine's file, and makes none.
    print(f"engine   {use_engine(detector, Path(config.detector), config.engine, FEW)}", flush=True)
    leave_cores(detector)
    with notifier(config.webhook, config.mqtt) as tell:
        serve(
            detector, decision, limits, config.host, config.port, config.token, config.batch_size, config.unsure, tell
        )


if __name__ == "__main__":
    main()
