"""One picture from the web, and no more than that: http(s) only, bounded in time and in bytes."""

import time

from clip_anatomy.errors import BadImage

TIMEOUT_SECONDS = 15.0
LARGEST_BYTES = 64 * 2**20


def fetch(url: str, *, timeout: float = TIMEOUT_SECONDS, largest: int = LARGEST_BYTES) -> bytes:
    """Download one picture.

    Args:
        url: an http or https address. Redirects are followed, to http and https only.
        timeout: seconds for the whole download; also for each wait on the network.
        largest: bytes; a longer answer is given up as soon as this is known.

    Returns:
        The bytes of the answer, not yet looked at.

    Raises:
        BadImage: another scheme, no answer, an error status, too slow or too large.
    """
    # Only whoever asks for a URL pays for importing ssl and its friends.
    from http.client import HTTPException
    from urllib import request
    from urllib.error import HTTPError

    if not url.lower().startswith(("http://", "https://")):
        raise BadImage(f"{url[:200]}: only http and https addresses are fetched. Download the file and type its path")
    # The default opener also reads file:// and ftp://: a picture's address must not reach this machine's files.
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPRedirectHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPErrorProcessor,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    deadline = time.monotonic() + timeout
    data = bytearray()
    try:
        asked = request.Request(url, headers={"User-Agent": "clip-anatomy"})
        with opener.open(asked, timeout=timeout) as answer:
            promised = int(answer.headers.get("Content-Length") or 0)
            if promised > largest:
                raise _too_large(url, promised, largest)
            while chunk := answer.read1(2**16):
                data += chunk
                if len(data) > largest:
                    raise _too_large(url, len(data), largest)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {timeout:g} s")
            if len(data) < promised:
                raise OSError(f"the connection ended after {len(data):,} of {promised:,} bytes")
    except HTTPError as error:
        with error:
            raise BadImage(
                f"{url[:200]}: the server answered {error.code} {error.reason}. Type an address that opens in a browser"
            ) from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(
            f"{url[:200]}: cannot be fetched ({error}). Check the address, or download the file and type its path"
        ) from error
    return bytes(data)


def _too_large(url: str, size: int, largest: int) -> BadImage:
    return BadImage(
        f"{url[:200]}: {size:,} bytes or more, and a fetched picture may have {largest:,}. "
        "Download the file and type its path"
    )
