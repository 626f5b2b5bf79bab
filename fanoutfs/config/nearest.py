"""What somebody who wrote a word wrongly may have meant."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], likeness: float) -> str | None:
    """Return the known word that is most like this one, None when none is.  likeness: 0 (any) to 1 (the same)."""
    from difflib import get_close_matches  # noqa: PLC0415  nobody who writes correctly waits for it

    return next(iter(get_close_matches(word, known, n=1, cutoff=likeness)), None)
