import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from cera import CeraConfig
from cera.models.backbone import load_model

trl = pytest.importorskip("trl")

CONVERSATIONS = [
    [{"role": "user", "content": f"What is {n} plus {n}?"}, {"role": "assistant", "content": f"It is {2 * n}."}]
    for n in range(4)
]
INPUT_IDS = torch.arange(20).view(2, 10)


def logits(model):
    with torch.no_grad():
        return model.eval()(INPUT_IDS).logits


def test_sft_trainer_trains_and_saves_a_cera_adapter(tiny_llama, tokenizer, tmp_path):
    trainer = trl.SFTTrainer(
        model=load_model(tiny_llama, torch.float32),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trainer"),
            max_steps=2,
            learning_rate=0.05,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"messages": CONVERSATIONS}),
        processing_class=tokenizer,
        peft_config=CeraConfig(r=4, task_type="CAUSAL_LM"),
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert trainer.state.global_step == 2
    assert changed == {name for name in before if "cera_" in name}

    adapter = tmp_path / "adapter"
    trainer.save_model(str(adapter))
    trained = logits(trainer.model)
    base = load_model(tiny_llama, torch.float32)
    assert not torch.equal(logits(base), trained)
    assert torch.equal(logits(PeftModel.from_pretrained(base, adapter)), trained)
