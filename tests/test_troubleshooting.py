"""The troubleshooting page: what it quotes is what is said, and where that is cheap to see, what it advises helps."""

import importlib.util
import re
import subprocess
import sys
import warnings
from collections import namedtuple
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import Mock

import nnsight
import numpy as np
import plotly.graph_objects
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from nnsight.intervention.interleaver import OutOfOrderError
from shared.browser import open_browser
from shared.notebooks import check_pair, check_sizes
from shared.tiny import FAKE_SOURCE, tiny_tokenizer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import ROOT, InputError, baselines, folds, hooks, models, probes, runs, scores
from studies.faithfulness import questions
from workflow import book, chapters, set_up

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (ROOT / "book" / "reference" / "troubleshooting.md").read_text(encoding="utf-8")
NOT_PROVOKED = {"CUDA out of memory": "needs a GPU", "on an Apple GPU": "needs a Mac"}
PROVOKED = []
IDS = torch.tensor([[5, 6, 7, 8, 5, 6], [9, 6, 7, 8, 5, 6]])


# The page


class Entry(NamedTuple):
    symptom: str
    cause: str
    remedy: str

    def is_said(self, text):
        """Whether the text, or what an error says, has in it all that the symptom quotes; … stands for anything."""
        if isinstance(text, BaseException):
            text = f"{type(text).__name__}: {text}"
        text = " ".join(text.split())
        quotes = [quote.strip() for _, quote in re.findall(r"(`+)(.+?)\1", self.symptom)]
        patterns = [".*".join(map(re.escape, re.split(r"\s*…\s*", quote))) for quote in quotes]
        return bool(patterns) and all(re.search(pattern, text) for pattern in patterns)

    @contextmanager
    def raised(self, kind=InputError):
        with pytest.raises(kind) as caught:
            yield caught
        assert self.is_said(caught.value), caught.value


def entries():
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    assert all(len(row) == 3 for row in rows)
    return [Entry(*row) for row in rows if row != ["symptom", "cause", "remedy"]]


def provokes(key):
    """Marks the test of the one entry whose symptom has `key` in it, which the test is given as `entry`."""
    PROVOKED.append(key)
    return pytest.mark.parametrize("entry", [key], indirect=True)


@pytest.fixture
def entry(request):
    (found,) = [entry for entry in entries() if request.param in entry.symptom]
    return found


def test_every_entry_is_provoked_or_it_is_said_why_not():
    keys = [*PROVOKED, *NOT_PROVOKED]
    for entry in entries():
        assert len([key for key in keys if key in entry.symptom]) == 1, entry.symptom
    assert len(keys) == len(entries())


def test_every_table_has_the_same_header():
    n_tables = PAGE.count("| symptom | cause | remedy |\n|---|---|---|\n")
    assert n_tables == PAGE.count("\n|---") == PAGE.count("\n## ")


def test_the_weights_of_the_large_model_are_as_large_as_the_page_says():
    (entry,) = [entry for entry in entries() if "CUDA out of memory" in entry.symptom]
    n_parameters = models.REGISTRY["qwen2.5-7b-instruct"].parameters
    assert f"{n_parameters * 4 / 1e9:.0f} GB in float32, {n_parameters * 2 / 1e9:.0f} GB in bfloat16" in entry.cause


# Setting up


@pytest.fixture
def no_environment(monkeypatch, tmp_path):
    """As if nothing were installed, in an empty folder; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.chdir", lambda folder: None)
    monkeypatch.setattr(set_up, "read", lambda path: "")
    monkeypatch.setattr(set_up, "make_importable", lambda: None)


@provokes("is too old")
def test_an_old_python(entry, no_environment, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with entry.raised(SystemExit):
        set_up.main([])


@provokes("no virtual environment could be made")
def test_no_venv(entry, no_environment, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ensurepip is not available")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with entry.raised(SystemExit):
        set_up.make_venv()


@provokes("GB are free here")
def test_a_full_disk(entry, no_environment, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(10**9))
    with entry.raised(SystemExit):
        set_up.main([])


@provokes("is not in the cache")
def test_no_network(entry, monkeypatch):
    with entry.raised():
        models.fetch("nobody/nothing")
    gated = Mock(side_effect=GatedRepoError("gated", response=Mock()))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", gated)
    with entry.raised() as caught:
        models.fetch("nobody/nothing")
    assert "GatedRepoError" in str(caught.value)


@provokes("is not the one registered")
def test_a_damaged_file(entry, copy_of):
    folder = copy_of()
    (folder / "manifest.json").write_text("{}")
    source = models.EmbeddedSource(**FAKE_SOURCE, gguf_sha256="0" * 64, weights_sha256="0" * 64)
    with entry.raised():
        models.verify(models.ModelCard("fake", "Fake", embedded=source), folder)


@provokes("the browser tests are skipped")
def test_no_browser(entry, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with entry.raised(pytest.skip.Exception), open_browser(None):
        pass


# Models and memory, CUDA and Colab


@provokes("Torch not compiled with CUDA enabled")
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch with CUDA")
def test_torch_without_cuda(entry, tiny_folders):
    with entry.raised():
        models.load(str(tiny_folders["llama"]), device="cuda")


@provokes("No module named 'helpers'")
def test_helpers_are_not_installed(entry, tmp_path):
    alone = [sys.executable, "-I", "-S", "-c", "import helpers"]  # without the packages of the environment
    assert entry.is_said(subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True).stderr)
    installed = [sys.executable, "-I", "-c", "import helpers"]
    assert subprocess.run(installed, cwd=tmp_path).returncode == 0


@provokes("holds NaN or infinity")
def test_float16_ends_at_65504(entry, tiny_folders):
    loaded = {}
    for dtype in ("float16", "bfloat16"):
        loaded[dtype] = models.load(str(tiny_folders["llama"]), dtype=dtype)
        for weights in loaded[dtype].model.parameters():
            weights.mul_(30 if weights.ndim > 1 else 1)
    with entry.raised():
        hooks.capture(loaded["float16"], IDS, "resid_post")
    hooks.capture(loaded["bfloat16"], IDS, "resid_post")


@provokes("expected m1 and m2 to have the same dtype")
def test_a_vector_of_another_precision(entry, tiny_folders):
    model, vector = models.load(str(tiny_folders["llama"]), dtype="bfloat16").model, torch.ones(16)
    block = model.model.layers[0]
    handle = block.register_forward_hook(lambda module, inputs, stream: stream + vector)
    with entry.raised(RuntimeError):
        model(IDS)
    handle.remove()
    block.register_forward_hook(lambda module, inputs, stream: stream + vector.to(stream))
    model(IDS)


# TransformerLens


@pytest.fixture
def bridge(load_tiny):
    return load_tiny("llama", "transformer_lens").model


@provokes("'HookedTransformer' was removed")
def test_hooked_transformer_is_gone(entry):
    import transformer_lens

    with entry.raised(ImportError):
        from transformer_lens import HookedTransformer  # noqa: F401
    with pytest.raises(ImportError):
        hasattr(transformer_lens, "HookedTransformer")


@provokes("one token more than by the tokenizer")
def test_a_start_token_of_the_bridge(entry, bridge, load_tiny):
    loaded = load_tiny("llama")
    without = loaded.tokenizer("the cat")["input_ids"]
    assert loaded.encode("the cat") == without
    assert bridge.to_tokens("the cat")[0].tolist() == [loaded.tokenizer.bos_token_id, *without]
    assert bridge.to_tokens("the cat", prepend_bos=False)[0].tolist() == without


@provokes("compatibility mode")
def test_compatibility_mode(entry, tiny_folders):
    loaded, read = models.load(str(tiny_folders["gpt2"]), backend="transformer_lens"), []
    for compatible in (False, True):
        if compatible:
            loaded.model.enable_compatibility_mode()
        logits, cache = loaded.model.run_with_cache(IDS, names_filter="blocks.1.hook_resid_post")
        read.append((logits, logits - logits[..., :1], cache["blocks.1.hook_resid_post"]))
    logits, differences, stream = (torch.dist(one, other, float("inf")) for one, other in zip(*read, strict=True))
    assert logits > 0.01 and differences < 1e-4 and stream > 0.01
    with entry.raised():
        hooks.capture(loaded, IDS, "resid_post")


@provokes("memory fills in `run_with_cache`")
def test_a_cache_without_a_filter(entry, bridge):
    assert len(bridge.run_with_cache(IDS)[1]) > 24 * bridge.cfg.n_layers
    name = "blocks.1.hook_resid_post"
    for names_filter in (name, [name], lambda other: other == name):
        assert name in (cache := bridge.run_with_cache(IDS, names_filter=names_filter)[1])
        assert len(cache) <= 2  # and another name of the same hook


# nnsight


@pytest.fixture
def lm(load_tiny):
    return load_tiny("llama", "nnsight").model


@provokes("no attribute 'value'")
def test_what_was_saved_is_the_tensor(entry, lm):
    with lm.trace(IDS):
        stream = lm.model.layers[0].output.save()
    with entry.raised(AttributeError):
        _ = stream.value


@provokes("changes the first prompt only")
def test_row_zero_of_a_layer(entry, lm):
    with lm.trace(IDS):
        logits = lm.output.logits.save()
    with lm.trace(IDS):
        lm.model.layers[0].output[0][:] = 0
        changed = lm.output.logits.save()
    assert not torch.equal(changed[0], logits[0]) and torch.equal(changed[1], logits[1])
    with lm.trace(IDS):
        attended = lm.model.layers[0].self_attn.output.save()
        lm.model.layers[0].output[:] = 0
        changed = lm.output.logits.save()
    assert not any(torch.equal(changed[row], logits[row]) for row in (0, 1))
    assert isinstance(attended, tuple)


@provokes("OutOfOrderError")
def test_modules_are_read_in_forward_order(entry, lm):
    with entry.raised(OutOfOrderError):
        with lm.trace(IDS):
            stream = lm.model.layers[0].output.save()
            attended = lm.model.layers[0].self_attn.output.save()
    with lm.trace(IDS):
        attended = lm.model.layers[0].self_attn.output.save()
        stream = lm.model.layers[0].output.save()
    assert stream.shape == attended[0].shape


@provokes("must start on its own line")
def test_a_trace_on_one_line(entry, lm):
    with entry.raised(ValueError):
        with lm.trace(IDS): _ = lm.output.logits.save()  # fmt: skip  # noqa: E701


@provokes("is `None`")
def test_patterns_need_eager_attention(entry, tiny_folders, load_tiny):
    folder, options = str(tiny_folders["llama"]), {"tokenizer": load_tiny("llama").tokenizer, "dispatch": True}
    found = []
    for chosen in ({}, {"attn_implementation": "eager"}):
        lm = nnsight.TransformersModel(folder, task="text-generation", **options, **chosen)
        with lm.trace(IDS):
            attended = lm.model.layers[0].self_attn.output.save()
        found.append(attended[1])
    assert found[0] is None and found[1].shape == (2, 4, 6, 6)
    assert load_tiny("llama").config._attn_implementation == "eager"


# Notebooks and the book

HEAD = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A chapter
"""


@pytest.fixture
def small_book(monkeypatch, tmp_path):
    """A book in an empty folder; writes its chapter `x` with the cells that are given."""
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "BUILD", tmp_path / "_build")
    monkeypatch.setattr(chapters, "all_chapters", lambda: ["x"])
    for name in ("BOOK_PROFILE", "PYTHONWARNINGS"):  # which a run sets
        monkeypatch.setenv(name, "")
    (tmp_path / "_build").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").write_text("repository: {url: ''}\n")

    def write(*cells):
        text = HEAD + "".join(f"\n# %%\n{cell}\n" for cell in cells)
        (tmp_path / "book" / "x.py").write_text(text)
        return text

    write("'before'")
    return write


@provokes("a notebook is over 5 MB")
def test_a_notebook_with_scripts_in_it(entry, small_book):
    figure = plotly.graph_objects.Figure()
    for brings_script in (False, True):
        html = figure.to_html(include_plotlyjs=brings_script)
        (book.ROOT / "book" / "x.ipynb").write_text(2 * html)
        if brings_script:
            assert 4.5e6 < len(html) < 5e6
            with pytest.raises(AssertionError):
                check_sizes()
        else:
            check_sizes()


@provokes("run `make pair`")
def test_a_pair_that_differs(entry, small_book, capsys):
    (book.ROOT / "book" / "x.ipynb").write_text("an edit")
    with entry.raised(AssertionError):
        check_pair("x")
    book.pair()
    check_pair("x")
    assert "an edit" not in (book.ROOT / "book" / "x.ipynb").read_text()


@provokes("its code has changed")
def test_stale_outputs(entry, small_book, monkeypatch):
    spec = importlib.util.spec_from_file_location("executed_pages", ROOT / "book" / "_ext" / "executed_pages.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    monkeypatch.setattr(pages, "ROOT", book.ROOT)
    pages.LOG, app = Mock(), Mock()
    app.env.doc2path.return_value = "book/x.py"
    ran = book.ROOT / "_build" / "runs" / "embedded" / "x.ipynb"
    ran.parent.mkdir(parents=True)
    ran.write_text(book.paired("x"))
    for cell in ("'before'", "'after'"):
        content = [small_book(cell)]
        pages.read_chapter(app, "book/x", content)
        assert ("has not been run" in content[0]) == (cell == "'after'") == pages.LOG.warning.called
    message, *values = pages.LOG.warning.call_args.args
    assert entry.is_said(message % tuple(values))


@provokes("section …")
def test_a_cell_that_raises(entry, small_book):
    small_book("1 / 0")
    with entry.raised():
        book.execute("x", {}, book.ROOT, profile="by hand")
    assert "ZeroDivisionError" in (book.BUILD / "failed" / "x.ipynb").read_text()


@provokes("its process was killed")
def test_a_process_that_is_killed(entry, small_book):
    small_book("import os", "os.kill(os.getpid(), 9)")
    with entry.raised():
        book.execute("x", {}, book.ROOT, profile="by hand")


@provokes("unknown parameter")
def test_a_parameter_that_papermill_did_not_know(entry, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: Mock(user_ns={"In": ["# Parameters\ncuont = 3\n"]}))
    with entry.raised():
        runs.validate(count=(2, range(1, 10)))


# Probe training


def captured(x):
    """Activations `row layer feature` as `hooks.capture` gives them."""
    axes = {"resid_post": ("example", "layer", "position", "d_model")}
    lengths = torch.full((len(x),), 5)
    return hooks.Captured({"resid_post": x[:, :, None]}, axes, tuple(range(x.shape[1])), ("last",), lengths)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@provokes("an AUROC of 1.000")
def test_a_word_that_gives_the_label_away(entry, load_tiny):
    labels = [number % 2 for number in range(40)]
    texts = [f"the cat on mat {number // 2} said {'yes' if label else 'no'}" for number, label in enumerate(labels)]
    groups, options = range(40), {"types": None, "n_permutations": 0, "seed": 0}
    places = hooks.capture(load_tiny("llama"), texts, "resid_pre", layers=[0], positions={"first": 0, "last": -1})
    before, after = probes.sweep(places, labels, groups, **options).table()["auroc"]
    assert after == 1 and before == 0.5
    words = baselines.score_text(load_tiny("llama"), texts, labels, groups, seed=0)["word n-grams"]
    assert scores.evaluate(words, labels, groups, seed=0)["auroc"].value == 1


@provokes("is .5 on new words")
def test_a_random_split(entry):
    groups = np.repeat(np.arange(60), 8)
    labels = np.random.default_rng(0).random(60)[groups] < 0.5
    x = (normal(60, 64)[groups] + 0.2 * normal(480, 64, seed=1)).numpy()
    probe = make_pipeline(StandardScaler(), RidgeClassifier())
    leaked, honest = (
        cross_val_score(probe, x, labels, groups=shared, cv=splitter, scoring="roc_auc").mean()
        for shared, splitter in (
            (None, ShuffleSplit(5, random_state=0)),
            (groups, GroupShuffleSplit(5, random_state=0)),
        )
    )
    assert leaked > 0.95 and abs(honest - 0.5) < 0.15
    with entry.raised():
        scores.evaluate(normal(480), labels, groups, folds=np.arange(480) % 5, seed=0)


@provokes("lbfgs failed to converge")
def test_features_of_very_different_size(entry):
    labels = np.arange(200) % 3 == 0
    x = normal(200, 64).double().numpy()
    x[:, 0] = 0.01 * labels + 0.001 * x[:, 0]
    x[:, 1] *= 1000
    with pytest.warns(ConvergenceWarning) as caught:
        LogisticRegression().fit(x, labels)
    assert entry.is_said(caught[0].message)

    def auroc(probe):
        return roc_auc_score(labels[100:], probe.fit(x[:100], labels[:100]).decision_function(x[100:]))

    assert auroc(RidgeClassifier()) < 0.65 and auroc(make_pipeline(StandardScaler(), RidgeClassifier())) > 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        make_pipeline(StandardScaler(), LogisticRegression()).fit(x, labels)
    options = {"types": None, "n_permutations": 0, "seed": 0}
    found = probes.sweep(captured(torch.tensor(x)[:, None]), labels, range(200), **options)
    assert found.table()["auroc"][0] > 0.99


@provokes("the number of groups")
def test_too_few_groups(entry):
    labels, groups = np.arange(16) % 2, np.arange(16) // 4
    with entry.raised():
        folds.assign_folds(labels, groups, seed=0)
    folds.assign_folds(labels, groups, n_folds=3, seed=0)


@provokes("rows of one class only")
def test_a_fold_of_one_class(entry):
    groups = np.arange(30) // 3
    labels = groups < 3
    with entry.raised():
        folds.assign_folds(labels, groups, seed=0)
    folds.assign_folds(labels, groups, n_folds=3, seed=0)


@provokes("permuted labels do not give .5")
def test_the_null_of_groups_that_can_be_told_apart(entry):
    groups = np.repeat(np.arange(20), 10)
    topics = groups % 2
    labels = np.arange(200) % 10 < np.where(topics, 8, 2)
    x = captured(torch.tensor(topics)[:, None, None].float())  # only the topic can be read
    row = probes.sweep(x, labels, groups, types=None, seed=0).table().iloc[0]
    assert row["null_low"] > 0.7 and row["null_low"] == row["null_high"] == pytest.approx(row["auroc"])


@provokes("does not come again on new data")
def test_the_best_of_many_sites(entry):
    labels = [number % 2 for number in range(60)]
    found = probes.sweep(captured(normal(60, 40, 8)), labels, range(60), types=None, n_permutations=50, seed=0)
    table, best = found.table(), found.best()
    assert table["auroc"].max() > 0.65 and table["p_value"].min() < 0.05  # in pure noise
    assert table["p_corrected"].min() > 0.05 and best.p_value > 0.05 and best.auroc.value < 0.6


# Chain-of-thought generation


@provokes("gives `None`")
def test_a_text_that_ends_too_early(entry):
    question = questions.Question("addition", "How many?", (3, 4), ("7", "8"), ("Mary starts with 3 pens.",), ())
    whole = questions.write_examples([question], form="free")
    assert questions.parse_answer(whole) == "7"
    assert questions.parse_answer(whole[: whole.index("Answer:")]) is None


@pytest.fixture
def chat():
    """A tokenizer that puts a start token, and whose template does so too."""
    tokenizer = tiny_tokenizer(puts_start_token=True)
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


MESSAGES = [{"role": "user", "content": "the cat"}]


@provokes("two start tokens")
def test_a_doubled_start_token(entry, chat):
    text, start = chat.apply_chat_template(MESSAGES, tokenize=False), chat.bos_token_id
    assert chat(text)["input_ids"].count(start) == 2
    assert chat(text, add_special_tokens=False)["input_ids"].count(start) == 1


@provokes("BatchEncoding")
def test_a_template_gives_a_dictionary(entry, chat, load_tiny):
    model = load_tiny("llama").model
    encoded = chat.apply_chat_template(MESSAGES, return_tensors="pt")
    with entry.raised(TypeError):
        model(encoded)
    ids = chat.apply_chat_template(MESSAGES, return_tensors="pt", return_dict=False)
    assert torch.equal(model(**encoded).logits, model(ids).logits)


@provokes("right-padding was detected")
def test_padding_between_a_prompt_and_its_continuation(entry, chat, load_tiny, monkeypatch):
    model, log = load_tiny("llama").model, Mock()
    monkeypatch.setattr("transformers.generation.utils.logger", log)

    def continued(texts, side):
        encoded = chat(texts, padding=True, padding_side=side, return_tensors="pt")
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": chat.pad_token_id}
        return model.generate(**encoded, **options)[-1, -8:].tolist()

    texts = ["the cat sat on the mat", "the"]
    alone = continued(texts[1:], "left")
    assert continued(texts, "left") == alone and not log.method_calls
    assert continued(texts, "right") != alone
    assert entry.is_said(log.method_calls[0].args[0])
    assert hooks.generate(load_tiny("llama"), [chat(texts[1])["input_ids"]], max_new_tokens=8) == [alone]


@provokes("another text in bfloat16")
def test_near_ties_flip(entry, load_tiny, tiny_folders, token_ids):
    rounded = models.load(str(tiny_folders["llama"]), dtype="bfloat16")
    best = [loaded.model(token_ids).logits.argmax(-1) for loaded in (load_tiny("llama"), rounded)]
    assert not torch.equal(*best)


@provokes("greedy text is not the most likely tokens")
def test_a_penalty_that_the_model_brings_along(entry, tiny_folders):
    loaded = models.load(str(tiny_folders["llama"]))
    likely = hooks.generate(loaded, IDS[:1], max_new_tokens=20)[0]
    loaded.model.generation_config.repetition_penalty = 1.5

    def greedy(**options):
        return loaded.model.generate(IDS[:1], max_new_tokens=20, do_sample=False, **options)[0, 6:].tolist()

    assert greedy() != likely and greedy(repetition_penalty=1.0) == likely
