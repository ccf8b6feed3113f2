"""Reading the JSON and JSON-lines files of a raw corpus, with messages that name the file and the place.

VisualNews' data.json is 356 MB, several times that as Python objects, so arrays are read element by element.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from promptmeup.errors import CorpusError

_CHUNK = 1 << 20
_MAX_ELEMENT = 64 << 20
"""characters of one element of an array; what does not end by then is no JSON, or none of ours"""
_SPACE = " \t\n\r"
_IN_NUMBERS = "0123456789+-.eE"
_KINDS = {"{": "dict", "[": "list", '"': "str", "t": "bool", "f": "bool", "n": "null"}


class _Stream:
    """A JSON text decoded value by value, in bounded memory."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._json = json.JSONDecoder()
        self._text = ""
        self._place = 0  # in _text
        self._bytes = self._characters = self._lines = 0  # behind, and before _text
        self._column_base = 0  # characters of the current line before _text
        self._ended = False

    def _more(self) -> bool:
        """Append the next chunk and forget what is behind; False once the whole file has been read."""
        if self._ended:
            return False
        done = self._text[: self._place]
        self._characters += len(done)
        self._lines += done.count("\n")
        self._column_base = (
            len(done) - done.rindex("\n") - 1 if "\n" in done else self._column_base + len(done)
        )
        data = self._file.read(_CHUNK)
        try:
            self._text = self._text[self._place :] + self._decode(data, final=not data)
        except UnicodeDecodeError as error:
            # the decoder counts from the bytes that it held back of the chunk before
            start = self._bytes + len(data) - len(error.object) + error.start
            raise CorpusError(f"{self._path} is not UTF-8 text at byte {start}: {error.reason}") from error
        self._place = 0
        self._bytes += len(data)
        self._ended = not data
        return True

    def peek(self) -> str:
        """Return the next character that is not space, or nothing at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _SPACE:
                self._place += 1
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def take(self, character: str) -> None:
        if self.peek() != character:
            self._fail(f"Expecting '{character}'", self._place)
        self._place += 1

    def value(self) -> Any:
        """Return the next value."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if len(self._text) - self._place > _MAX_ELEMENT or not self._more():
                    self._fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless nesting
                raise CorpusError(f"{self._path} holds JSON that cannot be read: {error}") from error
            else:
                # "0" or "0." at the end of the text may be a number that goes on in the next chunk
                is_whole = end < len(self._text) and self._text[end] not in _IN_NUMBERS
                if is_whole or not self._more():
                    self._place = end
                    return value

    def _fail(self, message: str, position: int) -> NoReturn:
        behind = self._text[:position]
        lines = self._lines + behind.count("\n")
        column = position - behind.rindex("\n") if "\n" in behind else self._column_base + position + 1
        raise CorpusError(
            f"{self._path} is not valid JSON at line {lines + 1}, column {column} "
            f"(character {self._characters + position}): {message}; was the file copied or unpacked completely?"
        )

    def array(self) -> Iterator[Any]:
        """Yield the elements of the array that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.peek() != ",":
                self.take("]")
                return
            self.take(",")

    def names(self) -> Iterator[str]:
        """Yield the names in the object that comes next; the caller takes each one's value before the next."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            name = str(self.value())
            self.take(":")
            yield name
            if self.peek() != ",":
                self.take("}")
                return
            self.take(",")

    def kind(self) -> str:
        """Return the Python name of the type of the value that comes next."""
        return _KINDS.get(self.peek(), "number")

    def end(self) -> None:
        """Assert that nothing follows."""
        if self.peek():
            self._fail("Extra data", self._place)


def read_array(path: Path, *, what: str, missing: str, key: str | None = None) -> Iterator[Any]:
    """Yield the elements of the array in the JSON file `path`, or of the array under `key` of its object.

    Args:
        what: what the file should hold, for messages.
        missing: what to do where there is no such file.

    Raises:
        CorpusError: the file is absent, unreadable, not JSON or of another shape.
    """
    try:
        with path.open("rb") as file:
            yield from _elements(_Stream(path, file), path, what=what, key=key)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(f"{path} is missing: {missing}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error


def _elements(stream: _Stream, path: Path, *, what: str, key: str | None) -> Iterator[Any]:
    if not stream.peek():
        stream.value()  # says that the file is empty
    if key is None:
        if stream.kind() != "list":
            raise CorpusError(f"{path}: the top level must be {what}, this is a {stream.kind()}")
        yield from stream.array()
        stream.end()
        return
    if stream.kind() != "dict":
        raise CorpusError(f"{path}: the top level must be {what}, this is a {stream.kind()}")
    keys, found = [], False
    for name in stream.names():
        keys.append(name)
        if name == key and stream.kind() == "list":
            found = True
            yield from stream.array()
        else:
            stream.value()
    stream.end()
    if not found:
        there = ", ".join(sorted(keys)) or "none"
        raise CorpusError(f"{path}: the top level must be {what}, this is a dict with keys {there}")


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
