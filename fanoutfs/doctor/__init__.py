"""What stands in the way of a mount, or makes it slow: looked for before there is one, each with what to do.

`fanoutfs doctor` runs it, in its own process.  `findings` is what a check says; `machine` (kernel, limits, memory),
`disk` (the cache directory) and `store` (the backend) make them; nothing is changed but a scratch object in the store,
which is deleted again, and a directory in /tmp that is mounted for a moment to hear what the kernel offers.
"""
