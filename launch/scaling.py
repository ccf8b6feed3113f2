"""Model how a run would scale: `python launch/scaling.py --config configs/pretrain/base.yaml a.b=c --plot FILE`"""

from promptmeup.config import user_errors
from promptmeup.training.scaling_command import parse, run

if __name__ == "__main__":
    with user_errors():
        run(parse())
