"""Servers of shards: plain HTTP with faults on demand, also as a process that can be killed, and S3.

The faulty HTTP server answers an S3 client's GET as well (s3://bucket/a is /bucket/a at its endpoint_url).
"""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

PIECE = 64 << 10
ROOT = Path(__file__).parents[2]


class FaultyServer(ThreadingHTTPServer):
    """Serves `folder`; `faults[name]` are used up by the next requests for files of that name.

    A fault is "break" (off in the middle, without goodbye), "short" (ends early, as if whole), "long" (a
    byte too many), "wrong" (one bit), "hang" (in the middle), "slow" (1 MB/s), or an HTTP status.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.faults: dict[str, list[str | int]] = {}
        self.always: dict[str, str | int] = {}
        self.requests: Counter[str] = Counter()
        self.times: list[float] = []
        self.lock = Lock()
        self.closing = Event()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, name: str) -> str | int | None:
        with self.lock:
            self.requests[name] += 1
            self.times.append(time.monotonic())
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting else self.always.get(name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of these tests break off."""


class _Handler(SimpleHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"  # connections stay open for more requests, as those of real servers do

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, directory=str(args[2].folder), **kwargs)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fault = self.server.next_fault(self.path.partition("?")[0].rpartition("/")[2])
        if fault is None:
            return super().do_GET()
        if isinstance(fault, int):
            return self.send_error(fault)
        self.close_connection = True
        content = bytearray(Path(self.translate_path(self.path)).read_bytes())
        if fault == "wrong":
            content[len(content) // 2] ^= 1
        if fault == "long":
            content += b"x"
        self.send_response(200)
        if fault not in ("short", "long"):  # without a length, the connection's end is the file's
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        if fault in ("wrong", "long"):
            self.wfile.write(content)
        elif fault == "slow":
            for start in range(0, len(content), PIECE):
                self.wfile.write(content[start : start + PIECE])
                time.sleep(PIECE / 1e6)
        else:
            self.wfile.write(content[:half])
            if fault == "hang":
                self.server.closing.wait()
        return None


@contextlib.contextmanager
def faulty_server(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class ServerProcess:
    """A slow HTTP server in a process of its own, to be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start(slow=True)

    def start(self, *, slow: bool) -> None:
        command = [sys.executable, "-m", __name__, str(self.folder), str(self.port), str(int(slow))]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def wait_for_request(self) -> None:
        assert self.process.stdout
        self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run moto's S3 server and yield the fsspec options that reach it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield {"endpoint_url": f"http://{host}:{port}", "key": "user", "secret": "password"}
    finally:
        server.stop()


class _ReportingServer(FaultyServer):
    def next_fault(self, name: str) -> str | int | None:
        print(name, flush=True)
        return super().next_fault(name)


def _main(folder: str, port: str, slow: str) -> None:
    server = _ReportingServer(Path(folder), int(port))
    if int(slow):
        server.always = dict.fromkeys(os.listdir(folder), "slow")
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _main(*sys.argv[1:])
