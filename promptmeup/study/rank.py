"""One rank of a study's pre-training: `torchrun -m promptmeup.study.rank CONFIG.yaml`."""

import sys
from pathlib import Path

from promptmeup.config import load, user_errors
from promptmeup.training.pretrain import pretrain
from promptmeup.training.settings import PretrainConfig

if __name__ == "__main__":
    with user_errors():
        pretrain(load(PretrainConfig, Path(sys.argv[1])))
