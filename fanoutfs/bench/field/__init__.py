"""Measured in the field: `fanoutfs bench storm|cold|small|write|meta PATH`, on the machine and the data of an operator.

The programs behind scripts/ are the laboratory: they bring a store, peers and mounts along.  These need a directory:
one on a fanoutfs mount, or any other, which is what it is compared with (`--contrast DIR`).

* `site`: a directory that is measured, and what a fanoutfs mount is asked over its control socket;
* `files`: where the data is: made in a work directory that surely goes, or found where nothing can be made;
* `work`: what the processes of a load do, for a time instead of a count, with the latency of each operation;
* `storm`, `cold`, `small`, `write`, `meta`: the measurements;
* `result`: jobs, figures, fio's JSON; `baseline`: a stored run; `table`, `page`, `plots`: how they are shown;
* `program`: one command from its options to its exit code.

Words: a *job* is one measurement of one site (fio's word), a *figure* one number of it, with a value for each *round*.
"""
