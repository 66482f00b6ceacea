"""What a teacher generates depends on no student."""

import json

import pytest

from lightning_distill.data.tasks.chat import Chat

pytestmark = pytest.mark.slow

CHAT = ["data=chat", "data.sequence_length=64"]


def chat_file(folder):
    pairs = [(f"What is {n}?", f"{n} plus {n} is {2 * n}.") for n in range(60)]
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in pairs
    ]
    path = folder / "chat.jsonl"
    path.write_text("\n".join(json.dumps({"messages": one}) for one in conversations))
    return path


def test_jobs_share_the_scores_of_a_teachers_answers(in_process, tmp_path, monkeypatch):
    scored, score = [], Chat.score_generation

    def counted(self, model):
        scored.append(model)
        return score(self, model)

    monkeypatch.setattr(Chat, "score_generation", counted)
    own = [
        "data=chat",
        f"data.path={chat_file(tmp_path)}",
        "data.sequence_length=64",
        f"paths.outputs={tmp_path}",
    ]
    results = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        in_process(*own, f"seed={seed}", f"hydra.run.dir={folder}")
        results.append(json.loads((folder / "results.json").read_text()))
    assert len(scored) == 3
    first, second = (one["teacher"] for one in results)
    assert first["rouge_l"] == second["rouge_l"]
    assert "rouge_l" in results[1]["student"]


def test_a_plan_generates_no_answers_and_estimates_them(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(Chat, "score_generation", lambda *_: pytest.fail("generated answers"))
    own = [
        "data=chat",
        f"data.path={chat_file(tmp_path)}",
        "data.sequence_length=64",
        f"paths.outputs={tmp_path}",
    ]
    done = in_process(*own, "stage=plan", f"hydra.run.dir={tmp_path / 'plan'}")
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["answer_seconds"] > 0
    parts = (plan[f"{name}_seconds"] for name in ("training", "evaluation", "answer"))
    assert sum(parts) <= plan["seconds"]
    assert "of generated answers" in done.stdout
