"""What stores say of archived objects, and what it means."""

import errno
import xml.etree.ElementTree as ET

import pytest

from fanoutfs.backend.archive import Restore, restore_state
from fanoutfs.backend.s3messages import restore_message, restored_until_ns
from fanoutfs.backend.translate import error_from_status
from fanoutfs.errors import AccessDeniedError, ArchivedError, TransientError


@pytest.mark.parametrize(
    ("storage_class", "restore", "status", "state"),
    [
        ("", "", "", Restore.READABLE),
        ("STANDARD_IA", "", "", Restore.READABLE),
        ("GLACIER_IR", "", "", Restore.READABLE),  # instant retrieval
        ("GLACIER", "", "", Restore.ARCHIVED),
        ("DEEP_ARCHIVE", "", "", Restore.ARCHIVED),
        ("Archive", "", "", Restore.ARCHIVED),
        ("INTELLIGENT_TIERING", "", "ARCHIVE_ACCESS", Restore.ARCHIVED),
        ("GLACIER", 'ongoing-request="true"', "", Restore.ONGOING),
        ("GLACIER", 'ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"', "", Restore.RESTORED),
    ],
)
def test_headers_tell_how_an_object_stands(storage_class: str, restore: str, status: str, state: Restore) -> None:
    assert restore_state(storage_class, restore, status) is state


@pytest.mark.parametrize(("speed", "expected"), [("", None), ("Bulk", "Bulk")])
def test_request_says_days_and_speed_if_one_is_wanted(speed: str, expected: str | None) -> None:
    root = ET.fromstring(restore_message(9, speed))
    space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    assert root.tag == f"{space}RestoreRequest"
    assert root.findtext(f"{space}Days") == "9"
    assert root.findtext(f"{space}GlacierJobParameters/{space}Tier") == expected


def test_archived_is_neither_forbidden_nor_worth_a_retry() -> None:
    for status, code in ((403, "InvalidObjectState"), (409, "BlobArchived"), (409, "BlobBeingRehydrated")):
        error = error_from_status(status, code, "GET a")
        assert type(error) is ArchivedError
        assert error.errno_code == errno.ENODATA
    assert not issubclass(ArchivedError, TransientError | AccessDeniedError)
    assert type(error_from_status(403, "AccessDenied", "GET a")) is AccessDeniedError


@pytest.mark.parametrize(
    ("restore", "expected_s"),
    [
        ('ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"', 1356048000),
        ('ongoing-request="true"', 0),
        ('ongoing-request="false", expiry-date="soon"', 0),
        ("", 0),
    ],
)
def test_end_of_a_restore_is_what_the_store_says(restore: str, expected_s: int) -> None:
    assert restored_until_ns(restore) == expected_s * 10**9
