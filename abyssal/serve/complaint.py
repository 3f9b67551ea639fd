"""What pydantic found wrong with a request, in the house's words: path=value, expected, remedy."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from abyssal.serve.faults import Dialect, Fault, invalid, quote

# Tags of unions; pydantic puts them into the path of a mistake, where nobody typed them.
WORD, NAMED = "(word)", "(named)"

_EXPECTED = {
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} entries",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "1 to 64 letters, digits, _ and -",
}


def fault_of(problem: ValidationError, dialect: Dialect) -> Fault:
    """The first mistake of a request, with the path to it."""
    mistake = problem.errors(include_url=False)[0]
    path = ".".join(str(step) for step in mistake["loc"] if step not in (WORD, NAMED))
    context = mistake.get("ctx", {})
    if mistake["type"] == "house":
        path = (path + context["place"]).removeprefix(".")
        return invalid(f"{path}{context['reason']}", dialect, param=path)
    if mistake["type"] == "missing":
        code = "missing_required_parameter"
        return invalid(f"{path} is missing; give it", dialect, param=path, code=code)
    return invalid(f"{path}={quote(mistake['input'])}, {_wish(mistake)}", dialect, param=path)


def _wish(mistake: ErrorDetails) -> str:
    """What was expected in place of what came; pydantic's own word for kinds not met so far."""
    pattern = _EXPECTED.get(mistake["type"])
    if pattern is None:
        return f"which cannot be read ({mistake['type']})"
    return "expected " + pattern.format(**mistake.get("ctx", {}))
