"""What the dashboards and alerts ask of Prometheus, and a Prometheus to ask."""

import json
import re
import subprocess
import time
from contextlib import contextmanager, suppress

import requests
import yaml

from tests.conftest import ROOT
from tiny_audio.lab.ray_cli import free_port

MONITORING = ROOT / "cluster" / "monitoring"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((MONITORING / "dashboards").glob("*.json"))}
ALERTS = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"  # as prometheus.yml names it
COMPARISON = re.compile(r"\s*[<>]=?\s*[\d.e]+$")  # by which an alert says how much is too much


def panel_expressions(dashboard):
    """A dashboard's expressions, its variables filled in as Grafana would, and the labels that each one's legend names."""
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    expressions = {}
    for target in (target for panel in dashboard["panels"] for target in panel["targets"]):
        expression = target["expr"].replace("$__rate_interval", "1m")
        for name in variables:
            expression = expression.replace(f"${name}", ".*")
        assert "$" not in expression
        expressions[expression] = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    return expressions


def alert_value(alert):
    """What an alert compares with its limit."""
    return COMPARISON.sub("", alert["expr"])


@contextmanager
def prometheus(folder, discovery):
    """A Prometheus with the configuration of cluster/monitoring, once a second, of the Ray whose nodes are in `discovery`."""
    settings = (MONITORING / "prometheus.yml").read_text()
    assert DISCOVERY in settings
    settings = settings.replace(DISCOVERY, str(discovery)).replace("15s", "1s").replace("alerts.yml", f"{MONITORING}/alerts.yml")
    (folder / "prometheus.yml").write_text(settings)
    port = free_port(9090)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stderr=log)
    try:
        for _ in range(100):
            with suppress(requests.ConnectionError):
                if requests.get(f"http://127.0.0.1:{port}/-/ready", timeout=10).ok:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        server.terminate()
        server.wait()


def query(api, expression, at_s):
    """The result of a query at a moment: one {"metric": labels, "value": [time, text]} for each series."""
    return _asked(f"{api}/query", query=expression, time=at_s)


def finds(api, expression, labels, start_s, end_s):
    """Whether an expression found series between two moments, all of them with these labels."""
    series = _asked(f"{api}/query_range", query=expression, start=start_s, end=end_s, step=1)
    return bool(series) and all(labels <= one["metric"].keys() for one in series)


def _asked(url, **parameters):
    answer = requests.get(url, parameters, timeout=30).json()
    assert answer["status"] == "success", f"{parameters}: {answer}"
    return answer["data"]["result"]
