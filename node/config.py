"""One frozen set of settings: defaults < TOML file < MESH_* environment < flags. The only reader of the environment.

docs/settings.md is generated from the fields below (`make docs`).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "MESH_"
CONFIG_FILE = "config.toml"
_FROM_MACHINE = ("memory_budget_bytes", "rpc_memory_bytes", "rpc_threads", "rpc_device")
KEYS_FILE = "api_keys"


class ConfigError(Exception):
    """A setting is wrong: whose, where, and what would be right."""


def default_data() -> Path:
    """Where this platform keeps a program's data."""
    return platformdirs.user_data_path("mesh", appauthor=False)


class Settings(BaseSettings):
    """All settings of a node. Frozen: a changed setting takes a restart."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    data: Path = Field(
        default_factory=default_data,
        description="Folder that holds ALL state of a node: models, API keys, the lock. One node a folder; "
        "several nodes on one machine each take their own.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address that the HTTP API listens on. Anything but loopback needs an API key.",
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port of the HTTP API; 0 takes any free one.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Keys that clients must present (Bearer or x-api-key), separated by commas; none: no key is asked "
        "for. Better kept in the file `api_keys` of the data folder, one a line, mode 600.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may use the API from a browser, separated by commas; `*` for all. None: CORS "
        "is off.",
    )
    max_body_bytes: int = Field(
        15 << 20,
        ge=1024,
        description="Largest request body, bytes. More lets clients send larger prompts, and makes them cost more "
        "memory.",
    )
    image_fetch_bytes: int = Field(
        10 << 20,
        ge=0,
        description="Largest image that is fetched when a request names one by its http(s) address, bytes; 0: none is "
        "fetched. More takes larger images, and lets a request cost more memory.",
    )
    image_fetch_timeout_s: float = Field(
        10.0, gt=0, description="Seconds in which such an image must have come, redirects and all."
    )
    image_fetch_private: bool = Field(
        False,
        description="Fetch such images also from addresses that are not public: loopback, link-local, private, this "
        "machine's own. Whoever may use the API then reaches what only this machine should.",
    )
    memory_budget_bytes: int | None = Field(
        None,
        ge=0,
        description="Memory that loaded models may take together, bytes. Default: three quarters of the machine's. "
        "More keeps more models loaded; too much makes the machine swap.",
    )
    idle_unload_s: float = Field(
        900.0,
        ge=0,
        description="Seconds after which a model without calls is unloaded; 0: never. Shorter frees memory sooner, "
        "longer spares the next caller the load.",
    )
    response_retention_s: float = Field(
        30 * 86400.0,
        ge=0,
        description="Seconds that a stored response (`/v1/responses`) is kept after its conversation was last used; 0: "
        "for ever. Longer lets old conversations go on, and makes the data folder grow.",
    )
    queue_limit: int = Field(
        128,
        ge=0,
        description="Requests that may wait for a model's slots, for each model; one more is answered 429 with "
        "Retry-After. Longer hides bursts, and makes the last one wait longer.",
    )
    load_timeout_s: float = Field(
        600.0, gt=0, description="Seconds after which a load that has not finished is given up."
    )
    shutdown_grace_s: float = Field(
        10.0,
        ge=0,
        description="Seconds that running answers get to finish after SIGTERM or Ctrl-C. A second signal ends them "
        "at once.",
    )
    name: str = Field(
        "",
        max_length=48,
        description="What other nodes call this one. Default: the machine's name.",
    )
    solo: bool = Field(False, description="Take part in no swarm: no mesh port, no discovery, no peers.")
    token: SecretStr | None = Field(
        None,
        description="Join token of the swarm to be in, as `mesh token` prints it. Better given to `mesh join`, which "
        "keeps it in the data folder, mode 600.",
    )
    mesh_host: str = Field(
        "0.0.0.0",  # noqa: S104  # other machines must reach it; whoever does has to prove the token
        description="IPv4 address that the mesh listens on for other nodes. They prove that they hold the join token "
        "before anything is served; 127.0.0.1 keeps the swarm on this machine.",
    )
    mesh_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="TCP port of the mesh. 0 takes the one of last time, else 4801, else any free one.",
    )
    direct_tunnels: bool = Field(
        True,
        description="Let the bytes of tunnels (layers of a model on other machines) go by TLS straight to the other "
        "machine, where it can be reached: faster than the mesh's own streams, which they take otherwise.",
    )
    tunnel_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="TCP port for direct tunnels, open for the seconds in which one is agreed on; 0 takes any free "
        "one. Where a firewall keeps other nodes from it, tunnels go over the mesh's streams.",
    )
    lan_discovery: bool = Field(
        True, description="Find nodes of the same swarm on the LAN by multicast DNS, and be found."
    )
    relay: bool = Field(
        False, description="Carry traffic between peers that cannot reach each other (circuit relay v2)."
    )
    dht: bool = Field(False, description="Keep a kad-dht under the swarm's own name. For swarms of hundreds of nodes.")
    routing_policy: Literal["ect", "least-loaded", "round-robin", "random"] = Field(
        "ect",
        description="How a node is chosen for a request. `ect` takes the one that will finish it first; the others are "
        "there to compare.",
    )
    hold_s: float = Field(
        120.0,
        gt=0,
        description="Seconds that a request waits at the entry node while every slot in the swarm is taken, before it "
        "is answered 429 with Retry-After.",
    )
    rpc_worker: bool = Field(
        False,
        description="Hold layers of other nodes' models: run a llama.cpp RPC server that members of the swarm reach "
        "through tunnels. Unless `memory_budget_bytes` is set, the node then serves no models of its own.",
    )
    rpc_memory_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="Memory that layers of other nodes' models may take, bytes. Default: three quarters of the "
        "machine's, less `memory_budget_bytes`.",
    )
    rpc_threads: int | None = Field(
        None, ge=1, description="Threads of the RPC server. Default: one for each core. More than that slows all down."
    )
    rpc_device: str = Field(
        "",
        max_length=64,
        description="Device of the RPC server by llama.cpp's own name (CPU, CUDA0, Metal). Default: every accelerator, "
        "else the CPU.",
    )
    rpc_cache_bytes: int = Field(
        16 << 30,
        ge=0,
        description="Disk that the RPC server's tensor cache may take (folder `rpc-cache` of the data folder), so that "
        "a model that comes again is not sent again; 0: no cache. What was used longest ago goes first, at a start.",
    )
    mlx_rank: bool = Field(
        False,
        description="Take part in other nodes' MLX models as a rank, which members of the swarm reach through tunnels, "
        "one at a time. It needs the model's folder here, too, with a model file. Unless `memory_budget_bytes` is set, "
        "the node then serves no models of its own.",
    )
    hub_url: str = Field(
        "https://huggingface.co",
        pattern=r"^https?://[^/?#@]+(/[^?#]*)?$",
        description="Model hub, or a mirror of it, that `hf://OWNER/REPO/FILE` stands for in `mesh models add`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much the node writes to standard error."
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(item.strip() for item in value if item.strip())  # an empty key would let everybody in
        return value

    @field_validator("data", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings)

    @property
    def models_dir(self) -> Path:
        """The folder of model files."""
        return self.data / "models"

    @property
    def plain_api_keys(self) -> tuple[str, ...]:
        """The keys themselves, for the one place that compares them."""
        return tuple(key.get_secret_value() for key in self.api_keys)

    @property
    def loopback(self) -> bool:
        """Whether the API can be reached from this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_settings(config: Path | None = None, **flags: Any) -> Settings:
    """The settings in force. `flags` that are None were not given; `config` stands in for <data>/config.toml.

    Raises ConfigError with one sentence a mistake.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        data = Settings(**({"data": given["data"]} if "data" in given else {})).data
        # The initial values win over the environment, so what the environment sets is taken out of the file's.
        set_outside = _in_environment()
        file = {name: value for name, value in _file_values(data, config).items() if name not in set_outside}
        settings = Settings(**(file | given))
        keys = settings.api_keys or _keys_in_file(settings.data / KEYS_FILE)
        settings = settings.model_copy(update={"api_keys": keys})
    except ValidationError as error:
        raise ConfigError("; ".join(_mistake(item) for item in error.errors())) from error
    if not settings.loopback and not settings.api_keys:
        raise ConfigError(
            f"The API may listen on {settings.host} only with an API key: put one into {settings.data / KEYS_FILE} "
            "(one a line, mode 600) or into MESH_API_KEYS."
        )
    return settings


def _in_environment() -> set[str]:
    """The settings that the environment sets; like pydantic it asks neither for upper case nor for empty values."""
    names = (name.lower() for name, value in os.environ.items() if value)
    return {name.removeprefix(PREFIX.lower()) for name in names if name.startswith(PREFIX.lower())}


def _file_values(data: Path, named: Path | None) -> dict[str, Any]:
    path = named or data / CONFIG_FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if named is None:
            return {}
        raise ConfigError(f"There is no settings file {path}.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The settings file {path} cannot be read: {error}") from error
    _check_known(path, values)
    if "api_keys" in values:
        _check_private(path)
    return values


def _check_known(path: Path, names: Iterable[str]) -> None:
    known = set(Settings.model_fields) - {"data"}  # the file lies in it
    for name in names:
        if name == "data":
            raise ConfigError(f"{path} sets data, which only --data or {PREFIX}DATA can.")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(sorted(known))}."
            raise ConfigError(f"{path} sets {name}, which is no setting.{hint}")


def _keys_in_file(path: Path) -> tuple[SecretStr, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The file of API keys {path} cannot be read: {error}") from error
    _check_private(path)
    return tuple(SecretStr(key) for line in lines if (key := line.partition("#")[0].strip()))


def _check_private(path: Path) -> None:
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} holds secrets, and others may read it. Run: chmod 600 {path}")


def _mistake(item: Any) -> str:
    """One pydantic error as a sentence, without the value: it may be a secret."""
    name = ".".join(str(part) for part in item["loc"]) or "settings"
    return f"The setting {name} ({PREFIX}{name.upper()}) is wrong: {item['msg']}"


def settings_markdown() -> str:
    """docs/settings.md, from the fields above."""
    lines = [
        "# Settings",
        "",
        "<!-- Generated by `make docs` from node/config.py: change it there. -->",
        "",
        "Each has a default; `config.toml` in the data folder (or the file that `--config` names) overrides it, a\n"
        "`MESH_*` variable overrides the file,",
        "and a flag of `mesh up` overrides them all. `mesh up --help` shows the flags.",
        "",
        "| setting | variable | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        if name == "data":
            default = "the platform's own"
        elif field.default in ((), None, ""):
            default = "from the machine" if name in _FROM_MACHINE else "none"
        else:
            default = f"`{field.default}`"
        lines.append(f"| `{name}` | `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"
