"""Log-sum-exps and weighted sums, tile by tile, on both implementations, against whole float64 matrices.

Triton's kernels run in its interpreter where there is no GPU (tests/conftest.py says so to Triton).
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptmeup.losses import tiles_torch
from promptmeup.losses.tiles import LeftOut, Logits, Matched, Weights

tiles_triton = pytest.importorskip("promptmeup.losses.tiles_triton", reason="no Triton for this system")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VERSIONS = {"torch": tiles_torch, "triton": tiles_triton}


@pytest.fixture(params=VERSIONS)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Small tiles, so that a small matrix has several in both directions, and ragged ones at its ends."""
    version = VERSIONS[request.param]
    monkeypatch.setattr(version, "TILE_ROWS", 24)
    monkeypatch.setattr(version, "TILE_COLUMNS", 32)
    if version is tiles_triton:
        monkeypatch.setattr(version, "BLOCK_ROWS", 16)
        monkeypatch.setattr(version, "BLOCK_COLUMNS", 16)
    return version


@dataclass(frozen=True)
class Case:
    logits: Logits
    whole: Tensor
    """float64 [B, N]; -inf where an entry takes no part"""


def case(
    rows: int,
    columns: int,
    *,
    scale: float,
    dtype: torch.dtype = torch.float32,
    keep: bool = False,
    left_out: bool = False,
    offset: int = 3,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def unit(count: int) -> Tensor:
        return F.normalize(torch.randn(count, 8, generator=generator, dtype=torch.float64), dim=-1).to(dtype)

    x, y = unit(rows), unit(columns)
    scale_1 = torch.tensor([scale], dtype=torch.promote_types(dtype, torch.float32))
    whole = x.double() @ y.double().T * scale_1.double()
    keep_B, hidden = None, None
    if keep:
        keep_B = torch.rand(rows, generator=generator) < 0.6
        whole[~keep_B] = -torch.inf
    if left_out:
        x_ids, y_ids = (torch.randint(0, 4, (n,), generator=generator) - 2**62 for n in (rows, columns))
        hidden = LeftOut(x_ids.to(DEVICE), y_ids.to(DEVICE), offset)
        mask = x_ids[:, None] == y_ids[None, :]
        for row in range(rows):
            if row + offset < columns:
                mask[row, row + offset] = False
        whole[mask] = -torch.inf
    logits = Logits(
        x.to(DEVICE), y.to(DEVICE), scale_1.to(DEVICE), None if keep_B is None else keep_B.to(DEVICE), hidden
    )
    return Case(logits, whole)


SHAPES = {"one tile": (7, 20), "several": (53, 75), "exact": (48, 64), "a row": (1, 70), "a column": (70, 1)}
KINDS = {"plain": {}, "keep": {"keep": True}, "left_out": {"left_out": True}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 1000.0])
def test_log_sums(tiles: ModuleType, scale: float, shape: str, kind: str) -> None:
    given_case = case(*SHAPES[shape], scale=scale, **KINDS[kind])
    sums = tiles.log_sums(given_case.logits, find_best=True)
    keep_B = given_case.logits.keep_B
    expected = given_case.whole.logsumexp(1)
    if keep_B is not None:
        expected = expected.where(keep_B.cpu(), 0)
    tolerance = 2e-6 * max(1.0, scale / 14)
    torch.testing.assert_close(sums.rows_B.cpu(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(sums.columns_N.cpu(), given_case.whole.logsumexp(0), rtol=0, atol=tolerance)
    # the best column's logit is the largest, up to rounding
    best = given_case.whole.gather(1, sums.best_B.cpu()[:, None]).squeeze(1)
    largest = given_case.whole.amax(1)
    counted = largest.isfinite()
    torch.testing.assert_close(best[counted], largest[counted], rtol=0, atol=tolerance)


def expected_weights(whole: Tensor, weights: Weights) -> Tensor:
    def softmaxes(logs: Tensor) -> Tensor:
        return (whole - logs.where(logs.isfinite(), 0)).exp()

    w = weights.rows_B[:, None] * softmaxes(weights.row_logs_B[:, None])
    w += weights.columns_N * softmaxes(weights.column_logs_N)
    if weights.matched is not None:
        groups = weights.matched.y_groups_N
        same = weights.matched.x_groups_B[:, None] == (torch.arange(len(w[0])) if groups is None else groups)
        w -= same * weights.matched.weights_B[:, None]
    return w


def to_device(weights: Weights) -> Weights:
    matched = weights.matched
    return Weights(
        *(
            t.to(DEVICE)
            for t in (weights.row_logs_B, weights.column_logs_N, weights.rows_B, weights.columns_N)
        ),
        matched
        and Matched(
            matched.x_groups_B.to(DEVICE),
            None if matched.y_groups_N is None else matched.y_groups_N.to(DEVICE),
            matched.weights_B.to(DEVICE),
        ),
    )


@pytest.mark.parametrize("kind", [*KINDS, "matched", "columns of their own"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 1000.0])
def test_weighted_sums(tiles: ModuleType, scale: float, shape: str, kind: str) -> None:
    rows, columns = SHAPES[shape]
    given_case = case(rows, columns, scale=scale, **KINDS.get(kind, {}))
    generator = torch.Generator().manual_seed(1)
    whole, keep_B = given_case.whole, given_case.logits.keep_B
    # the columns' log-sum-exps are the world's: other ranks make them larger
    column_logs = torch.logaddexp(whole.logsumexp(0), torch.randn(columns, generator=generator).double())
    matched = None
    if kind not in KINDS:
        groups = torch.randint(0, min(4, columns), (columns,), generator=generator)
        matched = Matched(
            torch.randint(0, min(4, columns), (rows,), generator=generator),
            groups if kind == "matched" else None,
            torch.rand(rows, generator=generator, dtype=torch.float64),
        )
    weights = Weights(
        whole.logsumexp(1) if keep_B is None else whole.logsumexp(1).where(keep_B.cpu(), 0),
        column_logs,
        # some rows and columns have no weight
        torch.rand(rows, generator=generator).sub(0.2).clamp(min=0).double(),
        torch.rand(columns, generator=generator).sub(0.2).clamp(min=0).double(),
        matched,
    )
    x, y = (torch.randn(n, 5, generator=generator) for n in (rows, columns))
    onto = torch.ones(columns, 5)
    w = expected_weights(whole, weights)
    onto_device = onto.to(DEVICE)
    found = tiles.weighted_sums(
        given_case.logits, to_device(weights), x_BD=x.to(DEVICE), y_ND=y.to(DEVICE), onto_columns=onto_device
    )
    tolerance = 3e-6 * max(1.0, scale / 14) * w.abs().sum().item() ** 0.5
    torch.testing.assert_close(found.cpu().double(), w @ y.double(), rtol=1e-5, atol=tolerance)
    torch.testing.assert_close(onto_device.cpu().double(), 1 + w.T @ x.double(), rtol=1e-5, atol=tolerance)
    alone = tiles.weighted_sums(
        given_case.logits, to_device(weights), x_BD=x.to(DEVICE), y_ND=y.to(DEVICE), onto_columns=None
    )
    if DEVICE.type == "cpu":
        assert torch.equal(alone, found)
    else:  # CUDA adds up in no fixed order
        torch.testing.assert_close(alone, found, rtol=1e-5, atol=tolerance)


def test_bfloat16_vectors_have_float32_logits(tiles: ModuleType) -> None:
    """bf16 logits would be off by 0.2 at this scale."""
    given_case = case(40, 50, scale=100.0, dtype=torch.bfloat16)
    sums = tiles.log_sums(given_case.logits)
    torch.testing.assert_close(sums.rows_B.cpu(), given_case.whole.logsumexp(1), rtol=0, atol=2e-5)


def test_what_is_learnt_well_keeps_its_gradient_in_bfloat16(tiles: ModuleType) -> None:
    """p - 1 of a matched pair: were p rounded to bf16 before 1 is subtracted, half of this gradient would be noise."""
    x = torch.eye(16).bfloat16()
    scale = torch.tensor([10.0])
    logits = Logits(x.to(DEVICE), x.to(DEVICE), scale.to(DEVICE))
    sums = tiles.log_sums(logits)
    groups = torch.arange(16)
    weights = Weights(
        sums.rows_B.cpu(),
        sums.columns_N.cpu(),
        torch.ones(16).double(),
        torch.zeros(16).double(),
        Matched(groups, groups, torch.ones(16).double()),
    )
    onto = torch.zeros(16, 16).to(DEVICE)
    found = tiles.weighted_sums(
        logits, to_device(weights), x_BD=x.to(DEVICE), y_ND=x.to(DEVICE), onto_columns=onto
    )
    exact = (10 * torch.eye(16).double()).softmax(1) - torch.eye(16).double()
    assert (found.cpu() - exact).norm() / exact.norm() < 4e-3
    assert (onto.cpu() - exact.T).norm() / exact.norm() < 4e-3


def test_nan_is_not_hidden(tiles: ModuleType) -> None:
    for scale in (1.0, 100.0):
        given_case = case(30, 40, scale=scale)
        given_case.logits.x_BD[3, 2] = torch.nan
        sums = tiles.log_sums(given_case.logits)
        assert sums.rows_B[3].isnan()
        assert sums.columns_N.isnan().all()
        assert sums.rows_B.isnan().sum() == 1


@given(
    st.integers(1, 60),
    st.integers(1, 80),
    st.floats(0, 3),
    st.integers(0, 2**31),
    st.integers(0, 40),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_scale(
    rows: int, columns: int, exponent: float, seed: int, offset: int, left_out: bool
) -> None:
    """Plain torch in its own tiles of 1024 x 512, Triton in one: both see the matrix that torch sees whole."""
    given_case = case(rows, columns, scale=10**exponent, seed=seed, left_out=left_out, offset=offset)
    for version in VERSIONS.values():
        sums = version.log_sums(given_case.logits)
        tolerance = 3e-6 * max(1.0, 10**exponent / 14)
        torch.testing.assert_close(sums.rows_B.cpu(), given_case.whole.logsumexp(1), rtol=0, atol=tolerance)
        torch.testing.assert_close(
            sums.columns_N.cpu(), given_case.whole.logsumexp(0), rtol=0, atol=tolerance
        )


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from promptmeup.losses import tiles_triton

common = {"s_pointer": "*fp32", "s_stride": "i32", "scale_pointer": "*fp32"}
common |= dict.fromkeys(("offset", "first_row", "first_column", "height", "width"), "i32")
common |= {"row_logs_pointer": "*fp32", "column_logs_pointer": "*fp32"}
log_sums = {"tops_pointer": "*fp32", "best_pointer": "*i64", "row_logs_stride": "i32", "column_logs_stride": "i32"}
weights = dict.fromkeys(("row_factors_pointer", "column_factors_pointer", "matched_pointer"), "*fp32")
weights["w_stride"] = "i32"
blocks = {"block_rows": tiles_triton.BLOCK_ROWS, "block_columns": tiles_triton.BLOCK_COLUMNS}

def build(kernel, types, flags):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in (flags | blocks).items()}
    target = GPUTarget("cuda", 90, 32)
    compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=target, options={"num_warps": 8})

for has in (False, True):
    ids, keep = ("*i64", "*i8") if has else ("*fp32", "*fp32")
    reads = common | {"keep_pointer": keep, "x_ids_pointer": ids, "y_ids_pointer": ids}
    flags = {"has_keep": has, "has_left_out": has}
    build(tiles_triton._log_sums_kernel, reads | log_sums, flags | {"find_best": has})
    for w in ("*bf16", "*fp32"):
        types = reads | weights | {"x_groups_pointer": ids, "y_groups_pointer": ids, "w_pointer": w}
        build(tiles_triton._weights_kernel, types, flags | {"has_matched": has})
print("compiled")
"""


def test_kernels_compile_for_a_gpu() -> None:
    """What the interpreter lets pass, the compiler may not: all of it is compiled for an H100, which needs none."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "compiled\n", done.stderr
