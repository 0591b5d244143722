"""The paths that Serve's proxies answer or guard themselves."""

READY_PATH = "/readyz"
PAGE_PATH = "/"
DRAIN_PATH = "/-/drain"
# What load balancers ask, and the page, which asks for a key itself: open to everybody, and however busy the proxy is.
OPEN_PATHS = {"/healthz", READY_PATH, "/-/healthz", PAGE_PATH}
LOCAL_PATHS = {"/-/routes"}  # Serve's own, for this machine alone


def path_of(scope: dict) -> str:
    """Returns a request's path without `http_options.root_path`, which uvicorn puts before what a gateway passes on."""
    return scope["path"].removeprefix(scope.get("root_path", "")) or "/"
