"""Whether Spark would show a run's keys to others: they are in the closure of each task, so where that goes.

    over the network       spark.authenticate with spark.network.crypto.enabled, or SSL for RPC, or SASL as of old
    to the disks of hosts  spark.io.encryption.enabled; else they lie there in folders that only one user can enter

Event logs have no closures. They have texts of errors, and with these what rows or paths they quote.
"""

from __future__ import annotations

from collections.abc import Callable

Conf = Callable[[str], str | None]
"""The value of a setting, by its full name; None if it is not set."""

ENCRYPTS = ("spark.network.crypto.enabled", "spark.authenticate.enableSaslEncryption")
"""Each of them encrypts what goes over the network, with `spark.authenticate`."""
SSL = "spark.ssl.rpc.enabled"
"""It encrypts, too. Whoever can connect may still ask, where `spark.authenticate` is not set as well."""


def is_on(conf: Conf, name: str) -> bool:
    """Whether a setting says true."""
    return (conf(name) or "false").strip().lower() == "true"


def lacking(conf: Conf) -> list[str]:
    """The settings to switch on, so that nobody else on the network can read what tasks carry."""
    found = [] if is_on(conf, "spark.authenticate") else ["spark.authenticate"]
    if not any(is_on(conf, name) for name in (*ENCRYPTS, SSL)):
        found.append(ENCRYPTS[0])
    return found


def cautions(conf: Conf) -> dict[str, str]:
    """What to warn of, by name, where executors are on other hosts."""
    found = lacking(conf)
    if not found:
        return {}
    return {
        "keys in the clear": (
            f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} off: the tasks of a training carry its keys, "
            "and whoever is on the network of this Spark cluster can get them from there, read the model and change "
            f"the training. Set {' and '.join(f'{name}=true' for name in found)} (outside of YARN and Kubernetes "
            "spark.authenticate.secret, too), unless you trust all who can reach the cluster's ports"
        )
    }
