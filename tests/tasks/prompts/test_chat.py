"""Chat frames, compared with the rendering of transformers for six families of templates."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from needlework.config.models.checkpoint import Checkpoint
from needlework.tasks.prompts.chat import load_chat_frame
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, ChatFrame

# The date defaults to today; system text and message are stripped.
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set said = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set said = "" %}
{%- endif %}
{{- "<|head|>system<|over|>\\n\\nKnown until: March 2024\\nToday: " + date_string + "\\n\\n" }}
{{- said + "<|eot|>" }}
{%- for message in messages %}
    {{- '<|head|>' + message['role'] + '<|over|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|over|>\\n\\n' }}
{%- endif %}
"""
QWEN_3 = """\
{%- if tools %}{{- raise_exception('no tools here') }}{%- endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- generation %}
        {{- '<|im_start|>assistant\\n' + content.split('</think>')[-1].lstrip('\\n') }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
    {%- if loop.index0 == ns.last %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
    {%- set said = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}
    {%- set said = '' %}{% set turns = messages %}
{%- endif %}
{%- for turn in turns %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {{- '[INST] ' + (said if loop.last else '') + turn['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + turn['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{{ '<turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n'
   + message['content'] | trim + '<end>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}
"""
PHI = """\
{% for message in messages %}
{% if message['role'] in ('system', 'user') %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + '<|end|>' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""
DEEPSEEK_R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(said='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{%- set ns.said = message['content'] %}{%- endif %}
{%- endfor %}
{{- bos_token }}{{ ns.said }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}{%- endif %}
{%- if message['role'] == 'assistant' %}
{{- '<|Assistant|>' + message['content'].split('</think>')[-1] }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}
"""
TEMPLATES = {
    "llama_3": LLAMA_3,
    "qwen_3": QWEN_3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi": PHI,
    "deepseek_r1": DEEPSEEK_R1,
}
SPECIAL = [
    *("<s>", "</s>", "<|head|>", "<|over|>", "<|eot|>", "<|im_start|>", "<|im_end|>"),
    *("<turn>", "<end>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"),
    *("<|User|>", "<|Assistant|>"),
]
QUESTION = "A text of \"many\" lines.\nThe key is <7> & no other — né?\n\nWhat is 'the key'?"
SYSTEM = "Answer in one word. Don't explain."


def save(
    folder: Path, template: str | list | None, *, adds_bos: bool = True, config: dict | None = None
) -> Path:
    """Save a byte tokenizer with a chat template, as in a checkpoint."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if adds_bos:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "special": True},
        "eos_token": "</s>",
        "unk_token": None,
        **(config or {}),
    }
    if isinstance(template, list):
        tokenizer_config["chat_template"] = template
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    return folder


def messages(system: str | None, text: str = QUESTION) -> list[dict[str, str]]:
    system_messages = [] if system is None else [{"role": "system", "content": system}]
    return [*system_messages, {"role": "user", "content": text}]


CASES = [
    (name, system, thinks)
    for name in TEMPLATES
    for system in ([None] if name == "gemma" else [None, SYSTEM])
    for thinks in ([False, True] if name in ("qwen_3", "deepseek_r1") else [False])
]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(("name", "system", "thinks"), CASES)
def test_prompts_match_transformers(tmp_path, name, system, thinks, adds_bos):
    folder = save(tmp_path, TEMPLATES[name], adds_bos=adds_bos)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    variables = {
        "enable_thinking": thinks,
        "date_string": "03 Feb 2025",
        "add_generation_prompt": True,
    }
    text = tokenizer.apply_chat_template(messages(system), tokenize=False, **variables)
    ids = tokenizer.apply_chat_template(messages(system), **variables)["input_ids"]
    if name == "deepseek_r1" and not thinks:
        text = text.removesuffix("\n") + "\n\n</think>\n\n"
        ids = tokenizer.encode(text, add_special_tokens=False)
    if name in ("qwen_3", "phi") and adds_bos:
        # These templates leave the special token to the tokenizer.
        text, ids = f"<s>{text}", [tokenizer.bos_token_id, *ids]

    frame = load_chat_frame(
        folder, system_prompt=system, thinking_tokens=100 if thinks else 0, date="2025-02-03"
    )
    prompt = frame.head + QUESTION + frame.tail
    assert ("<s>" if adds_bos else "") + prompt == text
    assert tokenizer(prompt)["input_ids"] == ids
    assert ids.count(tokenizer.bos_token_id) == (adds_bos or name not in ("qwen_3", "phi"))
    assert frame.prefills is not thinks
    assert frame.system_prompt == system
    assert system is None or system in frame.head


def test_the_message_is_verbatim_even_if_the_template_strips_it(tmp_path):
    frame = load_chat_frame(save(tmp_path, LLAMA_3))
    assert frame.head.endswith("<|head|>user<|over|>\n\n")
    assert frame.tail == "<|eot|><|head|>assistant<|over|>\n\n"


def test_the_date_is_fixed_and_configurable(tmp_path):
    folder = save(tmp_path, LLAMA_3)
    assert "\nToday: 01 Jan 2025\n" in load_chat_frame(folder).head
    assert "\nToday: 29 Feb 2024\n" in load_chat_frame(folder, date="2024-02-29").head


def test_the_date_in_a_config_needs_no_quotes():
    for day in ("2024-02-29", datetime.date(2024, 2, 29)):
        assert Checkpoint(path="x", chat_date=day).chat_date == "2024-02-29"
    for day in ("2025-02-29", "20250101", "2025-1-1", 2025, datetime.datetime(2025, 1, 1)):
        with pytest.raises(ValueError, match="is not a day; write YYYY-MM-DD, such as 2025-01-01"):
            Checkpoint(path="x", chat_date=day)


def test_an_empty_thinking_block_is_closed_once(tmp_path):
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert load_chat_frame(save(tmp_path, QWEN_3)).tail == f"<|im_end|>\n{closed}"
    thinking = QWEN_3.replace("enable_thinking is defined and enable_thinking is false", "false")
    assert load_chat_frame(save(tmp_path, thinking)).tail == "<|im_end|>\n<|im_start|>assistant\n"
    assert (
        load_chat_frame(save(tmp_path, DEEPSEEK_R1)).tail == "<|Assistant|><think>\n\n</think>\n\n"
    )
    thinks = load_chat_frame(save(tmp_path, DEEPSEEK_R1), thinking_tokens=1)
    assert thinks.tail == "<|Assistant|><think>\n"


def test_templates_receive_the_thinking_variable(tmp_path):
    template = "{{ messages[0].content }}|{% if thinking %}<think>{% else %}</think>{% endif %}"
    folder = save(tmp_path, template)
    assert load_chat_frame(folder).tail == "|</think>"
    frame = load_chat_frame(folder, thinking_tokens=9)
    assert frame._replace(parts_of=None) == ChatFrame("", "|<think>", None, False)


@pytest.mark.parametrize("template", [LLAMA_3, PHI, QWEN_3.replace("is false", "is defined")])
def test_thinking_without_support_in_the_template_is_rejected(tmp_path, template):
    folder = save(tmp_path, template)
    with pytest.raises(ValueError, match=r"cannot enable thinking; set thinking_tokens: 0$"):
        load_chat_frame(folder, thinking_tokens=100)


def test_thoughts_of_other_formats_are_closed(tmp_path):
    folder = save(tmp_path, "{{ messages[0].content }}|[THINK]")
    frame = load_chat_frame(folder)
    assert frame.tail == "|[THINK]\n\n[/THINK]\n\n"
    assert load_chat_frame(folder, thinking_tokens=9).tail == "|[THINK]"


def test_the_final_channel_is_opened(tmp_path):
    folder = save(tmp_path, "<|start|>user<|message|>{{ messages[0].content }}<|start|>assistant")
    final = "<|start|>assistant<|channel|>final<|message|>"
    assert load_chat_frame(folder).tail == final
    assert load_chat_frame(folder, thinking_tokens=9).tail == "<|start|>assistant"


def test_an_unknown_opener_needs_its_format(tmp_path):
    folder = save(tmp_path, "{{ messages[0].content }}|<ponder>")
    with pytest.raises(ValueError, match=r"ends with <ponder>, .* set thought_format: \{open: '<p"):
        load_chat_frame(folder)
    own = {"open": "<ponder>", "close": "</ponder>"}
    assert load_chat_frame(folder, thought_format=own).tail == "|<ponder>\n\n</ponder>\n\n"


def test_the_default_among_named_templates_is_used(tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": PHI}]
    whole = load_chat_frame(save(tmp_path, named), system_prompt=SYSTEM)
    assert whole.tail == "<|end|>\n<|assistant|>\n"
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == GEMMA
    assert load_chat_frame(tmp_path).tail == "<end>\n<turn>model\n"


def test_templates_get_the_environment_of_transformers(tmp_path):
    template = """\
{%- for message in messages %}
    {%- set words = {"é<&>": [1, none], "a": eos_token} %}
    {{- words | tojson }}{{ words | tojson(indent=1, sort_keys=true) }}
    {{- [unk_token, pad_token, cls_token] }}
    {% generation %}{% set inner = 1 %}{{ message.content }}{% endgeneration %}
  {% if loop.first %}
{{ tools is none }}{{ documents is none }}{{ inner is defined }}
  {% endif %}
    {%- continue %}
    never
{%- endfor %}
end
"""
    folder = save(tmp_path, template)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages(None), tokenize=False, add_generation_prompt=True)
    frame = load_chat_frame(folder)
    assert frame.head + QUESTION + frame.tail == text
    assert "é<&>" in frame.head


def test_head_drops_only_the_special_tokens_that_the_tokenizer_adds(tmp_path):
    folder = save(tmp_path, "<s></s>{{ messages[0].content }}<s>")
    assert load_chat_frame(folder)[:4] == ("</s>", "<s>", None, True)
    assert load_chat_frame(save(tmp_path, "{{ messages[0].content }}"))[:5] == NO_CHAT_FRAME[:5]


INVALID = {
    "alone": ("{{ raise_exception('one\n  two') }}", "fails: one two"),
    "syntax": ("x\n{% if %}", "cannot be parsed: line 2: "),
    "undefined": ("{{ messages[0].content }}{{ nothing.at.all }}", "fails: 'nothing' is undefined"),
    "type": ("{{ messages[0].content + 1 }}", "fails: can only concatenate str"),
    "unsafe": ("{{ messages.append(1) }}", "fails: .*'append' of 'list' object is unsafe"),
    "lost": ("{{ messages | length }}", "changes or repeats its message"),
    "twice": ("{{ messages[0].content * 2 }}", "changes or repeats its message"),
    "escaped": ("{{ messages[0].content | tojson }}", "changes or repeats its message"),
    "list": ("{% for part in messages[0].content %}{{ part.text }}{% endfor %}", "changes"),
    "nameless": ([{"name": "tool_use", "template": "x"}], "has no default chat template; set"),
    "none": (
        None,
        "has no chat template; set chat_template: false, or use an instruct model",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_template_gives_a_one_line_error(tmp_path, name):
    template, message = INVALID[name]
    folder = save(tmp_path, template)
    with pytest.raises(ValueError, match=message) as error:
        load_chat_frame(folder)
    assert str(error.value).startswith(f"{folder}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (GEMMA, r"rejects a system message \(System role not supported\); remove system_prompt"),
        ("{{ messages[-1].content }}", "drops the system message; remove system_prompt"),
    ],
)
def test_a_rejected_system_message_is_reported(tmp_path, template, message):
    folder = save(tmp_path, template)
    load_chat_frame(folder)
    with pytest.raises(ValueError, match=message):
        load_chat_frame(folder, system_prompt=SYSTEM)


def test_unreadable_files_are_reported(tmp_path):
    folder = save(tmp_path, PHI)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: is not a JSON object"):
        load_chat_frame(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja: cannot be read"):
        load_chat_frame(folder)


@pytest.mark.slow
def test_a_hub_name_is_read_from_the_hub_cache(tmp_path):
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    for commit, name in (("0" * 40, "main"), ("1" * 40, "v2")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "refs" / name).write_text(commit)
        save(snapshot, PHI if name == "main" else PHI.replace("|user|", "|asker|"))
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."}

    def opened(arguments: str) -> subprocess.CompletedProcess[str]:
        code = "from needlework.tasks.prompts.chat import load_chat_frame;"
        code += f"print(load_chat_frame({arguments}).head)"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert opened("'owner/name'").stdout == "<|user|>\n\n"
    failed = opened("'owner/other'").stderr.splitlines()[-1]
    assert failed.startswith(
        "ValueError: owner/other: no such folder, and the hub cannot be reached"
    )


def test_templates_are_selected_by_name(tmp_path):
    folder = save(
        tmp_path, [{"name": "default", "template": PHI}, {"name": "rag", "template": "x"}]
    )
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text(GEMMA)
    assert load_chat_frame(folder).tail == "<|end|>\n<|assistant|>\n"
    assert load_chat_frame(folder, template="rag").tail == "<end>\n<turn>model\n"
    with pytest.raises(ValueError, match="has no chat template 'tool'; set chat_template: default"):
        load_chat_frame(folder, template="tool")


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_template_of_a_processor_is_used_if_the_tokenizer_has_none(tmp_path, name):
    folder = save(tmp_path, None)
    (folder / name).write_text(json.dumps({"chat_template": GEMMA}))
    assert load_chat_frame(folder).tail == "<end>\n<turn>model\n"
    (folder / "chat_template.jinja").write_text(PHI)
    assert load_chat_frame(folder).tail == "<|end|>\n<|assistant|>\n"
