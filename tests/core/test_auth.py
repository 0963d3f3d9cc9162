"""The verdicts and the empty table of deciders."""

from mqttd.core import spec
from mqttd.core.auth import AuthStep, Hooks, Verdict
from mqttd.core.packets import Connect


def test_a_verdict_that_says_no_more_is_a_refusal_by_name() -> None:
    """[MQTT-3.1.4-2] there is always a code to send."""
    verdict = Verdict(False)
    assert not verdict.allowed
    assert verdict.code == spec.NOT_AUTHORIZED
    assert verdict.reason == ""
    assert verdict.username is None


def test_a_verdict_may_rename_the_user() -> None:
    verdict = Verdict(True, spec.SUCCESS, "by certificate", "alice")
    assert (verdict.allowed, verdict.code) == (True, spec.SUCCESS)
    assert (verdict.reason, verdict.username) == ("by certificate", "alice")


def test_a_step_carries_data_or_a_user_or_a_reason() -> None:
    step = AuthStep(spec.CONTINUE_AUTHENTICATION, b"challenge")
    assert (step.code, step.data, step.username, step.reason) == (0x18, b"challenge", None, "")
    last = AuthStep(spec.SUCCESS, username="alice")
    assert (last.data, last.username) == (None, "alice")
    assert AuthStep(spec.NOT_AUTHORIZED, reason="wrong proof").reason == "wrong proof"


def test_without_plugins_nobody_decides() -> None:
    hooks = Hooks()
    assert hooks.authenticate is None
    assert hooks.enhanced is None
    assert hooks.enhanced_methods == ()


def test_slots_take_plain_functions() -> None:
    def allow(connection: object, connect: Connect) -> Verdict | None:
        return Verdict(connect.client_id == "known")

    def later(connection: object, method: str, data: bytes | None, first: bool) -> AuthStep | None:
        return None

    hooks = Hooks()
    hooks.authenticate = allow
    hooks.enhanced = later
    verdict = hooks.authenticate(None, Connect(client_id="known"))
    assert verdict is not None
    assert verdict.allowed
    assert hooks.enhanced(None, "SCRAM", None, True) is None
