"""Settings: what the environment says wrong is refused in one line each, and no line tells a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.kernel.errors import InvalidSettings
from models.kernel.settings import Settings, load, variables

LONG = "s" * 32


def refusal(**environ: str) -> list[str]:
    with pytest.raises(InvalidSettings) as refused:
        load(environ)
    return refused.value.message.splitlines()


def test_an_empty_environment_is_a_service_that_runs() -> None:
    assert load({}) == Settings()
    assert load({"PATH": "/bin", "PORT": ""}) == Settings()


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    assert refusal(ORCHESTRATOR_LEASE_SECOND="3") == [
        "ORCHESTRATOR_LEASE_SECOND is not a setting; did you mean ORCHESTRATOR_LEASE_SECONDS?"
    ]
    assert refusal(ORCHESTRATOR_="3")[0].startswith("ORCHESTRATOR_ is not a setting")


def test_each_wrong_value_is_one_line() -> None:
    lines = refusal(PORT="0", ORCHESTRATOR_LEASE_SECONDS="long", ORCHESTRATOR_DRIVER="coap", ORCHESTRATOR_TYPO="1")
    assert len(lines) == 4
    for name in ("PORT", "ORCHESTRATOR_LEASE_SECONDS", "ORCHESTRATOR_DRIVER", "ORCHESTRATOR_TYPO"):
        assert sum(line.startswith(name) for line in lines) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "8000.5"),
        ("PORT", "eight"),
        ("ORCHESTRATOR_LEASE_SECONDS", "nan"),
        ("ORCHESTRATOR_LEASE_SECONDS", "inf"),
        ("ORCHESTRATOR_LEASE_SECONDS", "0"),
        ("ORCHESTRATOR_METRICS_PUBLIC", "perhaps"),
        ("ANONYMOUS_PERMISSIONS", "read,fly"),
        ("DATABASE_URL", "mysql://x"),
        ("BROKER_URL", "amqp://x"),
        ("JWT_ALGORITHM", "none"),
        ("ORCHESTRATOR_LOG_LEVEL", "LOUD"),
        ("ORCHESTRATOR_MQTT_URL", "http://x"),
        ("ORCHESTRATOR_MQTT_URL", "mqtt://"),
        ("ORCHESTRATOR_MQTT_URL", "mqtt://x/topic"),
        ("ORCHESTRATOR_MQTT_PREFIX", "a/+"),
        ("ORCHESTRATOR_MQTT_PREFIX", "a//b"),
        ("ORCHESTRATOR_MQTT_PREFIX", "$SYS"),
        ("ENGINE_MODULE", "engine.py/"),
        ("ENGINE_MODULE", "regime engine"),
        ("ENGINE_MODULE", ".engine"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(name: str, value: str) -> None:
    (line,) = refusal(**{name: value})
    assert line.startswith(name)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_anonymous_callers_are_allowed_on_loopback(host: str) -> None:
    chosen = load({"ANONYMOUS_PERMISSIONS": "read, write", "ORCHESTRATOR_HOST": host})
    assert chosen.anonymous_permissions == {"read", "write"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org"])
def test_anonymous_callers_are_refused_anywhere_else(host: str) -> None:
    (line,) = refusal(ANONYMOUS_PERMISSIONS="read", ORCHESTRATOR_HOST=host)
    assert line.startswith("ANONYMOUS_PERMISSIONS")


def test_a_short_secret_is_refused_and_not_shown() -> None:
    (line,) = refusal(JWT_SECRET_KEY="short-and-secret")
    assert "32" in line
    assert "short-and-secret" not in line


@pytest.mark.parametrize("name", ["DATABASE_URL", "BROKER_URL", "ORCHESTRATOR_MQTT_URL"])
def test_an_address_of_the_wrong_kind_is_refused_without_its_password(name: str) -> None:
    (line,) = refusal(**{name: "mongodb://me:hunter2@host/db"})
    assert line.startswith(name)
    assert "hunter2" not in line


def test_a_broker_s_credentials_have_settings_of_their_own() -> None:
    (line,) = refusal(ORCHESTRATOR_MQTT_URL="mqtt://me:hunter2@host")
    assert "neither user" in line
    assert "hunter2" not in line


def test_settings_that_are_printed_show_no_secret() -> None:
    shown = repr(
        load(
            {
                "JWT_SECRET_KEY": LONG,
                "DATABASE_URL": "postgresql://me:hunter2@host/db",
                "BROKER_URL": "redis://:hunter2@host/0",
                "ORCHESTRATOR_FLOWER_AUTH": "me:hunter2",
                "ORCHESTRATOR_MQTT_PASSWORD": "hunter2",
            }
        )
    )
    assert LONG not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_a_postgres_address_means_the_one_driver(scheme: str) -> None:
    assert load({"DATABASE_URL": f"{scheme}://h/d"}).database_url == "postgresql+psycopg2://h/d"


def test_paths_and_flags_are_read_as_what_they_are() -> None:
    chosen = load({"ORCHESTRATOR_HOME": "/srv/o", "ORCHESTRATOR_METRICS_PUBLIC": "No"})
    assert (chosen.home, chosen.metrics_public) == (Path("/srv/o"), False)


def test_every_setting_explains_itself_and_has_a_name_of_its_own() -> None:
    known = variables()
    assert all(item.metadata["help"] for item in known.values())
    assert len(known) == len(Settings.__dataclass_fields__)


@pytest.mark.parametrize("file", ["Procfile", "docker-compose.yml"])
def test_a_default_that_a_shell_has_to_know_is_the_setting_s_own(file: str) -> None:
    text = (Path(__file__).parents[2] / file).read_text()
    said = dict(re.findall(r"\$\{(ORCHESTRATOR_[A-Z]+_CONCURRENCY):-(\d+)\}", text))
    known = variables()
    assert "ORCHESTRATOR_IO_CONCURRENCY" in said
    assert said == {name: str(known[name].default) for name in said}


@pytest.mark.parametrize("name", ["DATABASE_URL", "BROKER_URL"])
@pytest.mark.parametrize("rest", ["u:hidden@host:abc/x", "u:hidden@[::1/x", "u:hidden%zz@host/x", "u:hidden@host:0/x"])
def test_a_malformed_url_is_one_line_that_quotes_no_password(name: str, rest: str) -> None:
    scheme = {"DATABASE_URL": "postgresql", "BROKER_URL": "redis"}[name]
    with pytest.raises(InvalidSettings) as refused:
        load({name: f"{scheme}://{rest}"})
    assert "\n" not in refused.value.message
    assert name in refused.value.message
    assert "hidden" not in refused.value.message
