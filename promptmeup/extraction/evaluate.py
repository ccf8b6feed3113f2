"""A saved model on a split: extraction where `data` names a corpus of it, else retrieval on a packed split."""

from pathlib import Path
from typing import Any, Self

import torch
from pydantic import field_validator, model_validator

from promptmeup.corpora.extraction import ExtractionCorpus
from promptmeup.errors import ConfigError
from promptmeup.extraction.batches import Rows, evaluation_rows
from promptmeup.extraction.data import task_of
from promptmeup.extraction.examples import SentenceEncoder
from promptmeup.extraction.folder import FinetunedModel, finetuned_folder, load_finetuned
from promptmeup.extraction.inference import Prediction, predict
from promptmeup.extraction.report import labels_line, summary_row, write_report
from promptmeup.extraction.task import Split, open_split
from promptmeup.models.extraction import EntityModel
from promptmeup.models.weights import some
from promptmeup.progress import Progress
from promptmeup.shard_format import write_json
from promptmeup.tracking.console import table
from promptmeup.training import evaluate as retrieval

_OF_RETRIEVAL = ("cache", "max_tokens", "eval_mode")
_OF_THE_MODEL = ("max_tokens", "eval_mode", "max_crops", "text_only")


class EvaluateConfig(retrieval.EvaluateConfig):
    """What is evaluated: retrieval, or with `data` a fine-tuned model."""

    data: ExtractionCorpus | None = None
    """the corpus that a fine-tuned model is evaluated on; `split` is then train, val, test or a name of data.files. How
    text and photos are read (max_tokens, eval_mode, max_crops, text_only) is the model's own."""
    out: Path | None = None
    """folder of the report on a fine-tuned model; None: evaluation-CORPUS-SPLIT beside the model's folder"""

    @field_validator("data", mode="before")
    @classmethod
    def _corpus_alone(cls, value: Any) -> Any:
        strange = [name for name in _OF_THE_MODEL if isinstance(value, dict) and name in value]
        if strange:
            raise ValueError(f"leave {', '.join(strange)} out: the model's own settings count")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data is None and self.out is not None:
            raise ValueError("out is for fine-tuned models, with data; retrieval writes to json_file")
        strange = [name for name in _OF_RETRIEVAL if name in self.model_fields_set]
        if self.data is not None and strange:
            raise ValueError(f"leave {', '.join(strange)} out: with data, the model's own settings count")
        return self


def evaluate(config: EvaluateConfig) -> None:
    """Print and write what `config` asks for.

    Raises:
        UserError: the model, the split or the corpus cannot be used.
    """
    if config.data is not None:
        _evaluate_finetuned(config, config.data)
    elif finetuned_folder(config.model) is not None:
        raise ConfigError(
            f"{config.model} holds a fine-tuned model: name the corpus too, such as data.kind=twitter data.root=DIR"
        )
    else:
        retrieval.evaluate(config)


def _evaluate_finetuned(config: EvaluateConfig, data: ExtractionCorpus) -> None:
    found = load_finetuned(config.model, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if task_of(data) != found.task:
        raise ConfigError(
            f"the model in {found.folder} finds {found.task}, and {data.root} (data.kind = {data.kind}) is labelled "
            f"for {task_of(data)}: give a model and a corpus of one task"
        )
    max_tokens = found.model.config.max_tokens
    encoder = SentenceEncoder(found.tokenizer, labels=found.labels, max_tokens=max_tokens)
    split = open_split(data, config.split, encoder)
    folder = config.out or found.folder.parent / f"evaluation-{data.root.resolve().name}-{config.split}"
    result, files = write_report(
        folder,
        split=config.split,
        predictions=_predictions(found, split, config),
        statistics=split.statistics,
        cut_words=split.cut_words,
        labels=found.labels,
        none=found.none,
        text_only=found.pictures is None,
    )
    print(f"{found.folder} on {data.kind}: {data.root}: {found.task}, in percent")
    print(table([summary_row([result])]))
    if result["unknown_labels"]:
        listed = some([f"{name} ({count})" for name, count in result["unknown_labels"].items()])
        print(f"labels that the model does not know, which it can only miss: {listed}")
    if result["cut_words"]:
        print(f"{result['cut_words']} words were cut off: their sentences have more than {max_tokens} tokens")
    print(labels_line(result))
    print(f"wrote {', '.join(file.name for file in files)} in {folder}")
    if config.json_file is not None:
        config.json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.json_file, result)


def _predictions(found: FinetunedModel, split: Split, config: EvaluateConfig) -> list[Prediction]:
    rows = Rows(split.examples, pad_id=found.tokenizer.pad_token_id, pictures=found.pictures)
    with Progress(f"evaluate {split.name}", unit="sentences", total=len(split.examples)) as bar:
        made = predict(
            found.model,
            split.examples,
            rows=rows,
            order=evaluation_rows(split.examples, batch=config.batch, rank=0, size=1),
            labels=found.labels,
            vision=found.model.encoder.vision,
            crf=found.model.crf if isinstance(found.model, EntityModel) else None,
            device=found.model.device,
            workers=0 if found.pictures is None else config.workers,
            advance=bar.advance,
        )
    return [prediction for _, prediction in made]
