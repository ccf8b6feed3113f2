"""Measure retrieval: `python launch/evaluate.py model=RUN/best split=packed/val`"""

from promptmeup.config import command
from promptmeup.training.evaluate import EvaluateConfig, evaluate


def main(config: EvaluateConfig) -> None:
    """Print image-text retrieval of a saved model on a packed split, and write it as JSON where `json` says."""
    evaluate(config)


if __name__ == "__main__":
    command(EvaluateConfig, main)
