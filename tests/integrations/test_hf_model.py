"""Our decoders as models of transformers: every scheme computes, generates and is stored alike."""

import copy
import pickle

import pytest
import torch
from hf_models import EVERY, LENGTH, TOKENS, model_of, same, tokens
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    DynamicCache,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from xcope.errors import FlagError
from xcope.integrations.transformers import XCopeConfig, XCopeForCausalLM
from xcope.integrations.transformers.model import log
from xcope.training import sample

NEW = 6
PADDING = TOKENS + 79
"""An id that no embedding has."""


def padded_left(prompt, n):
    """(1 n) ids and their mask."""
    more = n - prompt.shape[1]
    return F.pad(prompt, (more, 0), value=PADDING), F.pad(torch.ones_like(prompt), (more, 0))


@pytest.mark.parametrize("name", EVERY)
def test_every_scheme_gives_the_decoders_logits_text_and_beams(name):
    model, ids = model_of(name), tokens(10)
    same(model(ids).logits, model.model(ids))
    alone = ids[:1, :7]
    text = sample(model.model, alone[0].tolist(), NEW, temperature=0)
    assert model.generate(alone, max_new_tokens=NEW)[0, 7:].tolist() == text
    row, mask = padded_left(alone, 10)
    batch, mask = torch.cat((row, ids[1:])), torch.cat((mask, torch.ones(1, 10).long()))
    together = model.generate(batch, attention_mask=mask, max_new_tokens=NEW)
    assert together[0, 10:].tolist() == text
    beams = [
        model.generate(batch, attention_mask=mask, max_new_tokens=4, num_beams=3, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*beams)
    both_sides = F.pad(row, (0, 2), value=PADDING), F.pad(mask[:1], (0, 2))
    same(model(both_sides[0], attention_mask=both_sides[1]).logits[:, 3:10], model.model(alone))


@pytest.mark.parametrize("name", EVERY)
def test_every_scheme_is_stored_and_loaded(name, tmp_path):
    model, ids = model_of(name), tokens()
    model.save_pretrained(tmp_path)
    truth = model(ids).logits
    assert torch.equal(XCopeForCausalLM.from_pretrained(tmp_path)(ids).logits, truth)
    aside = XCopeForCausalLM.from_pretrained(
        tmp_path, device_map={"": "disk"}, offload_folder=tmp_path / "aside"
    )
    assert any(parameter.is_meta for parameter in aside.parameters())
    assert torch.equal(aside(ids).logits, truth)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="auto")
    for path, buffer in narrow.named_buffers():  # constants are never rounded
        assert torch.equal(buffer, buffers[path]), path
    for path, parameter in narrow.named_parameters():
        assert torch.equal(parameter, parameters[path].bfloat16()), path
    assert narrow.generate(ids, max_new_tokens=2).shape == (2, 11)


@pytest.mark.parametrize("name", EVERY)
def test_every_scheme_trains_the_same_with_checkpointed_activations(name):
    model, ids = model_of(name).train(), tokens()
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    mask = torch.ones_like(ids)
    mask[0, 6:], labels[0, 6:] = 0, -100
    truth = F.cross_entropy(
        model.model(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    truth_gradients = torch.autograd.grad(truth, list(model.parameters()), allow_unused=True)
    for enable in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        enable()
        out = model(ids, attention_mask=mask, labels=labels)
        same(out.loss, truth)
        gradients = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
        same(gradients, truth_gradients)
        summed = model(ids, labels=labels, num_items_in_batch=torch.tensor(5)).loss
        same(summed, truth * (labels[:, 1:] != -100).sum() / 5)
        assert out.cache is None


def test_checkpointing_holds_less_and_computes_layers_twice():
    model, ids, calls = model_of("cope").train(), tokens(), []
    feed_forward = model.model.attn_layers.layers[1][1]
    feed_forward.ff[0].register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    assert len(calls) == 2
    model.activation_checkpointing_enable(every_n_layers=2)  # of two layers, the first
    model(ids, labels=ids).loss.backward()
    assert len(calls) == 4
    with pytest.raises(FlagError, match="use_reentrant"):
        model.activation_checkpointing_enable({"use_reentrant": True})


def test_all_that_generate_does_takes_the_cache():
    model, ids = model_of("cope_rotary"), tokens()
    greedy = model.generate(ids, max_new_tokens=NEW)
    for arguments in ({"prefill_chunk_size": 4}, {"use_cache": False}, {"num_return_sequences": 1}):
        assert torch.equal(model.generate(ids, max_new_tokens=NEW, **arguments), greedy), arguments
    assistant = model_of("rotary")  # guesses of another model are cropped from the cache
    for arguments in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}):
        text = model.generate(ids[:1], max_new_tokens=NEW, **arguments)
        assert torch.equal(text, greedy[:1]), arguments
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=NEW), greedy[:, 9:])
    told = model.generate(
        ids,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_attentions=True,
        output_hidden_states=True,
        output_logits=True,
    )
    assert torch.equal(told.sequences, greedy)
    assert told.cache.get_seq_length() == 9 + NEW - 1
    assert told.attentions[1][0].shape == (2, 2, 1, 10)
    same(torch.stack(told.logits, dim=1), model.model(greedy)[:, 8:-1])
    torch.manual_seed(1)
    drawn = model.generate(ids, do_sample=True, top_k=3, num_return_sequences=2, max_new_tokens=NEW)
    likeliest = model.model(drawn)[:, 8:-1].topk(3).indices
    assert (likeliest == drawn[:, 9:, None]).any(-1).all()


def test_a_cache_goes_on_from_where_it_is_cut():
    model, ids = model_of("heads", num_residual_streams=2), tokens()
    with torch.no_grad():
        whole, cache = model(ids).logits, DynamicCache(config=model.config)
        model(ids[:, :4], past_key_values=cache)
        same(model(ids[:, 4:], cache=cache).logits, whole[:, 4:])
        cache.crop(-5)
        kept = copy.deepcopy(cache)
        same(model(ids[:, 4:], cache=cache).logits, whole[:, 4:])
        kept.batch_repeat_interleave(2)
        kept.batch_select_indices(torch.tensor([3, 0]))
        same(model(ids.flip(0)[:, 4:], cache=kept).logits, whole.flip(0)[:, 4:])
        kept.reset()
        same(model(ids, cache=kept).logits, whole)
        assert model(ids, cache=DynamicCache(), use_cache=False).cache is None


def test_a_batch_goes_on_turn_by_turn_with_its_cache():
    model, ids = model_of("cope_rotary"), tokens()
    mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    said = model.generate(ids, attention_mask=mask, max_new_tokens=4, return_dict_in_generate=True)
    turn = torch.cat((said.sequences, tokens(5)), dim=1)
    mask = F.pad(mask, (0, 9), value=1)
    text = model.generate(turn, attention_mask=mask, cache=said.cache, max_new_tokens=NEW)
    assert torch.equal(text, model.generate(turn, attention_mask=mask, max_new_tokens=NEW))
    alone = sample(model.model, turn[0, 3:].tolist(), NEW, temperature=0)
    assert text[0, 18:].tolist() == alone


def test_without_a_cache_it_is_said_once(caplog):
    model, ids = model_of("rotary_dynamic"), tokens()
    type(log).warning_once.cache_clear()
    assert model(ids, use_cache=True).cache is None
    for _ in range(2):
        text = model.generate(ids, max_new_tokens=2)
    (said,) = [record.message for record in caplog.records if record.name == log.name]
    assert "no cache is kept: " in said
    assert text[0, 9:].tolist() == sample(model.model, ids[0].tolist(), 2, temperature=0)
    with pytest.raises(FlagError, match="needs a cache"):
        model.generate(inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=2)


@pytest.mark.parametrize("name", ["absolute", "both"])
def test_a_window_slides_where_a_table_of_places_ends(name):
    model, ids = model_of(name), tokens(LENGTH - 4)
    texts = [sample(model.model, row.tolist(), 12, temperature=0) for row in ids]
    assert model.generate(ids, max_new_tokens=12)[:, LENGTH - 4 :].tolist() == texts
    short = sample(model.model, ids[0, 5:].tolist(), 12, temperature=0)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    text = model.generate(ids, attention_mask=mask, max_new_tokens=12)
    assert text[0, LENGTH - 4 :].tolist() == short


def test_packed_documents_are_seen_by_their_places():
    model, ids = model_of("cope_rotary"), tokens()
    one, two = ids[:1, :4], ids[1:, :5]
    truth = torch.cat((model.model(one), model.model(two)), dim=1)
    rows = [{"input_ids": one[0].tolist()}, {"input_ids": two[0].tolist()}]
    for told in (False, True):
        packed = DataCollatorWithFlattening(return_flash_attn_kwargs=told)(rows)
        out = model(**packed)
        same(out.logits, truth)
    losses = [
        F.cross_entropy(model.model(t)[0, :-1], t[0, 1:], reduction="sum") for t in (one, two)
    ]
    same(out.loss, sum(losses) / 7)
    same(model(ids, position_ids=torch.arange(9)).logits, model.model(ids))
    later = torch.arange(9)[None] + 3
    same(model(ids, position_ids=later).logits, model.model(ids, pos=later[0]))


def test_what_is_asked_for_beside_logits():
    model, ids = model_of("cope", num_memory_tokens=2, attn_kv_heads=1), tokens()
    out = model(ids, output_hidden_states=True, output_attentions=True, logits_to_keep=2)
    same(out.logits, model.model(ids)[:, -2:])
    same(out.hidden_states[-1], model.model(ids, return_embeddings=True))
    assert [h.shape for h in out.hidden_states] == [(2, 9, 32)] * 3
    _, maps = model.model(ids, return_attn=True)
    same(list(out.attentions), list(maps))
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)
    same(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model.model(ids))


OTHER = [
    {"attn_kv_heads": 1},
    {"emb_dim": 16},
    {"l2norm_embed": True},
    {"mixture_of_softmax": True},
    {"sigsoftmax_logits": True},
    {"num_memory_tokens": 2},
    {"num_residual_streams": 2},
    {"orthog_residual": True},
    {"residual_attn": True},
    {"shift_tokens": 1},
    {"tie_embedding": True},
    {"use_rmsnorm": True, "ff_glu": True, "add_value_residual": True},
    {"attn_use_latent_kv": True, "attn_dim_latent_kv": 16},
]


@pytest.mark.parametrize("flags", OTHER, ids="+".join)
def test_flags_of_x_transformers(flags, tmp_path):
    model, ids = model_of("alibi", **flags), tokens()
    out = model(ids, labels=ids)
    same(out.logits, model.model(ids))
    text = sample(model.model, ids[0, 2:].tolist(), NEW, temperature=0)
    mask = torch.tensor([[0] * 2 + [1] * 7, [1] * 9])
    assert model.generate(ids, attention_mask=mask, max_new_tokens=NEW)[0, 9:].tolist() == text
    model.save_pretrained(tmp_path)
    assert torch.equal(XCopeForCausalLM.from_pretrained(tmp_path)(ids).logits, out.logits)
    out.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.train().zero_grad()
    model.activation_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    same([p.grad for p in model.parameters() if p.grad is not None], gradients)


@pytest.mark.parametrize("flags", [{}, {"tie_word_embeddings": True}], ids=["own", "tied"])
@torch.no_grad()
def test_the_vocabulary_grows_and_shrinks(flags, tmp_path):
    model, ids = model_of("cope", **flags), tokens()
    before, parameters = model(ids).logits, model.num_parameters()
    model.resize_token_embeddings(TOKENS + 5)
    same(model(ids).logits[..., :TOKENS], before)
    assert model.num_parameters() - parameters == 5 * 32 * (1 if flags else 2)
    assert model.config.vocab_size == model.config.num_tokens == model.model.num_tokens == 25
    model.save_pretrained(tmp_path)
    loaded = XCopeForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids + 5).logits, model(ids + 5).logits)
    loaded.resize_token_embeddings(TOKENS)
    same(loaded(ids).logits, before)


def test_what_a_file_lacks_is_drawn_as_for_a_fresh_model(tmp_path):
    model, ids = model_of("t5"), tokens()
    weights = model.state_dict()
    lost = [path for path in weights if "to_q" in path or "token_emb" in path or "norm" in path]
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in weights.items() if k not in lost})
    loaded = XCopeForCausalLM.from_pretrained(tmp_path).state_dict()
    fresh = XCopeForCausalLM(model.config).state_dict()
    assert len(lost) == 4
    for path in weights:
        if path not in lost:
            assert torch.equal(loaded[path], weights[path]), path
        elif fresh[path].std() > 0:
            assert 0.7 < loaded[path].std() / fresh[path].std() < 1.4, path
        else:
            assert torch.equal(loaded[path], fresh[path]), path
    larger = XCopeForCausalLM.from_pretrained(
        tmp_path, num_tokens=TOKENS + 3, ignore_mismatched_sizes=True
    )
    assert larger(ids).logits.shape[-1] == TOKENS + 3


def test_an_epoch_of_a_trainer_is_resumed(tmp_path):
    rows = [  # with unlike numbers of labels, so that the mean of means is another number
        {"input_ids": row, "labels": [-100] * (index % 5) + row[index % 5 :]}
        for index, row in enumerate(tokens(b=16).tolist())
    ]

    def trained(resume=None, rows_at_once=2):
        arguments = TrainingArguments(
            str(tmp_path), num_train_epochs=1, per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=4 // rows_at_once, gradient_checkpointing=True,
            learning_rate=0.02, save_steps=2, logging_steps=1, use_cpu=True, report_to=[],
            disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model_of("cope"), arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole, resumed = trained(), trained(str(tmp_path / "checkpoint-2"))
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    same(list(resumed.model.parameters()), list(whole.model.parameters()))
    at_once = trained(rows_at_once=4)
    same(list(at_once.model.parameters()), list(whole.model.parameters()), atol=1e-4, rtol=1e-3)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert all(map(torch.equal, stored.parameters(), at_once.model.parameters()))


def test_adapters_learn_and_are_merged():
    model, ids = model_of("cope"), tokens()
    before, tables = model(ids).logits, [p.clone() for p in model.model.position_parameters()]
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["to_q", "to_v"])
    adapted = get_peft_model(model, lora).train()
    adapted.gradient_checkpointing_enable()
    learnt = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(learnt, 0.02), []
    for _ in range(10):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    adapted.eval()
    text = adapted.generate(input_ids=ids, max_new_tokens=NEW)
    merged = adapted.merge_and_unload()
    assert not torch.allclose(merged(ids).logits, before, atol=0.01)
    assert torch.equal(merged.generate(ids, max_new_tokens=NEW), text)
    assert all(map(torch.equal, merged.model.position_parameters(), tables))
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = get_peft_model(model_of("cope"), prompts)
    assert prompted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape[:2] == (2, 12)


def test_compiled_it_gives_the_same():
    model, ids = model_of("heads", depth=1), tokens()
    compiled = torch.compile(model, backend="eager")
    same(compiled(ids).logits, model(ids).logits)
    row, mask = padded_left(ids[:1, 2:], 9)
    same(compiled(row, attention_mask=mask).logits[:, 2:], model(ids[:1, 2:]).logits)


def test_copies_are_models_of_their_own():
    model, ids = model_of("cope", tie_embedding=True), tokens()
    before = model(ids).logits
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for twin in twins:
        assert torch.equal(twin(ids).logits, before)
        assert twin.config.to_dict() == model.config.to_dict()
    assert twins[0].bfloat16().generate(ids, max_new_tokens=2).shape == (2, 11)


def test_configs_have_both_names_and_are_written_in_full(tmp_path):
    config = XCopeConfig(
        dim=48, num_hidden_layers=3, position={"heads": ["cope", {"name": "rotary", "dim": 8}]},
        cope_max_pos=32, ff_glu=True, tie_embedding=True,
    )  # fmt: skip
    assert (config.hidden_size, config.depth, config.vocab_size) == (48, 3, config.num_tokens)
    assert config.flags == {"cope_max_pos": 32, "ff_glu": True, "tie_embedding": True}
    assert config.tie_word_embeddings
    config.save_pretrained(tmp_path)
    again = XCopeConfig.from_pretrained(tmp_path)
    for twin in (again, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin.to_diff_dict() == config.to_diff_dict()
        assert twin.section() == config.section()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: XCopeConfig(cope_max_poss=3), "did you mean 'cope_max_pos'"),
        (lambda: model_of("cope", dim="32"), "dim='32' is not allowed"),
        (lambda: model_of("cope", heads=3), "heads=3 does not divide dim=32"),
        (lambda: model_of("rotary", cope_max_pos=3), "cope_max_pos"),
        (lambda: model_of("cope", use_cls_token=True), "use_cls_token=True is not taken"),
        (lambda: XCopeForCausalLM(XCopeConfig()), "no position is named"),
    ],
)
def test_configs_that_cannot_be(call, words):
    with pytest.raises(FlagError, match=words):
        call()


HOLES = torch.tensor([[1, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
RIGHT = torch.tensor([[1] * 7 + [0] * 2, [1] * 9])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"positoin_ids": 1}, "takes no 'positoin_ids'.*did you mean 'position_ids'"),
        ({"is_causal": False}, "is a decoder"),
        ({"inputs_embeds": torch.zeros(2, 9, 32)}, "either input_ids or inputs_embeds"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask \(2, 4\) does not fit"),
        ({"attention_mask": HOLES}, "0 between the tokens"),
        ({"position_ids": torch.zeros(2, 3)}, r"position_ids \(2, 3\)"),
        ({"cache": StaticCache(config=XCopeConfig(), max_cache_len=8)}, "cache=StaticCache"),
    ],
)
def test_calls_that_cannot_be(arguments, words):
    with pytest.raises(FlagError, match=words):
        model_of("cope")(tokens(), **arguments)


def test_texts_that_cannot_be_generated():
    model, ids = model_of("cope"), tokens()
    with pytest.raises(FlagError, match="pad on one side, and on the left to generate"):
        model.generate(ids, attention_mask=RIGHT, max_new_tokens=2)
    with pytest.raises(FlagError, match="cache_implementation='static' is not taken"):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)
    cache = model(ids).cache
    with pytest.raises(FlagError, match="must go on from it"):
        model(ids, cache=cache, position_ids=torch.arange(9))
    with pytest.raises(FlagError, match="ff_deep_embed"):
        model_of("cope", ff_deep_embed=True).resize_token_embeddings(30)
