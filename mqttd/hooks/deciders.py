"""The chains: what all plugins together decide, and what they make of a message.

Owns: how answers of several plugins combine (the first that has an opinion counts; none at all is
a no), what the failure of a plugin counts as, and that a topic which a plugin has changed is
authorised again.

Must not know: connections, the core's packets, tasks. Each chain is a coroutine that never waits
where no plugin does.

Invariants: fail closed: an exception, a time-out or a nonsensical answer is a refusal, unless the
configuration says otherwise for that plugin; no plugin sees a message that was refused before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mqttd.core.errors import ProtocolError
from mqttd.core.topics import split_shared, validate_topic_filter, validate_topic_name
from mqttd.hooks.convert import core_message_of
from mqttd.hooks.guard import Failed, Guard
from mqttd.hooks.values import (
    ALLOW,
    NOT_MINE,
    Allow,
    Client,
    ConnectRequest,
    Continue,
    Credentials,
    Decision,
    Deny,
    Drop,
    Message,
    NotMine,
    SubscriptionRequest,
    Undelivered,
)

_DECISION: Final = (Allow, Deny, NotMine)
_NOTHING: Final = type(None)
_BROKEN: Final = "it can't be decided at the moment"
_DECIDERS: Final = ("authenticate", "authorize_publish", "authorize_subscribe", "authorize_receive")
_TRANSFORMERS: Final = ("on_connect", "on_subscribe", "on_unsubscribe", "on_publish", "on_deliver")
# `on_undelivered` is neither: it needs no client.


class Chains:
    """The plugins of one broker, hook by hook, in the order of the configuration."""

    def __init__(self, guards: Sequence[Guard], max_topic_levels: int) -> None:
        def with_hook(name: str) -> tuple[Guard, ...]:
            return tuple(guard for guard in guards if guard.has(name))

        self.max_topic_levels = max_topic_levels
        self.authenticators = with_hook("authenticate")
        self.enhanced = {
            method: guard
            for guard in reversed(with_hook("authenticate_enhanced"))
            for method in guard.plugin.auth_methods
        }
        self.publish_deciders = with_hook("authorize_publish")
        self.subscribe_deciders = with_hook("authorize_subscribe")
        self.receive_deciders = with_hook("authorize_receive")
        self.on_connect = with_hook("on_connect")
        self.on_subscribe = with_hook("on_subscribe")
        self.on_unsubscribe = with_hook("on_unsubscribe")
        self.on_publish = with_hook("on_publish")
        self.on_deliver = with_hook("on_deliver")
        self.on_undelivered = with_hook("on_undelivered")

        self.any = any(
            guard.has(name)
            for guard in guards
            for name in (*_DECIDERS, *_TRANSFORMERS, "authenticate_enhanced")
        )

    # Deciders.

    async def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        for guard in self.authenticators:
            answer = await guard.ask("authenticate", _DECISION, client, credentials)
            decision = _decided(guard, answer)
            if not isinstance(decision, NotMine):
                return decision
        return NOT_MINE

    async def authenticate_enhanced(
        self, client: Client, method: str, data: bytes | None, first: bool
    ) -> Continue | Allow | Deny:
        guard = self.enhanced[method]
        answer = await guard.ask(
            "authenticate_enhanced", (Continue, Allow, Deny), client, method, data, first
        )
        if isinstance(
            answer, Failed
        ):  # nobody else speaks this method: there is nothing to skip to
            return broken(answer)
        return answer  # type: ignore[no-any-return]

    async def authorize_publish(
        self, client: Client, topic: str, qos: int, retain: bool
    ) -> Allow | Deny:
        if not self.publish_deciders:
            return ALLOW
        for guard in self.publish_deciders:
            answer = await guard.ask("authorize_publish", _DECISION, client, topic, qos, retain)
            decision = _decided(guard, answer)
            if not isinstance(decision, NotMine):
                return decision
        return _nobody("publish to")

    async def authorize_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> Allow | Deny:
        if not self.subscribe_deciders:
            return ALLOW
        for guard in self.subscribe_deciders:
            answer = await guard.ask("authorize_subscribe", _DECISION, client, subscription)
            decision = _decided(guard, answer)
            if not isinstance(decision, NotMine):
                return decision
        return _nobody("subscribe to")

    def authorize_receive(self, client: Client, topic: str) -> Allow | Deny:
        if not self.receive_deciders:
            return ALLOW
        for guard in self.receive_deciders:
            answer = guard.ask_now("authorize_receive", _DECISION, client, topic)
            decision = _decided(guard, answer)
            if not isinstance(decision, NotMine):
                return decision
        return _nobody("receive")

    # Transformers.

    async def connect(
        self, client: Client, request: ConnectRequest
    ) -> tuple[ConnectRequest | Deny, Guard | None]:
        """The CONNECT to go on with, and the plugin that was the last to change it."""
        valid = (ConnectRequest, Deny, _NOTHING)
        made_by: Guard | None = None
        for guard in self.on_connect:
            answer = _transformed(guard, await guard.ask("on_connect", valid, client, request))
            if isinstance(answer, Deny):
                return answer, guard
            if answer is not None and answer != request:
                request = answer
                made_by = guard
        return request, made_by

    async def subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> tuple[SubscriptionRequest, Allow | Deny]:
        valid = (SubscriptionRequest, Deny, _NOTHING)
        for guard in self.on_subscribe:
            answer = _transformed(
                guard, await guard.ask("on_subscribe", valid, client, subscription)
            )
            if isinstance(answer, Deny):
                return subscription, answer
            if answer is not None:
                wrong = self._wrong_subscription(answer)
                if wrong:
                    return subscription, broken(guard.reject("on_subscribe", wrong))
                subscription = answer
        return subscription, await self.authorize_subscribe(client, subscription)

    def _wrong_subscription(self, subscription: SubscriptionRequest) -> str:
        """What is wrong with a subscription that a plugin made; "" for nothing."""
        try:
            validate_topic_filter(subscription.topic_filter, self.max_topic_levels)
        except (ProtocolError, TypeError, AttributeError) as error:
            return f"an invalid filter: {error}"
        options = (subscription.qos, subscription.retain_handling)
        if any(option not in (0, 1, 2) for option in options):
            return "an invalid subscription: QoS and retain handling have to be 0, 1 or 2"
        if subscription.no_local and split_shared(subscription.topic_filter)[0]:
            return "an invalid subscription: a shared one can't be no_local"
        return ""

    def unsubscribe(self, client: Client, topic_filter: str) -> str:
        for guard in self.on_unsubscribe:
            answer = guard.ask_now("on_unsubscribe", (str, _NOTHING), client, topic_filter)
            if isinstance(answer, str):
                topic_filter = answer
        return topic_filter

    async def publish(
        self, client: Client, message: Message, granted: bool
    ) -> tuple[Allow | Deny, Message | None, str, bool]:
        """Decide on a message: the verdict, the message to route, who changed it, and whether the
        verdict is one about the topic as it came. `granted`: that was allowed before."""
        decision: Allow | Deny = ALLOW
        if not granted:
            decision = await self.authorize_publish(
                client, message.topic, message.qos, message.retain
            )
            if isinstance(decision, Deny):
                return decision, None, "", True
        changes: list[str] = []
        for guard in self.on_publish:
            before = message
            answer = await guard.ask("on_publish", (Message, Deny, Drop, _NOTHING), client, message)
            answer = _transformed(guard, answer)
            if answer is None or answer is before:
                continue
            if isinstance(answer, Deny):
                return answer, None, guard.name, False
            if isinstance(answer, Drop):
                return decision, None, f"{guard.name}: {answer.reason}", False
            message = answer
            changes.append(guard.name)
            wrong = self._wrong(message)
            if wrong:
                return broken(guard.reject("on_publish", wrong)), None, "", False
            if message.topic != before.topic:
                again = await self.authorize_publish(
                    client, message.topic, message.qos, message.retain
                )
                if isinstance(again, Deny):
                    return again, None, guard.name, False
        return decision, message, ", ".join(changes), True

    def _wrong(self, message: Message) -> str:
        """What is wrong with a message that a plugin made; "" for nothing."""
        try:
            validate_topic_name(message.topic, self.max_topic_levels)
            core_message_of(message, 0.0, "")
        except (ProtocolError, ValueError, TypeError, AttributeError) as error:
            return f"an invalid message: {error}"
        return ""

    def deliver(self, client: Client, message: Message) -> Message | Drop:
        for guard in self.on_deliver:
            answer = guard.ask_now("on_deliver", (Message, Drop, _NOTHING), client, message)
            answer = _transformed(guard, answer)
            if isinstance(answer, Drop):
                return answer
            if isinstance(answer, Deny):
                return Drop(answer.rule or answer.reason)
            if answer is not None:
                wrong = self._wrong(answer)
                if wrong:
                    return Drop(guard.reject("on_deliver", wrong).reason)
                message = answer
        return message

    def undelivered(self, undelivered: Undelivered) -> Message | None:
        """The dead letter of the first plugin that has one."""
        for guard in self.on_undelivered:
            if undelivered.reason not in guard.plugin.undelivered:
                continue
            answer = guard.ask_now("on_undelivered", (Message, _NOTHING), undelivered)
            if isinstance(answer, Message):
                wrong = self._wrong(answer)
                if not wrong:
                    return answer
                guard.reject("on_undelivered", wrong)
        return None


def _decided(guard: Guard, answer: Any) -> Decision:
    """The decision of one plugin, or what its failure counts as."""
    if not isinstance(answer, Failed):
        return answer  # type: ignore[no-any-return]
    if guard.on_failure == "allow":
        return Allow(rule=answer.reason, cache=False)
    if guard.on_failure == "skip":
        return NOT_MINE
    return broken(answer)


def broken(answer: Failed) -> Deny:
    """The refusal that a failure is. What failed is for the log: a client may be anybody."""
    return Deny(_BROKEN, answer.code, rule=answer.reason, cache=False)


def _transformed(guard: Guard, answer: Any) -> Any:
    if not isinstance(answer, Failed):
        return answer
    if guard.on_failure == "deny":
        return broken(answer)
    return None


def _nobody(what: str) -> Deny:
    return Deny(f"no rule allows to {what} it")
