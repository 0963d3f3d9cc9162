"""mqttd: an MQTT 5 broker for IoT devices, as a command and as a library.

    async with mqttd.Broker({"listeners": [{"name": "t", "bind": "127.0.0.1:0"}]}) as broker:
        broker.port("t")

Owns: the version, whether the core is compiled, and the embedding face. `Broker` is a broker on the
running loop, started by entering the block and gone without a trace at its end; as many as wanted
in one process, at once or one after the other. It touches neither signals, nor logging, nor the
collector: they are the embedder's.

Must not know: anything at import time. Each part is imported when it is used, so that `import
mqttd` costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqttd.app import App
    from mqttd.config import Config

__all__ = ["COMPILED", "Broker", "Config", "__version__"]

__version__ = "0.1.0"

COMPILED: bool
"""Whether the core runs as a native module."""


def __getattr__(name: str) -> Any:
    if name == "COMPILED":
        from mqttd.core import broker

        return not (broker.__file__ or "").endswith(".py")
    if name == "Config":
        from mqttd.config import Config

        return Config
    raise AttributeError(f"module 'mqttd' has no attribute {name!r}")


class Broker:
    """A broker inside this process: an asynchronous context manager."""

    def __init__(self, config: Config | Mapping[str, object] | None = None) -> None:
        """`config` is the tree of the configuration file; without one, a free port on loopback.

        A tree without `storage` keeps nothing beyond this broker: no file appears unasked in
        somebody's working directory. ConfigError (a ValueError) if the tree is wrong.
        """
        from mqttd.app import App
        from mqttd.config import Config, StorageConfig, parse_config

        if config is None:
            config = {"listeners": [{"name": "tcp", "bind": "127.0.0.1:0"}]}
        if not isinstance(config, Config):
            config = parse_config(config)
        if "storage" not in config.model_fields_set:
            config = config.model_copy(update={"storage": StorageConfig(path=":memory:")})
        self.config: Config = config
        self._app: App = App(self.config)

    async def __aenter__(self) -> Broker:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; OSError's cousin `ListenError` if an address can't be had."""
        await self._app.start()

    async def stop(self, grace: float = 0.05) -> None:
        """Tell the clients, wait up to `grace` seconds until they have closed, and end."""
        await self._app.stop(grace)

    @property
    def failed(self) -> bool:
        """The store broke: nothing is acknowledged any more, and the log says why."""
        return self._app.failed

    def port(self, name: str) -> int:
        """The real TCP port of a listener; 0 for a Unix socket. KeyError if there is none."""
        for listener in self._app.listeners:
            if listener.endpoint.name == name:
                return listener.port
        raise KeyError(name)
