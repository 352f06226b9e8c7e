"""The deployment behind Ray's HTTP port: relays requests to this node's router and its bytes back, unread."""

import asyncio
import contextlib
import time

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from manta_ray.router_host import RouterLease

# Of one hop only (RFC 9110, 7.6.1); everything else passes.
_HOP_HEADERS = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
                "upgrade", "host", "content-length", "server", "date"}
DIRECT_PORT = 8001


def _passed(headers) -> dict:
    return {k: v for k, v in headers.items() if k.lower() not in _HOP_HEADERS}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "ServiceUnavailableError", "param": None, "code": status}},
                        status, {"Retry-After": "1"} if status == 503 else None)


class Ingress:
    async def __init__(self, plan: dict, **ranks):
        """`ranks` are the handles of the roles' deployments: Serve must see that this one needs them."""
        self._lease = RouterLease(serve.get_replica_context().app_name, plan)
        await self._lease.take()
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5), auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0, force_close=False))

    async def __call__(self, request: Request) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", "") or "")
        if path == "/manta/endpoints":  # for a load balancer: where tokens need not pass through Python
            return JSONResponse(await self._lease.endpoints())
        query = f"?{request.url.query}" if request.url.query else ""
        body = await request.body()
        try:
            answer = await self._session.request(
                request.method, self._lease.url + path + query, data=body, headers=_passed(request.headers))
        except aiohttp.ClientError as e:
            await self._lease.take()  # the router of this node is being replaced
            return _error(503, f"the router of this node does not answer ({e}); try again")
        relay = StreamingResponse(self._bytes(answer), answer.status, _passed(answer.headers))
        return relay

    @staticmethod
    async def _bytes(answer: aiohttp.ClientResponse):
        try:
            async for piece in answer.content.iter_any():
                yield piece
        finally:
            answer.close()  # the client left: the router then aborts the request

    async def check_health(self) -> None:
        await self._lease.check()

    async def __del__(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError):
            await self._session.close()
        await self._lease.give_back()


def ingress_deployment(model_id: str, args: dict, roles: dict) -> serve.Application:
    """`roles`: {role: (bound deployment, RoleConfig, policy)}."""
    options = dict(args.get("ingress_deployment_config") or {})
    options.setdefault("max_ongoing_requests", 10**9)
    options.setdefault("graceful_shutdown_timeout_s", 30)
    actor = dict(options.get("ray_actor_options") or {})
    actor.setdefault("num_cpus", 0)
    options["ray_actor_options"] = actor
    port = int(args.get("direct_port", DIRECT_PORT))
    plan = {
        "built": time.time(), "model_id": model_id, "direct_port": port,
        "roles": {role: {"group": config.group, "dp_size": config.dp_size, "ranks_per_node": config.ranks_per_node, "policy": policy,
                         "model_source": config.model_source, "tokenizer_source": config.tokenizer_source}
                  for role, (_, config, policy) in roles.items()}}
    handles = {role: bound for role, (bound, _, _) in roles.items()}
    # The name is what `serve status` shows: the port that bypasses Python is a part of it.
    name = f"Ingress:direct-port-{port}"
    return serve.deployment(Ingress, name=name, **options).bind(plan, **handles)
