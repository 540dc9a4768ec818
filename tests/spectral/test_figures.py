import pytest
import torch

from cera.spectral import energy_rank
from cera.spectral.figures import cumulative_energy_curves, effective_rank_map, side_by_side, spectral_signature


def layers(scale: float = 1.0, width: int = 6) -> dict[str, torch.Tensor]:
    return {
        f"model.layers.{i}.self_attn.{module}": scale * torch.logspace(0, -i - 1, width, dtype=torch.float64)
        for i in range(3)
        for module in ("q_proj", "v_proj")
    }


ADAPTERS = {"CeRA r=6": layers(), "LoRA r=4": layers(width=4)}


def test_a_line_for_each_adapter_over_the_components():
    ax = spectral_signature(ADAPTERS).axes[0]
    assert ax.get_yscale() == "log"
    first, second = ax.lines
    assert list(first.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert first.get_ydata()[0] == pytest.approx(1)
    assert first.get_ydata()[-1] == pytest.approx(10 ** (-(1 + 2 + 3) / 3))  # the geometric mean of the layers
    assert list(second.get_xdata()) == [1, 2, 3, 4]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(ADAPTERS)


def test_the_energy_rises_to_one_and_is_labelled_with_auc_90():
    ax = cumulative_energy_curves(ADAPTERS).axes[0]
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(1)
    mean = sum(map(energy_rank, layers().values())) / 6
    assert ax.get_legend().get_texts()[0].get_text() == f"CeRA r=6 (AUC-90 {mean:.1f})"
    assert any(text.get_text() == "90%" for text in ax.texts)


def test_map_has_a_panel_for_each_module_with_layers_and_steps():
    figure = effective_rank_map({10: layers(), 20: {k: torch.ones(6, dtype=torch.float64) for k in layers()}})
    queries = figure.axes[0]
    assert queries.get_title() == "q_proj"
    values = queries.images[0].get_array()
    assert values.shape == (3, 2)
    assert list(values[:, 1]) == pytest.approx([6, 6, 6])
    assert [t.get_text() for t in queries.get_xticklabels()] == ["10", "20"]


@pytest.mark.parametrize("zero", [layers(scale=0), {name: torch.zeros(0, dtype=torch.float64) for name in layers()}])
def test_an_update_that_is_zero_is_drawn_as_nothing(zero, tmp_path):
    side_by_side({"update": {"CeRA r=6": zero}}).savefig(tmp_path / "zero.png")
    spectral_signature({"CeRA r=6": zero}).savefig(tmp_path / "zero.png")
    effective_rank_map({1: zero}).savefig(tmp_path / "zero.png")
    side_by_side({"update": {"trained": layers(), "not": zero}}).savefig(tmp_path / "both.png")


def test_titles_and_caption_say_what_the_numbers_are_of():
    rows = {"update, not centred": ADAPTERS, "update, centred": ADAPTERS}
    figure = side_by_side(rows, "1,024 tokens of data 01234567")
    assert figure.get_suptitle() == "1,024 tokens of data 01234567"
    assert [ax.get_title() for ax in figure.axes] == [
        f"{what} of the update, {centring}"
        for centring in ("not centred", "centred")
        for what in ("Spectral signature", "Cumulative energy", "Effective rank")
    ]
    assert "not centred" in spectral_signature(ADAPTERS).axes[0].get_title()
    assert "not centred" in effective_rank_map({1: layers()}).axes[-1].get_ylabel()


def rises(line) -> bool:
    return bool((torch.tensor(line.get_ydata()).diff() > 1e-9).any())


def test_the_mean_does_not_jump_where_narrower_layers_end():
    """Singular values fall, so a mean of them over the same layers falls, too."""
    wide, narrow = (torch.logspace(0, -end, width, dtype=torch.float64) for end, width in ((1, 12), (3, 4)))
    widths = {"model.layers.0.self_attn.q_proj": wide, "model.layers.0.self_attn.v_proj": narrow}
    ax = spectral_signature({"LoRA r=12": widths}).axes[0]
    assert [line.get_label() for line in ax.lines] == ["LoRA r=12, q_proj", "LoRA r=12, v_proj"]
    assert [len(line.get_xdata()) for line in ax.lines] == [12, 4]
    assert not any(map(rises, ax.lines))
    # of layers that are as wide, but of which one is numerically zero from the fourth component on
    same = {"model.layers.0.q_proj": wide, "model.layers.1.q_proj": wide.where(torch.arange(12) < 3, 1e-9)}
    (line,) = spectral_signature({"LoRA r=12": same}).axes[0].lines
    assert len(line.get_xdata()) == 12
    assert not rises(line)


def test_a_layer_without_an_update_does_not_lower_the_energy_of_the_others():
    zero = {"model.layers.9.self_attn.q_proj": torch.zeros(3, dtype=torch.float64)}
    alone, both = (
        cumulative_energy_curves({"CeRA r=6": each}).axes[0].lines[0] for each in (layers(), layers() | zero)
    )
    assert list(alone.get_ydata()) == list(both.get_ydata())
