"""Fine-tune: `python launch/finetune.py --config configs/finetune/twitter2015.yaml model=RUN/best data.root=DIR`"""

from promptmeup.config import command
from promptmeup.extraction.dry_run import plan_finetuning
from promptmeup.extraction.finetune import finetune
from promptmeup.extraction.seed_run import FinetuneConfig


def main(config: FinetuneConfig) -> None:
    """Fine-tune a pre-trained model, or plain encoders, for named entities or relations; evaluate the best epoch.

    Start it with python, `accelerate launch` (DeepSpeed too), torchrun or srun. Every seed of `seeds` is a run of its
    own in the folder `out`; the same command goes on after a signal or a crash, and leaves seeds that are done alone.
    """
    finetune(config)


if __name__ == "__main__":
    command(FinetuneConfig, main, plan=plan_finetuning)
