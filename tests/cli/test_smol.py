"""The real small model, and GSM8K's real files."""

import sys

import pytest
from command_line import losses, run


def train(runs, *overrides: str):
    run([
        sys.executable, "train.py", "--config", "configs/smol_cera.yaml", f"--runs={runs}", "--name=test",
        "--data.validation_rows=8", "--trainer.val_check_interval=10", "--answer_tokens=0", *overrides,
    ])  # fmt: skip
    return runs / "test"


def test_smollm2_learns_word_problems(smol, tmp_path):
    run_dir = train(tmp_path, "--trainer.max_steps=10", "--model.learning_rate=2e-3")
    perplexity = losses(run_dir, "val/perplexity")
    assert perplexity[9] < 0.9 * perplexity[0]


@pytest.mark.slow
def test_gsm8k_files_train_through_the_json_lines_path(gsm8k, tmp_path):
    run_dir = train(
        tmp_path,
        "--data.dataset=cera.data.GSM8KSolutions",
        f"--data.dataset.init_args.data_files={gsm8k / 'train.jsonl'}",
        "--trainer.max_steps=20",
        "--data.batch_size=2",
    )
    train_loss, perplexity = losses(run_dir), losses(run_dir, "val/perplexity")
    assert len(train_loss) == 20
    assert perplexity[19] < perplexity[0]
