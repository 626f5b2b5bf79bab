"""`fanoutfs service`: mounts that systemd starts, and the helper by which mount(8) finds us."""

import os
import stat
import subprocess
import sysconfig
from pathlib import Path
from typing import Final

import click

from fanoutfs.cli.document import json_option, print_json
from fanoutfs.config.directories import default_cache_dir
from fanoutfs.config.files import find_file, read_file
from fanoutfs.config.layers import from_file, parse_layer, place_in_file, problems
from fanoutfs.errors import FanoutError, MountBusyError, NotMountedError, UsageError

UNIT: Final = "fanoutfs@.service"
UNIT_DIR: Final = Path("etc/systemd/system")
HELPER: Final = Path("sbin/mount.fanoutfs")
_IN_TEMPLATE: Final = "/usr/bin/fanoutfs"

DRAIN_TIMEOUT_S: Final = 90.0
"""How long a stop waits for uploads; the unit's TimeoutStopSec= leaves room for it."""


@click.group()
def service() -> None:
    """Install and enable mounts as systemd services."""


@service.command(epilog="Example:  fanoutfs service install")
@click.option("--root", metavar="DIR", default="/", help="install below DIR, for packages and images")
@json_option
def install(root: str, as_json: bool) -> None:
    """Install the unit fanoutfs@.service and the helper of mount(8), /sbin/mount.fanoutfs, for this installation."""
    from importlib import resources  # noqa: PLC0415  a tenth of the time of --help

    program = Path(sysconfig.get_path("scripts")) / "fanoutfs"
    if not program.exists():
        raise UsageError(f"{program} does not exist: install the package first (pipx install fanoutfs)")
    template = resources.files("fanoutfs").joinpath("systemd", UNIT).read_text(encoding="utf-8")
    base = Path(root)
    unit, helper = base / UNIT_DIR / UNIT, base / HELPER
    try:
        _write(unit, template.replace(_IN_TEMPLATE, str(program)))
        helper.parent.mkdir(parents=True, exist_ok=True)
        if not helper.is_symlink() or os.readlink(helper) != str(program):
            # By renaming, so that a mount that runs now finds the one or the other.
            new = helper.with_name(f".{helper.name}.{os.getpid()}")
            new.symlink_to(program)
            new.replace(helper)
    except OSError as error:
        raise FanoutError(f"{error.filename}: {error.strerror}") from None
    if as_json:
        print_json({"unit": str(unit), "helper": str(helper), "program": str(program)})
    else:
        click.echo(f"{unit}\n{helper} -> {program}")
    if base == Path("/"):
        _reload()


@service.command(epilog="Example:  fanoutfs service enable train      # mounts what /etc/fanoutfs/train.toml says")
@click.argument("name")
@click.option("--root", metavar="DIR", default="/", help="below DIR, for images; nothing is started")
@click.option("--no-start", is_flag=True, help="at the next boot only")
@json_option
def enable(name: str, root: str, no_start: bool, as_json: bool) -> None:
    """Mount what the configuration NAME says, now and at every boot.

    The service waits for the disks that its cache and mountpoint lie on.  /etc/fanoutfs/NAME.credentials, if there is
    one, is handed to it as its AWS credentials file.
    """
    path = find_file(name)
    if mistakes := problems(read_file(path)):
        raise UsageError(mistakes[0])
    file = read_file(path)
    mountpoint = place_in_file(file, "mountpoint")
    for needed in ("source", "mountpoint"):
        if not place_in_file(file, needed):
            raise UsageError(f"{path}: has no {needed}")
    base = Path(root)
    if not (base / UNIT_DIR / UNIT).exists():
        raise UsageError(f"{base / UNIT_DIR / UNIT} does not exist: run `fanoutfs service install` first")
    layer = parse_layer(from_file(file))[0]
    cache = layer.get("cache_dir", default_cache_dir())
    lines = ["# Written by `fanoutfs service enable`.", "[Unit]"]
    lines += [f"RequiresMountsFor={_quoted(where)}" for where in (str(cache), os.path.dirname(mountpoint))]
    # Without a further disk the mount works as well: it is waited for (by systemd 256 and later), not required.
    lines += [f"WantsMountsFor={_quoted(str(disk.path))}" for disk in layer.get("cache_disks", ())]
    credentials = path.with_suffix(".credentials")
    if credentials.exists():
        _check_secret(credentials)
        lines += ["[Service]", f"LoadCredential=aws:{credentials}", "Environment=AWS_SHARED_CREDENTIALS_FILE=%d/aws"]
    drop_in = base / UNIT_DIR / f"fanoutfs@{name}.service.d" / "10-fanoutfs.conf"
    try:
        _write(drop_in, "\n".join(lines) + "\n")
    except OSError as error:
        raise FanoutError(f"{error.filename}: {error.strerror}") from None
    unit = f"fanoutfs@{name}.service"
    if base != Path("/"):
        _systemctl(f"--root={base}", "enable", unit)
    else:
        _reload()
        _systemctl("enable", *([] if no_start else ["--now"]), unit)
    if as_json:
        print_json({"unit": unit, "is_started": base == Path("/") and not no_start})
    else:
        click.echo(unit)


@service.command(hidden=True)
@click.argument("name")
def stop(name: str) -> None:
    """Upload and unmount before the service ends; nothing when it is about to be started again.  For ExecStop=."""
    if not os.environ.get("MAINPID"):
        return  # the daemon ended by itself: unmounted, or it is to be started again and to find its mount
    if _is_restarting(f"fanoutfs@{name}.service"):
        click.echo("a restart: the mount stays")
        return
    from fanoutfs.cli.umount import unmount_and_wait  # noqa: PLC0415
    from fanoutfs.keeper.paths import resolve  # noqa: PLC0415

    mountpoint = resolve(Path(place_in_file(read_file(find_file(name)), "mountpoint")))
    drain = [str(Path(sysconfig.get_path("scripts")) / "fanoutfs"), "drain", "--wait", str(mountpoint)]
    try:
        subprocess.run(drain, timeout=DRAIN_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        click.echo(f"not everything is uploaded after {DRAIN_TIMEOUT_S:.0f} s; the next start goes on", err=True)
    try:
        unmount_and_wait(mountpoint, lazy=False)
    except NotMountedError:
        pass
    except MountBusyError as error:
        click.echo(f"{error.args[0]}; unmounting lazily", err=True)
        unmount_and_wait(mountpoint, lazy=True)


def _is_restarting(unit: str) -> bool:
    """Tell whether systemd stops this unit in order to start it again; False when it cannot be asked."""
    try:
        done = subprocess.run(
            ["systemctl", "list-jobs", "--no-legend", "--plain", unit],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # JOB UNIT TYPE STATE
    return any(line.split()[1:3] == [unit, "restart"] for line in done.stdout.splitlines())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)


def _quoted(path: str) -> str:
    """Return a path as systemd's files want it."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _check_secret(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")


def _reload() -> None:
    """Have a running systemd read its units again."""
    if Path("/run/systemd/system").exists():  # sd_booted(3)
        _systemctl("daemon-reload")


def _systemctl(*arguments: str) -> None:
    try:
        done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise FanoutError(f"systemctl cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FanoutError(f"systemctl {' '.join(arguments)}: {lines[-1]}")
