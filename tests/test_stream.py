"""The report of a watched stream: its control charts against simulated streams, its page, its memory over restarts."""

import base64
import errno
import io
import json
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from texture_ad.deploy.notify import notifier
from texture_ad.deploy.scorer import COLUMNS, Row
from texture_ad.deploy.stream import RECENT, Stream, write_report
from texture_ad.deploy.watch import Rows, bytes_of_complete_rows
from texture_ad.errors import ParameterError
from texture_ad.evaluation.calibration import Decision, FalseAlarms, conformal_threshold, false_alarms
from texture_ad.evaluation.stream import BLOCK, WEIGHT, rank_chart, ranks, share_chart
from texture_ad.files import csv_text


def test_ranks_are_uniform_for_normal_images_whatever_their_scores():
    rng = np.random.default_rng(0)
    calibration, stream = np.exp(rng.normal(size=(2, 3000)))
    found = ranks(stream, calibration)
    assert found.mean() == pytest.approx(0.5, abs=0.02) and found.var() == pytest.approx(1 / 12, abs=0.005)
    assert np.allclose(ranks([0.5, 2.0, 9.0], [1.0, 2.0, 3.0]), [0.125, 0.5, 0.875])


@pytest.mark.parametrize("count", [20, 200])
def test_a_normal_stream_stays_in_control(count):
    """Few calibration images are no reason for an alarm: the limits know how few they are."""
    rng = np.random.default_rng(1)
    out = [rank_chart(rng.normal(size=300), rng.normal(size=count)).out().mean() for _ in range(200)]
    assert np.mean(out) < 0.01


def test_limits_are_three_deviations_of_a_weighted_mean_of_ranks():
    chart = rank_chart(np.zeros(100), np.arange(50.0))
    for t in (1, 2, 10, 100):
        weights = WEIGHT * (1 - WEIGHT) ** np.arange(t)  # of the ranks, whose variance is 1 / 12
        deviation = np.sqrt((weights**2).sum() / 12 + 1 / (12 * 50))
        assert (chart.low[t - 1], chart.high[t - 1]) == pytest.approx((0.5 - 3 * deviation, 0.5 + 3 * deviation))


def test_a_drift_below_the_threshold_is_seen_in_the_ranks_and_not_in_the_shares():
    rng = np.random.default_rng(2)
    calibration = rng.normal(size=200)
    stream = np.concatenate((rng.normal(size=300), rng.normal(loc=1.0, size=100)))
    chart = rank_chart(stream, calibration, first=1001)
    assert not chart.out()[:300].any() and chart.out()[-50:].mean() > 0.9 and chart.number[-1] == 1400
    assert not share_chart(stream > 4, false_alarms(torch.tensor(calibration), 4.0)).out().any()


@pytest.mark.parametrize("count", [6, 19, 28, 99])
def test_a_normal_streams_shares_stay_in_control(count):
    rng = np.random.default_rng(3)
    out = []
    for _ in range(400):
        calibration = torch.tensor(rng.normal(size=count))
        threshold = conformal_threshold(calibration, 0.05)
        chart = share_chart(rng.normal(size=301) > threshold, false_alarms(calibration, threshold))
        out.append(chart.out().mean())
    assert np.mean(out) < 0.01


def test_shares_are_those_of_blocks():
    above = np.zeros(2 * BLOCK + 10, bool)
    above[BLOCK : BLOCK + 20] = True
    chart = share_chart(above, FalseAlarms(0.05, 0.03, 0.08, 399), first=11)
    assert np.array_equal(chart.value, [0, 20 / BLOCK, 0]) and np.array_equal(chart.out(), [False, True, False])
    assert chart.number.tolist() == [10 + BLOCK, 10 + 2 * BLOCK, 20 + 2 * BLOCK]
    assert chart.high[2] > chart.high[0]  # a block of few images says less


# --- the report of a watched folder -------------------------------------------------------------------


class Calibrated:
    """What a stream's report wants of a scorer."""

    source = "detector of a test <b>"

    def __init__(self, calibration, rate):
        scores = torch.tensor(calibration)
        threshold = conformal_threshold(scores, rate)
        told = false_alarms(scores, threshold)
        self.decision = Decision(threshold, None, 1, 1.0, told, None, rate, None)
        self.detector = SimpleNamespace(calibration_scores=scores)


def rows(scores, threshold, warning=""):
    return [
        Row(f"{i}.png", f"{s:.8g}", anomalous=str(int(s > threshold)), warning=warning) for i, s in enumerate(scores)
    ]


def test_the_report_says_whether_the_stream_is_in_control(tmp_path):
    rng = np.random.default_rng(3)
    scorer = Calibrated(rng.normal(size=200), 0.05)
    stream = Stream(scorer.decision.threshold)
    path = tmp_path / "stream.html"
    write_report(stream, scorer, path)
    assert not path.exists()  # nothing to tell
    stream.add([*rows(rng.normal(size=300), scorer.decision.threshold), Row("broken.png", warning="empty")])
    write_report(stream, scorer, path)
    page = path.read_text(encoding="utf-8")
    assert "In control" in page and "of 300 images" in page and page.count("<figure>") == 3
    assert "detector of a test &lt;b&gt;" in page and "http" not in page.split("</style>")[1].split("<script>")[0]
    stream.add(rows(rng.normal(loc=1.5, size=100), scorer.decision.threshold, "brightness 9"))
    write_report(stream, scorer, path)
    page = path.read_text(encoding="utf-8")
    since = int(re.search(r"Out of control since image (\d+): the scores are higher", page)[1])
    assert 300 < since < 320 and "100 images differ from the training images" in page
    assert [p.name for p in tmp_path.iterdir()] == ["stream.html"]


@pytest.mark.parametrize("after", [0, 3])
def test_alarms_that_the_ranks_alone_do_not_show_are_no_control(tmp_path, after):
    """A third of defects among normal images moves the mean rank little, the share above the threshold much."""
    rng = np.random.default_rng(4)
    scorer = Calibrated(rng.normal(size=99), 0.05)
    stream = Stream(scorer.decision.threshold)
    scores = rng.normal(size=400 + after)
    scores[352:400:3] += 9
    stream.add(rows(scores, scorer.decision.threshold))
    write_report(stream, scorer, tmp_path / "stream.html")
    page = (tmp_path / "stream.html").read_text(encoding="utf-8")
    assert not rank_chart(scores, scorer.detector.calibration_scores.numpy()).out()[-1]
    told = re.search(
        r"More images .* explains: (\S+)% of the block that ends with image 400; .*% to (\S+)% would", page
    )
    assert float(told[1]) > float(told[2]) and "In control" not in page


def test_a_long_stream_takes_no_more_memory_and_keeps_its_counts(tmp_path):
    stream = Stream(1.0)
    stream.add(rows(np.zeros(RECENT + 10), 1.0))
    assert len(stream.recent) == RECENT and stream.counts["scored"] == RECENT + 10


def test_a_restart_remembers_the_stream(tmp_path):
    with Rows(tmp_path / "scores.csv", 1.0) as first:
        first.append([*rows([0.5, 2.0], 1.0), Row("broken.png", warning="empty")])
    with Rows(tmp_path / "scores.csv", 1.0) as second:
        assert second.stream.counts == first.stream.counts and second.stream.recent == first.stream.recent
        assert list(second.stream.counts.values()) == [2, 1, 0, 1, 0]
    with Rows(tmp_path / "scores.csv", 0.4) as third:  # judged anew
        third.append([Row("broken.png", "0.1", anomalous="0")])
        assert list(third.stream.counts.values()) == [3, 2, 0, 0, 0]
        assert [above for _, above in third.stream.recent] == [True, True, False]


def test_a_file_with_a_row_after_its_score_is_counted_once_as_changed():
    stream = Stream(1.0)
    stream.add([Row("a.png", warning="empty"), Row("a.png", "0.5")])  # which was broken at first
    assert stream.scores.keys() == {"a.png"} and not stream.changed
    stream.add([Row("b.png", "0.5"), Row("b.png", warning="empty")])
    assert stream.scores.keys() == {"a.png"} and stream.unreadable == {"b.png"}  # to be tried again after a restart
    stream.add([Row("b.png", "2"), Row("b.png", "3")])
    assert stream.scores.keys() == {"a.png", "b.png"} and list(stream.changed) == ["b.png"]
    assert list(stream.counts.values()) == [4, 2, 0, 0, 1]


def test_a_row_is_complete_with_the_line_break_after_its_name_s_own():
    rows = [COLUMNS, Row("a\nb.png", "1.5"), Row('"c"\n.png', "2"), Row("d.png", "3")]
    ends = [len(csv_text(rows[: n + 1])) for n in range(len(rows))]
    content = csv_text(rows)
    for cut in range(len(content) + 1):
        expected = max((end for end in ends if end <= cut), default=0)
        assert bytes_of_complete_rows(io.BytesIO(content[:cut])) == expected


def test_a_write_that_fails_leaves_no_part_of_a_row(tmp_path, monkeypatch):
    with Rows(tmp_path / "scores.csv", 1.0) as found:
        found.append(rows([0.5], 1.0))
        before = (tmp_path / "scores.csv").read_bytes()
        write = os.write
        calls = []

        def half(file, content):
            calls.append(len(content))
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "no space left")
            return write(file, content[:5])

        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
            patch.setattr(os, "write", half)
            found.append([Row("late.png", "2")])
        assert (tmp_path / "scores.csv").read_bytes() == before and "late.png" not in found.names
        found.append([Row("late.png", "2")])
        assert (tmp_path / "scores.csv").read_bytes() == before + csv_text([Row("late.png", "2")])


# --- news for other programs --------------------------------------------------------------------------


@pytest.fixture
def receiver():
    """A web server that remembers what is posted to it."""
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if "Authorization" in self.headers:
                taken.append(self.headers["Authorization"])
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()


def test_a_web_hook_gets_every_result(receiver):
    url, taken = receiver
    with notifier(f"{url}/results", None) as tell:
        for i in range(3):
            tell({"name": f"{i}.png", "score": i / 2})
    assert taken == [{"name": f"{i}.png", "score": i / 2} for i in range(3)]


def test_a_web_hook_gets_a_user_and_a_password_as_a_broker_does(receiver):
    url, taken = receiver
    with notifier(url.replace("//", "//line:p%40ss@") + "/results", None) as tell:
        tell({"name": "0.png"})
    assert taken == [{"name": "0.png"}, "Basic " + base64.b64encode(b"line:p@ss").decode()]


def test_what_a_receiver_does_not_take_is_counted_and_stops_nothing(receiver, capsys):
    url, _ = receiver
    with notifier(f"{url}/broken", None) as tell:
        tell({"name": "a"})
        tell({"name": "b"})
    errors = capsys.readouterr().err
    assert "a message was lost (HTTPError: HTTP Error 500" in errors and "2 messages were lost" in errors


def test_a_broker_gets_every_result():
    """As much of MQTT 3.1.1 as a publication takes: CONNECT and CONNACK, PUBLISH and PUBACK."""
    pytest.importorskip("paho.mqtt.client")
    packets = []

    def broker():
        connection, _ = listening.accept()
        stream = connection.makefile("rb")
        while head := stream.read(1):
            length = stream.read(1)[0]  # of packets below 128 bytes
            body = stream.read(length)
            packets.append((head[0] >> 4, body))
            if head[0] >> 4 == 1:
                connection.sendall(bytes([0x20, 2, 0, 0]))
            elif head[0] >> 4 == 3:
                topic = int.from_bytes(body[:2], "big")
                connection.sendall(bytes([0x40, 2]) + body[2 + topic : 4 + topic])
                if len([kind for kind, _ in packets if kind == 3]) == 2:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=broker, daemon=True)
        thread.start()
        with notifier(None, f"mqtt://user:secret@127.0.0.1:{listening.getsockname()[1]}/line/1") as tell:
            tell({"score": 1})
            tell({"score": 2})
        thread.join(10)
    assert packets[0][0] == 1 and b"user" in packets[0][1] and b"secret" in packets[0][1]
    published = [body for kind, body in packets if kind == 3]
    assert [body[2:8] for body in published] == [b"line/1"] * 2
    assert [body[10:] for body in published] == [b'{"score": 1}', b'{"score": 2}']


@pytest.mark.parametrize(
    ("webhook", "mqtt", "problem"),
    [
        ("ftp://user:secret@host/x?key=secret", None, "webhook=host: expected a URL"),
        (None, "mqtt://host", "mqtt=host: expected a URL"),
        (None, "http://user:secret@host/topic", "mqtt=host: expected a URL"),
    ],
)
def test_receivers_that_are_none(webhook, mqtt, problem):
    with pytest.raises(ParameterError, match=problem) as error:
        notifier(webhook, mqtt)
    assert "secret" not in str(error.value)
