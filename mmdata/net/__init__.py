"""Fetch untrusted urls: the client, the address guard, manners."""

from mmdata.net.answers import Failure, Fetched
from mmdata.net.fetch import TRANSIENT, Fetcher, Policy, ReplayTransport, Transport, open_fetcher
from mmdata.net.guard import Allowance, Guard
from mmdata.net.limits import Limits
from mmdata.net.optout import Signals

__all__ = [
    "TRANSIENT", "Allowance", "Failure", "Fetched", "Fetcher", "Guard", "Limits", "Policy", "ReplayTransport", "Signals",
    "Transport", "open_fetcher",
]  # fmt: skip
