"""The commands that a study is made of: their configurations, and what runs them."""

from collections.abc import Callable
from typing import Any

from promptmeup.config import Config
from promptmeup.corpora.synthetic import SyntheticConfig, generate
from promptmeup.extraction.finetune import finetune
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.study.box_errors import BoxErrorsConfig, make_box_errors
from promptmeup.study.entity_errors import EntityErrorsConfig, make_entity_errors
from promptmeup.study.label_errors import LabelErrorsConfig, shuffle_labels
from promptmeup.study.settings import Command
from promptmeup.training.evaluate import EvaluateConfig, evaluate
from promptmeup.training.label import LabelRunConfig, label
from promptmeup.training.pretrain import pretrain
from promptmeup.training.settings import PretrainConfig

SCHEMAS: dict[Command, type[Config]] = {
    "synthesize": SyntheticConfig,
    "pack": PackConfig,
    "pretrain": PretrainConfig,
    "label": LabelRunConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "make_box_errors": BoxErrorsConfig,
    "make_entity_errors": EntityErrorsConfig,
    "shuffle_labels": LabelErrorsConfig,
}

FUNCTIONS: dict[Command, Callable[[Any], None]] = {
    "synthesize": generate,
    "pack": pack,
    "pretrain": pretrain,
    "label": label,
    "finetune": finetune,
    "evaluate": evaluate,
    "make_box_errors": make_box_errors,
    "make_entity_errors": make_entity_errors,
    "shuffle_labels": shuffle_labels,
}
