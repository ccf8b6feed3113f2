"""Check before a run: `srun python launch/doctor.py --config configs/pretrain/base.yaml a.b=c`, or with no arguments"""

from promptmeup.config import user_errors
from promptmeup.doctor.command import parse, run

if __name__ == "__main__":
    with user_errors():
        run(parse())
