"""The deployment behind Ray's HTTP port: relays requests to this node's router and its bytes back, unread."""

import asyncio
import contextlib
import os
import time

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from manta_ray.config import check_keys, count
from manta_ray.router_host import RouterLease

# Of one hop only (RFC 9110, 7.6.1); everything else passes.
_HOP_HEADERS = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
                "upgrade", "host", "content-length", "server", "date"}
_ADDED_BY_SERVE = {"x-request-id"}  # the same one: the router takes it from the request
_DIRECT_PORT = 8001
# A router that is being replaced is waited for; nothing has been sent to it yet, so nothing is done twice.
_PATIENCE_S = 15.0


def _passed(headers) -> dict:
    return {k: v for k, v in headers.items() if k.lower() not in _HOP_HEADERS}


def _unavailable(message: str) -> JSONResponse:
    error = {"message": message, "type": "ServiceUnavailableError", "param": None, "code": 503}
    return JSONResponse({"error": error}, 503, {"Retry-After": "1"})


class Ingress:
    async def __init__(self, plan: dict, **ranks):
        """`ranks` are the handles of the roles' deployments: Serve must see that this one needs them."""
        self._lease = RouterLease(serve.get_replica_context().app_name, plan)
        await self._lease.ready()
        # ssl=False: TLS or not, it is this node's own router.
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5), auto_decompress=False,
                                              connector=aiohttp.TCPConnector(limit=0, ssl=False),
                                              cookie_jar=aiohttp.DummyCookieJar())  # clients' cookies are theirs

    async def __call__(self, request: Request) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", "") or "")
        if path == "/manta/endpoints":  # for a load balancer: where tokens need not pass through Python
            return JSONResponse({"direct": await self._lease.routers(), "here": self._lease.url, "pid": self._lease.pid})
        query = f"?{request.url.query}" if request.url.query else ""
        body = await request.body()
        try:
            answer = await self._send(request.method, path + query, body, _passed(request.headers))
        except (aiohttp.ClientError, asyncio.TimeoutError) as e:
            return _unavailable(f"the router of this node does not answer ({e or type(e).__name__}); try again")
        headers = {k: v for k, v in _passed(answer.headers).items() if k.lower() not in _ADDED_BY_SERVE}
        return StreamingResponse(self._bytes(answer), answer.status, headers)

    async def _send(self, method: str, path: str, body: bytes, headers: dict) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE_S
        while True:
            try:
                if self._lease.url is None:
                    await asyncio.wait_for(self._lease.ready(), _PATIENCE_S)
                return await self._session.request(method, self._lease.url + path, data=body, headers=headers)
            except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError):
                if loop.time() > end:
                    raise
                await asyncio.sleep(0.1)

    @staticmethod
    async def _bytes(answer: aiohttp.ClientResponse):
        try:
            async for piece in answer.content.iter_any():
                yield piece
        finally:
            answer.close()  # the client left: the router then aborts the request

    async def check_health(self) -> None:
        self._lease.check()

    async def __del__(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError):
            await self._session.close()
        await self._lease.give_back()


def ingress_deployment(args: dict, roles: dict) -> serve.Application:
    """`roles`: {role: (bound deployment, RoleConfig, policy)}; the last one answers the clients."""
    check_keys("args.ingress_deployment_config", args.get("ingress_deployment_config") or {}, {
        "num_replicas", "autoscaling_config", "ray_actor_options", "placement_group_bundles", "placement_group_strategy",
        "max_replicas_per_node", "max_ongoing_requests", "max_queued_requests", "graceful_shutdown_timeout_s",
        "graceful_shutdown_wait_loop_s", "health_check_period_s", "health_check_timeout_s", "logging_config"})
    options = dict(args.get("ingress_deployment_config") or {})
    options.setdefault("max_ongoing_requests", 10**9)
    options.setdefault("graceful_shutdown_timeout_s", 600)
    options["ray_actor_options"] = {"num_cpus": 0, **(options.get("ray_actor_options") or {})}
    port = count("args.direct_port", args.get("direct_port", os.environ.get("MANTA_RAY_DIRECT_PORT", _DIRECT_PORT)), 0)
    last = list(roles.values())[-1][1]
    policies = [f"--{'prefill' if role == 'prefill' and len(roles) > 1 else 'decode'}-policy={policy}"
                for role, (_, _, policy) in roles.items()]
    plan = {
        "built": time.time(), "direct_port": port, "environment": last.environment,
        "options": [last.model_source, f"--served-model-name={last.model_id}", *last.router_options(), *policies],
        "roles": {role: {"group": config.group, "dp_size": config.dp_size, "ranks_per_node": config.ranks_per_node}
                  for role, (_, config, _) in roles.items()}}
    # The name is what `serve status` shows: the port that bypasses Python is a part of it.
    name = f"Ingress:direct-port-{port}" if port else "Ingress"
    return serve.deployment(Ingress, name=name, **options).bind(plan, **{role: bound for role, (bound, _, _) in roles.items()})
