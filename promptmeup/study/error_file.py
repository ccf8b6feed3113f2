"""What every file with errors made on purpose has in common.

Whatever can be wrong has a random number of its own, and is wrong where that number is below the rate: what is wrong
at 0.15 is wrong at 0.3 too, and in the same way. A curve over rates is one file that gets worse.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from promptmeup.config import Config
from promptmeup.errors import ConfigError
from promptmeup.shard_format import write_atomically


class ErrorFileConfig(Config):
    """A file, its copy with errors, and how many."""

    source: Path
    out: Path
    rate: float = Field(default=0.0, ge=0, le=1)
    """probability of an error"""
    seed: int = 0

    @model_validator(mode="after")
    def _source_stays(self) -> Self:
        if self.out.resolve() == self.source.resolve():
            raise ValueError(f"out = {self.out} is the source, which is not written over: name another file")
        return self


def write_error_file(path: Path, lines: list[str]) -> None:
    """Write `lines`.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; set out to a file that can be") from error
