"""The model card: README.md of an exported model, with the front matter that the model hub reads."""

from collections.abc import Iterable, Mapping, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from promptmeup.export.facts import Facts, Metric
from promptmeup.models.extraction import EntityConfig, ExtractionConfig, RelationConfig
from promptmeup.models.pretrained import AlignmentConfig

AnyConfig = AlignmentConfig | ExtractionConfig

_PIPELINES = {
    AlignmentConfig: "feature-extraction",
    EntityConfig: "token-classification",
    RelationConfig: "text-classification",
}
_METRICS = {
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "strict_f1": "f1",
}
"""ours -> the hub's, those of the front matter"""


def write_card(
    config: AnyConfig, facts: Facts, *, name: str, parameters: int, license_: str, datasets: Sequence[str]
) -> str:
    """Return README.md.

    Args:
        name: what it is called, and loaded by.
        license_: of the weights, as the hub spells it.
        datasets: names on the hub of what it was trained on.
    """
    pipeline = next(tag for kind, tag in _PIPELINES.items() if isinstance(config, kind))
    shown = [metric for metric in facts.metrics if _hub_metric(metric) and metric.data]
    data = ModelCardData(
        library_name="transformers",
        license=license_,
        license_name="see-licence-below" if license_ == "other" else None,
        pipeline_tag=pipeline,
        tags=["promptmeup", "multimodal", "news", *_topics(config)],
        datasets=list(datasets) or None,
        metrics=sorted({_hub_metric(metric) for metric in shown}) or None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=pipeline,
                dataset_type=datasets[0] if datasets else "custom",
                dataset_name=metric.data,
                dataset_split=metric.split,
                metric_type=_hub_metric(metric),
                metric_name=metric.name,
                metric_value=round(metric.value, 4),
            )
            for metric in shown
        ]
        or None,
    )
    if not shown:
        data.model_name = None
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        _what(config, parameters),
        f"The weights are float32, exactly those of {facts.weights} of the run `{facts.run}`.",
        f"## Use\n\n{_use(config, name)}",
        f"## Training data\n\n{_data(facts)}",
        f"## Evaluation\n\n{_evaluation(facts)}",
        f"## Training\n\nTrained with {facts.trained_on}. Paths are cut to their last two parts.",
        "<details><summary>Configuration</summary>",
        _table(("key", "value"), facts.settings.items()),
        "</details>",
        f"## Versions\n\nCode: {f'commit {facts.commit}' if facts.commit else 'no git commit known'}.\n\n"
        f"{_table(('package', 'version'), facts.versions.items())}",
        f"## Licence\n\n{_licence(config, license_)}",
    ]
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _hub_metric(metric: Metric) -> str:
    """Return what the hub calls it; empty for what is not worth the front matter."""
    return (
        "recall" if "_to_" in metric.name or metric.name == "mean_recall" else _METRICS.get(metric.name, "")
    )


def _topics(config: AnyConfig) -> list[str]:
    if isinstance(config, EntityConfig):
        return ["named-entity-recognition"]
    if isinstance(config, RelationConfig):
        return ["relation-extraction"]
    return ["image-text-retrieval"]


def _what(config: AnyConfig, parameters: int) -> str:
    size = f"{parameters / 1e6:.1f} million parameters"
    if isinstance(config, AlignmentConfig):
        assert config.alignment is not None
        model, bert = config.alignment["config"], config.alignment["bert"]
        layers, split = bert["num_hidden_layers"], model["text"]["fusion_layer"]
        halves = (
            f"a BERT of {layers} layers, of which {split} read the caption and {layers - split} fuse it with the photo"
            if model["fusion"]
            else f"a BERT of {layers} layers for captions, without a fusion half (a dual encoder)"
        )
        begun = model["text"]["weights"]
        return (
            "A vision-language model, pre-trained on news photos and captions with the "
            f"alignments of [Prompt Me Up](https://arxiv.org/abs/2310.16822): {halves} (begun from {begun}), and an "
            f"image encoder ({_vision(model['vision'])}); {size}. It compares photos with captions"
            f"{', and is what fine-tuning for entities and relations starts from' if model['fusion'] else ''}."
        )
    encoder = config.encoder or {}
    task = (
        f"tags named entities ({', '.join(sorted({label[2:] for label in config.labels if label != 'O'}))}) by a CRF"
        if isinstance(config, EntityConfig)
        else f"says how two mentions are related ({len(config.labels)} relations)"
    )
    sees = f"text and photo ({_vision(encoder['vision_config'])})" if encoder.get("vision") else "text only"
    start = config.source.get("model", "unknown")
    return (
        f"A model that {task} in short posts, fine-tuned with promptmeup. It reads {sees}; {size}. It started from "
        f"{start} (weights {config.source.get('weights', 'unknown')})."
    )


def _vision(config: Mapping[str, str]) -> str:
    architecture = config.get("architecture") or f"ViT of {config['kind']}"
    return f"{architecture}, begun from {config['weights']}, photos of {config['image_size']} pixels"


def _use(config: AnyConfig, name: str) -> str:
    intro = "`import promptmeup` tells transformers of the model; `trust_remote_code` is not needed."
    if isinstance(config, AlignmentConfig):
        code = f"""import promptmeup
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("{name}"), AutoProcessor.from_pretrained("{name}")
captions = ["The mayor opens a bridge.", "Nurses on strike."]
photos = [Image.open("photo.jpg")]
inputs = processor(text=captions, images=photos * 2, padding=True, return_tensors="pt")
features = model(**inputs)
print(features["text_BD"] @ features["image_BD"][0] / features["temperature"])  # the higher, the better it fits"""
        outro = (
            "Photos are turned upright by their EXIF orientation in training: `PIL.ImageOps.exif_transpose`. "
            f"`image_BD` and `text_BD` are unit vectors; captions had at most {config.max_tokens} tokens in training."
        )
    else:
        call = (
            'entities("Delgado opens the new bridge in Leeds")'
            if isinstance(config, EntityConfig)
            else 'relation("Ann Delgado opens a bridge in Leeds", head="Ann Delgado", tail="Leeds")'
        )
        code = f"""import promptmeup
from promptmeup.extraction.predict import Extractor

extractor = Extractor.load("{name}")
print(extractor.{call})"""
        outro = 'Add `image="photo.jpg"` for a photo. ' if not config.text_only else ""
        outro += f'`AutoModel.from_pretrained("{name}")` gives the model alone.'
    return f"{intro}\n\n```python\n{code}\n```\n\n{outro}"


def _data(facts: Facts) -> str:
    if not facts.data:
        return "Not recorded in the run's folder."
    return _table(tuple(facts.data[0]), [tuple(row.values()) for row in facts.data])


def _evaluation(facts: Facts) -> str:
    if not facts.metrics:
        return "None was run."
    rows = [(metric.data, metric.split, metric.name, f"{metric.value:.4f}") for metric in facts.metrics]
    about = facts.measured[:1].upper() + facts.measured[1:]
    return f"{about}.\n\n{_table(('data', 'split', 'metric', 'value'), rows)}"


def _licence(config: AnyConfig, license_: str) -> str:
    start = (
        "The weights come from other encoders' and from other people's photos and texts; whoever publishes or uses "
        "them keeps to the licences of both."
    )
    cautions = [
        "promptmeup itself is Apache-2.0, which says nothing about weights.",
        "Encoders: google-bert/bert-base-uncased and google/vit-base-* are Apache-2.0; others have terms of their own.",
        "NewsCLIPpings and VisualNews give photos and captions for research alone; the rights are the publishers'.",
    ]
    if not isinstance(config, AlignmentConfig):
        cautions.append(
            "Twitter-2015, Twitter-2017 and MNRE are posts and photos from Twitter, for research, under its terms for "
            "developers: people in them did not consent to being recognised."
        )
    cautions.append(
        "Models like this one repeat what their data says about people and places; check what they find."
    )
    given = "Not chosen yet (`license: other`)." if license_ == "other" else f"Given as {license_}."
    return f"{given} {start}\n\n" + "\n".join(f"- {caution}" for caution in cautions)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(head), ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
