"""Golden vectors: packets as they stand on the wire, written by hand from the specification.

Each vector is hex with a comment a field, the versions it is meant for, and either the packet that
it decodes to or the reason code (and clause, where the rule has a number) of the error that it is.
They are the yardstick of the codec: nothing here was produced by `mqttd.core.encode`, so a mistake
that is made the same way on both sides shows up here.

`GOOD` and `BAD` feed the tests of decode, encode and framer, and the first corpus of the fuzzers. A
vector that is not `canonical` is legal, but not what we would send ourselves: it is decoded only.
`from_client` vectors are read under the rules that bind clients alone.
"""

from tests.core.vector_kit import Vector, props, unhex, untimed
from tests.core.vectors_bad import BAD
from tests.core.vectors_good import GOOD

__all__ = ["BAD", "GOOD", "Vector", "props", "unhex", "untimed"]
