"""Golden vectors of packets that are as they should be; see `vectors`."""

from mqttd.core.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from tests.core.vector_kit import ALL, V3, V5, V31, V311, Vector, good, props, unhex

GOOD: list[Vector] = [
    # 3.1 CONNECT
    good(
        "connect-3.1",
        V31,
        """
        10 10               # CONNECT, 16 bytes
        00 06 4d5149736470  # protocol name MQIsdp
        03                  # protocol level 3
        02                  # connect flags: clean session
        00 3c               # keep alive 60 s
        00 02 6162          # client id "ab"
        """,
        Connect("MQIsdp", 3, True, 60, "ab"),
    ),
    good(
        "connect-3.1-names-missing",
        V31,
        """
        10 10               # CONNECT, 16 bytes
        00 06 4d5149736470  # protocol name MQIsdp
        03                  # protocol level 3
        c2                  # connect flags: user name, password, clean session
        00 3c               # keep alive 60 s
        00 02 6162          # client id "ab", and that is all: the length overrules the flags
        """,
        Connect("MQIsdp", 3, True, 60, "ab"),
        canonical=False,
    ),
    good(
        "connect-3.1-reserved-bit-and-password-missing",
        V31,
        """
        10 13               # CONNECT, 19 bytes
        00 06 4d5149736470  # protocol name MQIsdp
        03                  # protocol level 3
        c1                  # connect flags: user name, password, the unused bit 0
        00 3c               # keep alive 60 s
        00 02 6162          # client id "ab"
        00 01 75            # user name "u", no password
        """,
        Connect("MQIsdp", 3, False, 60, "ab", username="u"),
        canonical=False,
    ),
    good(
        "connect-3.1-bridge",
        V31,
        """
        10 0f               # CONNECT, 15 bytes
        00 06 4d5149736470  # protocol name MQIsdp
        83                  # protocol level 3 with the bridge bit
        00                  # connect flags: none
        00 00               # no keep alive
        00 01 62            # client id "b"
        """,
        Connect("MQIsdp", 3, False, 0, "b", bridge=True),
    ),
    good(
        "connect-3.1.1-minimal",
        V311,
        """
        10 0c               # CONNECT, 12 bytes
        00 04 4d515454      # protocol name MQTT
        04                  # protocol level 4
        02                  # connect flags: clean session
        00 00               # no keep alive
        00 00               # client id ""
        """,
        Connect("MQTT", 4, True, 0, ""),
    ),
    good(
        "connect-3.1.1-bridge",
        V311,
        """
        10 0d               # CONNECT, 13 bytes
        00 04 4d515454      # protocol name MQTT
        84                  # protocol level 4 with the bridge bit
        00                  # connect flags: none
        00 0a               # keep alive 10 s
        00 01 62            # client id "b"
        """,
        Connect("MQTT", 4, False, 10, "b", bridge=True),
    ),
    good(
        "connect-3.1.1-everything",
        V311,
        """
        10 1f               # CONNECT, 31 bytes
        00 04 4d515454      # protocol name MQTT
        04                  # protocol level 4
        ee                  # user name, password, will retain, will QoS 1, will, clean session
        ff ff               # keep alive 65535 s
        00 01 63            # client id "c"
        00 03 772f74        # will topic "w/t"
        00 02 00ff          # will payload
        00 02 6d65          # user name "me"
        00 03 fe00fd        # password, any bytes
        """,
        Connect(
            "MQTT", 4, True, 65535, "c", Will("w/t", b"\x00\xff", 1, True), "me", b"\xfe\x00\xfd"
        ),
    ),
    good(
        "connect-5-minimal",
        V5,
        """
        10 0d               # CONNECT, 13 bytes
        00 04 4d515454      # protocol name MQTT
        05                  # protocol level 5
        00                  # connect flags: none
        00 00               # no keep alive
        00                  # no properties
        00 00               # client id ""
        """,
        Connect("MQTT", 5, False, 0, ""),
    ),
    good(
        "connect-5-password-alone",
        V5,
        """
        10 11               # CONNECT, 17 bytes
        00 04 4d515454      # protocol name MQTT
        05                  # protocol level 5
        42                  # connect flags: password, clean start
        00 00               # no keep alive
        00                  # no properties
        00 00               # client id ""
        00 02 7077          # password without a user name
        """,
        Connect("MQTT", 5, True, 0, "", password=b"pw"),
    ),
    good(
        "connect-5-everything",
        V5,
        """
        10 72               # CONNECT, 114 bytes
        00 04 4d515454      # protocol name MQTT
        05                  # protocol level 5
        f6                  # user name, password, will retain, will QoS 2, will, clean start
        00 1e               # keep alive 30 s
        2b                  # 43 bytes of properties
          11 0000003c       # session expiry interval 60
          15 0001 78        # authentication method "x"
          16 0002 0001      # authentication data
          17 00             # request problem information 0
          19 01             # request response information 1
          21 000a           # receive maximum 10
          22 0005           # topic alias maximum 5
          26 0001 61 0001 62  # user property a = b
          26 0001 61 0001 63  # user property a = c
          27 00001000       # maximum packet size 4096
        00 02 6964          # client id "id"
        23                  # 35 bytes of will properties
          02 00000e10       # message expiry interval 3600
          18 0000000a       # will delay interval 10
          01 01             # payload format: text
          08 0003 722f74    # response topic "r/t"
          03 0001 74        # content type "t"
          09 0002 ffff      # correlation data
          26 0001 6b 0002 c3a9  # user property k = é
        00 02 772f          # will topic "w/"
        00 05 68656c6c6f    # will payload "hello"
        00 02 6d65          # user name "me"
        00 03 736563        # password "sec"
        """,
        Connect(
            "MQTT",
            5,
            True,
            30,
            "id",
            Will(
                "w/",
                b"hello",
                2,
                True,
                10,
                3600,
                unhex("0101 08 0003 722f74 03 0001 74 09 0002 ffff 26 0001 6b 0002 c3a9"),
            ),
            "me",
            b"sec",
            props(
                session_expiry_interval=60,
                authentication_method="x",
                authentication_data=b"\x00\x01",
                request_problem_information=0,
                request_response_information=1,
                receive_maximum=10,
                topic_alias_maximum=5,
                user_properties=[("a", "b"), ("a", "c")],
                maximum_packet_size=4096,
            ),
        ),
    ),
    good(
        "connect-5-will-properties-between",
        V5,
        """
        10 23               # CONNECT, 35 bytes
        00 04 4d515454      # protocol name MQTT
        05                  # protocol level 5
        04                  # connect flags: will
        00 00               # no keep alive
        00                  # no properties
        00 00               # client id ""
        10                  # 16 bytes of will properties
          03 0001 74        # content type "t", forwarded
          18 00000001       # will delay interval 1, cut out
          01 00             # payload format: bytes, forwarded
          02 00000002       # message expiry interval 2, cut out
        00 01 74            # will topic "t"
        00 00               # will payload, empty
        """,
        Connect("MQTT", 5, False, 0, "", Will("t", b"", 0, False, 1, 2, unhex("03000174 0100"))),
        canonical=False,
    ),
    # 3.2 CONNACK
    good("connack", V3, "20 02 00 00", Connack()),
    good("connack-session", V311, "20 02 01 00", Connack(True)),
    good("connack-refused", V3, "20 02 00 05", Connack(False, 5)),
    good("connack-5", V5, "20 03 00 00 00", Connack()),
    good("connack-5-session", V5, "20 03 01 00 00", Connack(True)),
    good("connack-5-refused", V5, "20 03 00 87 00", Connack(False, 0x87)),
    good(
        "connack-5-everything",
        V5,
        """
        20 43               # CONNACK, 67 bytes
        00                  # no session
        00                  # success
        40                  # 64 bytes of properties
          11 ffffffff       # session expiry interval: never
          12 0002 6964      # assigned client identifier "id"
          13 003c           # server keep alive 60
          15 0001 78        # authentication method "x"
          16 0001 79        # authentication data
          1a 0002 7231      # response information "r1"
          1c 0002 7332      # server reference "s2"
          1f 0002 6f6b      # reason string "ok"
          21 0400           # receive maximum 1024
          22 0040           # topic alias maximum 64
          24 01             # maximum QoS 1
          25 00             # retain is not available
          26 0001 61 0001 62  # user property a = b
          27 00100000       # maximum packet size 1 MiB
          28 00             # no wildcard subscriptions
          29 01             # subscription identifiers
          2a 01             # shared subscriptions
        """,
        Connack(
            False,
            0,
            props(
                session_expiry_interval=0xFFFFFFFF,
                assigned_client_identifier="id",
                server_keep_alive=60,
                authentication_method="x",
                authentication_data=b"y",
                response_information="r1",
                server_reference="s2",
                reason_string="ok",
                receive_maximum=1024,
                topic_alias_maximum=64,
                maximum_qos=1,
                retain_available=0,
                user_properties=[("a", "b")],
                maximum_packet_size=0x100000,
                wildcard_subscription_available=0,
                subscription_identifier_available=1,
                shared_subscription_available=1,
            ),
        ),
    ),
    # 3.3 PUBLISH
    good("publish-0", V3, "30 05 0003 612f62", Publish("a/b")),
    good(
        "publish-0-retain",
        V3,
        """
        31 07               # PUBLISH, QoS 0, retain
        00 03 612f62        # topic "a/b"
        00ff                # payload
        """,
        Publish("a/b", b"\x00\xff", 0, True),
    ),
    good(
        "publish-1-dup",
        V3,
        """
        3a 08               # PUBLISH, DUP, QoS 1
        00 03 612f62        # topic "a/b"
        00 0a               # packet identifier 10
        21                  # payload
        """,
        Publish("a/b", b"!", 1, False, True, 10),
    ),
    good(
        "publish-2",
        V3,
        """
        34 07               # PUBLISH, QoS 2
        00 03 612f62        # topic "a/b"
        ff ff               # packet identifier 65535, no payload
        """,
        Publish("a/b", b"", 2, False, False, 65535),
    ),
    # A topic that begins with U+FEFF keeps it. [MQTT-1.5.4-3]
    good("publish-0-bom", V3, "30 06 0004 efbbbf61", Publish("\ufeffa")),
    good("publish-5-0", V5, "30 06 0003 612f62 00", Publish("a/b")),
    good(
        "publish-5-1",
        V5,
        """
        33 0a               # PUBLISH, QoS 1, retain
        00 03 612f62        # topic "a/b"
        00 01               # packet identifier 1
        00                  # no properties
        6869                # payload "hi"
        """,
        Publish("a/b", b"hi", 1, True, False, 1),
    ),
    good("publish-5-alias", V5, "30 06 0000 03 23ffff", Publish("", topic_alias=65535)),
    good(
        "publish-5-everything",
        V5,
        """
        3d 30               # PUBLISH, DUP, QoS 2, retain
        00 01 74            # topic "t"
        12 34               # packet identifier 0x1234
        26                  # 38 bytes of properties
          02 0000003c       # message expiry interval 60
          23 0007           # topic alias 7
          0b 01             # subscription identifier 1
          0b ffffff7f       # subscription identifier 268435455
          01 01             # payload format: text
          03 0001 74        # content type "t"
          08 0003 722f74    # response topic "r/t"
          09 0000           # correlation data, empty
          26 0001 61 0002 c3a9  # user property a = é
        0102030c            # payload
        """,
        Publish(
            "t",
            b"\x01\x02\x03\x0c",
            2,
            True,
            True,
            0x1234,
            unhex("0101 03000174 080003722f74 090000 26 0001 61 0002 c3a9"),
            7,
            60,
            [1, 268_435_455],
        ),
    ),
    good(
        "publish-5-properties-between",
        V5,
        """
        30 23               # PUBLISH, QoS 0
        00 01 74            # topic "t"
        1e                  # 30 bytes of properties
          26 0001 7a 0001 31  # user property z = 1, forwarded
          23 0001           # topic alias 1, cut out
          01 00             # payload format: bytes, forwarded
          02 00000000       # message expiry interval 0, cut out
          0b 8001           # subscription identifier 128, cut out
          26 0001 61 0001 32  # user property a = 2, forwarded
          03 0000           # content type "", forwarded
        70                  # payload
        """,
        Publish(
            "t",
            b"p",
            properties=unhex("26 0001 7a 0001 31 0100 26 0001 61 0001 32 030000"),
            topic_alias=1,
            message_expiry=0,
            subscription_ids=[128],
        ),
        canonical=False,
    ),
    good(
        "publish-5-unchanged-properties-last",
        V5,
        """
        30 0b               # PUBLISH, QoS 0
        00 01 74            # topic "t"
        07                  # 7 bytes of properties
          23 0001           # topic alias 1, cut out
          03 0001 74        # content type "t", forwarded
        """,
        Publish("t", b"", properties=unhex("03000174"), topic_alias=1),
    ),
    # 3.4 PUBACK
    good("puback", ALL, "40 02 0001", Puback(1)),
    good("puback-5-reason", V5, "40 03 0102 10", Puback(0x102, 0x10)),
    good("puback-5-long-success", V5, "40 03 0102 00", Puback(0x102), canonical=False),
    good("puback-5-no-properties", V5, "40 04 0102 87 00", Puback(0x102, 0x87), canonical=False),
    good(
        "puback-5-everything",
        V5,
        """
        40 10               # PUBACK, 16 bytes
        00 01               # packet identifier 1
        97                  # quota exceeded
        0c                  # 12 bytes of properties
          1f 0002 6e6f      # reason string "no"
          26 0001 61 0001 62  # user property a = b
        """,
        Puback(1, 0x97, props(reason_string="no", user_properties=[("a", "b")])),
    ),
    # 3.5 PUBREC
    good("pubrec", ALL, "50 02 0001", Pubrec(1)),
    good("pubrec-5-reason", V5, "50 03 0001 91", Pubrec(1, 0x91)),
    good(
        "pubrec-5-properties",
        V5,
        "50 09 0001 00 05 1f 0002 6f6b",
        Pubrec(1, 0, props(reason_string="ok")),
    ),
    # 3.6 PUBREL
    good("pubrel", ALL, "62 02 0001", Pubrel(1)),
    good("pubrel-3.1-dup", V31, "6a 02 0001", Pubrel(1), canonical=False),
    good("pubrel-5-reason", V5, "62 03 0001 92", Pubrel(1, 0x92)),
    good(
        "pubrel-5-properties",
        V5,
        "62 09 0001 00 05 1f 0002 6f6b",
        Pubrel(1, 0, props(reason_string="ok")),
    ),
    # 3.7 PUBCOMP
    good("pubcomp", ALL, "70 02 0001", Pubcomp(1)),
    good("pubcomp-5-reason", V5, "70 03 0001 92", Pubcomp(1, 0x92)),
    good(
        "pubcomp-5-properties",
        V5,
        "70 09 0001 92 05 1f 0002 6e6f",
        Pubcomp(1, 0x92, props(reason_string="no")),
    ),
    # 3.8 SUBSCRIBE
    good(
        "subscribe",
        V3,
        """
        82 0d               # SUBSCRIBE, 13 bytes
        00 01               # packet identifier 1
        00 03 612f23 01     # filter "a/#", QoS 1
        00 02 2b62 02       # filter "+b", QoS 2: its grammar is for others to judge
        """,
        Subscribe(1, [Filter("a/#", 1), Filter("+b", 2)]),
    ),
    good(
        "subscribe-3.1-dup",
        V31,
        "8a 06 0001 0001 61 00",
        Subscribe(1, [Filter("a", 0)]),
        canonical=False,
    ),
    good("subscribe-5", V5, "82 07 000a 00 0001 61 00", Subscribe(10, [Filter("a")])),
    good(
        "subscribe-5-everything",
        V5,
        """
        82 2a               # SUBSCRIBE, 42 bytes
        00 0a               # packet identifier 10
        0a                  # 10 bytes of properties
          0b 8001           # subscription identifier 128
          26 0001 61 0001 62  # user property a = b
        00 01 23 2e         # filter "#": QoS 2, no local, as published, handling 2
        00 01 2b 11         # filter "+": QoS 1, handling 1
        00 0e 2473686172652f672f612f622f63  # filter "$share/g/a/b/c"
          08                # as published
        00 01 61 00         # filter "a"
        """,
        Subscribe(
            10,
            [
                Filter("#", 2, True, True, 2),
                Filter("+", 1, False, False, 1),
                Filter("$share/g/a/b/c", 0, False, True, 0),
                Filter("a"),
            ],
            128,
            props(user_properties=[("a", "b")]),
        ),
    ),
    good(
        "subscribe-5-identifier",
        V5,
        "82 09 000a 02 0b01 0001 61 02",
        Subscribe(10, [Filter("a", 2)], 1),
    ),
    # 3.9 SUBACK
    good("suback", V3, "90 06 0001 00 01 02 80", Suback(1, [0, 1, 2, 0x80])),
    good("suback-5", V5, "90 05 0001 00 02 87", Suback(1, [2, 0x87])),
    good(
        "suback-5-properties",
        V5,
        "90 09 0001 05 1f 0002 6f6b 00",
        Suback(1, [0], props(reason_string="ok")),
    ),
    # 3.10 UNSUBSCRIBE
    good("unsubscribe", V3, "a2 0a 0001 0003 612f23 0001 2b", Unsubscribe(1, ["a/#", "+"])),
    good("unsubscribe-3.1-dup", V31, "aa 05 0001 0001 61", Unsubscribe(1, ["a"]), False),
    good("unsubscribe-5", V5, "a2 06 0001 00 0001 61", Unsubscribe(1, ["a"])),
    good(
        "unsubscribe-5-properties",
        V5,
        "a2 0d 0001 07 26 0001 61 0001 62 0001 61",
        Unsubscribe(1, ["a"], props(user_properties=[("a", "b")])),
    ),
    # 3.11 UNSUBACK
    good("unsuback", V3, "b0 02 0001", Unsuback(1)),
    good("unsuback-5", V5, "b0 05 0001 00 00 11", Unsuback(1, [0, 0x11])),
    good(
        "unsuback-5-properties",
        V5,
        "b0 09 0001 05 1f 0002 6f6b 8f",
        Unsuback(1, [0x8F], props(reason_string="ok")),
    ),
    # 3.12 PINGREQ, 3.13 PINGRESP
    good("pingreq", ALL, "c0 00", Pingreq()),
    good("pingresp", ALL, "d0 00", Pingresp()),
    # 3.14 DISCONNECT
    good("disconnect", ALL, "e0 00", Disconnect()),
    good("disconnect-5-long-normal", V5, "e0 01 00", Disconnect(), canonical=False),
    good("disconnect-5-with-will", V5, "e0 01 04", Disconnect(4)),
    good("disconnect-5-no-properties", V5, "e0 02 8d 00", Disconnect(0x8D), canonical=False),
    good(
        "disconnect-5-everything",
        V5,
        """
        e0 18               # DISCONNECT, 24 bytes
        9d                  # server moved
        16                  # 22 bytes of properties
          11 00000000       # session expiry interval 0
          1c 0002 7332      # server reference "s2"
          1f 0002 6f6b      # reason string "ok"
          26 0001 61 0001 62  # user property a = b
        """,
        Disconnect(
            0x9D,
            props(
                session_expiry_interval=0,
                server_reference="s2",
                reason_string="ok",
                user_properties=[("a", "b")],
            ),
        ),
    ),
    # 3.15 AUTH
    good("auth-success", V5, "f0 00", Auth()),
    good(
        "auth-continue",
        V5,
        """
        f0 13               # AUTH, 19 bytes
        18                  # continue authentication
        11                  # 17 bytes of properties
          15 0001 78        # authentication method "x"
          16 0003 000102    # authentication data
          26 0001 61 0001 62  # user property a = b
        """,
        Auth(
            0x18,
            props(
                authentication_method="x",
                authentication_data=b"\x00\x01\x02",
                user_properties=[("a", "b")],
            ),
        ),
    ),
    good(
        "auth-again",
        V5,
        "f0 0b 19 09 15 0001 78 1f 0002 6f6b",
        Auth(0x19, props(authentication_method="x", reason_string="ok")),
    ),
]
