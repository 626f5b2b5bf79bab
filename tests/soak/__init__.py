"""A long run of mixed load with faults on two mounts of a real store: `scripts/soak`."""
