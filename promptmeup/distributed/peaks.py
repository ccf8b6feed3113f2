"""What GPUs can do at most: what a model's FLOP/s are compared with (MFU).

Written down from what vendors publish, and not held against each data sheet again: `peak_tflops` of a run overrides it.
"""

import torch

_TFLOPS = {
    # name as the driver gives it, the more special first -> (bf16 or None, fp32 without TF32), dense, TFLOP/s
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "H200 NVL": (836.0, 60.0),
    "H200": (989.0, 67.0),
    "GH200": (989.0, 67.0),
    "B200": (2250.0, 75.0),
    "A100": (312.0, 19.5),
    "A40": (149.7, 37.4),
    "A30": (165.0, 10.3),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "RTX A6000": (154.8, 38.7),
    "RTX 6000 Ada": (364.2, 91.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "V100": (None, 15.7),  # has tensor cores for fp16 alone
    "T4": (None, 8.1),
}


def peak_tflops(name: str, dtype: torch.dtype) -> float | None:
    """Return the peak of the GPU that the driver calls `name`, dense; None where it is not known.

    In float32 that is without TF32, which torch does not use unless it is told to.
    """
    words = f" {name} ".replace("-", " ")
    for gpu, (bf16, fp32) in _TFLOPS.items():
        if f" {gpu} " in words:
            return {torch.bfloat16: bf16, torch.float32: fp32}.get(dtype)
    return None
