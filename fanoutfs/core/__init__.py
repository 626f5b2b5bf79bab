"""The control plane: one process, pyfuse3 on trio; what changes the index, save that fronts enter new files.

`main` starts and ends it, `assembly` puts its parts together; `operations` is the thin pyfuse3 door over `filesystem`,
which knows no FUSE types.  `listing` keeps directories, `imports` whole trees; `warming` fills what it is told, both as
`jobs`; `fill` brings bytes into the cache, `readahead` decides how far ahead, `admission` bounds memory and requests,
`arena` hands out the memory in which fronts find fresh bytes, `space` enforces the cap,
`freshness` lists active directories again, `orphans` frees replaced inodes, `notify` tells the kernel, `control`
answers the command line.
"""
