"""Fetch untrusted urls: the client, the address guard, manners."""

from mmdata.net.fetch import Failure, Fetched, Fetcher, ReplayTransport, Transport
from mmdata.net.guard import Allowance, Guard
from mmdata.net.limits import Limits

__all__ = ["Allowance", "Failure", "Fetched", "Fetcher", "Guard", "Limits", "ReplayTransport", "Transport"]
