"""The process that owns the mount: /dev/fuse, the INIT exchange, and the lives of fronts and core.

`main` is its life, `generation` one set of fronts and core with the sockets between them, `children` forking and
reaping, `handshake` INIT, `mount` and `mountinfo` the mount table.  Single-threaded, because it forks.

One keeper can follow another on the same mount, by exec (`fanoutfs upgrade`) or through the service manager that keeps
its descriptors: `handover` says what is handed over, `succession` keeps it ready, `successor` is the other side of the
exec.  `orders` is the keeper's own socket.
"""
