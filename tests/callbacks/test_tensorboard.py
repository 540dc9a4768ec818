"""TensorBoard over two real runs, in a real browser."""

import time

import pytest
import yaml
from browser import CHROMIUM, DRIVER, browser, tensorboard, wait_for_text

pytest.importorskip("selenium")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

TABS = {
    "timeseries": ["spectra/effective_rank/mean", "spectra/effective_rank_over_r/mean", "spectra/auc_90/mean"],
    "custom_scalars": [
        "Perplexity (held-out)",
        "Spectra of the update (paper Section 3.1)",
        "Effective rank, mean over layers (Eq. 3)",
        "AUC-90: components that hold 90% of the energy",
        "Matches (2)",  # both runs in one chart
    ],
    "histograms": ["log10 singular values of the update/q_proj", "log10 singular values of the update/v_proj"],
    "images": ["spectra/spectral signature", "spectra/cumulative energy", "spectra/effective rank by layer and step"],
    "hparams": ["adapter", "CeRA", "LoRA", "learning_rate", "0.010000", "val/perplexity", "effective_rank/mean"],
}


@pytest.fixture(scope="module")
def page(two_runs, tmp_path_factory):
    with tensorboard(two_runs) as address, browser(tmp_path_factory.mktemp("profile")) as driver:
        yield address, driver


@pytest.mark.parametrize("tab", TABS)
def test_tab_shows_both_runs(page, tab):
    address, driver = page
    driver.get(f"{address}/?tagFilter=spectra/.*/mean#{tab}" if tab == "timeseries" else f"{address}/#{tab}")
    driver.refresh()
    text = wait_for_text(driver, *TABS[tab], "cera", "lora")
    assert "No dashboards are active" not in text
    if tab == "images":
        assert pictures(driver) >= 6  # three of each run


def pictures(driver) -> int:
    """How many pictures with something in them are on the page."""
    script = """
        let n = 0;
        const walk = node => {
            if (node.tagName === 'IMG' && node.naturalWidth > 200) n += 1;
            if (node.shadowRoot) walk(node.shadowRoot);
            node.childNodes.forEach(walk);
        };
        walk(document.body);
        return n;
    """
    deadline = time.monotonic() + 30
    while (n := driver.execute_script(script)) < 6 and time.monotonic() < deadline:
        time.sleep(0.5)
    return n


def test_hparams_file(two_runs):
    parameters = yaml.safe_load((two_runs / "lora" / "hparams.yaml").read_text())
    assert parameters["adapter"] == "LoRA"
    assert parameters["r"] == 8
    assert parameters["learning_rate"] == 0.01
    assert parameters["steps"] == 12
    assert parameters["data"] == "ReasoningGymWordProblems"
