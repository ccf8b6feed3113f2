import sys
from pathlib import Path

import pytest

from tests.benchmarks import loader_table
from tests.benchmarks.peers import compare, damage, peer
from tests.benchmarks.peers.mosaicml import MosaicML
from tests.benchmarks.peers.questions import PEERS, QUESTIONS
from tests.support.photos import write_photo


def test_global_batches_do_not_see_which_rank_read_what() -> None:
    one = compare.global_batches([[["a", "b", "c", "d"], ["e", "f"]]])
    two = compare.global_batches([[["d", "a"], ["f"]], [["b", "c"], ["e"]]])
    uneven = compare.global_batches([[["a", "b"], ["e"]], [["c", "d"]]])
    assert compare.equal_batches(one, two) == (2, 2)
    assert compare.equal_batches(one, uneven) == (1, 2)
    assert compare.equal_batches(one, two, uneven) == (1, 2)


def test_a_shorter_run_differs_where_it_has_ended() -> None:
    assert compare.equal_batches([("a",), ("b",)], [("a",)]) == (1, 2)


def test_missing_and_repeated_count_every_copy() -> None:
    expected, got = [("a", "b"), ("c", "d")], [("a", "a"), ("b", "c", "a")]
    assert compare.missing_and_repeated(expected, got) == (1, 2)
    assert compare.missing_and_repeated(expected, expected[::-1]) == (0, 0)


def test_equal_states_are_one_file() -> None:
    assert compare.state_cell([None, None]) == "no state"
    assert compare.state_cell([{"pairs": 1}] * 4) == "1 file, 12 bytes"
    assert compare.state_cell([{"rank": 0}, {"rank": 1}]) == "2 files, 22 bytes"
    assert compare.state_cell([{1, 2}]).startswith("1 file, ")  # no JSON: pickled


def test_table_is_markdown() -> None:
    text = compare.markdown(["", "ours"], [["a | b", "1"], ["c\nd", "22"]])
    assert text == "|       | ours |\n|-------|------|\n| a / b | 1    |\n| c d   | 22   |"


def test_a_library_that_is_absent_has_a_column_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "streaming", None)
    with pytest.raises(peer.MissingPeerError, match=r"mosaicml-streaming.*make bench-"):
        peer.require("streaming", "mosaicml-streaming")
    cells = loader_table.ask(MosaicML(), tmp_path, tmp_path / "scratch")
    assert cells == dict.fromkeys(QUESTIONS, "not installed")
    rows = loader_table.rows({"one": cells})
    assert [row["question"] for row in rows] == list(QUESTIONS)
    assert list(tmp_path.iterdir()) == []


def test_every_peer_has_a_name_of_its_own() -> None:
    assert len({library.name for library in PEERS}) == len(PEERS)


def test_damage_finds_the_photo_and_the_decoder_does_not_see_it(tmp_path: Path) -> None:
    jpeg = write_photo(tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "photo.jpg").unlink()
    file = tmp_path / "shards" / "a.bin"
    file.parent.mkdir()
    file.write_bytes(b"head" + jpeg + b"tail")
    damage.flip_bit(tmp_path, jpeg)
    changed = [a ^ b for a, b in zip(file.read_bytes(), b"head" + jpeg + b"tail", strict=True)]
    assert [bit for bit in changed if bit] == [1 << 4]
    with pytest.raises(ValueError, match="no file"):
        damage.halve(tmp_path, jpeg)
    damage.halve(tmp_path, b"tail")
    assert file.stat().st_size == (len(jpeg) + 8) // 2
