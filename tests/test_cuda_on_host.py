"""The host runner of CUDA kernels itself: it must get right kernels right and must notice wrong ones."""

from __future__ import annotations

import re

import cuda_on_host
import pytest
import torch
from cuda_on_host import sanitize
from cuda_on_host.testing import counted_kernels_of, kernels_of

selftest = kernels_of("selftest")
counted = counted_kernels_of("selftest")


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


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_a_cluster_shares_memory_under_any_schedule(selftest, settings, cluster):
    blocks, threads = 16, 32
    x = torch.arange(blocks * threads, dtype=torch.int32)
    out, ranks = (torch.full((n,), -1, dtype=torch.int32) for n in (blocks // cluster, blocks))
    with cuda_on_host.schedule(settings):
        selftest.cluster_sum(x, out, ranks, cluster, threads)
    assert torch.equal(out, x.view(blocks // cluster, -1).sum(1, dtype=torch.int32))
    assert ranks.tolist() == list(range(blocks))


def test_clusters_that_no_device_has_are_refused(selftest):
    x, ranks = torch.zeros(10 * 32, dtype=torch.int32), torch.zeros(10, dtype=torch.int32)
    for cluster in (3, 10):  # 10 blocks are no multiple of 3, and 8 is the most
        with pytest.raises(RuntimeError, match=r"invalid cluster size of .*cluster_sum"):
            selftest.cluster_sum(x, ranks, ranks, cluster, 32)
    with (
        cuda_on_host.schedule({"CUEMU_CLUSTERS": "0"}),
        pytest.raises(RuntimeError, match="the device has no clusters"),
    ):
        selftest.cluster_sum(x, ranks, ranks, 2, 32)


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
def test_a_block_waits_for_the_flags_of_others(selftest, settings):
    x = torch.arange(300, dtype=torch.int32)
    partial, flags = (torch.full((300,), 77, dtype=torch.int32) for _ in range(2))
    out = torch.zeros(1, dtype=torch.int32)
    with cuda_on_host.schedule(settings):
        selftest.flags_sum(x, partial, flags, out)
    assert out.item() == int(x.sum())


def test_what_the_device_is_said_to_be(selftest):
    said = torch.zeros(2, dtype=torch.int32)
    for settings, expected in (({}, [4, 1]), ({"CUEMU_SMS": "132", "CUEMU_CLUSTERS": "0"}, [132, 0])):
        with cuda_on_host.schedule(settings):
            selftest.device(said)
        assert said.tolist() == expected


def test_launches_and_memsets_are_counted(selftest):
    x, y = torch.zeros(130), torch.zeros(130)
    flags = torch.zeros(20, dtype=torch.int32)
    with selftest.count() as counts:
        selftest.twice(x, y)
        selftest.flags_sum(flags, flags.clone(), flags.clone(), flags.clone())
        selftest.cluster_sum(flags.new_zeros(4 * 32), flags.clone(), flags.new_zeros(4), 2, 32)
    assert counts.nodes == [
        cuda_on_host.Node("(twice)", (3, 1, 1), (64, 1, 1), 1, 0),
        cuda_on_host.Node("memset", (1, 1, 1), (1, 1, 1), 1, 80),
        cuda_on_host.Node("(flags_sum)", (20, 1, 1), (32, 1, 1), 1, 0),
        cuda_on_host.Node("(cluster_sum)", (4, 1, 1), (32, 1, 1), 2, 8),
    ]
    assert counts.moved == 0  # only kernels of the kind "count" count their bytes
    with selftest.count() as counts:
        pass
    assert counts.nodes == []


def test_bytes_are_counted(counted):
    def aligned(n):
        raw = torch.zeros(n + 8)
        return raw[-raw.data_ptr() % 32 // 4 :][:n]

    with counted.count() as counts:
        counted.twice(aligned(1000), aligned(1000))
    # Every element twice, and stored every second one; sectors once each, whether written in part or not.
    assert (counts.loaded, counts.stored) == (8000, 2000)
    assert (counts.sectors_loaded, counts.sectors_stored) == (125, 125)
    assert counts.moved == 8000
    assert (counts.loads, counts.warp_loads) == (2000, 2 * 32)  # of 32 warps, the last of which is not full
    counter = torch.zeros(8, dtype=torch.int32)
    with counted.count() as counts:
        counted.pairs(aligned(512), aligned(512), counter)
    # 16 bytes at a time; shared memory does not count, an atomic does as a load and a store.
    assert (counts.loaded, counts.stored) == (2048 + 4 * 4, 2048 + 4 * 4)
    assert (counts.sectors_loaded, counts.sectors_stored) == (64 + 1, 64 + 1)
    with counted.count() as counts:
        counted.flags_sum(counter.clone(), counter.clone(), counter, counter.clone())
    assert counts.stored == 32 + 7 * 4 + 7 * 4 + 4  # the memset, seven partial sums and flags, and the result


def test_two_launches_read_memory_twice(counted):
    x, y = torch.zeros(64), torch.zeros(64)
    with counted.count() as counts:
        counted.twice(x, y)
        once = counts
    with counted.count() as counts:
        counted.twice(x, y)
        counted.twice(x, y)
    assert counts.sectors_loaded == 2 * once.sectors_loaded > 0


@pytest.mark.parametrize("how", ["0", "1", "-1", "2"])
def test_approximate_functions_err_as_the_device_may(selftest, how):
    # From -126 on an error downwards leaves the normal numbers, and zero is what is left.
    x = torch.cat([torch.linspace(-125, 0, 4001), torch.linspace(1, 2, 4001)])
    e, q = torch.empty_like(x), torch.empty_like(x)
    with cuda_on_host.schedule({"CUEMU_ULP": how}):
        selftest.intrinsics(x, e, q)
    exact = x.double()
    exponential, quotient = (e.double() / exact.exp2() - 1), (q.double() * exact - 1)[4001:]
    for error, bound in ((exponential, 2**-22), (quotient, 2**-23)):
        rounding = 2**-24
        assert error.abs().max() <= bound + 2 * rounding
        if how == "0":
            assert error.abs().max() <= rounding * 1.01
        elif how == "2":
            assert error.min() < -bound / 2 < bound / 2 < error.max()
        else:
            assert (error * int(how)).min() > 0.2 * bound


def test_approximate_functions_know_no_subnormal_numbers(selftest):
    x = torch.tensor([-126.5, -1000.0, -torch.inf, torch.nan, 0.0])
    e, q = torch.empty_like(x), torch.empty_like(x)
    selftest.intrinsics(x, e, q)
    assert e[:3].tolist() == [0, 0, 0]
    assert e[3].isnan()
    assert e[4] == 1
    selftest.intrinsics(torch.tensor([1e-40, 3e38]), e, q)
    assert q[:2].tolist() == [torch.inf, 0]


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


def test_kernels_leave_out_what_a_gpu_alone_gets_wrong():
    """The host has one memory and no caches beside it: it runs right what a GPU would not."""
    reasons = {
        "__ldg": "the cache of constant data is not kept right, and many kernels read what others of a launch write",
        "__restrict__": "so does nvcc with what it may take for constant",
        "volatile": "blocks tell each other by gpu_load_acquire and gpu_store_release, or their relaxed kin",
        "__threadfence": "as above",
        "__activemask": "which lanes are there is the scheduler's affair",
        "cudaDeviceSynchronize": "nothing waits for the whole device",
    }
    for path in (p for s in ("*.cuh", "*.cu", "*.h") for p in (cuda_on_host.CSRC / "cuda").glob(s)):
        code = re.sub(r"//[^\n]*|/\*.*?\*/|asm volatile", "", path.read_text(), flags=re.DOTALL)
        for word, reason in reasons.items():
            assert not re.search(rf"\b{word}\b", code), f"{path.name}: {word}: {reason}"
        for call in re.findall(r"\b(__(?:shfl|ballot|any|all|match|reduce)\w*_sync)\(([^,)]*)", code):
            assert call[1] == "kFullWarp", f"{path.name}: {call[0]}: all lanes take part"
        for condition in re.findall(r"\bwhile \(([^{};]*)\) \{\s*\}", code):
            assert "gpu_load_" in condition, f"{path.name}: a loop that waits for {condition}"
