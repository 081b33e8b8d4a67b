"""Objects in S3 and in what speaks its protocol, found by glob and read as files.

An object is pinned by its ETag and size, which S3 takes from its bytes, and
fetched on the condition that it still has them. Where the store is and who asks
comes from the environment, as for every AWS tool: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, a profile, or the machine's own role.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from penstock.artifacts import store_errors
from penstock.errors import SourceError, SourceUnavailable
from penstock.registry import require

SCHEME = "s3://"
_MAGIC = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"\*\*/|\[!?\]?[^\]/]*\]|.", re.S)
_TIMEOUT_S = 20
_DENIED = {"403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_CHANGED = {"412", "PreconditionFailed", "404", "NoSuchKey"}


@dataclass(frozen=True)
class Object:
    """One object.

    Attributes:
        url: Its address.
        etag: What S3 calls its content.
        size_bytes: Its size.
    """

    url: str
    etag: str
    size_bytes: int

    @property
    def stream(self) -> str:
        """What its content is called: a copy of it has the same name."""
        return f"etag:{self.etag}:{self.size_bytes}"


def find(pattern: str) -> list[Object]:
    """The objects that a URL or a glob stands for, in the order of their keys.

    ``*`` and ``?`` match within one part of a key, ``**/`` any number of parts.

    Raises:
        MissingExtra: boto3 is not installed.
        SourceError: There is none, or the store refuses.
        SourceUnavailable: The store does not answer.
    """
    bucket, _, key = pattern.removeprefix(SCHEME).partition("/")
    if not bucket or not key:
        raise SourceError(f"{pattern!r} names no object.", "Write s3://BUCKET/KEY or a glob.")
    magic = _MAGIC.search(key)
    prefix = key[: magic.start()] if magic else key
    matches = re.compile(_regex(key)).fullmatch
    with _answered(pattern):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [
            Object(f"{SCHEME}{bucket}/{one['Key']}", one["ETag"].strip('"'), one["Size"])
            for page in pages
            for one in page.get("Contents", ())
            if (matches(one["Key"]) if magic else one["Key"] == key) and not _is_folder(one)
        ]
    if not found:
        raise SourceUnavailable(f"No object matches {pattern!r}.", "Check bucket and prefix.")
    return found


@contextmanager
def opened(stream: str, url: str) -> Iterator[BinaryIO]:
    """A copy of an object on this machine, for as long as the block runs.

    Args:
        stream: ``Object.stream``, as it was pinned.
        url: Where it is.

    Raises:
        SourceError: The store refuses.
        SourceUnavailable: It is gone, is no longer what was pinned, or the store does not
            answer or stops in the middle.
    """
    _, etag, size_bytes = stream.split(":")
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    with tempfile.TemporaryFile(prefix="penstock-object-") as file:
        with _answered(url):
            body = _client().get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"')["Body"]
            for chunk in body.iter_chunks(1 << 20):
                with store_errors(Path(tempfile.gettempdir())):
                    file.write(chunk)
        if file.tell() != int(size_bytes):
            raise SourceUnavailable(
                f"{url}: got {file.tell()} of {size_bytes} bytes.", "Run again."
            )
        file.seek(0)
        yield file


def _is_folder(one: Mapping[str, Any]) -> bool:
    """Whether an object only marks a place as a folder, as consoles and other tools make them."""
    return bool(one["Key"].endswith("/") and not one["Size"])


def _client() -> Any:
    boto3 = require("boto3", "s3")
    config = require("botocore.config", "s3").Config(
        connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"mode": "standard"}
    )
    # A session of its own: the default one keeps the credentials it began with.
    return boto3.session.Session().client("s3", config=config)


@contextmanager
def _answered(what: str) -> Iterator[None]:
    """Turn what boto3 raises into a sentence, without credentials in it."""
    errors = require("botocore.exceptions", "s3")
    try:
        yield
    except errors.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _CHANGED:
            raise SourceUnavailable(
                f"{what} is gone or has changed since it was pinned ({code}).",
                "Run again to pin it as it is now; write new objects, and leave the old.",
            ) from None
        if code in _DENIED:
            raise SourceError(
                f"{what}: the store refuses ({code}).",
                "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role.",
            ) from None
        if code == "NoSuchBucket":
            raise SourceError(f"{what}: there is no such bucket.") from None
        raise SourceUnavailable(f"{what}: the store answered {code}.", "Try again.") from None
    except (
        errors.NoCredentialsError,
        errors.PartialCredentialsError,
        errors.NoRegionError,
    ) as error:
        raise SourceError(
            f"{what}: {error}.", "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION."
        ) from None
    except (errors.BotoCoreError, OSError) as error:
        raise SourceUnavailable(
            f"{what}: {type(error).__name__}: {error}",
            "Check that the store is up, and AWS_ENDPOINT_URL if it is your own.",
        ) from None


def _regex(glob: str) -> str:
    """A glob as a regular expression over whole keys."""
    return "".join(_meaning(token[0]) for token in _TOKEN.finditer(glob))


def _meaning(token: str) -> str:
    if token.startswith("[") and len(token) > 1:
        return token.replace("[!", "[^", 1)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return known.get(token, re.escape(token))
