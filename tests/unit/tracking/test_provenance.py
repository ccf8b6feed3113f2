import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from promptmeup.config import Config, load
from promptmeup.tracking import provenance


class Settings(Config):
    steps: int = 3
    uri: str = "http://me:secret@host:5000"


def git(folder: Path, *arguments: str) -> None:
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=trunk")
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def work_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "a.py").write_text("1\n")
    return tmp_path


def test_git_state_follows_the_work_tree(work_tree: Path) -> None:
    git(work_tree, "init")
    git(work_tree, "add", "a.py")
    git(work_tree, "commit", "-m", "first")
    clean = provenance.git_state(work_tree)
    assert clean is not None
    assert (clean["branch"], clean["dirty"], clean["diff_sha256"]) == ("trunk", False, None)
    assert len(clean["commit"]) == 40
    hashes = set()
    for text in ("2\n", "3\n"):
        (work_tree / "a.py").write_text(text)
        dirty = provenance.git_state(work_tree)
        assert dirty is not None
        assert dirty["dirty"]
        assert dirty["commit"] == clean["commit"]
        hashes.add(dirty["diff_sha256"])
    assert len(hashes) == 2


def test_code_version_names_commit_and_changes(work_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(work_tree / "package/tracking/provenance.py"))
    folder = work_tree / "package"
    folder.mkdir()
    ask = provenance.code_version.__wrapped__
    assert ask() == f"promptmeup {metadata.version('promptmeup')}", "no work tree"
    (folder / "a.py").write_text("1\n")
    git(work_tree, "init")
    git(work_tree, "add", "package")
    git(work_tree, "commit", "-m", "first")
    commit = provenance.git_state(folder)["commit"][:12]  # type: ignore[index]
    assert ask() == commit
    (work_tree / "notes.txt").write_text("not tracked\n")
    assert ask() == commit
    found = set()
    for text in ("2\n", "3\n"):
        (folder / "a.py").write_text(text)
        found.add(ask())
    assert len(found) == 2 and all(version.startswith(f"{commit} with changes ") for version in found)


def test_no_git_state_outside_a_work_tree_or_in_somebody_elses(work_tree: Path) -> None:
    assert provenance.git_state(work_tree) is None
    git(work_tree, "init")  # a.py is not tracked: this work tree is not where the code comes from
    assert provenance.git_state(work_tree) is None


def test_no_git_program(work_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(work_tree))
    found = provenance.environment(command=["pretrain.py"], folder=work_tree)
    assert found["git"] is None
    assert found["packages"]["torch"]


def test_environment_is_json_without_credentials() -> None:
    found = provenance.environment(command=["x.py", "tracking.uri=https://me:se:cr@host/a"], gpus=["H100"])
    text = json.dumps(found)
    assert "se:cr" not in text
    assert "https://***@host/a" in text
    assert found["gpus"] == ["H100"]
    assert found["cpus"] >= 1


def test_run_folder_keeps_the_first_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    names = [
        [path.name for path in provenance.write_run_folder(folder, config=config, environment={"n": n})]
        for n, config in enumerate([Settings(), Settings(), Settings(steps=4), Settings(steps=4)])
    ]
    assert names == [
        ["config.yaml", "environment.json"],
        ["environment-2.json"],
        ["config-3.yaml", "environment-3.json"],
        ["environment-4.json"],
    ]
    assert [json.loads((folder / row[-1]).read_text())["n"] for row in names] == [0, 1, 2, 3]
    assert load(Settings, folder / "config.yaml").steps == 3
    assert load(Settings, folder / "config-3.yaml").steps == 4
    assert "secret" not in (folder / "config.yaml").read_text()
