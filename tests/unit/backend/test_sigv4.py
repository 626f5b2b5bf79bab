"""Signatures, against the worked examples of the Amazon S3 API reference."""

from datetime import UTC, datetime
from pathlib import Path

from fanoutfs.backend.credentials import AwsCredentials
from fanoutfs.backend.sigv4 import body_sha256, canonical_query, signed_headers
from fanoutfs.backend.writing import FileRange

# "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)", example credentials and dates.
CREDENTIALS = AwsCredentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
WHEN = datetime(2013, 5, 24, tzinfo=UTC)
HOST = "examplebucket.s3.amazonaws.com"


def _signature(path: str, query: str, headers: dict[str, str]) -> str:
    sent = signed_headers("GET", HOST, path, query, headers, WHEN, "us-east-1", CREDENTIALS)
    return sent["authorization"].rpartition("Signature=")[2]


def test_signature_of_get_object_matches_the_reference() -> None:
    expected = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    assert _signature("/test.txt", "", {"Range": "bytes=0-9"}) == expected


def test_signature_of_list_objects_matches_the_reference() -> None:
    expected = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    assert _signature("/", canonical_query({"prefix": "J", "max-keys": "2"}), {}) == expected


def test_query_is_sorted_and_encoded_byte_by_byte() -> None:
    assert canonical_query({"prefix": "a b/ü+~", "delimiter": "/"}) == "delimiter=%2F&prefix=a%20b%2F%C3%BC%2B~"


def test_session_token_is_sent_and_signed() -> None:
    credentials = AwsCredentials("AK", "SK", "TOKEN")
    sent = signed_headers("GET", HOST, "/", "", {}, WHEN, "us-east-1", credentials)
    assert sent["x-amz-security-token"] == "TOKEN"
    assert "x-amz-security-token" in sent["authorization"]


def test_secrets_are_not_in_repr() -> None:
    assert "SK" not in repr(AwsCredentials("AK", "SK", "TOK"))
    assert "TOK" not in repr(AwsCredentials("AK", "SK", "TOK"))


def test_signature_of_put_object_with_a_body_matches_the_reference(tmp_path: Path) -> None:
    body = b"Welcome to Amazon S3."
    (tmp_path / "staged").write_bytes(b"--" + body)
    with (tmp_path / "staged").open("rb") as stream:
        digest = body_sha256(FileRange(stream.fileno(), 2, 2 + len(body)))
    assert digest == body_sha256(body) == "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"
    headers = {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
    sent = signed_headers("PUT", HOST, "/test%24file.text", "", headers, WHEN, "us-east-1", CREDENTIALS, digest)
    expected = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    assert sent["authorization"].rpartition("Signature=")[2] == expected
