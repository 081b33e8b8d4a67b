"""What personal data and secrets look like, and how to find them in a column of text.

Data and pure functions, so that a transform can take them out and a contract can
refuse rows that hold them, both by the same rules.

Every kind has a pattern for Rust's regex engine, which Polars runs over whole
columns. Where a pattern alone would take too much (a card number is a number with
a check digit), the rows it matches, and only those, are looked at again in Python.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


Spans = Callable[[str], Iterator[tuple[int, int]]]


@dataclass(frozen=True)
class Kind:
    """One kind of personal data or secret.

    Attributes:
        name: As in recipes and, in capitals, in placeholders.
        meaning: What it is, in words.
        pattern: In the syntax that Rust and Python share. Matches exactly what is
            meant, unless there is ``spans``: then it need only match rows that
            may hold some.
        spans: Where in a text they are, from left to right.
    """

    name: str
    meaning: str
    pattern: str
    spans: Spans | None = None


def _checked(pattern: str, length: Callable[[str], int]) -> Spans:
    """Spans of the candidates for which ``length`` says how much of them is meant."""
    compiled = re.compile(pattern)

    def spans(text: str) -> Iterator[tuple[int, int]]:
        start = 0
        while (candidate := compiled.search(text, start)) is not None:
            taken = length(candidate[0])
            start = candidate.start() + (taken or 1)
            if taken:
                yield candidate.start(), start

    return spans


def _whole(holds: Callable[[str], bool]) -> Callable[[str], int]:
    return lambda candidate: len(candidate) if holds(candidate) else 0


def _passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right counts twice."""
    total = sum(map(int, digits[::-2])) + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return total % 10 == 0


# First digits and lengths of the large schemes. A tenth of all numbers passes Luhn's check.
_CARDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d|35(?:2[89]|[3-8]\d)|62\d\d)\d{12,15}"  # Discover, JCB, UnionPay
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
)


def _is_card(candidate: str) -> bool:
    digits = re.sub("[ -]", "", candidate)
    return _CARDS.fullmatch(digits) is not None and _passes_luhn(digits)


# SWIFT's IBAN registry: length by country.
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"(\w\w):(\d\d)",
        ":"
        "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 "
        "CY:28 CZ:24 DE:22 DJ:27 DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 "
        "GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 "
        "KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MN:20 MR:27 "
        "MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 RU:33 "
        "SA:24 SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 "
        "VA:22 VG:24 XK:20 YE:30",
    )
}


def _iban_length(candidate: str) -> int:
    """How much of the candidate is an IBAN by ISO 13616; what follows may be the next word."""
    wanted = _IBAN_LENGTHS.get(candidate[:2], 0)
    places = [i for i, character in enumerate(candidate) if character != " "]
    if not wanted or len(places) < wanted:
        return 0
    end = places[wanted - 1] + 1
    if candidate[end : end + 1].isalnum():
        return 0
    plain = candidate[:end].replace(" ", "")
    number = "".join(str(int(character, 36)) for character in plain[4:] + plain[:4])
    return end if int(number) % 97 == 1 else 0


def _is_ipv4(candidate: str) -> bool:
    """Addresses of this machine, of private networks and for documentation name nobody."""
    try:
        return ipaddress.IPv4Address(candidate).is_global
    except ValueError:
        return False


def _is_ipv6(candidate: str) -> bool:
    """Of the addresses given out, 2000::/3; ``a::b`` is more often a name in a program."""
    try:
        address = ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    return address.is_global and not address.is_reserved


def _is_ssn(candidate: str) -> bool:
    """No area 000, 666 or 900-999, no group 00, no serial 0000 has been given out."""
    area, group, serial = candidate.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


_NANP = r"(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}"

# In the order in which they are taken out: what may hold another comes first.
KINDS: tuple[Kind, ...] = (
    Kind(
        "private_key",
        "a private key in PEM form, also one that is cut off",
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?s:.)*?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
        r"|(?:(?:\s|\\n)*[A-Za-z0-9+/=]{16,})*)",
    ),
    Kind(
        "jwt",
        "a JSON Web Token",
        r"\beyJ[A-Za-z0-9_-]{5,}\.eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{10,}",
    ),
    Kind(
        "aws_key",
        "an AWS access key id, or a secret access key beside its name",
        r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"
        r"|(?i:aws_?secret_?(?:access_?)?key)[\x22']?\s*[:=]\s*[\x22']?[A-Za-z0-9/+]{40}\b",
    ),
    Kind(
        "github_token",
        "a GitHub token",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b",
    ),
    Kind(
        "slack_token",
        "a Slack token or webhook",
        r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
    ),
    Kind(
        "api_key",
        "a key of Anthropic, Google, Hugging Face, npm, OpenAI or Stripe",
        r"\b(?:AIza[A-Za-z0-9_-]{35}|sk-(?:[a-z0-9]+-)*[A-Za-z0-9_-]{20,}|[rs]k_live_[A-Za-z0-9]{20,}"
        r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36})\b",
    ),
    Kind("email", "an e-mail address", r"\w[\w.%+-]*@(?:\w[\w-]*\.)+[^\W\d_]{2,}"),
    Kind(
        "iban",
        "an IBAN of the right length with the right check digits",
        r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11}",
        _checked(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,34}", _iban_length),
    ),
    Kind(
        "credit_card",
        "a card number of a known scheme with the right check digit",
        r"[0-9]{13}|[0-9]{4}[ -][0-9]{4,6}[ -][0-9]{4}",
        _checked(
            r"(?<![\d+])(?<!\d\.)(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?"
            r"|\d{4}([ -])\d{6}\2\d{4,5})(?!\d)",
            _whole(_is_card),
        ),
    ),
    Kind(
        "us_ssn",
        "a US social security number with hyphens",
        r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
        _checked(r"(?<![\w-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-])", _whole(_is_ssn)),
    ),
    Kind(
        "ipv6",
        "a public IPv6 address",
        r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]",
        _checked(
            r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", _whole(_is_ipv6)
        ),
    ),
    Kind(
        "ipv4",
        "a public IPv4 address",
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
        _checked(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.\w)", _whole(_is_ipv4)),
    ),
    Kind(
        "phone",
        "a phone number: international with +, or North American",
        rf"\+[1-9][0-9 ().\-/]{{6}}|{_NANP}".replace(r"\d", "[0-9]"),
        _checked(
            r"(?<![\w+])\+[1-9](?:[ ().\-/]{0,3}[0-9]){7,14}(?!\d)"
            rf"|(?<![\w.-])(?:1[ .-])?{_NANP}(?![\w-])",
            len,
        ),
    ),
)
# What opens something, wherever it stands; personal data are not among them.
SECRETS: tuple[Kind, ...] = tuple(
    kind
    for kind in KINDS
    if kind.name in {"private_key", "jwt", "aws_key", "github_token", "slack_token", "api_key"}
)
NAMES: tuple[str, ...] = tuple(kind.name for kind in KINDS)


def redact(
    text: pl.Series, kinds: Sequence[Kind], placeholder: str
) -> tuple[pl.Series, dict[str, pl.Series]]:
    """Put a placeholder in the place of every find.

    Args:
        text: Strings, perhaps null.
        kinds: What to look for, in the order of ``KINDS``.
        placeholder: Where ``{kind}`` stands for the kind's name in capitals.

    Returns:
        The text, and for each kind that was found how often by row.
    """
    import polars as pl

    counts: dict[str, pl.Series] = {}
    for kind in kinds:
        rows = text.str.contains(kind.pattern).fill_null(False).arg_true()
        if not len(rows):
            continue
        mark = placeholder.format(kind=kind.name.upper())
        changed, found = _replaced(text.gather(rows), kind, mark)
        if found.sum():
            text = text.scatter(rows, changed)
            counts[kind.name] = pl.zeros(len(text), pl.Int32, eager=True).scatter(rows, found)
    return text, counts


def _replaced(text: pl.Series, kind: Kind, mark: str) -> tuple[pl.Series, pl.Series]:
    """Texts that may hold some of a kind: without them, and how many there were."""
    import polars as pl

    if kind.spans is None:
        found = text.str.count_matches(kind.pattern).cast(pl.Int32)
        # A dollar sign means a group to Rust's engine, where it is not doubled.
        return text.str.replace_all(kind.pattern, mark.replace("$", "$$")), found
    marked = [_marked(value, list(kind.spans(value)), mark) for value in text]
    return (
        pl.Series([value for value, _ in marked], dtype=pl.String),
        pl.Series([count for _, count in marked], dtype=pl.Int32),
    )


def _marked(text: str, spans: list[tuple[int, int]], mark: str) -> tuple[str, int]:
    pieces, start = [], 0
    for begin, end in spans:
        pieces += [text[start:begin], mark]
        start = end
    return "".join([*pieces, text[start:]]), len(spans)
