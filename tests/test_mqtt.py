"""Results that a real broker takes and passes on."""

import asyncio
import json
import queue
import socket
import threading
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("amqtt.broker", reason="amqtt, a broker for tests, is not installed")
pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")

from amqtt.broker import Broker
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from texture_ad.deploy.notify import notifier


@pytest.fixture
def port():
    """A port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def broker(port):
    """Have a broker listen, in a thread of this process."""
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    config = {"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}, "plugins": anonymous}
    loop = asyncio.new_event_loop()

    async def start():
        listening = Broker(config)
        await listening.start()
        return listening

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield
    asyncio.run_coroutine_threadsafe(listening.shutdown(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)


def test_a_broker_passes_results_on(port):
    received = queue.Queue()
    subscribed = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: received.put((message.topic, json.loads(message.payload)))
    with broker(port):
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


def test_a_result_waits_for_a_broker_that_is_not_there_yet(port):
    tell = notifier(None, f"mqtt://127.0.0.1:{port}/line/3")
    tell({"name": "0.png", "label": "normal"})
    time.sleep(0.2)
    with broker(port), tell:  # its end waits for what is left to send
        pass
    assert tell.lost == 0
