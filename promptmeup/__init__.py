"""Pre-train vision-language models for multimodal entity and relation extraction.

The folders follow the flow of the data: corpora, packing, data, prompts, models, losses, distributed,
training, tracking, extraction. DESIGN.md draws the picture and gives the reason for each decision.
"""

import importlib
import sys
from contextlib import suppress

__version__ = "0.1.0"


def _register(_: object) -> None:
    # else it is being imported right now, and registers at its end
    if "promptmeup.models" not in sys.modules:
        importlib.import_module("promptmeup.models")


# AutoModel learns of our models once it and this package are imported, in whatever order; importing transformers
# here would cost seconds in the many small processes that need none of it.
# A GPU node may have no wrapt: there, whatever trains imports promptmeup.models itself.
with suppress(ModuleNotFoundError):
    import wrapt

    wrapt.register_post_import_hook(_register, "transformers.models.auto.modeling_auto")
