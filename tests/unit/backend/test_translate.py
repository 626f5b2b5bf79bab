"""What a status, a code or an obstore message means."""

from datetime import UTC, datetime

import pytest

from fanoutfs.backend.translate import error_from_obstore, error_from_status, retry_after
from fanoutfs.errors import (
    AccessDeniedError,
    BackendError,
    BucketMissingError,
    CredentialsError,
    ObjectMissingError,
    TransientError,
    VersionGoneError,
)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "", CredentialsError),
        (403, "", AccessDeniedError),
        (403, "AccessDenied", AccessDeniedError),
        (403, "SignatureDoesNotMatch", CredentialsError),
        (403, "InvalidAccessKeyId", CredentialsError),
        (403, "ExpiredToken", CredentialsError),
        (400, "ExpiredToken", CredentialsError),
        (403, "RequestTimeTooSkewed", CredentialsError),
        (403, "AuthenticationFailed", CredentialsError),
        (404, "NoSuchBucket", BucketMissingError),
        (404, "ContainerNotFound", BucketMissingError),
        (404, "NoSuchKey", ObjectMissingError),
        (404, "", ObjectMissingError),
        (412, "PreconditionFailed", VersionGoneError),
        (416, "InvalidRange", VersionGoneError),
        (429, "", TransientError),
        (400, "RequestTimeout", TransientError),
        (500, "InternalError", TransientError),
        (503, "SlowDown", TransientError),
        (504, "", TransientError),
        (400, "InvalidRequest", BackendError),
        (501, "NotImplemented", BackendError),
        (301, "PermanentRedirect", BackendError),
    ],
)
def test_status_and_code_give_the_narrowest_error(status: int, code: str, expected: type[BackendError]) -> None:
    assert type(error_from_status(status, code, "GET a")) is expected


def test_redirect_names_the_region_of_the_bucket() -> None:
    assert "eu-west-1" in str(error_from_status(301, "PermanentRedirect", "LIST /", region="eu-west-1"))


def test_unknown_obstore_failure_is_shown_on_one_line_without_query_strings() -> None:
    error = ValueError("odd failure at https://h/c?sv=1&sig=SECRET\nmore\n\nDebug source:\nsig=SECRET")
    shown = str(error_from_obstore(error, "GET a"))
    assert shown == "GET a: odd failure at https://h/c?... more"


NOW = datetime(2025, 10, 21, 7, 28, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None), ("", None), ("7", 7.0), ("1.5", 1.5), ("-3", 0.0), ("soon", None),
        ("Tue, 21 Oct 2025 07:28:10 GMT", 10.0), ("Tue, 21 Oct 2025 07:00:00 GMT", 0.0), ("nan", None), ("inf", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after(value, NOW) == expected
