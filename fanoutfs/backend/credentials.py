"""Where the credentials of an S3 source come from.

obstore reads environment variables but not ~/.aws, and hides what its own chains find; the S3 lister (s3list.py)
needs the secret to sign.  So the search is done here, once, and both get the same result.  In this order, like the
AWS tools:

1. AWS_SKIP_SIGNATURE=true (obstore's own switch): anonymous, no signature.  Never guessed: without it a source
   without credentials is an error, not a public bucket.
2. the profile named by the `profile` setting;
3. AWS_ACCESS_KEY_ID + AWS_SECRET_ACCESS_KEY (+ AWS_SESSION_TOKEN);
4. AWS_PROFILE, or "default", in AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE;
5. metadata.py: web identity (EKS), container endpoint (ECS, EKS pod identity), EC2 instance metadata; these expire
   and are fetched again before they do.

SSO, `role_arn` and `credential_process` profiles are refused by name, not silently skipped.
"""

import configparser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from fanoutfs.errors import CredentialsError

_UNSUPPORTED: Final = ("sso_session", "sso_start_url", "role_arn", "credential_process")


@dataclass(frozen=True, slots=True)
class AwsCredentials:
    """A key pair.  The secrets stay out of repr, logs and tracebacks."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    expires_at: datetime | None = None


CredentialSource: TypeAlias = Callable[[], AwsCredentials]
"""Returns credentials that are valid now; may do I/O; thread-safe; raises CredentialsError or TransientError."""


def read_profile(name: str, env: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the merged settings of one profile; the credentials file wins over the config file.  {}: no such profile.

    Raises CredentialsError when a file cannot be parsed.
    """
    shared = Path(env.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials").expanduser()
    config = Path(env.get("AWS_CONFIG_FILE") or home / ".aws" / "config").expanduser()
    settings = _section(config, name if name == "default" else f"profile {name}")
    settings.update(_section(shared, name))
    return settings


def _section(path: Path, name: str) -> dict[str, str]:
    # A "%" in a secret is no interpolation; a value may be nested (s3 = \n  key = value) and is then ignored.
    parser = configparser.RawConfigParser(allow_no_value=True, default_section="\0none", strict=False)
    try:
        with path.open(encoding="utf-8") as stream:
            parser.read_file(stream)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CredentialsError(f"{path}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError):
        # The parser's own message quotes the offending line, which may be a secret.
        raise CredentialsError(f"{path}: not a valid AWS configuration file") from None
    if not parser.has_section(name):
        return {}
    return {key: value for key, value in parser.items(name) if value}


def static_credentials(profile: str, env: Mapping[str, str], home: Path) -> AwsCredentials | None:
    """Return credentials from environment or files (steps 2 to 4), None if there are none."""
    env_key, env_secret = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
    if not profile and env_key and env_secret:
        return AwsCredentials(env_key, env_secret, env.get("AWS_SESSION_TOKEN") or env.get("AWS_SECURITY_TOKEN") or "")
    name = profile or env.get("AWS_PROFILE") or "default"
    settings = read_profile(name, env, home)
    if settings.get("aws_access_key_id") and settings.get("aws_secret_access_key"):
        return AwsCredentials(
            settings["aws_access_key_id"], settings["aws_secret_access_key"], settings.get("aws_session_token", "")
        )
    for unsupported in _UNSUPPORTED:
        if unsupported in settings:
            raise CredentialsError(f"profile {name!r} uses {unsupported}, which is not supported: export keys instead")
    if name != "default":
        raise CredentialsError(f"profile {name!r} has no aws_access_key_id and aws_secret_access_key")
    return None


def is_anonymous(env: Mapping[str, str]) -> bool:
    """Return whether the user asked for unsigned requests."""
    return env.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on")
