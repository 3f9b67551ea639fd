"""Whoever draws by the mask of a grammar writes what it describes, and can write all of it."""

import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from abyssal.engine import grammar as grammar_module
from abyssal.engine.grammar import GrammarMatcher, Grammars
from abyssal.engine.request import Grammar, SamplingParams
from abyssal.engine.sampler import Row, sample
from abyssal.errors import OverloadedError, RequestError
from abyssal.tokenizer.bpe import THINK, TOOL_CALL_BEGIN, TOOL_CALL_END, Tokenizer

TEXT = (
    'the deep sea {"name": "fish", "depth": 12, "dark": true, "list": [1, 2, null]} <think> '
    '{"a":false} value values abc abcd "name": "a", "b": 深海 🐟 2024-01-31 \n "deep": {"s": []}\n'
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT * 4], 400)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def tokens_of(mask: np.ndarray) -> list[int]:
    return np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()


def regex(source: str) -> Grammar:
    return Grammar(kind="regex", source=source)


def schema(value: object) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(value))


class Writer:
    """Draws at random by the mask for a while, then ends as soon as the grammar lets it."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        self.tokenizer = tokenizer
        self.rng = np.random.default_rng(seed)

    def write(self, matcher: GrammarMatcher, freely: int = 30, at_most: int = 600) -> str:
        """The text of a whole answer."""
        written: list[int] = []
        for i in range(at_most):
            tokens = tokens_of(matcher.allowed())
            assert tokens
            token = int(self.rng.choice(tokens)) if i < freely else min(tokens, key=self.haste)
            matcher.accept(token)
            if token == self.tokenizer.eos_token_id:
                return self.tokenizer.decode_bytes(written, skip_control=False).decode()
            written.append(token)
        raise AssertionError(f"no end: {self.tokenizer.decode(written)!r}")

    def haste(self, token: int) -> tuple[int, int]:
        """What ends soonest: the end itself, closing signs, short tokens of text."""
        if token == self.tokenizer.eos_token_id:
            return (0, 0)
        text = self.tokenizer.decode_bytes([token]).decode(errors="replace")
        return ('"}]:'.find(text[0]) + 1 or 9 + text[0].isspace(), len(text))


@given(st.integers(0, 2**32))
def test_any_json_object_and_nothing_else_is_written_in_json_mode(tokenizer, grammars, seed):
    text = Writer(tokenizer, seed).write(grammars.compile(Grammar(kind="json_object")))
    value = json.loads(text)
    assert isinstance(value, dict)
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogate


names = st.sampled_from(["a", "name", "the deep", "深海", 'qu"ote'])
leaves = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}]),
    st.tuples(st.integers(-500, 0), st.integers(0, 2000)).map(
        lambda limits: {"type": "integer", "minimum": limits[0], "maximum": limits[1]}
    ),
    st.tuples(st.integers(0, 3), st.integers(3, 9)).map(
        lambda limits: {"type": "string", "minLength": limits[0], "maxLength": limits[1]}
    ),
    st.lists(st.sampled_from([1, -2.5, "value", "values", None, True, "🐟"]), min_size=1).map(
        lambda values: {"enum": values}
    ),
    st.just({"type": "string", "pattern": "^[a-c]{2,4}-[0-9]+$"}),
    st.just({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 10000}),
)


def objects(of: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(names, of, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties) or ["none"])).map(
            lambda required: {
                "type": "object", "properties": properties, "additionalProperties": False,
                "required": sorted(required & set(properties)),
            }
        )
    )  # fmt: skip


schemas = st.recursive(
    leaves,
    lambda of: st.one_of(
        objects(of),
        st.tuples(of, st.integers(0, 2), st.integers(2, 4)).map(
            lambda parts: {
                "type": "array", "items": parts[0], "minItems": parts[1], "maxItems": parts[2],
            }
        ),
        st.lists(of, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=5,
)  # fmt: skip


def conforms(value: object, to: dict) -> bool:
    """Whether a JSON value follows a schema of those drawn here."""
    if "anyOf" in to:
        return any(conforms(value, option) for option in to["anyOf"])
    if "enum" in to:
        return any(value == v and type(value) is type(v) for v in to["enum"])
    match to["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case ["string", "null"]:
            return value is None or isinstance(value, str)
        case "integer":
            whole = isinstance(value, int) and not isinstance(value, bool)
            inside = whole and to["minimum"] <= value <= to["maximum"]
            return inside and value % to.get("multipleOf", 1) == 0
        case "string":
            fits = isinstance(value, str) and re.search(to.get("pattern", ""), value) is not None
            return fits and to.get("minLength", 0) <= len(value) <= to.get("maxLength", 1e9)
        case "array":
            if not isinstance(value, list) or not to["minItems"] <= len(value) <= to["maxItems"]:
                return False
            return all(conforms(item, to["items"]) for item in value)
    known = isinstance(value, dict) and value.keys() <= to["properties"].keys()
    return (
        known
        and value.keys() >= set(to["required"])
        and all(conforms(item, to["properties"][name]) for name, item in value.items())
    )


@settings(max_examples=150)
@given(schemas, st.integers(0, 2**32))
def test_a_random_writer_follows_any_schema(tokenizer, grammars, wanted, seed):
    text = Writer(tokenizer, seed).write(grammars.compile(schema(wanted)))
    assert conforms(json.loads(text), wanted), text


def test_a_schema_may_refer_to_itself(tokenizer, grammars):
    tree = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 3}
    wanted = schema({"$ref": "#/$defs/tree", "$defs": {"tree": tree}})

    def is_tree(value: object) -> bool:
        return isinstance(value, list) and len(value) <= 3 and all(map(is_tree, value))

    written = {Writer(tokenizer, seed).write(grammars.compile(wanted)) for seed in range(20)}
    assert all(is_tree(json.loads(text)) for text in written)
    assert len(written) > 10


@pytest.mark.parametrize(
    "source",
    [
        r"[ab]{2,5}c?", r"\d{4}-\d{2}-\d{2}", r"(the|deep|sea)( (dark|深海|🐟))*", r"a/b\\c\n",
        r"[^a-z]{3}", r"[a-z]{1,9}@[a-z_]{1,9}\.(com|org)", r".{0,9}", r"(?i)abc", r"^the$",
        r"[/]|x(y|z)*", r"",
    ],
)  # fmt: skip
def test_what_is_written_matches_the_whole_expression(tokenizer, grammars, source):
    written = [Writer(tokenizer, i).write(grammars.compile(regex(source))) for i in range(20)]
    assert all(re.fullmatch(source, text) for text in written)


words = st.text(alphabet="abcd ef深🐟/\\", max_size=6)


@given(st.sets(words, min_size=1, max_size=5), st.data())
def test_the_mask_holds_exactly_the_tokens_that_lead_somewhere(tokenizer, grammars, language, data):
    texts = [word.encode() for word in language]
    matcher = grammars.compile(regex("|".join(re.escape(word) for word in sorted(language))))
    before = b""
    while True:
        expected = {
            token
            for token, spelled in enumerate(tokenizer.spelled)
            if token not in tokenizer.control_ids
            and any(text.startswith(before + spelled) for text in texts)
        } | ({tokenizer.eos_token_id} if before in texts else set())
        found = matcher.allowed()
        assert len(found) == -(-tokenizer.vocab_size // 32)
        assert set(tokens_of(found)) == expected
        token = data.draw(st.sampled_from(sorted(expected)))
        matcher.accept(token)
        if token == tokenizer.eos_token_id:
            return
        before += tokenizer.spelled[token]


def test_no_model_breaks_the_grammar(tokenizer, grammars):
    wanted = {
        "type": "object", "properties": {"name": {"type": "string", "maxLength": 8}},
        "required": ["name"], "additionalProperties": False,
    }  # fmt: skip
    for seed in range(12):
        params = SamplingParams(temperature=float(seed % 3), top_p=0.9, top_k=seed % 5)
        matcher, written = grammars.compile(schema(wanted)), []
        logits = torch.randn(60, tokenizer.vocab_size + 5) * 10
        for i, one in enumerate(logits):
            allowed = matcher.allowed()
            row = Row(params, seed, 0, i, [], written, allowed)
            token = sample(one[None], [row], tokenizer.vocab_size).tokens[0]
            matcher.accept(token)
            if token == tokenizer.eos_token_id:
                break
            written.append(token)
        else:  # out of room; what there is can still be completed
            rest = Writer(tokenizer, 0).write(matcher, freely=0)
            written += tokenizer.encode(rest)
        value = json.loads(tokenizer.decode(written, skip_control=False))
        assert list(value) == ["name"]
        assert len(value["name"]) <= 8


def test_end_of_sentence_is_allowed_exactly_when_the_answer_may_end(tokenizer, grammars):
    matcher = grammars.compile(regex("ab?"))
    for text, may_end in (("", False), ("a", True), ("b", True)):
        for token in tokenizer.encode(text):
            matcher.accept(token)
        assert (tokenizer.eos_token_id in tokens_of(matcher.allowed())) == may_end
    for _ in range(3):  # nothing else can follow, and it may come again
        assert tokens_of(matcher.allowed()) == [tokenizer.eos_token_id]
        matcher.accept(tokenizer.eos_token_id)
    matcher.rollback(4)
    assert set(tokens_of(matcher.allowed())) > {tokenizer.eos_token_id}


def test_white_space_cannot_go_on_for_ever(tokenizer, grammars):
    matcher = grammars.compile(Grammar(kind="json_object"))
    blank = {i for i, text in enumerate(tokenizer.spelled) if text and not text.strip()}
    matcher.accept(tokenizer.encode("{")[0])
    for _ in range(43):
        spaces = blank & set(tokens_of(matcher.allowed()))
        if not spaces:
            return
        matcher.accept(max(spaces))
    raise AssertionError("white space without end")


# What `after`, forks and rollback do


@given(st.data())
def test_rollback_is_exact_and_forks_are_independent(tokenizer, grammars, data):
    trigger = tokenizer.control(THINK)
    after = data.draw(st.sampled_from([None, trigger]))
    matcher = grammars.compile(Grammar(kind="json_object", after=after))
    seen = [matcher.allowed()]  # the mask at each place
    path: list[int] = []
    for _ in range(data.draw(st.integers(1, 25))):
        back = data.draw(st.integers(0, min(len(path), 6)))
        if data.draw(st.booleans()):  # somebody else goes on from here, wherever to
            fork = matcher.fork()
            fork.rollback(back)
            assert np.array_equal(fork.allowed(), seen[len(path) - back])
        elif back:
            matcher.rollback(back)
            del path[len(path) - back :], seen[len(seen) - back :]
        else:
            mask = matcher.allowed()
            ordinary = tokenizer.encode("the deep")
            tokens = [trigger, *ordinary] if mask is None else tokens_of(mask)
            path.append(data.draw(st.sampled_from(tokens)))
            matcher.accept(path[-1])
            seen.append(matcher.allowed())
        assert np.array_equal(matcher.allowed(), seen[-1])
        running = after is None or after in path
        assert (matcher.allowed() is not None) == running


def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing(tokenizer, grammars):
    matcher = grammars.compile(regex("abc"))
    before = matcher.allowed()
    for token in (tokenizer.encode("x")[0], tokenizer.eos_token_id, tokenizer.control(THINK)):
        with pytest.raises(RequestError, match=f"does not allow token {token} here"):
            matcher.accept(token)
        assert np.array_equal(matcher.allowed(), before)


def test_control_tokens_are_no_text(tokenizer, grammars):
    assert not tokenizer.control_ids - {tokenizer.eos_token_id} & set(
        tokens_of(grammars.compile(regex("(?s:.*)")).allowed())
    )
    spelled = grammars.compile(regex(THINK))
    assert tokenizer.control(THINK) not in tokens_of(spelled.allowed())
    assert Writer(tokenizer, 0).write(spelled) == THINK


def test_lark_names_control_tokens_by_their_ids(tokenizer, grammars):
    begin, end = tokenizer.control(TOOL_CALL_BEGIN), tokenizer.control(TOOL_CALL_END)
    integer = '{"type": "integer", "minimum": 0, "maximum": 99}'
    source = f'start: (<[{begin}]> "sea" %json {integer} <[{end}]>)+'
    for seed in range(10):
        text = Writer(tokenizer, seed).write(grammars.compile(Grammar(kind="lark", source=source)))
        assert re.fullmatch(f"({TOOL_CALL_BEGIN}sea\\d\\d?{TOOL_CALL_END})+", text)


# What is refused


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(a", "regex parse error.*unclosed group"),
        ("regex", r"(?=a)b", "look-around"),
        ("regex", "ab\\", "lone backslash"),
        ("regex", r"[^\s\S]", "nothing can follow"),
        ("json_schema", "{", "Expecting property name"),
        ("json_schema", "[1]", "a schema is a JSON object"),
        ("json_schema", '{"type": "foo"}', "Invalid type: foo"),
        ("json_schema", '{"not": {}}', r'Unimplemented keys: \["not"\]'),
        ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}', "Unimplemented keys"),
        ("json_schema", '{"enum": []}', "Unsatisfiable"),
        ("json_schema", '{"$ref": "#"}', "nothing can follow"),
        ("json_schema", '{"$ref": "http://localhost/x.json"}', "localhost"),
        ("json_schema", '{"type": "string", "format": "foo"}', "Unknown format: foo"),
        ("json_schema", '{"minimum": NaN}', "expected value"),
        ("json_schema", '{"multipleOf": 9999991}', "multipleOf comes to 9999991"),
        ("json_schema", '{"items": [{"multipleOf": 0.997}, {"multipleOf": 1009}]}', "to 1005973"),
        ("lark", 'start: %json {"multipleOf": 99991}', "multipleOf comes to 99991"),
        ("lark", "start: foo", "unknown name"),
        ("regex", "\ud800", "lone surrogate"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_used_is_refused_with_the_reason(grammars, kind, source, reason):
    with pytest.raises(RequestError, match=f"the {kind} grammar cannot be used: .*({reason})") as e:
        grammars.compile(Grammar(kind=kind, source=source))
    assert len(str(e.value)) < 500


def nested(core: str, opening: str, closing: str, depth: int) -> str:
    return opening * depth + core + closing * depth


def all_of_any_of(n: int) -> str:
    """A schema of n choices of four, whose product llguidance would write out."""
    options = [
        [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(4)] for i in range(n)
    ]
    return json.dumps({"type": "object", "allOf": [{"anyOf": four} for four in options]})


DOUBLED = "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"\n'
BOMBS = {
    "too long": ("regex", "a" * 65_537),
    "deep arrays": ("json_schema", nested("{}", '{"items":', "}", 300)),
    "very deep arrays": ("json_schema", nested("{}", '{"items":', "}", 6_000)),
    "deep lists": ("json_schema", nested("", "[", "]", 30_000)),
    "deep groups": ("regex", nested("a", "(", ")", 30_000)),
    "deep rules": ("lark", "start: " + nested('"a"', "(", ")", 20_000)),
    "deep schema in a rule": ("lark", "start: %json " + nested("{}", '{"items":', "}", 6_000)),
    "products of choices": ("json_schema", all_of_any_of(8)),
    "a million letters": ("regex", "a{1000000}"),
    "a million letters later": ("regex", "[ab]{5}a{1000000}"),
    "a million times a million": ("regex", "((a|bc){1000}){1000}c{1000000}"),
    "repeated repetition": ("regex", "(((((a{30}){30}){30}){30}){30}){30}"),
    "exponential states": ("regex", "(.*[ab].{40}){3}"),
    "exponential alternation": ("regex", "(a|a)*(a|aa)*(a|aaa)*b"),
    "large multiples": ("json_schema", '{"type": "integer", "multipleOf": 9999991}'),
    "many properties": (
        "json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(3000)}})
    ),
    "doubled rules": ("lark", "start: r0\n" + DOUBLED),
    "doubled terminals": ("lark", "start: R0\n" + DOUBLED.upper()),
    "intersections": ("lark", "start: A\nA: /.*a.{15}/ & /.*b.{14}/ & /.*c.{13}/"),
    "long strings": ("json_schema", '{"type": "string", "minLength": 100000}'),
    "long arrays": ("json_schema", '{"type": "array", "minItems": 100000, "items": {"const": 1}}'),
}  # fmt: skip
LARGE = {
    "an enum of 3,000": schema({"enum": [f"value {i}" for i in range(3000)]}),
    "an expression of 3,000": regex("|".join(f"value {i} [a-z]*" for i in range(2000))),
    "400 properties": schema({"properties": {f"p{i}": {} for i in range(400)}}),
    "50 objects of 20": schema(
        {
            "properties": {
                f"p{i}": {"properties": {f"q{j}": {} for j in range(20)}} for i in range(50)
            }
        }
    ),
}
REFUSED = {
    "too long", "deep arrays", "very deep arrays", "deep lists", "deep groups", "deep rules",
    "deep schema in a rule", "products of choices", "large multiples", "many properties",
    "doubled terminals", "intersections",
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_what_is_only_large_is_served(tokenizer, grammars, name):
    assert slowest_step_s(grammars.compile(LARGE[name]), tokenizer) < 1


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_quickly_or_does_no_harm(tokenizer, name):
    kind, source = BOMBS[name]
    grammars, start = Grammars(tokenizer), time.monotonic()
    if name in REFUSED:
        with pytest.raises(RequestError, match=f"the {kind} grammar cannot be used") as caught:
            grammars.compile(Grammar(kind=kind, source=source))
        assert len(str(caught.value)) < 500
    else:
        matcher = grammars.compile(Grammar(kind=kind, source=source))
        assert slowest_step_s(matcher, tokenizer) < 1
    assert time.monotonic() - start < grammar_module.MAX_COMPILE_S + 2


def slowest_step_s(matcher: GrammarMatcher, tokenizer: Tokenizer) -> float:
    """The longest of a hundred random steps, or of those before the grammar gives up."""
    rng, slowest_s = np.random.default_rng(0), 0.0
    for _ in range(100):
        start = time.monotonic()
        try:
            tokens = [t for t in tokens_of(matcher.allowed()) if t != tokenizer.eos_token_id]
        except RequestError:
            return slowest_s
        if not tokens:
            break
        matcher.accept(int(rng.choice(tokens)))
        slowest_s = max(slowest_s, time.monotonic() - start)
    return slowest_s


def test_compiling_is_cut_off_and_only_two_may_be_at_it(tokenizer, monkeypatch):
    grammars = Grammars(tokenizer)
    grammars.compile(regex("a"))  # the vocabulary is made
    monkeypatch.setattr(grammar_module, "MAX_COMPILE_S", 0.001)
    slow = [Grammar(kind="json_schema", source=all_of_any_of(4) + " " * i) for i in range(2)]
    for grammar in slow:
        with pytest.raises(RequestError, match=r"not compiled after 0\.001 s"):
            grammars.compile(grammar)
    with pytest.raises(OverloadedError, match="send the request again"):
        grammars.compile(regex("b"))
    monkeypatch.setattr(grammar_module, "MAX_COMPILE_S", 20.0)
    grammars.compile(regex("b"))  # as soon as one of them is done


def test_an_answer_that_visits_too_many_states_spoils_the_grammar_for_nobody(
    tokenizer, monkeypatch
):
    limits = LLParserLimits(max_lexer_states=1000, verbose_errors=False)
    monkeypatch.setattr(grammar_module, "_LIMITS", limits)
    grammars, rng = Grammars(tokenizer), np.random.default_rng(0)
    wanted = regex(".*(a|b).{300}(c|d).{300}")

    def write(count: int) -> None:
        matcher = grammars.compile(wanted)
        for _ in range(count):
            tokens = tokens_of(matcher.allowed())
            matcher.accept(int(rng.choice([t for t in tokens if t != tokenizer.eos_token_id])))

    with pytest.raises(RequestError, match="too many states"):
        write(3000)
    write(10)


def test_threads_may_compile_at_once_and_get_matchers_of_their_own(tokenizer):
    grammars = Grammars(tokenizer)
    written: dict[int, str] = {}

    def work(i: int) -> None:
        written[i] = Writer(tokenizer, i).write(grammars.compile(regex(f"[ab]{{5}}{i % 3}")))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(re.fullmatch(f"[ab]{{5}}{i % 3}", written[i]) for i in range(12))


def test_recent_grammars_are_remembered(tokenizer, monkeypatch):
    grammars = Grammars(tokenizer)
    for i in range(grammar_module.CACHED_GRAMMARS):
        grammars.compile(regex(f"a{i}"))
    monkeypatch.setattr(Grammars, "_compile", lambda *_: (_ for _ in ()).throw(ValueError("new")))
    grammars.compile(regex("a0"))
    with pytest.raises(RequestError, match="new"):
        grammars.compile(regex("b"))
    monkeypatch.undo()
    grammars.compile(regex("b"))  # takes the place of a1, the one not asked for the longest
    monkeypatch.setattr(Grammars, "_compile", lambda *_: (_ for _ in ()).throw(ValueError("new")))
    grammars.compile(regex("a0"))
    with pytest.raises(RequestError, match="new"):
        grammars.compile(regex("a1"))
