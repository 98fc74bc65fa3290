"""docker-compose.yml, the Dockerfile and the proxy's configuration, read: nothing here starts a container."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from models.kernel.settings import load, settings
from orchestrator_cli import procfile
from orchestrator_cli.embedded import binaries
from orchestrator_cli.migrate import ROOT
from tests.cli.service import free_port

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
COMMANDS = procfile.read(ROOT / "Procfile")
ONE_SHOT = {"migrate", "certificates"}
LASTING = sorted(SERVICES.keys() - ONE_SHOT)
OURS = sorted(name for name, service in SERVICES.items() if "orchestrator" in service["image"])
SEVERAL = {"dispatcher", "guardian", "relay", "beat"}
MAY_BE_ROOT = {"certificates"}  # gives a fresh volume to the proxy's user, once, without a network
CAPABILITIES = {"proxy": {"NET_BIND_SERVICE"}, "certificates": {"CHOWN"}}
SECRETS = {"POSTGRES_PASSWORD": "a" * 32, "VALKEY_PASSWORD": "b" * 32, "FLOWER_AUTH": "watcher:" + "c" * 32}
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(text: str, values: dict[str, str]) -> str:
    """As Compose does it (Compose specification, Interpolation). Raises KeyError for a required one that is missing."""

    def value(found: re.Match[str]) -> str:
        name, operator, rest = found.groups()
        if values.get(name):
            return values[name]
        if operator == "?":
            raise KeyError(name)
        return rest or ""

    return VARIABLE.sub(value, text).replace("$$", "$")


def environment(name: str) -> dict[str, str]:
    return {key: interpolated(str(value), SECRETS) for key, value in SERVICES[name].get("environment", {}).items()}


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found[1])


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_linter_of_yaml_finds_nothing() -> None:
    found = run(sys.executable, "-m", "yamllint", "--strict", "docker-compose.yml")
    assert (found.returncode, found.stdout) == (0, "")


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    found = run(str(Path(sys.executable).with_name("hadolint")), "Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")


def test_every_process_of_the_procfile_is_a_service_with_the_same_command() -> None:
    assert COMMANDS.keys() <= SERVICES.keys()
    for name, command in COMMANDS.items():
        assert SERVICES[name]["command"] == command, name
    assert SERVICES["streams"]["command"] == COMMANDS["web"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["init"] is True
    assert not service.get("privileged")
    assert set(service.get("cap_add", [])) <= {"proxy": {"NET_BIND_SERVICE"}, "certificates": {"CHOWN"}}.get(
        name, set()
    )
    root = str(service["user"]).partition(":")[0] in {"root", "0", ""}
    assert root <= (name in MAY_BE_ROOT)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_an_image_is_pinned_by_its_version(name: str) -> None:
    image = interpolated(SERVICES[name]["image"], {})
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", image), image


@pytest.mark.parametrize("name", LASTING)
def test_what_runs_is_watched_restarted_bounded_and_given_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert seconds(service["healthcheck"]["timeout"]) <= seconds(service["healthcheck"]["interval"])
    assert service["restart"] == "unless-stopped"
    assert seconds(service["stop_grace_period"]) >= 10
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", sorted(ONE_SHOT))
def test_what_runs_once_is_not_restarted(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_role_is_asked_for_by_its_own_name_and_starts_once_the_servers_are_there(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "python", "ops/healthy.py", name]
    waits = {other: how["condition"] for other, how in SERVICES[name]["depends_on"].items()}
    assert waits == {
        "migrate": "service_completed_successfully", "postgres": "service_healthy", "valkey": "service_healthy",
    }  # fmt: skip
    assert name in settings().process_roles


def test_of_what_agrees_through_postgres_there_are_two() -> None:
    assert {name for name in LASTING if SERVICES[name]["deploy"].get("replicas", 1) > 1} == SEVERAL


def test_only_the_proxy_is_reached_from_outside_and_the_servers_only_from_inside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "valkey"):
        assert SERVICES[name]["networks"] == ["inside"]
    assert SERVICES["proxy"]["networks"] == ["edge"]


def test_no_secret_is_written_down_and_none_has_a_default() -> None:
    for path in ("docker-compose.yml", "Dockerfile", "ops/Caddyfile", "ops/env.example"):
        text = (ROOT / path).read_text()
        assert not re.search(r"(?i)(password|secret|secret_key|auth|token)[\"']?[ \t]*[:=][ \t]*[^\s$?-]", text), path
    for name in SECRETS:
        others = {key: value for key, value in SECRETS.items() if key != name}
        with pytest.raises(KeyError, match=name):
            interpolated((ROOT / "docker-compose.yml").read_text(), others)


def test_only_those_who_need_a_secret_are_given_it() -> None:
    def holders(variable: str) -> set[str]:
        return {name for name in SERVICES if variable in environment(name)}

    assert holders("ORCHESTRATOR_FLOWER_AUTH") == {"flower"}


def readers(file: str) -> set[str]:
    """The services that read a file of settings, each of which may be missing."""
    found = {name: service["env_file"] for name, service in SERVICES.items() if "env_file" in service}
    assert all(not one["required"] for files in found.values() for one in files)
    return {name for name, files in found.items() if file in [one["path"] for one in files]}


def test_what_the_web_and_the_robots_ask_for_is_read_by_them_alone() -> None:
    assert readers("web.env") == {"web", "streams"}
    assert readers("robots.env") == {"io", "guardian"}
    assert readers("settings.env") == set(OURS)


def test_no_setting_of_a_file_is_replaced_by_an_empty_text() -> None:
    for name in OURS:
        assert all(environment(name).values()), name


def test_a_process_knows_how_much_its_command_line_lets_it_do_at_once() -> None:
    for role in ("io", "system", "cpu"):
        variable = f"ORCHESTRATOR_{role.upper()}_CONCURRENCY"
        chosen = {**SECRETS, variable: "7"}
        assert "--concurrency 7 " in interpolated(SERVICES[role]["command"], chosen)
        assert interpolated(SERVICES[role]["environment"][variable], chosen) == "7"
        assert int(environment(role)[variable]) == getattr(settings(), f"{role}_concurrency")


def test_the_certificates_for_robots_reach_those_who_speak_to_them_and_cannot_be_changed() -> None:
    mounted = {name for name in OURS if "./mqtt:/etc/orchestrator/mqtt:ro" in SERVICES[name].get("volumes", [])}
    assert mounted == {"io", "guardian"}


def test_what_an_operator_writes_beside_the_file_is_neither_committed_nor_copied() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "settings.env", "web.env", "robots.env", "mqtt/"} <= set(ignored)


@pytest.mark.parametrize("name", OURS)
def test_the_service_accepts_the_settings_it_is_given(name: str) -> None:
    chosen = load(environment(name))
    assert chosen.database_url.endswith("@postgres:5432/orchestrator")
    assert chosen.broker_url.endswith("@valkey:6379/0")
    assert chosen.trusted_proxies == {"172.31.250.0/24"}
    assert not chosen.metrics_public


def test_who_is_believed_sits_in_the_proxy_s_own_network() -> None:
    (edge,) = COMPOSE["networks"]["edge"]["ipam"]["config"]
    assert edge["subnet"] == SERVICES["web"]["environment"]["ORCHESTRATOR_TRUSTED_PROXIES"]


def test_valkey_keeps_what_it_is_given_and_tells_nobody_its_password(tmp_path: Path) -> None:
    shell, flag, script = SERVICES["valkey"]["command"]
    for option in ("--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"):
        assert option in script
    here = script.replace("$$", "$").replace(
        "exec valkey-server", f"exec {binaries.valkey_binary()} --port {free_port()}"
    )
    known = {**os.environ, "VALKEY_PASSWORD": SECRETS["VALKEY_PASSWORD"]}
    with subprocess.Popen([shell, flag, here], cwd=tmp_path, env=known, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("Ready to accept connections" in line for line in server.stdout)
            port = here.partition("--port ")[2].split()[0]
            assert SECRETS["VALKEY_PASSWORD"] not in Path(f"/proc/{server.pid}/cmdline").read_text()
            with redis.Redis(port=int(port)) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
            with redis.Redis(port=int(port), password=SECRETS["VALKEY_PASSWORD"]) as friend:
                assert friend.ping()
                assert friend.config_get("appendonly") == {"appendonly": "yes"}
        finally:
            server.kill()


def test_streams_go_to_processes_of_their_own_and_are_not_held_back() -> None:
    proxy = (ROOT / "ops/Caddyfile").read_text()
    streams = proxy[proxy.index("handle @streams") :]
    assert "@streams path /ws/* /tickets/events /engine/outputs/events" in proxy
    assert "flush_interval -1" in streams[: streams.index("handle {")]
    assert "dynamic a streams 8000" in streams


def test_the_image_contains_what_it_runs_and_no_credentials() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = [line[1:] for line in ignored if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for path in (word for words in copied for word in words.split()):
        assert (ROOT / path).exists(), path
        assert any(fnmatch.fnmatch(path, pattern) or path == pattern for pattern in kept), path
    for path in (".env", "settings.env", ".orchestrator", "tests"):
        assert path not in kept


def test_the_image_runs_as_nobody_s_superuser_and_gets_its_signals() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines
    assert 'CMD ["python", "-m", "orchestrator_web"]' in lines
    assert all(
        re.match(r"FROM python:\d+\.\d+\.\d+-slim-\w+( AS \w+)?$", line) for line in lines if line.startswith("FROM")
    )
