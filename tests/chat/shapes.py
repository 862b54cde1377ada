"""Shapes of conversations, and the row of each for every kind of job."""

import copy
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

Message = dict[str, Any]
Row = dict[str, Any]
Job = Literal["sft", "dpo", "reward", "kto", "grpo"]
JOBS: tuple[Job, ...] = ("sft", "dpo", "reward", "kto", "grpo")


END = "[END]"
"""Stands in contents for the text that ends a style's turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A conversation that ends with a turn of the assistant, and another such turn that is worse."""

    name: str
    messages: tuple[Message, ...]
    worse: Message
    tools: tuple[Row, ...] = ()
    """What the column tools holds, in rows that have one."""

    def ended_by(self, end: str) -> "Shape":
        """The shape for a style whose turns end with `end`: it stands in some contents, too."""
        if not any(END in str(message["content"]) for message in (*self.messages, self.worse)):
            return self
        *messages, worse = (
            message | {"content": message["content"].replace(END, end)} for message in (*self.messages, self.worse)
        )
        return replace(self, messages=tuple(messages), worse=worse)

    def conversation(self, job: Job, *, worse: bool = False) -> list[Message]:
        """The messages that a sequence of the job is made from; of GRPO those before the response."""
        messages = copy.deepcopy([*self.messages[:-1], self.worse if worse else self.messages[-1]])
        return messages[:-1] if job == "grpo" else messages

    def row(self, job: Job) -> Row:
        """The row: messages (sft), prompt, chosen and rejected (dpo, reward), prompt, completion and label (kto), or
        prompt (grpo); with the column tools where the shape has tools."""
        *prompt, last = self.conversation("sft")
        rows: dict[Job, Row] = {
            "sft": {"messages": [*prompt, last]},
            "dpo": {"prompt": prompt, "chosen": [last], "rejected": [copy.deepcopy(self.worse)]},
            "kto": {"prompt": prompt, "completion": [last], "label": True},
            "grpo": {"prompt": prompt},
        }
        rows["reward"] = rows["dpo"]
        return rows[job] | ({"tools": copy.deepcopy(list(self.tools))} if self.tools else {})


def says(role: str, content: object, **more: object) -> Message:
    return {"role": role, "content": content, **more}


def user(content: object) -> Message:
    return says("user", content)


def assistant(content: object, **more: object) -> Message:
    return says("assistant", content, **more)


def call(number: int, name: str, arguments: object) -> Row:
    """As OpenAI has it: an id, a type, and the arguments as a text of JSON."""
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": text}}


def result(number: int, content: str) -> Message:
    return says("tool", content, tool_call_id=f"call0000{number}")


def tool(name: str, what: str, **properties: Row) -> Row:
    """A function's description, as OpenAI has it."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": what, "parameters": parameters}}


def _filled(message: Message) -> Message:
    """As Parquet gives it back: every message has the columns of all others."""
    empty = dict.fromkeys(("name", "reasoning_content", "tool_calls", "tool_call_id", "weight"))
    return empty | message


_WEATHER = tool("weather", "Weather of a city", city={"type": "string"})
_CLOCK = tool("clock", "Time of a zone", zone={"type": "string"}, precise={"type": "boolean"})
_NULLS = tool(
    "weather",
    "Weather of a city",
    city={"type": "string", "enum": None, "default": None},
    days={"type": "integer", "enum": None, "default": 3},
)
_NESTED: Row = {
    "city": 'Zürich <old> & "new"',
    "country": None,
    "days": 3,
    "exact": False,
    "place": {"north": 47.25, "south": None, "near": {"lake": "Zürichsee", "hill": None}},
    "stops": [{"name": "Baden", "at": None}, {"name": None, "at": "10:30"}],
}


def _arrow_call(arguments: object) -> Row:
    """With its arguments as a struct, and an id that some templates find too long."""
    function = {"name": "travel", "arguments": arguments, "description": None}
    return {"id": "call_a1b2c3", "type": "function", "index": None, "function": function}


_TALK = (user("What is the sun?"), assistant("A star."))
_SECOND = (user("And the moon?"), assistant("The moon is a satellite."))
_THIRD = (user("Which is larger?"), assistant("The sun is."))
_SYSTEM = says("system", "You know the sky.")
_WORSE = assistant("No idea at all.")
_SPOKEN = "USER: is it so?\nASSISTANT: yes\nanswer: the user asks, the assistant answers\n### Assistant:"
_UNICODE = (
    "na\u0303o \u00e9te\u0301 \u6f22\u5b57\u3002 \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f680 "
    "\u0645\u0631\u062d\u0628\u0627\u200f \u2603"
)
"""Letters with accents apart and composed, Chinese, Hebrew, emoji of two, Arabic with a mark of direction."""


def _with_tool(*calls: Row, results: tuple[str, ...], final: str) -> tuple[Message, ...]:
    said = [result(number, text) for number, text in enumerate(results, start=1)]
    return (user("Tell me more"), assistant(None, tool_calls=list(calls)), *said, assistant(final))


_ONE_CALL = _with_tool(call(1, "weather", {"city": "Oslo"}), results=("12 degrees",), final="Rather mild.")

_ALL = (
    Shape(name="one turn", messages=_TALK, worse=_WORSE),
    Shape(name="system", messages=(_SYSTEM, *_TALK), worse=_WORSE),
    Shape(name="two exchanges", messages=(*_TALK, *_SECOND), worse=_WORSE),
    Shape(name="system, three exchanges", messages=(_SYSTEM, *_TALK, *_SECOND, *_THIRD), worse=_WORSE),
    Shape(name="assistant opens", messages=(assistant("Hello, what is it?"), *_TALK), worse=_WORSE),
    Shape(name="tool", messages=_ONE_CALL, worse=_WORSE, tools=(_WEATHER,)),
    Shape(
        name="parallel tools",
        messages=_with_tool(
            call(1, "weather", {"city": "Köln"}),
            call(2, "clock", {"zone": "CET", "precise": True}),
            results=("9 degrees", "10:31 exactly"),
            final="Cold, and half past ten.",
        ),
        worse=_WORSE,
        tools=(_WEATHER, _CLOCK),
    ),
    Shape(
        name="calls without tools",
        messages=_with_tool(
            call(1, "weather", {"city": "Genève"}),
            call(2, "weather", {"city": "Bern", "days": 2}),
            results=("15 degrees", "13 degrees"),
            final="Both are mild.",
        ),
        worse=_WORSE,
    ),
    Shape(name="tools unused", messages=_TALK, worse=_WORSE, tools=(_WEATHER, _CLOCK)),
    Shape(
        name="call as text",
        messages=(user("Is it warm?"), assistant("weather(Oslo)"), result(1, "12 degrees"), assistant("Rather mild.")),
        worse=_WORSE,
    ),
    Shape(
        name="nested arguments",
        messages=(
            _filled(user("Plan it")),
            _filled(assistant(None, tool_calls=[_arrow_call(_NESTED)])),
        ),
        worse=_filled(assistant(None, tool_calls=[_arrow_call(_NESTED | {"city": "Bern"})])),
    ),
    Shape(
        name="tools with nulls",
        messages=tuple(map(_filled, _ONE_CALL)),
        worse=_filled(_WORSE),
        tools=(_NULLS,),
    ),
    Shape(
        name="reasoning",
        messages=(*_TALK, _SECOND[0], _SECOND[1] | {"reasoning_content": "It goes around\n\nthe earth."}),
        worse=_WORSE | {"reasoning_content": "Not a thought."},
    ),
    Shape(
        name="reasoning twice",
        messages=(
            _TALK[0],
            _TALK[1] | {"reasoning_content": "It shines."},
            _SECOND[0],
            _SECOND[1] | {"reasoning_content": "It does not."},
        ),
        worse=_WORSE | {"reasoning_content": "Not a thought."},
    ),
    Shape(
        name="thought in content",
        messages=(user("Which?"), assistant("<think>\nThe larger one.\n</think>\n\nThe sun.")),
        worse=assistant("<think>\nAny of them.\n</think>\n\nThe moon."),
    ),
    Shape(
        name="thoughts in contents",
        messages=(
            user("Which?"),
            assistant("<think>\nThe larger one.\n</think>\n\nThe sun."),
            user("Sure?"),
            assistant("<think>\nIt is a star.\n</think>\n\nCertainly."),
        ),
        worse=assistant("<think>\nNobody knows.\n</think>\n\nMaybe."),
    ),
    Shape(
        name="white space",
        messages=(
            user("\n  a list? \n\n"),
            assistant("\n\n  yes\n  no \n\n"),
            user(" more"),
            assistant(" \n\tis it?\n"),
        ),
        worse=assistant("  the end  \n"),
    ),
    Shape(
        name="words of roles",
        messages=(
            user("user: what does an assistant answer?"),
            assistant(_SPOKEN),
            user("USER: and?"),
            assistant("assistant"),
        ),
        worse=assistant("answer"),
    ),
    Shape(
        name="unicode",
        messages=(user("\U0001f64f " + _UNICODE), assistant(_UNICODE + " \U0001f1e8\U0001f1ed")),
        worse=assistant("\u4e0d"),
    ),
    Shape(
        name="parts",
        messages=(user([{"type": "text", "text": "What is it?"}]), assistant([{"type": "text", "text": "The sun."}])),
        worse=assistant([{"type": "text", "text": "A lamp."}]),
    ),
    Shape(
        name="weight 0",
        messages=(_TALK[0], assistant("A planet.", weight=0), user("Sure?"), assistant("No, a star.", weight=1)),
        worse=_WORSE,
    ),
    Shape(
        name="consecutive",
        messages=(_TALK[0], assistant("A star,"), assistant("and a large one."), *_SECOND),
        worse=_WORSE,
    ),
    Shape(
        name="text of an end",
        messages=(user("What ends a turn?"), assistant(f"A mark, {END} for one.")),
        worse=assistant(f"Only {END} does."),
    ),
    Shape(
        name="words beside a call",
        messages=(
            user("Is it warm?"),
            assistant("I shall look.", tool_calls=[call(1, "weather", {"city": "Oslo"})]),
            result(1, "12 degrees"),
            assistant("Rather mild."),
        ),
        worse=_WORSE,
        tools=(_WEATHER,),
    ),
    Shape(
        name="tools twice",
        messages=(
            _SYSTEM,
            *_ONE_CALL,
            user("And the time?"),
            assistant(None, tool_calls=[call(2, "clock", {"zone": "CET"})]),
            result(2, "10:31 exactly"),
            assistant("Half past ten."),
        ),
        worse=_WORSE,
        tools=(_WEATHER, _CLOCK),
    ),
    Shape(
        name="system within a question",
        messages=(says("system", "What is"), user("What is the sun?"), assistant("What is it? A star.")),
        worse=_WORSE,
    ),
    Shape(
        name="thought again",
        messages=(_TALK[0], _TALK[1] | {"reasoning_content": "A star."}),
        worse=_WORSE | {"reasoning_content": "No idea"},
    ),
    Shape(
        name="one call twice",
        messages=_with_tool(
            call(1, "weather", {"city": "Oslo"}),
            call(2, "weather", {"city": "Oslo"}),
            results=("12 degrees", "12 degrees"),
            final="Rather mild.",
        ),
        worse=_WORSE,
        tools=(_WEATHER,),
    ),
    Shape(
        name="call within words",
        messages=(
            user("Is it warm?"),
            assistant("I ask for the weather of the city Oslo", tool_calls=[call(1, "weather", {"city": "Oslo"})]),
            result(1, "Oslo: the weather is mild"),
            assistant("The weather of Oslo is mild."),
        ),
        worse=_WORSE,
    ),
    Shape(
        name="white space within",
        messages=(user("As code?\n\n\n  1  2"), assistant("def of():\n    return  1\n\n\n    # the end")),
        worse=assistant("def of():\n\treturn"),
    ),
    Shape(name="developer", messages=(says("developer", "Be brief."), *_TALK), worse=_WORSE),
)

SHAPES: dict[str, Shape] = {shape.name: shape for shape in _ALL}
"""By name."""
PLAIN = ("one turn", "two exchanges")
"""Those that every style can say, in strings or in parts."""
