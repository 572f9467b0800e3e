"""Loading a sweep and planning its runs makes no model, task or run oftener than is needed."""

from collections import Counter

import pytest

from xcope.compare import plan
from xcope.config import Config, ModelConfig, expand_sweep, load_config, sweep
from xcope.config.build import make_model
from xcope.config.compose import LIBRARY
from xcope.modules import Decoder, TransformerWrapper, plan_of
from xcope.tasks import Task

QUICKSTART = LIBRARY / "quickstart.yaml"
"""A sweep over five schemes."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often what was made."""
    count = Counter[str]()

    def counted(owner: object, method: str, name: str) -> None:
        usual = getattr(owner, method)

        def counting(*args, **kwargs):
            count[name] += 1
            return usual(*args, **kwargs)

        monkeypatch.setattr(owner, method, counting)

    counted(TransformerWrapper, "__init__", "wrappers")
    counted(Decoder, "__init__", "decoders")
    counted(Task, "__post_init__", "tasks")
    counted(sweep, "combinations", "expansions")
    return count


def test_five_runs_take_five_models(built, tmp_path):
    config = load_config(QUICKSTART, sweep=True, data=False)
    runs = plan(config, tmp_path)
    assert [run.scheme for run in runs] == [
        "none", "absolute", "rotary", "alibi", "cope(max_pos=32)",
    ]  # fmt: skip
    assert built["wrappers"] == built["decoders"] == 5
    assert built["expansions"] == 1
    assert built["tasks"] <= 3 * len(runs) + 1


def test_seeds_share_the_model_of_their_scheme(built, tmp_path):
    config = load_config(QUICKSTART, ["sweep.train.seed=[0, 1, 2]"], sweep=True, data=False)
    assert len(plan(config, tmp_path)) == 15
    assert built["wrappers"] == built["decoders"] == 5


def test_tuning_tries_no_model_again(built, tmp_path):
    overrides = ["tune.train.lr=[5e-4, 1e-3]"]
    config = load_config(QUICKSTART, overrides, sweep=True, data=False)
    plan(config, tmp_path)
    assert built["wrappers"] == built["decoders"] == 5
    assert built["expansions"] == 2, "of the sweep and of tuning"


def test_one_run_takes_one_model(built):
    config = load_config(QUICKSTART, ["sweep=null", "model.position=cope"])
    assert config.label() == "cope"
    assert built["wrappers"] == built["decoders"] == 1


def test_runs_that_were_handed_out_may_be_changed(tmp_path):
    config = load_config(QUICKSTART, sweep=True, data=False)
    expand_sweep(config, data=False).clear()
    assert len(expand_sweep(config, data=False)) == 5
    changed: Config = config.model_copy(update={"sweep": {"model.position": ["fire"]}})
    assert [run.scheme for run in plan(changed, tmp_path)] == ["fire"]
    assert len(plan(config, tmp_path)) == 5


@pytest.mark.parametrize(
    "flags",
    [
        {"position": "cope"},
        {"position": "cope_rotary", "cope_max_pos": 8},
        {"position": ["absolute", {"layers": ["cope", "none"]}]},
        {"position": {"heads": ["rotary", {"name": "alibi"}]}, "use_abs_pos_emb": True},
        {"position": "absolute", "l2norm_embed": True},
        {"position": "none", "use_abs_pos_emb": True, "l2norm_embed": True},
        {"position": "rotary", "scaled_sinu_pos_emb": True},
        {"use_abs_pos_emb": True},
        {"use_abs_pos_emb": False},
        {"disable_abs_pos_emb": False},
        {"disable_abs_pos_emb": False, "position": "alibi"},
        {"rotary_pos_emb": True, "attn_use_cope": [True, False]},
        {"rotary_pos_emb": True, "scaled_sinu_pos_emb": True},
        {"alibi_pos_bias": True, "alibi_num_heads": 1, "use_abs_pos_emb": None},
    ],
)
def test_the_plan_that_labels_is_the_models(flags):
    config = ModelConfig(dim=16, depth=2, heads=2, **flags)
    model = make_model(config, num_tokens=4, longest=8, device="meta")
    assert plan_of(config.position, config.flags) == model.plan
