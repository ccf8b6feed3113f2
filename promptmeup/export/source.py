"""What an export takes its weights from: which folder of which run, found by what lies in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptmeup.errors import CheckpointError, ConfigError, WeightsError
from promptmeup.models.extraction import EXTRACTION_TYPES
from promptmeup.models.weights import model_type
from promptmeup.tracking.provenance import last_config
from promptmeup.training.checkpoint import complete


@dataclass(frozen=True)
class Source:
    """A model in a run's folder."""

    kind: Literal["pretrained", "finetuned"]
    run: Path
    """holds config.yaml, environment.json and journal.jsonl; of a fine-tuning run the seed's folder"""
    weights: Path
    config: dict[str, Any]
    """the run's, of its last start"""

    @property
    def name(self) -> str:
        """What of the run: best, model, or a checkpoint's tag."""
        return self.weights.name

    @property
    def is_checkpoint(self) -> bool:
        return self.weights.parent.name == "checkpoints"


def find_source(run: Path, checkpoint: str | None) -> Source:
    """Return what `run` and `checkpoint` name.

    Args:
        run: a pre-training run; a fine-tuning run, or one seed's folder in it; or best/ or model/ of one of them.
        checkpoint: best, model, latest or a tag; None: the first of these that is there.

    Raises:
        ConfigError: no run there, or a choice that does not fit its kind.
        CheckpointError: it has no such checkpoint.
        WeightsError: it has no model yet.
    """
    if _holds_model(run):
        if checkpoint is not None:
            raise ConfigError(
                f"run={run} is a model already; leave checkpoint={checkpoint} out, or give the run's folder"
            )
        folder = run.resolve()
        return _source(folder.parent, folder, given=run)
    if not (run / "config.yaml").exists() and _holds_model(run / "best"):
        # a fine-tuning run of one or several seeds: best is a link to the best seed's
        if checkpoint not in (None, "best"):
            raise ConfigError(_only_best(run, checkpoint))
        folder = (run / "best").resolve()
        return _source(folder.parent, folder, given=run)
    if last_config(run) is None:
        seeds = sorted(path.name for path in run.glob("seed-*"))
        way_out = (
            f"it is a fine-tuning run that has not finished: let it, or export one seed with run={run / seeds[0]}"
            if seeds
            else "point run to the folder that `out` named in training"
        )
        raise ConfigError(f"{run} is no finished run (no config.yaml and no best/ in it); {way_out}")
    return _source(run, _weights(run, checkpoint), given=run)


def _source(run: Path, weights: Path, *, given: Path) -> Source:
    config = last_config(run)
    if config is None:
        raise ConfigError(
            f"{given} lies in no run ({run} has no readable config.yaml), and a model is exported with the settings "
            "that it was trained with; point run to the run's folder"
        )
    return Source("pretrained" if _is_pretraining(config) else "finetuned", run, weights, config)


def _weights(run: Path, checkpoint: str | None) -> Path:
    config = last_config(run)
    if config is not None and not _is_pretraining(config):
        if checkpoint not in (None, "best"):
            raise ConfigError(_only_best(run, checkpoint))
        if not _holds_model(run / "best"):
            raise WeightsError(f"{run} has no best/ yet; let its first evaluation finish")
        return run / "best"
    kept = complete(run)
    if checkpoint in ("best", "model"):
        if not _holds_model(run / checkpoint):
            has = "its checkpoints are " + ", ".join(kept) if kept else "it has no checkpoint either"
            raise CheckpointError(f"checkpoint={checkpoint}: {run} has no {checkpoint}/ yet; {has}")
        return run / checkpoint
    if checkpoint is None:
        saved = next((run / name for name in ("best", "model") if _holds_model(run / name)), None)
        if saved is not None:
            return saved
    tag = checkpoint
    if tag in (None, "latest"):
        if not kept:
            raise CheckpointError(
                f"{run} has saved neither a model nor a checkpoint yet; let it reach its first checkpoint "
                "(save_every), or stop it with Ctrl-C, which saves one"
            )
        tag = kept[-1]
    if tag not in kept:
        raise CheckpointError(
            f"checkpoint={checkpoint or 'latest'}: {run / 'checkpoints'} has no complete {tag}; "
            f"it has {', '.join(kept) or 'none'}"
        )
    return run / "checkpoints" / str(tag)


def _is_pretraining(config: dict[str, Any]) -> bool:
    """Whether it is a PretrainConfig: in a fine-tuning's, `model` is where to start from."""
    return isinstance(config.get("model"), dict)


def _holds_model(folder: Path) -> bool:
    if (folder / "model.json").exists():
        return (folder / "model.safetensors").exists()
    return model_type(folder) in EXTRACTION_TYPES


def _only_best(run: Path, checkpoint: str | None) -> str:
    return (
        f"checkpoint={checkpoint}: of the fine-tuning run {run} only best is exported; leave checkpoint out"
    )
