"""Data to try things on: the paper's synthetic matrices, random ones of any size, and real ones from a folder
of yours.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from zerosum_ext.data.interactions import Interactions

__all__ = ["find", "load", "power_law", "synthetic4", "synthetic_triangle"]


def synthetic_triangle(num_users: int = 200, num_items: int = 200, boundary: int | None = None) -> sp.csr_matrix:
    """Return the synthetic matrix of [RCS22] section 4.1: item popularity falls linearly, and so does user activity.

    Args:
        num_users: at least 3. If it differs from ``num_items``, ``boundary=None`` squeezes the triangle along the
            users.
        num_items: at least 3.
        boundary: user u has item i if ``u + i <= boundary``. The paper's text says 200, which leaves users 0 and 1
            without a single negative. None takes the matrix that the paper's authors released: boundary
            ``num_items - 2`` and the two extra cells (1, num_items - 1) and (num_users - 1, 0). There each user and
            each item has both positives and negatives.

    Returns:
        A scipy CSR matrix [num_users, num_items] of float32 ones.

    Example:
        >>> import zerosum_ext as zx
        >>> zx.datasets.synthetic_triangle().nnz
        19902
    """
    if num_users < 3 or num_items < 3:
        raise ValueError(f"num_users, num_items: expected at least 3 each, got {num_users} and {num_items}")
    users, items = np.arange(num_users)[:, None], np.arange(num_items)
    if boundary is None:
        row = users * num_items // num_users
        cells = (row + items <= num_items - 2) | ((row == num_items - 1) & (items == 0))
        cells[np.argmax(row >= 1), num_items - 1] = True
    else:
        cells = users + items <= boundary
    return sp.csr_matrix(cells, dtype=np.float32)


def synthetic4() -> sp.csr_matrix:
    """Return the second synthetic matrix of [RCS22].

    It is the triangle ``u + i <= 198`` and 200 users more who have every item but the last.

    Returns:
        A scipy CSR matrix [400, 200] of float32 ones. User 199 and item 199 have no interaction.
    """
    cells = np.zeros((400, 200), bool)
    cells[:200] = np.arange(200)[:, None] + np.arange(200) <= 198
    cells[200:, :199] = True
    return sp.csr_matrix(cells, dtype=np.float32)


def power_law(
    num_users: int, num_items: int, num_interactions: int, *, exponent: float = 0.8, seed: int = 0
) -> Interactions:
    """Return random interactions with the long tail of real ones, for benchmarks. They are cheap to make at any size.

    The k-th most popular item is drawn with probability proportional to ``k ** -exponent``; which item is the k-th is
    random. Users' activity is log-normal (sigma 1). Pairs are distinct, so the most popular items come out somewhat
    flatter.

    Raises:
        ValueError: so many pairs cannot be drawn, because the matrix would be too dense.
    """
    for name, value in (
        ("num_users", num_users),
        ("num_items", num_items),
        ("num_interactions", num_interactions),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not exponent >= 0:
        raise ValueError(f"exponent: expected a number from 0, got {exponent}")
    rng = np.random.default_rng(seed)
    item_cdf = np.cumsum(np.arange(1, num_items + 1, dtype=np.float64) ** -exponent)
    user_cdf = np.cumsum(rng.lognormal(size=num_users))
    name_of_rank = rng.permutation(num_items)
    keys = np.zeros(0, np.int64)
    for _ in range(50):  # what collides is drawn again; each round fills most of what is missing unless all is dense
        missing = num_interactions - len(keys)
        if missing <= 0:
            break
        draws = missing + missing // 4 + 16
        users = np.searchsorted(user_cdf, rng.random(draws) * user_cdf[-1])
        items = np.searchsorted(item_cdf, rng.random(draws) * item_cdf[-1])
        pairs = np.minimum(users, num_users - 1) * num_items + name_of_rank[np.minimum(items, num_items - 1)]
        keys = np.union1d(keys, pairs)
    if len(keys) < num_interactions:
        raise ValueError(
            f"num_interactions: {num_interactions:,} distinct pairs of {num_users:,} x {num_items:,} are too dense "
            f"for exponent {exponent} (reached {len(keys):,})"
        )
    keys = np.sort(rng.permutation(keys)[:num_interactions])
    return Interactions.from_arrays(keys // num_items, keys % num_items, shape=(num_users, num_items))


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Interactions:
    """``<folder>/<name>.npz`` as interactions with all its columns; see
    :meth:`zerosum_ext.Interactions.from_file`.

    The folder is by default the environment variable ``ZEROSUM_EXT_DATA``. The arrays are ``user`` and
    ``item`` (0-based), and where known ``rating``, ``timestamp`` (Unix seconds), ``order`` (chronological
    rank within the user) and ``split`` (0 train, 1 test, 2 validation).
    """
    if folder is None:
        folder = os.environ.get("ZEROSUM_EXT_DATA")
        if not folder:
            raise ValueError(
                "folder: give one, or set the environment variable ZEROSUM_EXT_DATA to the folder of data sets"
            )
    path = Path(folder) / f"{name}.npz"
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in Path(folder).glob("*.npz"))) or "none"
        raise ValueError(f"name: there is no {name!r} in {folder}; it has {have}")
    return Interactions.from_file(path)


def find(source: str | os.PathLike[str]) -> Path:
    """Return the path of a file, a pattern of several, or a data set that :func:`load` knows by name.

    Raises:
        FileNotFoundError: it is none of these.
    """
    path = Path(source)
    if path.exists() or glob.has_magic(str(source)):  # whether files fit a pattern is seen when they are read
        return path
    folder = os.environ.get("ZEROSUM_EXT_DATA")
    if path.name == str(source) and folder:
        named = Path(folder) / f"{path.name}.npz"
        if named.is_file():
            return named
        raise FileNotFoundError(f"{source}: there is no such file, nor a data set of that name in {folder}")
    hint = "" if folder else "; names of data sets are looked up in the folder that ZEROSUM_EXT_DATA names"
    raise FileNotFoundError(f"{source}: there is no such file{hint}")
