"""What is written is found again, in whatever script, and a query is never more than words."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.serve.words import MAX_INDEXED, snippet, terms, words


def finds(query: str, text: str) -> bool:
    """Whether SQLite finds all terms of a query in a text."""
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(text, tokenize = 'ascii')")
        connection.execute("INSERT INTO t VALUES (?)", (" ".join(words(text)),))
        asked = "SELECT count(*) FROM t WHERE t MATCH ?"
        found = all(connection.execute(asked, (term,)).fetchone()[0] for term in terms(query))
    connection.close()
    return found


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("sea", "the deep sea"),
        ("DEEP se", "the deep sea"),
        ("uber straße", "Über die STRASSE"),
        ("perche cafe", "Perché il caffè? Cafe\u0301"),
        ("don't", "I don’t know"),
        ("深海", "今天我们去深海看鱼"),
        ("鱼", "今天我们去深海看鱼"),
        ("看鱼。", "今天我们去深海看鱼。好"),
        ("مدرسة", "ذهبت إلى مَدْرَسَةٍ كبيرة"),
        ("بحر", "والبحر الأزرق"),
        ("البحر ازرق", "بَحْرٌ أزرق"),
        ("القاهره", "القاهرة"),
        ("علي", "على"),
        ("שלום", "שָׁלוֹם"),
        ("हिन्दी", "मैं हिन्दी बोलता हूँ"),
        ("สวัสดี", "คำว่าสวัสดีครับ"),
        ("한국", "한국어를 배워요"),
        ("test", "Ｔｅｓｔ"),
        ("3.14", "pi is 3.14159"),
    ],
)
def test_what_is_written_is_found_however_it_is_written(query, text):
    assert finds(query, text)


@pytest.mark.parametrize(
    ("query", "text"),
    [("ea", "the deep sea"), ("海深", "深海"), ("seal", "sea"), ("school", "مدرسة")],
)
def test_what_is_not_there_is_not_found(query, text):
    assert not finds(query, text)


@given(st.text(max_size=60))
def test_any_text_finds_itself_and_no_query_is_an_expression(text):
    assert finds(text, text)
    for term in terms(text):
        assert term.startswith('"')
        assert term.endswith('"*')
        assert all(letter.isalnum() or letter == " " or ord(letter) > 127 for letter in term[1:-2])


@given(before=st.text(max_size=300), after=st.text(max_size=300))
def test_a_snippet_is_one_short_line_that_shows_what_was_found(before, after):
    part = snippet(f"{before}\nfishmonger {after}", terms("fishmonger"))
    assert "fishmonger" in part
    assert len(part) <= 122
    assert "\n" not in part


def test_a_snippet_shows_the_place_of_a_phrase_in_any_script():
    text = "海" * 200 + "深海的鱼" + "水" * 200
    assert "深海的鱼" in snippet(text, terms("深海"))
    assert "مَدْرَسَة" in snippet("كلام " * 40 + "مَدْرَسَة", terms("مدرسة"))
    assert snippet("nothing of it", terms("fish")) == "nothing of it"


def test_a_text_without_end_is_indexed_to_a_bound():
    assert len(words("海" * 10**6)) == MAX_INDEXED
    assert sum(map(len, words("\ufdfa" * 10**6))) <= 2 * MAX_INDEXED
