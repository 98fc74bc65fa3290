"""Where the MQTT broker is and how it is spoken to, read from the settings and checked once."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from models.kernel.errors import InvalidSettings
from models.kernel.settings import Settings

PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class Broker:
    """A broker's address; `tls` is None for a connection in the clear."""

    host: str
    port: int
    prefix: str = "orchestrator"
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def broker_of(chosen: Settings) -> Broker:
    """The broker that the settings name. Raises InvalidSettings when a certificate or a key cannot be read."""
    parts = urlsplit(chosen.mqtt_url)
    return Broker(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or PORTS[parts.scheme],
        prefix=chosen.mqtt_prefix,
        username=chosen.mqtt_username,
        password=chosen.mqtt_password,
        tls=tls_of(chosen) if parts.scheme == "mqtts" else None,
    )


def tls_of(chosen: Settings) -> ssl.SSLContext:
    """The broker's certificate is always checked, against its host name too."""
    try:
        context = ssl.create_default_context(cafile=chosen.mqtt_ca_file or None)
        if chosen.mqtt_cert_file:
            context.load_cert_chain(chosen.mqtt_cert_file, chosen.mqtt_key_file or None, password="")
    except (OSError, ValueError) as error:
        raise InvalidSettings(f"ORCHESTRATOR_MQTT_CA_FILE, _CERT_FILE or _KEY_FILE cannot be used: {error}") from error
    return context
