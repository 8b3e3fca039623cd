"""Toxicity: the packaged classifier, one in a folder, and the stage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from data.blocks.safety import Profanity, ProfanitySettings
from data.measures import read_suite
from models.configs.sampling import SamplingConfig
from models.configs.toxicity import ToxicityConfig
from models.loading import copy_tokenizer
from models.suites import toxicity
from models.suites.toxicity import measure, measures_of
from models.suites.toxicity_classifiers import SequenceClassifier, Toxicity, WordsClassifier, load_packaged

SHORT = SamplingConfig(max_tokens=6)


def test_the_classifier_by_hand():
    """Words a (idf 1) and b (idf 2) of "a B, b": tf-idf (1, 4) / sqrt 17."""
    weight_CW = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    own = WordsClassifier({"a": 0, "b": 1}, np.array([1.0, 2.0]), weight_CW, np.zeros(3))
    (found,) = own(["a B, b c"])
    powers = np.exp(np.array([4, 0, 1]) / np.sqrt(17) * [1, 0, 1])
    assert list(found.labels.values()) == pytest.approx((powers / powers.sum()).tolist())
    assert found.toxic == pytest.approx(1 - found.labels["neither"])
    assert own([""])[0].toxic == pytest.approx(2 / 3)


def test_the_packaged_classifier_tells_insults_from_ordinary_sentences():
    classifier = load_packaged()
    plain = classifier(["The capital of France is Paris.", "To bake bread, mix flour and water.", "2 + 2 = 4"])
    rude = classifier(["You are a worthless piece of shit", "What a bitch"])
    assert max(own.toxic for own in plain) < 0.35 < 0.9 < min(own.toxic for own in rude)
    assert plain[0].labels.keys() == {"hate_speech", "offensive_language", "neither"}
    assert "0.32" in classifier.note


def test_it_says_what_the_graph_that_it_was_read_from_says():
    """An independent reading: scikit-learn's own tf-idf and softmax over the same numbers."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    classifier = load_packaged()
    tfidf = text.TfidfVectorizer(vocabulary=classifier.index, token_pattern="[a-zA-Z0-9_]+")
    tfidf.idf_ = classifier.idf_W
    texts = ["What a lovely bird, yellow and small.", "shut up bitch bitch", "Nobody reads 8220 this"]
    logits = tfidf.transform(texts) @ classifier.weight_CW.T + classifier.bias_C
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose([list(own.labels.values()) for own in classifier(texts)], expected, atol=1e-9)


@pytest.fixture(scope="session")
def sequence_folder(base: Path, tmp_path_factory: pytest.TempPathFactory):
    """Makes classifier folders: a small one with the given labels."""

    def make(labels: list[str], problem: str | None = None) -> Path:
        folder = tmp_path_factory.mktemp("classifier")
        torch.manual_seed(0)
        model = LlamaForSequenceClassification.from_pretrained(base, num_labels=len(labels))
        model.score.weight.data.normal_()
        model.config.id2label, model.config.problem_type = dict(enumerate(labels)), problem
        model.save_pretrained(folder)
        copy_tokenizer(base, folder)
        return folder

    return make


def read(folder: Path, labels=(), texts=("You.", "And you too, my dear.", "")) -> list[Toxicity]:
    return SequenceClassifier(folder, labels, 64, 2, "cpu")(texts)


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_in_a_folder(sequence_folder):
    single = read(sequence_folder(["neutral", "toxic"]))
    assert all(own.toxic == pytest.approx(own.labels["toxic"]) and sum(own.labels.values()) == pytest.approx(1) for own in single)
    many = read(sequence_folder(["toxic", "insult"], "multi_label_classification"), ["toxic", "insult"])
    assert all(own.toxic == pytest.approx(max(own.labels.values())) for own in many)
    assert any(sum(own.labels.values()) != pytest.approx(1) for own in many)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_says_what_single_texts_say(sequence_folder):
    folder = sequence_folder(["neutral", "toxic"])
    texts = ["a", "a longer text than that", "b"]
    together = SequenceClassifier(folder, [], 64, 3, "cpu")(texts)
    alone = SequenceClassifier(folder, [], 64, 1, "cpu")(texts)
    assert [own.toxic for own in together] == pytest.approx([own.toxic for own in alone], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_cannot_be_used_is_refused(sequence_folder, tmp_path):
    with pytest.raises(ValueError, match="say in toxic_labels"):
        read(sequence_folder(["non-toxic", "bad"]))
    with pytest.raises(ValueError, match="say in toxic_labels"):
        read(sequence_folder(["neutral", "toxic"]), ["rude"])
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="no weights in safetensors"):
        read(tmp_path)


def test_measures_by_hand():
    rows = [[Toxicity(0.25, {"x": 0.25}), Toxicity(0.75, {"x": 0.75})], [Toxicity(0.0, {"x": 0.0}), Toxicity(0.1, {"x": 0.1})]]
    config = ToxicityConfig(samples_per_prompt=2, resamples=100)
    found = {each.name: each for each in measures_of(config, ["a", "b"], rows, [0.5, 0.0], 0)}
    values = {name: [each.values["a"], each.values["b"]] for name, each in found.items()}
    assert values == {
        "toxicity": [0.5, pytest.approx(0.05)],
        "toxic": [0.5, 0.0],
        "profane": [0.5, 0.0],
        "toxic_prompts": [1.0, 0.0],
        "probability/label=x": [0.5, pytest.approx(0.05)],
    }
    assert found["toxic"].better == "lower" and found["toxicity"].mean == pytest.approx(0.275)


def test_words_of_the_lists_count():
    lists = Profanity(ProfanitySettings())
    assert lists.profane_in("What the fuck, you motherfucker") == 2 and lists.profane_in("To hell with it, said Moby.") == 0


def test_the_stage(base, tables, run, journal, monkeypatch):
    said = [["Bread is good."], ["You worthless piece of shit"], ["Four."], ["Five."], ["Six."]]
    monkeypatch.setattr(toxicity, "ask", lambda *_, **__: [[{"text": text} for text in row] for row in said])
    meta = measure(ToxicityConfig(resamples=100), policy=base, data=tables, seed=0, run=run)
    suite = read_suite(run.out)
    found = {each.name: each.mean for each in suite.measures}
    assert found["toxic"] == found["profane"] == pytest.approx(0.2) and meta["toxicity"] == found["toxicity"] > 0.3
    assert [row["answer"] for row in suite.items] == [row[0] for row in said] and len(suite.notes) == 2
    ((_, metrics),) = journal(run)
    assert metrics["suite/toxic"] == pytest.approx(0.2) and "suite/toxicity_high" in metrics


def test_several_answers_of_a_real_policy(base, tables, run):
    measure(ToxicityConfig(samples_per_prompt=2, sampling=SHORT, resamples=100), policy=base, data=tables, seed=0, run=run)
    suite = read_suite(run.out)
    assert len(suite.items) == 10 and "toxic_prompts" in {each.name for each in suite.measures}


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="names one"):
        ToxicityConfig(classifier="folder")
    with pytest.raises(ValueError, match="names one"):
        ToxicityConfig(model="x")
    with pytest.raises(ValueError, match="are for classifier = folder"):
        ToxicityConfig(toxic_labels=["x"])
