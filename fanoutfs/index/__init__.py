"""The metadata index: LMDB, read by every front, written by the core alone.

`format` is the file format, `names` says which object keys can be shown, `store` opens the environment, `reader` is
what fronts use, `operations` are the changes as values, `writer` commits them in groups.
"""
