"""The data plane: processes that answer the kernel straight from the index and the cache.

No trio, no network, no state worth keeping: a front may die at any time.  `worker` is the loop, `dispatch` the tables
of opcodes, `handlers` the answers from index and cache, `changes` the writing of staging files (`staged`: what a front
knows of those), `creating` and `attributes` the two changes of the index that fronts make, `forwarding` what is the
core's to do, `relay` the way to the core and back, `kernel` the writing end of /dev/fuse.

A hot READ is: one read of /dev/fuse, one LMDB transaction (small files: two, index and store), (large files) one read
of the cache, one writev.  A hot WRITE is: one read of /dev/fuse, one LMDB transaction, one pwrite, one write.  A new
file is one transaction that writes, and four calls for the staging file that is there already.
"""
