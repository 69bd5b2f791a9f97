"""What became of the rows that interactions were made from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Counts of rows that were used, merged or left out, and what was guessed.

    Attributes:
        source: the file, files or kind of object.
        rows: rows (or stored entries) read.
        duplicates: rows merged into another row of the same user and item.
        zeros: stored zeros of a sparse matrix, which are no interactions.
        bad_rows: rows that could not be read and were left out on request.
        bad_row_messages: the first of them, as "file:line: problem".
        unknown: rows of users or items outside a given vocabulary, left out on request.
        new_users: users that a vocabulary lacked and got, on request.
        new_items: items that it lacked and got.
        comments: lines above the first row that begin with ``#``, ``%`` or ``//``.
        empty_lists: users of an adjacency list without items.
        low_ratings: rows rated below ``min_rating``.
        rare_items: items taken out because they had too few interactions.
        rare_item_interactions: interactions of these items.
        rare_users: users taken out because they had too few interactions.
        rare_user_interactions: interactions of these users.
        early_interactions: interactions before each user's last n.
        emptied_users: users left with nothing and taken out too.
        columns: (what it is, its name or place in the source) of each column used.
        unread: names or places of the columns not used.
        guesses: what nothing in the source says and was guessed.
        notes: what to check: the columns, the guesses, what the order of a split goes by.
    """

    source: str
    rows: int
    duplicates: int = 0
    zeros: int = 0
    bad_rows: int = 0
    bad_row_messages: tuple[str, ...] = ()
    low_ratings: int = 0
    rare_items: int = 0
    rare_item_interactions: int = 0
    emptied_users: int = 0
    notes: tuple[str, ...] = ()
    unknown: int = 0
    comments: int = 0
    empty_lists: int = 0
    rare_users: int = 0
    rare_user_interactions: int = 0
    early_interactions: int = 0
    columns: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    new_users: int = 0
    new_items: int = 0

    def __str__(self) -> str:
        """Return one line with everything that was counted."""
        parts = [f"{self.rows:,} rows read"]
        for count, what in (
            (self.comments, "lines of comments above them"),
            (self.bad_rows, "bad rows skipped"),
            (self.unknown, "rows of unknown users or items left out"),
            (self.new_users, "new users"),
            (self.new_items, "new items"),
            (self.zeros, "explicit zeros left out"),
            (self.duplicates, "duplicates merged"),
            (self.empty_lists, "users with an empty list left out"),
            (self.low_ratings, "low ratings left out"),
            (self.rare_item_interactions, f"interactions of {self.rare_items:,} rare items left out"),
            (self.rare_user_interactions, f"interactions of {self.rare_users:,} rare users left out"),
            (self.early_interactions, "interactions before each user's last left out"),
            (self.emptied_users, "users left without any"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        return f"{self.source}: {', '.join(parts)}"
