"""The second look at a scenario: everything that a single key can't tell.

Owns the rules between keys: names that must exist and be unique, templates and what they give for
the first and the last device, what needs MQTT 5, formulas and the fields they use, files that must
be readable, stages that must come to an end. Each rule yields `(loc, found, expected, hint)`; a
scenario that passes can be run without another look at any of them.

A problem stands where the text does: what a group takes from its profile is told at the profile.

Must not know: YAML, marks, how a problem is printed. That is `device_sim.language.load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from device_sim.judge import thresholds
from device_sim.language import values
from device_sim.language.actions import GroupAction, Publish, Stage
from device_sim.language.content import Content, Value
from device_sim.language.expression import Expression
from device_sim.language.naming import (
    DEVICE_PARTS,
    TOPIC_PARTS,
    Names,
    Template,
    deal,
    filter_fault,
    topic_fault,
)
from device_sim.language.scenario import Group, Paced, PublishEntry, RequestEntry, Scenario, Tls

Loc = tuple[int | str, ...]
Fault = tuple[Loc, str, str, str]

RESERVED_TAGS: Final = TOPIC_PARTS | {"stream", "seq"}
OPEN_ENDED: Final = ("publish", "slow_reader", "pause", "network")
_RUN: Final = "0" * 8
_SHORT_ID: Final = 23
_TOLD: Final = 3
"""So many files that can't be read are named."""


def second_look(scenario: Scenario) -> Iterator[Fault]:
    """Everything that is wrong with a scenario whose keys are all right by themselves."""
    names: set[str] = set()
    sound = True
    for index, group in enumerate(scenario.groups):
        here: Loc = ("groups", index)
        if group.name in names:
            yield (*here, "name"), f"found {group.name!r} twice", "a name of its own", ""
            sound = False
        names.add(group.name)
        if group.profile is not None and group.profile not in scenario.profiles:
            known = ", ".join(scenario.profiles) or "none"
            yield (
                (*here, "profile"),
                f"found {group.profile!r}",
                "the name of a profile",
                f"there are: {known}",
            )
            sound = False
    for text_at, text in enumerate(scenario.thresholds):
        try:
            thresholds.parse([text])
        except ValueError as error:
            yield ("thresholds", text_at), f"found {text!r}", "a term of --fail-on", str(error)
    if not sound:
        return
    seen: set[Fault] = set()
    for index in range(len(scenario.groups)):
        for fault in _Look(scenario, index).faults():
            if fault not in seen:  # groups of one profile share its faults
                seen.add(fault)
                yield fault
    if not seen:
        yield from _ids(scenario)
    yield from _launch(scenario)
    for index, stage in enumerate(scenario.stages):
        yield from _stage(scenario, stage, ("stages", index))


def _ids(scenario: Scenario) -> Iterator[Fault]:
    """Two clients of one id would throw each other out."""
    taken: dict[str, str] = {}
    for at, group in enumerate(scenario.groups):
        here: Loc = ("groups", at, "id")
        pattern = Template(group.id)
        short = scenario.devices_of(group).version == "3.1"
        for index in range(group.count):
            client_id = Names(_RUN, group.name, index, pattern, group.tags).client_id
            if client_id in taken:
                hint = f"{client_id!r} is also in {taken[client_id]!r}; use {{group}} and {{index}}"
                yield here, f"found {group.id!r}", "an id of its own for each device", hint
                break
            if short and len(client_id) > _SHORT_ID:
                hint = f"{client_id!r} has {len(client_id)}"
                yield here, f"found {group.id!r}", "at most 23 characters with MQTT 3.1", hint
                break
            taken[client_id] = group.name


def _launch(scenario: Scenario) -> Iterator[Fault]:
    broker = scenario.broker
    launch = broker.start
    if launch is None:
        return
    texts = [*launch.command, *launch.files.values()]
    if not broker.port and not any("{port}" in text for text in texts):
        expected = "{port} in the command or a file, or broker.port"
        yield ("broker", "start"), "found no port", expected, ""
    for name in launch.files:
        if "/" in name or name in ("", ".", ".."):
            yield ("broker", "start", "files", name), f"found {name!r}", "a plain file name", ""


def _why_unreadable(file: str) -> str:
    try:
        with open(file, "rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _stage(scenario: Scenario, stage: Stage, here: Loc) -> Iterator[Fault]:
    if stage.duration is None and all(action.kind in OPEN_ENDED for action in stage.actions):
        ends = [action.body.duration for action in stage.actions if action.body.duration]
        counts = [a.body.count for a in stage.actions if isinstance(a.body, Publish)]
        if not ends and not any(counts):
            yield here, "nothing ends this stage", "duration, or an action with an end", ""
    for index, action in enumerate(stage.actions):
        at: Loc = (*here, "actions", index, action.kind)
        body = action.body
        if stage.duration is not None and body.at > stage.duration:
            expected = f"less than the stage's duration, {stage.duration:g} s"
            yield (*at, "at"), f"begins after {body.at:g} s", expected, ""
        if action.kind in ("kill_broker", "restart_broker") and scenario.broker.start is None:
            yield at, "found no broker to act on", "broker.start", "the scenario has to start it"
        if isinstance(body, GroupAction):
            yield from _chosen(scenario, body, at)


def _chosen(scenario: Scenario, body: GroupAction, at: Loc) -> Iterator[Fault]:
    known = {group.name for group in scenario.groups}
    for index, name in enumerate(body.groups):
        if name not in known:
            hint = f"there are: {', '.join(sorted(known))}"
            yield (*at, "groups", index), f"found {name!r}", "the name of a group", hint
    if not isinstance(body, Publish):
        return
    entries = {
        entry.name
        for group in scenario.chosen(body.groups)
        for entry in [*group.publish, *group.request]
        if entry.name is not None
    }
    for index, name in enumerate(body.entries):
        if name not in entries:
            hint = f"there are: {', '.join(sorted(entries)) or 'none'}"
            yield (*at, "entries", index), f"found {name!r}", "the name of an entry", hint


class _Look:
    """The look at one group, complete with what it takes from its profile."""

    def __init__(self, scenario: Scenario, index: int) -> None:
        self.scenario = scenario
        self.own = scenario.groups[index]
        self.group: Group = scenario.devices_of(self.own)
        self.index = index
        self.tags = frozenset(self.own.tags)
        self.ends: list[Names] = []

    def at(self, key: str) -> Loc:
        """Where the text of a key stands."""
        if key not in self.own.model_fields_set and self.own.profile is not None:
            return "profiles", self.own.profile, key
        return "groups", self.index, key

    def faults(self) -> Iterator[Fault]:
        group = self.group
        for tag in group.tags:
            if tag in RESERVED_TAGS or tag.startswith("target"):
                yield ("groups", self.index, "tags", tag), f"found {tag!r}", "another name", ""
        here = self.at("id")
        wrong = list(self._template(group.id, here, DEVICE_PARTS, lambda text: ""))
        if wrong:
            yield from wrong
            return
        pattern = Template(group.id)
        self.ends = [
            Names(_RUN, group.name, index, pattern, group.tags) for index in (0, group.count - 1)
        ]
        yield from self._identity()
        yield from self._version()
        for at, entry in enumerate(group.publish):
            here = (*self.at("publish"), at)
            extra = frozenset({"stream"})
            yield from self._text(entry.topic, (*here, "topic"), topic_fault, extra)
            if entry.streams > 1 and "stream" not in Template(entry.topic).parts:
                hint = f"there are {entry.streams} streams"
                yield (*here, "topic"), f"found {entry.topic!r}", "{stream} in it", hint
            yield from self._content(entry, here)
        for at, subscription in enumerate(group.subscribe):
            for number, text in enumerate(subscription.filters):
                here = (*self.at("subscribe"), at, "filters", number)
                yield from self._text(text, here, filter_fault)
        for at, request in enumerate(group.request):
            yield from self._request(request, (*self.at("request"), at))
        for at, response in enumerate(group.respond):
            here = (*self.at("respond"), at)
            yield from self._text(response.filter, (*here, "filter"), filter_fault)
            yield from self._content(response, here)
        yield from self._entry_names()

    def _identity(self) -> Iterator[Fault]:
        group = self.group
        credentials = group.credentials
        if credentials is not None:
            here = self.at("credentials")
            password = credentials.password
            yield from self._text(credentials.username or "", (*here, "username"), None)
            if password is not None:
                place = (*here, "password")
                if any(self._text(password.get_secret_value(), place, None)):
                    # What is wrong with it would repeat a part of it.
                    hint = "braces are written twice, {{ and }}"
                    yield place, "found a password", "a template, as ids are", hint
            secret = password is not None or credentials.password_env is not None
            if secret and credentials.username is None and group.version != "5":
                yield here, "found a password", "a username beside it", "or version 5"
        if group.will is not None:
            here = self.at("will")
            yield from self._text(group.will.topic, (*here, "topic"), topic_fault)
            yield from self._text(group.will.payload, (*here, "payload"), None)
        if group.tls is not None:
            yield from self._tls(group.tls, self.at("tls"))
        elif self.scenario.broker.tls is not None:
            yield from self._tls(self.scenario.broker.tls, ("broker", "tls"))

    def _tls(self, tls: Tls, here: Loc) -> Iterator[Fault]:
        if tls.ca is not None and (reason := _why_unreadable(tls.ca)):
            yield (*here, "ca"), f"can't read {tls.ca!r}", "a readable PEM file", reason
        for key, text in (("cert", tls.cert), ("key", tls.key)):
            if text is None:
                continue
            place = (*here, key)
            known = (TOPIC_PARTS - {"run"}) | self.tags
            wrong = list(self._template(text, place, known, lambda name: ""))
            if wrong:
                yield from wrong
                continue
            files = dict.fromkeys(self._files(Template(text)))
            reasons = {file: reason for file in files if (reason := _why_unreadable(file))}
            if reasons:
                first = ", ".join(repr(file) for file in list(reasons)[:_TOLD])
                more = f" and {len(reasons) - _TOLD} more" if len(reasons) > _TOLD else ""
                reason = next(iter(reasons.values()))
                yield place, f"can't read {first}{more}", "readable PEM files", reason

    def _files(self, template: Template) -> Iterator[str]:
        """The file of each device."""
        group = self.group
        pattern = Template(group.id)
        for index in range(group.count if template.parts else 1):
            yield Names(_RUN, group.name, index, pattern, group.tags).render(template)

    def _version(self) -> Iterator[Fault]:
        """What exists in MQTT 5 only."""
        group = self.group
        if group.version == "5":
            return
        needs: list[tuple[Loc, bool]] = [
            (self.at("receive_maximum"), group.receive_maximum is not None),
            ((*self.at("will"), "delay"), group.will is not None and group.will.delay > 0),
            (self.at("request"), bool(group.request)),
            (self.at("respond"), bool(group.respond)),
        ]
        for at, entry in enumerate(group.publish):
            here = (*self.at("publish"), at)
            needs.append(((*here, "expiry"), entry.expiry is not None))
            needs.append(((*here, "user_properties"), bool(entry.user_properties)))
        for at, each in enumerate(group.subscribe):
            here = (*self.at("subscribe"), at)
            needs.append(((*here, "retain_handling"), each.retain_handling != "always"))
            needs.append(((*here, "retain_as_published"), each.retain_as_published))
            needs.append(((*here, "no_local"), each.no_local))
        for here, used in needs:
            if used:
                yield here, f"found {here[-1]}", "version 5", f"the group has {group.version}"

    def _request(self, request: RequestEntry, here: Loc) -> Iterator[Fault]:
        yield from self._text(request.response, (*here, "response"), topic_fault)
        yield from self._content(request, here)
        targets = [group for group in self.scenario.groups if group.name == request.targets]
        if not targets:
            hint = f"there are: {', '.join(group.name for group in self.scenario.groups)}"
            found = f"found {request.targets!r}"
            yield (*here, "targets"), found, "the name of a group", hint
            return
        if not self.scenario.devices_of(targets[0]).respond:
            yield (*here, "targets"), f"found {request.targets!r}", "a group with respond", ""
        tags = targets[0].tags
        extra = frozenset({"target", "target_index", *(f"target_{tag}" for tag in tags)})
        examples: dict[str, str | int] = {"target": "x", "target_index": 0}
        examples |= {f"target_{tag}": value for tag, value in deal(tags, 0).items()}
        yield from self._text(request.topic, (*here, "topic"), topic_fault, extra, examples)

    def _entry_names(self) -> Iterator[Fault]:
        names: set[str] = set()
        entries: list[tuple[str, int, Paced]] = [
            *(("publish", at, entry) for at, entry in enumerate(self.group.publish)),
            *(("request", at, entry) for at, entry in enumerate(self.group.request)),
        ]
        for key, at, entry in entries:
            if entry.name in names:
                here = (*self.at(key), at, "name")
                yield here, f"found {entry.name!r} twice", "a name of its own", ""
            if entry.name is not None:
                names.add(entry.name)

    # Content

    def _content(self, content: Content, here: Loc) -> Iterator[Fault]:
        numbers = {"t", "seq", "index"}
        yield from self._fields(content.fields, (*here, "fields"), numbers)
        if isinstance(content, PublishEntry) and content.on_change is not None:
            for name in content.on_change.fields:
                field = content.fields.get(name)
                if field is None or field.kind == "object":
                    place = (*here, "on_change", "fields", name)
                    yield place, f"found {name!r}", "the name of a field", ""

    def _fields(self, fields: dict[str, Value], here: Loc, numbers: set[str]) -> Iterator[Fault]:
        """`numbers` are the variables that the fields so far have brought."""
        for name, field in fields.items():
            at = (*here, name, field.kind)
            if field.object is not None:
                yield from self._fields(field.object, at, numbers)
                continue
            if field.expression is not None:
                yield from _expression(field.expression, at, numbers | {"last"})
            elif field.text is not None:
                yield from self._text(field.text, at, None, frozenset({"seq"}))
            elif field.replay is not None:
                try:
                    values.column(field.replay.file, field.replay.column)
                except ValueError as error:
                    yield at, str(error), "a CSV file with this column", ""
            if name.isidentifier():
                numbers.add(name)

    # Templates

    def _text(
        self,
        text: str,
        here: Loc,
        fault: Callable[[str], str] | None,
        extra: frozenset[str] = frozenset(),
        examples: dict[str, str | int] | None = None,
    ) -> Iterator[Fault]:
        """A template of the device's, tried for the first and the last one."""
        known = TOPIC_PARTS | extra
        return self._template(text, here, known, fault or (lambda name: ""), examples)

    def _template(
        self,
        text: str,
        here: Loc,
        known: frozenset[str],
        fault: Callable[[str], str],
        examples: dict[str, str | int] | None = None,
    ) -> Iterator[Fault]:
        try:
            template = Template(text)
        except ValueError as error:
            yield here, f"found {text!r}", "a template", str(error)
            return
        parts = known | self.tags
        unknown = sorted(template.parts - parts)
        if unknown:
            expected = f"the parts {', '.join(sorted(parts))}"
            yield here, f"found {{{unknown[0]}}}", expected, ""
            return
        for names in self.ends:
            try:
                name = names.render(template, examples or {"stream": 0, "seq": 0})
            except ValueError as error:
                yield here, f"found {text!r}", "formats that fit", str(error)
                return
            wrong = fault(name)
            if wrong:
                yield here, f"found {text!r}", "another name", f"{name!r} {wrong}"
                return


def _expression(text: str, at: Loc, numbers: set[str]) -> Iterator[Fault]:
    try:
        expression = Expression(text)
    except ValueError as error:
        yield at, f"found {text!r}", "arithmetic", str(error)
        return
    unknown = sorted(expression.names - numbers)
    if unknown:
        hint = f"there are: {', '.join(sorted(numbers))}; a field has to stand above"
        yield at, f"found {unknown[0]!r}", "variables that are there", hint
