"""The chat page: served whole, kept well, and unable to call anybody else."""

import gzip
import re
from urllib.parse import quote

import pytest

from abyssal.engine.llm import LLM
from abyssal.serve.guard import ROUTE_AUTH
from abyssal.serve.page import FOLDER, HEADERS, POLICY, read_page
from tests.serve.client import serving

pytestmark = pytest.mark.anyio

MAX_GZIPPED_BYTES = 600_000
ELSEWHERE = re.compile(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(["']?(?:https?:)?//""")


def texts() -> dict[str, str]:
    """What of the page a browser reads as a program: pages, scripts, styles, pictures."""
    files = {path.name: path for path in FOLDER.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in files.items() if path.suffix != ".woff2"}


async def test_the_page_loads_its_own_files_and_no_others(llm: LLM):
    async with serving(llm) as client:
        reply = await client.http.get("/")
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        named = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', reply.text)
        assert {name.rpartition(".")[2] for name in named} >= {"js", "css"}
        for name in named:
            assert (await client.http.get(f"/{name}")).status_code == 200, name


async def test_every_file_comes_under_the_policy_and_with_its_type(llm: LLM):
    _, assets = read_page()
    types = {"js": "text/javascript", "css": "text/css", "woff2": "font/woff2", "svg": "image/svg"}
    async with serving(llm) as client:
        for name in ["", *(f"assets/{name}" for name in assets)]:
            reply = await client.http.get(f"/{name}")
            assert reply.headers["content-security-policy"] == POLICY
            assert {key: reply.headers[key] for key in HEADERS} == HEADERS
            assert reply.headers["x-content-type-options"] == "nosniff"
            kind = types[name.rpartition(".")[2]] if name else "text/html"
            assert reply.headers["content-type"].startswith(kind), name


def test_the_policy_names_no_origin_and_allows_nothing_inline():
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    assert "http" not in POLICY
    assert POLICY.startswith("default-src 'none';")


async def test_assets_are_kept_for_good_and_the_page_is_asked_for_each_time(llm: LLM):
    _, assets = read_page()
    async with serving(llm) as client:
        page = await client.http.get("/")
        asset = await client.http.get(f"/assets/{next(iter(assets))}")
        assert page.headers["cache-control"] == "no-cache"
        assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        for path, tag in (("/", page.headers["etag"]), (asset.url.path, asset.headers["etag"])):
            for known in (tag, f"W/{tag}", f'"other", {tag}'):
                reply = await client.http.get(path, headers={"if-none-match": known})
                assert (reply.status_code, reply.content) == (304, b"")
                assert reply.headers["content-security-policy"] == POLICY
            reply = await client.http.get(path, headers={"if-none-match": '"other"'})
            assert reply.status_code == 200


async def test_what_can_be_smaller_is_for_those_who_take_it(llm: LLM):
    index, assets = read_page()
    async with serving(llm) as client:
        for path, file in [("/", index), *((f"/assets/{k}", v) for k, v in assets.items())]:
            assert (file.packed is None) == path.endswith(".woff2") or path.endswith(".svg")
            tags = set()
            for accepted in ("gzip, br", "gzip;q=0.5", "identity", "gzip;q=0", ""):
                reply = await client.http.get(path, headers={"accept-encoding": accepted})
                assert reply.content == file.plain.data
                is_packed = reply.headers.get("content-encoding") == "gzip"
                takes = accepted in ("gzip, br", "gzip;q=0.5")
                assert is_packed == (takes and file.packed is not None)
                assert ("Accept-Encoding" in reply.headers["vary"]) == (file.packed is not None)
                tags.add((is_packed, reply.headers["etag"]))
            assert len(tags) == len(dict(tags)), path


def test_kept_files_have_names_that_change_with_what_is_in_them():
    _, assets = read_page()
    assert assets
    assert all(re.fullmatch(r"[\w.-]+-[\w-]{8}\.(js|css|woff2|svg)", name) for name in assets)


@pytest.mark.parametrize(
    "path",
    [
        "/assets/", "/assets/none.js", "/assets/../index.html", "/assets/%2e%2e/page.py",
        "/assets/..%2f..%2fpage.py", "/index.html", "/assets/a/b.js", "/assets/%00",
    ],
)  # fmt: skip
async def test_nothing_else_is_there(llm: LLM, path: str):
    async with serving(llm) as client:
        reply = await client.http.get(path)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


async def test_a_name_from_the_address_is_repeated_in_json_alone(llm: LLM):
    async with serving(llm) as client:
        reply = await client.http.get("/assets/" + quote("<script>alert(1)<.js"))
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json"


def test_the_bundle_names_no_address_to_load_from():
    for name, text in texts().items():
        assert not ELSEWHERE.search(text), name
        assert "sourceMappingURL" not in text, name


def test_the_page_has_no_inline_script_or_style():
    index = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", index)


def test_scripts_never_make_code_from_text():
    for name, text in texts().items():
        if name.endswith(".js"):
            assert not re.search(r"\beval\(|\bnew Function\(|document\.write\(", text), name


def test_the_bundle_is_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes(), mtime=0)) for path in files) < MAX_GZIPPED_BYTES


async def test_the_page_is_open_to_all_and_what_it_asks_is_not(llm: LLM):
    assert ROUTE_AUTH["/"] == ROUTE_AUTH["/assets/{name}"] == "public"
    async with serving(llm, api_keys=("a-key-of-the-first-person",)) as client:
        assert (await client.http.get("/")).status_code == 200
        assert (await client.http.get("/v1/models")).status_code == 401
        reply = await client.http.get("/", headers={"host": "evil.example"})
        assert reply.status_code == 421
        reply = await client.http.get("/", headers={"origin": "https://evil.example"})
        assert reply.status_code == 403
