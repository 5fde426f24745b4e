"""What a well-formed answer is does not depend on how its bytes come in, and no bytes do more than fail."""

import asyncio
import random
from collections.abc import Callable

import pytest

from mmdata.net.wire import Reply
from tests.net.behaviours import jpeg
from tests.net.hostile import http

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "length": http(b"data" * 10, "X-One: 1", "x-one: 2"),
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\ndata\r\na;x=y\r\n0123456789\r\n0\r\nTrailer: z\r\n\r\n",
    "until close": OK + b"Content-Type: image/jpeg\r\n\r\nsome data",
    "folded": http(b"data", "X-Robots-Tag: all,\r\n noai"),
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + http(b"data"),
    "no body": b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
    "two lengths": http(b"data", "Content-Length: 5"),
    "bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\ndataXX\r\n",
    "control": http(b"data", "X: a\0b"),
    "more behind": http(b"data") + b"more",
    "too large": http(b"x" * 300),
    "not http": b"<html>hello</html>\r\n\r\n",
    "cut": http(b"data", length=100),
}


def read(pieces: list[bytes]) -> tuple[object, ...]:
    """Feed pieces, then end the connection; return all that can be told of the reply."""

    async def work() -> tuple[object, ...]:
        judged: list[int] = []
        judge: Callable[[Reply], None] = lambda reply: judged.append(reply.status)  # noqa: E731 - typed
        reply = Reply(judge, 200, asyncio.get_running_loop())
        for piece in pieces:
            if not reply.over:
                reply.feed(memoryview(piece), 1.0)
        reply.lost(None)
        assert reply.over
        assert reply.done.done()
        assert len(judged) <= 1
        failure = reply.failure
        said = (failure.outcome, failure.detail.partition("after")[0]) if failure else None
        return reply.status, dict(reply.headers), reply.body() if failure is None else b"", said

    return asyncio.run(work())


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_reads_the_same_however_it_is_cut(name: str) -> None:
    answer, draw = ANSWERS[name], random.Random(name)
    whole = read([answer])
    assert read([answer[place : place + 1] for place in range(len(answer))]) == whole
    for place in range(1, len(answer)):
        assert read([answer[:place], answer[place:]]) == whole
    for _ in range(20):
        cuts = sorted(draw.sample(range(1, len(answer)), 4))
        assert read([answer[begin:end] for begin, end in zip([0, *cuts], [*cuts, None], strict=True)]) == whole


@pytest.mark.parametrize("seed", range(3))
def test_no_mutation_does_more_than_fail(seed: int) -> None:
    draw, answers = random.Random(seed), [*ANSWERS.values(), http(jpeg(16, 16))]
    seen: set[object] = set()
    for _ in range(700):
        answer = bytearray(draw.choice(answers))
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(answer))
            kind = draw.randrange(4)
            if kind == 0:
                answer[place] = draw.randrange(256)
            elif kind == 1:
                del answer[place : place + draw.randint(1, 20)]
            elif kind == 2:
                answer[place:place] = draw.choice(
                    [b"\r\n", b"\0", b"\n", b": ", b"0\r\n\r\n", b"FFFFFFFF", b"\x80", bytes(answer[:40])]
                )
            else:
                answer[place:place] = answer[place : place + draw.randint(1, 60)]
            answer = answer or bytearray(b"x")
        _, _, body, said = read([bytes(answer)])
        assert isinstance(body, bytes)
        assert len(body) <= 200
        seen.add(said and said[0])  # type: ignore[index]
    assert {"bad_response", "short_body", None} <= seen <= {"bad_response", "short_body", "conn_reset", "too_large", None}
