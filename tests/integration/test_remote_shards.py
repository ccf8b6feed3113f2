"""Shards from real servers, HTTP and S3: what breaks on the way, who fetches what, forks and kills."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from promptmeup.data.remote import RemoteFolder, StagingConfig
from promptmeup.data.stager import Stager
from promptmeup.data.transfers import CHUNK
from promptmeup.errors import ConfigError, ShardError
from tests.support.servers import ServerProcess, faulty_server, s3_server
from tests.support.shard_files import fetch_all, shard_cache, start_fetching, write_files

SIZE = 1_000_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def no_proxy():
    """The servers are on this machine; a proxy of the environment would not find them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """The folder that the HTTP servers serve, with the split bucket/train in it."""
    folder = tmp_path_factory.mktemp("served")
    write_files(folder / "bucket/train", number=5, size=SIZE)
    (folder / "bucket/train/manifest.json").write_text("{}")
    (folder / "bucket/train/labels/bank").mkdir(parents=True)
    (folder / "bucket/train/labels/bank/manifest.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def shards(served):
    paths = sorted((served / "bucket/train").glob("*.tar"))
    return [(path.name, SIZE, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


@pytest.fixture
def server(served):
    with faulty_server(served) as server:
        yield server


@pytest.fixture(scope="session")
def s3(served):
    """Options of moto's S3 server, with the same files in its bucket."""
    import s3fs

    with s3_server() as options:
        filesystem = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        filesystem.mkdir("bucket")
        for path in (served / "bucket").rglob("*"):
            if path.is_file():
                filesystem.pipe(str(path.relative_to(served)), path.read_bytes())
        yield options


@pytest.fixture(params=["http", "s3"])
def client(request, server, tmp_path):
    """Makes a cache whose shards come from the faulty server, by HTTP or by an S3 client."""

    def make(**settings):
        if request.param == "http":
            return shard_cache(f"{server.url}/bucket/train", tmp_path / "cache", **settings)
        options = {"endpoint_url": server.url, "anon": True}
        return shard_cache("s3://bucket/train", tmp_path / "cache", options=options, **settings)

    return make


def fetch(cache, shard, **kwargs):
    return cache.fetch(shard[0], size=shard[1], sha256=shard[2], **kwargs)


def files(cache):
    """Return the names in the cache's folder, but for the locks."""
    return sorted(path.name for path in cache.path("x").parent.iterdir() if path.name != ".locks")


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def is_gone(process):
    """Return whether a process that is not our child has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("fault", ["break", "wrong", "short", "long", 500, 503, 429])
def test_faults_that_pass(client, server, shards, fault):
    server.faults = {shards[0][0]: [fault, fault]}
    cache = client()
    fetch_all(cache, shards[:2])
    assert server.requests[shards[0][0]] == 3
    assert server.requests[shards[1][0]] == 1
    assert files(cache) == [shard[0] for shard in shards[:2]]


def test_hanging_server(client, server, shards):
    server.faults = {shards[0][0]: ["hang"]}
    start = time.monotonic()
    fetch_all(client(timeout=0.5), shards[:1])
    assert 0.5 <= time.monotonic() - start < 10
    server.always = {shards[0][0]: "hang"}
    cache = client(timeout=0.2, attempts=2)
    cache.path(shards[0][0]).unlink()
    with pytest.raises(ShardError, match=r"2 attempts in .* because of this: nothing came for 0.2 s \(\w+"):
        fetch(cache, shards[0])
    assert files(cache) == []


def test_slow_but_steady_is_no_fault(client, server, shards):
    server.always = {shards[0][0]: "slow"}
    start = time.monotonic()
    fetch_all(client(timeout=0.5), shards[:1])
    assert time.monotonic() - start > 0.8
    assert server.requests[shards[0][0]] == 1


@pytest.mark.parametrize(("fault", "reason"), [("wrong", "SHA-256"), ("break", ""), (500, "")])
def test_faults_that_stay(client, server, shards, fault, reason):
    server.always = {shards[0][0]: fault}
    cache = client(attempts=3)
    with pytest.raises(ShardError) as caught:
        fetch(cache, shards[0])
    message = str(caught.value)
    assert f"cannot fetch {cache.remote.url}/{shards[0][0]}: 3 attempts in " in message
    assert reason in message
    assert "is the server reachable from this node, and was the corpus packed again meanwhile?" in message
    assert server.requests[shards[0][0]] == 3
    assert files(cache) == []


def test_pauses_double(server, shards, tmp_path):
    server.always = {shards[0][0]: 503}
    cache = shard_cache(f"{server.url}/bucket/train", tmp_path / "cache", backoff=0.2, attempts=4)
    with pytest.raises(ShardError, match="4 attempts"):
        fetch(cache, shards[0])
    pauses = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    for pause, longest in zip(pauses, (0.2, 0.4, 0.8), strict=True):
        assert longest / 2 <= pause < longest + 1  # a busy machine


@pytest.mark.parametrize("fault", [401, 403])
def test_refusals_are_not_repeated(server, shards, tmp_path, fault):
    server.always = {shards[0][0]: fault}
    options = {"ssl": False}
    url = server.url.replace("//", "//user:secret@")
    cache = shard_cache(f"{url}/bucket/train", tmp_path / "cache", options=options)
    with pytest.raises(ShardError) as caught:
        fetch(cache, shards[0])
    message = str(caught.value)
    assert "secret" not in message
    assert message.startswith(
        f"the server refuses {server.url}/bucket/train/{shards[0][0]}: ClientResponseError: {fault}"
    )
    assert message.endswith("check the address, your credentials and data.cache.options (given: ssl)")
    assert server.requests[shards[0][0]] == 1


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_gone_is_not_asked_for_again(server, shards, tmp_path, status):
    server.always = {shards[0][0]: status}
    cache = shard_cache(f"{server.url}/bucket/train", tmp_path / "cache")
    with pytest.raises(ShardError) as caught:
        fetch(cache, shards[0])
    assert str(caught.value) == (
        f"{cache.remote.url}/{shards[0][0]} is not on the server: the corpus was moved, deleted or packed "
        "again; check the address, then start the run again"
    )
    assert server.requests[shards[0][0]] == 1
    with pytest.raises(FileNotFoundError):
        cache.remote.read(shards[0][0])


def test_no_server(served, shards, tmp_path):
    with faulty_server(served) as server:
        url = server.url.replace("//", "//user:secret@")
    cache = shard_cache(f"{url}/bucket/train", tmp_path / "cache", attempts=3)
    for ask in (
        lambda: fetch(cache, shards[0]),
        lambda: cache.remote.read("x"),
        lambda: cache.remote.names(),
    ):
        with pytest.raises(ShardError, match=r"cannot fetch http://127\S+: 3 attempts .*Connect") as caught:
            ask()
        assert "secret" not in str(caught.value)


def test_server_that_dies_and_comes_back(served, shards, tmp_path):
    server = ServerProcess(served / "bucket/train")
    try:
        cache = shard_cache(server.url, tmp_path / "cache", backoff=0.5)
        thread = threading.Thread(target=fetch_all, args=(cache, shards[:1]))
        thread.start()
        server.wait_for_request()
        time.sleep(0.2)  # of the second that the transfer takes
        server.kill()
        time.sleep(1)
        assert thread.is_alive()
        server.start(slow=False)
        thread.join(30)
        assert files(cache) == [shards[0][0]]
    finally:
        server.kill()


def test_s3(s3, shards, tmp_path):
    cache = shard_cache("s3://bucket/train", tmp_path / "cache", options=s3)
    fetch_all(cache, shards)
    assert files(cache) == [shard[0] for shard in shards]
    remote = cache.remote
    assert remote.read("labels/bank/manifest.json") == b"{}"
    assert remote.names() == ["labels", "manifest.json", *(shard[0] for shard in shards)]
    assert remote.names("labels") == ["bank"]
    assert remote.names("labels/none") == []
    with pytest.raises(FileNotFoundError):
        remote.read("absent.json")
    with pytest.raises(ShardError, match=r"s3://bucket/train/shard-9[.]tar is not on the server"):
        cache.fetch("shard-9.tar", size=1, sha256="")
    with pytest.raises(ShardError, match=r"s3://nobucket/train/shard-9[.]tar is not on the server"):
        shard_cache("s3://nobucket/train", tmp_path, options=s3).fetch("shard-9.tar", size=1, sha256="")


def test_s3_without_credentials(s3, shards, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"endpoint_url": s3["endpoint_url"]}
    cache = shard_cache("s3://bucket/train", tmp_path / "cache", options=options)
    with pytest.raises(ShardError, match=r"refuses s3://bucket.*NoCredentials.*\(given: endpoint_url\)"):
        fetch(cache, shards[0])


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_options_that_do_not_fit(server, s3, protocol, tmp_path):
    url = f"{server.url}/bucket/train" if protocol == "http" else "s3://bucket/train"
    options = ({} if protocol == "http" else s3) | {"colour": "red"}
    remote = RemoteFolder(url, StagingConfig(folder=tmp_path, options=options))
    with pytest.raises(ConfigError) as caught:
        remote.read("manifest.json")
    message = str(caught.value)
    assert re.search(
        r"with these options in data.cache.options: [\w, ]*colour \(TypeError: .*'colour'", message
    )
    assert f"see fsspec's documentation for those of {protocol}://" in message


def test_lists_the_pages_of_http_servers(server):
    remote = RemoteFolder(f"{server.url}/bucket/train", StagingConfig(backoff=0.01))
    assert remote.names("labels") == ["bank"]
    assert remote.names()[:2] == ["labels", "manifest.json"]
    assert remote.names("labels/none") == []
    server.faults = {"": [503, 403]}
    assert remote.names("labels") == []  # asked again after 503; 403: this server lists nothing
    assert server.requests[""] >= 2


def test_processes_of_a_node_share_the_downloads(server, shards, tmp_path):
    # slow enough for all processes to want the same shard at the same time
    server.always = {name: "slow" for name, _, _ in shards[:2]}
    cache = shard_cache(f"{server.url}/bucket/train", tmp_path / "cache")
    orders = [shards[i % 5 :] + shards[: i % 5] for i in (0, 0, 0, 1, 2, 4)]
    processes = [start_fetching(cache, order) for order in orders]
    codes = [process.wait(30) for process in processes]
    assert codes == [0] * 6
    assert server.requests == {name: 1 for name, _, _ in shards}
    assert files(cache) == [shard[0] for shard in shards]


def test_processes_share_a_cache_that_holds_two_shards(server, shards, tmp_path):
    cache = shard_cache(f"{server.url}/bucket/train", tmp_path / "cache", limit_gb=2.5 * SIZE / 1e9)
    sizes, done = [], threading.Event()

    def watch():
        while not done.wait(0.005):
            paths = [path for path in tmp_path.rglob("shard-*") if path.parent.name != ".locks"]
            sizes.append(sum(path.stat().st_size for path in paths if path.exists()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    orders = [shards * 2, shards[::-1] * 2, shards[2:] * 3]
    processes = [start_fetching(cache, order) for order in orders]
    codes = [process.wait(30) for process in processes]
    done.set()
    watcher.join()
    assert codes == [0] * 3
    assert len(files(cache)) == 2
    assert max(sizes) == 2 * SIZE


def test_killed_downloader_blocks_nobody(server, served, tmp_path):
    shards = write_files(served / "large", number=1, size=3 * CHUNK)
    server.faults = {shards[0][0]: ["hang"]}  # with a chunk and a half sent
    cache = shard_cache(f"{server.url}/large", tmp_path / "cache")
    killed = start_fetching(cache, shards)
    part = cache.path(shards[0][0] + ".part")
    wait_for(lambda: part.exists() and part.stat().st_blocks)
    assert fetch(cache, shards[0], wait=False) is None
    waiting = threading.Thread(target=fetch_all, args=(cache, shards[:1]))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    assert server.requests[shards[0][0]] == 1
    killed.kill()
    killed.wait()
    start = time.monotonic()
    waiting.join(30)
    assert time.monotonic() - start < 5
    assert files(cache) == [shards[0][0]]
    assert server.requests[shards[0][0]] == 2


FORK = """
import multiprocessing, os, sys, threading
from pathlib import Path
from promptmeup.data.remote import RemoteFolder, StagingConfig
url, endpoint = sys.argv[1:]
config = StagingConfig(timeout=5, attempts=1)
options = {"endpoint_url": endpoint, "key": "user", "secret": "password"}
http, s3 = RemoteFolder(url, config), RemoteFolder("s3://bucket/train", config.model_copy(update={"options": options}))

def read(times):
    for _ in range(times):
        assert http.read("manifest.json") == s3.read("manifest.json") == b"{}"

read(1)
context = multiprocessing.get_context("fork")
children = [context.Process(target=read, args=(5,)) for _ in range(2)]
for child in children:
    child.start()
read(5)
for child in children:
    child.join()
    assert child.exitcode == 0
pid = os.fork()
if not pid:
    read(1)
    sys.exit(0)  # runs exit handlers, those of the parent's connections too
assert os.waitpid(pid, 0)[1] == 0
read(5)
print("good")
"""


def test_forks_after_use(server, s3):
    command = [sys.executable, "-c", FORK, f"{server.url}/bucket/train", s3["endpoint_url"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("good\n", "")


@pytest.fixture
def stager(server, tmp_path):
    stager = Stager(shard_cache(f"{server.url}/bucket/train", tmp_path / "cache"))
    yield stager
    stager.close()


@pytest.fixture
def cache(server, tmp_path):
    return shard_cache(f"{server.url}/bucket/train", tmp_path / "cache")


def test_stager_fetches_ahead(stager, cache, server, shards):
    stager.stage(shards)
    wait_for(lambda: cache.path(shards[4][0]).exists())
    assert server.requests == {name: 1 for name, _, _ in shards}
    stager.close()
    stager.close()
    with pytest.raises(ProcessLookupError):
        os.kill(stager.pid, 0)


def test_stager_has_no_torch(stager, cache, shards):
    stager.stage(shards[:1])
    wait_for(lambda: cache.path(shards[0][0]).exists())
    assert "libtorch" in Path("/proc/self/maps").read_text()
    assert "torch" not in Path(f"/proc/{stager.pid}/maps").read_text()


def test_stager_goes_on_after_errors(stager, cache, server, shards):
    server.always = {shards[0][0]: 500, shards[1][0]: 404}
    stager.stage([("../outside", 1, ""), *shards[:3]])
    wait_for(lambda: cache.path(shards[2][0]).exists())
    assert files(cache) == [shards[2][0]]
    assert server.requests[shards[0][0]] == cache.remote.config.attempts
    server.always = {}
    stager.stage(shards[:1])
    wait_for(lambda: cache.path(shards[0][0]).exists())


def test_stager_takes_newer_lists_first(stager, cache, server, shards):
    server.always = {name: "slow" for name, _, _ in shards}
    stager.stage(shards[:3])
    wait_for(lambda: server.requests[shards[0][0]])
    stager.stage(shards[4:])
    wait_for(lambda: cache.path(shards[4][0]).exists())
    time.sleep(0.1)
    assert server.requests == {shards[0][0]: 1, shards[4][0]: 1}


def test_stager_comes_back_to_what_others_download(stager, cache, server, shards):
    server.faults = {shards[0][0]: ["hang"]}
    other = start_fetching(cache, shards[:1])
    wait_for(lambda: server.requests[shards[0][0]])
    stager.stage(shards[:2])
    wait_for(lambda: cache.path(shards[1][0]).exists())
    assert server.requests[shards[0][0]] == 1
    other.kill()
    other.wait()
    wait_for(lambda: cache.path(shards[0][0]).exists())


def test_stager_leaves_signals_to_its_parent(stager, cache, shards):
    stager.stage(shards[:1])
    wait_for(lambda: cache.path(shards[0][0]).exists())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(stager.pid, number)
    stager.stage(shards[1:2])
    wait_for(lambda: cache.path(shards[1][0]).exists())


def test_a_dead_stager_does_no_harm(stager, cache, shards):
    os.kill(stager.pid, signal.SIGKILL)
    wait_for(lambda: is_gone(stager.pid))
    stager.stage(shards)
    stager.stage(shards)
    fetch_all(cache, shards)


PARENT = """
import os, sys, time
from pathlib import Path
from promptmeup.data.stager import Stager
from promptmeup.data.transfers import CHUNK
from tests.support.shard_files import shard_cache
stager = Stager(shard_cache(sys.argv[1], Path(sys.argv[2])))
stager.stage([("shard-000000.tar", 1_000_000, "")])
if not os.fork():
    time.sleep(30)  # a forked worker has a copy of the pipe
    os._exit(0)
print(stager.pid, flush=True)
time.sleep(30)
"""


def test_stager_ends_when_its_parent_is_killed(server, tmp_path):
    server.always = {"shard-000000.tar": "hang"}
    command = [sys.executable, "-c", PARENT, f"{server.url}/bucket/train", str(tmp_path / "cache")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            stager = int(parent.stdout.readline())
            wait_for(lambda: server.requests["shard-000000.tar"])  # in the middle of a transfer
            parent.kill()
            parent.wait()
            wait_for(lambda: is_gone(stager), 15)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_forked_process_leaves_the_stager_alone(stager, cache, shards):
    child = os.fork()
    if not child:
        stager.close()
        stager.__del__()
        os._exit(0)
    os.waitpid(child, 0)
    stager.stage(shards[:1])
    wait_for(lambda: cache.path(shards[0][0]).exists())
