"""The web service: its answers beside the detector's own, what it refuses, its page in a browser, and many requests
with bad ones and a kill among them."""

import base64
import contextlib
import errno
import http.client
import io
import json
import re
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from forked import Forked
from helpers import environment, untrained_detector
from PIL import Image

from benchmarks import serve_soak, soak
from texture_ad.data.images import read_image, resize
from texture_ad.deploy.scorer import Scorer
from texture_ad.errors import ParameterError, UserError
from texture_ad.methods.registry import load

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from texture_ad.deploy.service.answers import Answer, Description  # noqa: E402
from texture_ad.deploy.service.app import Service, create_app  # noqa: E402
from texture_ad.deploy.service.limits import Limits, RateLimit, Refusal, check_host, check_token  # noqa: E402
from texture_ad.deploy.service.server import listen  # noqa: E402
from texture_ad.deploy.service.worker import Worker  # noqa: E402

TOKEN = "a-secret-of-this-test"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in "abcd":
        pixels = rng.integers(60, 180, (40, 45, 3), np.uint8)
        if name == "d":
            pixels[10:20, 10:20] = 255
        Image.fromarray(pixels).resize((180, 160)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def detector(photographs):
    """The last photograph alone is anomalous."""
    paths = sorted(photographs.iterdir())
    found = untrained_detector(64, paths, torch.stack([resize(read_image(p), (64, 64)) for p in paths]))
    prediction = found(found.read(*paths))
    found.calibrate(prediction.scores[:3], prediction.anomaly_maps.amax((1, 2))[:3], 0.25, 0.25)
    return found


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "detector.pt"
    detector.save(path)
    return path


@contextlib.contextmanager
def served(detector, folder, token=None, **limits):
    """A service in a thread of this process; its port."""
    given = {"max_mb": 0.3, "max_pixels": 100_000, "max_requests": 8, "rate": None, "timeout": 5, **limits}
    scorer = Scorer(detector, folder, None, keep_maps=True)
    app = create_app(Service(scorer, Limits(**given), token, "127.0.0.1", 4, lambda _: None))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
    assert list(folder.iterdir()) == []  # nothing of a request stays


@pytest.fixture(scope="module")
def port(detector, tmp_path_factory):
    with served(detector, tmp_path_factory.mktemp("bodies")) as number:
        yield number


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def post(port, body, path="/predict", **headers):
    status, found, content = ask(port, "POST", path, body, **({"Content_Type": "image/png"} | headers))
    return status, found, json.loads(content)


def decoded(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


# --- answers ------------------------------------------------------------------------------------------


def test_the_answer_is_the_detectors(port, detector, photographs):
    for name, label in (("a", "normal"), ("d", "anomalous")):
        path = photographs / f"{name}.png"
        expected = detector(detector.read(path))
        status, _, answer = post(port, path.read_bytes(), f"/predict?name={name}%20%3C&mask=true&map=true")
        assert status == 200 and answer["label"] == label and answer["name"] == f"{name} <"
        assert answer["anomalous"] == (label == "anomalous")
        assert answer["score"] == pytest.approx(float(expected.scores[0]), rel=1e-4)
        assert answer["size"] == [160, 180] and (answer["level"] > 0.5) == (label == "anomalous")
        mask, levels = decoded(answer["mask"]), decoded(answer["map"])
        assert mask.shape == levels.shape == (160, 180) and set(np.unique(mask)) <= {0, 255}
        assert bool(answer["regions"]) == bool(mask.any()) == (label == "anomalous")
        assert sum(region["area"] for region in answer["regions"]) == (mask == 255).sum()
        # The map's levels part the pixels where the mask does, but for their rounding.
        assert np.array_equal((levels > 128)[levels != 128], mask[levels != 128] == 255)


def test_a_warning_names_a_photograph_as_its_client_does(saved, photographs, tmp_path, monkeypatch):
    scorers = []
    monkeypatch.setattr(Scorer, "_compare", lambda self, path, grey: scorers.append(self) or self.name(path))
    with served(load(saved), tmp_path) as port:
        content = (photographs / "a.png").read_bytes()
        assert post(port, content, "/predict?name=line%2010%1B")[2]["warning"] == r"line 10\x1b"
        assert post(port, content)[2]["warning"].isdigit()
    assert scorers[0].names == {}


def test_what_lies_outside_the_region_of_interest_is_not_answered(with_roi, tmp_path):
    with served(with_roi.detector, tmp_path) as port:
        names = ("own", "outside", "inside")
        contents = ((with_roi.folder / f"{name}.png").read_bytes() for name in names)
        own, outside, inside = (post(port, content, "/predict?mask=true&map=true")[2] for content in contents)
    assert own == outside and inside["label"] == "anomalous" != outside["label"]
    mask, levels = decoded(inside["mask"]), decoded(inside["map"])
    assert mask.any() and not mask[~with_roi.inside].any() and not decoded(outside["mask"]).any()
    assert (levels[~with_roi.inside] == levels.min()).all() and levels.max() > 128


def test_pictures_only_where_they_are_asked_for(port, photographs):
    _, _, answer = post(port, (photographs / "a.png").read_bytes())
    assert "mask" not in answer and "map" not in answer


def test_requests_side_by_side_have_their_own_answers(port, detector, photographs):
    paths = sorted(photographs.iterdir()) * 4
    expected = detector(detector.read(*paths)).scores.tolist()
    found = [None] * len(paths)

    def send(i):
        for _ in range(100):
            status, headers, answer = post(port, paths[i].read_bytes())
            if status == 200:
                found[i] = answer["score"]
                return
            assert status == 503 and headers["Retry-After"] == "1"
            time.sleep(0.05)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == pytest.approx(expected, rel=1e-4)


def test_health_metrics_and_the_detectors_description(port, detector, photographs):
    post(port, (photographs / "d.png").read_bytes())
    post(port, b"")
    assert json.loads(ask(port, "GET", "/health")[2]) == {"status": "ok"}
    metrics = ask(port, "GET", "/metrics")[2].decode()
    for name in ('requests_total{status="200"}', 'requests_total{status="422"}', 'images_total{label="anomalous"}'):
        assert float(metrics.split(f"texture_ad_{name} ")[1].split()[0]) >= 1
    about = json.loads(ask(port, "GET", "/detector")[2])
    assert about["threshold"] == pytest.approx(float(detector.threshold)) and len(about["calibration_levels"]) == 3
    assert about["pixel_threshold"] == pytest.approx(float(detector.pixel_threshold))
    status, _, content = ask(port, "POST", "/predict?masks=true", (photographs / "d.png").read_bytes())
    assert status == 422 and json.loads(content)["error"].startswith("masks: no such parameter")
    paths = json.loads(ask(port, "GET", "/openapi.json")[2])["paths"]
    assert paths.keys() == {"/predict", "/health", "/detector", "/metrics"}
    refused = paths["/predict"]["post"]["responses"]["default"]["content"]["application/json"]["schema"]
    assert refused["required"] == ["error"] and "422" not in paths["/predict"]["post"]["responses"]


def test_answers_have_the_form_that_is_published(port, photographs):
    published = json.loads(ask(port, "GET", "/openapi.json")[2])
    for method, path, form in (("post", "/predict", Answer), ("get", "/detector", Description)):
        schema = published["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{form.__name__}"}
        assert published["components"]["schemas"][form.__name__]["properties"].keys() == form.model_fields.keys()
    assert published["components"]["schemas"]["Region"]["required"] == ["box", "area", "peak", "centre"]
    content = (photographs / "d.png").read_bytes()
    for query in ("", "?name=d&mask=true&map=true"):
        # Strict: a form that said less, more or another type than the answer would be refused.
        told = ask(port, "POST", f"/predict{query}", content, Content_Type="image/png")[2]
        answer = Answer.model_validate_json(told, strict=True)
        assert answer.label == "anomalous" and (answer.mask is None) == (answer.map is None) == (not query)
    assert Description.model_validate_json(ask(port, "GET", "/detector")[2], strict=True).method


def test_all_that_the_page_names_is_served(port):
    names = re.findall(r'(?:href|src)="([\w.]+)"', ask(port, "GET", "/")[2].decode())
    answers = {name: ask(port, "GET", f"/{name}") for name in names}
    assert answers.keys() == {"common.css", "page.css", "page.js"}
    assert all(status == 200 for status, *_ in answers.values())
    # Each rule stands in one of them.
    rules = [set(answers[name][2].decode().split("\n\n")) for name in ("common.css", "page.css")]
    assert not rules[0] & rules[1]


# --- refusals -----------------------------------------------------------------------------------------


def picture(width, height):
    content = io.BytesIO()
    Image.new("RGB", (width, height), (90, 90, 90)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("body", "kind", "status", "problem"),
    [
        (b"", "image/png", 422, "the body is empty"),
        (b"not a picture", "image/png", 422, "can't be read as an image"),
        (picture(60, 60)[:100], "image/png", 422, "can't be read as an image"),
        (b"a text", "text/plain", 415, "Content-Type text/plain"),
        (b"a form", "application/x-www-form-urlencoded", 415, "image/png"),
        (bytes(400_000), "image/png", 413, "more than 0.3 MB"),
        (iter([bytes(100_000)] * 4), "image/png", 413, "more than 0.3 MB"),
        (picture(400, 300), "image/png", 413, "400 x 300 pixels, at most 100000"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(port, body, kind, status, problem, photographs):
    found, _, answer = post(port, body, Content_Type=kind)
    assert (
        found == status
        and problem in answer["error"]
        and "/" not in answer["error"].replace("image/", "").replace("text/", "").replace("application/", "")
    )
    assert post(port, (photographs / "a.png").read_bytes())[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "problem"),
    [
        ("POST", "/predict?mask=ja", 422, "mask: Input should be a valid boolean"),
        ("POST", f"/predict?name={'x' * 256}", 422, "name: String should have at most 255 characters"),
        ("GET", "/predict", 405, "GET /predict: Method Not Allowed; GET /openapi.json lists what is answered"),
        ("POST", "/predictions", 404, "POST /predictions: Not Found; GET /openapi.json lists"),
    ],
)
def test_every_refusal_has_the_same_form(port, method, path, status, problem):
    found, headers, content = ask(port, method, path, b"" if method == "POST" else None, Content_Type="image/png")
    assert found == status and json.loads(content).keys() == {"error"}
    assert json.loads(content)["error"].startswith(problem)
    assert status != 405 or headers["Allow"] == "POST"


def test_a_slow_request_is_given_up_and_a_full_house_says_so(detector, photographs, tmp_path):
    with served(detector, tmp_path, timeout=1, max_requests=1) as port:
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            waiting.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n1"
            )
            time.sleep(0.2)
            status, headers, _ = post(port, (photographs / "a.png").read_bytes())
            assert status == 503 and headers["Retry-After"] == "1"
            assert b" 408 " in waiting.recv(100)
        assert post(port, (photographs / "a.png").read_bytes())[0] == 200


def test_a_folder_that_a_cleaner_removed_is_made_anew(detector, photographs, tmp_path):
    folder = tmp_path / "bodies"
    folder.mkdir()
    body = (photographs / "a.png").read_bytes()
    with served(detector, folder) as port:
        folder.rmdir()
        assert post(port, body)[0] == 200
        folder.rmdir()
        folder.write_bytes(b"")  # where none can be made
        status, headers, answer = post(port, body)
        assert status == 503 and headers["Retry-After"] == "10" and str(tmp_path) not in answer["error"]
        assert "can't keep a photograph (a file is in the way)" in answer["error"]
        assert ask(port, "GET", "/health")[0] == 503
        folder.unlink()
        assert ask(port, "GET", "/health")[0] == 200 and folder.stat().st_mode & 0o777 == 0o700


def test_a_full_disk_is_told_and_passes(detector, photographs, tmp_path, monkeypatch):
    body = (photographs / "a.png").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with served(detector, tmp_path) as port:
        with monkeypatch.context() as patch:
            patch.setattr("texture_ad.deploy.service.limits.check_size", full)  # called before a block is written
            patch.setattr(Path, "write_bytes", full)
            for status, _, answer in (
                ask(port, "POST", "/predict", body, Content_Type="image/png"),
                ask(port, "GET", "/health"),
            ):
                assert status == 503 and b"can't keep a photograph (No space left on device)" in answer
        assert post(port, body)[0] == 200 and ask(port, "GET", "/health")[0] == 200


def test_a_stranger_s_folder_and_a_dead_thread_are_no_health(detector, tmp_path):
    limits = Limits(max_mb=1, max_pixels=100, max_requests=1, rate=None, timeout=1)
    service = Service(Scorer(detector, tmp_path, None, keep_maps=True), limits, None, "localhost", 1, lambda _: None)
    service.check_health()
    service._owner += 1
    with pytest.raises(Refusal, match=r"503.*another user's"):
        service.check_health()
    service.close()
    with pytest.raises(Refusal, match=r"503.*thread that scores has ended"):
        service.check_health()
    request = SimpleNamespace(headers={"content-type": "image/png"}, client=None)
    with pytest.raises(Refusal, match=r"503.*thread that scores has ended"):
        service.admit(request)
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_sends_too_fast_waits(detector, photographs, tmp_path):
    with served(detector, tmp_path, rate=2) as port:
        found = [post(port, b"x")[0] for _ in range(4)]
        assert found == [422, 422, 429, 429]
        headers = post(port, b"x")[1]
        assert headers["Retry-After"] == "1"


def test_the_rate_is_each_clients_own_and_clients_are_forgotten():
    now = [0.0]
    rate = RateLimit(10, lambda: now[0])
    for moment in range(100):  # a steady client may go on for ever
        now[0] = 0.1 * moment
        rate.check("steady")
    for _ in range(9):
        rate.check("other")
    rate.check("other")
    with pytest.raises(Refusal, match="429"):
        rate.check("other")
    for number in range(3000):
        now[0] += 1
        rate.check(f"client {number}")
    assert len(rate.due) < 1100
    slow = RateLimit(0.5, lambda: now[0])
    slow.check("a")
    with pytest.raises(Refusal) as refusal:
        slow.check("a")
    assert refusal.value.retry_after == pytest.approx(2)


def test_a_token_is_asked_for(detector, photographs, tmp_path):
    body = (photographs / "a.png").read_bytes()
    with served(detector, tmp_path, TOKEN) as port:
        assert post(port, body)[0] == post(port, body, Authorization="Bearer wrong")[0] == 401
        assert post(port, body, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(port, "GET", "/metrics")[0] == ask(port, "GET", "/detector")[0] == 401
        assert ask(port, "GET", "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(port, "GET", "/health")[0] == ask(port, "GET", "/")[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "factory.example"])
def test_others_reach_it_with_a_token_alone(host, saved, command):
    code, _, errors = command("serve", f"detector={saved}", f"host='{host}'")
    assert code == 2 and f"token=None: host={host} can be reached from other machines" in errors
    check_token(host, TOKEN)
    for token, found in (("short", "has too few characters"), ("", "is empty")):
        with pytest.raises(ParameterError, match=f"{found}; expected at least 16, from .* TEXTURE_AD_TOKEN"):
            check_token(host, token)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("port=null", "port=None: expected an integer from 0 to 65535"),
        ("port=99999", "port=99999: expected an integer from 0 to 65535"),
        ("port=http", "port=http: expected an integer from 0 to 65535"),
        ("port=8000.5", "port=8000.5: expected an integer from 0 to 65535"),
        ("host=2130706433", "host=2130706433: expected a name or an address"),
        ("host=null", "host=None: expected a name or an address"),
    ],
)
def test_an_address_that_is_none_is_told_before_the_detector_is_read(argument, message, command):
    assert command("serve", "detector=none.pt", argument) == (2, "", f"error: {message}\n")


def test_a_port_that_is_taken(saved, command):
    with listen("127.0.0.1", 0) as taken:
        number = taken.getsockname()[1]
        code, _, errors = command("serve", f"detector={saved}", f"port={number}")
    assert code == 2 and f"port={number}: can't listen at 127.0.0.1" in errors


def test_a_name_that_points_here_is_not_ours(port):
    assert ask(port, "GET", "/health", Host="attacker.example")[0] == 400
    for name in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
        check_host(name, "127.0.0.1")
    check_host("factory.example", "0.0.0.0")  # there the token counts


# --- one worker ---------------------------------------------------------------------------------------


def test_the_worker_scores_what_waits_together_and_a_bad_job_spoils_no_other():
    release = threading.Event()
    batches = []

    def work(jobs):
        release.wait()
        batches.append(list(jobs))
        if "bad" in jobs:
            raise UserError("broken")
        return [job.upper() for job in jobs]

    worker = Worker(work, batch_size=3)
    futures = [worker.submit(job) for job in ("a", "b", "bad", "c", "d")]
    release.set()
    worker.close()  # after what waits
    assert [f.result() for f in futures if f is not futures[2]] == ["A", "B", "C", "D"]
    assert isinstance(futures[2].exception(), UserError)
    assert max(map(len, batches)) == 3 and [len(b) for b in batches].count(1) >= 1


def test_a_cancelled_job_holds_up_no_other():
    started, release = threading.Event(), threading.Event()
    worked = []

    def work(jobs):
        started.set()
        release.wait()
        worked.extend(jobs)
        return list(jobs)

    worker = Worker(work, batch_size=1)
    futures = [worker.submit("a")]
    started.wait()
    futures += [worker.submit(job) for job in ("b", "c")]
    assert futures[1].cancel()
    release.set()
    worker.close()
    assert worked == ["a", "c"] and futures[2].result() == "c"


# --- the page -----------------------------------------------------------------------------------------


class Window(Browser):
    """A page of a service."""

    def visit(self, url, width):
        self.events = []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && !/Connecting/.test(document.body.textContent)")

    def until(self, script):
        end = time.monotonic() + 60
        while not self.evaluate(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def choose(self, paths):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)
        self.until("!/waiting|None/.test(document.getElementById('summary').textContent)")

    def press(self, key):
        for kind in ("rawKeyDown", "keyUp"):
            code = {"Tab": 9, "Home": 36, "ArrowRight": 39}[key]
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def text(self, selector):
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")

    def problems(self):
        """What the browser complained of, but for answers that are errors."""
        entries = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        thrown = [e for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return thrown + [e for e in entries if e["level"] == "error" and e["source"] != "network"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(detector, photographs, tmp_path):
    (tmp_path / "bodies").mkdir()
    bad = tmp_path / "<b>bad.png"
    bad.write_bytes(b"no picture")
    files = [*sorted(photographs.iterdir()), bad]
    with served(detector, tmp_path / "bodies", TOKEN) as port, Window(tmp_path / "profile") as page:
        url = f"http://127.0.0.1:{port}/"
        page.visit(url, 1200)
        assert page.evaluate("document.getElementById('main').hidden")
        page.evaluate(f"get('token').value = '{TOKEN}'; get('login').requestSubmit()")
        page.until("!document.getElementById('main').hidden")
        for width in (1200, 390):
            page.visit(url, width)  # the token is remembered
            page.choose(files)
            assert page.text("#summary") == "5 photographs: 3 normal, 1 anomalous, 1 not scored."
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        # What a verdict is does not depend on colours, what a control is not on its place.
        assert page.text("#cards li:nth-child(4) .verdict") == "anomalous"
        assert "can't be read as an image" in page.text("#cards li:nth-child(5) .warning")
        assert page.text("#cards li:nth-child(5) h3") == "<b>bad.png"
        unnamed = "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length"
        assert page.evaluate(unnamed) == 0
        pictures = "[...document.querySelectorAll('#cards canvas')].filter((e) => e.checkVisibility())"
        assert page.evaluate(f"{pictures}.length") == 12
        assert page.evaluate(f"{pictures}.every((e) => e.ariaLabel && e.width > 100)")
        # The keyboard moves the threshold: everything is above its lowest place.
        page.evaluate("get('threshold').focus()")
        page.press("Home")
        assert page.text("#level") == "0.01"
        assert page.text("#summary").endswith("4 anomalous, 1 not scored; the moved threshold changes 3.")
        assert page.text("#cards li:nth-child(1) .was") == "normal at the detector's own threshold"
        assert "100.0 % of normal photographs" in page.text("#promise")
        page.evaluate("get('changed').click()")
        assert page.evaluate("document.querySelectorAll('#cards li:not([hidden])').length") == 3
        page.evaluate("get('reset').click(); get('changed').click()")
        assert page.text("#summary") == "5 photographs: 3 normal, 1 anomalous, 1 not scored."
        page.evaluate("get('order').value = 'high'; get('order').dispatchEvent(new Event('change'))")
        assert page.text("#cards li:nth-child(1) h3") == "d.png"
        rows = page.evaluate("csv()").splitlines()
        assert len(rows) == 6 and rows[4].startswith('"d.png","anomalous","0.') and "can't be read" in rows[5]
        assert page.evaluate("rows()[3].regions_at_own_threshold.length > 0 && !('map' in rows()[3])")
        # The mask shown is the service's own, and a photograph that comes later takes its place in the order.
        area = page.evaluate("rows()[3].regions_at_own_threshold.reduce((sum, region) => sum + region.area, 0)")
        share = float(page.text("#cards li:nth-child(1) .mask + figcaption").partition(" %")[0])
        assert share == pytest.approx(100 * area / (160 * 180), abs=0.6)
        page.choose([photographs / "d.png"])
        assert page.text("#cards li:nth-child(2) h3") == "d.png"
        assert page.problems() == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_of_a_method_without_maps(saved, photographs, tmp_path):
    """It neither counts regions nor draws maps that the method doesn't have."""
    (tmp_path / "bodies").mkdir()
    detector = load(saved)
    detector.calibration_maxima = detector.calibration_maxima[:0]
    forward = detector.forward
    detector.forward = lambda images: forward(images)._replace(anomaly_maps=None)
    with served(detector, tmp_path / "bodies") as port, Window(tmp_path / "profile") as page:
        page.visit(f"http://127.0.0.1:{port}/", 390)
        page.choose([photographs / "d.png"])
        assert page.text("#cards .verdict") == "anomalous"
        assert page.text("#cards .photo + figcaption") == "this method says nothing of regions"
        shown = "[...document.querySelectorAll('#cards canvas')].filter((e) => e.checkVisibility()).length"
        assert page.evaluate(shown) == 1
        assert page.problems() == []


# --- many requests ------------------------------------------------------------------------------------


def test_a_miniature_of_the_soak_keeps_its_bounds(saved, photographs, monkeypatch):
    """From the command line, with bad requests and a kill among them, to an orderly end."""
    monkeypatch.setattr(soak, "MAX_GROWTH", 0.5)  # of the first few requests
    monkeypatch.setattr(serve_soak, "SLOW_SHARE", 0.2)
    monkeypatch.setattr(serve_soak, "TIMEOUT", 0.5)

    def start(call, stdout, text):
        process = Forked(*call[2:], env=environment())
        lines = process.lines()
        process.stdout = SimpleNamespace(readline=lambda: next(lines, ""))
        return process

    monkeypatch.setattr(serve_soak, "subprocess", SimpleNamespace(Popen=start, PIPE=None))
    result = serve_soak.soak(saved, photographs, count=80, clients=4)
    assert result["kept"], result
    assert sum(result["kinds"].values()) == 80 and len(result["kinds"]) >= 7 and result["exit_code"] == 0
