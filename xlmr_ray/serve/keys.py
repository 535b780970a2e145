"""Bearer keys: several, from a file or the environment, and new ones without a restart."""

import hmac
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from xlmr_ray.errors import UserError
from xlmr_ray.serve.requests import Unauthorized
from xlmr_ray.serve.settings import KeysSection

log = logging.getLogger(__name__)

# What needs no key: what load balancers and Prometheus ask.
PUBLIC = ("/health", "/ready", "/metrics")
# A file is looked at again after so many seconds.
AGAIN = 1.0


class Keys:
    """The keys that are in force. A file that cannot be read any more, or holds none, leaves the old ones in force."""

    def __init__(self, settings: KeysSection, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UserError where there is no key, or not the file."""
        self.settings, self.clock = settings, clock
        self.wanted = settings.file is not None or settings.environment is not None
        self.looked, self.stamp = clock(), self.stamp_of_file()
        self.keys = self.read()
        if self.wanted and not self.keys:
            raise UserError(f"keys: no key in {settings.file or settings.environment}: put one in, or leave `keys` out")

    def check(self, authorization: str | None) -> None:
        """Raises Unauthorized unless the header is `Bearer KEY` with one of the keys."""
        if not self.wanted:
            return
        self.renew()
        scheme, _, given = (authorization or "").strip().partition(" ")
        offered = given.strip().encode()
        # All of them are compared, in constant time each: how long it takes tells nothing.
        matches = [hmac.compare_digest(offered, key) for key in self.keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise Unauthorized("no valid key: send Authorization: Bearer KEY")

    def renew(self) -> None:
        """Reads the file again where it has changed."""
        if self.settings.file is None or self.clock() - self.looked < AGAIN:
            return
        self.looked = self.clock()
        stamp = self.stamp_of_file()
        if stamp == self.stamp:
            return
        try:
            keys = self.read()
        except UserError as error:
            log.error("%s; the old keys stay in force", error)
            return
        if not keys:
            log.error("keys: %s holds no key; the old ones stay in force", self.settings.file)
            return
        self.keys, self.stamp = keys, stamp
        log.info("keys: %d read again", len(keys))

    def stamp_of_file(self) -> tuple[int, int, int] | None:
        if self.settings.file is None:
            return None
        try:
            stat = Path(self.settings.file).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def read(self) -> list[bytes]:
        """One key per line of the file, which may begin with a byte order mark, `#` before remarks; those of the
        environment separated by commas or spaces.
        """
        found: list[str] = []
        if self.settings.file is not None:
            try:
                lines = Path(self.settings.file).read_text("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or type(error).__name__
                raise UserError(f"keys.file {self.settings.file}: cannot be read: {why}") from None
            found += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if self.settings.environment is not None:
            found += os.environ.get(self.settings.environment, "").replace(",", " ").split()
        return [key.encode() for key in found]
