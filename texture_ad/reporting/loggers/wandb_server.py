"""Find out whether W&B's server can be reached: once, within seconds, and without asking the user."""

import netrc
import os
import threading
import urllib.error
import urllib.request

import wandb

PATIENCE = 5.0  # seconds for the server's first answer


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host or host in wandb.setup().settings.base_url for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Return whether a server answers, with whatever status.

    Asks in a thread, because looking up a name has no time limit.
    """
    answered = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PATIENCE).close()
            answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE + 1)
    return bool(answered)


def offline_reason() -> str | None:
    """Return why W&B can't be reached, or None where it can."""
    if not _has_key():
        return "no API key"
    url = wandb.setup().settings.base_url
    return None if _answers(url) else f"{url} does not answer"
