"""Does MLflow answer? A server that does, one that refuses, one that is none, one that is silent, and files."""

import base64
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from promptmeup.tracking.reach import reach


class _Handler(BaseHTTPRequestHandler):
    status, answer, seen, pause = 200, b'{"experiments": []}', "", 0.0

    def do_POST(self) -> None:
        type(self).seen = f"{self.path} {self.headers.get('Authorization')}"
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.pause)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    for name, value in (("status", 200), ("answer", b'{"experiments": []}'), ("seen", ""), ("pause", 0.0)):
        monkeypatch.setattr(_Handler, name, value)
    http = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_server_that_answers(server: str) -> None:
    assert reach(server) == (True, f"{server} answers")
    assert _Handler.seen == "/api/2.0/mlflow/experiments/search None"


def test_who_asks(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, text = reach(server.replace("//", "//ada:s%40cret@") + "/mlflow/")
    assert answers and "cret" not in text and "***@" in text
    given = base64.b64encode(b"ada:s@cret").decode()
    assert _Handler.seen == f"/mlflow/api/2.0/mlflow/experiments/search Basic {given}"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0")
    reach(server)
    assert _Handler.seen.endswith("Bearer t0")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refuses this user (401): set MLFLOW_TRACKING_USERNAME"),
        (404, "answers 404, so it may be no MLflow server"),
    ],
)
def test_a_server_that_refuses(
    server: str, monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    monkeypatch.setattr(_Handler, "status", status)
    answers, text = reach(server)
    assert not answers and message in text


def test_another_kind_of_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "answer", b"<html>")
    answers, text = reach(server)
    assert not answers and "not as an MLflow server; training goes on without it" in text


def test_a_silent_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "pause", 0.6)
    answers, text = reach(server, timeout=0.2)
    assert not answers and "does not answer within 0.2 s" in text and "tracking.uri=null" in text


def test_nobody_there() -> None:
    answers, text = reach("http://127.0.0.1:9")
    assert (
        not answers
        and "http://127.0.0.1:9 does not answer" in text
        and "the journal keeps every value" in text
    )


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    assert reach(uri) == (True, f"{uri}: will be made")
    assert not (tmp_path / "new").exists()  # a look changes nothing
    (tmp_path / "mlflow.db").write_bytes(json.dumps({}).encode())
    assert reach(f"sqlite:///{tmp_path}/mlflow.db")[1].endswith(": there")
    monkeypatch.setattr("os.access", lambda *_: False)
    answers, text = reach(uri)
    assert not answers and f"cannot write to {tmp_path}; set tracking.uri" in text
    assert reach("databricks") == (
        True,
        "databricks: not asked, another kind of store than a server or SQLite",
    )
