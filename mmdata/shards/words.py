"""img2dataset's words for our outcomes, and back.

Decided here: where img2dataset has a message for what happened, that is the message, letter for letter, so that scripts
which count `status_dict` go on working; where it has none, the outcome's own name is. Nothing that differs between two runs
(an address, a number of bytes, a duration) enters a message, so equal responses give equal shards.
"""

import re
from http import HTTPStatus

SUCCESS = "success"
NOT_DOWNLOADED = "failed_to_download"
NOT_RESIZED = "failed_to_resize"

DECODE = "Image decoding error"
_LOOP = (
    "HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.\n"
    "The last 30x error message was:\nFound"
)
# By outcome: status and message. `HTTP` stands for the line that urllib makes of a status code.
WORDS: dict[str, tuple[str, str | None]] = {
    "ok": (SUCCESS, None),
    "bad_row": (NOT_DOWNLOADED, "unknown url type"),
    "blocked_scheme": (NOT_DOWNLOADED, "<urlopen error unknown url type>"),
    "blocked_address": (NOT_DOWNLOADED, "blocked_address"),
    "blocked_port": (NOT_DOWNLOADED, "blocked_port"),
    "denylisted": (NOT_DOWNLOADED, "denylisted"),
    "robots": (NOT_DOWNLOADED, "robots"),
    "opted_out": (NOT_DOWNLOADED, "Use of image disallowed by X-Robots-Tag directive"),
    "dns": (NOT_DOWNLOADED, "<urlopen error [Errno -2] Name or service not known>"),
    "tls": (NOT_DOWNLOADED, "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>"),
    "timeout_connect": (NOT_DOWNLOADED, "<urlopen error timed out>"),
    "timeout_headers": (NOT_DOWNLOADED, "timed out"),
    "timeout_idle": (NOT_DOWNLOADED, "The read operation timed out"),
    "timeout_total": (NOT_DOWNLOADED, "timeout_total"),
    "too_slow": (NOT_DOWNLOADED, "too_slow"),
    "conn_reset": (NOT_DOWNLOADED, "[Errno 104] Connection reset by peer"),
    "short_body": (NOT_DOWNLOADED, "IncompleteRead"),
    "bad_response": (NOT_DOWNLOADED, "bad_response"),
    "bad_encoding": (NOT_DOWNLOADED, "bad_encoding"),
    "too_large": (NOT_DOWNLOADED, "too_large"),
    "redirect_limit": (NOT_DOWNLOADED, _LOOP),
    "http_4xx": (NOT_DOWNLOADED, "HTTP"),
    "http_5xx": (NOT_DOWNLOADED, "HTTP"),
    "throttled": (NOT_DOWNLOADED, "HTTP"),
    "not_media": (NOT_RESIZED, DECODE),
    "unsupported_format": (NOT_RESIZED, DECODE),
    "truncated_media": (NOT_RESIZED, DECODE),
    "too_many_pixels": (NOT_RESIZED, "image area too large"),
    "decode_error": (NOT_RESIZED, DECODE),
    "decoder_timeout": (NOT_RESIZED, "decoder_timeout"),
    "decoder_oom": (NOT_RESIZED, "decoder_oom"),
    "decoder_crashed": (NOT_RESIZED, "decoder_crashed"),
    # What a user did not want of the original; the decoder says it by these names.
    "image_too_small": (NOT_RESIZED, "image too small"),
    "image_area_too_large": (NOT_RESIZED, "image area too large"),
    "aspect_ratio_too_large": (NOT_RESIZED, "aspect ratio too large"),
    "hash_mismatch": (NOT_DOWNLOADED, "hash mismatch"),
    # Never a download's: the row was fetched, or was never asked for.
    "split": (NOT_DOWNLOADED, "split"),
    "sample_incomplete": (NOT_DOWNLOADED, "sample_incomplete"),
    "scorer_error": (NOT_RESIZED, "scorer_error"),
}
_REFUSAL = re.compile(r"refused|connect call failed|errno 111", re.IGNORECASE)
_REFUSED = "<urlopen error [Errno 111] Connection refused>"
_CODE = re.compile(r"\bHTTP (\d{3})\b")

# What its messages begin with, first hit wins; it does not tell a truncated image from one that is none.
_MEANT: tuple[tuple[str, str], ...] = (
    ("Use of image disallowed", "opted_out"), ("hash mismatch", "hash_mismatch"), ("HTTP Error 429", "throttled"),
    ("HTTP Error 4", "http_4xx"), ("HTTP Error 5", "http_5xx"), ("HTTP Error 3", "redirect_limit"),
    ("image too small", "image_too_small"), ("image area too large", "image_area_too_large"),
    ("aspect ratio too large", "aspect_ratio_too_large"), ("<urlopen error timed out", "timeout_connect"),
    ("The read operation timed out", "timeout_idle"), ("timed out", "timeout_headers"),
    ("<urlopen error [SSL", "tls"), ("[SSL", "tls"), ("<urlopen error [Errno -", "dns"), ("<urlopen error no host", "bad_row"),
    ("<urlopen error unknown url type", "blocked_scheme"), ("unknown url type", "bad_row"), ("IncompleteRead", "short_body"),
    ("<urlopen error [Errno", "conn_reset"), ("[Errno", "conn_reset"), ("Remote end closed", "conn_reset"),
    ("URL can't contain", "bad_row"), ("nonnumeric port", "bad_row"),
)  # fmt: skip


def words(outcome: str, detail: str = "") -> tuple[str, str | None]:
    """Return img2dataset's `(status, error_message)` for an outcome; one that is not in WORDS is its own message.

    detail  what the fetcher said of it; only a status code or a refused connection is taken from it
    """
    status, message = WORDS.get(outcome, (NOT_DOWNLOADED, outcome))
    if message == "HTTP":
        return status, _http_error(detail, outcome)
    if outcome == "conn_reset" and _REFUSAL.search(detail):
        return status, _REFUSED
    return status, message


def outcome_of(status: str, message: str | None) -> str | None:
    """Return the outcome that an `(status, error_message)` of ours or of img2dataset's means; null for a success."""
    if status == SUCCESS:
        return None
    text = message or ""
    if text in WORDS and text != "ok":
        return text
    default = "decode_error" if status == NOT_RESIZED else "bad_response"
    return next((outcome for start, outcome in _MEANT if text.startswith(start)), default)


def _http_error(detail: str, outcome: str) -> str:
    found = _CODE.search(detail)
    if found is None:
        return outcome
    code = int(found.group(1))
    phrase = HTTPStatus(code).phrase if code in HTTPStatus._value2member_map_ else ""
    return f"HTTP Error {code}: {phrase}"


def words_table() -> str:
    """Return the words of every outcome as a table in Markdown."""
    lines = ["| outcome | status | error_message |", "|---|---|---|"]
    for outcome, (status, message) in WORDS.items():
        text = {None: "null", "HTTP": "`HTTP Error 404: Not Found` and the like"}.get(message, f"`{message}`").replace("\n", " ")
        lines.append(f"| `{outcome}` | `{status}` | {text} |")
    return "\n".join(lines) + "\n"
