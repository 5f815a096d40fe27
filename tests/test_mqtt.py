"""Results that a real broker takes and passes on."""

import json
import queue
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

pytest.importorskip("amqtt", reason="amqtt, a broker for tests, is not installed")
pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from texture_ad.deploy import notify
from texture_ad.deploy.notify import notifier


@pytest.fixture
def port():
    """A port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def broker(port, folder):
    """Have a broker listen, in a process of its own."""
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    config = {"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}, "plugins": anonymous}
    file = folder / "broker.yaml"
    file.write_text(json.dumps(config))
    process = subprocess.Popen([sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(file)])
    try:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def test_a_broker_passes_results_on(port, tmp_path):
    received = queue.Queue()
    subscribed = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: received.put((message.topic, json.loads(message.payload)))
    with broker(port, tmp_path):
        client.connect("127.0.0.1", port)
        client.subscribe("line/3", qos=1)
        client.loop_start()
        assert subscribed.wait(30)
        with notifier(None, f"mqtt://127.0.0.1:{port}/line/3") as tell:
            for number in range(3):
                tell({"name": f"{number}.png", "label": "normal"})
        found = [received.get(timeout=30) for _ in range(3)]
        client.loop_stop()
    assert found == [("line/3", {"name": f"{number}.png", "label": "normal"}) for number in range(3)]
    assert tell.lost == 0


def test_without_a_broker_the_end_waits_once_and_not_for_every_message(port, monkeypatch):
    monkeypatch.setattr(notify, "TIMEOUT", 0.5)
    start = time.monotonic()
    with notifier(None, f"mqtt://127.0.0.1:{port}/line/3") as tell:
        for number in range(20):
            tell({"name": f"{number}.png", "label": "normal"})
    assert tell.lost == 20 and "no connection to 127.0.0.1" in tell.problem
    assert time.monotonic() - start < 5  # twenty timeouts are ten seconds


def test_a_result_waits_for_a_broker_that_is_not_there_yet(port, tmp_path):
    tell = notifier(None, f"mqtt://127.0.0.1:{port}/line/3")
    tell({"name": "0.png", "label": "normal"})
    time.sleep(0.2)
    with broker(port, tmp_path), tell:  # its end waits for what is left to send
        pass
    assert tell.lost == 0
