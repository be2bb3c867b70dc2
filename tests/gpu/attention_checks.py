"""What test_attention.py asks for, run in Triton's interpreter (interpreter.py): each function raises what is wrong."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import torch
from fusionkit_backends.gpu.autograd import flash_attention, paged_attention
from fusionkit_backends.gpu.kernels import attention, paged
from fusionkit_backends.gpu.kernels.attention_tiles import SMALL, Tiles

import fusionkit as fk
from fusionkit import parity
from fusionkit.comparison import ParityError
from fusionkit.frameworks import torch as torch_arrays
from fusionkit.ops.flash_attention import hidden_by_rows
from tests.gpu.launches import DTYPES


def planted(what):
    """A kernel that is wrong in one place does not pass."""
    op, case = (fk.paged_attention, "plain-cache") if what == "split" else (fk.flash_attention, "documents-GQA")
    found = next(each for each in op.spec.cases if each.name == case)
    {"key block": skip_a_block, "dk": forget_a_factor, "split": drop_a_split}[what]()
    try:
        parity.check(op, found, "bfloat16", "gpu", "torch")
    except ParityError as error:
        assert "times its bound" in str(error), error
    else:
        raise AssertionError(f"a planted mistake passed: {what}")
    finally:
        attention.listed_blocks, attention._dk_dv, paged.launch_named = REAL


REAL = attention.listed_blocks, attention._dk_dv, paged.launch_named


def skip_a_block():
    def listed(problem, tiles, by_query):
        made = REAL[0](problem, tiles, by_query)
        made["lists"].counts.sub_(1)
        return made

    attention.listed_blocks = listed


def forget_a_factor():
    def dk_dv(problem, shared):
        dk, dv = REAL[1](problem, shared)
        return dk / problem.scale, dv

    attention._dk_dv = dk_dv


def drop_a_split():
    def launch(kernel, grid, **arguments):
        if "num_splits" in arguments:
            arguments["num_splits"] -= 1
        REAL[2](kernel, grid, **arguments)

    paged.launch_named = launch


def lists_hold_what_attends():
    """Every block with a pair that attends is listed, in order; of packed documents nothing else is."""
    rng = np.random.default_rng(5)
    for causal, columns in ((True, 1), (True, 2), (False, 2), (False, 4)):
        for length in (16, 50):
            bounds = rng.integers(0, length + 1, (1, 3, length, columns)).astype(np.int32)
            check_lists(bounds, causal, exact=False)
    for length in (97,):
        ends = np.minimum(np.arange(length) // 32 * 32 + 32, length).astype(np.int32)
        check_lists(ends[None, None, :, None], True, exact=True)
        starts = (ends - 1) // 32 * 32
        check_lists(np.stack([ends, starts.astype(np.int32)], -1)[None, None], False, exact=True)


def check_lists(bounds, causal, exact):
    batch, heads, length, _ = bounds.shape
    seen = ~hidden_by_rows(bounds, causal, length)
    if causal:
        seen &= np.tri(length, dtype=bool)
    q = torch.zeros(batch, length, heads, 16)
    problem = attention.Problem(
        q, q, q, causal, 1.0, partial(flash_attention.empty, q), startend_row_indices=torch.from_numpy(bounds)
    )
    for tiles in (SMALL, Tiles(32, 16, 1, 1)):
        m, n = -(-length // tiles.block_m), -(-length // tiles.block_n)
        whole = np.zeros((batch, heads, m * tiles.block_m, n * tiles.block_n), bool)
        whole[:, :, :length, :length] = seen
        blocks = whole.reshape(batch, heads, m, tiles.block_m, n, tiles.block_n).any((3, 5))
        for by_query in (True, False):
            listed = attention.listed_blocks(problem, tiles, by_query)["lists"]
            want = (blocks if by_query else blocks.swapaxes(2, 3)).reshape(batch * heads, -1, n if by_query else m)
            compare_lists(listed, want, exact)


def compare_lists(listed, want, exact):
    for head, program in np.ndindex(want.shape[:2]):
        got = listed.blocks[head, program, : listed.counts[head, program]].tolist()
        needed = np.flatnonzero(want[head, program]).tolist()
        assert got == sorted(set(got)), got
        assert got == needed if exact else set(needed) <= set(got), (head, program, got, needed)


def strides(dtype):
    """Slices of one tensor, heads first, every second element: the bits of dense copies, gradients too."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(DTYPES[dtype])

    packed = randn(2, 21, 3, 2, 32)
    ways = {
        "packed": [packed[:, :, i, :, :16] for i in range(3)],
        "heads first": [randn(2, 2, 21, 16).transpose(1, 2) for _ in range(3)],
        "last axis strided": [packed[:, :, i, :, ::2] for i in range(3)],
        "one batch row for all": [randn(1, 21, 2, 16).expand(2, -1, -1, -1) for _ in range(3)],
    }
    mask = torch.rand(21, 1, 1, 21, generator=generator).permute(1, 2, 3, 0) > 0.3
    grad = randn(2, 21, 2, 32)[..., ::2]
    for way, tensors in ways.items():
        results = [
            attended([convert(x).detach().requires_grad_() for x in tensors], mask, convert(grad))
            for convert in (lambda x: x, lambda x: x.clone(memory_format=torch.contiguous_format))
        ]
        for strided, dense in zip(*results, strict=True):
            assert torch.equal(strided, dense), way


def attended(leaves, mask, grad):
    out = fk.flash_attention(*leaves, causal=True, attn_mask=mask)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def dropped_keys(dtype):
    """What the second document holds does not reach the first, forward and backward; its own rows show it."""
    first, length = 21, 43
    document = torch.arange(length) >= first
    seen = (document[:, None] == document)[None, None]
    ends = torch.where(document, length, first).to(torch.int32)[None, None, :, None]
    added = torch.where(seen, 0.5, -torch.inf)
    for causal, mask, names, bad in (
        (False, {"attn_mask": seen}, "kv", torch.nan),
        (True, {"attn_mask": added}, "v", torch.inf),
        (True, {"startend_row_indices": ends}, "qk", -torch.inf),
    ):
        want, got = (run_documents(dtype, first, length, causal, mask, names, value) for value in (None, bad))
        for name, a, b in zip(("out", "dq", "dk", "dv"), want, got, strict=True):
            torch.testing.assert_close(b[:, :first], a[:, :first], rtol=2e-2, atol=2e-2, msg=f"{name} {mask} {bad}")
        assert not got[0][:, first:].isfinite().all(-1).any()


def run_documents(dtype, first, length, causal, mask, names, bad):
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, heads in {"q": 2, "k": 1, "v": 1, "dout": 2}.items():
        made[name] = torch.randn(1, length, heads, 16, generator=generator).to(DTYPES[dtype])
        if bad is not None and name in names:
            made[name][:, first:, :, ::3] = bad
    leaves = [made[name].requires_grad_() for name in "qkv"]
    out = fk.flash_attention(*leaves, causal=causal, **mask)
    return [out.detach(), *torch.autograd.grad(out, leaves, made["dout"])]


def later_tokens_of_a_cache():
    """The last token's NaN reaches no earlier token, in a prefill and in a step of several tokens."""
    for count, start in ((40, 0), (3, 0), (3, 70)):
        outs = []
        for bad in (False, True):
            generator = torch.Generator().manual_seed(0)
            q, k, v = (torch.randn(count, 2, 16, generator=generator) for _ in range(3))
            if bad:
                k[-1], v[-1, :, 0] = torch.nan, torch.inf
            caches = [torch.full((3, 2, 32, 16), torch.nan) for _ in range(2)]
            for cache in caches:
                cache[[0, 1]] = 1.0
                cache[2, :, : max(start - 64, 0)] = 1.0
            lengths = {
                name: torch.tensor([number], dtype=torch.int32)
                for name, number in (
                    ("seq_lens_encoder", 0 if start else count),
                    ("seq_lens_decoder", start),
                    ("seq_lens_this_time", count),
                )
            }
            tables = torch.tensor([[0, 1, 2]], dtype=torch.int32)
            outs.append(fk.paged_attention(q, k, v, *caches, block_tables=tables, **lengths))
        torch.testing.assert_close(outs[1][:-1], outs[0][:-1], rtol=1e-5, atol=1e-5)
        assert outs[0].isfinite().all() and not outs[1][-1].isfinite().all()


def only_lse_has_a_gradient():
    """dout is absent then; against the gradient of torch's own logsumexp."""
    q, k, v = (torch.randn(1, 9, 2, 16, requires_grad=True) for _ in range(3))
    _, lse = fk.flash_attention(q, k, v, return_lse=True)
    want = torch.logsumexp(torch.einsum("bqhd,bkhd->bhqk", q, k) / 4, -1)
    ours, theirs = (torch.autograd.grad(each.sin().sum(), (q, k)) for each in (lse, want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def invalid_calls():
    """The spec's own error, at a first call and where a remembered decision runs the kernel at once."""
    for op in (fk.flash_attention, fk.paged_attention):
        with fk.use_backend("gpu"):
            op(**tensors(parity.arguments_of(op.spec, op.spec.cases[0], "float32")))
            for case in op.spec.invalid_cases:
                try:
                    op(**tensors(case.arguments(np.random.default_rng(0))))
                except case.error as error:
                    assert re.search(case.match, str(error)), (op, case.name, str(error))
                else:
                    raise AssertionError(f"{op} took {case.name}")


def tensors(arguments):
    made = {}
    for name, value in arguments.items():
        array = value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value
        made[name] = torch_arrays.from_numpy(array, "cpu") if isinstance(array, np.ndarray) else array
    return made


def differentiable_once():
    q = torch.randn(1, 5, 1, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(fk.flash_attention(q, q, q).square().sum(), q, create_graph=True)
    try:
        grad.sum().backward()
    except RuntimeError as error:
        assert "once_differentiable" in str(error)
    else:
        raise AssertionError("a gradient of a gradient was given")


def decoder_layer_is_right():
    """A layer and a model of the benchmark, built of the backend's ops, against PyTorch's composition in float64."""
    from fusionkit_backends.gpu.benchmark import layer_ops
    from fusionkit_backends.gpu.benchmark.decoder_layer import Model, Sizes, rope_tables

    torch.manual_seed(0)
    sizes = Sizes(hidden=32, intermediate=48, heads=2, head_dim=16, vocab=37, layers=2)
    ours = Model(sizes, layer_ops.ours(), torch.float32, "cpu")
    exact = Model(sizes, layer_ops.plain(), torch.float64, "cpu")
    exact.load_state_dict(ours.state_dict())
    tokens, labels = torch.randint(0, 37, (2, 1, 18))
    cos, sin = rope_tables(18, 16, "cpu")
    losses = [ours(tokens, labels, cos, sin), exact(tokens, labels, cos, sin)]
    gradients = [
        torch.autograd.grad(loss, list(model.parameters())) for loss, model in zip(losses, (ours, exact), strict=True)
    ]
    for (name, _), got, want in zip(ours.named_parameters(), *gradients, strict=True):
        error = (got.double() - want).norm() / want.norm()
        assert error < 2e-6, (name, error)
    assert abs(float(losses[0]) / float(losses[1]) - 1) < 1e-6, losses


def recorded_rows_have_no_values():
    """A recorded call of paged_attention stands for both kinds of rows."""
    from fusionkit_backends.gpu.kernels.launch import recording

    case = next(each for each in fk.paged_attention.spec.cases if each.name == "plain-cache")
    made = {k: v.to("meta") for k, v in tensors(parity.arguments_of(fk.paged_attention.spec, case, "float32")).items()}
    with recording() as launches:
        paged_attention.paged_attention(**made)
    names = [each.kernel.__name__ for each in launches]
    assert names.count("paged_attention_kernel") == 4 and "add_splits_kernel" in names, names
    partial = next(each for each in launches if each.kernel.__name__ == "add_splits_kernel").arguments[0]
    # one token a short row, whatever the tokens of the long ones
    assert partial.shape[1:] == (made["seq_lens_this_time"].shape[0], *made["q"].shape[1:]), partial.shape
