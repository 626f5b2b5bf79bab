"""The tables of opcodes."""

import errno

import pytest

from fanoutfs.front.changes import Changes
from fanoutfs.front.creating import Creating
from fanoutfs.front.dispatch import READ_ONLY_RULES, READ_WRITE_RULES, Rule, rules_of
from fanoutfs.front.forwarding import Forwarding
from fanoutfs.front.handlers import Handlers
from fanoutfs.wire.kernel import READ_IN, Opcode

OWNERS = {"": Handlers, "changes": Changes, "creating": Creating, "forwarding": Forwarding}
CHANGING = (Opcode.MKNOD, Opcode.MKDIR, Opcode.WRITE, Opcode.UNLINK, Opcode.RENAME2, Opcode.SETATTR, Opcode.SETXATTR)
both = pytest.mark.parametrize("rules", [READ_ONLY_RULES, READ_WRITE_RULES], ids=["read-only", "read-write"])
Rules = dict[Opcode, Rule]


def test_the_setting_chooses_the_table() -> None:
    assert rules_of(read_only=True) is READ_ONLY_RULES
    assert rules_of(read_only=False) is READ_WRITE_RULES


@both
def test_every_opcode_has_a_rule(rules: Rules) -> None:
    assert set(rules) == set(Opcode)


@both
def test_every_method_exists(rules: Rules) -> None:
    for opcode, rule in rules.items():
        if rule.method:
            owner, _dot, name = rule.method.rpartition(".")
            assert callable(getattr(OWNERS[owner], name)), opcode


@both
@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.OPENDIR, Opcode.FLUSH])
def test_opens_and_closes_are_left_to_the_kernel(rules: Rules, opcode: Opcode) -> None:
    assert rules[opcode].errno_code == errno.ENOSYS
    assert rules[opcode].replies


@both
@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET])
def test_forgets_are_never_answered(rules: Rules, opcode: Opcode) -> None:
    assert not rules[opcode].replies


def test_a_read_only_mount_refuses_every_change() -> None:
    # ENOSYS to CREATE would make the kernel use MKNOD from then on; EROFS must be what a program sees.
    for opcode in (*CHANGING, Opcode.CREATE):
        assert READ_ONLY_RULES[opcode].errno_code == errno.EROFS


def test_a_read_write_mount_refuses_no_change() -> None:
    assert [opcode for opcode in CHANGING if not READ_WRITE_RULES[opcode].method] == []
    assert errno.EROFS not in {rule.errno_code for rule in READ_WRITE_RULES.values()}


def test_a_read_write_mount_has_the_kernel_create_with_mknod() -> None:
    assert READ_WRITE_RULES[Opcode.CREATE].errno_code == errno.ENOSYS


@both
def test_reads_need_their_whole_body(rules: Rules) -> None:
    for opcode in (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS):
        assert rules[opcode].min_body == READ_IN.size
