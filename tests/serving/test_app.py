"""The HTTP interface of one replica, asked by a real client over a real socket."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.service import Recorded, held, served, settings, tiny_index, until
from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.serving.config import LimitsConfig
from zerogr_ray.serving.keys import new_key, read_keys
from zerogr_ray.serving.wire import SearchRequest

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return tiny_index(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def service(index, tmp_path_factory):
    async def write(docno, title, text):
        return " ".join(text.lower().split()[:4])

    metrics = Recorded()
    cfg = settings(
        index, tmp_path_factory.mktemp("state"), limits={"k": 200, "draws": 200, "waiting": 16, "exhaustive": 100}
    )
    with served(cfg, write=write, metrics=metrics) as (client, searcher):
        yield client, searcher, metrics


@pytest.fixture
def client(service):
    return service[0]


def search(client, query="red fox", **more):
    answer = client.post("/v1/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def docnos(said):
    return [hit["docno"] for hit in said["hits"]]


def test_a_search_gives_what_the_retriever_gives(client, index):
    retriever = Retriever.load(index, device="cpu", dtype="float32")
    said = search(client, k=7, seed=3)
    expected = retriever.search("red fox", 7, config=retriever_config(seed=3))
    assert [(h["docno"], h["docid"], h["rank"], h["draw"]) for h in said["hits"]] == [
        (h.docno, h.docid, h.rank, h.draw) for h in expected
    ]
    assert said["hits"][0]["title"] == said["hits"][0]["docno"]  # the tiny index has its docnos for titles
    assert said["version"] == retriever.bundle.manifest["sha256"][:12]
    many = client.post("/v1/search", json={"queries": ["red fox", "web", "flags"], "k": 7, "seed": 3}).json()
    assert [hit["docno"] for hit in many["results"][0]] == docnos(said)
    assert [len(hits) for hits in many["results"]] == [7, 7, 7]


def retriever_config(**values):
    from zerogr_ray.config import DecodeConfig

    return DecodeConfig(**values)


def test_a_filter_an_order_and_a_mode_arrive(client):
    assert sorted(docnos(search(client, docnos=["d1", "d2"]))) == ["d1", "d2"]
    ranked = search(client, order="docid", k=5)["hits"]
    assert [hit["score"] for hit in ranked] == sorted((hit["score"] for hit in ranked), reverse=True)
    assert all(hit["docid_logprob"] < 0 for hit in ranked)
    assert all("rerank" in hit for hit in search(client, rerank=True)["hits"])
    assert {hit["temperature"] for hit in search(client, mode="top_k")["hits"]} == {0.0}


def test_a_request_may_give_every_setting_of_the_decoder_but_how_much_of_a_query_is_read():
    given = SearchRequest(query="q", **DecodeConfig(asked=3).model_dump(exclude={"query_tokens"}))
    (request,) = given.requests(LimitsConfig())
    assert request.settings == DecodeConfig(asked=3).model_dump(exclude={"query_tokens"})


def test_a_stream_sends_the_same_hits_in_the_order_of_the_draws(client):
    asked = {"query": "open a file", "k": 12, "seed": 5}
    plain = client.post("/v1/search", json=asked).json()
    events = []
    with client.stream("POST", "/v1/search?stream=true", json=asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                events.append([line[7:], None])
            elif line.startswith("data: "):
                events[-1][1] = json.loads(line[6:])
    assert [data for kind, data in events if kind == "hit"] == plain["hits"]
    assert events[-1][0] == "done"
    assert events[-1][1]["version"] == plain["version"]


def test_what_cannot_be_streamed_is_refused_before_the_stream_begins(client):
    for asked in ({"query": "a", "order": "docid"}, {"queries": ["a", "b"]}):
        answer = client.post("/v1/search?stream=true", json=asked)
        assert answer.status_code == 400
        assert "streamed" in answer.json()["error"]["message"]


def test_a_document_comes_goes_and_comes_back(client):
    allowed = {"docnos": ["faq/7 ü"]}
    before = client.post("/v1/search", json={"query": "fox", **allowed})
    assert before.status_code == 400
    said = client.post("/v1/documents", json={"docno": "faq/7 ü", "text": "Red Fox Web Hat again", "title": "Foxes"})
    assert said.json() == {"index": "docs", "docno": "faq/7 ü", "docid": "red fox web hat"}
    hit = search(client, **allowed)["hits"][0]
    assert (hit["docid"], hit["title"]) == ("red fox web hat", "Foxes")
    client.post("/v1/documents", json={"docno": "faq/7 ü", "docid": "json line"})
    assert search(client, **allowed)["hits"][0]["docid"] == "json line"
    assert client.delete("/v1/documents/faq%2F7 ü").status_code == 200
    assert client.delete("/v1/documents/faq%2F7 ü").status_code == 404
    assert "faq/7 ü" not in docnos(search(client, k=200, draws=200))


def test_indexes_tell_what_is_served(client):
    (facts,) = client.get("/v1/indexes").json()["indexes"]
    assert (facts["name"], facts["model"]) == ("docs", "tiny")
    assert facts["documents"] >= 59
    assert client.get("/readyz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 422, "JSON"),
        (b"[" * 100_000, 400, "pars"),
        (b'{"query": "\\ud800"}', 422, "query"),
        (b'{"query": " "}', 400, "empty"),
        (b'{"query": "a", "queries": ["b"]}', 400, "either"),
        (b'{"query": "a", "kk": 3}', 422, "kk"),
        (b'{"query": "a", "k": 201}', 413, "201"),
        (b'{"query": "a", "k": 1e400}', 422, "k"),
        (b'{"query": "a", "index": "../../etc"}', 422, "index"),
        (b'{"query": "a", "index": "other"}', 404, "docs"),
        (b'{"query": "a", "docnos": ["nowhere"]}', 400, "nowhere"),
        (b'{"query": "a", "plan_ahead": 5}', 400, "postings"),
        (b'{"queries": ["a", "b"], "mode": "exhaustive"}', 413, "allows 100"),
        (b'{"query": "a", "k": ' + b"1" * 5000 + b"}", 400, "pars"),
        (b'{"query": "' + b"a" * 5000 + b'"}', 413, "5000"),
        (b'{"query": "' + b"a" * (1 << 20) + b'"}', 413, "bytes"),
    ],
)
def test_a_bad_request_gets_one_sentence_and_no_path(client, index, body, status, said):
    answer = client.post("/v1/search", content=body, headers={"content-type": "application/json", "x-request-id": "t1"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["trace"] == answer.headers["x-request-id"] == "t1"
    assert str(index.parent) not in answer.text
    assert "Traceback" not in answer.text


def test_unknown_addresses_and_methods_have_the_same_form(client):
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert client.put("/v1/search").json()["error"]["code"] == "bad_method"


def test_a_trace_id_that_is_no_word_is_not_repeated(client):
    answer = client.get("/healthz", headers={"x-request-id": "a b<script>"})
    assert "script" not in answer.headers["x-request-id"]


def test_requests_that_arrive_together_share_rounds(service):
    client, searcher, metrics = service
    before = len(metrics.rows)
    with ThreadPoolExecutor(8) as many:
        with held(searcher):
            asked = [many.submit(search, client, f"query {i % 3}", k=20) for i in range(8)]
            until(lambda: searcher.decoder.waiting == 8)
        answers = [future.result() for future in asked]
    sizes = [value for name, value, _ in metrics.rows[before:] if name == "zerogr_round_queries"]
    assert sizes == [4, 4]
    for i, said in enumerate(answers):
        assert docnos(said) == docnos(answers[i % 3])


def test_every_request_leaves_a_line_without_its_words(service):
    client, searcher, _ = service
    client.post("/v1/search", json={"query": "a secret wish"}, headers={"x-request-id": "log-1"})

    def lines():
        files = (searcher.state.path / "logs").iterdir()
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    until(lambda: any(line["trace"] == "log-1" for line in lines()))  # written when the answer has gone
    (line,) = [line for line in lines() if line["trace"] == "log-1"]
    assert (line["status"], line["route"], line["key"], line["hits"]) == (200, "/v1/search", "anybody", 10)
    assert "secret" not in json.dumps(lines())


def test_keys_have_rights_and_rates(index, tmp_path):
    file = tmp_path / "keys.json"
    reader, editor = new_key(file, "reader", ["search"]), new_key(file, "editor", ["change"])
    cfg = settings(index, tmp_path / "state", limits={"rate": 0.001, "burst": 4})
    with served(cfg, read_keys(file)) as (client, _):
        answer = client.get("/v1/indexes")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/v1/indexes", headers={"authorization": "Bearer zgr_wrong"}).status_code == 401
        as_reader, as_editor = ({"authorization": f"Bearer {key}"} for key in (reader, editor))
        assert client.get("/v1/indexes", headers=as_editor).status_code == 403
        assert client.delete("/v1/documents/d1", headers=as_reader).status_code == 403
        assert client.delete("/v1/documents/d1", headers=as_editor).status_code == 200
        codes = [client.get("/v1/indexes", headers=as_reader).status_code for _ in range(6)]
        assert codes == [200] * 4 + [429] * 2
        refused = client.get("/v1/indexes", headers=as_reader)
        assert int(refused.headers["retry-after"]) > 100
        assert client.get("/healthz").status_code == 200


def test_overload_is_refused_at_once_and_what_was_accepted_is_answered(index, tmp_path):
    cfg = settings(index, tmp_path / "state", limits={"waiting": 4})
    with served(cfg) as (client, searcher):
        with ThreadPoolExecutor(12) as many:
            with held(searcher):  # refusals do not wait for the decoder
                asked = [many.submit(client.post, "/v1/search", json={"query": "fox"}) for _ in range(12)]
                until(lambda: sum(future.done() for future in asked) == 8)
                refused = [future.result() for future in asked if future.done()]
            answers = [future.result() for future in asked]
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 8
        assert all(answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1 for answer in refused)


def test_two_indexes_of_one_model_hold_it_once(index, tmp_path):
    other = tiny_index(tmp_path / "other", seed=9)
    cfg = settings({"docs": str(index), "more": str(other)}, tmp_path / "state")
    with served(cfg) as (client, searcher):
        assert [facts["name"] for facts in client.get("/v1/indexes").json()["indexes"]] == ["docs", "more"]
        assert searcher.current["docs"].retriever.model is searcher.current["more"].retriever.model
        one, two = (search(client, index=name)["version"] for name in ("docs", "more"))
        assert one != two


def test_the_description_of_the_api_loads_nothing_from_elsewhere(client):
    page = client.get("/docs").text
    assert "SwaggerUIBundle" in page
    assert "//" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page)), "no other host"
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert client.get(address).status_code == 200
