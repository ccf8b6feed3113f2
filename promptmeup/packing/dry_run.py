"""What packing would do with each split, without reading the corpus."""

from promptmeup.corpora import raw
from promptmeup.errors import CorpusError
from promptmeup.packing.pack import WORK
from promptmeup.packing.processes import available_cores
from promptmeup.packing.settings import STAGES, PackConfig
from promptmeup.progress import listed, spoken
from promptmeup.shard_format import read_manifest


def plan_packing(config: PackConfig, ranks: int | None) -> str:  # noqa: ARG001
    """Return for each split whether it is packed, begun or new, and the stages that would be made."""
    try:
        known = ", ".join(raw.splits(config.corpus)) or "no split"
    except CorpusError as error:
        known = str(error)
    stages = [stage for stage in STAGES if config.makes(stage)]
    lines = [
        ("corpus", f"{config.corpus.kind}, {config.corpus.root}: {known}"),
        ("makes", f"{', '.join(stages)}, with {config.processes or available_cores()} processes"),
    ]
    for split in config.splits:
        folder = config.out / split
        if (folder / "manifest.json").exists():
            manifest = read_manifest(folder)
            size = spoken(sum(entry.bytes for entry in manifest.shards))
            state = (
                f"packed already: {manifest.samples} photos in {len(manifest.shards)} shards, {size}; "
                "only what is missing or has other settings is made"
            )
        else:
            state = "goes on where it stopped" if (folder / WORK).exists() else "from the start"
        lines.append(("writes", f"{folder}: {state}"))
    if config.num_tasks > 1:
        lines.append(("share", f"task {config.task} of {config.num_tasks}"))
    return "\n".join(listed(lines))
