"""Which reasoning-gym datasets are fit to train on (0.1.25, each generated and graded by us).

Vetted: generation is fast, the reference answer scores 1, garbage scores about 0, questions
hardly repeat, and the scorer neither executes the model's text nor fails on it.
Lenient, also with `binary`: fraction_simplification, knights_knaves, time_intervals and
word_sorting pass over some words around or after a right answer.
"""

from collections.abc import Mapping

VETTED: frozenset[str] = frozenset(
    {
        "base_conversion",
        "basic_arithmetic",
        "caesar_cipher",
        "chain_sum",
        "count_bits",
        "count_primes",
        "decimal_arithmetic",
        "fraction_simplification",
        "knights_knaves",
        "lcm",
        "leg_counting",
        "number_filtering",
        "number_sorting",
        "products",
        "simple_equations",
        "spell_backward",
        "time_intervals",
        "word_sorting",
    }
)

_EXECUTES = "its scorer executes the model's text as Python or sympy"
REFUSED: Mapping[str, str] = {
    "binary_matrix": _EXECUTES,
    "countdown": _EXECUTES,
    "intermediate_integration": _EXECUTES,
    "n_queens": _EXECUTES,
    "polynomial_multiplication": _EXECUTES,
    "puzzle24": _EXECUTES,
    "simple_integration": _EXECUTES,
    "spiral_matrix": _EXECUTES,
    "string_insertion": _EXECUTES,
    "game_of_life_halting": "its scorer pays full reward for any text",
    "prime_factorization": "its scorer fails on answers that are not numbers",
    "codeio": "its items differ from run to run with the same seed",
    "composite": "it needs datasets of its own; make each of them a source instead",
}
"""Dataset -> why a run with it is refused."""
