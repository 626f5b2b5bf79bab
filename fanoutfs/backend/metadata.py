"""Credentials that a machine or a container is given: web identity, container endpoint, EC2 instance metadata.

Fetched with the standard library, because obstore keeps what its own chains find to itself and the lister must sign.
Sources: "AWS SDKs and Tools Reference Guide" (container credential provider; IMDS credential provider; assume role with
web identity).  Each source is asked anew `_SKEW` before its credentials expire; one thread asks, the others wait.
"""

import json
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from fanoutfs.backend.credentials import AwsCredentials, CredentialSource
from fanoutfs.errors import CredentialsError, TransientError

_SKEW: Final = timedelta(minutes=5)
_TIMEOUT_S: Final = 2.0
_IMDS: Final = "http://169.254.169.254"
_CONTAINER: Final = "http://169.254.170.2"
_CONTAINER_HOSTS: Final = ("169.254.170.2", "169.254.170.23", "127.0.0.1", "localhost", "::1", "fd00:ec2::23")


class RefreshingCredentials:
    """A CredentialSource that asks `fetch` again before what it got expires."""

    def __init__(self, fetch: CredentialSource, utc_now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """fetch: asks the service; called by one thread at a time."""
        self._fetch = fetch
        self._utc_now = utc_now
        self._lock = threading.Lock()
        self._held: AwsCredentials | None = None

    def __call__(self) -> AwsCredentials:
        """Return credentials that are valid now.  Raises what fetch raises, if nothing valid is held."""
        with self._lock:
            now = self._utc_now()
            held = self._held
            if held is not None and (held.expires_at is None or held.expires_at - now > _SKEW):
                return held
            try:
                self._held = self._fetch()
            except TransientError:
                # What is held may be good for some minutes yet.
                if held is None or held.expires_at is None or held.expires_at <= now:
                    raise
                return held
            return self._held


def find_metadata_credentials(env: Mapping[str, str], region: str) -> CredentialSource | None:
    """Return the source this machine offers, None if it offers none.  Asks IMDS once (at most 2 s)."""
    token_file, role = env.get("AWS_WEB_IDENTITY_TOKEN_FILE"), env.get("AWS_ROLE_ARN")
    if token_file and role:
        session = env.get("AWS_ROLE_SESSION_NAME") or "fanoutfs"
        url = (
            env.get("AWS_ENDPOINT_URL_STS")
            or f"https://sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
        )
        return RefreshingCredentials(lambda: _web_identity(url, Path(token_file), role, session))
    container = env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") or ""
    relative = env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    if relative:
        container = _CONTAINER + relative
    if container:
        where = urlsplit(container)
        if where.scheme != "https" and where.hostname not in _CONTAINER_HOSTS:
            raise CredentialsError(f"AWS_CONTAINER_CREDENTIALS_FULL_URI: {where.hostname} is neither https nor local")
        return RefreshingCredentials(lambda: _container(container, env))
    if env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    base = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _IMDS
    instance = RefreshingCredentials(lambda: _instance(base.rstrip("/")))
    try:
        instance()
    except (CredentialsError, TransientError):
        return None
    return instance


def _web_identity(url: str, token_file: Path, role: str, session: str) -> AwsCredentials:
    try:
        token = token_file.read_text().strip()
    except OSError as error:
        raise CredentialsError(f"{token_file}: {error.strerror}") from None
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": role,
        "RoleSessionName": session,
        "WebIdentityToken": token,
    }
    body = _fetch(url, data=urlencode(form).encode(), what="STS AssumeRoleWithWebIdentity")
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat bounds entity expansion, see s3list
        fields = {element.tag.rpartition("}")[2]: element.text or "" for element in root.iter()}
        return _credentials(fields, "SessionToken")
    except (ET.ParseError, KeyError, ValueError):
        raise CredentialsError("STS AssumeRoleWithWebIdentity: the answer holds no credentials") from None


def _container(url: str, env: Mapping[str, str]) -> AwsCredentials:
    token = env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
    token_file = env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    if token_file:
        try:
            token = Path(token_file).read_text().strip()
        except OSError as error:
            raise CredentialsError(f"{token_file}: {error.strerror}") from None
    return _from_json(_fetch(url, {"Authorization": token} if token else {}, what="container credentials"))


def _instance(base: str) -> AwsCredentials:
    what = "EC2 instance metadata"
    token = _fetch(
        f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "300"}, method="PUT", what=what
    ).decode()
    headers = {"X-aws-ec2-metadata-token": token}
    roles = f"{base}/latest/meta-data/iam/security-credentials/"
    names = _fetch(roles, headers, what=what).decode().split()
    if not names:
        raise CredentialsError(f"{what}: the instance has no role")
    return _from_json(_fetch(roles + names[0], headers, what=what))


def _from_json(body: bytes) -> AwsCredentials:
    try:
        return _credentials(json.loads(body), "Token")
    except (KeyError, TypeError, ValueError):
        raise CredentialsError("the metadata service answered without credentials") from None


def _credentials(fields: Mapping[str, Any], token_name: str) -> AwsCredentials:
    expires_at = datetime.fromisoformat(fields["Expiration"])
    return AwsCredentials(fields["AccessKeyId"], fields["SecretAccessKey"], fields.get(token_name, ""), expires_at)


def _fetch(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    data: bytes | None = None,
    method: str | None = None,
    what: str,
) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise CredentialsError(f"{what}: its address is no http URL")
    request = urllib.request.Request(url, data=data, headers=dict(headers or {}), method=method)  # noqa: S310 - checked
    # Metadata addresses are link-local: a proxy must never see these requests.  STS is not, and may need it.
    opener = urllib.request.build_opener() if data else urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            body: bytes = response.read(1 << 20)
            return body
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code == 429:
            raise TransientError(f"{what}: {error.code}") from None
        raise CredentialsError(f"{what}: {error.code}") from None
    except (OSError, ValueError) as error:
        raise TransientError(f"{what}: {type(error).__name__}") from None
