"""A spaCy pipeline, loaded once."""

import pytest

from promptmeup.packing.entities import EntityConfig, EntityFinder


@pytest.fixture(scope="session")
def finder() -> EntityFinder:
    return EntityFinder(EntityConfig())
