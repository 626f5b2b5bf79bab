"""Cached bytes: sparse files for large objects, LMDB for small ones.  Everything here can be fetched again.

`directory` owns the cache directory (checks, lock, one folder per volume), `files` opens the sparse files, `arena` is
memory through which fresh bytes reach readers before the disk, `blocks`
reads them verified (fronts) and writes them (core), `small` is the small-file store, `policy` chooses victims.
"""
