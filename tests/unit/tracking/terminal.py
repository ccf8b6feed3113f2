"""A terminal for tests: what a person would see after all these bytes."""

import re

_CODES = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """Understands what the console uses: line feeds, carriage returns, moving up, erasing a line; colours pass."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lines: list[str] = [""]
        self._row = self._column = 0

    def feed(self, text: str) -> "Screen":
        position = 0
        while position < len(text):
            code = _CODES.match(text, position)
            if code:
                self._control(code[1], code[2])
                position = code.end()
                continue
            self._put(text[position])
            position += 1
        return self

    def _control(self, number: str, letter: str) -> None:
        if letter == "A":
            self._row -= int(number or 1)
            assert self._row >= 0, "moved above the first line"
        elif letter == "K":
            assert number == "2", number
            self._lines[self._row] = ""
        else:
            assert letter in "mhl", f"unknown control {number}{letter}"

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._down()
            self._column = 0
        else:
            if self._column == self._width:
                self._down()
                self._column = 0
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")

    @property
    def lines(self) -> list[str]:
        """All lines, those that were scrolled away too, without empty ones at the end."""
        lines = [line.rstrip() for line in self._lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines
