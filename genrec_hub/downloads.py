"""Large public files onto the disk: resumed where a transfer broke off, checked, and never half there under their own name."""

import hashlib
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CHUNK = 2**20
LEDGER = "checksums.json"
"""In the folder of the downloads: file name -> address, size and SHA-256 of what came the first time."""
Progress = Callable[[int, int], None]


def download(
    url: str, folder: str | Path, checksum: str = "", progress: Progress | None = None, attempts: int = 5, patience: float = 2.0
) -> Path:
    """Fetches a file into a folder and returns its path; what is there and whole is not fetched again.

    The bytes go to `<name>.part`. After a break, in this run or a later one, the rest is asked for by Range, on condition that the file
    has not changed meanwhile (If-Range); a server that answers with the whole file is read from the start. Size and checksum are held
    against what the server and the caller say. Few sources publish checksums: without one, the first download's SHA-256 goes into
    `checksums.json`, and a later download of another content is refused.

    Args:
        url: http(s) address.
        folder: where the file goes; made when it is missing.
        checksum: "sha256:<hex>" or "md5:<hex>", where the source publishes one.
        progress: called with (bytes there, bytes in all; 0 = not known).
        attempts: tries in a row that bring nothing before giving up.
        patience: seconds before the second of them, doubled with every further one.

    Raises:
        OSError: when the server does not give the file.
        ValueError: when what came is not what was promised; the part is deleted.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / url.rsplit("/", 1)[-1].split("?")[0]
    part, about = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    ledger = _read(folder / LEDGER)
    if path.is_file() and ledger.get(path.name, {}).get("size") == path.stat().st_size and ledger[path.name]["url"] == url:
        return path
    failed = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _fetch(url, part, about, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise OSError(f"{url} is not to be had ({error.code} {error.reason}): look the address up at the source.") from None
            trouble: Exception = error
        except (OSError, http.client.HTTPException) as error:
            trouble = error
        failed = 0 if (part.stat().st_size if part.is_file() else 0) > before else failed + 1
        if failed >= attempts:
            raise OSError(f"{url} broke off {attempts} times in a row ({trouble}): start again later, what is there is kept.") from None
        logger.warning("%s broke off (%s): going on from byte %d.", url, trouble, part.stat().st_size if part.is_file() else 0)
        time.sleep(patience * 2 ** max(0, failed - 1) if failed else 0)
    kind, _, expected = checksum.partition(":")
    found = _digest(part, kind or "sha256")
    known = ledger.get(path.name, {})
    if not checksum and known.get("url") == url:
        expected = known["sha256"]
    if expected and found != expected.lower():
        part.unlink()
        about.unlink(missing_ok=True)
        told = f"{kind} {expected}" if checksum else f"sha256 {expected}, as it was the first time ({LEDGER})"
        raise ValueError(
            f"{url} came with {kind or 'sha256'} {found}, expected {told}: fetch it again, or look whether the source has changed."
        )
    ledger[path.name] = {"url": url, "size": part.stat().st_size, "sha256": found if kind in ("", "sha256") else _digest(part, "sha256")}
    part.replace(path)
    about.unlink(missing_ok=True)
    (folder / LEDGER).write_text(json.dumps(ledger, indent=2, sort_keys=True) + "\n")
    return path


def _fetch(url: str, part: Path, about: Path, progress: Progress | None) -> None:
    """One request: appends to the part, or begins it anew when the file has changed or the server knows no ranges."""
    start, known = part.stat().st_size if part.is_file() else 0, _read(about)
    if known.get("url") != url or not known.get("validator"):
        start = 0
    headers = {"User-Agent": "genrec_hub", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": known["validator"]}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left, or more is there than the file holds
            total = error.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(start):
                return
            part.unlink()
            raise OSError(f"{start} bytes were there of a file of {total or 'unknown size'}") from None
        raise
    with answer:
        resumed = answer.status == 206
        length = int(answer.headers.get("Content-Length") or 0)
        whole = (start if resumed else 0) + length if length else 0
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        about.write_text(json.dumps({"url": url, "validator": "" if validator.startswith("W/") else validator}))
        with part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                if progress is not None:
                    progress(file.tell(), whole)
            there = file.tell()
    if whole and there < whole:
        raise OSError(f"{there} of {whole} bytes came")


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):  # not there, or half written
        return {}


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
