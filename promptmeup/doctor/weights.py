"""The weights that a run starts from: are they on this node, and how large is the model?"""

from promptmeup.doctor.finding import Finding, failed, ok, warning
from promptmeup.models.alignment import ModelConfig, prompt_shapes
from promptmeup.models.sketch import sketch
from promptmeup.models.weights import RANDOM, find, hub_is_offline, is_on_hub
from promptmeup.training.settings import PretrainConfig

_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt")


def sources(config: PretrainConfig) -> dict[str, str]:
    """Return what is read at the start, by configuration key; the same source twice is named once."""
    text, vision = config.model.text, config.model.vision
    named = {
        "model.text.weights": text.weights,
        "model.text.tokenizer": text.tokenizer,
        "model.vision.weights": vision.weights,
    }
    found: dict[str, str] = {}
    for key, source in named.items():
        if source is not None and source != RANDOM and source not in found.values():
            found[key] = source
    return found


def present(config: PretrainConfig) -> Finding:
    """Look on this node for every source of weights, without fetching anything."""
    texts, absent, facts = [], [], {}
    for key, source in sources(config).items():
        tokenizer = key == "model.text.tokenizer"
        if is_on_hub(source) and not hub_is_offline():
            try:
                path = find(source, key=key, tokenizer_only=tokenizer, local_only=True)
            except Exception:
                absent.append(f"{key} = {source}")
                continue
        else:
            path = find(source, key=key, tokenizer_only=tokenizer)
        facts[key] = source
        if not tokenizer and path.is_dir() and not any(any(path.glob(pattern)) for pattern in _FILES):
            return failed(
                f"{key}: {path} holds no weights (*.safetensors, *.bin): they were not fetched whole; "
                f"fetch {source} again "
                "on a machine that reaches the hub",
                **facts,
            )
        texts.append(source)
    if config.start_from is not None:
        if not (config.start_from / "model.json").exists():
            return failed(
                f"start_from: {config.start_from} holds no saved model (no model.json): train it first, "
                "or name RUN/best or "
                "RUN/model",
                **facts,
            )
        facts["start_from"] = str(config.start_from)
        texts.append(str(config.start_from))
    if absent:
        return warning(
            f"{', '.join(absent)}: not in the hub's cache of this node; every rank would fetch it at the "
            "start: fetch it "
            "before (set HF_HOME to a shared folder), or name a local directory",
            **facts,
        )
    return ok(
        f"found: {', '.join(texts)}" if texts else "none needed: all of the model starts at random", **facts
    )


def count_parameters(config: ModelConfig) -> int:
    """Return the number of weights of the model, built without memory for them; prompt banks count as `width` wide.

    Raises:
        UserError: a source is not there, or the parts do not fit each other.
    """
    model = sketch(config, **prompt_shapes(config, None))
    return sum(parameter.numel() for parameter in model.parameters())
