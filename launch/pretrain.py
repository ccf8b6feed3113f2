"""Pre-train a model: `deepspeed launch/pretrain.py --config configs/pretrain/base.yaml a.b=c ...`"""

from promptmeup.config import command
from promptmeup.training.dry_run import plan_pretraining
from promptmeup.training.pretrain import pretrain
from promptmeup.training.settings import PretrainConfig


def main(config: PretrainConfig) -> None:
    """Pre-train a teacher (dual encoder) or a student on a packed corpus.

    Start it with deepspeed, torchrun, srun (one task a GPU) or plain python. A run resumes by itself from
    the run folder `out`; SIGTERM, Ctrl-C and Slurm's USR2 save at the next step and exit with code 85.
    With --dry-run it shows data, steps, memory for each ZeRO stage and the line that starts it, and runs nothing.
    """
    pretrain(config)


if __name__ == "__main__":
    command(PretrainConfig, main, plan=plan_pretraining)
