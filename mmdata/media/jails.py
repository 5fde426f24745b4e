"""A jail for each thread that decodes: jails are not shared by threads at once."""

import threading

from mmdata.media.jail import Jail


class Jails:
    """Each is started when its thread's first untrusted image comes."""

    def __init__(self) -> None:
        self._jails: dict[int, Jail] = {}

    def get(self) -> Jail:
        """Return this thread's jail."""
        return self._jails.setdefault(threading.get_ident(), Jail())

    def close(self) -> None:
        """End their children."""
        while self._jails:
            self._jails.popitem()[1].close()

    def forget(self) -> None:
        """Leave the children to the process that this one was forked from."""
        self._jails = {}
