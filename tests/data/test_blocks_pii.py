"""Personal data: what is found and what is not, checksums by hand, and that a second pass finds nothing."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.blocks.base import Block, Rejected, Row
from data.blocks.pii import KINDS, PII, PIISettings, iban_is_valid, luhn_is_valid
from data.forms import Example
from data.records import Message

REPLACE = PII(PIISettings())
KEY = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A\n\nMIIEow==\nabc+/\n-----END RSA PRIVATE KEY-----"
TOKEN = "abcdefghij0123456789ABCDEFGHIJ0123456789"


def row(prompt: str, completion: str) -> Row:
    return Row(0, "file", 1, Example((Message("user", prompt),), completion=completion))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to jane.doe+x@mail.example.co.uk.", "Write to <EMAIL>."),
        ("<a@b.de>, (c_d@e-f.org), 8.8.8.8@x.com", "<<EMAIL>>, (<EMAIL>), <EMAIL>"),
        ("Call +44 20 7946 0958 or (212) 555-0143, 212-555-0143.", "Call <PHONE> or <PHONE>, <PHONE>."),
        ("+1-212-555-0143; 1 212.555.0143; +33 1 23 45 67 89", "<PHONE>; <PHONE>; <PHONE>"),
        ("Server 8.8.8.8, and 2606:4700:4700::1111.", "Server <IP>, and <IP>."),
        ("Card 4111 1111 1111 1111, 5500-0055-5555-5559, 378282246310005.", "Card <CARD>, <CARD>, <CARD>."),
        ("IBAN GB82 WEST 1234 5698 7654 32 AND MORE; DE89370400440532013000.", "IBAN <IBAN> AND MORE; <IBAN>."),
        (f"AKIAIOSFODNN7EXAMPLE ghp_{TOKEN[:36]} sk-{TOKEN} hf_{TOKEN[:34]}", "<SECRET> <SECRET> <SECRET> <SECRET>"),
        (f"Bearer eyJ{TOKEN}.eyJ{TOKEN}.{TOKEN}", "Bearer <SECRET>"),
        (f"key:\n{KEY}\nend", "key:\n<SECRET>\nend"),
    ],
)
def test_what_is_found(text, clean):
    assert REPLACE.replaced(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "user@localhost, @name, a@b, x@@y.com, [a-z]+@[a-z]+",
        "3 + 4 = 7, 355909190063 - 746 = 355909189317, 1 +12345678901",
        "Version 1.2.3.4.5, 256.1.1.1, 192.168.0.1, 127.0.0.1, ::1, fe80::1, 12:30:45, a::b",
        "4111 1111 1111 1112, 6000 0000 0000 0007",  # a wrong check digit; a right one, but no issuer begins so
        "GB82 WEST 1234 5698 7654 33, DE8937040044053201300, XX89370400440532013000",
        "2024-01-15, 1999-2003, 12345, 555-1234, chapters 212-555",
        "ask-me-anything-you-want-to, sk-short, task-0123456789012345678901234",
        "C++ std::vector<int>::iterator",
    ],
)
def test_what_is_left_alone(text):
    assert REPLACE.replaced(text) == text


def test_checksums_by_hand():
    assert luhn_is_valid("4111 1111 1111 1111") and not luhn_is_valid("4111 1111 1111 1112")
    assert luhn_is_valid("79927398713") and not luhn_is_valid("79927398710")
    assert iban_is_valid("GB82 WEST 1234 5698 7654 32") and not iban_is_valid("GB82 WEST 1234 5698 7654 33")


def test_kinds_and_actions():
    text = "a@b.de 8.8.8.8"
    assert PII(PIISettings(kinds=["ip"])).replaced(text) == "a@b.de <IP>"
    assert PII(PIISettings(public_ip_only=False)).replaced("10.0.0.1 999.0.0.1") == "<IP> 999.0.0.1"
    block = PII(PIISettings(action="reject"))
    rejected = block(row(text, "c@d.de"))
    assert isinstance(rejected, Rejected) and (rejected.reason, rejected.detail) == ("pii", "2 email, 1 ip")
    clean = row("nothing", "here")
    assert block(clean) is clean and REPLACE(clean) is clean
    assert PII(PIISettings(scope="imitated")).counts(row(text, "c@d.de")) == {"email": 1}
    assert isinstance(block, Block)


def test_found_in_order_and_never_overlapping():
    found = REPLACE.find(f"+12125550143 sk-{TOKEN} x@y.com https://u:p@h.com/212-555-0143")
    assert [each.kind for each in found][:3] == ["phone", "secret", "email"]
    assert all(before.end <= after.start for before, after in itertools.pairwise(found))


PIECES = st.sampled_from(
    [
        *"a1 .-+@:()_<>\n",
        "8.8.8.8",
        "a@b.de",
        "+4420794609",
        "4111111111111111",
        "DE89370400440532013000",
        "2001:db8::",
        "sk-",
        TOKEN,
        "::1",
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40))
def test_a_second_pass_changes_nothing(text):
    once = REPLACE.replaced(text)
    assert REPLACE.replaced(once) == once and REPLACE.find(once) == []


def test_every_kind_has_a_finder():
    assert set(PIISettings().kinds) == set(KINDS)
