"""The FUSE kernel protocol and the messages between our own processes: structs, encoding, decoding.  No I/O.

`kernel` holds what <linux/fuse.h> defines, `messages` turns bytes into values and back, `dirents` packs directory
records, `relay` says how a message travels from a front to the core and back, `hints` what fronts tell the core
without waiting.
"""
