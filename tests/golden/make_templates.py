"""Records chat templates rendered by transformers 5 in templates/expected.json.

pip install transformers jinja2; python make_templates.py

The templates beside it are written for this test, one for each family's published format. The clock
of strftime_now stands at 2024-07-26 13:05:09 UTC.
"""

import datetime
import json
from pathlib import Path

import transformers.utils.chat_template_utils as chat

HERE = Path(__file__).parent / "templates"


class Stopped(datetime.datetime):
    """A clock that always shows the same moment."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, 13, 5, 9)


chat.datetime = Stopped

CALL = {"city": "Zürich", "unit": "c", "days": [1, 2.5, None, True], "note": "<now> & 'then'"}
TOOLS = [
    {"type": "function", "function": {"name": "forecast", "description": "The <weather> & more", "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city's name"}, "days": {"type": "array", "items": {"type": "integer"}}},
        "required": ["city"]}}},
    {"type": "function", "function": {"name": "ring", "description": "No arguments", "parameters": {"type": "object", "properties": {}}}},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM = say("system", "Be brief.\nAlways.")
ASK = say("user", "What holds a boat?")
ANSWER = say("assistant", 'A "rope" — or <b>two</b> & a knot; 漢字.')
AGAIN = say("user", "  And 2+2?\n")
FOUR = say("assistant", "It's 4. ", reasoning_content="two and two\nmake four")
THINK = say("assistant", "<think>\nboats, hmm\n</think>\n\nA rope.")
CALLING = say("assistant", "", tool_calls=[{"id": "call00001", "type": "function", "function": {"name": "forecast", "arguments": CALL}}])
AS_TEXT = say("assistant", "", tool_calls=[{"id": "call00001", "type": "function", "function": {"name": "forecast", "arguments": '{"city": "Bern"}'}}])
RESULT = say("tool", '{"temp": 21}', name="forecast", tool_call_id="call00001")
CONVERSATIONS = {
    "one": [ASK],
    "system": [SYSTEM, ASK, ANSWER],
    "two": [ASK, ANSWER, AGAIN, FOUR],
    "asked again": [SYSTEM, ASK, ANSWER, AGAIN],
    "reasoning": [ASK, THINK, AGAIN, FOUR, ASK, THINK],
    "tool": [SYSTEM, AGAIN, CALLING, RESULT, FOUR, ASK],
    "tool call as text": [ASK, AS_TEXT, RESULT],
    "two tools": [ASK, say("assistant", "Let me see.", tool_calls=CALLING["tool_calls"] * 2), RESULT, RESULT, FOUR],
    "twice the same": [ASK, AGAIN],
    "unknown role": [say("narrator", "x")],
}
OPTIONS = [
    {},
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "tools": TOOLS},
    {"tools": TOOLS, "kwargs": {"date_string": "1 Jan 2030", "enable_thinking": True}},
    {"add_generation_prompt": True, "kwargs": {"enable_thinking": False}},
]


def render(source, messages, option):
    arguments = {**SPECIAL, **option.get("kwargs", {})}
    try:
        texts, spans = chat.render_jinja_template(
            [messages], tools=option.get("tools"), chat_template=source,
            add_generation_prompt=option.get("add_generation_prompt", False),
            return_assistant_tokens_mask="generation %}" in source, **arguments)
    except Exception as error:  # a refusal is an outcome, too
        return {"refused": type(error).__name__}
    text = texts[0]
    count = lambda end: len(text[:end].encode())
    return {"text": text, "generation": [[count(a), count(b)] for a, b in (spans[0] if spans else [])]}


cases = []
for path in sorted(HERE.glob("*.jinja")):
    source = path.read_text()
    for name, messages in CONVERSATIONS.items():
        for number, option in enumerate(OPTIONS):
            if path.stem == "constructs" and (name, number) != ("two", 0):
                continue
            cases.append({"template": path.name, "conversation": name, "option": number, **render(source, messages, option)})
refused = sum("refused" in case for case in cases)
expected = {"now": 1721999109, "special": SPECIAL, "conversations": CONVERSATIONS, "options": OPTIONS, "cases": cases}
(HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=0) + "\n")
print(f"{len(cases)} cases, {refused} refused")
