"""Models of Hugging Face transformers with our schemes: trained, saved, loaded, and with PEFT."""

import copy
import json

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from xcope.errors import FlagError  # noqa: E402
from xcope.integrations.transformers import (  # noqa: E402
    add_cope,
    from_pretrained,
    position_parameters,
    remove_position,
    set_position,
)

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def llama(**options):
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=50,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **options,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def moved(parameters):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))


def tokens(rows=2, n=11):
    return torch.randint(1, 50, (rows, n), generator=torch.Generator().manual_seed(7))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def near(got, wanted):
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def lora(**options):
    torch.manual_seed(2)
    return peft.LoraConfig(
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        **options,
    )


def trainable(model, word="xcope"):
    return {n: p for n, p in model.named_parameters() if p.requires_grad and word in n}


# -- PEFT ------------------------------------------------------------------------------------------


def test_lora_around_a_model_with_cope_trains_saves_loads_and_merges_the_tables(tmp_path):
    model, ids = add_cope(llama()), tokens()
    wrapped = peft.get_peft_model(model, lora(modules_to_save=["xcope"]))
    tables = trainable(wrapped)
    assert len(tables) == 2
    wrapped.train()
    wrapped(input_ids=ids, labels=ids).loss.backward()
    assert all(table.grad.abs().max() > 0 for table in tables.values())
    wrapped.eval()
    before = logits(wrapped, ids)
    moved(tables.values())
    wanted = logits(wrapped, ids)
    assert (wanted - before).abs().max() > 1e-3
    arguments = {"max_new_tokens": 5, "do_sample": False}
    text = wrapped.generate(input_ids=ids[:1], use_cache=False, **arguments)
    assert torch.equal(wrapped.generate(input_ids=ids[:1], **arguments), text)
    wrapped.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(add_cope(llama()), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, ids), wanted)
    merged = wrapped.merge_and_unload()
    near(logits(merged, ids), wanted)
    merged.save_pretrained(tmp_path / "merged")
    near(logits(from_pretrained(tmp_path / "merged"), ids), wanted)


def test_cope_can_be_added_to_a_model_inside_peft_and_taken_out(tmp_path):
    wrapped, ids = peft.get_peft_model(llama(), lora()).eval(), tokens()
    before = logits(wrapped, ids)
    assert add_cope(wrapped) is wrapped
    near(logits(wrapped, ids), before)
    tables = trainable(wrapped)
    assert len(tables) == 2
    moved(tables.values())
    wanted = logits(wrapped, ids)
    assert (wanted - before).abs().max() > 1e-3
    wrapped.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(add_cope(llama()), tmp_path).eval()
    assert torch.equal(logits(again, ids), wanted)
    with wrapped.disable_adapter():
        near(logits(wrapped, ids), logits(llama(), ids))
    remove_position(wrapped)
    assert torch.equal(logits(wrapped, ids), before)
    assert not wrapped.peft_config["default"].modules_to_save


def test_lora_on_all_linear_layers_trains_forget_gates(tmp_path):
    config = peft.LoraConfig(
        target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=["xcope"]
    )
    wrapped, ids = peft.get_peft_model(set_position(llama(), "forgetting"), config), tokens()
    gates = trainable(wrapped)
    moved(gates.values())
    wrapped.eval()
    arguments = {"max_new_tokens": 5, "do_sample": False}
    text = wrapped.generate(input_ids=ids[:1], use_cache=False, **arguments)
    assert torch.equal(wrapped.generate(input_ids=ids[:1], **arguments), text)


def test_tables_that_are_zero_and_frozen_are_told_of_once(caplog):
    wrapped, ids = peft.get_peft_model(add_cope(llama()), lora()).train(), tokens()
    for _ in range(2):
        wrapped(input_ids=ids, labels=ids).loss.backward()
    assert caplog.text.count("modules_to_save=['xcope']") == 1


# -- save and load ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    model = add_cope(llama(), max_pos=8, layers=[1])
    moved(position_parameters(model))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_transformers_alone_refuses_to_load_without_the_tables(saved, monkeypatch):
    _, folder = saved
    for interface in (transformers.AttentionInterface, transformers.AttentionMaskInterface):
        monkeypatch.delitem(interface._global_mapping, "xcope")  # as where nobody imports xcope
    with pytest.raises(ValueError, match='attn_implementation="xcope"` is not supported'):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_a_model_that_was_loaded_without_its_tables_does_not_run_or_take_new_ones(saved):
    _, folder = saved
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(FlagError, match="from_pretrained"):
        model(tokens())
    with pytest.raises(FlagError, match="from_pretrained"):
        add_cope(model)


def test_loading_takes_what_from_pretrained_takes(saved):
    model, folder = saved
    ids = tokens()
    wanted = logits(model, ids)
    for cls in (None, transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
        again = from_pretrained(folder, cls, device_map="cpu")
        assert type(again) is transformers.LlamaForCausalLM
        assert torch.equal(logits(again, ids), wanted)
    inner = from_pretrained(folder, transformers.LlamaModel)
    with torch.no_grad():
        wanted_hidden = model.model(ids, use_cache=False).last_hidden_state
        assert torch.equal(inner(ids, use_cache=False).last_hidden_state, wanted_hidden)
    narrow, info = from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert {p.dtype for p in position_parameters(narrow)} == {torch.bfloat16}
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    set_position(narrow, "alibi")
    narrow.save_pretrained(folder / "next")
    third = from_pretrained(folder / "next")
    assert list(third.model.layers[0].self_attn.xcope._modules) == ["alibi"]
    assert torch.equal(logits(third, ids), logits(narrow, ids))


def test_a_folder_in_several_shards_and_one_that_lacks_tables(saved):
    model, folder = saved
    ids = tokens()
    model.save_pretrained(folder / "shards", max_shard_size="10KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(logits(from_pretrained(folder / "shards"), ids), logits(model, ids))
    plain = llama()
    plain.save_pretrained(folder / "plain")
    with pytest.raises(FlagError, match="holds no positions"):
        from_pretrained(folder / "plain")
    text = json.loads((folder / "config.json").read_text())
    (folder / "plain" / "config.json").write_text(json.dumps(text))
    with pytest.raises(FlagError, match="lacks the weights"):
        from_pretrained(folder / "plain")


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(llama().config)
    with pytest.raises(FlagError, match="meta"):
        add_cope(model)


def test_accelerate_dispatches_and_offloads_a_model_with_schemes():
    ids = tokens()
    for position in ("cope", "alibi", "forgetting"):
        model = set_position(llama(), position)
        moved(position_parameters(model))
        wanted = logits(model, ids)
        device_map = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu"}
        device_map |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
        twin = copy.deepcopy(model)
        near(logits(dispatch_model(model, device_map, force_hooks=True), ids), wanted)
        near(logits(cpu_offload(twin, torch.device("cpu")), ids), wanted)


# -- Trainer ---------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """Rows of unlike lengths."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        row = tokens(1, 6 + index % 3)[0]
        return {"input_ids": row.tolist(), "labels": row.tolist()}


def trainer(model, folder, collator, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_strategy="epoch",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=Rows(), data_collator=collator)


def tables_only(model):
    model.requires_grad_(False)
    for parameter in position_parameters(model):
        parameter.requires_grad_(True)
    return model


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[index, :n], labels[index, :n] = (torch.tensor(row["input_ids"]),) * 2
    return {"input_ids": ids, "labels": labels, "attention_mask": (ids != 0).long()}


def test_trainer_trains_the_tables_only_saves_and_resumes(tmp_path):
    model = tables_only(add_cope(llama()))
    before = copy.deepcopy(model.state_dict())
    trainer(model, tmp_path / "a", padded).train()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {n for n in before if "xcope" in n}
    half = next(path for path in sorted((tmp_path / "a").iterdir()))
    resumed = tables_only(add_cope(llama()))
    trainer(resumed, tmp_path / "b", padded).train(resume_from_checkpoint=str(half))
    for name, wanted in model.state_dict().items():
        near(resumed.state_dict()[name], wanted)
    last = sorted((tmp_path / "a").iterdir())[-1]
    assert torch.equal(logits(from_pretrained(last), tokens()), logits(model.eval(), tokens()))


def test_trainer_trains_on_rows_without_padding_as_on_padded_ones(tmp_path):
    flat = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    weights = []
    for name, collator in (("padded", padded), ("flat", flat)):
        torch.manual_seed(0)
        model = add_cope(llama())
        options = {"gradient_checkpointing": name == "flat"}
        trainer(model, tmp_path / name, collator, **options).train()
        weights.append([p.detach() for p in position_parameters(model)])
    for ours, theirs in zip(*weights, strict=True):
        assert ours.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
