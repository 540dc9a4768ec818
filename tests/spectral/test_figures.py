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
    side_by_side({"CeRA r=6": zero}).savefig(tmp_path / "zero.png")
    spectral_signature({"CeRA r=6": zero}).savefig(tmp_path / "zero.png")
    effective_rank_map({1: zero}).savefig(tmp_path / "zero.png")
    side_by_side({"trained": layers(), "not": zero}).savefig(tmp_path / "both.png")
