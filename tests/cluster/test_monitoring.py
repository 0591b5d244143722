"""cluster/monitoring and cluster/kuberay/monitoring: dashboards, alerts and what is scraped fit their schemas and our metrics."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.cluster.manifests import CLUSTER, SERVICES, TRAININGS, errors_of, of_kind, ray_of, templates_of
from tests.monitoring.expressions import ALERTS, DASHBOARDS, MONITORING, panel_expressions
from tiny_audio.monitoring.metrics import SERVING, TRAINING

OURS = {metric.exported: metric for metric in (*TRAINING, *SERVING)}
RAYS_LABELS = {"le", "deployment", "NodeAddress", "GpuIndex", "ip", "State", "dataset", "operator"}
each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (apt install prometheus)")


def expressions():
    yield from (expression for dashboard in DASHBOARDS.values() for expression in panel_expressions(dashboard))
    yield from (alert["expr"] for alert in ALERTS)


def test_what_is_asked_is_what_the_code_exports():
    asked = {
        re.sub("_(bucket|sum|count)$", "", name) if name not in OURS else name
        for expression in expressions()
        for name in re.findall(r"\bray_tiny_audio_\w+", expression)
    }
    assert asked == OURS.keys(), "asked for, but not in monitoring/metrics.py; or there, and shown nowhere"
    labels = {label for metric in (*TRAINING, *SERVING) for label in metric.labels} | RAYS_LABELS
    for expression in expressions():
        named = re.findall(r'(\w+)(?:=~?|!=)"', expression)
        named += [label for group in re.findall(r"(?:by|on) \(([\w, ]+)\)", expression) for label in group.split(", ")]
        assert set(named) <= labels, expression


@each_dashboard
def test_dashboards_fit_grafanas_schema(name):
    """Nothing of a dashboard is lost on its way through Grafana's own model, which leaves out what it does not know."""
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(DASHBOARDS[name]), cls=JSONEncoder))
    assert kept(DASHBOARDS[name], again) == DASHBOARDS[name]


def kept(wanted, got):
    """What of `wanted` is in `got`; fields that the model adds are left out."""
    if isinstance(wanted, dict):
        return {key: kept(value, got[key]) for key, value in wanted.items() if key in got}
    return [kept(*pair) for pair in zip(wanted, got, strict=False)] if isinstance(wanted, list) else got


@each_dashboard
def test_panels_do_not_overlap_and_say_what_they_show(name):
    places = set()
    for panel in DASHBOARDS[name]["panels"]:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & places
        assert box["x"] + box["w"] <= 24
        places |= cells
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(ids) == len(set(ids))


@needs_promtool
@pytest.mark.parametrize("command", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_takes_the_alerts(command):
    run = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_promtool_takes_the_configuration():
    run = subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=MONITORING, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_is_tried_says_what_to_do_and_can_fire():
    tried = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tried for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {alert["alert"] for alert in ALERTS}
    assert all(alert["annotations"].keys() == {"summary", "remedy"} for alert in ALERTS)


def test_the_readmes_command_makes_a_rule_of_prometheus_operator():
    (command,) = re.findall(r"```bash\n([^`]*PrometheusRule[^`]*?)\n```", (CLUSTER / "README.md").read_text())
    assert command.count("| kubectl apply -f -") == 1
    command = command.replace("| kubectl apply -f -", "").partition("kubectl create")[0]
    made = subprocess.run(["bash", "-c", command], cwd=CLUSTER.parent, capture_output=True, text=True, check=True).stdout
    (rule,) = yaml.safe_load_all(made)
    assert errors_of(rule) == []
    assert [alert for group in rule["spec"]["groups"] for alert in group["rules"]] == ALERTS


def test_every_pod_of_ray_is_scraped_and_lets_prometheus_in():
    (monitor,) = of_kind("monitoring", "PodMonitor")
    assert errors_of(monitor) == []
    (expression,) = monitor["spec"]["selector"]["matchExpressions"]
    for folder in (*TRAININGS, *SERVICES):
        assert {template["metadata"]["labels"][expression["key"]] for template in templates_of(ray_of(folder))} <= set(
            expression["values"]
        )
        policy = of_kind(folder, "NetworkPolicy")[0]["spec"]
        assert [rule["ports"] for rule in policy["ingress"] if "namespaceSelector" in rule["from"][0]][-1] == [{"port": 8080}]
