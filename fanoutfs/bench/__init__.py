"""Benchmarks: what fanoutfs is measured against, the load, and the report.  Part of no running mount.

Every comparison happens in one run on one machine, in rounds, and is given as a ratio of medians.

* `peers`: ext4, `passthrough` (an ordinary pyfuse3 file system, tuned or set as its example is), rclone, s3fs and
  fanoutfs as context managers;
* `field`: `fanoutfs bench storm|cold|small|write|meta`, against a directory of whoever runs it;
* `load`: processes that start together; the opens, the sequential and the small-file readers, the direct fetch;
* `epoch_read`: loaders that list, divide and read a data set; `direct`: the store's client without a file system;
* `delay`: a distance to the store, and what was sent over it; `cpu`: CPU time by process; `heard`: messages;
* `data`: the files that are read and their way into a bucket; `witness`: what the object store says it sent;
* `counters`: what a mount counted; `latencies`: of single operations, in buckets;
* `report`: rounds to medians, ratios, checks, JSON and a table;
* `scope`: processes, mounts and directories that surely end;
* `eviction`: policies on traces, `eviction_plot` draws them, `eviction_live` measures the one of a live mount;
* `write_load`: what writers do, and the upload without a file system;
* `storm`, `cold`, `fio`, `epoch`, `training`, `write`, `quickstart`: the programs behind scripts/.

The object store and the proxy that is the witness come from tests/support; scripts/lib hands them over (`lab.Lab`), so
that nothing here imports tests.
"""
