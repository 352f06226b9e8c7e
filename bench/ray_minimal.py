"""The least that streams through Ray Serve: what bench/ray_bench.py holds our front door against."""

import asyncio

from ray import serve
from starlette.responses import StreamingResponse

CHUNK = b'data: {"choices": [{"index": 0, "text": "token"}]}\n\n'


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Minimal:
    async def __call__(self, request):
        body = await request.json()
        return StreamingResponse(self._stream(int(body["max_tokens"])), media_type="text/event-stream")

    async def _stream(self, num_tokens):
        for _ in range(num_tokens):
            await asyncio.sleep(0)
            yield CHUNK
        yield b"data: [DONE]\n\n"


def build(_args):
    return Minimal.bind()
