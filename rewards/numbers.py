"""Numbers as people and LaTeX write them, read exactly: `-1,000.5`, `\\frac12`, `50\\%`, `5 cm`."""

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_EXPONENT = 300
_DIGITS = r"\d{1,3}(?:(?:,|\{,\}|\\[,!;]|\\ )\d{3})+(?!\d)|\d{1,100}"
_DECIMAL = rf"(?:(?P<whole>{_DIGITS})(?P<point>\.\d{{0,100}})?|(?P<bare>\.\d{{1,100}}))"
_FRACTION = re.compile(
    r"(?:(?P<mixed>\d{1,30})(?:\s*(?=\\)|\s+(?=\d)))?"
    r"(?:\\frac\s*(?:\{\s*(?P<a>-?\d{1,100})\s*\}|(?P<a1>\d))\s*"
    r"(?:\{\s*(?P<b>-?\d{1,100})\s*\}|(?P<b1>\d))|(?P<a2>\d{1,100})\s*/\s*(?P<b2>\d{1,100}))"
)
_PLAIN = re.compile(
    rf"{_DECIMAL}(?:\\overline\{{(?P<repeat>\d{{1,30}})\}})?"
    r"(?:\s*(?:\\times|\\cdot|\*|×|·)\s*10\s*\^\s*(?:\{\s*(?P<power>[+-]?\d{1,4})\s*\}"
    r"|(?P<power1>[+-]?\d{1,4}))|[eE](?P<e>[+-]?\d{1,4}))?"
)
_NAMED = re.compile(r"^(?:[A-Za-z](?:_\{?\w{1,3}\}?)?|\\text\{\s*[\w ]{1,20}\})\s*=\s*")
_MARKUP = re.compile(r"\\(?:left|right|displaystyle|!|,|;|:|quad|qquad)(?![A-Za-z])")
_TEXT = re.compile(
    r"\\(?:text|textrm|textbf|mathrm|mathbf|operatorname|mbox|rm)\s*\{([^{}]{0,60})\}"
)
_UNITS = """cm mm m km nm in ft yd mi kg g mg lb lbs oz t s sec ms min h hr hrs d L l ml mL N J kJ W
kW V A K C F Hz Pa rad deg mph kmh km/h m/s m/s^2 cm^2 m^2 km^2 mm^2 cm^3 m^3 ft^2 in^2"""
"""Units that may stand right after a number, like no product of variables."""
_KNOWN = frozenset(_UNITS.split())
_HEDGES = {"or", "and", "not", "to", "but", "maybe", "if", "either", "perhaps", "nor", "vs"}
"""Words that make of a number and what follows more than one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A number that was written out."""

    value: Fraction
    """With a percent sign: a hundredth of `shown`."""
    percent: bool
    point: bool
    """Whether it was written with a decimal point, so that it may be rounded."""
    unit: str

    @property
    def shown(self) -> Fraction:
        """Its value before a percent sign."""
        return self.value * 100 if self.percent else self.value


def read_number(text: str) -> Written | None:
    """Return the number that a text is, or None if it is anything more or less than one."""
    text = _NAMED.sub("", _bare(text), count=1)
    sign = re.match(r"([+\-−]?)\s*(\\\$|[$€£¥])?\s*([+\-−]?)\s*", text)
    assert sign is not None
    if sign[1] and sign[3]:
        return None
    unit = "$" if sign[2] else ""
    return _after(text[sign.end() :], unit=unit, negative=(sign[1] or sign[3]) in ("-", "−"))


def equal_numbers(given: Written, true: Written, *, decimals: int, either: bool) -> bool:
    """Return whether two written numbers are the same.

    Args:
        decimals: to which they must agree, where either has a decimal point; numbers below 1 to
            so many digits of their own size.
        either: take a number with a percent sign for the one without as well.
    """
    rounded = given.point or true.point
    if _near(given.value, true.value, decimals, rounded):
        return True
    one_sign = given.percent != true.percent
    return either and one_sign and _near(given.shown, true.shown, decimals, rounded)


def same_unit(given: Written, true: Written) -> bool:
    """Return whether the answer has the truth's unit, if that has one."""
    return not true.unit or _singular(given.unit) == _singular(true.unit)


def _singular(unit: str) -> str:
    return unit.casefold().rstrip("s") if len(unit) > 3 else unit


def _near(given: Fraction, true: Fraction, decimals: int, rounded: bool) -> bool:
    if not rounded:
        return given == true
    return abs(given - true) <= Fraction(1, 10**decimals) * min(1, max(abs(given), abs(true)))


def _bare(text: str) -> str:
    """Return the text without dollars, brackets and spacing around or inside it."""
    text = text.strip().rstrip(".").strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
            text = text[len(left) : -len(right)].strip()
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    if whole := _TEXT.fullmatch(text):
        text = whole[1].strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return text.rstrip(".").strip()


def _after(text: str, *, unit: str, negative: bool) -> Written | None:
    """Read an unsigned number at the text's start, and what follows it as a unit."""
    value, point, end = _fraction(text) or _plain(text) or (None, False, 0)
    if value is None:
        return None
    rest = text[end:]
    percent = re.match(r"\s*\\?%|\s*\\text\{\s*(?:percent|\\?%)\s*\}|\s+percent\b", rest)
    if percent:
        rest, value = rest[percent.end() :], value / 100
    found = _unit(rest, adjacent=not rest[:1].isspace())
    if found is None or (unit and found):
        return None
    signed = -value if negative else value
    return Written(value=signed, percent=percent is not None, point=point, unit=unit or found)


def _fraction(text: str) -> tuple[Fraction, bool, int] | None:
    match = _FRACTION.match(text)
    if match is None:
        return None
    top = match["a"] or match["a1"] or match["a2"]
    below = int(match["b"] or match["b1"] or match["b2"])
    if below == 0:
        return None
    return int(match["mixed"] or 0) + Fraction(int(top), below), False, match.end()


def _plain(text: str) -> tuple[Fraction, bool, int] | None:
    match = _PLAIN.match(text)
    if match is None:
        return None
    whole = re.sub(r"\D", "", match["whole"] or "") or "0"
    decimals = (match["point"] or match["bare"] or ".")[1:]
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    repeat = match["repeat"]
    if repeat is not None:
        if match["point"] is None and match["bare"] is None:
            return None
        value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(decimals))
    power = int(match["power"] or match["power1"] or match["e"] or 0)
    if abs(power) > _MAX_EXPONENT:
        return None
    return value * Fraction(10) ** power, bool(decimals) and repeat is None, match.end()


def _unit(rest: str, *, adjacent: bool) -> str | None:
    """Return the unit that follows a number, empty for none; None where it is something else."""
    rest = _MARKUP.sub(" ", rest).strip()
    if not rest:
        return ""
    if re.fullmatch(r"\^?\s*\{?\s*(?:\\circ|°)\s*\}?\s*[CFK]?|°[CFK]?", rest):
        return "degree"
    unit, spoken = _TEXT.sub(r"\1", rest).strip(), _TEXT.match(rest) is not None
    if not unit:
        return ""
    unit = re.sub(r"\^\{?(\d)\}?", r"^\1", unit)
    if unit in _KNOWN:
        return unit
    words = unit.split()
    if len(words) > 3 or any(word.casefold() in _HEDGES for word in words):
        return None
    if not re.fullmatch(r"[A-Za-z°µ/ ]+(?:\^\d)?", unit):
        return None
    long = all(len(word) >= 3 for word in words)
    return unit if spoken or (long and not adjacent) else None
