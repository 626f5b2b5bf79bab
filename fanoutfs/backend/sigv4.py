"""AWS Signature Version 4 for requests without a body.

Pure.  Source: "Authenticating Requests (AWS Signature Version 4)" of the Amazon S3 API reference; checked against its
worked examples in tests/unit/backend/test_sigv4.py.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final
from urllib.parse import quote

from fanoutfs.backend.credentials import AwsCredentials

EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


def canonical_query(params: Mapping[str, str]) -> str:
    """Return the query string, encoded and sorted as the signature needs it; send exactly this."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in params.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed_headers(
    method: str,
    host: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    now: datetime,
    region: str,
    credentials: AwsCredentials,
) -> dict[str, str]:
    """Return the headers to send: `headers`, the date, the token and the Authorization over all of them.

    path: percent-encoded as sent.  now: UTC.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    sent = {"host": host, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": stamp}
    sent.update((name.lower(), value.strip()) for name, value in headers.items())
    if credentials.session_token:
        sent["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(sent))
    lines = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent))
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{EMPTY_SHA256}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_access_key}".encode()
    for step in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return sent
