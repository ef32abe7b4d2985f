"""The values of the rewards that the project carries, against their definitions."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.evaluation.answers import f1
from dro_rl.records import Document, Example, Outcome
from dro_rl.reward import load_reward
from dro_rl.sections.reward import RewardSection

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]

CANDIDATES = (
    Document("Lyon", "A city on the Rhône.", is_gold=True),
    Document("Oslo", "The capital of Norway."),
    Document("Kovac", "Kovac was born in Lyon.", is_gold=True),
)
EXAMPLE = Example("q17", "Where was Kovac born?", ("in the city of Lyon", "Lyon"), CANDIDATES)


def score(name: str, *documents: int, answer=None, logp=None, tokens=0, example=EXAMPLE, **own):
    """What a shipped reward with settings of its own gives one outcome."""
    reward = load_reward(RewardSection(use=f"rewards/{name}.py", **own))
    (value,) = reward.score([Outcome(example, documents, logp, tokens, answer)])
    return value


def test_every_reward_says_its_range_scale_and_source_and_is_in_the_docs():
    table = (ROOT / "docs" / "rewards.md").read_text()
    for path in (ROOT / "rewards").glob("*.py"):
        text = path.read_text()
        assert all(word in text for word in ("Range: ", "Scale: ", "Source: ")), path
        assert f"`{path.stem}`" in table, path


def test_the_likelihood_and_its_mean_over_tokens():
    assert score("answer_likelihood", 0, logp=-6.0, tokens=4) == -6
    assert score("mean_answer_likelihood", 0, logp=-6.0, tokens=4) == -1.5


@pytest.mark.parametrize("answer", ["Lyon", "old Lyon", "city Lyon of", "Oslo", ""])
def test_f1_is_that_of_evaluation_unless_recall_counts_more(answer):
    assert score("f1", answer=answer) == pytest.approx(f1(answer, EXAMPLE.answers))


def test_beta_weighs_recall_against_precision():
    wordy, short = "Lyon in France or so", "Lyon"
    one = Example("q", "Where?", ("Lyon France",))
    precision, recall = 1, 1 / 2
    for beta in (0.5, 2.0):
        want = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        assert score("f1", answer=short, example=one, beta=beta) == pytest.approx(want)
    prefers_recall = score("f1", answer=wordy, example=one, beta=4)
    assert prefers_recall > score("f1", answer=short, example=one, beta=4)


@pytest.mark.parametrize(
    ("answer", "reference", "common"),
    [
        ("a b c d", "a b c d", 3),  # "a" is an article
        ("d c b", "b c d", 1),  # F1 would be 1
        ("police killed gunman", "police kill gunman", 2),
        ("x", "y", 0),
        ("", "y", 0),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(answer, reference, common):
    lengths = len(answer.replace("a ", "").split()) + len(reference.replace("a ", "").split())
    want = 2 * common / lengths
    got = score("rouge_l", answer=answer, example=Example("q", "?", (reference,)))
    assert got == pytest.approx(want)


def test_rank_discounted_is_ndcg():
    assert score("rank_discounted", 0, 2) == score("rank_discounted", 2, 0, 1) == 1
    best = 1 + 1 / math.log2(3)
    assert score("rank_discounted", 1, 2) == pytest.approx(1 / math.log2(3) / best)
    assert score("rank_discounted", 2, 1) > score("rank_discounted", 1, 2)
    assert score("rank_discounted") == score("rank_discounted", 1) == 0
    assert score("rank_discounted", example=Example("q", "?", ("x",))) == 0


def test_gold_recall_counts_supporting_documents():
    assert [score("gold_recall", *d) for d in [(), (0,), (1, 2), (2, 0)]] == [0, 0.5, 0.5, 1]


@pytest.mark.parametrize(
    ("documents", "answer", "want"),
    [
        ((2,), "born in Lyon", 1),
        ((0,), "born in Lyon", 1 / 3),  # the title is read too
        ((1,), "Lyon", 0),
        ((0,), "Lyon Lyon", 1 / 2),  # there once
        ((0,), "the", 0),  # nothing is left
        ((), "Lyon", 0),
    ],
)
def test_faithfulness_is_the_share_of_words_that_the_documents_hold(documents, answer, want):
    assert score("faithfulness", *documents, answer=answer) == pytest.approx(want)


def test_length_costs_a_document_and_asks_for_answers_only_where_words_do():
    assert score("length_penalty", 0, 1, document=0.5) == -1
    assert score("length_penalty", 0, answer="a b c", document=0, word=0.1) == pytest.approx(-0.3)
    penalty = load_reward(RewardSection(use="rewards/length_penalty.py"))
    assert penalty.needs == ()
    assert load_reward(
        RewardSection.model_validate({"use": "rewards/length_penalty.py", "word": 0.1})
    ).needs == ("answer",)


# --- the judge ----------------------------------------------------------------------------------


class Judge:
    """A server of OpenAI's protocol whose verdict depends on the passages."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict, str]] = []
        self.verdict = lambda prompt: "Yes." if "born in Lyon" in prompt else "no"
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.requests.append((self.path, body, self.headers.get("Authorization", "")))
                said = judge.verdict(body["messages"][0]["content"])
                reply = {"choices": [{"message": {"content": said}}]} if said else {"error": 1}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        serving = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        serving.start()


@pytest.fixture
def judge():
    made = Judge()
    yield made
    made.server.shutdown()
    made.server.server_close()


def judged(judge: Judge, *selections: tuple[int, ...], **settings) -> list[float]:
    given = {"use": "rewards/utility_judge.py", "url": judge.url, "model": "m", **settings}
    reward = load_reward(RewardSection.model_validate(given))
    return reward.score([Outcome(EXAMPLE, d) for d in selections])


def test_the_judge_reads_the_selection_and_its_verdicts_keep_their_order(judge, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    selections = [(0, 1), (2, 0), (), (1,), (2,)]
    assert judged(judge, *selections, key="MY_KEY", concurrency=4) == [0, 1, 0, 0, 1]
    assert len(judge.requests) == 4  # nothing selected is nothing to judge
    path, body, authorization = judge.requests[0]
    assert path == "/v1/chat/completions" and authorization == "Bearer secret"
    assert body["model"] == "m" and body["temperature"] == 0
    prompt = next(b["messages"][0]["content"] for _, b, _ in judge.requests if "[2]" in str(b))
    assert "Question: Where was Kovac born?" in prompt and "[1] " in prompt


@pytest.mark.parametrize(
    ("said", "worth"),
    [
        ("Yes, there is no doubt.", 1),
        ("**No**. Yes would need the year.", 0),
        ("<think>Yes for the city, no for the year.</think>\n\nPartly.", 0.5),
        ("The passages name the city, not the year: partly", 0.5),
    ],
)
def test_a_judge_is_taken_at_its_first_word_or_its_last(judge, said, worth):
    judge.verdict = lambda prompt: said
    assert judged(judge, (0,)) == [worth]


@pytest.mark.parametrize(
    ("said", "told"),
    [("I cannot say", "the judge said 'I cannot say'"), (None, "none of a chat completion")],
)
def test_a_judge_that_gives_no_verdict_is_named_with_its_words(judge, said, told):
    judge.verdict = lambda prompt: said
    with pytest.raises(UserError, match=f"UtilityJudge, example q17: .*{told}"):
        judged(judge, (0,))


def test_a_judge_that_is_not_there(judge, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    judge.server.server_close()
    with pytest.raises(UserError, match=r"example q17: http://.* in 2 tries"):
        judged(judge, (0,), attempts=2)
