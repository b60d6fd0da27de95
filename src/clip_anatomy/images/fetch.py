"""One picture from the web, and no more than that: http(s) only, bounded in time and in bytes."""

import time

from clip_anatomy.errors import BadImage
from clip_anatomy.network import TooLargeError, opener, read_bounded

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
    from http.client import HTTPException
    from urllib import request
    from urllib.error import HTTPError

    if not url.lower().startswith(("http://", "https://")):
        raise BadImage(f"{url[:200]}: only http and https addresses are fetched. Download the file and type its path")
    deadline = time.monotonic() + timeout
    try:
        query = request.Request(url, headers={"User-Agent": "clip-anatomy"})
        with opener(timeout, request.HTTPRedirectHandler()).open(query, timeout=timeout) as answer:
            return read_bounded(answer, largest, deadline)
    except TooLargeError as error:
        raise BadImage(
            f"{url[:200]}: {error.args[0]:,} bytes or more, and a fetched picture may have {largest:,}. "
            "Download the file and type its path"
        ) from error
    except HTTPError as error:
        with error:
            raise BadImage(
                f"{url[:200]}: the server answered {error.code} {error.reason}. Type an address that opens in a browser"
            ) from error
    except (OSError, HTTPException, ValueError) as error:
        late = time.monotonic() > deadline and "timed out" not in str(error)
        raise BadImage(
            f"{url[:200]}: cannot be fetched ({f'not finished after {timeout:g} s' if late else error}). Check the address, or "
            "download the file and type its path"
        ) from error
