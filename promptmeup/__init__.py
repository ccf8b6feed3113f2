"""Pre-train vision-language models for multimodal entity and relation extraction.

The folders follow the flow of the data: corpora, packing, data, prompts, models, losses, distributed,
training, tracking. DESIGN.md draws the picture and gives the reason for each decision.
"""

__version__ = "0.1.0"
