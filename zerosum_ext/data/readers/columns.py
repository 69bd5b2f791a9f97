"""Which column of a table is what: by what the caller says, by known names, and only then by a named guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zerosum_ext.data.times import MISSING, iso_seconds, number
from zerosum_ext.data.wording import column_option

__all__ = ["ALIASES", "NUMERIC", "Choice", "Wanted", "choose", "known_names", "normal"]

Wanted = Mapping[str, "str | int | None"]

# Names by which common data sets call their columns, in lower case and without blanks, dashes and underscores.
ALIASES: dict[str, tuple[str, ...]] = {
    "user": (
        *("user", "userid", "uid", "u", "reviewerid", "customerid", "visitorid", "sessionid", "username"),
        *("customer", "customerno", "buyer", "buyerid", "memberid", "accountid", "kunde", "kundennummer"),
    ),
    "item": (
        *("item", "itemid", "iid", "i", "movieid", "asin", "parentasin", "productid", "businessid", "artistid"),
        *("trackid", "songid", "bookid", "isbn", "gameid", "videoid", "locationid", "newsid", "sku", "article"),
        *("articleid", "product", "stockcode", "artikel", "artikelnummer", "animeid"),
    ),
    "rating": ("rating", "ratings", "stars", "score", "overall", "bookrating", "weight", "playcount", "plays"),
    "timestamp": (
        *("timestamp", "time", "ts", "unixreviewtime", "unixtime", "date", "datetime", "eventtime", "eventtimestamp"),
        *("ratedat", "ratingtimestamp", "reviewedat", "reviewtimestamp", "createdat", "orderdate", "purchasedat"),
        *("datum", "invoicedate", "tdat"),
    ),
    "order": ("order",),
    "split": ("split",),
}
NUMERIC = ("rating", "timestamp", "order")
_LARGEST_GUESSED_RATING = 100  # scales end at 5, 10 or 100; larger numbers are counts, prices or ids


@dataclass
class Choice:
    """Column name -> position, and what in it is a guess."""

    columns: dict[str, int]
    guesses: list[str] = field(default_factory=list)

    def note(self, names: Sequence[str] | None) -> str:
        """Return what was taken for what, for people."""
        places = {key: place(names, c) for key, c in self.columns.items()}
        return "columns: " + ", ".join(key if at == key else f"{key} = {at}" for key, at in places.items())

    def used(self, names: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
        """Return (what it is, its name or place) of each column."""
        return tuple((key, place(names, c)) for key, c in self.columns.items())

    def unread(self, names: Sequence[str] | None, width: int) -> tuple[str, ...]:
        """Return the names or places of the columns that are left out."""
        return tuple(place(names, c) for c in range(width) if c not in self.columns.values())


def place(names: Sequence[str] | None, column: int) -> str:
    """Return what to call a column."""
    return f"column {column}" if names is None else names[column]


def normal(name: str) -> str:
    """Return a column's name as ALIASES spell it. RecBole writes the type behind a colon: user_id:token."""
    return "".join(c for c in name.split(":")[0].lower() if c not in " _-\"'")


def known_names(names: Sequence[str], keys: Sequence[str] = tuple(ALIASES)) -> bool:
    """Return whether one of the names is known for one of the keys."""
    known = {alias for key in keys for alias in ALIASES[key]}
    return any(len(text) > 1 and normal(text) in known for text in names)


def choose(source: str, names: Sequence[str] | None, sample: Sequence[Sequence[str]], wanted: Wanted) -> Choice:
    """Return which column is what.

    Args:
        source: the file, for messages.
        names: of the columns, or None if the file has no header.
        sample: the fields of each column in the first rows; empty lists where they are not known.
        wanted: column name -> name or position in the source, or None to leave it out.

    Raises:
        ValueError: a wanted column is not there; users or items cannot be told.
    """
    width = len(sample)
    chosen = {} if names is None else _by_name(names, wanted)
    asked = _by_wish(source, names, width, wanted)
    # A match by name gives way to what was asked for.
    chosen = {key: c for key, c in chosen.items() if c not in asked.values()} | asked
    chosen = {key: chosen[key] for key in [*ALIASES, *asked] if key in chosen}
    choice = Choice(chosen)
    free = [c for c in range(width) if c not in chosen.values()]
    if names is None:
        _by_position(source, choice, free, sample, wanted)
    else:
        named = [c for c in free if normal(names[c]) not in ("", "unnamed")]  # pandas writes the row's number so
        if len(named) == 2 and not {"user", "item"} & (chosen.keys() | wanted.keys()):
            chosen.update(zip(("user", "item"), named, strict=True))
            first, second = (names[c] for c in named)
            choice.guesses.append(f"no name is known: users and items are taken for {first} and {second}")
    for key in ("user", "item"):
        if key not in chosen:
            header = f"; the header has {_shown(names)}" if names is not None else ""
            raise ValueError(
                f"{source}: cannot tell which column holds the {key}s{header}. Name it: {column_option(key)}"
            )
    if chosen["user"] == chosen["item"]:
        raise ValueError(f"{source}: user and item are the same column ({chosen['user']})")
    choice.columns = {key: chosen[key] for key in [*ALIASES, *asked] if key in chosen}
    return choice


def _shown(names: Sequence[str] | None) -> str:
    text = ", ".join(names or [])
    return text if len(text) <= 200 else f"{text[:200]}..."


def _by_name(names: Sequence[str], wanted: Wanted) -> dict[str, int]:
    spelt = [normal(name) for name in names]
    chosen: dict[str, int] = {}
    for key, aliases in ALIASES.items():
        found = next((alias for alias in aliases if alias in spelt), None)
        if key not in wanted and found is not None:
            chosen[key] = spelt.index(found)
    return chosen


def _by_wish(source: str, names: Sequence[str] | None, width: int, wanted: Wanted) -> dict[str, int]:
    chosen: dict[str, int] = {}
    for key, name in wanted.items():
        if name is None:
            continue
        if isinstance(name, int):
            if not 0 <= name < width:
                raise ValueError(
                    f"{source}: column {name} was asked for as {key!r}, but there are only {width} (0 to {width - 1})"
                )
            chosen[key] = name
        elif names is None:
            raise ValueError(
                f"{source}: column {name!r} was asked for as {key!r}, but the file has no header; give its number"
            )
        elif name not in names:
            raise ValueError(
                f"{source}: there is no column {name!r} (asked for as {key!r}); the header has {_shown(names)}"
            )
        else:
            chosen[key] = names.index(name)
    return chosen


def _present(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if text.strip().lower() not in MISSING]


def _mostly(texts: list[str], fits: list[bool]) -> bool:
    """Whether the first value fits, and at least half of all: one may be wrong."""
    return bool(texts) and fits[0] and 2 * sum(fits) >= len(fits)


def _looks_like_time(texts: list[str]) -> bool:
    def fits(text: str) -> bool:
        value = number(text)
        if value is None:
            return iso_seconds(text.strip()) is not None
        return value >= 1e8 and value == int(value) and value < 1e20

    return _mostly(texts, [fits(text) for text in texts])


def _is_count(texts: list[str]) -> bool:
    values = [number(text) for text in texts]
    return _mostly(texts, [value is not None and value >= 0 and value == int(value) for value in values])


def _looks_like_rating(texts: list[str]) -> bool:
    values = [number(text.replace(",", ".")) for text in texts]
    return _mostly(texts, [value is not None and 0 <= value <= _LARGEST_GUESSED_RATING for value in values])


def _no_id(texts: list[str]) -> str:
    """What a column is that cannot hold ids, or ''."""
    if not texts:
        return ""
    values = [number(text) for text in texts]
    if all(value is None and iso_seconds(text.strip()) is not None for value, text in zip(values, texts, strict=True)):
        return "times"
    if all(value is not None and "." in text for value, text in zip(values, texts, strict=True)):
        return "numbers with fractions"
    return ""


def _by_position(source: str, choice: Choice, free: list[int], sample: Sequence[Sequence[str]], wanted: Wanted) -> None:
    """Columns of a file without a header: user, item, then a rating and a time where the fields look like such."""
    chosen = choice.columns
    texts = [_present(column) for column in sample]
    guessed = []
    for key in ("user", "item"):
        if key in chosen or not free:
            continue
        column = free.pop(0)
        if what := _no_id(texts[column]):
            other = next((str(c) for c in free if texts[c] and not _no_id(texts[c])), "...")
            raise ValueError(
                f"{source}: no header says what is what, and column {column} holds {what} ({texts[column][0]!r}), no "
                f"ids. Say which column holds the {key}s, by its number from 0: {column_option(key, other)}"
            )
        chosen[key] = column
        guessed.append(key)
    if {"user", "item"} <= chosen.keys():
        after = [c for c in free if c > max(chosen["user"], chosen["item"])]
        for key, fits in (("rating", _looks_like_rating), ("timestamp", _looks_like_time)):
            if key in chosen or key in wanted:
                continue
            if key == "rating":  # right after the ids, or nowhere
                candidates = [c for c in after[:1] if fits(texts[c]) and not _looks_like_time(texts[c])]
            else:
                # Of four columns, as of MovieLens, the last may be any count; of more, who knows.
                follows_rating = after[1:2] if "rating" in guessed and len(sample) <= 4 else []
                candidates = [c for c in follows_rating if _is_count(texts[c])]
                candidates += [c for c in after if c not in chosen.values() and fits(texts[c])]
            if candidates:
                chosen[key] = candidates[0]
                guessed.append(key)
    if guessed:
        choice.guesses.append(f"no header: {', '.join(guessed)} guessed by position")
