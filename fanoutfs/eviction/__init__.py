"""What to evict, as pure code: no I/O, no clock but the bytes that moved, no process of its own.

* `base`: what every policy of the simulator has in common;
* `classic`, `s3fifo`, `arc`, `lirs`: policies known from elsewhere, for comparison;
* `oracle`: those that know the future, the bounds everybody is measured against;
* `reuse`: when things are used again, learnt; `density`: the policy that the live mount runs, as the simulator runs it;
* `choice`, `recency`: how a live mount chooses among what is cached, as it does and as others do;
* `traces`: what is accessed, made up or recorded; `simulate`: a policy against a trace.

Below every process: the core decides with `reuse`, benchmarks with all of it.
"""

from typing import Final

CHOICE_NAMES: Final = ("learnt", "lru", "clock", "2-random")
"""What the setting `eviction` may say; `recency.CHOICES` has the classes, which no command line needs."""
