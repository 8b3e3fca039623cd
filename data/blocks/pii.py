"""Personal data and secrets in texts, found by form and checksum, and replaced by placeholders or refused.

Found are e-mail addresses, phone numbers (+ and country code, or North American), public IP addresses, payment cards (Luhn), IBANs
(length and mod 97) and the credentials of well-known services. Every pattern has bounded repetitions: the work is linear in the text.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from data.blocks.base import Rejected, Row
from data.blocks.scopes import changed_in, texts_in
from data.blocks.settings import SCOPE, BlockSettings, Scope

Kind = Literal["secret", "email", "iban", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = ("secret", "email", "iban", "card", "ip", "phone")
_ROUNDS = 8


class PIISettings(BlockSettings):
    """What is looked for and what is done about it."""

    scope: Scope = Field(default="document", description=SCOPE)
    kinds: list[Kind] = Field(default=list(KINDS), min_length=1, description="What is looked for.")
    action: Literal["replace", "reject"] = Field(
        default="replace", description="replace: put a placeholder such as <EMAIL> in its place; reject: refuse the row."
    )
    public_ip_only: bool = Field(default=True, description="Leave private, loopback and documentation IP addresses, which point to nobody.")


@dataclass(frozen=True, slots=True)
class Found:
    """One piece of personal data: from where to where in the text."""

    kind: Kind
    start: int
    end: int


class PII:
    """Replaces personal data and secrets by placeholders, or refuses rows that hold any."""

    name = "pii"

    def __init__(self, settings: PIISettings) -> None:
        self.settings = settings

    def __call__(self, row: Row) -> Row | Rejected:
        if self.settings.action == "replace":
            return changed_in(row, self.settings.scope, self.replaced)
        if counts := self.counts(row):
            return Rejected(row, "pii", ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
        return row

    def counts(self, row: Row) -> Counter[Kind]:
        """How many of each kind a row holds."""
        return Counter(found.kind for text in texts_in(row, self.settings.scope) for found in self.find(text))

    def find(self, text: str) -> list[Found]:
        """All that is found in a text, from left to right; where two overlap, the kind that comes first in KINDS."""
        taken: list[Found] = []
        for kind in KINDS:
            if kind not in self.settings.kinds:
                continue
            ends = sorted((found.start, found.end) for found in taken)
            taken += _apart(ends, (Found(kind, start, end) for start, end in self._spans(kind, text)))
        return sorted(taken, key=lambda found: found.start)

    def replaced(self, text: str) -> str:
        """The text with <KIND> in the place of all that is found, until nothing more is."""
        for _ in range(_ROUNDS):
            if not (all_found := self.find(text)):
                break
            parts, position = [], 0
            for found in all_found:
                parts += [text[position : found.start], f"<{found.kind.upper()}>"]
                position = found.end
            text = "".join([*parts, text[position:]])
        return text

    def _spans(self, kind: Kind, text: str) -> Iterator[tuple[int, int]]:
        if kind == "ip":
            return _ips(text, self.settings.public_ip_only)
        return _FINDERS[kind](text)


def _apart(taken: list[tuple[int, int]], candidates: Iterator[Found]) -> Iterator[Found]:
    """Those candidates (in order) that overlap nothing taken (sorted)."""
    index = 0
    for found in candidates:
        while index < len(taken) and taken[index][1] <= found.start:
            index += 1
        if index == len(taken) or taken[index][0] >= found.end:
            yield found


_FOUR_DIGITS, _DOTTED = re.compile("[0-9]{4}"), re.compile(r"[0-9]\.[0-9]")
_EMAIL = re.compile(
    r"(?<![\w.%+\-])[A-Za-z0-9_][A-Za-z0-9._%+\-]{0,63}+@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w@])"
)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    return _matches(_EMAIL, text) if "@" in text else iter(())


_SECRETS = re.compile(
    r"(?<![A-Za-z0-9_\-])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255}|glpat-[A-Za-z0-9_\-]{20,64}"
    r"|sk-(?:proj-|ant-|or-)?[A-Za-z0-9_\-]{20,250}|[rs]k_(?:live|test)_[A-Za-z0-9]{16,250}"
    r"|xox[abeoprs]-[A-Za-z0-9\-]{10,250}|AIza[0-9A-Za-z_\-]{35}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_\-]{50,250}"
    r"|eyJ[A-Za-z0-9_\-]{8,2000}\.eyJ[A-Za-z0-9_\-]{8,4000}\.[A-Za-z0-9_\-]{8,1000}"
    r")(?![A-Za-z0-9_\-])"
    r"|-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----\s{0,4}+"
    r"(?:(?:Proc-Type|DEK-Info):[^\n]{0,200}\n){0,2}[A-Za-z0-9+/=\s:,.]{0,20000}+"
    r"(?:-----END (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----)?"
)


# One of these is in every secret: far faster to look for than the pattern.
_SECRET_SIGNS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "k_live_", "k_test_", "xox"),
    *("AIza", "hf_", "npm_", "pypi-", "eyJ", "PRIVATE KEY-----"),
)


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    return _matches(_SECRETS, text) if any(sign in text for sign in _SECRET_SIGNS) else iter(())


# Lengths of the countries' IBANs (ISO 13616 registry).
_IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("PT",), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL"), 28),
    **dict.fromkeys(("BR", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    "LC": 32,
}
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?= ?[A-Z0-9])")
_IBAN_REST = re.compile(r"(?: ?[A-Z0-9]){0,30}")


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for start in _IBAN_START.finditer(text):
        missing = _IBAN_LENGTHS.get(start[0][:2], 0) - 4
        rest = _IBAN_REST.match(text, start.end())
        end, seen = start.end(), 0
        while rest and seen < missing and end < rest.end():
            seen += text[end] != " "
            end += 1
        if missing > 0 and seen == missing and not text[end : end + 1].isalnum() and iban_is_valid(text[start.start() : end]):
            yield start.start(), end


def iban_is_valid(iban: str) -> bool:
    """Whether the check digits are right: the first four characters moved to the end, letters as 10 to 35, modulo 97 is 1 (ISO 7064)."""
    plain = iban.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


_CARD = re.compile(r"(?<![\w.\-])[2-6][0-9]{3}(?:[ \-]?[0-9]){10,15}(?![\w\-])(?!\.[0-9])")
# Visa, Mastercard (two ranges), American Express, Diners, Discover, UnionPay and JCB: how a number begins and how long it is.
_ISSUER = re.compile(
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|"
    r"6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}|35(?:2[89]|[3-8]\d)\d{12}"
)


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text) if _FOUR_DIGITS.search(text) else ():
        if _ISSUER.fullmatch(re.sub("[ -]", "", match[0])) and luhn_is_valid(match[0]):
            yield match.span()


def luhn_is_valid(number: str) -> bool:
    """The check sum of payment cards: every second digit from the right doubled, its digits summed; all together end in 0 (ISO/IEC 7812).

    By hand: 4111 1111 1111 1111 gives 8 + 15 + 7 = 30.
    """
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w)(?!\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])(?!\.[0-9])")


def _ips(text: str, public_only: bool) -> Iterator[tuple[int, int]]:
    spans = [
        *(_matches(_IPV4, text) if _DOTTED.search(text) else ()),
        *(_matches(_IPV6, text) if "::" in text or text.count(":") > 6 else ()),
    ]
    for start, end in sorted(spans):
        try:
            address = ipaddress.ip_address(text[start:end])
        except ValueError:
            continue
        # Public IPv6 addresses all lie in 2000::/3; the rest of the space only looks so: a::b is C++.
        if not public_only or (address.is_global and (address.version == 4 or address in _PUBLIC_IPV6)):
            yield start, end


_PHONE = re.compile(
    r"(?<![\w+])(?<![0-9] )\+[1-9](?:[ .\-]?\(?[0-9]\)?){7,12}(?![\w])"
    r"|(?<![\w.\-+(])(?:1[ .\-])?"
    r"(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.\-])[2-9][0-9]{2}[.\-][0-9]{4}(?![\w\-])(?!\.[0-9])"
)


def _phones(text: str) -> Iterator[tuple[int, int]]:
    return _matches(_PHONE, text) if "+" in text or _FOUR_DIGITS.search(text) else iter(())


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in pattern.finditer(text))


_FINDERS: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
    "secret": _secrets,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "phone": _phones,
}
