"""A real `mlflow server` on loopback that can be killed and started again, faults in front of it, and PostgreSQL."""

import contextlib
import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

START_SECONDS = 90


class MlflowServer:
    """`mlflow server` with its store at `backend` and its artifacts in `folder`, always on the same port."""

    def __init__(self, folder: Path, *, backend: str) -> None:
        self.folder, self.backend = folder, backend
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self.folder / "server.log").open("ab") as log:
            # a session of its own: it starts processes that must go with it
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when the server answers."""
        end = time.monotonic() + START_SECONDS
        while True:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer,
            ):
                if answer.status == 200:
                    return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < end, (self.folder / "server.log").read_text()[-3000:]
            time.sleep(0.1)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, *, backend: str | None = None) -> Iterator[MlflowServer]:
    server = MlflowServer(folder, backend=backend or f"sqlite:///{folder}/mlflow.db")
    try:
        yield server
    finally:
        server.kill()


class FaultyProxy(ThreadingHTTPServer):
    """Stands before `port`. `fault` is None (passes all on), or what happens to every request:

    "500" (an answer), "slow" (each answer takes `seconds`), "hang" (never answers), "lost" (is passed on, the answer
    is not), "files" (500 for artifacts alone).
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        self.behind = port
        self.fault: str | None = None
        self.seconds = 2.0
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _Proxy)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections are broken on purpose."""


class _Proxy(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _pass_on(self) -> None:
        if self.path.startswith("/fault/"):  # for a benchmark, whose proxy is a process of its own
            self.server.fault = self.path.rpartition("/")[2] or None
            return self._answer(200, b"")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault
        self.server.requests[fault or "passed"] += 1
        if fault == "500" or (fault == "files" and "mlflow-artifacts" in self.path):
            return self._answer(500, b"{}")
        if fault == "slow":
            self.server.closing.wait(self.server.seconds)
        if fault == "hang":
            self.server.closing.wait()
            self.close_connection = True
            return None
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        behind.request(self.command, self.path, body, headers | {"Host": f"127.0.0.1:{self.server.behind}"})
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        if fault == "lost":
            self.close_connection = True
            return None
        return self._answer(answer.status, content, answer.getheader("Content-Type", "application/json"))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def faulty_proxy(port: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(port)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def postgres_programs() -> Path | None:
    """Return the folder of Debian's newest PostgreSQL, or of the one on the path; None where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).parent if found else None


@contextlib.contextmanager
def postgres(folder: Path, programs: Path) -> Iterator[str]:
    """Run a throw-away PostgreSQL in `folder` and yield the address of an empty database in it.

    It listens on a socket in `folder` alone. As root it runs as the user postgres or nobody: it refuses to be root.
    """
    data = folder / "data"
    data.mkdir()
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        names = [entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")]
        owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        for path in (folder, data):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        for path in folder.parents:  # pytest's folders are for their owner alone
            if path.stat().st_uid == 0 and path != Path("/") and not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o001)
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, **user}
    initdb = [
        programs / "initdb",
        "-D",
        data,
        "-U",
        "mlflow",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ]
    subprocess.run(initdb, check=True, **quiet)
    # of a throw-away database nothing need survive a power cut
    settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, *settings], stderr=subprocess.DEVNULL, **quiet
    )
    try:
        ready = [programs / "pg_isready", "-h", folder, "-U", "mlflow", "-d", "postgres"]
        end = time.monotonic() + START_SECONDS
        while subprocess.run(ready, **quiet).returncode:
            assert server.poll() is None and time.monotonic() < end, "PostgreSQL does not start"
            time.sleep(0.05)
        yield f"postgresql+psycopg://mlflow@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # its fast shutdown
        server.wait(30)


def main(port: str) -> None:
    proxy = FaultyProxy(int(port))
    print(proxy.server_address[1], flush=True)
    proxy.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
