"""Write soft labels: `python launch/label.py --config configs/label/base.yaml teacher=RUN/best splits=[DIR]`"""

from promptmeup.config import command
from promptmeup.training.dry_run import plan_labelling
from promptmeup.training.label import LabelRunConfig, label


def main(config: LabelRunConfig) -> None:
    """Let a frozen teacher compare every object with entity prompts and every image with relation prompts.

    `teacher` is RUN/model or RUN/best, or a CLIP or SigLIP: a local directory or a name on the model hub.
    The labels are written beside the shards of each of `splits` and need no teacher in training. Start it with
    python, or with `accelerate launch` or `torchrun` to share the work; a rerun does only what is missing.
    """
    label(config)


if __name__ == "__main__":
    command(LabelRunConfig, main, plan=plan_labelling)
