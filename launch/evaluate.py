"""Evaluate: `python launch/evaluate.py model=RUN/best split=packed/val`, or `… split=test data.kind=… data.root=DIR`"""

from promptmeup.config import command
from promptmeup.extraction.dry_run import plan_evaluation
from promptmeup.extraction.evaluate import EvaluateConfig, evaluate


def main(config: EvaluateConfig) -> None:
    """Print image-text retrieval of a saved model on a packed split, and write it as JSON where `json_file` says.

    With `data`, `model` is a fine-tuned one: it is run on a split of that corpus (data.kind=twitter data.root=DIR
    split=test), and its scores, predictions and pictures are written to `out` as fine-tuning writes them.
    """
    evaluate(config)


if __name__ == "__main__":
    command(EvaluateConfig, main, plan=plan_evaluation)
