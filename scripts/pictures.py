"""Makes the pictures of the README and the documentation from real runs: ``python scripts/pictures.py``.

Trains CeRA and LoRA (r=64) on SmolLM2-135M at three learning rates, 40 steps each, which takes a quarter of an hour on
two cores; finished runs are reused. Then draws their spectra and learning-rate robustness, and takes screenshots of
TensorBoard in a headless Chromium.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from browser import browser, tensorboard, text_of_page

from cera.spectral import command as spectra
from cera.studies import lr_robustness_command as lr_robustness

ADAPTERS = ("cera", "lora")
LEARNING_RATES = ("1e-4", "3e-4", "1e-3")
STEPS, VALIDATE_EVERY = 40, 10
TABS = {"spectra": "?tagFilter=spectra/.*/mean|val/perplexity#timeseries", "compare": "#custom_scalars"}


def train(runs: Path) -> None:
    """Train the six runs, one after the other."""
    for learning_rate in LEARNING_RATES:
        for adapter in ADAPTERS:
            name = f"{adapter}_{learning_rate}"
            last_spectra = runs / name / "spectra" / f"step={STEPS}.safetensors"
            if not last_spectra.exists():
                options = [
                    f"--config=configs/smol_{adapter}.yaml", f"--runs={runs}", f"--name={name}",
                    f"--model.learning_rate={learning_rate}", f"--trainer.max_steps={STEPS}",
                    f"--trainer.val_check_interval={VALIDATE_EVERY}", "--answer_tokens=0",
                ]  # fmt: skip
                subprocess.run([sys.executable, "train.py", *options], cwd=REPOSITORY, check=True)


def screenshots(runs: Path, pictures: Path) -> None:
    """Take screenshots of TensorBoard's Time Series and Custom Scalars over all runs."""
    with tempfile.TemporaryDirectory() as profile, tensorboard(runs) as address, browser(Path(profile)) as driver:
        for name, tab in TABS.items():
            driver.get(f"{address}/{tab}")
            driver.refresh()
            while "cera_1e-4" not in text_of_page(driver):
                time.sleep(0.5)
            time.sleep(5)  # until the charts are drawn
            driver.save_screenshot(str(pictures / f"tensorboard_{name}.png"))


def main() -> None:
    """Train the missing runs, then draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "pictures")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "pictures")
    options = parser.parse_args()
    train(options.runs)
    options.out.mkdir(parents=True, exist_ok=True)
    compared = [str(options.runs / f"{adapter}_3e-4") for adapter in ADAPTERS]
    spectra.main([*compared, "--out", str(options.out / "spectra.png"), "--overwrite"])
    lr_robustness.main([str(options.runs), "--out", str(options.out / "lr_robustness.png"), "--overwrite"])
    screenshots(options.runs, options.out)


if __name__ == "__main__":
    main()
