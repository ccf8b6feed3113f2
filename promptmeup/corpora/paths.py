"""Paths that a corpus names: two spellings of one file made equal, and none followed out of the corpus."""

import os
import posixpath
from pathlib import Path


def normal_path(path: str) -> str:
    """Return `path` without "./", "//" and inner "..": two spellings of one file become equal."""
    return posixpath.normpath(path)


def refusal(path: str, *, folder: Path, real_folder: str) -> tuple[str, str] | None:
    """Return (reason, detail) if the file at the normalised `path` in `folder` must not or cannot be read.

    A corpus comes from elsewhere, so a path that leads out of `folder`, by itself or through a symbolic
    link, is refused. `folder` may itself be a link; `real_folder` is where it leads (os.path.realpath).
    """
    if os.path.isabs(path) or path.split("/")[0] == "..":
        return "path_escapes_root", f"the path leads out of {folder}; it is not opened"
    real = os.path.realpath(os.path.join(real_folder, path))
    if os.path.commonpath([real, real_folder]) != real_folder:
        way_out = f"move the files in, or make {folder} itself the link"
        return "path_escapes_root", f"a link leads out of {folder} to {real}; it is not opened: {way_out}"
    if not os.path.isfile(real):
        return "missing_image", f"no such file in {folder}"
    return None
