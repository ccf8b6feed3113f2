"""open_clip's training step around our towers: `train_one_epoch` of its wheel, called as `open_clip_train.main` does.

Usage, on every rank:

    theirs = open_clip_steps(model, batches, world=world, steps=50, precision="amp_bf16")
    theirs()  # 50 optimizer steps; the next call goes on with weights, optimizer and batches

Theirs are the loop, `ClipLoss` (local loss, differentiable gather, cached labels), AdamW with its two groups and
torch's default implementation, clipping, DDP, autocast, GradScaler, compilation of the whole model, TF32 and cuDNN's
search. Ours are the towers, projections and their unit vectors, and batches that are made beforehand: photos
normalised, in float32 and on the device, so that neither reading nor copying is in their time.

What differs from `training.step.train_step` with the image-text loss alone:
- They learn s = ln(1 / τ), starting from the model's τ, and clamp it to [0, ln 100] after each step; we learn τ itself
  and bound it to [0.001, 0.5] on use. dL/ds = -τ dL/dτ, and AdamW moves either by its rate: from the second step on
  the two temperatures differ, and so does everything else. Compare the first step.
- The gradient's norm for clipping has dL/ds in it in place of dL/dτ, which is 1 / τ times as large. Below the limit
  the clipped gradients are the same, above it those of the towers differ by one factor.
- One rate for all parameters, constant here. Matrices are decayed, as with us, unless a name has "bn", "ln", "bias" or
  "logit_scale" in it.
- DDP keeps weights and AdamW's state whole on every rank, as ZeRO stage 0 does. Nobody looks for a loss or features
  that are not finite, and no step waits for the device.
- Loss and scale come to the host after every hundredth step of a call, the first of them, and after its last one. Give
  a call so many steps that this does not weigh.

"amp_bf16" is the setting to compare with: float32 weights under autocast, as a bf16 engine has its float32 copies.
"pure_bf16" does less work, but weights and AdamW's state are bfloat16 too and round small updates away: another
training, so name it as such. "amp" is float16 with a GradScaler. On a CPU: "fp32".
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from promptmeup.data.transforms import normalise
from promptmeup.distributed.world import World
from promptmeup.models.alignment import AlignmentModel
from promptmeup.records import Batch
from tests.benchmarks.peers.peer import require

Precision = Literal["fp32", "amp", "amp_bf16", "pure_bf16"]
PACKAGE = "open_clip_torch"


class OpenClipModel(nn.Module):
    """A dual encoder of ours with the forward pass and the `logit_scale` of open_clip's models.

    Their texts come without a mask: it is found again by the padding token.
    """

    def __init__(self, towers: AlignmentModel) -> None:
        super().__init__()
        assert towers.fusion is None, "a model with a fusion half computes more than open_clip's"
        self.towers = towers
        self.pad: int = towers.bert_description["pad_token_id"]
        temperature = towers.heads.temperature
        # DDP waits for the gradient of every parameter that may have one
        temperature.requires_grad_(False)
        self.logit_scale = nn.Parameter(-temperature().log().squeeze())

    def forward(self, images_BCSS: Tensor, tokens_BL: Tensor) -> dict[str, Tensor]:
        """Return the arguments of open_clip's losses, in the weights' dtype, as its own models do."""
        features = {
            "image_features": self.towers.encode_images(images_BCSS),
            "text_features": self.towers.encode_texts(tokens_BL, tokens_BL != self.pad),
        }
        dtype = self.logit_scale.dtype
        return {
            **{name: value.to(dtype) for name, value in features.items()},
            "logit_scale": self.logit_scale.exp(),
        }


class _Batches:
    """What `train_one_epoch` asks of its data; epoch after epoch goes on in the same round."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]], *, steps: int, size: int) -> None:
        self.num_batches = steps
        self.num_samples = steps * size * len(batches[0][0])
        self._round = cycle(batches)

    @property
    def dataloader(self) -> "_Batches":
        return self

    def set_epoch(self, epoch: int) -> None:
        """The order is the same in every epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self._round, self.num_batches)


@contextmanager
def _settings_of_main(device: torch.device) -> Iterator[None]:
    """Torch as open_clip_train.main sets it on a GPU for the rest of the process; here for its steps alone."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic
    matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = True, True, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before


def _adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return the optimizer that open_clip_train.main builds, inside of one function with everything else."""

    def excluded(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for name, p in trained if excluded(name, p)], "weight_decay": 0.0},
            {"params": [p for name, p in trained if not excluded(name, p)], "weight_decay": weight_decay},
        ],
        lr=lr,
        betas=betas,
        eps=eps,
    )


class OpenClipSteps:
    """A call runs so many optimizer steps. It does not wait for a GPU to finish what it was given.

    Attributes:
        model: the towers with the `logit_scale` that takes their temperature's place.
        optimizer: over the model's parameters.
    """

    def __init__(
        self,
        model: OpenClipModel,
        *,
        optimizer: torch.optim.Optimizer,
        world: World,
        run: Callable[[int], None],
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._world, self._run, self._epochs = world, run, 0

    def __call__(self) -> None:
        with _settings_of_main(self._world.device):
            self._run(self._epochs)
        self._epochs += 1


def open_clip_steps(
    model: AlignmentModel,
    batches: Sequence[Batch],
    *,
    world: World,
    steps: int,
    precision: Precision,
    compile: bool = False,
    lr: float = 5e-4,
    weight_decay: float = 0.2,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    gradient_clipping: float = 1.0,
) -> OpenClipSteps:
    """Return `steps` of open_clip's optimizer steps as a function; rates and decay are its defaults for a ViT.

    Args:
        model: a dual encoder, which is moved to the device and trained in place: give it a copy. Its own temperature
            is only where `logit_scale` starts.
        batches: this rank's, of equal size, taken in turns; pairs that belong together, of photos that are all
            different, the only ones that ClipLoss knows.
        world: with more than one rank, its process group is there.
        steps: of a call.
        precision: open_clip's name for it; see above.
        compile: torch.compile the model, DDP included, with torch's defaults.
        gradient_clipping: largest norm of the gradient; 0 switches clipping off, which is open_clip's default.

    Raises:
        MissingPeerError: open_clip, or what its training imports, is not installed.
    """
    train = require("open_clip_train.train", PACKAGE)
    const_lr = require("open_clip_train.scheduler", PACKAGE).const_lr
    clip_loss = require("open_clip.loss", PACKAGE).ClipLoss
    # silent, and the root logger stays as it is: what the lines are made of is computed as ever
    train.logging = logging.getLogger("open_clip_train")
    train.logging.setLevel(logging.WARNING)
    # of the names that it calls in torch
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"open_clip\.loss")

    towers = OpenClipModel(model.to(world.device))
    if precision == "pure_bf16":
        towers.to(torch.bfloat16)
    wrapped: Any = towers
    if world.size > 1:
        # open_clip names the device on a CPU too, where DDP refuses it
        devices = [world.device] if world.device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(towers, device_ids=devices)
    optimizer = _adamw(wrapped, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    if compile:
        wrapped = torch.compile(wrapped)
    args = SimpleNamespace(
        accum_freq=1,
        batch_size=len(batches[0]),
        device=str(world.device),
        distill=False,
        grad_clip_norm=gradient_clipping or None,
        horovod=False,
        log_every_n_steps=100,
        precision=precision,
        rank=world.rank,
        skip_scheduler=False,
        wandb=False,
        world_size=world.size,
    )
    loss = clip_loss(
        local_loss=True, gather_with_grad=True, cache_labels=True, rank=world.rank, world_size=world.size
    )
    data = _Batches([_pair(batch, towers, world.device) for batch in batches], steps=steps, size=world.size)
    scaler = torch.amp.GradScaler(device=world.device.type) if precision == "amp" else None
    scheduler = const_lr(optimizer, lr, 0, steps)

    def run(epoch: int) -> None:
        train.train_one_epoch(wrapped, {"train": data}, loss, epoch, optimizer, scaler, scheduler, None, args)

    return OpenClipSteps(towers, optimizer=optimizer, world=world, run=run)


def _pair(batch: Batch, model: OpenClipModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return photos and captions as `train_one_epoch` unpacks them."""
    assert batch.matched_B.all() and len(batch.image_ids_B.unique()) == len(batch), (
        "ClipLoss knows pairs only"
    )
    assert torch.equal(batch.tokens_BL != model.pad, batch.token_mask_BL), (
        "the mask is not that of the padding"
    )
    vision = model.towers.vision
    images_BCSS = normalise(batch.images_BCSS.to(device), mean=vision.mean, std=vision.std)
    return images_BCSS, batch.tokens_BL.to(device)


def first_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the (clipped, averaged) gradients of AdamW's first and only step so far, by name in `model`.

    They are found again in its first moments, (1 - β₁) g; so this is for `engine.module` and `engine.optimizer` of an
    engine at stage 0 in float32, too.
    """
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            assert state["step"] == 1
            found[id(parameter)] = state["exp_avg"] / (1 - group["betas"][0])
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}
