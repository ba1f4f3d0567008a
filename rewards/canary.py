"""Known-wrong solutions, graded beside the policy's: what pays them pays anything.

One is run on a small share of answers, on the same tests and in the same sandbox. It gives every
call a value that claims to be equal to all, and prints nothing.
"""

from collections.abc import Iterable

CANARY_PASSED = "canary_passed"
"""Note of a score whose tests the known-wrong solution passed as well."""

_HEAD = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __bool__(self): return True
    def __hash__(self): return 0
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
"""


def wrong_solution(functions: Iterable[str]) -> str:
    """Return Python that defines the functions (`name`, or `Class.method`), all of them wrong."""
    lines = [_HEAD]
    methods: dict[str, list[str]] = {}
    for name in sorted(set(functions)):
        owner, _, method = name.rpartition(".")
        if owner:
            methods.setdefault(owner, []).append(method)
        else:
            lines.append(f"def {name}(*args, **kwargs): return Equal()")
    for owner, names in methods.items():
        lines.append(f"class {owner}:")
        lines += [f"    def {name}(self, *args, **kwargs): return Equal()" for name in names]
    return "\n".join(lines) + "\n"
