"""Philox4x32-10 against the known answers that its authors publish (Random123, kat_vectors), and the permutation."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from zerosum_ext.reference import sampling as reference

COMMON = Path(__file__).parents[1] / "csrc" / "common"

# counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_reference_gives_the_known_answers(counter, key, expected):
    words = reference.philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def test_cpp_gives_the_known_answers(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    checks = "".join(
        f"  {{ auto b = zx::philox4x32({', '.join(f'{x}u' for x in counter + key)});\n"
        f'    for (uint32_t w : b.word) std::printf("%u ", w); }}\n'
        for counter, key, _ in KNOWN
    )
    source = tmp_path / "philox.cpp"
    source.write_text(f'#include <cstdio>\n#include "philox.h"\nint main() {{\n{checks}}}\n')
    subprocess.run([compiler, "-std=c++17", f"-I{COMMON}", source, "-o", tmp_path / "philox"], check=True)
    words = subprocess.run([tmp_path / "philox"], check=True, capture_output=True, text=True).stdout.split()
    assert [int(w) for w in words] == [w for _, _, expected in KNOWN for w in expected]


def test_draws_place_every_part_of_the_counter():
    sample = torch.tensor([(7 << 32) | 5])
    seed = (0x299F31D0 << 32) | 0xA4093822
    first, second = reference.draws(sample, seed, 9, 3, 0x1234, 0x56)
    w = reference.philox4x32(tuple(torch.tensor([c]) for c in (5, 7, 9, 0x03123456)), (0xA4093822, 0x299F31D0))
    assert int(first) == int(w[0] | w[1] << 32)
    assert int(second) == int(w[2] | w[3] << 32)


def test_mulhi64_against_python_integers():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 1 << 64, 2000, dtype=np.uint64)
    a[:3] = 0, (1 << 64) - 1, 1 << 63
    for bound in (1, 2, 3706, (1 << 31) + 1, (1 << 32) + 5, (1 << 62) + 12345, (1 << 63) - 1):
        got = reference.mulhi64(torch.from_numpy(a.view(np.int64)), bound).tolist()
        assert got == [(int(x) * bound) >> 64 for x in a]


@pytest.mark.parametrize("size", [*range(1, 66), 100, 4095, 4096, 4097, 65536, 65537])
def test_permutation_is_a_bijection(size):
    image = reference.Permutation(size, 11, 4)(torch.arange(size))
    assert torch.equal(image.sort().values, torch.arange(size))


def test_small_permutations_are_equally_likely():
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(2400):
        counts[tuple(reference.Permutation(4, seed, 0)(torch.arange(4)).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize("lag", [1, 2, 317])
def test_large_permutation_leaves_neighbours_unrelated(lag):
    size = 100_000  # 317 columns: lag 317 is the cell below
    image = reference.Permutation(size, 5, 0)(torch.arange(size)).numpy()
    joint = np.histogram2d(image[:-lag], image[lag:], bins=16, range=[[0, size]] * 2)[0].ravel()
    assert stats.chisquare(joint).pvalue > 1e-4
    distance = np.bincount((image[lag:] - image[:-lag]) % size * 64 // size, minlength=64)
    assert stats.chisquare(distance).pvalue > 1e-4
    assert (image == np.arange(size)).sum() < 8  # 1 expected


def test_permutations_of_other_epochs_and_seeds_differ():
    x = torch.arange(1000)
    images = [reference.Permutation(1000, seed, epoch)(x) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for a, b in itertools.combinations(images, 2):
        assert (a == b).sum() < 10
