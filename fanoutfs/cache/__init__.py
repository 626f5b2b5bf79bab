"""Cached bytes: sparse files for large objects, segments for small ones.  Everything here can be fetched again.

`directory` owns the cache directory (checks, lock, one folder per volume), `files` opens the sparse files, `blocks`
reads them verified (fronts) and writes them (core), `arena` is memory in which fresh bytes are read before they are on
disk.  Small files: `small` has the format and the readers, `segments` the files, `smallstore` is the core's side,
`smallgroup` one commit of it.
"""
