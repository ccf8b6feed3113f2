"""Settings for every test: no model hub, no telemetry, one torch thread (forked ranks would deadlock)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("PROMPTMEUP_TEST_GPUS", ""))
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    # Triton decides when it is imported: kernels run in its interpreter, on a CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

torch.set_num_threads(1)
