"""The table of conventions: each row is what ``summarize`` says of the same weights at the tokens of its convention."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import cera
from cera.data.measured import measured_batches
from cera.runs.saved_adapter import SavedAdapter
from cera.spectral.aggregate import ALL_LAYERS, summarize
from cera.spectral.convention import PROTOCOLS
from cera.spectral.recorder import measure
from cera.studies.spectra_conventions import CONVENTIONS, convention_table, measure_conventions


def test_rows_differ_by_their_convention_alone(tiny_llama, tmp_path) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = cera.CeraConfig(r=8, init_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path)
    saved = SavedAdapter.find(tmp_path)
    names = ("ours", "centred", "last five layers", "authors")
    few = {name: replace(CONVENTIONS[name], rows=2) for name in names}
    few["last layer"] = replace(few["ours"], layers=1)
    values = measure_conventions(saved, few)

    padded = measured_batches(saved.base, None, 2, padded=True)
    spectra = measure(saved.load(), padded, ["update"], "with_padding")
    authors = summarize(spectra.values["update_centred"], spectra.ranks, PROTOCOLS["authors"]).means
    assert values["authors"].tokens == spectra.sample.count
    assert values["authors"].effective_rank == pytest.approx(authors["effective_rank"][ALL_LAYERS])
    assert values["authors"].auc_90 == pytest.approx(authors["auc_90"][ALL_LAYERS])
    # the tiny Llama has four layers, so the last five are all of them
    assert values["last five layers"] == values["ours"]
    assert values["last layer"].effective_rank != values["ours"].effective_rank
    assert values["centred"].tokens == values["ours"].tokens < values["authors"].tokens
    assert values["centred"].effective_rank != values["ours"].effective_rank

    table = convention_table(values, "CeRA r=8")
    assert [row[0] for row in table.rows] == [*names, "last layer"]
    assert table.rows[0][2] == f"{values['ours'].effective_rank:.1f}"
