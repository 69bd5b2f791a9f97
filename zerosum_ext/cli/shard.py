"""``zerosum-ext shard``: write interactions as a folder of parquet files, each with all rows of its users."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from zerosum_ext.cli.options import add_reading_options, data_source, note


def add_to(commands: Any) -> None:
    """Add the command."""
    shard = commands.add_parser(
        "shard",
        help="cut interactions by user into parquet files, for training by many processes",
        description="Writes interactions as a folder of parquet files with all rows of a user in one file, so that "
        "each process of torchrun reads its own files. Parquet is cut batch by batch; other formats are "
        "read into memory.",
        epilog="example: zerosum-ext shard ratings.parquet --parts 64 --output shards, then torchrun "
        "--nproc-per-node 8 -m zerosum_ext train shards",
    )
    shard.add_argument("data", metavar="FILE", help="a file of interactions, or a folder of parquet files")
    shard.add_argument("--parts", type=int, required=True, metavar="N", help="the number of files")
    shard.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    shard.add_argument("--json", action="store_true", help="print the number of rows of each file as JSON")
    shard.add_argument("--quiet", action="store_true", help="no notes")
    add_reading_options(shard)
    shard.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext.distributed import write_shards

    path = Path(arguments.data)
    options: dict[str, Any] = {}
    source: Any = path
    if path.is_dir() or path.suffix == ".parquet":
        options["user"] = arguments.user_column or "user"
    else:
        source = data_source(arguments.data, arguments).read()
    rows = write_shards(source, arguments.output, arguments.parts, note=note(arguments), **options)
    if arguments.json:
        print(json.dumps({"folder": arguments.output, "rows": rows}))
    return 0
