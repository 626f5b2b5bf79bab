"""The table of opcodes."""

import errno

import pytest

from fanoutfs.front.dispatch import RULES
from fanoutfs.front.handlers import Handlers
from fanoutfs.wire.kernel import READ_IN, Opcode


def test_every_opcode_has_a_rule() -> None:
    assert set(RULES) == set(Opcode)


def test_every_method_exists() -> None:
    for opcode, rule in RULES.items():
        if rule.method:
            assert callable(getattr(Handlers, rule.method)), opcode


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.OPENDIR, Opcode.FLUSH])
def test_opens_and_closes_are_left_to_the_kernel(opcode: Opcode) -> None:
    assert RULES[opcode].errno_code == errno.ENOSYS
    assert RULES[opcode].replies


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET])
def test_forgets_are_never_answered(opcode: Opcode) -> None:
    assert not RULES[opcode].replies


def test_create_is_never_enosys() -> None:
    # ENOSYS to CREATE would make the kernel use MKNOD from then on; EROFS must be what a program sees.
    for opcode in (Opcode.CREATE, Opcode.MKNOD, Opcode.MKDIR, Opcode.WRITE, Opcode.UNLINK, Opcode.RENAME2):
        assert RULES[opcode].errno_code == errno.EROFS


def test_reads_need_their_whole_body() -> None:
    for opcode in (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS):
        assert RULES[opcode].min_body == READ_IN.size
