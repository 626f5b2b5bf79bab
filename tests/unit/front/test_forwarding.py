"""What a front sends on to the core: the kernel's request, with what pyfuse3 would lose put where it looks."""

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.index.format import Inode, make_attr
from fanoutfs.index.transaction import write_transaction
from fanoutfs.wire.kernel import (
    ATTR_OUT_HEAD,
    FSYNC_IN,
    GETXATTR_IN,
    GETXATTR_OUT,
    IN_HEADER,
    IN_HEADER_SIZE,
    SETATTR_IN,
    UNIQUE_RESEND,
    Opcode,
    SetattrValid,
)
from fanoutfs.wire.relay import TOKEN_RESENT, make_token
from tests.unit.front.rig import GID, UID, Rig, open_rig

INO = 100
VALID, MODE, NEW_UID = 0, 11, 13


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig


def put(rig: Rig, mode: int = stat.S_IFREG | 0o644) -> None:
    rig.put(Inode(INO, make_attr(INO, mode, 10, 0, 5, 6), 0, 0, "", "", "name"))


def setattr_body(valid: int, **fields: int) -> bytes:
    values = [0] * 16
    values[VALID] = valid
    values[2] = 99  # fh
    values[MODE] = fields.get("mode", 0)
    values[NEW_UID] = fields.get("uid", 0)
    return SETATTR_IN.pack(*values)


@pytest.mark.parametrize(
    "opcode", [Opcode.SYMLINK, Opcode.MKDIR, Opcode.UNLINK, Opcode.RENAME2, Opcode.LINK, Opcode.SETXATTR]
)
def test_change_reaches_the_core_as_it_is_but_for_the_token(rig: Rig, opcode: Opcode) -> None:
    unique = rig.send(opcode, INO, b"whatever it says\0")
    relayed, relay_unique, packet = rig.relayed()
    _length, _opcode, _unique, nodeid, uid, gid, pid, *_rest = IN_HEADER.unpack_from(packet)
    assert (relayed, nodeid, uid, gid, pid) == (opcode, INO, UID, GID, make_token(unique))
    assert packet[IN_HEADER_SIZE:] == b"whatever it says\0"
    rig.reply(relay_unique, body=b"answer", front=1)
    assert rig.answer() == (unique, 0, b"answer")


def test_error_of_the_core_reaches_the_kernel(rig: Rig) -> None:
    unique = rig.send(Opcode.MKDIR, INO, b"x\0")
    rig.reply(rig.relayed()[1], error=errno.EEXIST)
    assert rig.answer() == (unique, errno.EEXIST, b"")


def test_token_of_a_request_delivered_again_is_the_same_and_says_so(rig: Rig) -> None:
    rig.send(Opcode.MKDIR, INO, b"x\0", unique=1000)
    rig.send(Opcode.MKDIR, INO, b"x\0", unique=1000 | UNIQUE_RESEND)
    tokens = [IN_HEADER.unpack_from(rig.relayed()[2])[6] for _copy in range(2)]
    assert tokens == [500, 500 | TOKEN_RESENT]


@pytest.mark.parametrize("opcode", [Opcode.FSYNC, Opcode.FSYNCDIR])
def test_fsync_carries_the_inode_as_its_handle(rig: Rig, opcode: Opcode) -> None:
    rig.send(opcode, INO, FSYNC_IN.pack(0, 1, 0))
    _opcode, _unique, packet = rig.relayed()
    assert FSYNC_IN.unpack_from(packet, IN_HEADER_SIZE) == (INO, 1, 0)


def settled(rig: Rig, valid: int, **fields: int) -> tuple[int, int]:
    """Return (valid, mode) as the core gets them."""
    rig.send(Opcode.SETATTR, INO, setattr_body(valid, **fields))
    values = SETATTR_IN.unpack_from(rig.relayed()[2], IN_HEADER_SIZE)
    return values[VALID], values[MODE]


def test_setattr_has_no_handle(rig: Rig) -> None:
    put(rig)
    assert settled(rig, SetattrValid.SIZE | SetattrValid.FH | SetattrValid.LOCKOWNER)[0] == (
        SetattrValid.SIZE | SetattrValid.LOCKOWNER
    )


@pytest.mark.parametrize(
    "valid",
    [SetattrValid.UID, SetattrValid.GID, SetattrValid.SIZE | SetattrValid.KILL_SUIDGID, SetattrValid.FH],
    ids=["chown", "chgrp", "truncate", "write"],
)
def test_set_id_bits_go(rig: Rig, valid: int) -> None:
    put(rig, stat.S_IFREG | 0o6755)
    seen, mode = settled(rig, valid)
    assert seen & SetattrValid.MODE
    assert mode == stat.S_IFREG | 0o755
    assert not seen & (SetattrValid.KILL_SUIDGID | SetattrValid.FH)


@pytest.mark.parametrize(("uid", "expected"), [(0, 0o2745), (1000, 0o745)], ids=["root", "owner"])
def test_set_group_id_without_group_execution_stays_when_root_changes_the_owner(
    rig: Rig, uid: int, expected: int
) -> None:
    put(rig, stat.S_IFREG | 0o6745)
    rig.send(Opcode.SETATTR, INO, setattr_body(SetattrValid.UID), uid=uid)
    assert SETATTR_IN.unpack_from(rig.relayed()[2], IN_HEADER_SIZE)[MODE] == stat.S_IFREG | expected


def test_set_id_bits_of_a_directory_stay(rig: Rig) -> None:
    put(rig, stat.S_IFDIR | 0o2755)
    assert settled(rig, SetattrValid.UID)[0] == SetattrValid.UID


def test_mode_that_is_given_wins(rig: Rig) -> None:
    put(rig, stat.S_IFREG | 0o6755)
    assert settled(rig, SetattrValid.UID | SetattrValid.MODE, mode=stat.S_IFREG | 0o4700)[1] == stat.S_IFREG | 0o4700


def test_setattr_that_sets_nothing_is_answered_with_the_attributes(rig: Rig) -> None:
    put(rig)
    body = rig.ask(Opcode.SETATTR, INO, setattr_body(SetattrValid.FH))
    assert body[ATTR_OUT_HEAD.size :][:8] == INO.to_bytes(8, "little")
    assert rig.is_core_idle()


def get_xattr(rig: Rig, name: bytes, size: int = 100) -> bytes:
    return rig.ask(Opcode.GETXATTR, INO, GETXATTR_IN.pack(size, 0) + name + b"\0")


def test_user_xattr_is_read_from_the_index(rig: Rig) -> None:
    put(rig)
    with write_transaction(rig.environment) as txn:
        txn.changed.put_xattr(INO, b"user.a", b"one")
        txn.changed.put_xattr(INO, b"user.b", b"")
    assert get_xattr(rig, b"user.a") == b"one"
    assert get_xattr(rig, b"user.a", 0) == GETXATTR_OUT.pack(3, 0)
    assert rig.ask(Opcode.LISTXATTR, INO, GETXATTR_IN.pack(100, 0)) == b"user.a\0user.b\0"
    assert rig.ask(Opcode.LISTXATTR, INO, GETXATTR_IN.pack(0, 0)) == GETXATTR_OUT.pack(14, 0)


@pytest.mark.parametrize(
    ("name", "size", "code"),
    [
        (b"user.none", 100, errno.ENODATA),
        (b"user.a", 2, errno.ERANGE),
        (b"security.capability", 20, errno.ENODATA),
        (b"trusted.x", 20, errno.EOPNOTSUPP),
        (b"system.posix_acl_access", 20, errno.EOPNOTSUPP),
    ],
)
def test_xattr_that_cannot_be_read(rig: Rig, name: bytes, size: int, code: int) -> None:
    put(rig)
    with write_transaction(rig.environment) as txn:
        txn.changed.put_xattr(INO, b"user.a", b"one")
    with pytest.raises(OSError) as caught:
        get_xattr(rig, name, size)
    assert caught.value.errno == code


def test_state_of_a_file_is_asked_of_the_core(rig: Rig) -> None:
    put(rig)
    rig.send(Opcode.GETXATTR, INO, GETXATTR_IN.pack(10, 0) + b"user.fanoutfs.state\0")
    assert rig.relayed()[0] == Opcode.GETXATTR


def test_create_has_the_kernel_use_mknod(rig: Rig) -> None:
    with pytest.raises(OSError) as caught:
        rig.ask(Opcode.CREATE, INO, bytes(16) + b"x\0")
    assert caught.value.errno == errno.ENOSYS


def test_read_only_mount_sends_no_change(tmp_path: Path) -> None:
    with open_rig(tmp_path, read_only=True) as rig:
        for opcode in (Opcode.MKNOD, Opcode.WRITE, Opcode.SETATTR, Opcode.RENAME2, Opcode.UNLINK):
            with pytest.raises(OSError) as caught:
                rig.ask(opcode, INO, bytes(100))
            assert caught.value.errno == errno.EROFS
        assert rig.is_core_idle()
