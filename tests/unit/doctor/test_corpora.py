"""Splits and labels: sound, damaged, missing, not the same everywhere, on a server."""

from pathlib import Path

import pytest

from promptmeup.data.remote import StagingConfig
from promptmeup.doctor import corpora
from promptmeup.doctor.finding import Finding, look, ok
from tests.support.packed import write_packed_split
from tests.support.servers import faulty_server
from tests.unit.doctor.conftest import Configure

CACHE = StagingConfig()


def split(location: Path | str, *, rank: int = 0, size: int = 1, full: bool = False) -> Finding:
    return look("data.train", corpora.split, str(location), CACHE, rank=rank, size=size, full=full)


def test_a_sound_split(packed: Path) -> None:
    found = split(packed)
    assert found.status == "ok"
    assert f"{packed}: 24 pairs of 12 photos in 3 shards" in found.text
    assert found.facts["compared"] == ["shard-000000.tar"]
    assert len(split(packed, full=True).facts["compared"]) == 3


def test_ranks_share_the_shards(packed: Path) -> None:
    own = [split(packed, rank=rank, size=2, full=True).facts["compared"] for rank in range(2)]
    assert own == [["shard-000000.tar", "shard-000002.tar"], ["shard-000001.tar"]]
    one_each = [split(packed, rank=rank, size=5).facts["compared"] for rank in range(5)]
    assert sorted({name for (name,) in one_each}) == [f"shard-00000{i}.tar" for i in range(3)]
    joined = corpora.same_split(
        {rank: split(packed, rank=rank, size=2) for rank in range(2)}, {0: "node1", 1: "node2"}
    )
    assert joined.text.endswith("SHA-256 of 2 compared") and joined.status == "ok"


def test_a_damaged_shard(packed: Path) -> None:
    shard = packed / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    found = split(packed, full=True)
    assert found.status == "failed" and found.facts["wrong"] == ["shard-000001.tar"]
    assert "shard-000001.tar not as the manifest says (SHA-256): copy it again" in found.text
    shard.write_bytes(content[:-512])
    found = split(packed)  # its size is looked at on every rank
    assert found.status == "failed" and "restore it, or pack the corpus again" in found.text


def test_no_manifest(packed: Path, tmp_path: Path) -> None:
    (packed / "manifest.json").unlink()
    found = split(packed)
    assert found.status == "failed" and "no manifest.json); run shards/pack.py" in found.text
    assert split(tmp_path / "nowhere").status == "failed"


def test_two_corpora_under_one_name(packed: Path) -> None:
    facts = split(packed).facts
    by_rank = {0: ok("a", **facts), 1: ok("b", **(facts | {"fingerprint": "0" * 16}))}
    found = corpora.same_split(by_rank, {0: "node1", 1: "node2"})
    assert found.status == "failed"
    assert "0000000000000000 on node2 (rank 1)" in found.text and "copy one to all nodes" in found.text


def test_on_a_server(
    packed: Path, tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_server(tmp_path) as server:
        location = f"{server.url}/packed/train"
        config = configure(f"data.train={location}", f"data.cache.folder={tmp_path}/cache")
        found = split(location)
        assert found.status == "ok" and "compared when it is fetched" in found.text
        assert not (tmp_path / "cache").exists()  # nothing was fetched
        assert corpora.is_staged(config.data)
        found = look("cache", corpora.cache, config.data)
        assert found.status == "ok" and "of shards will come" in found.text
        monkeypatch.setattr(corpora, "free_bytes", lambda _: 10_000)
        found = look("cache", corpora.cache, config.data)
        assert found.status == "warning" and "set data.cache.limit_gb=1" in found.text
        labelled = configure(
            f"data.train={location}", f"data.cache.folder={tmp_path}/cache", "data.labels=none", labelled=True
        )
        found = look("soft labels", corpora.labels, labelled)
        assert (
            found.status == "failed"
            and "no finished soft labels named none: run launch/label.py" in found.text
        )
        server.always["manifest.json"] = 503
        found = split(location)
        assert found.status == "failed" and "is the server reachable from this node" in found.text


def test_labels(packed: Path, configure: Configure) -> None:
    assert corpora.labels(configure()).text.startswith("none needed")
    found = look("soft labels", corpora.labels, configure(labelled=True))
    assert found.status == "failed" and "has no soft labels: run launch/label.py first" in found.text


def test_every_split_by_its_key(tmp_path: Path, configure: Configure) -> None:
    write_packed_split(tmp_path / "other", num_images=4, captions_per_image=1, boxes_per_image=1, seed=3)
    config = configure(f"data.blend=[{{path: {tmp_path}/other, share: 0.2}}]", "data.val=packed/val")
    assert list(corpora.locations(config.data)) == ["data.train", "data.blend.0", "data.val"]
