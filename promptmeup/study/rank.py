"""One rank of a study's pre-training: `python -m promptmeup.study.rank CONFIG.yaml`; the environment says which."""

import signal
import sys
from pathlib import Path

from promptmeup.config import load, user_errors
from promptmeup.tracking.signal_watch import STOP_SIGNALS
from promptmeup.training.pretrain import pretrain
from promptmeup.training.settings import PretrainConfig

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with user_errors():
        pretrain(load(PretrainConfig, Path(sys.argv[1])))
