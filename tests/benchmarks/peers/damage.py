"""What happens to files in long lives: a flipped bit, a copy that stopped half way; and what killed jobs leave."""

import os
import tempfile
from pathlib import Path

import torch

from promptmeup.data.transforms import decode

SHARED_MEMORY = Path("/dev/shm")


def file_of(folder: Path, content: bytes) -> tuple[Path, int]:
    """Return the file below `folder` that holds `content` as it is, and where."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        position = path.read_bytes().find(content)
        if position >= 0:
            return path, position
    raise ValueError(f"no file in {folder} holds these {len(content)} bytes")


def flip_bit(folder: Path, jpeg: bytes) -> None:
    """Flip one bit of a stored photo, from its middle on the first that shows only in the pixels.

    A decoder refuses a broken header by itself; a loader has to notice what a decoder does not.
    """
    path, position = file_of(folder, jpeg)
    pixels = decode(jpeg)
    for middle in range(len(jpeg) // 2, len(jpeg) - 2):
        broken = bytearray(jpeg)
        broken[middle] ^= 1 << 4
        try:
            seen = decode(bytes(broken))
        except ValueError:
            continue
        if seen.shape == pixels.shape and not torch.equal(seen, pixels):
            with path.open("r+b") as file:
                file.seek(position + middle)
                file.write(broken[middle : middle + 1])
            return
    raise ValueError("the decoder notices every flipped bit of this photo")


def halve(folder: Path, jpeg: bytes) -> None:
    """Cut the file that holds `jpeg` in half."""
    path, _ = file_of(folder, jpeg)
    os.truncate(path, path.stat().st_size // 2)


def temporary_names() -> set[Path]:
    """Return what lies in shared memory that no living process has mapped, and in the temporary folder."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped |= {line.split()[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
        except OSError:  # ended meanwhile, or another user's
            continue
    shared = {path for path in SHARED_MEMORY.iterdir() if str(path) not in mapped}
    return shared | set(Path(tempfile.gettempdir()).rglob("*"))
