"""scram: the exchange of RFC 7677, what is wrong with others, and that nothing tells who exists."""

import base64
import hashlib
import hmac
import os
import stringprep
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins import _scram_keys
from mqttd_plugins._scram import BadMessage, ClientFirst, Exchange
from mqttd_plugins._scram_keys import derive, parse, saslprep
from mqttd_plugins.scram import METHOD, Config, Scram

from mqttd.api import NOT_MINE, Allow, Client, Continue, Credentials, Deny, SessionInfo
from mqttd.testing import StandIn

# The exchange that RFC 7677, section 3, prints: user "user", password "pencil".
CLIENT_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
SERVER_FIRST = (
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
)
CLIENT_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
PENCIL = derive("pencil", SALT, 4096)


def test_the_exchange_of_the_rfc() -> None:
    exchange = Exchange(ClientFirst(CLIENT_FIRST), PENCIL, SERVER_NONCE)
    assert exchange.user == "user"
    assert exchange.challenge == SERVER_FIRST
    assert exchange.finish(CLIENT_FINAL) == SERVER_FINAL


def test_keys_are_written_as_postgresql_writes_them() -> None:
    assert parse(PENCIL.text) == PENCIL
    assert PENCIL.text.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")


def test_keys_are_not_shown() -> None:
    assert repr(PENCIL.stored_key) not in repr(PENCIL)
    assert base64.b64encode(PENCIL.stored_key).decode() not in repr(PENCIL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pencil",
        PENCIL.text[:-5],
        PENCIL.text + "=",
        PENCIL.text.replace("4096", "4095"),
        PENCIL.text.replace("4096", "99999999"),
        PENCIL.text.replace("W22Z", "W=2Z"),
        "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA",
    ],
)
def test_other_texts_are_no_keys(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|base64") as caught:
        parse(text)
    assert len(text) < 10 or text not in str(caught.value)


# Examples of RFC 4013, section 3, and one of its rules each.
@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0627\u0628", "\u0627\u0628"),
        ("", ""),
    ],
)
def test_saslprep(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "\u06271", "a\u0627", "\u0221", "\ue000", "\ud800"])
def test_saslprep_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="SASLprep"):
        saslprep(text)


def test_a_name_that_grows_while_it_is_prepared_costs_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who sends one hasn't shown yet who it is."""
    asked: list[str] = []
    known = stringprep.in_table_a1

    def in_table_a1(character: str) -> bool:
        asked.append(character)
        return known(character)

    monkeypatch.setattr(stringprep, "in_table_a1", in_table_a1)
    assert len(saslprep("\ufdfa" * 256)) == 256 * 18
    assert len(asked) < 20
    with pytest.raises(BadMessage, match="too long once it is prepared"):
        ClientFirst(b"n,,n=" + "\ufdfa".encode() * 100 + b",r=abc")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "expected n,,n=USER"),
        (b"n,,n=user", "expected n,,n=USER"),
        (b"n,,r=abc,n=user", "expected n,,n=USER"),
        (b"x,,n=user,r=abc", "expected n,,n=USER"),
        (b"p=tls-unique,,n=user,r=abc", "channel binding is not supported"),
        (b"p=tls-exporter,,n=user,r=abc", "channel binding is not supported"),
        (b"n,a=admin,n=user,r=abc", "act as somebody else"),
        (b"n,admin,n=user,r=abc", "act as somebody else"),
        (b"n,,m=ext,n=user,r=abc", "extension"),
        (b"n,,n=,r=abc", "the user name is empty"),
        (b"n,,n=" + b"a" * 257 + b",r=abc", "more than 256 characters"),
        (b"n,a=" + b"=2C" * 257 + b",n=a,r=abc", "more than 256 characters"),
        (b"n,,n=a=b,r=abc", "has to be =3D"),
        (b"n,,n=a=2c,r=abc", "has to be =3D"),
        (b"n,,n=a\x00b,r=abc", "SASLprep"),
        (b"n,,n=user,r=", "nonce"),
        (b"n,,n=user,r=a b", "nonce"),
        (b"n,,n=user,r=" + b"a" * 513, "nonce"),
        (b"n,,n=\xff,r=abc", "UTF-8"),
        (b"n,,n=" + b"a" * 4096 + b",r=abc", "longer than 4096"),
    ],
)
def test_first_messages_that_are_none(data: bytes, problem: str) -> None:
    with pytest.raises(BadMessage, match=problem):
        ClientFirst(data)


@pytest.mark.parametrize(
    ("data", "user"),
    [
        (b"n,,n=user,r=abc", "user"),
        (b"y,,n=user,r=abc", "user"),  # it could bind, and knows that we can't
        (b"n,a=user,n=user,r=abc", "user"),
        (b"n,,n=a=2Cb=3Dc,r=abc", "a,b=c"),
        (b"n,,n=user,r=abc,x=later", "user"),
    ],
)
def test_first_messages_that_are_good(data: bytes, user: str) -> None:
    assert ClientFirst(data).user == user


@pytest.mark.parametrize(
    "data",
    [
        b"",
        CLIENT_FINAL[:-6],
        CLIENT_FINAL.replace(b"c=biws", b"c=eSws"),  # another header than at the beginning
        CLIENT_FINAL.replace(b"k0,p", b"k1,p"),  # another nonce
        CLIENT_FINAL.replace(b"c=biws,", b""),
        CLIENT_FINAL.replace(b"p=dHzb", b"p=d zb"),
        CLIENT_FINAL + b",x=y",
    ],
)
def test_last_messages_that_are_none(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Exchange(ClientFirst(CLIENT_FIRST), PENCIL, SERVER_NONCE).finish(data)


@given(st.integers(0, 255))
def test_any_bit_that_differs_in_the_proof_is_wrong(bit: int) -> None:
    start, _, proof = CLIENT_FINAL.rpartition(b"p=")
    wrong = bytearray(base64.b64decode(proof))
    wrong[bit // 8] ^= 1 << bit % 8
    data = start + b"p=" + base64.b64encode(bytes(wrong))
    assert Exchange(ClientFirst(CLIENT_FIRST), PENCIL, SERVER_NONCE).finish(data) is None


@given(st.binary(max_size=60), st.sampled_from([b"", b"n,,", b"n,,n=user,r=", b"c=biws,r="]))
def test_any_bytes_are_a_message_or_refused(data: bytes, start: bytes) -> None:
    for act in (ClientFirst, Exchange(ClientFirst(CLIENT_FIRST), PENCIL, SERVER_NONCE).finish):
        try:
            act(start + data)
        except BadMessage:
            continue


# The plugin.


class Device:
    """The client's side, written from the RFC once more."""

    def __init__(self, user: str, password: str, header: str = "n,,") -> None:
        self.password = password
        self.header = header
        self.bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r=devicenonce"
        self.server_signature = b""

    @property
    def first(self) -> bytes:
        return (self.header + self.bare).encode()

    def final(self, challenge: bytes) -> bytes:
        fields = dict(part.split("=", 1) for part in challenge.decode().split(","))
        salt, iterations = base64.b64decode(fields["s"]), int(fields["i"])
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), salt, iterations)
        key = hmac.digest(salted, b"Client Key", "sha256")
        unproven = f"c={base64.b64encode(self.header.encode()).decode()},r={fields['r']}"
        message = f"{self.bare},{challenge.decode()},{unproven}".encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
        proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        self.server_signature = hmac.digest(server_key, message, "sha256")
        return f"{unproven},p={base64.b64encode(proof).decode()}".encode()


class Kit:
    """The plugin on a file, without a broker."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stand_in = StandIn("scram")
        self.plugin = Scram(self.config(), self.stand_in)

    def config(self) -> Config:
        return Config.model_validate({"file": str(self.file), "poll": 2})

    def write(self, **passwords: str) -> None:
        draft = self.file.with_name("draft")
        lines = [f"{user}:{_scram_keys.make(p, 4096)}\n" for user, p in passwords.items()]
        draft.write_text("".join(lines))
        os.replace(draft, self.file)

    def challenge(self, device: Device, client: Client) -> bytes:
        step = self.plugin.authenticate_enhanced(client, METHOD, device.first, True)
        assert isinstance(step, Continue)
        assert step.data is not None
        return step.data

    def login(self, device: Device, client: Client | None = None) -> Allow | Continue | Deny:
        client = client or Client("c")
        final = device.final(self.challenge(device, client))
        return self.plugin.authenticate_enhanced(client, METHOD, final, False)


async def started(tmp_path: Path, **passwords: str) -> Kit:
    kit = Kit(tmp_path / "scram")
    kit.write(**passwords)
    await kit.plugin.start()
    return kit


async def test_who_knows_the_password_gets_in_and_knows_the_server(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret", bob="sesame")
    device = Device("bob", "sesame")
    answer = kit.login(device)
    assert isinstance(answer, Allow)
    assert answer.username == "bob"
    assert answer.rule == f"{kit.file}:2"
    assert answer.data == b"v=" + base64.b64encode(device.server_signature)


async def test_who_could_bind_gets_in_without(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    assert isinstance(kit.login(Device("alice", "secret", "y,,")), Allow)


async def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    wrong = kit.login(Device("alice", "Secret"))
    assert isinstance(wrong, Deny)
    assert wrong.code == 0x87
    assert kit.login(Device("mallory", "secret")) == wrong
    assert kit.stand_in.counts == {"failures": 2}


async def test_an_unknown_user_has_a_salt_that_stays(tmp_path: Path) -> None:
    def salt(kit: Kit, user: str) -> str:
        challenge = kit.challenge(Device(user, "x"), Client("c")).decode()
        return challenge.partition(",")[2]

    kit = await started(tmp_path, alice="secret")
    mallory = salt(kit, "mallory")
    assert salt(kit, "mallory") == mallory
    assert salt(kit, "trudy") != mallory
    assert len(salt(kit, "alice")) == len(mallory)  # and the iterations are the same
    assert mallory.endswith(",i=4096")
    again = Kit(kit.file)
    again.stand_in.tables = kit.stand_in.tables  # the broker was started again
    await again.plugin.start()
    assert salt(again, "mallory") == mallory


async def test_a_full_disk_is_no_reason_not_to_start(tmp_path: Path) -> None:
    kit = Kit(tmp_path / "scram")
    kit.write(alice="secret")
    kit.stand_in.full = True
    await kit.plugin.start()
    assert isinstance(kit.login(Device("alice", "secret")), Allow)


async def test_unknown_users_are_of_all_kinds_that_users_are(tmp_path: Path) -> None:
    """Otherwise one whose keys were made with other numbers than most would be seen to exist."""
    kit = Kit(tmp_path / "scram")
    kinds = [(4096, 16)] * 3 + [(9000, 24)]
    texts = [_scram_keys.derive("pw", b"s" * length, cost).text for cost, length in kinds]
    lines = [f"user{number}:{text}" for number, text in enumerate(texts)]
    kit.file.write_text("\n".join(lines))
    await kit.plugin.start()

    def kind(user: str) -> tuple[int, int]:
        challenge = kit.challenge(Device(user, "x"), Client("c")).decode()
        fields = dict(part.split("=", 1) for part in challenge.split(","))
        return int(fields["i"]), len(base64.b64decode(fields["s"]))

    names = [f"nobody{number}" for number in range(400)]
    before = {name: kind(name) for name in names}
    counted = Counter(before.values())
    assert set(counted) == set(kinds)
    assert 50 < counted[9000, 24] < 150  # of 400, where one user in four is of that kind
    kit.file.write_text("\n".join([*lines, f"another:{texts[0]}"]))
    await kit.plugin.reload(kit.plugin.config)
    assert sum(kind(name) != before[name] for name in names) < 60  # and not all of them anew


async def test_nonces_never_come_twice(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    device = Device("alice", "secret")
    assert kit.challenge(device, Client("c")) != kit.challenge(device, Client("c"))


async def test_a_recorded_exchange_is_worth_nothing(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    device, client = Device("alice", "secret"), Client("c")
    final = device.final(kit.challenge(device, client))
    assert isinstance(kit.plugin.authenticate_enhanced(client, METHOD, final, False), Allow)
    kit.challenge(device, client)
    assert isinstance(kit.plugin.authenticate_enhanced(client, METHOD, final, False), Deny)


async def test_an_exchange_ends_with_its_last_message(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    device, client = Device("alice", "secret"), Client("c")
    final = device.final(kit.challenge(device, client))
    kit.plugin.authenticate_enhanced(client, METHOD, b"rubbish", False)
    assert isinstance(kit.plugin.authenticate_enhanced(client, METHOD, final, False), Deny)
    assert isinstance(kit.plugin.authenticate_enhanced(client, METHOD, None, False), Deny)
    assert client.attributes == {}


async def test_two_clients_dont_share_an_exchange(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    device = Device("alice", "secret")
    final = device.final(kit.challenge(device, Client("a")))
    other = Client("b")
    kit.challenge(device, other)
    assert isinstance(kit.plugin.authenticate_enhanced(other, METHOD, final, False), Deny)


async def test_authenticating_again_as_the_same_user(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret", bob="sesame")
    client = Client("c", "alice")
    assert isinstance(kit.login(Device("alice", "secret"), client), Allow)
    assert isinstance(kit.login(Device("bob", "sesame"), client), Deny)


async def test_the_user_name_of_connect_has_to_be_the_same(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    assert isinstance(kit.login(Device("alice", "secret"), Client("c", "root")), Deny)
    assert isinstance(kit.login(Device("alice", "secret"), Client("c", "")), Deny)


@pytest.mark.parametrize("data", [None, b"", b"\xff", b"n,,n=alice", b"c=biws,r=x,p=y"])
async def test_rubbish_is_refused(tmp_path: Path, data: bytes | None) -> None:
    kit = await started(tmp_path, alice="secret")
    for first in (True, False):
        answer = kit.plugin.authenticate_enhanced(Client("c"), METHOD, data, first)
        assert isinstance(answer, Deny)
        assert answer.code == 0x87
    assert kit.stand_in.counts == {"bad_messages": 2}


async def test_other_methods_are_refused(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    answer = kit.plugin.authenticate_enhanced(Client("c"), "SCRAM-SHA-1", CLIENT_FIRST, True)
    assert isinstance(answer, Deny)
    assert answer.code == 0x8C


async def test_plain_passwords_are_not_ours(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    assert kit.plugin.authenticate(Client("c"), Credentials("alice", b"secret")) == NOT_MINE


async def test_keys_that_change_during_the_exchange_end_it(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret")
    device, client = Device("alice", "secret"), Client("c")
    final = device.final(kit.challenge(device, client))
    kit.write(alice="secret")  # the same password, with another salt
    await kit.plugin.reload(kit.config())
    assert isinstance(kit.plugin.authenticate_enhanced(client, METHOD, final, False), Deny)
    assert isinstance(kit.login(device), Allow)


async def test_a_changed_file_is_read_again_and_ends_connections(tmp_path: Path) -> None:
    kit = await started(tmp_path, alice="secret", bob="sesame")
    for user in ("alice", "bob"):
        kit.stand_in.known[user] = SessionInfo(user, user, True, "", (), 0, 0, 0)
    bob = kit.file.read_text().splitlines()[1]
    kit.file.write_text(bob + "\n")
    await kit.stand_in.advance(3)
    assert [client_id for client_id, _, _ in kit.stand_in.kicked] == ["alice"]
    assert isinstance(kit.login(Device("alice", "secret")), Deny)
    assert isinstance(kit.login(Device("bob", "sesame")), Allow)


@pytest.mark.parametrize("line", ["alice", "alice:secret", "alice:$6$abc$def", ":x"])
async def test_a_bad_file_stops_the_start_and_changes_nothing_later(
    tmp_path: Path, line: str
) -> None:
    kit = await started(tmp_path, alice="secret")
    kit.file.write_text(f"# ours\n{line}\n")
    with pytest.raises(ValueError, match=r"scram:2: "):
        await kit.plugin.check()
    with pytest.raises(ValueError, match=r"scram:2: "):
        await kit.plugin.reload(kit.config())
    await kit.stand_in.advance(3)
    assert isinstance(kit.login(Device("alice", "secret")), Allow)
    with pytest.raises(ValueError, match=r"scram:2: "):
        await Kit(kit.file).plugin.start()


def test_the_configuration_needs_a_file() -> None:
    keys: Any = {}
    with pytest.raises(ValueError, match="file"):
        Config.model_validate(keys)
