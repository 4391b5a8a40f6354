"""docker/: alert rules, dashboard and Kubernetes manifests against the metrics and settings that there are."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
from ruamel.yaml import YAML

from seisserve_serving.metric_table import ALIASES, METRICS
from seisserve_serving.settings import Settings, fields

DOCKER = Path(__file__).parents[2] / "docker"
SUFFIXES = {
    "counter": ("",), "gauge": ("",), "summary": ("_sum", "_count"), "histogram": ("_bucket", "_sum", "_count"),
}  # fmt: skip
TARGET = {"instance", "job"}  # what Prometheus itself puts on every series
SERIES = {
    metric.name + suffix: {*metric.labels, *TARGET} | ({"le"} if suffix == "_bucket" else set())
    for metric in (*METRICS, *ALIASES)
    for suffix in SUFFIXES[metric.kind]
} | {"up": TARGET}
# The values of labels that are fixed; any other is a name of the user's.
VALUES = {
    "code": {"OK", "INTERNAL"},
    "reason": {
        "overloaded",
        "too_large",
        "unavailable",
        "unauthenticated",
        "permission_denied",
        "expired",
        "cancelled",
    },
    "job": {"seisserve", "tensorflow-serving"},
}


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(DOCKER / name)


def mistakes(expression: str) -> list[str]:
    """What is wrong with an expression: series and labels that do not exist."""
    found: list[str] = []
    used: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            if node.name not in SERIES:
                found.append(f"no series {node.name}")
                return
            used.update(SERIES[node.name])
            for matcher in node.matchers.matchers:
                if matcher.name not in SERIES[node.name]:
                    found.append(f"{node.name} has no label {matcher.name}")
                elif matcher.value not in VALUES.get(matcher.name, {matcher.value}):
                    found.append(f"{matcher.name} is never {matcher.value}")

    def grouped(node: Any) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            found.extend(f"no label {label} to group by" for label in node.modifier.labels if label not in used)

    tree = promql_parser.parse(expression)
    promql_parser.walk(tree, visit)
    promql_parser.walk(tree, grouped)
    return found


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("rate(seisserve_request_total[5m])", "no series seisserve_request_total"),
        ("seisserve_request_seconds", "no series seisserve_request_seconds"),
        ('seisserve_picks_total{station="A"}', "seisserve_picks_total has no label station"),
        ('seisserve_rejected_total{reason="full"}', "reason is never full"),
        ("sum by (station) (seisserve_picks_total)", "no label station to group by"),
    ],
)
def test_the_check_of_expressions_finds_what_is_not_there(expression: str, mistake: str) -> None:
    assert mistakes(expression) == [mistake]


def rules() -> list[dict[str, Any]]:
    return [rule for group in load("alerts.yaml")["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_is_about_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert mistakes(rule["expr"]) == []
    promql_parser.parse_duration(rule.get("for", "1m"))
    assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"].keys() == {"summary", "description"}
    grouped = set(re.findall(r"by \(([^)]*)\)", rule["expr"]))
    for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
        assert all(label in group for group in grouped)


def test_every_alert_has_a_name_of_its_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10


def test_prometheus_reads_the_file_as_it_is() -> None:
    """Its schema knows no other keys, and a group without a name or with one twice is refused."""
    content = load("alerts.yaml")
    assert content.keys() == {"groups"}
    assert [group.keys() for group in content["groups"]] == [{"name", "rules"}]
    scrape = load("prometheus.yaml")
    assert scrape.keys() == {"global", "rule_files", "scrape_configs"}
    for job in scrape["scrape_configs"]:
        assert job.keys() == {"job_name", "metrics_path", "static_configs"}


# The dashboard


def panels() -> list[dict[str, Any]]:
    return list(json.loads((DOCKER / "grafana.json").read_text())["panels"])


def expressions() -> Iterator[Any]:
    for panel in panels():
        for target in panel.get("targets", ()):
            yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")


@pytest.mark.parametrize("expression", list(expressions()))
def test_a_panel_shows_what_there_is(expression: str) -> None:
    assert "$" in expression or "seisserve_build_info" in expression  # the server that is chosen
    plain = expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
    assert mistakes(plain) == []


def test_the_dashboard_runs_on_any_data_source_and_no_panel_lies_over_another() -> None:
    dashboard = json.loads((DOCKER / "grafana.json").read_text())
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}
    assert set(re.findall(r'"uid": "(.*?)"', json.dumps(panels()))) == {"${datasource}"}
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels()
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))
    shown = " ".join(str(panel.get("targets")) for panel in panels())
    unseen = {metric.name for metric in METRICS if metric.name.startswith("seisserve_") and metric.name not in shown}
    assert unseen == {
        "seisserve_draining", "seisserve_batch_computed_windows", "seisserve_lanes_alive", "seisserve_detections_total",
        "seisserve_model_load_seconds", "seisserve_station_pick_latency_seconds", "seisserve_repository_alive",
    }  # fmt: skip


# Kubernetes

MANIFESTS = sorted((DOCKER / "kubernetes").rglob("*.yaml"))
APP = {"app.kubernetes.io/name": "seisserve"}


def documents() -> dict[str, Any]:
    """By kind; each file has one."""
    return {(found := load(str(path.relative_to(DOCKER))))["kind"]: found for path in MANIFESTS}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_a_manifest_keeps_to_the_schema_of_kubernetes(path: Path, version: str) -> None:
    content = load(str(path.relative_to(DOCKER)))
    kubernetes_validate.validate(content, version, strict=True)
    wrong = copy.deepcopy(content)
    wrong["spec"]["no_such_field"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_objects_find_each_other() -> None:
    there = documents()
    assert set(there) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    spec = there["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == APP
    assert there["Service"]["spec"]["selector"] == APP
    assert there["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == APP
    target = there["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", there["Deployment"]["metadata"]["name"])
    assert there["PodDisruptionBudget"]["spec"]["minAvailable"] < spec["replicas"]
    assert there["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= spec["replicas"]


@pytest.fixture
def pod() -> dict[str, Any]:
    return dict(documents()["Deployment"]["spec"]["template"])


def test_the_ports_and_arguments_are_the_servers(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    listen = Settings().listen
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": listen.port, "http": listen.rest_api_port}
    for port in documents()["Service"]["spec"]["ports"]:
        assert (port["port"], port["targetPort"]) == (ports[port["name"]], port["name"])
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(listen.rest_api_port)
    arguments = dict(word.removeprefix("--").split("=") for word in container["args"])
    assert arguments.keys() <= fields().keys()
    assert arguments["threads"] == container["resources"]["requests"]["cpu"]
    assert container["readinessProbe"]["grpc"] == {"port": listen.port}
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_a_pod_has_time_to_finish_before_it_is_killed(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    (grace,) = [word for word in container["args"] if word.startswith("--grace_s=")]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > before + float(grace.split("=")[1])
    # It is taken out of the service before it is told to stop.
    assert before >= 5


def test_a_pod_may_do_nothing_that_it_does_not_need(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    image = (DOCKER / "cpu.Dockerfile").read_text()
    uid, gid = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)[0]
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": int(uid), "runAsGroup": int(gid),
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["spec"]["automountServiceAccountToken"] is False
    # Those of a Service called seisserve would look like its settings.
    assert pod["spec"]["enableServiceLinks"] is False
