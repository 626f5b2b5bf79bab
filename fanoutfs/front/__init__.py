"""The data plane: processes that answer the kernel straight from the index and the cache.

No trio, no network, no LMDB writes, no state worth keeping: a front may die at any time.  `worker` is the loop,
`dispatch` the table of opcodes, `handlers` the answers, `relay` the way to the core and back, `kernel` the writing end
of /dev/fuse.

A hot READ is: one read of /dev/fuse, one LMDB transaction, (large files) one read of the cache, one writev.
"""
