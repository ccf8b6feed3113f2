"""What launch/scaling.py does: parse, model, print, and draw where a file is named."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of the command line; argparse says what is wrong with them and leaves."""
    parser = argparse.ArgumentParser(
        prog="scaling.py",
        description="Model how a pre-training run scales over GPUs: bytes and time of a step, weak scaling (the pairs "
        "a GPU has at the first number of GPUs) and strong (the configuration's global_batch). Nothing is trained or "
        "fetched, and no GPU is needed. Bandwidths, latencies and the MFU are assumptions: give those of your cluster, "
        "as nccl-tests or launch/doctor.py measure them.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the run's YAML file; see configs/pretrain"
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace the file's")
    parser.add_argument(
        "--gpus",
        type=_gpus,
        default=tuple(2**n for n in range(3, 11)),
        metavar="N,N",
        help="numbers of GPUs (default 8,16,...,1024)",
    )
    for flag, default, unit, text in (
        ("--intra-bandwidth", 300.0, "GB/s", "bus bandwidth within a node"),
        ("--inter-bandwidth", 50.0, "GB/s", "of a node's network in each direction, all its cards together"),
        ("--intra-latency", 1.0, "US", "microseconds of a hop within a node"),
        ("--inter-latency", 5.0, "US", "microseconds of a hop between nodes"),
        ("--mfu", 0.4, "SHARE", "share of the peak that the model reaches, 0 to 1"),
        ("--peak", None, "TFLOPS", "of a GPU; without it the configuration's peak_tflops, or an H100's"),
    ):
        told = text if default is None else f"{text} (default {default:g})"
        parser.add_argument(flag, type=_positive, default=default, metavar=unit, help=told)
    parser.add_argument("--per-node", type=_count, default=8, metavar="N", help="GPUs of a node (default 8)")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw it there as well, such as scaling.png"
    )
    flags = parser.parse_intermixed_args(argv)
    if flags.mfu > 1:
        parser.error(f"--mfu is {flags.mfu:g}, it must be at most 1")
    return flags


def run(flags: argparse.Namespace) -> None:
    """Print the model of the run, and draw it.

    Raises:
        ConfigError: the configuration is wrong, or its batch does not divide over the GPUs.
        WeightsError: the sizes of an encoder are not known on this machine.
    """
    # these imports take seconds
    from promptmeup.config import load
    from promptmeup.distributed.scaling import Cluster
    from promptmeup.training.scaling import Assumed, ScalingModel, assumed_peak, report
    from promptmeup.training.scaling_plot import draw_scaling
    from promptmeup.training.settings import PretrainConfig

    config = load(PretrainConfig, flags.config, flags.overrides)
    model = ScalingModel(config)
    peak, peak_from = (flags.peak, "--peak") if flags.peak else assumed_peak(config, model.dtype)
    cluster = Cluster(
        per_node=flags.per_node,
        intra_bandwidth=1e9 * flags.intra_bandwidth,
        inter_bandwidth=1e9 * flags.inter_bandwidth,
        intra_latency=1e-6 * flags.intra_latency,
        inter_latency=1e-6 * flags.inter_latency,
    )
    assumed = Assumed(cluster, flops=1e12 * peak, mfu=flags.mfu)
    weak, strong = model.weak(flags.gpus, assumed), model.strong(flags.gpus, assumed)
    print(report(model, weak, strong, assumed, peak_from=peak_from))
    if flags.plot is not None:
        title = (
            f"A model, not a measurement: {model.parameters / 1e6:.0f} million parameters, ZeRO "
            f"{model.stage}, {flags.mfu:.0%} of {peak:g} TFLOP/s,\n{flags.per_node} GPUs a node, "
            f"{flags.intra_bandwidth:g} GB/s within and {flags.inter_bandwidth:g} GB/s between nodes"
        )
        draw_scaling(weak, strong, flags.plot, title=title)
        print(f"\ndrawn: {flags.plot}")


def _gpus(text: str) -> tuple[int, ...]:
    return tuple(sorted(_count(part) for part in text.split(",")))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of GPUs, such as 8")
    return int(text)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number
