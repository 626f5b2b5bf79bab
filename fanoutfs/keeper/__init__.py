"""The process that owns the mount: /dev/fuse, the INIT exchange, and the lives of fronts and core.

`main` is its life, `generation` one set of fronts and core with the sockets between them, `children` forking and
reaping, `handshake` INIT, `mount` and `mountinfo` the mount table.  Single-threaded, because it forks.
"""
