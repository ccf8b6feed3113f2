"""Opening a packed split where it is: in a folder, or at a URL, from where it is staged to this node."""

from pathlib import Path

from promptmeup.data.reader import PackedSplit
from promptmeup.data.remote import RemoteFolder, StagingConfig, is_remote
from promptmeup.data.staging import ShardCache
from promptmeup.errors import ShardError
from promptmeup.shard_format import labels_folder, parse_manifest, read_label_manifest, write_atomically


def open_split(location: str, cache: StagingConfig) -> PackedSplit:
    """Open the packed split at `location`, a folder or an fsspec URL.

    Of a remote one, manifest and tables are fetched now, shards when they are read. Its manifest is fetched at
    every start, so a corpus that was packed again is noticed.

    Raises:
        ShardError: no packed split there, or the server cannot be reached.
        ConfigError: the URL's protocol or `cache.options` cannot be used.
    """
    if not is_remote(location):
        return PackedSplit(Path(location))
    remote = RemoteFolder(location, cache)
    try:
        content = remote.read("manifest.json")
    except FileNotFoundError as error:
        raise ShardError(
            f"{remote.shown} is not a packed split (no manifest.json there); give the URL of one split, such as "
            "s3://bucket/packed/train, or copy the folder again, manifest.json last"
        ) from error
    manifest = parse_manifest(content, where=f"{remote.shown}/manifest.json")
    shards = ShardCache(remote, manifest.fingerprint)
    folder = shards.path("manifest.json").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "manifest.json", content)
    except OSError as error:
        raise ShardError(
            f"cannot write to the cache folder {folder}: {error.strerror}; set data.cache.folder to a folder on a "
            "disk of this node"
        ) from error
    for entry in manifest.tables:
        shards.fetch(entry.name, size=entry.bytes, sha256=entry.sha256)
    return PackedSplit(folder, remote=shards)


def fetch_labels(split: PackedSplit, name: str | None) -> None:
    """Bring what says which soft labels a remote split has to its local folder; nothing for a local one.

    Their files follow when they are read. A plain HTTP server may not list folders: `name` is then needed.

    Raises:
        ShardError: the server cannot be reached.
    """
    if split.remote is None:
        return
    remote = split.remote.remote
    for found in [name] if name is not None else remote.names("labels"):
        try:
            content = remote.read(f"labels/{found}/manifest.json")
        except FileNotFoundError:
            continue  # not finished; who needs it says so
        folder = labels_folder(split.folder, found)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "manifest.json", content)
        for entry in read_label_manifest(folder).files:
            if not entry.name.startswith("shard-"):  # the banks, which are read whole
                split.remote.fetch(f"labels/{found}/{entry.name}", size=entry.bytes, sha256=entry.sha256)
