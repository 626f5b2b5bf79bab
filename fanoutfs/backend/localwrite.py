"""Changes the files below one directory: the other half of local.py.

A new file is written under a scratch name in `.fanoutfs-writing/` at the root (same file system, invisible to listings,
and found by `list_uploads` after a crash), synced, and then brought to its place:

* if absent: link(2), which fails when the name exists: atomic;
* if matching: the two files change places (RENAME_EXCHANGE), and if what came out is not the version that was expected
  they change back: a foreign change is never lost, but readers may see ours for a moment.  Where the file system
  cannot exchange, the version is looked at just before rename(2);
* else rename(2).

Then the directory is synced.  Directories on the way are made and marked (`_IMPLIED`): they are there for what is in
them, as a prefix is in any other store, and go with the last of it.  What somebody made himself, or `put` as a marker,
stays when it is empty.  So it does where there are no xattrs.

Metadata is kept whole in one user xattr (`_XATTR`); mode, owner and modification time are set on the file besides, for
whoever reads the directory, and for files without the xattr `details` tells those of the file.  A symlink is an
object as in any other store, a file that holds the target, because `local` follows symlinks: one would show up as the
file it leads to, or not at all; a symlink that is written to becomes a file.  A directory marker is a directory.

Parts of an upload are files of their own in `.fanoutfs-writing/<id>/`, put together with copy_file_range(2).
"""

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from fanoutfs.backend.archive import Restore
from fanoutfs.backend.attributes import FileAttributes, decode_attributes, encode_attributes
from fanoutfs.backend.keys import is_addressable
from fanoutfs.backend.localfiles import SCRATCH_PREFIX, is_version, translate, version_of
from fanoutfs.backend.sigv4 import read_into
from fanoutfs.backend.writing import (
    TOKEN_KEY,
    Abilities,
    Body,
    Condition,
    Expect,
    FileRange,
    ObjectDetails,
    Part,
    Properties,
    StaleUpload,
    Upload,
)
from fanoutfs.errors import (
    BackendError,
    BucketMissingError,
    ObjectMissingError,
    PreconditionFailedError,
    UploadMissingError,
    VersionGoneError,
)
from fanoutfs.records import MIB, ObjectInfo, Version

T = TypeVar("T")

_XATTR: Final = "user.fanoutfs.metadata"
_IMPLIED: Final = "user.fanoutfs.implied"
_PLACE_TRIES: Final = 20
"""A directory that was just made, or found, may go again with the last file that another thread deletes."""
_WRITING: Final = f"{SCRATCH_PREFIX}writing"
_PROPERTIES: Final = "properties"
_COPY_BYTES: Final = 8 * MIB
_NO_XATTR: Final = (errno.ENOTSUP, errno.ENODATA, errno.E2BIG, errno.ENOSPC, errno.EPERM, errno.EACCES)
# <linux/fs.h>, renameat2(2).
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_ANY_BYTES: Final = 1 << 62


class LocalWriter:
    """The `Writer` of a directory.  Stateless, hence thread-safe."""

    def __init__(self, root: str) -> None:
        """root: absolute, without a "/" at the end."""
        self._root = root
        self._writing = f"{root}/{_WRITING}"

    def abilities(self) -> Abilities:
        """See Writer.abilities; whether xattrs can be set is tried."""
        with self._scratch("asking") as (path, fd):
            has_metadata = _set_metadata(fd, Properties({TOKEN_KEY: "x"}))
            os.unlink(path)
        return Abilities(
            can_put_if_absent=True,
            can_put_if_match=True,
            can_upload_parts=True,
            can_copy_part=True,
            can_complete_if_absent=True,
            can_complete_if_match=True,
            can_copy_if_absent=True,
            can_delete_if_match=False,
            can_mark_directories=True,
            has_metadata=has_metadata,
            min_part_bytes=1,
            max_part_bytes=_ANY_BYTES,
            max_parts=1 << 31,
            max_put_bytes=_ANY_BYTES,
            max_copy_bytes=_ANY_BYTES,
        )

    def details(self, key: str) -> ObjectDetails:
        """See Writer.details."""
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise translate(error, f"open {key}") from None
        try:
            return _details(key, fd)
        except OSError as error:
            raise translate(error, f"read the attributes of {key}") from None
        finally:
            os.close(fd)

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        """See Writer.put."""
        if key.endswith("/"):
            return self._put_directory(key, condition, properties)
        with self._scratch(f"write {key}") as (path, fd):
            _write(fd, body)
            return self._publish(path, fd, key, condition, properties)

    def begin_upload(self, key: str, properties: Properties) -> Upload:
        """See Writer.begin_upload."""
        self._path(key)
        upload_id = f"upload-{secrets.token_hex(8)}"
        document = {"key": key, "metadata": dict(properties.metadata), "content_type": properties.content_type}
        try:
            is_made = False
            while not is_made:
                self._make_writing()
                # Gone when another thread has just removed the empty directory.
                with contextlib.suppress(FileNotFoundError):
                    os.mkdir(f"{self._writing}/{upload_id}", 0o700)
                    is_made = True
            with open(f"{self._writing}/{upload_id}/{_PROPERTIES}", "w", encoding="utf-8") as stream:
                json.dump(document, stream)
        except OSError as error:
            raise translate(error, f"begin upload of {key}", is_write=True) from None
        return Upload(key, upload_id, properties.metadata.get(TOKEN_KEY, ""))

    def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """See Writer.upload_part."""
        with self._part(upload, number) as fd:
            _write(fd, body)
            os.fsync(fd)
            return Part(number, f"{number}-{len(body)}", len(body))

    def copy_part(self, upload: Upload, number: int, source: ObjectInfo, start: int, end: int) -> Part:
        """See Writer.copy_part."""
        with self._part(upload, number) as fd, self._source(source) as source_fd:
            _copy_range(source_fd, start, end, fd)
            if not is_version(os.fstat(source_fd), source.version):
                raise VersionGoneError(f"{source.key}: the file changed while it was copied")
            os.fsync(fd)
            return Part(number, f"{number}-{end - start}", end - start)

    def complete_upload(self, upload: Upload, parts: Sequence[Part], condition: Condition) -> Version:
        """See Writer.complete_upload."""
        what = f"complete upload of {upload.key}"
        directory = self._upload_directory(upload)
        try:
            with open(f"{directory}/{_PROPERTIES}", encoding="utf-8") as stream:
                document = json.load(stream)
        except FileNotFoundError:
            raise UploadMissingError(f"{what}: no such upload") from None
        properties = Properties(document["metadata"], document["content_type"])
        with self._scratch(what) as (path, fd):
            for part in parts:
                with open(f"{directory}/{part.number}", "rb") as stored:
                    _copy_range(stored.fileno(), 0, part.size_bytes, fd)
            version = self._publish(path, fd, upload.key, condition, properties)
        self.abort_upload(upload)
        return version

    def abort_upload(self, upload: Upload) -> None:
        """See Writer.abort_upload."""
        path = self._upload_directory(upload)
        try:
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise translate(error, f"abort upload of {upload.key}", is_write=True) from None
        with contextlib.suppress(OSError):  # when it was the last
            os.rmdir(self._writing)

    def list_uploads(self, prefix: str) -> Sequence[StaleUpload]:
        """See Writer.list_uploads; files whose put was killed have the key ""  and are listed for the prefix ""."""
        found: list[StaleUpload] = []
        try:
            names = os.listdir(self._writing)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise translate(error, "list uploads") from None
        for name in names:
            key = token = ""
            try:
                started_ns = os.stat(f"{self._writing}/{name}").st_mtime_ns
                if name.startswith("upload-"):
                    with open(f"{self._writing}/{name}/{_PROPERTIES}", encoding="utf-8") as stream:
                        document = json.load(stream)
                    key, token = document["key"], document["metadata"].get(TOKEN_KEY, "")
            except (OSError, ValueError):
                continue  # done, or aborted, or just begun
            if key.startswith(prefix):
                found.append(StaleUpload(Upload(key, name, token), started_ns))
        return found

    def copy(self, source: ObjectInfo, key: str, condition: Condition, properties: Properties | None) -> Version:
        """See Writer.copy; shares the blocks where the file system can."""
        with self._source(source) as source_fd, self._scratch(f"copy {source.key} to {key}") as (path, fd):
            kept = properties if properties is not None else _details(source.key, source_fd).properties
            _copy_range(source_fd, 0, source.version.size_bytes, fd)
            if not is_version(os.fstat(source_fd), source.version):
                raise VersionGoneError(f"{source.key}: the file changed while it was copied")
            return self._publish(path, fd, key, condition, kept)

    def restore(self, key: str, days: int, speed: str = "") -> Restore:
        """See Writer.restore; every file can be read."""
        return self.details(key).restore

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        """See Writer.delete; a directory that is not empty stays, as it would in any store."""
        path = self._path(key)
        try:
            if key.endswith("/"):
                os.rmdir(path)
            else:
                if isinstance(condition, Version) and not is_version(os.stat(path), condition):
                    raise PreconditionFailedError(f"delete {key}: the file has changed")
                os.unlink(path)
            self._remove_implied(os.path.dirname(path.removesuffix("/")))
        except OSError as error:
            failure = translate(error, f"delete {key}", is_write=True)
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise failure from None

    def delete_many(self, keys: Iterable[str]) -> Mapping[str, str]:
        """See Writer.delete_many."""
        failed: dict[str, str] = {}
        for key in keys:
            try:
                self.delete(key)
            except BackendError as error:
                failed[key] = str(error)
        return failed

    def _remove_implied(self, directory: str) -> None:
        """Remove a directory, and those above it, that were there only for what was in them."""
        while len(directory) > len(self._root):
            try:
                os.getxattr(directory, _IMPLIED)
                os.rmdir(directory)
            except OSError:  # it is somebody's, or holds something, or is gone
                return
            directory = os.path.dirname(directory)

    def _path(self, key: str) -> str:
        if not is_addressable(key.removesuffix("/")):
            raise ObjectMissingError(f"{key!r}: no file under this name can be addressed")
        return f"{self._root}/{key}"

    def _upload_directory(self, upload: Upload) -> str:
        if not upload.upload_id or "/" in upload.upload_id or upload.upload_id.startswith("."):
            raise UploadMissingError(f"{upload.upload_id!r}: no such upload")
        return f"{self._writing}/{upload.upload_id}"

    def _make_writing(self) -> None:
        if not os.path.isdir(self._root or "/"):
            raise BucketMissingError(f"{self._root or '/'}: no such directory")
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._writing, 0o700)

    @contextlib.contextmanager
    def _scratch(self, what: str) -> Iterator[tuple[str, int]]:
        """Open a new file; what is left of it at the end is removed.  Turns OSError into ours."""
        path = f"{self._writing}/put-{secrets.token_hex(8)}"
        fd = -1
        try:
            while fd < 0:
                self._make_writing()
                # Gone when another thread has just removed the empty directory.
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            yield path, fd
        except OSError as error:
            raise translate(error, what, is_write=True) from None
        finally:
            if fd >= 0:
                os.close(fd)
            for remove, name in ((os.unlink, path), (os.rmdir, self._writing)):
                with contextlib.suppress(OSError):
                    remove(name)

    @contextlib.contextmanager
    def _part(self, upload: Upload, number: int) -> Iterator[int]:
        """Open the file of a part, empty."""
        path = f"{self._upload_directory(upload)}/{number}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise UploadMissingError(f"{upload.key}: no such upload") from None
        except OSError as error:
            raise translate(error, f"write part {number} of {upload.key}", is_write=True) from None
        try:
            yield fd
        except OSError as error:
            raise translate(error, f"write part {number} of {upload.key}", is_write=True) from None
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _source(self, source: ObjectInfo) -> Iterator[int]:
        """Open a file to copy from, in this version."""
        try:
            fd = os.open(self._path(source.key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise translate(error, f"open {source.key}") from None
        try:
            if not is_version(os.fstat(fd), source.version):
                raise VersionGoneError(f"{source.key}: the file has changed")
            yield fd
        finally:
            os.close(fd)

    def _publish(self, path: str, fd: int, key: str, condition: Condition, properties: Properties) -> Version:
        """Bring a written file to its place.

        1. Metadata and content are synced.  2. The name appears, whole.  3. The directory is synced.
        """
        target = self._path(key)
        _set_metadata(fd, properties)
        os.fsync(fd)
        directory = os.path.dirname(target)
        if isinstance(condition, Version):
            _replace(path, target, condition, key)
        else:
            bring = os.link if condition is Expect.NOTHING else os.rename
            try:
                _placed(directory, lambda: bring(path, target))
            except FileExistsError:
                raise PreconditionFailedError(f"write {key}: there is a file already") from None
            if condition is Expect.NOTHING:
                os.unlink(path)  # moves the change time, which is part of the version
        _sync_directory(directory)
        return version_of(os.fstat(fd))

    def _put_directory(self, key: str, condition: Condition, properties: Properties) -> Version:
        path = self._path(key)
        above = os.path.dirname(path.removesuffix("/"))
        try:
            try:
                fd = _placed(above, lambda: _own_directory(path, must_be_new=condition is Expect.NOTHING))
            except (FileExistsError, NotADirectoryError):
                raise PreconditionFailedError(f"make {key}: there is something already") from None
            try:
                _set_metadata(fd, properties)
                os.fsync(fd)
                _sync_directory(above)
                return version_of(os.fstat(fd))
            finally:
                os.close(fd)
        except OSError as error:
            raise translate(error, f"make {key}", is_write=True) from None


def _placed(directory: str, bring: Callable[[], T]) -> T:
    """Bring something to its place in a directory, which is made if it is missing.  Raises OSError."""
    for _try in range(_PLACE_TRIES):
        _imply(directory)
        with contextlib.suppress(FileNotFoundError):
            return bring()
    _imply(directory)
    return bring()


def _imply(directory: str) -> None:
    """Make a directory, and those above it, for what will be in it.  Raises OSError."""
    try:
        os.mkdir(directory)
    except FileExistsError:
        return
    except FileNotFoundError:
        _imply(os.path.dirname(directory))
        _imply(directory)
        return
    with contextlib.suppress(OSError):  # no xattrs here, or it is gone again
        os.setxattr(directory, _IMPLIED, b"")


def _own_directory(path: str, *, must_be_new: bool) -> int:
    """Make a directory that stays when it is empty, or let one stay; return a descriptor.  Raises OSError."""
    try:
        os.mkdir(path)
        must_be_new = False
    except FileExistsError:
        pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.removexattr(fd, _IMPLIED)
    except OSError as error:
        if must_be_new:
            os.close(fd)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        if error.errno not in _NO_XATTR:
            os.close(fd)
            raise
    return fd


def _replace(path: str, target: str, condition: Version, key: str) -> None:
    """Put a file in the place of the version that is expected there."""
    gone = PreconditionFailedError(f"write {key}: the file has changed or is gone")
    try:
        if not is_version(os.stat(target), condition):
            raise gone
        if not _exchange(path, target):
            os.rename(path, target)
            return
        # The exchange itself moves the change time of both.
        if not _is_same_content(os.stat(path), condition):
            _exchange(path, target)
            raise gone
    except (FileNotFoundError, NotADirectoryError):
        raise gone from None
    os.unlink(path)


def _is_same_content(found: os.stat_result, condition: Version) -> bool:
    return version_of(found).etag.split("-")[:3] == condition.etag.split("-")[:3] and (
        found.st_size == condition.size_bytes
    )


def _exchange(first: str, second: str) -> bool:
    """Let two files change places; False where the file system cannot.  Raises OSError."""
    result = ctypes.CDLL(None, use_errno=True).renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _details(key: str, fd: int) -> ObjectDetails:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) and not (key.endswith("/") and stat.S_ISDIR(found.st_mode)):
        raise ObjectMissingError(f"stat {key}: not a regular file")
    content_type = ""
    metadata = encode_attributes(FileAttributes(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns))
    try:
        document = json.loads(os.getxattr(fd, _XATTR))
        metadata, content_type = dict(document["metadata"]), str(document["content_type"])
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
    except (ValueError, KeyError, TypeError):
        pass  # not ours
    return ObjectDetails(ObjectInfo(key, version_of(found)), Properties(metadata, content_type))


def _set_metadata(fd: int, properties: Properties) -> bool:
    """Keep the metadata with a file; return whether all of it could be kept."""
    attributes = decode_attributes(properties.metadata)
    document = {"metadata": dict(properties.metadata), "content_type": properties.content_type}
    is_kept = True
    try:
        os.setxattr(fd, _XATTR, json.dumps(document).encode())
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
        is_kept = False
    if attributes.uid is not None or attributes.gid is not None:
        with contextlib.suppress(PermissionError):  # only root gives files away
            os.fchown(
                fd,
                -1 if attributes.uid is None else attributes.uid,
                -1 if attributes.gid is None else attributes.gid,
            )
    if attributes.mode is not None:
        # No set-user-id programs for whoever reads the directory.
        os.fchmod(fd, stat.S_IMODE(attributes.mode) & 0o1777)
    if attributes.mtime_ns is not None:
        os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
    return is_kept


def _write(fd: int, body: Body) -> None:
    if isinstance(body, FileRange):
        _copy_range(body.fd, body.start, body.end, fd)
        return
    with memoryview(body) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def _copy_range(source_fd: int, start: int, end: int, fd: int) -> None:
    """Append bytes [start, end) of a file to another."""
    at = start
    while at < end:
        try:
            got = os.copy_file_range(source_fd, fd, min(_COPY_BYTES, end - at), offset_src=at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
            got = 0
        if got == 0:
            break
        at += got
    if at == end:
        return
    # Between file systems that cannot; also tells what is wrong with a file that ends early.
    rest = FileRange(source_fd, at, end)
    buffer = memoryview(bytearray(min(_COPY_BYTES, end - at)))
    while at < end:
        got = read_into(rest, at, buffer)
        done = 0
        while done < got:
            done += os.write(fd, buffer[done:got])
        at += got


def _sync_directory(path: str) -> None:
    fd = os.open(path or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
