"""The CUDA kernels of the optimizers' steps, run on the host: against torch.optim."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host.testing import kernels_of, misaligned

LR, BETAS, EPS, DECAY = 0.05, (0.8, 0.99), 1e-6, 0.01
# The numbers of csrc/common/optimizers.h; torch's optimizer, x and y, and the names of its state.
OPTIMIZERS = {
    "sgd": (0, lambda p: torch.optim.SGD(p, lr=LR), (0.0, 0.0), (None, None)),
    "adagrad": (1, lambda p: torch.optim.Adagrad(p, lr=LR, lr_decay=DECAY, eps=EPS), (DECAY, 0.0), (None, "sum")),
    "adam": (2, lambda p: torch.optim.Adam(p, lr=LR, betas=BETAS, eps=EPS), BETAS, ("exp_avg", "exp_avg_sq")),
    "lazy_adam": (
        *(3, lambda p: torch.optim.SparseAdam(p, lr=LR, betas=BETAS, eps=EPS)),
        *(BETAS, ("exp_avg", "exp_avg_sq")),
    ),
}


kernels = kernels_of("mf_update")


def step(kernels, name, table, state, rows, values, number):
    kind, _, (x, y), _ = OPTIMIZERS[name]
    places = torch.full((len(table),), -1, dtype=torch.int32) if name == "adam" else None
    kernels.mf_update(table, *state, rows, values, places, kind, LR, x, y, EPS, float(number), None, None)


def gradients(size, dim, occurring, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(size, generator=generator)[:occurring].sort().values
        yield rows, torch.randn((occurring, dim) if dim else (occurring,), generator=generator)


def check(kernels, name, size, dim, occurring, *, padding=0, move=lambda t: t):
    """Three steps, of which each row takes part in some."""
    _, make, _, names = OPTIMIZERS[name]
    shape = (size, dim) if dim else (size,)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    wanted = start.clone().requires_grad_()
    optimizer = make([wanted])
    table = move(start.clone())
    state = [None if n is None else move(torch.zeros(shape)) for n in names]
    for number, (rows, values) in enumerate(gradients(size, dim, occurring, 3), 1):
        grad = torch.sparse_coo_tensor(rows.unsqueeze(0), values, shape, check_invariants=True)
        wanted.grad = grad if name == "lazy_adam" else grad.to_dense()
        optimizer.step()
        if padding:  # rows that do not exist, whose values are anything
            rows = torch.cat([rows, torch.full((padding,), size)])
            values = torch.cat([values, torch.full((padding, *values.shape[1:]), torch.nan)])
        step(kernels, name, table, state, rows, move(values), number)
    torch.testing.assert_close(table, wanted.detach(), rtol=2e-5, atol=2e-6)
    for n, got in zip(names, state, strict=True):
        if n is not None:
            torch.testing.assert_close(got, optimizer.state[wanted][n], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replays_go_on_counting(kernels, name, dtype):
    """One launch again and again, as a CUDA graph makes it: the rate and the step's number are what memory holds."""
    size, dim, occurring = 23, 8, 11
    kind, make, (x, y), names = OPTIMIZERS[name]
    start = torch.randn(size, dim, generator=torch.Generator().manual_seed(9))
    wanted = start.clone().requires_grad_()
    optimizer = make([wanted])
    table, state = start.clone(), [None if n is None else torch.zeros(size, dim) for n in names]
    rows, values = torch.zeros(occurring, dtype=torch.int64), torch.zeros(occurring, dim)
    places = torch.zeros(size, dtype=torch.int32)
    rate, counter = torch.full((1,), LR, dtype=dtype), torch.zeros((), dtype=dtype)
    # (The numbers are not to be looked at.)
    launch = (table, *state, rows, values, places, kind, -1.0, x, y, EPS, -1.0, rate, counter)
    for number, batch in enumerate(gradients(size, dim, occurring, 12), 1):
        if number == 7:
            rate.fill_(LR / 3)
            optimizer.param_groups[0]["lr"] = LR / 3
        rows.copy_(batch[0])
        values.copy_(batch[1])
        places.fill_(-1)
        counter.add_(1)
        kernels.mf_update(*launch)
        grad = torch.sparse_coo_tensor(rows.unsqueeze(0), values, (size, dim), check_invariants=True)
        wanted.grad = grad.clone() if name == "lazy_adam" else grad.to_dense()
        optimizer.step()
        torch.testing.assert_close(table, wanted.detach(), rtol=5e-5, atol=5e-6)
    for n, got in zip(names, state, strict=True):
        if n is not None:
            torch.testing.assert_close(got, optimizer.state[wanted][n], rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_in_memory_are_the_numbers(kernels, name):
    kind, _, (x, y), names = OPTIMIZERS[name]
    for step, lr in ((1.0, 0.05), (2.0, 1e-3), (100_000.0, 0.7)):
        results = []
        for in_memory in (False, True):
            generator = torch.Generator().manual_seed(1)
            table, first, second = (torch.rand(9, 7, generator=generator) for _ in range(3))
            state = [None if n is None else t for n, t in zip(names, (first, second), strict=True)]
            places = torch.full((9,), -1, dtype=torch.int32)
            numbers = [torch.tensor(v, dtype=torch.float64) for v in (lr, step)] if in_memory else [None, None]
            values = torch.rand(3, 7, generator=generator)
            kernels.mf_update(
                table, *state, torch.tensor([0, 4, 8]), values, places, kind, lr, x, y, EPS, step, *numbers
            )
            results.append((table, first, second))
        for known, read in zip(*results, strict=True):
            assert torch.equal(known, read)


@pytest.mark.parametrize("dim", [0, 1, 3, 4, 64, 65, 257])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps(kernels, name, dim):
    check(kernels, name, 41, dim, 13)
    check(kernels, name, 41, dim, 41)
    check(kernels, name, 41, dim, 9, padding=6)
    check(kernels, name, 41, dim, 13, move=misaligned)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_to_do(kernels, name):
    check(kernels, name, 7, 4, 0)
    check(kernels, name, 7, 4, 0, padding=3)
    none = torch.empty(0, 4)
    step(kernels, name, none, [none, none], torch.empty(0, dtype=torch.int64), none, 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_more_elements_than_a_block(kernels, name):
    for settings in cuda_on_host.SCHEDULES:
        with cuda_on_host.schedule(settings):
            check(kernels, name, 700, 20, 300)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "lazy_adam"])
def test_rows_without_a_gradient_stay(kernels, name):
    table, state = torch.ones(9, 8), [torch.full((9, 8), 0.5) for _ in range(2)]
    before = [t.clone() for t in (table, *state)]
    step(kernels, name, table, state, torch.tensor([2, 5, 9, -1]), torch.ones(4, 8), 1)
    rest = torch.tensor([0, 1, 3, 4, 6, 7, 8])
    for got, was in zip((table, *state), before, strict=True):
        assert torch.equal(got[rest], was[rest])
    assert not torch.equal(table[2], before[0][2])
