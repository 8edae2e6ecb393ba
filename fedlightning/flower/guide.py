"""What an app's folder says about running it: commands, and a systemd unit for each role."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

__all__ = ["nodes_page", "units"]

_ENVIRONMENT = """\
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1
"""

_PAGE = """\
# {name}: how to run it

`SERVER` is the name or address under which the nodes reach the server. Work in the folder that
holds `{folder}`, not in it: Flower sends text files of that folder to every node. On every machine,
Python 3.11 or newer, the same versions of everything:

```bash
python3 -m venv venv && . venv/bin/activate
pip install 'fedlightning[flower]'
{environment}```

## Certificates and keys

At the server, once: a certificate authority, the server's certificate, and a key for each node.

```bash
openssl ecparam -name secp384r1 -genkey -noout -out ca.key
openssl req -x509 -new -sha256 -key ca.key -days 3650 -subj /CN=federation -out ca.crt \\
  -addext keyUsage=critical,keyCertSign,cRLSign
openssl ecparam -name secp384r1 -genkey -noout -out server.key
openssl req -new -key server.key -subj /CN=SERVER -out server.csr
printf 'subjectAltName=DNS:SERVER,DNS:localhost,IP:127.0.0.1\\n' > server.ext
printf 'authorityKeyIdentifier=keyid\\nsubjectKeyIdentifier=hash\\n' >> server.ext
openssl x509 -req -sha256 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 \\
  -extfile server.ext -out server.pem
{keys}
```

Where `SERVER` is an address, write `IP:SERVER` in the place of `DNS:SERVER`. Each node gets
`ca.crt` and its own key file, and nothing else; better, each makes its key itself and sends the
`.pub` file.{peers}

## The server

```bash
flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key \\
  --enable-supernode-auth --host 0.0.0.0 --port 8000 --database superlink.db \\
  --disable-runtime-dependency-installation
```

The port serves nodes (`/v1/fleet/`), the `flwr` command (`/v1/control/`) and the apps' processes
(`/v1/runtime/`). **The `flwr` command needs no login: who reaches the port and has `ca.crt` runs
any Python at all nodes.** Let a proxy pass `/v1/fleet/` alone to the outside, and a firewall admit
the nodes only.

Tell the `flwr` command, on the same machine, where the server is, and which nodes it admits:

```bash
export FLWR_HOME=$PWD/flwr && mkdir -p $FLWR_HOME
cat > $FLWR_HOME/config.toml <<END
[superlink]
default = "here"
[superlink.here]
address = "localhost:8000"
root-certificates = "$PWD/ca.crt"
END
{register}
```

## The nodes

One for each client, on its own machine. `store` is the folder of what the client keeps, its
personal model included; it must outlive the process.{root} A killed node cannot come back for a
minute: let something start it again until it does (`systemd/` has a unit).

```bash
{nodes}
```

Two nodes on one machine need two ports: `--port 9095` for the second.

## The run

```bash
flwr run {folder} here --stream
```

Options change without a new app: `--run-config 'overrides="--trainer.max_epochs=50"'`. After a
crash of the server the same command goes on from the last round; `--run-config 'resume=false'`
begins anew. Results are in the run folder at the server; personal models are in each node's store.
"""

_PEERS = """

Nodes mask what they send, so that the server reads sums alone. They sign what they settle with each
other by the same keys, and each must know the others' from somebody it trusts, **not from the
server**: exchange the `.pub` files among yourselves, compare them by telephone
(`ssh-keygen -l -f FILE`), and put all of them into a folder on each node's machine:

```bash
mkdir -p peers && cp node-*.pub peers
```"""

_SUPERLINK = """\
[Unit]
Description=fedlightning: server of {name}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
User=fedlightning
WorkingDirectory=/var/lib/fedlightning
Environment=FLWR_HOME=/var/lib/fedlightning/flwr FLWR_TELEMETRY_ENABLED=0
Environment=FLWR_DISABLE_UPDATE_CHECK=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1
Environment=PATH=/opt/fedlightning/bin:/usr/bin:/bin
ExecStart=/opt/fedlightning/bin/flower-superlink --ssl-ca-certfile /etc/fedlightning/ca.crt \\
  --ssl-certfile /etc/fedlightning/server.pem --ssl-keyfile /etc/fedlightning/server.key \\
  --enable-supernode-auth --host 0.0.0.0 --port 8000 --database superlink.db \\
  --disable-runtime-dependency-installation
Restart=always
RestartSec=10

[Install]
WantedBy=multi-user.target
"""

_SUPERNODE = """\
# An instance for a client: systemctl enable --now fedlightning-node@0
[Unit]
Description=fedlightning: node of client %i of {name}
After=network-online.target
Wants=network-online.target
# the server refuses a killed node for a minute, so tries must not be counted
StartLimitIntervalSec=0

[Service]
User=fedlightning
WorkingDirectory=/var/lib/fedlightning
# {variables}
EnvironmentFile=/etc/fedlightning/node.env
Environment=FLWR_HOME=/var/lib/fedlightning/flwr FLWR_TELEMETRY_ENABLED=0
Environment=FLWR_DISABLE_UPDATE_CHECK=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1
Environment=PATH=/opt/fedlightning/bin:/usr/bin:/bin
ExecStart=/opt/fedlightning/bin/flower-supernode --superlink ${{SUPERLINK}} \\
  --root-certificates /etc/fedlightning/ca.crt \\
  --auth-supernode-private-key /etc/fedlightning/node-%i \\
  --node-config 'client="%i" store="/var/lib/fedlightning/client-%i"{root}{keys}'
Restart=always
RestartSec=10

[Install]
WantedBy=multi-user.target
"""


def nodes_page(name: str, folder: str, clients: Sequence[str], has_root: bool, masked: bool) -> str:
    """Return the text of ``NODES.md``.

    Args:
        name: The app's name.
        folder: The name of its folder.
        clients: The clients as a node's config names them.
        has_root: Whether the data is read from a folder, ``data.root``.
        masked: Whether nodes mask what they send.
    """
    root = " root=\"'$PWD'/data\"" if has_root else ""
    plain = [client.strip('"') for client in clients]
    keys = [shlex.quote(f"node-{name}") for name in plain]
    names = [shlex.quote(name) for name in plain]
    return _PAGE.format(
        name=name,
        folder=folder,
        root=" `root` replaces `data.root` of the config." if has_root else "",
        environment=_ENVIRONMENT,
        peers=_PEERS if masked else "",
        keys="\n".join(f"ssh-keygen -q -t ecdsa -b 384 -N '' -f {key}" for key in keys),
        register="\n".join(
            f"flwr supernode register {key}.pub here --name {name}"
            for key, name in zip(keys, names, strict=True)
        ),
        nodes="\n".join(
            "flower-supernode --root-certificates ca.crt --superlink SERVER:8000 \\\n"
            f"  --auth-supernode-private-key {key} \\\n"
            f"  --node-config 'client={client} store=\"'$PWD'/client-{name}\"{root}"
            + (f" key=\"'$PWD'/node-{name}\" peers=\"'$PWD'/peers\"'" if masked else "'")
            for name, key, client in zip(plain, keys, clients, strict=True)
        ),
    )


def units(name: str, has_root: bool, masked: bool) -> dict[str, str]:
    """Return the systemd units, by the names of their files.

    Args:
        name: The app's name.
        has_root: Whether the data is read from a folder, ``data.root``.
        masked: Whether nodes mask what they send.
    """
    folder = "/etc/fedlightning"
    facts = {
        "name": name,
        "root": ' root="${ROOT}"' if has_root else "",
        "keys": f' key="{folder}/node-%i" peers="{folder}/peers"' * masked,
        "variables": "SUPERLINK=SERVER:8000" + (" and ROOT=/folder/of/the/data" * has_root),
    }
    return {
        "fedlightning-server.service": _SUPERLINK.format(**facts),
        "fedlightning-node@.service": _SUPERNODE.format(**facts),
    }
