"""`bridge_sqs`: messages to the queues of Amazon SQS, standard and FIFO, and from them.

Owns: the configuration; how batches are sent; what each answer means. `_sqs` says what stands
where, and knows the limits; `_sqs_in` receives and deletes.

Outward, items go in batches of ten, several batches at once. To a FIFO queue the group is the key,
and the id of the message with the rule's place is the deduplication id, so what is sent twice
within five minutes arrives once. SQS may refuse one entry of a batch and take the next, so where
there is a FIFO queue, only one item of each key is under way. A standard queue keeps no order.

A batch that SQS refuses as a whole, though it kept to the limits known here, is sent again message
by message, and the one that is refused alone is dead-lettered.

Queues have to be there, unless a rule says how to make them; how often SQS itself hands out a
message before it goes to another queue is the `RedrivePolicy` among its settings.

Must not know: what the core does with an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, model_validator

from mqttd.api import BrokerServices, Duration, FilePath, PluginConfig, Size
from mqttd_plugins._bridge.plugin import BridgePlugin
from mqttd_plugins._bridge.remote import (
    Done,
    Failure,
    Incoming,
    Intake,
    Item,
    Poison,
    Refused,
    Remote,
    Retry,
)
from mqttd_plugins._bridge.rules import BridgeConfig, Rule, overlap
from mqttd_plugins._bridge.template import INWARD, Template
from mqttd_plugins._sqs import LARGEST, check_size, entry_of, is_fifo, message_of, queue_of
from mqttd_plugins._sqs_in import BATCH, Put, Receiver, Settle

_AT_ONCE: Final = 16  # batches under way
_GIVE_BACK_S: Final = 2.0
_NO_QUEUE: Final = frozenset({"QueueDoesNotExist", "NonExistentQueue"})
_UNFIT: Final = frozenset(  # a whole batch is refused, for one message or for all together
    {
        "BatchRequestTooLong",
        "InvalidAttributeValue",
        "InvalidMessageContents",
        "InvalidParameterValue",
    }
)
_REFUSALS: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "MissingAuthenticationToken",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


Lot = list[tuple[Item, dict[str, Any]]]
"""Items and their entries, of one batch."""


class QueueConfig(PluginConfig):
    settings: dict[str, str] = {}
    """Attributes of the queue: `VisibilityTimeout`, `RedrivePolicy`, `KmsMasterKeyId` …"""


class SqsRule(Rule):
    """A rule. Outward `to` is the queue and `key` the group; inward `from` is a queue."""

    create: QueueConfig | None = None
    """Make the queue if it isn't there; outward only where `to` names one queue."""

    @model_validator(mode="after")
    def _fits_sqs(self) -> SqsRule:
        if self.direction == "in":
            if queue_of(self.source) != self.source:
                raise ValueError(f"from: {self.source!r} is no queue of SQS")
        elif "{" not in self.to:
            queue_of(self.to)
        elif self.create is not None:
            raise ValueError("create: needs the name of one queue in `to`")
        return self

    @property
    def queue(self) -> str | None:
        """The queue that the rule names; None where it may be any."""
        if self.direction == "in":
            return self.source
        return None if "{" in self.to else queue_of(self.to)

    def cover(self) -> str:
        """Inward `{topic}` is the name of the queue, so more is known than from any rule."""
        if self.direction == "out":
            return super().cover()
        return Template(self.to, INWARD).cover([self.source])


class Config(BridgeConfig):
    rules: list[SqsRule]
    """What goes which way."""
    region: str
    """Of AWS: `eu-central-1`."""
    endpoint: str | None = None
    """`http://HOST:PORT` of something that speaks like SQS; without one AWS itself."""
    access_key: str | None = None
    """Id of the access key; without one, what AWS's own tools would use."""
    secret_file: FilePath | None = None
    """Holds the secret of the access key, and may end with a line break."""
    max_message_size: Size | None = None
    """Body and attributes, of one message and of a batch; without one, what the queue says."""
    visibility: Duration = 30.0
    """After how long a message that wasn't deleted comes again."""
    poll: Annotated[int, Field(ge=0, le=20)] = 20
    """For how many seconds SQS lets a question for messages wait."""

    @model_validator(mode="after")
    def _fits_sqs(self) -> Config:
        if (self.access_key is None) != (self.secret_file is None):
            raise ValueError("access_key and secret_file: one needs the other")
        if not 1 <= self.visibility <= 43200:
            raise ValueError("visibility is 1s to 12h")
        self.all_rules()
        out = [rule for rule in self.rules if rule.direction == "out"]
        sources: dict[str, str] = {}
        for rule in self.rules:
            if rule.direction == "in":
                first = sources.setdefault(rule.source, rule.place)
                if first != rule.place:
                    raise ValueError(f"{rule.place}: {first} consumes this queue already")
                for other in out:
                    if other.queue == rule.source and overlap(rule.cover(), other.source):
                        raise ValueError(
                            f"{other.place} and {rule.place}: a loop: what goes out to the queue "
                            f"{rule.source!r} comes in as {rule.cover()!r}, and {other.source!r} "
                            f"takes it out again: use another queue, or other topics, for one of "
                            f"the two"
                        )
        return self


class BridgeSqs(BridgePlugin[Config]):
    """A bridge to Amazon SQS."""

    KIND = "sqs"

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._access = Access(None, None)

    async def check(self) -> None:
        await super().check()
        await self.broker.run_blocking(_prepare, self.config)

    async def start(self) -> None:
        self._access = await self.broker.run_blocking(_prepare, self.config)
        await super().start()

    def remote(self) -> Remote:
        return SqsRemote(self.config, self._access)


class Access(NamedTuple):
    """What a connection needs beside its configuration: the library's session, the secret."""

    session: Any
    secret: str | None


def _prepare(config: Config) -> Access:
    """Find what is missing, and read it; ValueError. In a thread: the library is large."""
    try:
        from aiobotocore.session import get_session
    except ImportError:
        raise ValueError('aiobotocore isn\'t installed: pip install "mqttd[sqs]"') from None
    secret = None if config.secret_file is None else _secret(config.secret_file)
    session = get_session()
    loader = session.get_component("data_loader")  # it remembers what it has loaded
    for name in ("endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data(name)
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("sqs", name)
    return Access(session, secret)


def _secret(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a secret as UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if not secret:
        raise ValueError(f"{path}: empty: expected a secret")
    return secret


class SqsRemote(Remote):
    """A client of SQS, from its beginning to the first failure that isn't a message's."""

    batch = BATCH

    def __init__(self, config: Config, access: Access) -> None:
        self._config = config
        self._access = access
        self._stack = contextlib.AsyncExitStack()
        self._client: Any = None
        self._urls: dict[str, str] = {}
        self._limits: dict[str, int] = {}  # by queue: what it says it takes
        self._receivers: list[Receiver] = []
        self._over: asyncio.Future[Failure] | None = None
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._works: set[asyncio.Task[None]] = set()
        fifo = any(rule.queue is None or is_fifo(rule.queue) for rule in config.rules)
        self.per_key = 1 if fifo else 0

    def end(self, failure: Failure) -> None:
        """The connection is over; the first reason counts."""
        if self._over is not None and not self._over.done():
            self._over.set_result(failure)

    async def connect(self) -> None:
        from aiobotocore.config import AioConfig

        config = self._config
        self._over = asyncio.get_running_loop().create_future()
        try:
            self._client = await self._stack.enter_async_context(
                self._access.session.create_client(
                    "sqs",
                    region_name=config.region,
                    endpoint_url=config.endpoint,
                    aws_access_key_id=config.access_key,
                    aws_secret_access_key=self._access.secret,
                    config=AioConfig(
                        connect_timeout=config.connect_timeout,
                        read_timeout=config.poll + 10,
                        max_pool_connections=_AT_ONCE + 3 * len(config.rules),
                        retries={"total_max_attempts": 1},
                    ),
                )
            )
        except Exception as error:
            raise told(error) from None
        for rule in config.rules:
            if rule.queue is not None:
                await self._look_for(rule, rule.queue)

    async def _look_for(self, rule: SqsRule, queue: str) -> None:
        """Make the queue if it is to be made. Refused, with the rule's place."""
        try:
            if rule.create is None:
                await self._url(queue)
                return
            fifo = {"FifoQueue": "true"} if is_fifo(queue) else {}
            with contextlib.suppress(_Absent):
                await self._url(queue)
                return
            made = await self._client.create_queue(
                QueueName=queue, Attributes=fifo | rule.create.settings
            )
            self._urls[queue] = made["QueueUrl"]
            await self._ask_limit(queue)
        except _Absent as absent:
            raise Refused(str(absent), rule.place) from None
        except Exception as error:
            raise told(error, rule.place) from None

    async def _url(self, queue: str) -> str:
        """`_Absent` where there is no such queue."""
        url = self._urls.get(queue)
        if url is None:
            try:
                url = (await self._client.get_queue_url(QueueName=queue))["QueueUrl"]
            except Exception as error:
                if code_of(error) in _NO_QUEUE:
                    raise _Absent(f"there is no queue {queue!r}") from None
                raise
            self._urls[queue] = url
            await self._ask_limit(queue)
        return url

    async def _ask_limit(self, queue: str) -> None:
        """How much the queue takes; who may not ask finds out from what is refused."""
        if self._config.max_message_size is not None:
            return
        try:
            answer = await self._client.get_queue_attributes(
                QueueUrl=self._urls[queue], AttributeNames=["MaximumMessageSize"]
            )
        except Exception as error:
            if not code_of(error):
                raise
            return
        said = answer.get("Attributes", {}).get("MaximumMessageSize")
        if said is not None:
            self._limits[queue] = int(said)

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)

    # Outward.

    async def send(self, items: Sequence[Item], done: Done) -> None:
        wall = time.time()
        lots: dict[str, Lot] = {}
        sizes: dict[str, int] = {}
        for item in items:
            try:
                queue = _queue(item)
                entry = entry_of(item, queue, wall)
                size = check_size(entry, self._most(queue))
            except Poison as poison:
                done(item, poison)
                continue
            if sizes.get(queue, 0) + size > self._most(queue):
                await self._hand_over(queue, lots.pop(queue), done)
                sizes[queue] = 0
            lot = lots.setdefault(queue, [])
            entry["Id"] = str(len(lot))
            lot.append((item, entry))
            sizes[queue] = sizes.get(queue, 0) + size
        for queue, lot in lots.items():
            await self._hand_over(queue, lot, done)

    def _most(self, queue: str) -> int:
        """Bytes of a message to the queue, and of a batch."""
        configured = self._config.max_message_size
        return self._limits.get(queue, LARGEST) if configured is None else configured

    async def _hand_over(self, queue: str, lot: Lot, done: Done) -> None:
        await self._free.acquire()
        self._begin(self._send(queue, lot, done))

    async def _send(self, queue: str, lot: Lot, done: Done) -> None:
        try:
            await self._send_lot(queue, lot, done)
        except _Absent as absent:
            for item, _ in lot:
                done(item, Retry(str(absent)))
        except Exception as error:
            self.end(told(error, ", ".join(sorted({item.place for item, _ in lot}))))
        finally:
            self._free.release()

    async def _send_lot(self, queue: str, lot: Lot, done: Done) -> None:
        url = await self._url(queue)
        try:
            answer = await self._client.send_message_batch(
                QueueUrl=url, Entries=[entry for _, entry in lot]
            )
        except Exception as error:
            if code_of(error) not in _UNFIT:
                raise
            if len(lot) == 1:
                done(lot[0][0], Poison(f"SQS: {error}"))
                return
            for one in lot:  # it is one of them, or all of them together
                await self._send_lot(queue, [one], done)
            return
        waiting = {entry["Id"]: item for item, entry in lot}
        for taken in answer.get("Successful", ()):
            done(waiting.pop(taken["Id"]), None)
        for refused in answer.get("Failed", ()):
            words = f"SQS: {refused.get('Code')}: {refused.get('Message', '')}"
            failure = Poison(words) if refused.get("SenderFault") else Retry(words)
            done(waiting.pop(refused["Id"]), failure)
        for item in waiting.values():
            done(item, Retry("SQS: no word of it in the answer to its batch"))

    # Inward.

    async def consume(self, intake: Intake) -> None:
        config = self._config
        for rule in intake.rules:
            receiver = Receiver(
                self._client,
                self._urls[rule.source],
                math.ceil(config.visibility),
                config.poll,
                config.window,
            )
            self._receivers.append(receiver)
            put = self._putter(rule, intake)
            self._begin(self._until_it_fails(rule, receiver.poll(intake, put, time.monotonic)))
            self._begin(self._until_it_fails(rule, receiver.keep_hidden(time.monotonic)))
            self._begin(self._until_it_fails(rule, receiver.delete_all()))

    async def _until_it_fails(self, rule: Rule, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            self.end(told(error, rule.place))

    def _putter(self, rule: Rule, intake: Intake) -> Put:
        def put(got: dict[str, Any], settle: Settle) -> None:
            message, headers = message_of(rule.source, got, time.time())
            group = got.get("Attributes", {}).get("MessageGroupId", "")
            intake.put(
                Incoming(rule, message, settle, key=group, id=got["MessageId"], headers=headers)
            )

        return put

    # The end.

    async def wait(self) -> Failure:
        assert self._over is not None
        return await self._over

    async def close(self) -> None:
        works = list(self._works)
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        receivers, self._receivers = self._receivers, []
        if self._over is not None and not self._over.done():  # it is we who end it
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_GIVE_BACK_S):
                    await asyncio.gather(*(each.give_back() for each in receivers))
        with contextlib.suppress(Exception):
            await self._stack.aclose()


class _Absent(Exception):
    """There is no such queue."""


def _queue(item: Item) -> str:
    try:
        return queue_of(item.target)
    except ValueError as error:
        raise Poison(f"to: {error}") from None


def code_of(error: Exception) -> str:
    """AWS's code of an error, without its prefix; "" for what isn't an answer of AWS."""
    response = getattr(error, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    return code.rpartition(".")[2]


def told(error: Exception, place: str = "") -> Failure:
    """What an error of the library means for the connection."""
    code = code_of(error)
    words = f"SQS: {error}"
    if code in _REFUSALS or code in _NO_QUEUE or type(error).__name__ == "NoCredentialsError":
        return Refused(words, place)
    return Retry(f"{place}: {words}" if place else words)
