"""W&B's workspace and report, through its real client to a server that answers as W&B's would."""

import gzip
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from forked import run_module

pytest.importorskip("wandb_workspaces")

ANSWER = {
    "viewer": {"id": "1", "entity": "team", "username": "someone", "flags": "{}", "teams": {"edges": []}},
    "project": {"id": "UHJvamVjdDox", "internalId": "UHJvamVjdDox", "name": "texture_ad"},
    "models": {
        "edges": [
            {
                "cursor": "a",
                "node": {
                    "id": "1",
                    "name": "texture_ad",
                    "entityName": "team",
                    "user": None,
                    "createdAt": "2026-01-01",
                    "isBenchmark": False,
                },
            }
        ],
        "pageInfo": {"endCursor": "a", "hasNextPage": False},
    },
    "upsertView": {"view": {"id": "Vmlldzox", "name": "view", "displayName": "view"}, "inserted": True},
}


class Server(BaseHTTPRequestHandler):
    views: list[dict]

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self._answer(b"{}")

    def do_POST(self):
        content = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while length := int(self.rfile.readline(), 16):
                content += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        if b"upsertView" in content:
            self.views.append(json.loads(content)["variables"])
        self._answer(json.dumps({"data": ANSWER}).encode())

    def log_message(self, *_):
        pass


def workspace(home, *args, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return run_module("texture_ad.reporting.workspace", *args, env=clean | {"HOME": str(home)} | env)


def test_workspace_and_report_are_saved_grouped_by_sweep_and_setting(tmp_path):
    views: list[dict] = []
    handler = type("Recording", (Server,), {"views": views})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = workspace(
            tmp_path,
            "team",
            "--group",
            "flow_depth",
            WANDB_API_KEY="0" * 40,
            WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}",
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "team/texture_ad/reports/" in done.stdout
    overview, report = views
    assert (overview["entityName"], overview["projectName"]) == ("team", "texture_ad")
    (runs,) = json.loads(overview["spec"])["section"]["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group", "jobType"]
    for logged in ("val/nll", "dictionary/residual", "test/image_auroc", "figures/tsne"):
        assert logged in overview["spec"] and logged in report["spec"]
    assert "flow_depth" in report["spec"] and "flow_depth" in report["displayName"]


def test_without_a_server_it_says_what_is_missing(tmp_path):
    done = workspace(tmp_path, "team")
    assert done.returncode == 2 and "error: W&B: no API key" in done.stderr
    done = workspace(tmp_path, "team", WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 2 and "http://127.0.0.1:9 does not answer" in done.stderr
