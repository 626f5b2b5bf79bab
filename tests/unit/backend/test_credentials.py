"""Where credentials are found, and that they do not leak."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fanoutfs.backend.connect import open_store
from fanoutfs.backend.credentials import AwsCredentials, is_anonymous, static_credentials
from fanoutfs.backend.metadata import RefreshingCredentials, find_metadata_credentials
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import CredentialsError, TransientError
from tests.support.processes import environment
from tests.support.servers import AWS_ENV, Bucket

ENV = {"AWS_ACCESS_KEY_ID": "ENVKEY", "AWS_SECRET_ACCESS_KEY": "ENVSECRET"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = FILEKEY\naws_secret_access_key = 100%secret\n"
        "[work]\naws_access_key_id=WORKKEY\naws_secret_access_key=w\naws_session_token=t\n"
    )
    (tmp_path / ".aws/config").write_text(
        "[default]\nregion = eu-west-1\ns3 =\n  addressing_style = path\n[profile login]\nsso_session = x\n"
    )
    return tmp_path


def _key(profile: str, env: dict[str, str], home: Path) -> str | None:
    found = static_credentials(profile, env, home)
    return found.access_key_id if found else None


def test_environment_wins_over_files(home: Path) -> None:
    assert _key("", ENV, home) == "ENVKEY"
    assert _key("", {**ENV, "AWS_PROFILE": "work"}, home) == "ENVKEY"


def test_profile_setting_wins_over_environment(home: Path) -> None:
    assert _key("work", ENV, home) == "WORKKEY"


def test_default_profile_is_used_without_environment(home: Path) -> None:
    found = static_credentials("", {}, home)
    assert found == AwsCredentials("FILEKEY", "100%secret")


def test_profile_of_the_environment_brings_its_token(home: Path) -> None:
    assert static_credentials("", {"AWS_PROFILE": "work"}, home) == AwsCredentials("WORKKEY", "w", "t")


def test_files_are_found_where_the_environment_says(home: Path, tmp_path: Path) -> None:
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(home / ".aws/credentials"), "AWS_CONFIG_FILE": "/nonexistent"}
    assert _key("", env, tmp_path / "elsewhere") == "FILEKEY"


def test_nothing_anywhere_finds_nothing(tmp_path: Path) -> None:
    assert static_credentials("", {}, tmp_path) is None


@pytest.mark.parametrize("profile", ["nobody", "login"])
def test_named_profile_without_keys_is_an_error(home: Path, profile: str) -> None:
    with pytest.raises(CredentialsError, match=profile):
        static_credentials(profile, {}, home)


def test_broken_file_is_named_but_not_quoted(home: Path) -> None:
    (home / ".aws/credentials").write_text("aws_secret_access_key SECRET\n[default\n")
    with pytest.raises(CredentialsError) as caught:
        static_credentials("", {}, home)
    assert "credentials" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_anonymous_only_on_request() -> None:
    assert is_anonymous({"AWS_SKIP_SIGNATURE": "true"})
    assert not is_anonymous({})


def test_source_without_credentials_is_refused_with_one_line(tmp_path: Path) -> None:
    config = MountConfig("s3://bucket", Path("/m"), endpoint_url="http://127.0.0.1:1")
    removed = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    changes = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    with environment(changes, removed), pytest.raises(CredentialsError, match="AWS_SKIP_SIGNATURE") as caught:
        open_store(config)
    assert "\n" not in str(caught.value)


def test_anonymous_mount_reads_a_public_bucket(moto_bucket: Bucket) -> None:
    moto_bucket.put("a", b"x")
    moto_bucket.client.put_bucket_acl(Bucket=moto_bucket.name, ACL="public-read")
    moto_bucket.client.put_object_acl(Bucket=moto_bucket.name, Key="a", ACL="public-read")
    with environment({"AWS_SKIP_SIGNATURE": "true"}, remove=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")):
        backend = open_store(moto_bucket.config())
    with contextlib.closing(backend):
        assert [info.key for page in backend.list("") for info in page.objects] == ["a"]
        assert backend.head("a").version.size_bytes == 1


# --- credentials that expire -------------------------------------------------------------------------------------

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_expiring_credentials_are_fetched_again_before_they_expire() -> None:
    now = [START]
    fetched: list[AwsCredentials] = []

    def fetch() -> AwsCredentials:
        fetched.append(AwsCredentials(f"K{len(fetched)}", "S", "", now[0] + timedelta(hours=1)))
        return fetched[-1]

    source = RefreshingCredentials(fetch, lambda: now[0])
    assert [source().access_key_id for _ in range(3)] == ["K0", "K0", "K0"]
    now[0] += timedelta(minutes=54)
    assert source().access_key_id == "K0"
    now[0] += timedelta(minutes=2)
    assert source().access_key_id == "K1"


def test_held_credentials_serve_while_the_service_is_away() -> None:
    now = [START]
    answers: list[AwsCredentials | TransientError] = [
        AwsCredentials("K0", "S", "", START + timedelta(hours=1)),
        TransientError("away"),
        TransientError("away"),
    ]

    def fetch() -> AwsCredentials:
        answer = answers.pop(0)
        if isinstance(answer, TransientError):
            raise answer
        return answer

    source = RefreshingCredentials(fetch, lambda: now[0])
    source()
    now[0] += timedelta(minutes=58)
    assert source().access_key_id == "K0"
    now[0] += timedelta(minutes=3)
    with pytest.raises(TransientError):
        source()


@pytest.fixture
def metadata_service() -> Iterator[str]:
    """Answer as EC2 instance metadata, a container endpoint and STS do; any credentials do for moto."""
    expiry = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {"AccessKeyId": "AK", "SecretAccessKey": "SKSKSKSK", "Token": "T", "Expiration": expiry}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Stay silent."""

        def _send(self, body: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_PUT(self) -> None:
            self._send("the-token")

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            is_right = "WebIdentityToken=web-token" in form and "RoleArn=arn" in form
            self._send(
                "<R xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><AssumeRoleWithWebIdentityResult><Credentials>"
                "<AccessKeyId>AK</AccessKeyId><SecretAccessKey>SKSKSKSK</SecretAccessKey><SessionToken>T</SessionToken>"
                f"<Expiration>{expiry}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></R>",
                200 if is_right else 403,
            )

        def do_GET(self) -> None:
            if self.path == "/container":
                self._send(json.dumps(document), 200 if self.headers["Authorization"] == "pod" else 401)
            elif self.headers["X-aws-ec2-metadata-token"] != "the-token":
                self._send("", 401)
            elif self.path.endswith("security-credentials/"):
                self._send("role")
            else:
                self._send(json.dumps(document))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["instance", "container", "web-identity"])
def test_machine_credentials_are_found_and_serve_both_clients(
    kind: str, metadata_service: str, moto_bucket: Bucket, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("web-token\n")
    env = {
        "instance": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata_service, "AWS_EC2_METADATA_DISABLED": ""},
        "container": {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{metadata_service}/container",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "pod",
        },
        "web-identity": {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_ROLE_ARN": "arn",
            "AWS_ENDPOINT_URL_STS": metadata_service,
        },
    }[kind]
    source = find_metadata_credentials(env, "us-east-1")
    assert source is not None
    found = source()
    assert (found.access_key_id, found.session_token) == ("AK", "T")
    moto_bucket.put("a", b"x")
    with environment({**AWS_ENV, **env}, remove=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", *AWS_ENV)):
        backend = open_store(moto_bucket.config())
    with contextlib.closing(backend):
        assert [info.key for page in backend.list("") for info in page.objects] == ["a"]
        assert backend.head("a").version.size_bytes == 1


def test_container_endpoint_elsewhere_without_tls_is_refused() -> None:
    with pytest.raises(CredentialsError, match="neither https nor local"):
        find_metadata_credentials({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/x"}, "us-east-1")


def test_instance_metadata_is_not_asked_when_disabled() -> None:
    assert find_metadata_credentials({"AWS_EC2_METADATA_DISABLED": "true"}, "us-east-1") is None
