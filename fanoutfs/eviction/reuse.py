"""When things are read again, learnt from when they were: what a byte of the cache is worth that a thing occupies.

Time is counted in bytes that moved, a *tick* being a 256th of the cache.  Of each thing are known the tick of its
last read and its *kind*: never read yet (fetched ahead), read once, or how long it usually takes until the next read,
in half octaves.  For each kind the model counts after how many ticks things were read again.  From that follows the
*worth* of keeping one of this kind that was not read for so long: hits to be had per tick of waiting, with the end of
the waiting chosen best, 0 where nothing is known to come back.  Whatever is worth least is to go first.

Repeated passes over more than fits: what was just read comes back a whole pass later, what was not read for long comes
soon; so that what was read last goes, as it must.  Hot things are of a kind with short gaps and stay.  What was not
read for longer than anything ever waited (another data set now) is worth nothing and goes before all others.

From "LHD: Improving Cache Hit Rate by Maximizing Hit Density" (Beckmann, Chen, Cidon, NSDI 2018): worth by age and
class instead of a fixed order.  Different here: ages of things that are not cached are known, too (a table of marks,
not of contents, see `core.marks`), so that nothing must be kept to learn about it; and the index is the one of Gittins
(1979), which leaves out the end of the waiting that does not pay, instead of an average over all of it.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final

TICKS: Final = 256
"""In the time in which as many bytes move as the cache holds."""
SAME_USE_TICKS: Final = TICKS // 64
"""Reads so close belong to one use: the READs of one pass through a file."""
_STEPS: Final = 8
"""Bins to an octave of ages; the first 8 ticks have one each."""
_OCTAVES: Final = 10
_BINS: Final = (_OCTAVES + 1) * _STEPS
"""Up to 8,192 ticks: 32 times the cache.  Things that come back later are not worth waiting for."""
UNREAD: Final = 0
ONCE: Final = 1
_FIRST_GAP: Final = 2
_KIND_BINS: Final = _STEPS // 2
KINDS: Final = _FIRST_GAP + _BINS // _KIND_BINS
_FADE: Final = 0.9
_FADE_USES: Final = 1.0
"""What is known fades by a tenth each time as many uses have come as things are cached.  Twice as fast, a cache of 80
files hits 0.574 instead of 0.583 with a hot subset in four times as much (the simulator)."""
_LEAST_USES: Final = 64
_PRIOR_USES: Final = 16.0
"""Each kind begins as if so many of it had done as all things do."""
_LEARN_SHARE: Final = 16
_END_STEP: Final = 4
"""Of the ends of the waiting, every fourth is tried: half an octave apart."""
_TINY: Final = 1e-9
_NEIGHBOUR: Final = 0.25
"""A reuse counts half in its own bin and a quarter in each beside it: few of them must not look like a rhythm."""


def bin_of(ticks: int) -> int:
    """Return the bin of an age."""
    if ticks < _STEPS:
        return max(0, ticks)
    octave = ticks.bit_length() - 3
    return min(_BINS - 1, (octave - 1) * _STEPS + (ticks >> (octave - 1)))


def _first_tick(index: int) -> int:
    """Return the first age of a bin."""
    octave, step = divmod(index, _STEPS)
    return step if not octave else (_STEPS + step) << (octave - 1)


_WIDTHS: Final = [after - first for first, after in pairwise([_first_tick(index) for index in range(_BINS + 1)])]


class ReuseModel:
    """What is known of reuse.  One thread."""

    def __init__(self) -> None:
        self._reuses = [[0.0] * _BINS for _kind in range(KINDS)]
        self._uses = [0.0] * KINDS
        # Until it is known better, what was fetched ahead is read while an eighth of the cache moves.
        self._uses[UNREAD] = _PRIOR_USES
        self._reuses[UNREAD][: bin_of(TICKS // 8)] = [_PRIOR_USES / bin_of(TICKS // 8)] * bin_of(TICKS // 8)
        self._since_fade = 0
        self._since_learnt = 0
        self._worth: list[list[float]] = [[0.0] * _BINS for _kind in range(KINDS)]
        self.things = _LEAST_USES
        """How many are cached, about: sets how fast what was learnt fades."""
        self.learn()

    def note_first(self, kind: int) -> None:
        """Learn that something came which was not known: UNREAD or ONCE."""
        self._note_use(kind)

    def note_reuse(self, kind: int, ticks: int) -> int:
        """Learn that something was read again after so many ticks; return the kind it is now."""
        index = bin_of(ticks)
        row = self._reuses[kind]
        for near, share in ((index - 1, _NEIGHBOUR), (index, 1 - 2 * _NEIGHBOUR), (index + 1, _NEIGHBOUR)):
            row[min(_BINS - 1, max(0, near))] += share
        if kind == UNREAD:
            return ONCE  # that it is used now is noted by the caller, who may know more of it
        gap = _FIRST_GAP + index // _KIND_BINS
        return self._note_use(gap if kind == ONCE else (kind + gap + (gap > kind)) // 2)

    def _note_use(self, kind: int) -> int:
        self._uses[kind] += 1
        self._since_fade += 1
        self._since_learnt += 1
        if self._since_fade > _FADE_USES * max(_LEAST_USES, self.things):
            self._since_fade = 0
            self._uses = [each * _FADE for each in self._uses]
            self._reuses = [[each * _FADE for each in row] for row in self._reuses]
        return kind

    def worth(self, kind: int, ticks: int) -> float:
        """Return what it is worth to keep something of a kind that was not read for so long: hits per tick."""
        return self._worth[kind][bin_of(ticks)]

    def learn_sometimes(self) -> None:
        """Take what was noted into account if it is much: a 16th of what is cached."""
        if self._since_learnt > max(_LEAST_USES, self.things) // _LEARN_SHARE:
            self.learn()

    def learn(self) -> None:
        """Take what was noted into account.  Some 5 ms."""
        self._since_learnt = 0
        total = max(1.0, sum(self._uses[ONCE:]))
        common = [sum(column) / total for column in zip(*self._reuses[ONCE:], strict=True)]
        for kind in range(KINDS):
            if self._uses[kind] > 0:
                # What came of a kind and was not read again yet is taken to be as all things are: else a kind that is
                # new would seem to hold nothing that waits longer than the first few did (new shuffles: 0.37 instead
                # of 0.48 in the third epoch).
                own = self._reuses[kind]
                open_uses = 0.0 if kind == UNREAD else _PRIOR_USES + max(0.0, self._uses[kind] - sum(own))
                row = [known + open_uses * share for known, share in zip(own, common, strict=True)]
                self._worth[kind] = _worths(row, sum(own) + open_uses if kind != UNREAD else self._uses[kind])

    # --- kept over a restart -----------------------------------------------------------------------------------

    def dump(self) -> list[float]:
        """Return all that is known as numbers."""
        return [*self._uses, *(each for row in self._reuses for each in row)]

    def restore(self, numbers: Sequence[float]) -> bool:
        """Take over what `dump` returned; False: it is of another shape."""
        if len(numbers) != KINDS * (_BINS + 1):
            return False
        self._uses = list(numbers[:KINDS])
        rows: Iterable[int] = range(KINDS, len(numbers), _BINS)
        self._reuses = [list(numbers[at : at + _BINS]) for at in rows]
        self.learn()
        return True


def _worths(reuses: Sequence[float], uses: float) -> list[float]:
    """Return for each bin the most hits per tick that waiting from there on can bring."""
    after = max(0.0, uses - sum(reuses))
    alive = [0.0] * _BINS
    """How many were not read again before the end of each bin."""
    for index in range(_BINS - 1, -1, -1):
        alive[index] = after
        after += reuses[index]
    hits_before = [0.0, *accumulate(reuses)]
    waited_before = [0.0, *accumulate(map(_waited, _WIDTHS, alive, reuses))]
    found = [0.0] * _BINS
    last = max((index + 1 for index in range(_BINS) if reuses[index] > 0), default=0)
    for index in range(last):
        hits, waited = hits_before[index], waited_before[index]
        ends = (*range(min(index + 1, last), last, _END_STEP), last)
        found[index] = max((hits_before[end] - hits) / max(_TINY, waited_before[end] - waited) for end in ends)
    return found


def _waited(width: int, alive: float, reuses: float) -> float:
    """Return the ticks that all of a kind wait in one bin together: who is read in it does so in its middle."""
    return width * (alive + reuses / 2)
