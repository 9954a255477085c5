import hashlib
import json
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from shared.tiny import START, change_weights, save_tiny, sha256, tiny_config, tiny_tokenizer

from helpers import hooks, models, patching
from helpers.engine.embedded import quiet_transformers

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def remove_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Names


def test_every_registered_name_is_found_and_pinned():
    for name, card in models.REGISTRY.items():
        assert models.find(name) is card
        if card.embedded:
            requirements = {card.embedded.requirement.format(part=part) for part in range(card.embedded.parts)}
            assert all(re.fullmatch(r"[\w-]+==[\d.]+", one) for one in requirements)
            assert len(requirements) == card.embedded.parts
            for digest in (card.embedded.gguf_sha256, card.embedded.weights_sha256):
                assert re.fullmatch("[0-9a-f]{64}", digest)
            if card.embedded.hub_id:
                assert re.fullmatch("[0-9a-f]{40}", card.embedded.hub_revision)
        else:
            assert re.fullmatch("[0-9a-f]{40}", card.revision)
    assert models.DEFAULT_MODEL in models.REGISTRY


def test_a_folder_is_found_by_any_of_its_paths(copy_of, monkeypatch, tmp_path):
    folder = copy_of(name="org/a model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(folder), "org/a model", "./org/a model", "~/org/a model"):
        assert models.fetch(name) == folder
        assert models.find(name).hub_id is None


def test_a_folder_comes_before_a_hub_id_and_a_registered_name_before_a_folder(monkeypatch, tmp_path):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "gpt2-small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert models.find("org/name").hub_id is None
    assert models.find("org/other").hub_id == "org/other"
    assert models.find("gpt2-small").hub_id == "openai-community/gpt2"


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("org/name", "org/name", None),
        (f"org/Name-1.5_b@{COMMIT}", "org/Name-1.5_b", COMMIT),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
    ],
)
def test_a_hub_id_is_split_from_its_revision(name, hub_id, revision):
    card = models.find(name)
    assert (card.hub_id, card.revision) == (hub_id, revision)


def test_an_unknown_name_is_refused_with_the_closest_one(refused):
    with refused("'gpt2-smal'", "did you mean 'gpt2-small'?", *models.REGISTRY):
        models.find("gpt2-smal")


@pytest.mark.parametrize(
    "name",
    ["", "nosuch", "./no/such", "/no/such", "~/nosuch", "a/b/c", "a b/c", "a/b@", "https://huggingface.co/a/b", "\0"],
)
def test_a_name_that_means_nothing_is_refused(name, refused):
    with refused(repr(name), *models.REGISTRY):
        models.load(name)


@pytest.mark.parametrize("name", ["a/..", "-a/b", "a/b--c", "a/" + 200 * "b", 5000 * "b"])
def test_a_name_that_no_model_can_have_is_refused(name, refused):
    with refused(repr(name)):
        models.load(name)


# Options


@pytest.mark.parametrize("device", ["tpu", "", "cuda:99", "meta"])
def test_a_device_that_can_not_be_used_is_refused(device, tiny_folders, refused):
    with refused(f"device {device!r}", "'cpu'"):
        models.load(str(tiny_folders["llama"]), device=device)


@pytest.mark.parametrize(
    ("option", "legal"),
    [({"dtype": "float64"}, "float32, bfloat16, float16"), ({"backend": "jax"}, ", ".join(models.BACKENDS))],
)
def test_an_unknown_option_is_refused_with_the_legal_ones(option, legal, tiny_folders, refused):
    with refused(*map(repr, option.values()), legal):
        models.load(str(tiny_folders["llama"]), **option)


def test_the_precision_is_the_one_asked_for_whatever_the_file_holds(copy_of):
    folder = copy_of()
    change_weights(folder, lambda weights: weights.update({name: w.half() for name, w in weights.items()}))
    for dtype, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        loaded = models.load(str(folder), dtype=dtype)
        assert {weights.dtype for weights in loaded.model.parameters()} == {expected}
        assert loaded.dtype == loaded.record()["dtype"] == str(expected).removeprefix("torch.")


# Folders


def test_what_is_loaded_is_what_the_file_holds(tiny, tiny_folders):
    saved = load_file(tiny_folders[tiny.config.model_type] / "model.safetensors")
    state = tiny.model.state_dict()
    assert saved
    renamed = {"embed_out.weight": "lm_head.weight"}  # GPT-NeoX's own name for it
    assert all(torch.equal(state[renamed.get(name, name)], weights) for name, weights in saved.items())
    assert not tiny.model.training
    assert not any(weights.requires_grad for weights in tiny.model.parameters())
    assert (tiny.n_layers, tiny.n_heads, tiny.context_length) == (2, 4, 64)


def test_the_record_of_a_model_says_which_weights_it_has(tiny, tiny_folders):
    record = json.loads(json.dumps(tiny.record()))
    folder = tiny_folders[tiny.config.model_type]
    assert record["weights_sha256"] == sha256(folder / "model.safetensors")
    assert (record["name"], record["backend"], record["device"]) == (str(folder), "huggingface", "cpu")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["has no config.json"]),
        ("{", ["config.json", "JSON"]),
        ("\xff", ["config.json", "JSON"]),
        ("[]", ["config.json", "no JSON object"]),
        ("{}", ["config.json", "names no model_type"]),
        ('{"model_type": "nosuch"}', ["nosuch"]),
        ('{"model_type": "t5"}', ["t5", "encoder"]),
        ('{"model_type": "llama", "num_hidden_layers": "x"}', ["config.json", "num_hidden_layers"]),
    ],
)
def test_a_folder_with_a_bad_config_is_refused(content, parts, copy_of, refused):
    folder = copy_of()
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content.encode("latin-1"))
    with refused(folder, *parts):
        models.load(str(folder))


def test_an_empty_folder_is_refused(tmp_path, refused):
    with refused(tmp_path, "is empty"):
        models.load(str(tmp_path))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_a_model_is_refused_and_not_left_out(name, copy_of, refused):
    folder = copy_of()
    (folder / name).write_text("{}")
    with refused(name, "not applied", "merge_and_unload"):
        models.load(str(folder))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A Gemma 3 that sees pictures too, and the whole model as transformers has it."""
    text = tiny_config("gemma3_text").to_dict()
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config=sight | {"image_size": 28, "patch_size": 14})
    folder = tmp_path_factory.mktemp("seeing")
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        whole = transformers.AutoModelForCausalLM.from_config(config).eval()
        whole.save_pretrained(folder)
    tiny_tokenizer(puts_start_token=False).save_pretrained(folder)
    return folder, whole


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_of_a_checkpoint_with_sight_the_text_part_is_read_changed_and_patched(backend, seeing):
    folder, whole = seeing
    loaded = models.load(str(folder), backend=backend)
    rows = [[5, 6, 7, 8], [9, 10, 11, 12]]
    with torch.no_grad():
        wanted = whole(torch.tensor(rows)).logits
    assert loaded.config.model_type == "gemma3_text" and loaded.n_layers == 2
    found = hooks.capture(loaded, rows, ["logits", "head_z"], positions="all")
    assert torch.allclose(found["logits"], wanted, atol=1e-4)
    with hooks.intervene(loaded, hooks.Edit("head_z", 0, head=1)):
        changed = hooks.capture(loaded, rows, "logits")["logits"][:, 0]
    assert (changed - wanted[:, -1]).abs().max() > 1e-2
    if backend == "huggingface":
        effects = patching.ablate(loaded, rows, [[patching.Node("head_z", 0, 1)]], how="zero", answers=[(1, 2), (1, 2)])
        assert torch.allclose(effects.values[0], changed[:, 1] - changed[:, 2], atol=1e-4)
        assert hooks.generate(loaded, rows[:1], max_new_tokens=2) == [
            whole.generate(torch.tensor(rows[:1]), max_new_tokens=2, do_sample=False)[0, 4:].tolist()
        ]


def test_pickled_weights_alone_are_refused(copy_of, refused):
    folder = copy_of()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with refused(folder, "pickled", "pytorch_model.bin"):
        models.load(str(folder))


def test_pickled_weights_that_an_index_names_are_refused(copy_of, refused):
    folder = copy_of()
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "weights.bin")
    (folder / "model.safetensors").unlink()
    write_index(folder, dict.fromkeys(weights, "weights.bin"))
    with refused(folder, "weights.bin"):
        models.load(str(folder))


def test_a_folder_without_weights_is_refused(copy_of, refused):
    folder = copy_of()
    (folder / "model.safetensors").unlink()
    with refused(folder, "has no weights"):
        models.load(str(folder))


def test_a_truncated_weight_file_is_refused_by_name(copy_of, refused):
    folder = copy_of()
    truncate(folder / "model.safetensors")
    with refused(folder / "model.safetensors"):
        models.load(str(folder))


@pytest.fixture
def shards(tmp_path):
    """A model in several files; returns its folder and their names."""
    folder = save_tiny("llama", tmp_path / "shards", max_shard_size="20KB")
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 2
    return folder, names


def test_a_truncated_shard_is_refused_by_name(shards, refused):
    folder, names = shards
    truncate(folder / names[1])
    with refused(names[1]):
        models.load(str(folder))


def test_a_missing_shard_is_refused_by_name(shards, refused):
    folder, names = shards
    (folder / names[1]).unlink()
    with refused(folder, names[1]):
        models.load(str(folder))


def test_shards_give_the_same_model_as_one_file_and_a_hash_of_all_of_them(shards, tiny_folders):
    folder, names = shards
    parts, whole = models.load(str(folder)), models.load(str(tiny_folders["llama"]))
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], weights)
    listing = "".join(f"{name} {sha256(folder / name)}\n" for name in names)
    assert parts.weights_sha256 == hashlib.sha256(listing.encode()).hexdigest()
    for name in names:
        change_weights(folder, lambda weights: next(iter(weights.values())).add_(1), name)
        changed = models.load(str(folder)).weights_sha256
        assert changed != parts.weights_sha256


def test_the_hash_is_of_the_weights_that_are_loaded(copy_of):
    folder = copy_of()
    weights = load_file(folder / "model.safetensors")
    save_file({name: 0 * w for name, w in weights.items()}, folder / "other.safetensors", metadata={"format": "pt"})
    expected = {float(weights["lm_head.weight"].sum()): sha256(folder / "model.safetensors")}
    expected[0.0] = sha256(folder / "other.safetensors")
    for step in ("a second file", "an index that names the second file"):
        if step.startswith("an index"):
            write_index(folder, dict.fromkeys(weights, "other.safetensors"))
        loaded = models.load(str(folder))
        assert loaded.weights_sha256 == expected[float(loaded.model.lm_head.weight.sum())], step


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", ".."])
def test_an_index_that_points_outside_its_folder_is_refused(name, copy_of, refused):
    folder = copy_of()
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    write_index(folder, {"lm_head.weight": name})
    with refused(folder):
        models.load(str(folder))


@pytest.mark.parametrize("weight_map", [None, ["a"], {"a": 5}, {"a": ""}, {}])
def test_an_index_that_names_no_files_is_refused(weight_map, copy_of, refused):
    folder = copy_of()
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    with refused(folder):
        models.load(str(folder))


def test_a_missing_tensor_is_refused_by_name_and_not_filled_at_random(copy_of, refused):
    name = "model.layers.1.self_attn.o_proj.weight"
    folder = copy_of()
    change_weights(folder, lambda weights: weights.pop(name))
    with refused(folder, name):
        models.load(str(folder))


def test_a_tensor_of_the_wrong_shape_is_refused_by_name(copy_of, refused):
    name = "model.layers.1.self_attn.o_proj.weight"
    folder = copy_of()
    change_weights(folder, lambda weights: weights.update({name: torch.zeros(3, 3)}))
    with refused(folder, name):
        models.load(str(folder))


@pytest.mark.parametrize("model_type", ["evil", "llama"])
@pytest.mark.parametrize("backend", models.BACKENDS)
def test_code_that_comes_with_a_model_is_never_run(model_type, backend, copy_of, tmp_path, refused):
    folder, marker = copy_of(), tmp_path / "marker"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config |= {"model_type": model_type, "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Config", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if model_type == "evil":
        with refused(folder):
            models.load(str(folder), backend=backend)
    else:  # a type that transformers knows itself, so that the code is not needed
        assert models.load(str(folder), backend=backend).config.model_type == "llama"
    assert not marker.exists()


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_a_path_with_spaces_and_signs_loads(backend, copy_of):
    folder = copy_of(name="it's a 100% ü #model")
    assert models.load(str(folder), backend=backend).config.model_type == "llama"


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_a_folder_without_tokenizer_takes_token_ids_only(backend, copy_of, refused):
    folder = copy_of()
    remove_tokenizer(folder)
    try:
        loaded = models.load(str(folder), backend=backend)
    except models.InputError as error:
        assert backend != "huggingface"
        assert backend in str(error)
        assert "tokenizer" in str(error)
        return
    assert loaded.token_labels([3, 14]) == ["3", "14"]
    assert loaded.start_token_id is None
    with refused(repr(str(folder)), "no tokenizer"):
        loaded.encode("the cat")


def test_a_damaged_tokenizer_is_refused_by_its_folder(copy_of, refused):
    folder = copy_of()
    truncate(folder / "tokenizer.json")
    with refused("tokenizer", folder):
        models.load(str(folder))


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])  # of GPT-2 the bridge splits a matrix in three
def test_a_view_says_the_same_and_holds_no_weights_of_its_own(family, backend, load_tiny):
    from helpers import hooks
    from helpers.engine.backends import get_huggingface_model

    loaded = load_tiny(family)
    rows = [[5, 6, 7], [8, 9]]
    before = hooks.capture(loaded, rows, ["resid_post", "pattern", "logits"], positions="all")
    seen = models.view(loaded, backend)
    held = {weight.data_ptr() for weight in loaded.model.parameters()}
    assert {weight.data_ptr() for weight in get_huggingface_model(seen).parameters()} <= held
    for one in (seen, loaded):
        again = hooks.capture(one, rows, ["resid_post", "pattern", "logits"], positions="all")
        for site, values in before.values.items():
            torch.testing.assert_close(again[site], values, atol=1e-5, rtol=1e-5, equal_nan=True)
    with hooks.intervene(seen, hooks.Edit("resid_post", 0)):
        changed = hooks.capture(seen, rows, "logits")["logits"]
        plain = hooks.capture(loaded, rows, "logits")["logits"]
    assert (changed - plain).abs().max() > 1e-3, "an edit of the one is no edit of the other"


def test_a_view_of_a_view_and_on_the_same_backend_are_refused(load_tiny, refused):
    with refused("'nnsight'", "legal is one of 'huggingface'"):
        models.view(load_tiny("llama", "nnsight"), "transformer_lens")
    with refused("'huggingface'", "legal is one of 'huggingface'"):
        models.view(load_tiny("llama"), "huggingface")


# The start token


def test_a_start_token_is_put_where_the_models_own_tokenizer_puts_one(copy_of):
    folder = copy_of()
    for puts_start_token in (False, True):
        remove_tokenizer(folder)
        tokenizer = tiny_tokenizer(puts_start_token=puts_start_token)
        tokenizer.save_pretrained(folder)
        loaded = models.load(str(folder))
        start = tokenizer.convert_tokens_to_ids(START)
        assert loaded.start_token_id == (start if puts_start_token else None)
        assert loaded.encode("the cat") == tokenizer("the cat")["input_ids"]
        assert loaded.encode("the cat").count(start) == puts_start_token
        assert "".join(loaded.token_labels(loaded.encode("the cat"))) == START * puts_start_token + "the cat"


# Embedded models, with a small one in the place of the real one


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_tampered_file_of_an_embedded_model_is_refused_by_name(file, fake, refused):
    folder = models.fetch("fake-q4")
    content = (folder / file).read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1]) if file == "model.safetensors" else content + b"\n"
    (folder / file).write_bytes(changed)
    with refused(folder / file, "'fake-q4'", f"delete {folder}", "fetch fake-q4"):
        models.load("fake-q4")


def test_tampered_weights_are_refused_also_with_a_manifest_that_agrees(fake, refused):
    folder = models.fetch("fake-q4")
    change_weights(folder, lambda weights: weights["lm_head.weight"].add_(1))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model.safetensors"] = sha256(folder / "model.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with refused(folder / "model.safetensors"):
        models.load("fake-q4")


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"config.json": 5}', '{"nosuch.json": "' + 64 * "0" + '"}'])
def test_an_embedded_model_with_a_damaged_manifest_is_refused(manifest, fake, refused):
    folder = models.fetch("fake-q4")
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with refused(folder, "json"):
        models.load("fake-q4")


# Models of the hub, in a cache laid out as Hugging Face's


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_folders):
    """A cache of its own with one snapshot: large files are blobs named by sha256, small ones by git's hash."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in tiny_folders["llama"].iterdir():
        content = path.read_bytes()
        git_hash = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = repository / "blobs" / (git_hash if path.suffix == ".json" else sha256(path))
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return Mock(repository=repository, snapshot=snapshot)


@pytest.mark.parametrize("name", ["org/name", f"org/name@{COMMIT}", "org/name@main"])
def test_a_snapshot_in_the_cache_loads_without_network_and_records_its_commit(name, hub, tiny_folders):
    assert models.is_cached(models.find(name))
    loaded = models.load(name)
    assert loaded.record()["hub_id"] == "org/name"
    assert loaded.record()["revision"] == COMMIT
    assert loaded.weights_sha256 == sha256(tiny_folders["llama"] / "model.safetensors")


@pytest.mark.parametrize("damage", ["one bit", "half"])
def test_a_damaged_blob_is_refused_by_name_and_the_advice_removes_it(damage, hub):
    blob = (hub.snapshot / "model.safetensors").resolve()
    if damage == "half":
        truncate(blob)
    else:
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.write_bytes(content)
    with pytest.raises(models.InputError) as caught:
        models.load("org/name")
    message = str(caught.value)
    assert str(hub.snapshot / "model.safetensors") in message
    assert "fetch org/name" in message
    # Deleting the snapshot alone would leave the blob, and the next fetch would link it again.
    named = [Path(word.strip(":,.;()'\"")) for word in message.split() if word.startswith(str(hub.repository))]
    assert any(path == blob or path in blob.parents for path in named), message


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("lacks", ["link", "blob"])
def test_an_incomplete_snapshot_counts_as_not_cached(file, lacks, hub, refused):
    if lacks == "link":
        (hub.snapshot / file).unlink()
    else:
        (hub.snapshot / file).resolve().unlink()
    assert not models.is_cached(models.find("org/name"))
    with refused("'org/name'", "network"):
        models.load("org/name")


def test_without_network_a_hub_model_gives_one_sentence(hub, refused):
    with refused("'org/absent'", "its newest revision", "network", "fetch org/absent"):
        models.load("org/absent")
    with refused("'gpt2-small'", models.REGISTRY["gpt2-small"].revision, "fetch gpt2-small"):
        models.load("gpt2-small")


def test_in_offline_mode_a_hub_model_gives_one_sentence(hub, monkeypatch, refused):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("'org/absent'", "network"):
        models.load("org/absent")
    assert models.load("org/name").record()["revision"] == COMMIT


def test_a_name_that_the_hub_does_not_have_gives_one_sentence(hub, monkeypatch, refused):
    from huggingface_hub.errors import RepositoryNotFoundError

    def model_info(*_, **__):
        raise RepositoryNotFoundError("404 Client Error\nRepository Not Found", response=Mock())

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with refused("'org/absent'"):
        models.load("org/absent")


def test_a_hub_model_is_downloaded_once_at_its_revision_without_pickles_and_code(hub, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(hub_id, *, revision, allow_patterns, local_files_only=False, **_):
        if local_files_only and not downloads:
            raise LocalEntryNotFoundError("not here")
        if not local_files_only:
            downloads.append((hub_id, revision))
        files = ("model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin", "evil.py", "model.gguf")
        wanted = [name for name in files if any(fnmatch(name, pattern) for pattern in allow_patterns)]
        assert wanted == ["model.safetensors", "config.json", "tokenizer.json"]
        return str(hub.snapshot)

    downloads = []
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", Mock())
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert models.fetch("org/name@v1.0") == models.fetch("org/name@v1.0") == hub.snapshot
    assert downloads == [("org/name", "v1.0")]


def test_a_hub_model_without_safetensors_is_refused(hub, monkeypatch, refused):
    (hub.snapshot / "model.safetensors").rename(hub.snapshot / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", Mock())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(hub.snapshot))
    with refused("'org/name'", "no safetensors"):
        models.load("org/name")


# Backends


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma3_text", "gpt_neox"])
def test_the_three_backends_give_the_same_logits(family, load_tiny, token_ids):
    def logits(loaded):
        output = loaded.model(token_ids)
        return getattr(output, "logits", output)

    plain = load_tiny(family)
    for backend in ("transformer_lens", "nnsight"):
        other = load_tiny(family, backend)
        assert other.record() == plain.record() | {"backend": backend}
        torch.testing.assert_close(logits(other), logits(plain), atol=1e-4, rtol=1e-4)


def test_nnsight_leaves_the_model_on_its_device(tiny_folders, monkeypatch):
    """Without a device transformers' pipeline moves it to the first GPU that it finds."""
    import nnsight

    seen = []
    wrap = nnsight.TransformersModel
    monkeypatch.setattr(
        nnsight, "TransformersModel", lambda *given, **options: seen.append(options) or wrap(*given, **options)
    )
    loaded = models.load(str(tiny_folders["llama"]), backend="nnsight")
    assert [options["device"] for options in seen] == [loaded.device] == ["cpu"]


# The command line


def test_list_shows_every_model_and_what_is_in_the_cache(fake, hub, capsys):
    models.fetch("fake-q4")
    capsys.readouterr()
    assert models.main(["list"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(models.REGISTRY)
    assert {len(line[: line.index(" GB")]) for line in lines} == {heading.index("memory") + len("mem")}
    states = {line.split()[0]: "in the cache" in line for line in lines}
    assert {name for name, cached in states.items() if cached} == {"fake-q4"}
    assert all("in the cache" in line or "not fetched" in line for line in lines)


def test_check_prints_the_folder_the_hash_and_the_architecture(tiny_folders, capsys):
    folder = tiny_folders["llama"]
    assert models.main(["check", str(folder)]) == 0
    captured = capsys.readouterr()
    for part in (str(folder), sha256(folder / "model.safetensors"), "llama, 2 layers of 4 heads, float32"):
        assert part in captured.out


def test_fetch_prints_the_folder_alone_on_standard_output(fake, capsys):
    assert models.main(["fetch", "fake-q4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{fake.target}\n"
    assert "fetching fake-q4: dequantising" in captured.err


@pytest.mark.parametrize("command", ["check", "fetch"])
def test_a_bad_name_on_the_command_line_gives_one_line_and_status_1(command, capsys):
    assert models.main([command, "gpt2-smal"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: unknown model 'gpt2-smal'")
    assert captured.err.count("\n") == 1


def test_a_damaged_model_on_the_command_line_gives_status_1(copy_of, capsys):
    folder = copy_of()
    change_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    assert models.main(["check", str(folder)]) == 1
    assert "lm_head.weight" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["load", "gpt2-small"], ["check"]])
def test_a_wrong_command_gives_the_usage_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        models.main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m helpers.models" in capsys.readouterr().err


# The real model


def test_the_embedded_model_is_the_registered_one_and_takes_no_start_token(embedded):
    card = models.REGISTRY[models.DEFAULT_MODEL]
    assert embedded.weights_sha256 == card.embedded.weights_sha256
    assert sum(weights.numel() for weights in embedded.model.parameters()) == card.parameters
    assert embedded.start_token_id is None
    token_ids = embedded.encode("The capital of France is")
    assert embedded.token_labels(token_ids) == ["The", " capital", " of", " France", " is"]
    folder = models.fetch(models.DEFAULT_MODEL)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert models.fetch(models.DEFAULT_MODEL) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.keys() == before.keys() - {"manifest.json"}
    assert all(sha256(folder / name) == manifest[name] for name in manifest if name != "model.safetensors")
    with torch.inference_mode():
        logits = embedded.model(torch.tensor([token_ids])).logits[0, -1]
    assert embedded.token_labels([int(logits.argmax())]) == [" Paris"]


# Without training


def test_an_untrained_copy_has_the_shape_and_nothing_else(load_tiny, refused):
    loaded = load_tiny("gpt2")
    random = torch.random.get_rng_state()
    one, same, other = (models.randomise(loaded, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), random)
    weights = [dict(model.model.named_parameters()) for model in (loaded, one, same, other)]
    assert all(weights[0][name].shape == tensor.shape for name, tensor in weights[1].items())
    name = next(name for name in weights[0] if name.endswith("c_attn.weight"))
    trained, first, again, different = (group[name] for group in weights)
    assert torch.equal(first, again)
    assert not torch.equal(first, trained) and not torch.equal(first, different)
    assert not any(tensor.requires_grad for tensor in weights[1].values())
    assert one.weights_sha256 == "random, seed 5" and one.card.title.endswith(", untrained")
    with refused("no untrained copy on backend 'transformer_lens'"):
        models.randomise(load_tiny("gpt2", "transformer_lens"), seed=0)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_model_that_does_not_fit_into_memory_is_not_called_damaged(error, tiny_folders, monkeypatch, refused):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with refused("takes more memory in float32 than there is on 'cpu'", "bfloat16"):
        models.load(str(tiny_folders["llama"]))
