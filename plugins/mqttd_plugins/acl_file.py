"""Who may publish and receive what, by a file in Mosquitto's syntax.

Owns: the plugin `acl_file`: reading the file and reading it again, the three decisions, the mode
that only observes. The syntax is `_acl_text`, the meaning `_acl_rights`; `mqttd acl check` asks the
same two.

Must not know: how names were verified. The user name is the one that the authenticators settled on.

Invariants:
- A list that says nothing about it denies: the empty one denies everything (CVE-2018-12550).
- A file that is bad or gone while the broker runs changes nothing; at the start it stops the start.
- SUBSCRIBE is judged by the filter behind `$share/GROUP/`. What it is granted is still filtered at
  each delivery, and so is what was queued or retained before the list changed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, Literal

from mqttd.api import (
    Allow,
    BrokerServices,
    Client,
    Decision,
    Deny,
    FilePath,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
)
from mqttd_plugins._acl_rights import Acl, Rights, Ruling
from mqttd_plugins._acl_text import AclText, parse
from mqttd_plugins._files import Followed, Interval

_LINES: Final = 20
_WINDOW_S: Final = 60.0
"""What `observe` may write into the log: so many lines in so many seconds."""


class Config(PluginConfig):
    file: FilePath
    """The access control list."""
    observe: bool = False
    """Allow everything, and log and count what would have been denied."""
    compat: Literal["mosquitto"] | None = None
    """`mosquitto`: grant every SUBSCRIBE, and only filter what is delivered."""
    partial_filters: Literal["allow", "deny"] = "allow"
    """A SUBSCRIBE to more than may be read: grant it and filter deliveries, or refuse it."""
    check_interval: Interval = 2.0
    """How often to look whether the file has changed; 0: only when told to reload."""


class AclFile(Plugin[Config]):
    """Decides about PUBLISH, SUBSCRIBE and each delivery; has an opinion about all of them."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._acl = Acl(AclText(str(config.file)))
        self._files: Followed[AclText] = Followed(broker, "rules", self._changed)
        self._key = f"{broker.name}.rights"
        self._lines = 0
        self._window_until = 0.0

    async def start(self) -> None:
        self._install(await self._follow(self.config))

    async def stop(self) -> None:
        self._files.stop()

    async def check(self) -> None:
        await self.broker.run_blocking(load, self.config.file)

    async def reload(self, config: Config) -> None:
        text = await self._follow(config)
        self.config = config
        self._install(text)
        self.broker.forget_decisions()

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return self._decide(client, "publish", topic)

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        return self._decide(client, "subscribe", subscription.inner_filter)

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return self._decide(client, "receive", topic)

    def _rights(self, client: Client) -> Rights:
        """Put together once for each client, as long as list and names stay what they are."""
        acl, username, client_id = self._acl, client.username, client.client_id
        known = client.attributes.get(self._key)
        if known is not None and known[0] is acl and known[1:3] == (username, client_id):
            rights: Rights = known[3]
            return rights
        rights = acl.rights(username, client_id)
        client.attributes[self._key] = (acl, username, client_id, rights)
        return rights

    def _decide(self, client: Client, action: str, topic: str) -> Decision:
        ruling = judge(self.config, self._acl, self._rights(client), action, topic)
        where = self._acl.where(ruling)
        if ruling.allowed:
            return Allow(where)
        if self.config.observe:
            self.broker.count("would_deny")
            self._tell(client, action, topic, where)
            return Allow(f"observe, would deny: {where}")
        self.broker.count(f"denied_{action}")
        return Deny("not allowed by the access control list", rule=where)

    def _tell(self, client: Client, action: str, topic: str, where: str) -> None:
        now = self.broker.now()
        if now >= self._window_until:
            if self._lines > _LINES:
                self.broker.log.info("%d more would be denied", self._lines - _LINES)
            self._lines = 0
            self._window_until = now + _WINDOW_S
        self._lines += 1
        if self._lines <= _LINES:
            names = (ascii(client.client_id), ascii(client.username), action, ascii(topic), where)
            self.broker.log.info("would deny client %s, user %s: %s %s, by %s", *names)

    async def _follow(self, config: Config) -> AclText:
        read = partial(load, config.file)
        return await self._files.follow([config.file], config.check_interval, read)

    def _changed(self, text: AclText) -> None:
        self._install(text)
        self.broker.forget_decisions()
        self.broker.audit("acl_reloaded", file=str(self.config.file), rules=len(text))

    def _install(self, text: AclText) -> None:
        self._acl = Acl(text)
        self.broker.gauge("rules", len(text))
        for warning in text.warnings:
            self.broker.log.warning("%s", warning)
        if not len(text):
            self.broker.log.warning("%s: no rules, everything is denied", text.file)


def load(file: Path) -> AclText:
    """Read and parse; AclError for what is wrong in it, OSError where it can't be read."""
    return parse(file.read_bytes(), str(file))


def judge(config: Config, acl: Acl, rights: Rights, action: str, topic: str) -> Ruling:
    """What the list says in the way that is configured, but for `observe`.

    `action` is publish, receive or subscribe, `topic` for the last an inner filter.
    """
    if action == "publish":
        return rights.publish(topic)
    if action == "receive":
        return rights.receive(topic)
    if config.compat == "mosquitto":
        return Ruling(True, None, "compat: mosquitto", partial=True)
    ruling = rights.subscribe(topic)
    if ruling.allowed and ruling.partial and config.partial_filters == "deny":
        return Ruling(False, None, f"it reaches further than {acl.where(ruling)}")
    return ruling
