"""Fetch untrusted urls: the client, the address guard, manners."""

from mmdata.net.answers import Failure, Fetched
from mmdata.net.fetch import Fetcher, ReplayTransport, Transport
from mmdata.net.guard import Allowance, Guard
from mmdata.net.limits import Limits

__all__ = ["Allowance", "Failure", "Fetched", "Fetcher", "Guard", "Limits", "ReplayTransport", "Transport"]
