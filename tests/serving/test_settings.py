"""Settings: one source for flags, environment, file and documentation, and where each value came from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seisserve.cli import run
from seisserve.errors import UsageError
from seisserve.runtime import RUNTIMES
from seisserve.runtimes.onnx import PROVIDERS
from seisserve.runtimes.setup import PRECISIONS
from seisserve_serving.place import cpus
from seisserve_serving.settings import FREE, SECRETS, Settings, as_markdown, as_toml, fields, read

ROOT = Path(__file__).resolve().parents[2]
# A value of each kind that is no default, as text.
OTHER = {
    "runtime": "openvino", "precision": "int8", "provider": "cuda,cpu", "cudnn_conv_algo_search": "DEFAULT",
    "batch_mode": "fixed", "log_format": "json", "log_level": "error", "nice": "7", "otlp_share": "0.25",
    "rest_api_port": "8601", "client_share": "0.25",
}  # fmt: skip
# Settings that go only together with others, or without them.
WITH = {
    "model_name": {"model_base_path": "m"}, "model_base_path": {"model_name": "m"},
    "otlp_headers": {"otlp_endpoint": "e"}, "remote_backend_access": {"remote_backend": "b:1"},
    "model_config_file_poll_wait_seconds": {"model_config_file": "m"},
}  # fmt: skip


def other(name: str) -> str:
    field = fields()[name]
    if field.kind is bool:
        return "false" if field.default else "true"
    return OTHER.get(name, "other" if field.kind is str else "3")


def value(settings: Settings, name: str) -> Any:
    return getattr(getattr(settings, fields()[name].table), name)


@pytest.mark.parametrize("name", list(fields()))
def test_flag_goes_before_environment_before_file_before_default(name: str, tmp_path: Path) -> None:
    field, text, beside = fields()[name], other(name), WITH.get(name, {})
    variable = {f"SEISSERVE_{name.upper()}": text}
    file = tmp_path / "settings.toml"

    plain = read({}, {})
    assert value(plain.settings, name) == field.default
    assert plain.origins[name] == "default"

    by_flag = read({name: text, **beside}, {})
    changed = value(by_flag.settings, name)
    assert changed != field.default
    assert by_flag.origins[name] == f"flag --{name}"

    by_variable = read(beside, variable)
    assert value(by_variable.settings, name) == changed
    assert by_variable.origins[name] == f"environment SEISSERVE_{name.upper()}"

    file.write_text(as_toml(by_flag).replace("***", text))
    by_file = read({}, {}, file)
    assert by_file.settings == by_flag.settings
    assert by_file.origins[name] == f"file {file}"
    assert read({}, {"SEISSERVE_CONFIG": str(file)}) == by_file

    default = field.default if not isinstance(field.default, tuple) else ""
    assert (
        value(read({name: text, **beside}, {f"SEISSERVE_{name.upper()}": str(default)}, file).settings, name) == changed
    )


def test_names_are_unique_and_say_what_they_mean() -> None:
    names = [name for table in Settings.__struct_fields__ for name in getattr(Settings(), table).__struct_fields__]
    assert len(set(names)) == len(names) == len(fields())
    for field in fields().values():
        assert field.description.endswith("."), field.name
    assert set(fields()) >= SECRETS


def test_choices_are_those_of_the_runtimes() -> None:
    known = fields()
    assert set(get_args(known["runtime"].kind)) == {"", *RUNTIMES}
    assert set(get_args(known["precision"].kind)) == {"", *PRECISIONS}
    assert set(get_args(get_args(known["provider"].kind)[0])) == set(PROVIDERS)


WRONG = [
    ("port", "65536", "flag --port port is '65536'; it must be a whole number from 0 to 65535"),
    ("port", "http", "it must be a whole number from 0 to 65535"),
    ("max_calls", "-1", "it must be a whole number, at least 0"),
    ("tuned", "perhaps", "it must be true or false"),
    ("provider", "cpu,tpu", "it must be a list of tensorrt, cuda, openvino, cpu"),
    ("log_format", "xml", "it must be one of text, json"),
    ("remote_backend_timeout_s", "0", "it must be a number above 0"),
    ("otlp_share", "1.5", "it must be a number from 0 to 1"),
]


@pytest.mark.parametrize(("name", "text", "reason"), WRONG)
def test_a_wrong_value_is_refused_with_what_it_may_be_and_where_it_was(name: str, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        read({name: text}, {})
    with pytest.raises(UsageError, match=f"environment SEISSERVE_{name.upper()} "):
        read({}, {f"SEISSERVE_{name.upper()}": text})


FILES = [
    ("[limits]\nmax_cals = 1\n", "unknown setting 'max_cals'; the nearest is max_calls"),
    ("[limit]\nmax_calls = 1\n", "unknown table 'limit'; the nearest is limits"),
    ("[listen]\nmax_calls = 1\n", r"max_calls belongs into the table \[limits\], not \[listen\]"),
    ("max_calls = 1\n", r"max_calls belongs into the table \[limits\]"),
    ("[limits]\nmax_calls = '1'\n", None),
    ("[limits]\nmax_calls = true\n", "it must be a whole number, at least 0"),
    ("[limits\n", "not a TOML file"),
    ("[operation]\notlp_headers = '***'\notlp_endpoint = 'http://x'\n", "is masked"),
]


@pytest.mark.parametrize(("content", "reason"), FILES)
def test_a_file_is_held_to_its_tables_names_and_types(content: str, reason: str | None, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(content)
    if reason is None:
        assert read({}, {}, file).settings.limits.max_calls == 1
        return
    with pytest.raises(UsageError, match=reason) as caught:
        read({}, {}, file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        read({}, {}, tmp_path / "none.toml")


def test_an_unknown_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'SEISSERVE_PROT'; the nearest is SEISSERVE_PORT"):
        read({}, {"SEISSERVE_PROT": "1"})
    with pytest.raises(UsageError, match="'SEISSERVE_port'"):
        read({}, {"SEISSERVE_port": "1"})
    assert read({}, {"PATH": "/bin", "SEIS": "1"}) == read({}, {})


def test_what_kubernetes_sets_for_a_service_of_that_name_is_no_setting() -> None:
    links = {
        "SEISSERVE_SERVICE_HOST": "10.0.0.1", "SEISSERVE_SERVICE_PORT": "8500", "SEISSERVE_SERVICE_PORT_GRPC": "8500",
        "SEISSERVE_PORT": "tcp://10.0.0.1:8500", "SEISSERVE_PORT_8500_TCP": "tcp://10.0.0.1:8500",
        "SEISSERVE_PORT_8500_TCP_PROTO": "tcp", "SEISSERVE_PORT_8500_TCP_PORT": "8500",
        "SEISSERVE_PORT_8500_TCP_ADDR": "10.0.0.1", "SEISSERVE_GPU_SERVICE_HOST": "10.0.0.2",
    }  # fmt: skip
    assert read({}, links) == read({}, {})


TOGETHER = [
    ({"model_name": "a"}, "model_name and model_base_path belong together"),
    ({"repository": "a", "model_config_file": "b"}, "repository and model_config_file are both given"),
    ({"model_config_file_poll_wait_seconds": "1"}, "without a model_config_file"),
    ({"host": ""}, "must listen somewhere"),
    ({"enable_batching": "false", "batching_parameters_file": "b"}, "enable_batching is off"),
    ({"remote_backend": "a:1", "runtime": "tensorflow"}, "remote_backend computes elsewhere"),
    ({"otlp_headers": "a=b"}, "without an otlp_endpoint"),
]


@pytest.mark.parametrize(("given_flags", "reason"), TOGETHER)
def test_settings_that_contradict_each_other_are_refused(given_flags: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read(given_flags, {})


def test_http_takes_a_free_port_beside_a_free_port() -> None:
    assert read({}, {}).settings.listen.rest_api_port == 8501
    assert read({"port": "0"}, {}).settings.listen.rest_api_port == FREE
    assert read({"port": "0", "rest_api_port": "0"}, {}).settings.listen.rest_api_port == 0


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_printing_and_reading(text: str) -> None:
    effective = read({"host": text or "x"}, {})
    printed = tomllib.loads(as_toml(effective).replace("\r", ""))
    assert printed["listen"]["host"] == effective.settings.listen.host


def test_print_config_says_where_each_value_is_from_and_hides_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        '[operation]\notlp_endpoint = "http://c:4317"\notlp_headers = "key=geheim"\n[limits]\nmax_calls = 7\n'
    )
    monkeypatch.setenv("SEISSERVE_MAX_CALLS", "8")
    assert run(["serve", "models", "--config", str(file), "--print-config", "--port=9", "--no-tuned"]) == 0
    printed = capsys.readouterr().out
    assert "geheim" not in printed
    for line in (
        'repository = "models"  # flag --repository', "port = 9  # flag --port", "tuned = false  # flag --tuned",
        "max_calls = 8  # environment SEISSERVE_MAX_CALLS", f'otlp_endpoint = "http://c:4317"  # file {file}',
        f'otlp_headers = "***"  # file {file}', 'host = "127.0.0.1"  # default',
    ):  # fmt: skip
        assert line in printed.splitlines()
    file.write_text(printed.replace("***", "key=geheim"))
    assert run(["serve", "--config", str(file), "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out) == tomllib.loads(printed) | {
        "limits": tomllib.loads(printed)["limits"]
    }


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--enable_per_model_batching_parameters"], "enable_per_model_batching_parameters = true"),
        (["--enable_per_model_batching_parameters=true"], "enable_per_model_batching_parameters = true"),
        (["--enable-per-model-batching-parameters=1"], "enable_per_model_batching_parameters = true"),
        (["--tuned=false"], "tuned = false"),
        (["--no-tuned"], "tuned = false"),
        (["--max-message-mb", "5"], "max_message_mb = 5"),
        (["--provider", "cuda", "--provider", "cpu"], 'provider = ["cuda", "cpu"]'),
        (["--provider=cuda,cpu"], 'provider = ["cuda", "cpu"]'),
        (["-v"], 'log_level = "debug"'),
        (["-v", "--log_level", "error"], 'log_level = "error"'),
    ],
)
def test_flags_may_be_written_as_tensorflow_serving_writes_them(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--print-config", *arguments]) == 0
    assert line in [printed.partition("  #")[0] for printed in capsys.readouterr().out.splitlines()]


def test_unknown_flags_and_wrong_values_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--max_cals", "1"]) == 2
    assert "max_calls" in capsys.readouterr().err
    assert run(["serve", "--port", "many"]) == 2
    assert "it must be a whole number from 0 to 65535" in capsys.readouterr().err


def test_the_documentation_is_that_of_the_code() -> None:
    assert (ROOT / "docs/settings.md").read_text() == as_markdown(), "run: python -m seisserve_serving.settings"


@pytest.mark.parametrize("text", ["x", "", "1-", "-1", "3-1", "99999"])
def test_processors_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cpu_affinity"):
        cpus(text)


def test_a_process_keeps_to_its_processors_and_gives_way() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    first = str(allowed[0])
    assert cpus(",".join(map(str, allowed))) == set(allowed)
    assert cpus(f"{first}-{first}") == {allowed[0]}
    code = (
        "import os; from seisserve_serving.place import settle; before = os.nice(0); "
        f"settle({first!r}, 3); print(os.sched_getaffinity(0), os.nice(0) - before)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == f"{{{first}}} 3\n"
