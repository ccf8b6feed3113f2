"""Export to Hugging Face's format: `python launch/export.py run=RUN out=DIR checkpoint=latest`"""

from promptmeup.config import command
from promptmeup.export.dry_run import plan_export
from promptmeup.export.export import ExportConfig, export


def main(config: ExportConfig) -> None:
    """Write a run's model as a folder that AutoModel and AutoProcessor load after `import promptmeup`, with its card.

    `run` is a pre-training run, finished or not, of any ZeRO stage and number of ranks, or a fine-tuning run. Of a
    pre-training run `checkpoint` is best (by retrieval), model (the last), latest, or one of RUN/checkpoints such as
    step-00000400; without it, the first of best, model and latest that is there. Weights are the run's own float32.
    """
    export(config)


if __name__ == "__main__":
    command(ExportConfig, main, plan=plan_export)
