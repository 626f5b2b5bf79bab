"""Settings: what a mount can be told, in which units, and how the words of a user become a `MountConfig`."""
