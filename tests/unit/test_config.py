"""Every kind of mistake in a configuration names file, key, value and the way out; all at once; exit 2."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from promptmeup.config import Config, command, dump, fingerprint, load
from promptmeup.errors import ConfigError, UserError


class Optim(Config):
    lr: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)


class Cat(Config):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(Config):
    kind: Literal["dog"] = "dog"
    tricks: int = 0


class Run(Config):
    out: Path
    steps: int = Field(default=10, gt=0)
    name: str = "run"
    resume: bool = True
    sizes: tuple[int, ...] = (1, 2)
    optim: Optim = Optim()
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_file_overrides_and_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "out: runs/a\noptim:\n  lr: 1e-4\nsizes: [3, 4]\n")
    config = load(Run, path, ["optim.warmup=0.5", "pet.kind=dog", "pet.tricks=2", "name=b c", "resume=false"])
    assert config.out == Path("runs/a")
    assert config.optim == Optim(lr=1e-4, warmup=0.5)
    assert config.pet == Dog(tricks=2)
    assert (config.sizes, config.name, config.resume, config.steps) == ((3, 4), "b c", False, 10)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.0e-4", "0.0001", "1e-04"])
def test_scientific_numbers(text: str) -> None:
    assert load(Run, None, ["out=x", f"optim.lr={text}"]).optim.lr == 1e-4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["step=5"], ["unknown key 'step'", "value 5", "did you mean 'steps'?"]),
        (["optim.rl=5"], ["unknown key 'optim.rl'", "did you mean 'optim.lr'?"]),
        (["lr=5"], ["unknown key 'lr'", "did you mean 'optim.lr'?"]),
        (["pet.kind=cat", "pet.live=5"], ["override 'pet.live=5'", "'pet.live'", "mean 'pet.lives'?"]),
        (["pet.live=5"], ["override 'pet.live=5'", "'pet'", "'kind'"]),
        (["zzz=5"], ["unknown key 'zzz'", "valid here: ", "steps"]),
        (["steps='8'"], ["'steps' = '8'", "valid integer"]),
        (["steps=true"], ["'steps' = True", "valid integer"]),
        (["steps=1.5"], ["'steps' = 1.5"]),
        (["steps=0"], ["'steps' = 0", "greater than 0"]),
        (["optim.warmup=1"], ["'optim.warmup' = 1", "less than 1"]),
        (["optim.lr=.inf"], ["'optim.lr' = inf", "finite"]),
        (["optim=3"], ["'optim' = 3"]),
        (["pet.kind=cow"], ["'pet'", "cow", "'cat', 'dog'"]),
        (["steps"], ["override 'steps'", "key=value"]),
        (["a..b=1"], ["override 'a..b=1'"]),
        (["sizes=[1"], ["override 'sizes=[1'", "YAML"]),
    ],
)
def test_messages(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Run, None, ["out=x", *overrides])
    for part in expected:
        assert part in str(caught.value)


def test_missing_key_and_all_errors_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: many\nnmae: a\n")
    with pytest.raises(ConfigError) as caught:
        load(Run, path, ["optim.lr=-1"])
    text = str(caught.value)
    assert "4 configuration errors" in text
    assert f"{path}: 'steps' = 'many'" in text
    assert "unknown key 'nmae' (value 'a'): did you mean 'name'?" in text
    assert "'out' is missing" in text
    assert "override 'optim.lr=-1': 'optim.lr' = -1" in text


def test_duplicate_key_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "out: a\noptim:\n  lr: 1\n  lr: 2\n")
    with pytest.raises(ConfigError, match=r"line 4: duplicate key 'lr'"):
        load(Run, path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "out: [", "a: *nothing"])
def test_not_a_configuration(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load(Run, write(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(Run, tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(Run, tmp_path / "binary.yaml")


@given(
    st.integers(1, 10**9),
    st.floats(1e-12, 1e6),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
    st.booleans(),
)
def test_dump_reads_back_equal(steps: int, lr: float, name: str, resume: bool) -> None:
    import tempfile

    config = Run(out=Path("a"), steps=steps, name=name, resume=resume, optim=Optim(lr=lr), pet=Dog())
    with tempfile.TemporaryDirectory() as folder:
        assert load(Run, write(Path(folder), dump(config))) == config


def test_fingerprint_follows_values() -> None:
    a, b = Run(out=Path("a")), Run(out=Path("b"))
    assert fingerprint(a) == fingerprint(Run(out=Path("a")))
    assert fingerprint(a) != fingerprint(b)
    assert len(fingerprint(a)) == 16


def test_dry_run_shows_the_configuration_and_the_plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(_: Config) -> None:
        raise AssertionError("a dry run ran")

    def plan(config: Run, ranks: int | None) -> str:
        if config.steps > 100:
            raise ConfigError("too many steps")
        return f"{config.steps} steps on {ranks} ranks"

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    # the number is the flag's own, never the override behind it
    for arguments, ranks in ((["--dry-run", "out=x"], "None"), (["out=x", "--dry-run=8"], "8")):
        command(Run, main, arguments, plan=plan)
        shown = capsys.readouterr().out
        assert shown == f"{dump(load(Run, None, ['out=x']))}\n10 steps on {ranks} ranks\n"
    command(Run, main, ["out=x", "--dry-run"])
    assert capsys.readouterr().out.strip() == dump(load(Run, None, ["out=x"])).strip()
    monkeypatch.setenv("RANK", "1")
    command(Run, main, ["out=x", "--dry-run"], plan=plan)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    wrong = [(["--dry-run"], "'out' is missing"), (["--dry-run", "out=x", "steps=101"], "too many steps")]
    wrong += [(["--dry-run=-1", "out=x"], "'-1' is no number of ranks"), (["--dry", "out=x"], "--dry")]
    for arguments, message in wrong:
        with pytest.raises(SystemExit) as stopped:
            command(Run, main, arguments, plan=plan)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_command_runs_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Run] = []
    command(Run, seen.append, ["out=x", "--local_rank=1", "steps=3"])
    assert seen[0].steps == 3

    with pytest.raises(SystemExit) as stopped:
        command(Run, seen.append, ["steps=3"])
    assert stopped.value.code == 2
    assert "'out' is missing" in capsys.readouterr().err

    def fails(config: Run) -> None:
        raise UserError("the disk is full")

    with pytest.raises(SystemExit) as stopped:
        command(Run, fails, ["out=x"])
    assert stopped.value.code == 1
    assert "the disk is full" in capsys.readouterr().err
