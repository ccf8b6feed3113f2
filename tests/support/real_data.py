"""Real photos, captions and detectors for tests; not part of the repository (licences)."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def real_data(name: str) -> Path:
    """Return the folder or file `name` of the real data, or skip the test where it is absent."""
    base = Path(os.environ.get("PROMPTMEUP_REAL_DATA", "../shared/data"))
    path = (ROOT / base / name).resolve()
    if not path.exists():
        pytest.skip(f"real data absent: {name} (set PROMPTMEUP_REAL_DATA to the folder that holds it)")
    return path
