"""Encodings against the vectors of their standards, and against readers that share no code."""

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.language.encodings import ENCODERS, to_cbor, to_json, to_packed, to_raw


@pytest.mark.parametrize(
    ("value", "expected"),
    [  # RFC 8949, appendix A
        (0, "00"),
        (1, "01"),
        (10, "0a"),
        (23, "17"),
        (24, "1818"),
        (25, "1819"),
        (100, "1864"),
        (1000, "1903e8"),
        (1000000, "1a000f4240"),
        (1000000000000, "1b000000e8d4a51000"),
        (18446744073709551615, "1bffffffffffffffff"),
        (-18446744073709551616, "3bffffffffffffffff"),
        (-1, "20"),
        (-10, "29"),
        (-100, "3863"),
        (-1000, "3903e7"),
        (0.0, "f90000"),
        (-0.0, "f98000"),
        (1.0, "f93c00"),
        (1.1, "fb3ff199999999999a"),
        (1.5, "f93e00"),
        (65504.0, "f97bff"),
        (100000.0, "fa47c35000"),
        (3.4028234663852886e38, "fa7f7fffff"),
        (1.0e300, "fb7e37e43c8800759c"),
        (5.960464477539063e-8, "f90001"),
        (0.00006103515625, "f90400"),
        (-4.0, "f9c400"),
        (-4.1, "fbc010666666666666"),
        (False, "f4"),
        (True, "f5"),
        (None, "f6"),
        ("", "60"),
        ("a", "6161"),
        ("IETF", "6449455446"),
        ('"\\', "62225c"),
        ("ü", "62c3bc"),
        ("水", "63e6b0b4"),
        ("x" * 300, "79012c" + "78" * 300),
    ],
)
def test_cbor_vectors(value: Any, expected: str) -> None:
    assert to_cbor({"k": value}).hex() == "a1616b" + expected


def test_cbor_maps() -> None:
    letters = {letter: letter.upper() for letter in "abcde"}
    assert to_cbor(letters).hex() == "a56161614161626142616361436164614461656145"
    assert to_cbor({}).hex() == "a0"
    assert to_cbor({"a": {"b": 1}}).hex() == "a16161a1616201"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [  # the encoding guide of Protocol Buffers, with sint64 for whole numbers
        ({"a": 75}, "089601"),
        ({"a": 0}, "0800"),
        ({"a": -1}, "0801"),
        ({"a": 1}, "0802"),
        ({"a": -2}, "0803"),
        ({"a": 0x7FFFFFFF}, "08feffffff0f"),
        ({"a": -0x80000000}, "08ffffffff0f"),
        ({"a": None, "b": "testing"}, "120774657374696e67"),
        ({"a": None, "b": None, "c": {"x": 75}}, "1a03089601"),
        ({"a": True, "b": False}, "08011000"),
        ({"a": 1.5}, "09000000000000f83f"),
        ({f"f{n}": None for n in range(15)} | {"f16": 1}, "800102"),
    ],
)
def test_packed_vectors(fields: dict[str, Any], expected: str) -> None:
    assert to_packed(fields).hex() == expected


def test_raw_is_the_text_of_the_values() -> None:
    assert to_raw({"t": 21.5}) == b"21.5"
    assert to_raw({"a": 1, "b": True, "c": None, "d": {"e": "x", "f": -2}}) == b"1,true,,x,-2"


def test_json_has_nothing_that_isnt_needed() -> None:
    assert to_json({"t": 21.5, "u": "°C", "o": {"n": None}}) == (
        '{"t":21.5,"u":"°C","o":{"n":null}}'.encode()
    )


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
trees = st.recursive(
    st.dictionaries(st.text("abc", max_size=3), scalars, max_size=4),
    lambda inner: st.dictionaries(st.text("xyz", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(trees)
def test_json_round_trip(tree: dict[str, Any]) -> None:
    assert json.loads(to_json(tree)) == tree


class Reader:
    """Just enough CBOR and Protocol Buffers, written from the standards."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.data)
        self.at += size
        return self.data[self.at - size : self.at]

    def cbor(self) -> Any:
        head = self.take(1)[0]
        major, small = head >> 5, head & 31
        if major == 7:
            forms = {25: (2, ">e"), 26: (4, ">f"), 27: (8, ">d")}
            if small in forms:
                size, form = forms[small]
                return struct.unpack(form, self.take(size))[0]
            return {20: False, 21: True, 22: None}[small]
        number = small if small < 24 else int.from_bytes(self.take(1 << small - 24), "big")
        if major == 5:
            return {self.cbor(): self.cbor() for _ in range(number)}
        return {0: number, 1: -1 - number}[major] if major < 2 else self.take(number).decode()

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def packed(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        while self.at < len(self.data):
            key = self.varint()
            kind = key & 7
            if kind == 0:
                fields[key >> 3] = self.varint()
            elif kind == 1:
                fields[key >> 3] = struct.unpack("<d", self.take(8))[0]
            else:
                assert kind == 2
                fields[key >> 3] = self.take(self.varint())
        return fields


def expected_cbor(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: expected_cbor(inner) for name, inner in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**64) <= value < 2**64:
        return float(value)
    return value


@given(trees)
def test_cbor_round_trip(tree: dict[str, Any]) -> None:
    reader = Reader(to_cbor(tree))
    got = reader.cbor()
    assert reader.at == len(reader.data)
    assert got == expected_cbor(tree)


@given(st.floats(allow_nan=False))
def test_cbor_floats_take_the_shortest_form_that_keeps_them(value: float) -> None:
    got = Reader(to_cbor({"": value})).cbor()[""]
    assert got == value
    assert math.copysign(1, got) == math.copysign(1, value)


def compare_packed(tree: dict[str, Any], data: bytes) -> None:
    fields = Reader(data).packed()
    assert set(fields) == {at for at, v in enumerate(tree.values(), 1) if v is not None}
    for number, value in enumerate(tree.values(), 1):
        got: Any = fields.get(number)
        if isinstance(value, dict):
            compare_packed(value, got)
        elif isinstance(value, str):
            assert got.decode() == value
        elif isinstance(value, bool):
            assert got == int(value)
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            assert (got >> 1) ^ -(got & 1) == value
        elif value is not None:
            assert got == float(value)


@given(trees)
def test_packed_round_trip(tree: dict[str, Any]) -> None:
    compare_packed(tree, to_packed(tree))


@given(st.text(max_size=20))
def test_text_that_is_no_text_is_encoded_all_the_same(text: str) -> None:
    for name, encoder in ENCODERS.items():
        assert isinstance(encoder({"k": text}), bytes), name
