"""Whether all nodes belong to the same run: before the first round, and when one comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedlightning.deployment.messages import Passport
from fedlightning.deployment.remote_data import RemoteData
from fedlightning.errors import ConfigError, DataError, EnvironmentFailure

__all__ = ["check_again", "check_passports", "remote_data"]

_SHOWN = 12


def check_passports(
    passports: Sequence[Passport],
    num_clients: int,
    versions: Mapping[str, str],
    settings: str,
    model: str,
) -> None:
    """Refuse nodes that would compute something else than the server expects.

    Args:
        passports: What the nodes say.
        num_clients: How many clients the run has.
        versions: The server's versions.
        settings: Digest of the server's settings.
        model: Digest of the server's untrained model.

    Raises:
        ConfigError: Other settings, two nodes for one client, or none; all are named.
        EnvironmentFailure: Another version.
        DataError: Examples of another form than client 0's.
    """
    clients = [passport.client for passport in passports]
    for client in sorted(set(clients)):
        if not 0 <= client < num_clients:
            raise ConfigError(
                f"a node says it is client {client}, and data.num_clients={num_clients}: clients "
                f"are 0 to {num_clients - 1}. Mend its node-config."
            )
        if clients.count(client) > 1:
            raise ConfigError(
                f"{clients.count(client)} nodes say they are client {client}; mend their "
                "node-config."
            )
    missing = sorted(set(range(num_clients)) - set(clients))
    if missing:
        raise ConfigError(
            f"no node for client {', '.join(map(str, missing))} (data.num_clients={num_clients})."
        )
    _check_alike(passports, versions, settings, model)
    _check_schemas(passports)


def check_again(now: Passport, before: Passport) -> None:
    """Refuse a node that has come back as another than it was before the first round.

    Args:
        now: What it says.
        before: What the client's node said then, which the server has accepted.

    Raises:
        ConfigError: Other settings.
        EnvironmentFailure: Another version.
        DataError: Other examples, as far as their form and number tell.
    """
    _check_alike([now], before.versions, before.settings, before.model)
    if (now.schema, now.sizes) != (before.schema, before.sizes):
        raise DataError(
            f"client {now.client} has other examples than before the first round: "
            f"{_examples_in(now)}, and had {_examples_in(before)}; give its node what it had."
        )


def _examples_in(passport: Passport) -> str:
    sizes = ", ".join(f"{count} {split}" for split, count in passport.sizes.items())
    return f"{sizes} of {passport.schema or 'no form'}"


def _check_alike(
    passports: Sequence[Passport], versions: Mapping[str, str], settings: str, model: str
) -> None:
    refused = [
        f"client {one.client}: {name} {one.versions.get(name, 'missing')}, the server has {version}"
        for one in passports
        for name, version in versions.items()
        if one.versions.get(name) != version
    ]
    if refused:
        raise EnvironmentFailure(
            f"nodes have other versions ({'; '.join(refused)}); install the server's there."
        )
    refused = [
        f"client {one.client}: {one.settings[:_SHOWN]}, the server has {settings[:_SHOWN]}"
        for one in passports
        if one.settings != settings
    ]
    if refused:
        raise ConfigError(
            f"nodes have other settings ({'; '.join(refused)}); give them the same config.yaml, "
            "modules and overrides."
        )
    refused = [str(one.client) for one in passports if one.model != model]
    if refused:
        raise ConfigError(
            f"the untrained model of client {', '.join(refused)} is another than the server's: "
            "the module must depend on its arguments and the seed alone."
        )


def _check_schemas(passports: Sequence[Passport]) -> None:
    known = [one for one in sorted(passports, key=lambda one: one.client) if one.schema]
    refused = [
        f"client {one.client}: {one.schema}" for one in known if one.schema != known[0].schema
    ]
    if refused:
        raise DataError(
            f"examples differ in form from those of client {known[0].client}, {known[0].schema}: "
            f"{'; '.join(refused)}."
        )


def remote_data(passports: Sequence[Passport]) -> RemoteData:
    """Return the clients' sizes as the server's data."""
    schema = next((one.schema for one in passports if one.schema), "0 classes")
    classes = int(schema.rpartition(", ")[2].split()[0])
    return RemoteData({one.client: dict(one.sizes) for one in passports}, classes, schema)
