"""What can be seen of a running mount: the catalog of counters, the shared memory they live in, logging."""
