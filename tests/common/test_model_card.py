"""The model card tells the truth about this model, loads as code and as YAML, and tells nothing about the machine."""

import ast
import json
import re
import shlex
from pathlib import PurePath

import pytest
import yaml
from example_run import CONSTANTS, judged, write_example_run

from common import chat_text, model_card, serving
from common.run_directory import read_json, write_json


@pytest.fixture
def run(tmp_path):
    run = write_example_run(tmp_path / "llama32_qlora")
    write_json(run.final_model / "adapter_config.json", {})
    return run


def card(run, directory=None):
    path = model_card.write(directory or run.final_model, run)
    assert path.name == "README.md"
    text = path.read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def code(body):
    return re.search(r"(`{3,})python\n(.*?)\n\1", body, re.DOTALL).group(2)


def change(path, **values):
    write_json(path, read_json(path) | values)


def test_front_matter_and_sections(run):
    front, body = card(run)
    assert front["base_model"] == "meta-llama/Llama-3.2-3B-Instruct" and front["library_name"] == "peft"
    assert front["datasets"] == ["cross_validated.jsonl", "arxiv.jsonl"] and front["tags"] == ["llama32_qlora", "unsloth", "lora"]
    headings = re.findall(r"^## (.+)$", body, re.MULTILINE)
    assert headings == ["Data", "Training", "Figures", "Loading it", "Serving it", "Limits"]
    assert "- LORA_R = `16`" in body and "480 for train" in body and "python recipes/llama32_qlora.py --tiny" in body


def test_figures_are_those_of_this_model(run):
    _, body = card(run)
    assert "| ROUGE-L | 0.21 [0.18, 0.24] | 0.63 [0.58, 0.68] |" in body and "the intervals do not overlap" in body
    assert "| Numbers | 6 % [3, 9] | 41 % [36, 46] |" in body
    assert "| Validation loss (on validation.jsonl) |" in body and "reproduces 41 %" in body.partition("## Limits")[2]
    (run.eval / "final_model.json").unlink()  # the best checkpoint's figures are not the final model's
    _, body = card(run)
    assert "Not evaluated yet." in body and "reproduces" not in body.partition("## Limits")[2] and "0.64" not in body
    change(run.eval / "summary.json", failed={"final_model": "its file is cut short"})
    assert "It could not be judged: its file is cut short" in card(run)[1]


def test_figures_about_documents_stand_in_the_card_where_there_are_any(run):
    for name, mean in (("base", 0.1), ("final_model", 0.8)):
        model = read_json(run.eval / f"{name}.json")
        recall = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}
        added = dict.fromkeys(("fact_recall", "fact_recall_end", "copy_rate"), recall)
        change(run.eval / f"{name}.json", metrics=model["metrics"] | added)
    _, body = card(run)
    assert "| Facts | 10 % [5, 15] | 80 % [75, 85] |" in body and "| Facts: end | 10 % [5, 15] | 80 % [75, 85] |" in body
    assert "| Copied (% of its 4-grams in the document) | 10 % [5, 15] | 80 % [75, 85] |" in body and "Repeated" not in body
    assert "Facts rose from 10 % [5, 15] to 80 % [75, 85]; the intervals do not overlap." in body


def test_a_merged_models_card_has_the_adapters_figures_and_says_so(run):
    write_json(run.merged_model / "config.json", {})
    _, body = card(run, run.merged_model)
    assert "This is final_model merged into its base, and the figures are those of final_model. " in body
    assert "its logits were within 0.9 % of the adapter's" in body
    assert "| | base | final_model |\n" in body and "| ROUGE-L | 0.21 [0.18, 0.24] | 0.63 [0.58, 0.68] |" in body
    own = judged("merged_model", None, 0.47, 0.63, 0.41)
    own |= {"metrics": {k: v for k, v in own["metrics"].items() if k in ("loss", "perplexity", "validation_loss")}, "examples": []}
    own |= {"settings": own["settings"] | {"4bit": False}, "settings_key": "other"}
    write_json(run.eval / "merged_model.json", own)
    _, body = card(run, run.merged_model)
    assert "| | base | final_model | this model |\n" in body and "measured of this model itself (other settings: 4bit)" in body
    assert "| Loss | 4.90 [4.84, 4.96] | 0.46 [0.36, 0.56] | 0.47 [0.37, 0.57] |" in body
    assert "| ROUGE-L | 0.21 [0.18, 0.24] | 0.63 [0.58, 0.68] | – |" in body
    (run.eval / "final_model.json").unlink()
    _, body = card(run, run.merged_model)
    assert "| | base | this model |\n|---|---|---|\n" in body and "final_model" not in body.partition("## Figures")[2]


def test_the_constants_named_are_the_recipes(run):
    assert set(model_card.CONSTANTS) <= set(CONSTANTS)


def test_the_code_is_code_and_fits_the_model(run):
    adapter = code(card(run)[1])
    ast.parse(adapter)
    assert "PeftModel" in adapter and "load_in_4bit=True" in adapter and f'revision="{CONSTANTS["MODEL_REVISION"]}"' in adapter
    asked = next(node for node in ast.walk(ast.parse(adapter)) if isinstance(node, ast.Call) and "apply_chat" in ast.unparse(node.func))
    assert {word.arg: ast.literal_eval(word.value) for word in asked.keywords}["date_string"] == chat_text.DATE
    change(run.constants, LOAD_IN_4BIT=False)
    assert "BitsAndBytesConfig" not in code(card(run)[1])
    write_json(run.merged_model / "config.json", {})
    front, body = card(run, run.merged_model)
    ast.parse(code(body))
    assert "peft" not in code(body) and front["library_name"] == "transformers"


def asks(body):
    """What the card's code and its curl ask the model."""
    tree = ast.parse(code(body))
    messages = next(node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.targets[0].id == "messages")
    sent = json.loads(shlex.split(commands(body)["curl"])[-1])
    assert ast.literal_eval(messages) == sent["messages"]
    return sent


def commands(body):
    """{program: its command} of the section about serving."""
    blocks = re.findall(r"^```bash\n(.*)\n```$", body.partition("## Serving it")[2], re.MULTILINE)
    return {PurePath(shlex.split(block)[0]).name: block for block in blocks}


def test_it_asks_nothing_of_the_data_for_a_card_is_published(run):
    row = {"messages": [{"role": "user", "content": "What does Mrs. Okafor owe?"}]}
    run.validation.write_text(json.dumps(row) + "\n", encoding="utf-8")
    body = card(run)[1]
    sent = asks(body)
    assert sent["messages"] == [{"role": "user", "content": "Hello"}] and sent["model"] == "llama32_qlora" and "Okafor" not in body
    assert sent["chat_template_kwargs"] == {"date_string": chat_text.DATE}
    (run.final_model / "chat_template.jinja").write_text("{{ messages }}")
    body = card(run)[1]
    assert "date_string" not in body and "chat_template_kwargs" not in asks(body)


def test_an_adapter_is_served_on_its_base_and_the_rest_from_the_merged_model(run):
    body = card(run)[1]
    vllm = shlex.split(commands(body)["vllm"])
    assert vllm[2] == "meta-llama/Llama-3.2-3B-Instruct" and vllm[vllm.index("--revision") + 1] == CONSTANTS["MODEL_REVISION"]
    assert vllm[vllm.index("--lora-modules") + 1] == "llama32_qlora=." and vllm[vllm.index("--max-lora-rank") + 1] == "16"
    assert vllm[vllm.index("--max-model-len") + 1] == "256"
    assert commands(body)["transformers"] == "transformers serve ../merged_model" and "MERGE writes beside this adapter" in body
    assert "../merged_model_gguf/merged_model.Q4_K_M.gguf" in commands(body)["llama-server"]
    change(run.constants, LORA_R=1024)
    assert "All take `../merged_model`" in card(run)[1]
    write_json(run.merged_model / "config.json", {})
    body = card(run, run.merged_model)[1]
    assert commands(body)["vllm"] == serving.vllm(".", "llama32_qlora", 256) and "MERGE" not in body.partition("## Serving it")[2]
    for block in re.findall(r"^```python\n(.*?)\n```$", body, re.DOTALL | re.MULTILINE):
        ast.parse(block)


def test_nothing_of_the_machine_and_no_secret(run, tmp_path):
    key = "0123456789abcdef0123456789abcdef01234567"
    command = f"python {tmp_path}/recipes/r.py --hf-token hf_abc123def --key={key}"
    change(run.run, model_name=str(tmp_path / "cache" / "tiny-llama"), command=command)
    change(run.run, notes=[f"wrote to {tmp_path}/x.log", "token hf_abcdefghijklmnopqrstuv"], hardware="CPU at /dev/shm/here")
    change(run.data, files={f"{tmp_path}/mine.jsonl": {"rows": 3, "weight": 1.0}})
    change(run.constants, OPTIM=f"{tmp_path}/optim", LR_SCHEDULER_TYPE="hf_abcdefghijklmnopqrstuv")
    front, body = card(run)
    text = (run.final_model / "README.md").read_text(encoding="utf-8")
    for secret in (str(tmp_path), "/dev/shm", key, "hf_abc"):
        assert secret not in text
    assert front["base_model"] == "tiny-llama" and front["datasets"] == ["mine.jsonl"] and 'BASE = "tiny-llama"' in code(body)


def test_text_from_elsewhere_is_no_markup(run):
    nasty = "a\n---\n# big <script>x [l](u) `b` \u202e\x00: {x}"
    change(run.run, recipe=nasty, hardware=nasty, notes=[nasty], command=nasty, versions={nasty: nasty})
    change(run.data, files={nasty: {"rows": 1}}, split_by=nasty)
    front, body = card(run)
    assert len(front["datasets"]) == 1 and "# big" in front["datasets"][0]
    outside = re.sub(r"`[^`\n]*`|^    .*$", "", body.replace("\\`", ""), flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[l", outside)
    assert re.findall(r"^# .*$", body, re.MULTILINE) == ["# llama32_qlora"] and "\u202e" not in body and "\x00" not in body


def test_an_unfinished_run_with_nothing_written_says_so(run):
    for path in (run.data, run.metrics, run.constants):
        path.unlink()
    write_json(run.run, {"status": "failed", "model_name": "some/model", "tiny": False})
    front, body = card(run)
    assert "“failed”: this is not the end of its training" in body and "datasets" not in front and front["base_model"] == "some/model"
    assert "--tiny" not in body
