"""Which object keys a file system can show, and under which name.

The rules, one for each kind of key that has no counterpart in POSIX:

* an empty part (`a//b`, a leading `/`), `.` or `..` as a part, a NUL byte, a part above 255 bytes: hidden, counted;
* a key that ends with `/` marks a directory, whatever its content: the directory is shown, the object is not;
* a key that is an object and also the prefix of others (`a` and `a/b`): the directory wins, the object is hidden and
  counted, and reappears when nothing is below the prefix any more;
* bytes that are not UTF-8 pass through unchanged (surrogateescape), newlines and all other bytes too.
"""

from typing import Final

NAME_MAX_BYTES: Final = 255


def child_name(key: str, prefix: str) -> bytes | None:
    """Return the name of `key` in the directory `prefix`, or None when it cannot be shown.

    key: an object key or a common prefix (one trailing "/" is ignored) that starts with prefix.
    """
    if not key.startswith(prefix):
        return None
    name = key[len(prefix) :].removesuffix("/").encode("utf-8", "surrogateescape")
    if name in (b"", b".", b"..") or len(name) > NAME_MAX_BYTES or b"\0" in name or b"/" in name:
        return None
    return name
