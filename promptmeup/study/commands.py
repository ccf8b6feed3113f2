"""The commands that a study is made of: their configurations, and what runs them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from promptmeup.config import Config
from promptmeup.corpora.synthetic import SyntheticConfig
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.packing.settings import PackConfig
from promptmeup.study.box_errors import BoxErrorsConfig
from promptmeup.study.entity_errors import EntityErrorsConfig
from promptmeup.study.label_errors import LabelErrorsConfig
from promptmeup.study.settings import Command
from promptmeup.training.evaluate import EvaluateConfig
from promptmeup.training.label import LabelRunConfig
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

_MODULES: dict[Command, str] = {
    "synthesize": "promptmeup.corpora.synthetic:generate",
    "pack": "promptmeup.packing.pack:pack",
    "pretrain": "promptmeup.training.pretrain:pretrain",
    "label": "promptmeup.training.label:label",
    "finetune": "promptmeup.extraction.finetune:finetune",
    "evaluate": "promptmeup.training.evaluate:evaluate",
    "make_box_errors": "promptmeup.study.box_errors:make_box_errors",
    "make_entity_errors": "promptmeup.study.entity_errors:make_entity_errors",
    "shuffle_labels": "promptmeup.study.label_errors:shuffle_labels",
}


def function(command: Command) -> Callable[[Any], None]:
    """Return what runs `command`; its libraries are imported now."""
    module, _, name = _MODULES[command].partition(":")
    found: Callable[[Any], None] = getattr(import_module(module), name)
    return found
