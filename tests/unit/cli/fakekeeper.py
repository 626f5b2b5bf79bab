"""A keeper small enough to test the command line with: mounts, answers INIT, GETATTR and STATFS, and `status`.

Run as `python -m tests.unit.cli.fakekeeper BEHAVIOUR COMMAND...`: puts itself in the place of fanoutfs.keeper.main and
calls the command line.  BEHAVIOUR: serve, refuse, raise, die, crash, quit (closes the pipe and stays).
"""

import errno
import json
import os
import signal
import socket
import struct
import sys
import threading
import types
from pathlib import Path

from fanoutfs.cli import main
from fanoutfs.config.directories import control_socket
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import BucketMissingError

INIT, GETATTR, STATFS, FORGET, INTERRUPT, BATCH_FORGET = 26, 3, 17, 2, 36, 42


def serve(config: MountConfig, ready_fd: int, **_succession: object) -> int:
    """Do what FAKE_KEEPER says."""
    behaviour = os.environ["FAKE_KEEPER"]
    print("noise on stdout", flush=True)
    print("noise on stderr", file=sys.stderr, flush=True)
    if behaviour == "refuse":
        os.write(ready_fd, b"22 bucket `b` does not exist\n")
        os.close(ready_fd)
        return 22
    if behaviour == "raise":
        raise BucketMissingError("bucket `b` does not exist")
    if behaviour == "crash":
        raise RuntimeError("two\nlines")
    if behaviour == "quit":
        os.close(ready_fd)
        signal.pause()
    if behaviour == "die":
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return _serve_mount(config, ready_fd)


def _serve_mount(config: MountConfig, ready_fd: int) -> int:
    from fanoutfs.keeper.mount import mount

    path = control_socket(config.mountpoint)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()
    threading.Thread(target=_serve_control, args=(listener, config), daemon=True).start()
    fd = mount(config.mountpoint, config.source, read_only=config.read_only, allow_other=config.allow_other)
    os.write(ready_fd, b"ok\n")
    os.close(ready_fd)
    while _answer(fd):
        pass
    path.unlink(missing_ok=True)
    return 0


def _answer(fd: int) -> bool:
    try:
        request = os.read(fd, 1 << 20)
    except OSError as error:
        return error.errno in (errno.EINTR, errno.ENOENT)
    opcode, unique = struct.unpack_from("=4xIQ", request)
    if opcode in (FORGET, INTERRUPT, BATCH_FORGET):
        return True
    body = {
        INIT: struct.pack("=IIIIHHII36x", 7, 31, 65536, 0, 12, 9, 65536, 1),
        GETATTR: struct.pack("=QII6Q10I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0),
        STATFS: struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),
    }.get(opcode)
    code = 0 if body is not None else -errno.ENOSYS
    os.write(fd, struct.pack("=IiQ", 16 + len(body or b""), code, unique) + (body or b""))
    return True


def _serve_control(listener: socket.socket, config: MountConfig) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.makefile("rb").readline()
            open_fds = {
                fd: os.readlink(f"/proc/self/fd/{fd}")
                for fd in os.listdir("/proc/self/fd")
                if int(fd) < 1000 and _is_open(fd)
            }
            result = {
                "source": config.source,
                "mountpoint": str(config.mountpoint),
                "keeper_pid": os.getpid(),
                "fds": open_fds,
            }
            connection.sendall(json.dumps({"ok": True, "result": result}).encode() + b"\n")


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


if __name__ == "__main__":
    os.environ["FAKE_KEEPER"] = sys.argv[1]
    module = types.ModuleType("fanoutfs.keeper.main")
    module.serve = serve  # type: ignore[attr-defined]
    sys.modules["fanoutfs.keeper.main"] = module
    if "FAKE_RUNTIME_DIR" in os.environ:
        from fanoutfs.config import directories

        directories.runtime_dir = lambda: Path(os.environ["FAKE_RUNTIME_DIR"])
    sys.exit(main(sys.argv[2:]))
