"""Reading the JSON and JSON-lines files of a raw corpus, with messages that name the file and the place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptmeup.errors import CorpusError


def read_json(path: Path, *, missing: str) -> Any:
    """Return the content of the JSON file `path`.

    Raises:
        CorpusError: the file is absent (the message ends with `missing`), unreadable, or not JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(f"{path} is missing: {missing}") from error
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{path} is not valid JSON at line {error.lineno}, column {error.colno} "
            f"(character {error.pos}): {error.msg}; was the file copied or unpacked completely?"
        ) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text at byte {error.start}: {error.reason}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless nesting
        raise CorpusError(f"{path} holds JSON that cannot be read: {error}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error


def read_json_lines(path: Path, *, missing: str) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of each line that is not blank; the value of a bad line is None.

    Raises:
        CorpusError: the file is absent (the message ends with `missing`) or unreadable.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except (ValueError, RecursionError):
                        yield number, None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(f"{path} is missing: {missing}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error


def is_text(value: object) -> bool:
    """Return whether `value` is a string that UTF-8 can hold: JSON can also spell lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
