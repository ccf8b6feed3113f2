"""What an export would take and write."""

from promptmeup.export.export import ExportConfig
from promptmeup.export.source import find_source
from promptmeup.progress import listed, spoken


def plan_export(config: ExportConfig, ranks: int | None) -> str:  # noqa: ARG001
    """Return which weights of which run would be exported to where.

    Raises:
        ConfigError, CheckpointError, WeightsError: as the export would.
    """
    source = find_source(config.run.expanduser(), config.checkpoint)
    out = config.out.expanduser()
    files = [
        file
        for file in source.weights.rglob("*")
        if file.suffix in (".safetensors", ".pt") and file.is_file()
    ]
    size = spoken(sum(file.stat().st_size for file in files))
    number = f"{len(files)} file{'s' if len(files) != 1 else ''}"
    lines = [
        ("takes", f"{source.weights}, {source.kind}: {size} in {number}"),
        ("writes", f"{out}{': replaces what is there' if out.exists() else ''}"),
    ]
    if config.mlflow_model:
        lines.append(("", f"{out / 'mlflow_model'}, with a second copy of the weights"))
    return "\n".join(listed(lines))
