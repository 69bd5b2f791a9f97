"""The host runner of CUDA kernels itself: it must get right kernels right and must notice wrong ones."""

from __future__ import annotations

import re

import cuda_on_host
import pytest
import torch
from cuda_on_host import sanitize
from cuda_on_host.testing import kernels_of

selftest = kernels_of("selftest")


@pytest.fixture(scope="module")
def bugs():
    return cuda_on_host.build_program("bugs.cpp", "plain")


# ------------------------------------------------------------------------------ what it must get right


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_floats_convert_as_torch_does(selftest, dtype):
    half = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)  # every value there is
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20000,), generator=generator).to(torch.int32)
    between = torch.cat([half.float(), torch.nextafter(half.float(), torch.tensor(0.0)), bits.view(torch.float32)])
    x = torch.cat([between, torch.tensor([65519.0, 65520.0, -65520.0, 2.0**-25, 3 * 2.0**-26, 1e-45])])
    stored, back = torch.full_like(x, torch.nan, dtype=dtype), torch.full_like(x, torch.nan)
    launcher = selftest.half_round_trip if dtype == torch.float16 else selftest.bfloat16_round_trip
    launcher(x, stored, back)
    # NaN payloads are free; everything else must be the same bits.
    expected = x.to(dtype)
    assert torch.equal(stored.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(stored[number].view(torch.int16), expected[number].view(torch.int16))
    assert torch.equal(back[number], expected[number].float())


def test_warp_operations(selftest):
    x = torch.randint(0, 100, (32,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    out = torch.full((13, 32), -1, dtype=torch.int32)
    selftest.warp_operations(x, out)
    v = x.tolist()

    def mask(holds):
        return sum(1 << i for i in range(32) if holds(v[i]))

    def signed(m):
        return m - (1 << 32) if m >= 1 << 31 else m

    lanes = range(32)
    expected = [
        [v[5]] * 32,
        [v[i // 8 * 8 + (i + 3) % 8] for i in lanes],
        [v[i - 2] if i % 16 >= 2 else v[i] for i in lanes],
        [v[i + 3] if i % 4 == 0 else v[i] for i in lanes],
        [v[i ^ 9] for i in lanes],
        [signed(mask(lambda y: y & 1))] * 32,
        [0] * 32,
        [1] * 32,
        [signed(mask(lambda y, i=i: y % 3 == v[i] % 3)) for i in lanes],
        [sum(v)] * 32,
        [v[i ^ 1] if i < 16 else v[i ^ 2] for i in lanes],
        [sum(y & 1 for y in v)] * 32,
        [int(0 in v)] * 32,
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
@pytest.mark.parametrize("blocks", [1, 7])
def test_last_block_sum_under_any_schedule(selftest, settings, blocks):
    x = torch.arange(1001, dtype=torch.float64)
    partial = torch.full((blocks,), torch.nan, dtype=torch.float64)
    counter, out = torch.zeros(1, dtype=torch.int32), torch.full((1,), torch.nan, dtype=torch.float64)
    with cuda_on_host.schedule(settings):
        selftest.last_block_sum(x, partial, counter, out)
    assert out.item() == 500500
    assert counter.item() == blocks


def test_colliding_atomics_all_count(selftest):
    index = torch.arange(1000, dtype=torch.int32) % 3
    out = torch.zeros(3)
    with cuda_on_host.schedule({"CUEMU_ORDER": "2", "CUEMU_RESIDENT": "8"}):
        selftest.scatter_add(index, out)
    assert out.tolist() == [334, 333, 333]


def test_wrong_calls_are_refused(selftest):
    x = torch.zeros(4)
    with pytest.raises(RuntimeError, match="another dtype"):
        selftest.scatter_add(x, x)
    with pytest.raises(RuntimeError, match="another number of arguments"):
        selftest.scatter_add(x)
    with pytest.raises(RuntimeError, match="expected a tensor"):
        selftest.scatter_add(x.int(), 3)
    with pytest.raises(RuntimeError, match="invalid launch configuration"):
        selftest.scatter_add(torch.empty(0, dtype=torch.int32), x)
    with pytest.raises(AttributeError, match="no launcher 'absent' in selftest"):
        selftest.absent(x)
    with pytest.raises(ValueError, match="expected a CPU tensor"):
        selftest.scatter_add(torch.zeros(4, device="meta"), x)


# --------------------------------------------------------------------------------- what it must notice


@pytest.mark.parametrize("bug", sanitize.BUGS)
def test_planted_bug(bugs, bug):
    # The plain build; `python tests/cuda_on_host/sanitize.py bugs` checks the sanitized ones.
    status, text = sanitize.run_bug(bugs, bug)
    if "plain" in sanitize.BUGS[bug]:
        assert status in (3, 4), text
    if bug == "control":
        assert status == 0, text


@pytest.mark.parametrize("order", ["1", "2"])
def test_another_order_shows_a_missing_barrier_that_the_natural_one_hides(bugs, order):
    assert sanitize.run_bug(bugs, "no_barrier_neighbour", CUEMU_ORDER="0")[0] == 0
    assert sanitize.run_bug(bugs, "no_barrier_neighbour", CUEMU_ORDER=order)[0] == 4


def test_messages_name_the_place_and_the_thread(bugs):
    _, text = sanitize.run_bug(bugs, "early_exit")
    assert re.search(
        r"early_exit.*__syncthreads at .*bugs\.cpp:\d+ not reached by block \(0,0,0\) thread \(50,0,0\)", text
    )
    _, text = sanitize.run_bug(bugs, "large_dynamic")
    assert "more than 48 KiB of shared memory, not asked for: (small_dynamic)" in text


def test_every_planted_bug_is_in_the_table(bugs):
    assert sorted(sanitize.BUGS) == sorted(sanitize.run_bug(bugs, "?")[1].split())


# -------------------------------------------------------------------------------- rules of the sources


def test_kernels_use_the_spellings_that_both_compilers_know():
    sources = [p for s in ("*.cuh", "*.cu") for p in (cuda_on_host.CSRC / "cuda").glob(s)]
    for path in sources:
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        assert "__shared__" not in code, f"{path.name}: use GPU_SHARED"
        assert "<<<" not in code, f"{path.name}: use GPU_LAUNCH"
        if path.suffix == ".cuh":
            assert "torch" not in code, f"{path.name}: torch belongs into the .cu"
            assert "GPU_NS" in code, f"{path.name}: kernels belong into inline namespace GPU_NS"
