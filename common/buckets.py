"""How an object store is reached: addresses, credentials, time limits, repeated requests, and what its errors mean in words.

No message here repeats what a server or a library said: addresses of uploads and answers to logins may hold keys.
"""

import errno
import importlib.metadata
import importlib.util
import os
import re
import uuid
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common import manifest
from common.refusal import Refusal

NEEDED = "write, read, list and delete there"  # what an account has to be allowed
SLOWEST = 2e6  # bytes a second: what a large object adds to the time within which it is tried again


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for; seconds, but for the two numbers of attempts. Waits double up to the longest, with jitter."""

    connect: float = 15
    stall: float = 60  # without a byte of an answer
    request: float = 600  # one request, which moves at most one part
    request_attempts: int = 5  # of one request, so that a large object does not begin anew for a passing fault
    attempts: int = 6  # of a whole object
    total: float = 900  # after which a whole object is not begun again
    first_wait: float = 1
    longest_wait: float = 60


PATIENT = Patience()
CHECKING = Patience(connect=5, stall=8, request=15, request_attempts=2, attempts=2, total=20, first_wait=0.5, longest_wait=1)


class StorageError(Refusal):
    """What a store did not take or give, in one sentence, after everything that may be tried again was."""


class Damaged(Exception):
    """What came or arrived is not what was sent; trying again helps. Its text ends a sentence."""


def parse(uri):
    """(scheme, "bucket/prefix" or path) of `uri`; `Refusal` for what is no address of a store, or needs a package that is missing."""
    scheme, _, rest = str(uri).partition("://")
    rest = rest.rstrip("/")
    if scheme == "file" and rest.startswith("/"):
        return scheme, rest
    if scheme not in ("gs", "s3") or not re.fullmatch(r"[a-z0-9][a-z0-9._-]+(/[^/]+)*", rest):
        raise Refusal(f"{masked(uri)} is no address of a store; write gs://bucket/prefix, s3://bucket/prefix or file:///path")
    package = {"gs": "gcsfs", "s3": "s3fs"}[scheme]
    if importlib.util.find_spec(package) is None:
        raise Refusal(f"{uri} needs {package}, which is not installed: pip install {package}=={importlib.metadata.version('fsspec')}")
    return scheme, rest


def masked(uri):
    """`uri` without what stands before an @, where people put keys; these may hold slashes."""
    return re.sub(r"^([a-z0-9]*://)?.*@", r"\1…@", str(uri), flags=re.DOTALL)


def connect(scheme, patience):
    """The fsspec file system for `scheme`, with these limits and no caches. Looks for credentials; asks the store nothing."""
    if scheme == "gs":
        return _gcs(patience)
    if scheme == "s3":
        import s3fs

        limits = {"connect_timeout": patience.connect, "read_timeout": patience.stall}
        retries = {"max_attempts": patience.request_attempts, "mode": "standard"}
        # Not asked for a CRC32C at upload: s3fs does not pass those of the parts on at the end, which S3 refuses (fsspec/s3fs#672).
        return s3fs.S3FileSystem(config_kwargs={**limits, "retries": retries}, use_listings_cache=False, skip_instance_cache=True)
    import fsspec

    return fsspec.filesystem("file")


def _gcs(patience):
    import aiohttp
    import gcsfs
    from tenacity import AsyncRetrying

    once = gcsfs.GCSFileSystem._request.__wrapped__

    class Gcs(gcsfs.GCSFileSystem):
        """gcsfs has no time limit, and its own six attempts log addresses of uploads; here one library repeats everything."""

        async def _request(self, *arguments, **options):
            repeat = AsyncRetrying(**_rules(patience, patience.request_attempts, _is_passing))
            return await repeat(once, self, *arguments, **options)

    limits = aiohttp.ClientTimeout(total=patience.request, sock_connect=patience.connect, sock_read=patience.stall)
    return Gcs(token=_google_credentials(), requests_timeout=limits, use_listings_cache=False, skip_instance_cache=True)


def _google_credentials():
    """What Google's own library finds; "anon" for an emulator or where there are none: public buckets want none."""
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return "anon"
    import google.auth
    import google.auth.exceptions

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about quota projects, which storage does not need
            return google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])[0]
    except (google.auth.exceptions.GoogleAuthError, ValueError, OSError):
        named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        if not named:
            return "anon"
        wrong = "holds no Google credentials" if os.path.exists(named) else "does not exist"
        raise Refusal(f"GOOGLE_APPLICATION_CREDENTIALS is {named}, which {wrong}; name an account's JSON key file, or unset it") from None


def stat(fs, scheme, path):
    """(size in bytes, CRC32C in base64 or None where the store reports none of the whole object); FileNotFoundError without one."""
    if scheme == "s3":
        bucket, _, key = path.partition("/")
        answer = fs.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        whole = answer.get("ChecksumType") == "FULL_OBJECT"
        return answer["ContentLength"], answer.get("ChecksumCRC32C") if whole else None
    found = fs.info(path)
    if found["type"] != "file":
        raise FileNotFoundError(path)
    return found["size"], found.get("crc32c")


@contextmanager
def writing(fs, scheme, path, part):
    """A file to write the object `path` to, in requests of `part` bytes; it comes to be at the end, and not after an exception."""
    if scheme == "file":
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        manifest.sync_directory(target.parent)
        return
    out = fs.open(path, "wb", block_size=part)
    try:
        yield out
        out.close()
    except BaseException:
        out.closed = True  # or the end of this object would store what came so far
        if scheme == "s3":  # parts cost money until they are dropped; those of GCS end by themselves
            with suppress(Exception):
                out.discard()
        raise


def create(fs, scheme, path, data):
    """Write the bytes `data` as the object `path` if there is none; an exception, the library's own, where there is one."""
    if scheme != "file":
        fs.pipe_file(path, data, mode="create")  # ifGenerationMatch=0 of GCS, If-None-Match of S3: the server decides
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        manifest.write_whole(whole, data)
        os.link(whole, path)  # whoever finds the name finds the content
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        with path.open("xb") as out:
            out.write(data)
    finally:
        whole.unlink(missing_ok=True)
    manifest.sync_directory(path.parent)


def persist(what, operation, patience, size=0, sentence=None):
    """`operation()`, again and again while that may help: attempts and time are bounded, the waits between random and growing.

    Raises a `Refusal` of the operation as it is, anything else as StorageError: `sentence(error)`, else `what` and why in words.
    """
    from tenacity import Retrying

    try:
        return Retrying(**_rules(patience, patience.attempts, _may_help, patience.total + size / SLOWEST))(operation)
    except Refusal:
        raise
    except Exception as error:
        raise StorageError(sentence(error) if sentence else f"{what}: {_words(error)}") from None


def _rules(patience, attempts, worth_it, seconds=None):
    from tenacity import retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

    stop = stop_after_attempt(attempts) | stop_after_delay(seconds or patience.total)
    wait = wait_random_exponential(multiplier=patience.first_wait, max=patience.longest_wait)
    return {"stop": stop, "wait": wait, "retry": retry_if_exception(worth_it), "reraise": True}


def _status(error):
    """The HTTP status behind `error`, None where there is none."""
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):
        return 403
    if isinstance(error, FileNotFoundError):
        return 404
    if type(error).__name__ == "ProxyError":  # gcsfs's name for it
        return 502
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return 401
    found = str(getattr(error, "code", None) or getattr(error, "status", None) or "")
    return int(found) if found.isdigit() else None


def _is_passing(error):
    """Faults of a single request: the server is busy, the connection broke, nothing came in time."""
    import asyncio

    import aiohttp
    import requests

    if _status(error) is not None:
        return _status(error) in (408, 429) or 500 <= _status(error) <= 504
    return isinstance(error, (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError, requests.RequestException))


def _may_help(error):
    """False for what stays as it is however often one tries: refusals, and disks that are full or may not be written.

    401 may pass: it is also what becomes of a login server that does not answer.
    """
    final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)
    if isinstance(error, (Refusal, ImportError)) or not isinstance(error, Exception):  # Ctrl-C is no fault
        return False
    return _status(error) != 403 and getattr(error, "errno", None) not in final


def _words(error):
    """Why, in words that repeat nothing of what a server said."""
    status, number = _status(error), getattr(error, "errno", None)
    if isinstance(error, ImportError):
        return f"the Python package {error.name or 'that it needs'} cannot be imported here"
    if isinstance(error, Damaged):
        return f"{error}, again and again"
    if number and isinstance(error, OSError) and not isinstance(error, ConnectionError) and type(error).__module__ == "builtins":
        return os.strerror(number)
    if status in (401, 403):
        return f"the store refuses it (HTTP {status}); look at the credentials and the permissions of the account"
    if status == 404:
        return "the store has no such bucket or object (HTTP 404)"
    if status:
        return f"the store answers with HTTP {status}, again and again"
    return f"it fails again and again ({type(error).__name__})"


def refusal(uri, scheme, verb, error):
    """The sentence with which a training that needs the store `uri` does not start, since `verb` (write, read, …) failed."""
    status = _status(error)
    bucket = uri.partition("://")[2].partition("/")[0]
    if scheme == "file":
        reason = "there is no such directory" if status == 404 else _words(error)
        return f"{uri}: {reason}, so this process cannot {verb} there; mend that or name another directory"
    if status in (401, 403):
        how = {
            "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may",
            "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to an account that may",
        }[scheme]
        if status == 401:
            return f"{uri} wants a login, and none was found here or it is not accepted (HTTP 401); {how} {NEEDED}"
        return f"{uri} does not let this account {verb} objects (HTTP 403); {how} {NEEDED}"
    if status == 404:
        return f"the bucket {bucket} of {uri} does not exist (HTTP 404); create it, or correct the address"
    return f"{uri} cannot be reached: {_words(error)}; check the network of this machine and the address"
