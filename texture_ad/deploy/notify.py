"""Tell other programs of results: a web hook by HTTP, a broker by MQTT.

A message is news, not a record: scores.csv is. What can't be delivered is counted and dropped, so that scoring never
waits for a receiver.
"""

import base64
import json
import queue
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from texture_ad.environment import not_installed
from texture_ad.errors import ParameterError

WAITING = 1000  # messages, at most
TIMEOUT = 5  # seconds for one delivery

Send = Callable[[bytes], None]
Tell = Callable[[Mapping[str, Any]], None]  # called with a result as plain values


def _split(name: str, url: str) -> SplitResult:
    """Return the parts of a URL.

    Raises:
        ParameterError: no URL, or no number as its port; it may hold a password, and is not shown.
    """
    try:
        where = urlsplit(url)
        where.port  # noqa: B018, it is checked when it is read
    except ValueError as error:
        raise ParameterError(name, "URL", f"no URL ({error})") from error
    return where


def webhook(url: str) -> Send:
    """Return a function that posts a JSON message to a URL.

    Args:
        url: http://[USER:PASSWORD@]HOST[:PORT]/PATH, or https:// for TLS.

    Raises:
        ParameterError: no URL of HTTP.
    """
    where = _split("webhook", url)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise ParameterError("webhook", where.hostname or "URL", "expected a URL as http://HOST/PATH")
    target = where._replace(netloc=where.netloc.rpartition("@")[2]).geturl()  # urllib takes USER:PASSWORD for a host
    headers = {"Content-Type": "application/json"}
    if where.username is not None:
        credentials = f"{unquote(where.username)}:{unquote(where.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"

    def send(content: bytes) -> None:
        request = urllib.request.Request(target, content, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            answer.read(1024)

    return send


def mqtt(url: str) -> Send:
    """Return a function that publishes a message at least once (QoS 1).

    Args:
        url: mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC, or mqtts:// for TLS.

    Raises:
        ParameterError: another URL, or paho-mqtt is not installed.
    """
    where = _split("mqtt", url)
    topic = unquote(where.path.lstrip("/"))
    if where.scheme not in ("mqtt", "mqtts") or not where.hostname or not topic:
        raise ParameterError("mqtt", where.hostname or "URL", "expected a URL as mqtt://HOST/TOPIC")
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise ParameterError("mqtt", where.hostname, not_installed("paho-mqtt", "mqtt")) from error
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(WAITING)
    if where.username:
        client.username_pw_set(unquote(where.username), unquote(where.password or ""))
    if where.scheme == "mqtts":
        client.tls_set()
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.on_disconnect = lambda *_: connected.clear()
    client.connect_async(where.hostname, where.port or (8883 if where.scheme == "mqtts" else 1883))
    client.loop_start()
    deadline = time.monotonic() + TIMEOUT

    def send(content: bytes) -> None:
        # The first connection is waited for, once for all messages. Published without one, a message would go out later
        # and count as lost.
        if not connected.wait(max(0.0, deadline - time.monotonic())):
            raise ConnectionError(f"no connection to {where.hostname}")
        message = client.publish(topic, content, qos=1)
        message.wait_for_publish(TIMEOUT)
        if not message.is_published():
            raise TimeoutError(f"no answer of {where.hostname} within {TIMEOUT} seconds")

    return send


class Notifier:
    """Send messages in a thread of its own.

    Args:
        sends: of the receivers.

    Attributes:
        lost: how many messages some receiver did not get.
        problem: why the last of them was lost.
    """

    def __init__(self, *sends: Send):
        self.sends = sends
        self.lost = 0
        self.problem = ""
        self._deadline = float("inf")
        self._waiting: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Notifier":
        return self

    def __exit__(self, *_: object) -> None:
        """Send what is waiting, as far as that takes no longer than one delivery may, and tell what was lost."""
        self._deadline = time.monotonic() + TIMEOUT
        self._waiting.put(None)
        self._thread.join()
        if self.lost:
            print(f"warning: {self.lost} messages were lost, last: {self.problem}", file=sys.stderr)

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Take a message, or drop it where too many are waiting."""
        if not self.sends:
            return
        try:
            self._waiting.put_nowait(json.dumps(message).encode())
        except queue.Full:
            self._lose(f"{WAITING} messages are waiting")

    def _run(self) -> None:
        while (content := self._waiting.get()) is not None:
            for send in self.sends:
                if time.monotonic() > self._deadline:
                    self._lose(self.problem or "the program has ended")
                    continue
                try:
                    send(content)
                except Exception as error:  # whatever a receiver does, scoring continues
                    self._lose(f"{type(error).__name__}: {error}")

    def _lose(self, problem: str) -> None:
        if not self.lost:
            print(f"warning: a message was lost ({problem}); scoring continues", file=sys.stderr, flush=True)
        self.lost += 1
        self.problem = problem


def notifier(webhook_url: str | None, mqtt_url: str | None) -> Notifier:
    """Return a notifier of these receivers, None for none.

    Raises:
        ParameterError: a URL that is none.
    """
    sends = [make(url) for make, url in ((webhook, webhook_url), (mqtt, mqtt_url)) if url is not None]
    return Notifier(*sends)
