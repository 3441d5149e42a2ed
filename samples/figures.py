"""Exact figures for worked questions: fractions in, rounded decimals out, so that no answer depends on floating point."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction


@dataclass(frozen=True)
class Quantity:
    """One thing that can be computed, asked in several wordings and answered in one manner."""

    name: str
    source: str
    topics: tuple
    wordings: tuple  # templates of questions; each wording is a family of its own
    draw: object  # a random generator -> the slots of one question
    answer: object  # the slots -> the worked answer, without its source


def exact(text):
    """The fraction that a decimal such as "0.05" stands for."""
    return Fraction(str(text))


def decimal(value, places=4):
    """`value` rounded half up to `places` decimals, without trailing zeros: Fraction(1, 8) -> "0.125"."""
    with localcontext() as context:
        context.prec = 40
        number = Decimal(value.numerator) / Decimal(value.denominator) if isinstance(value, Fraction) else Decimal(value)
        rounded = number.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def root(value):
    """The square root of a fraction, with 40 digits."""
    with localcontext() as context:
        context.prec = 40
        return (Decimal(value.numerator) / Decimal(value.denominator)).sqrt()
