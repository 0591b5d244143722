"""The paths that Serve's proxies answer or guard themselves."""

READY_PATH = "/readyz"
DRAIN_PATH = "/-/drain"
OPEN_PATHS = {"/healthz", READY_PATH, "/-/healthz"}  # what load balancers ask, without a key and however busy the proxy is
LOCAL_PATHS = {"/-/routes"}  # Serve's own, for this machine alone


def path_of(scope: dict) -> str:
    """Returns a request's path without `http_options.root_path`, which uvicorn puts before what a gateway passes on."""
    return scope["path"].removeprefix(scope.get("root_path", "")) or "/"
